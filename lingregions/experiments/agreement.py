"""Agreement: pairs of sentences that differ in the number of the verb alone, one right and one wrong.

Made from templates (Linzen et al. 2016, arXiv 1611.01368, ask the same of attested sentences): every subject with every
verb, once in the singular and once in the plural, so that a model that prefers one form of the verb is right in half of
them. The sentences end in a full stop, so that a form which is the beginning of the other has no advantage. The words
were chosen for these lists: people, and verbs that need no object, regular, in the present tense.
"""

from collections.abc import Mapping
from typing import NamedTuple


class _Words(NamedTuple):
    """The words of a language: (singular, plural) of each."""

    subjects: tuple[tuple[str, str], ...]
    verbs: tuple[tuple[str, str], ...]


WORDS: Mapping[str, _Words] = {
    "en": _Words(
        (
            ("The teacher", "The teachers"),
            ("The doctor", "The doctors"),
            ("The child", "The children"),
            ("The worker", "The workers"),
            ("The friend", "The friends"),
            ("The woman", "The women"),
        ),
        (("works", "work"), ("sleeps", "sleep"), ("speaks", "speak"), ("lives", "live")),
    ),
    "es": _Words(
        (
            ("El profesor", "Los profesores"),
            ("La doctora", "Las doctoras"),
            ("El niño", "Los niños"),
            ("El trabajador", "Los trabajadores"),
            ("El amigo", "Los amigos"),
            ("La mujer", "Las mujeres"),
        ),
        (("trabaja", "trabajan"), ("duerme", "duermen"), ("habla", "hablan"), ("vive", "viven")),
    ),
    "fr": _Words(
        (
            ("Le professeur", "Les professeurs"),
            ("Le médecin", "Les médecins"),
            ("L'enfant", "Les enfants"),
            ("L'ouvrier", "Les ouvriers"),
            ("L'ami", "Les amis"),
            ("La femme", "Les femmes"),
        ),
        (("travaille", "travaillent"), ("dort", "dorment"), ("parle", "parlent"), ("vit", "vivent")),
    ),
    "de": _Words(
        (
            ("Der Arzt", "Die Ärzte"),
            ("Die Ärztin", "Die Ärztinnen"),
            ("Das Kind", "Die Kinder"),
            ("Der Freund", "Die Freunde"),
            ("Der Mann", "Die Männer"),
            ("Die Frau", "Die Frauen"),
        ),
        (("arbeitet", "arbeiten"), ("schläft", "schlafen"), ("spricht", "sprechen"), ("lebt", "leben")),
    ),
    "ru": _Words(
        (
            ("Учитель", "Учителя"),
            ("Врач", "Врачи"),
            ("Ребёнок", "Дети"),
            ("Рабочий", "Рабочие"),
            ("Друг", "Друзья"),
            ("Женщина", "Женщины"),
        ),
        (("работает", "работают"), ("спит", "спят"), ("говорит", "говорят"), ("живёт", "живут")),
    ),
}


def pairs(language: str) -> list[tuple[str, str]]:
    """Return (right, wrong) sentences of a language: two for each subject and verb."""
    words = WORDS[language]
    return [
        (f"{subject[number]} {verb[number]}.", f"{subject[number]} {verb[1 - number]}.")
        for subject in words.subjects
        for verb in words.verbs
        for number in (0, 1)
    ]
