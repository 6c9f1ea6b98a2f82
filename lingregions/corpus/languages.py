"""The thirty languages of the paper, in its alphabetical order: the one list that everything else asks.

Codes are ISO 639-1; Norwegian is written Bokmal (`nb`; `no` is accepted). Scripts are Unicode script names, several
where a language is written in several at once. Families and branches are those of Glottolog 5, shortened to the level
at which the reports group languages. wiki40b has no edition in Malayalam, Swahili and Tamil; Wikipedia has all thirty.
"""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One language: ISO 639-1 code, English name, family, branch, scripts, and its names in TFDS (None: none)."""

    code: str
    name: str
    family: str
    branch: str
    scripts: tuple[str, ...]
    wiki40b: str | None
    wikipedia: str


def _language(code: str, name: str, family: str, branch: str, scripts: str, wiki40b: str | None = "") -> Language:
    return Language(code, name, family, branch, tuple(scripts.split()), code if wiki40b == "" else wiki40b, code)


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        _language("ar", "Arabic", "Afro-Asiatic", "Semitic", "Arabic"),
        _language("zh", "Chinese", "Sino-Tibetan", "Sinitic", "Han", wiki40b="zh-cn"),
        _language("cs", "Czech", "Indo-European", "Slavic", "Latin"),
        _language("da", "Danish", "Indo-European", "Germanic", "Latin"),
        _language("nl", "Dutch", "Indo-European", "Germanic", "Latin"),
        _language("en", "English", "Indo-European", "Germanic", "Latin"),
        _language("fi", "Finnish", "Uralic", "Finnic", "Latin"),
        _language("fr", "French", "Indo-European", "Romance", "Latin"),
        _language("de", "German", "Indo-European", "Germanic", "Latin"),
        _language("el", "Greek", "Indo-European", "Hellenic", "Greek"),
        _language("hu", "Hungarian", "Uralic", "Ugric", "Latin"),
        _language("id", "Indonesian", "Austronesian", "Malayic", "Latin"),
        _language("it", "Italian", "Indo-European", "Romance", "Latin"),
        _language("ja", "Japanese", "Japonic", "Japonic", "Han Hiragana Katakana"),
        _language("ko", "Korean", "Koreanic", "Koreanic", "Hangul"),
        _language("ms", "Malay", "Austronesian", "Malayic", "Latin"),
        _language("ml", "Malayalam", "Dravidian", "South Dravidian", "Malayalam", wiki40b=None),
        Language("nb", "Norwegian", "Indo-European", "Germanic", ("Latin",), wiki40b="no", wikipedia="no"),
        _language("fa", "Persian", "Indo-European", "Iranian", "Arabic"),
        _language("pl", "Polish", "Indo-European", "Slavic", "Latin"),
        _language("pt", "Portuguese", "Indo-European", "Romance", "Latin"),
        _language("ro", "Romanian", "Indo-European", "Romance", "Latin"),
        _language("ru", "Russian", "Indo-European", "Slavic", "Cyrillic"),
        _language("es", "Spanish", "Indo-European", "Romance", "Latin"),
        _language("sw", "Swahili", "Atlantic-Congo", "Bantu", "Latin", wiki40b=None),
        _language("sv", "Swedish", "Indo-European", "Germanic", "Latin"),
        _language("ta", "Tamil", "Dravidian", "South Dravidian", "Tamil", wiki40b=None),
        _language("tr", "Turkish", "Turkic", "Oghuz", "Latin"),
        _language("uk", "Ukrainian", "Indo-European", "Slavic", "Cyrillic"),
        _language("vi", "Vietnamese", "Austroasiatic", "Vietic", "Latin"),
    )
}

# The six languages that the paper scores (docs/method.md 1): English is not among them.
SCORED: tuple[str, ...] = ("ar", "es", "ru", "zh", "ko", "vi")

ALIASES = {"no": "nb", "zh-cn": "zh", "zh-hans": "zh"}


def language(name: str) -> Language:
    """Return the language of an ISO code or an English name; raises ValueError with the nearest names otherwise."""
    wanted = name.strip().lower().replace("_", "-")
    code = ALIASES.get(wanted, wanted)
    if code in LANGUAGES:
        return LANGUAGES[code]
    names = {entry.name.lower(): entry for entry in LANGUAGES.values()}
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, [*LANGUAGES, *names], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {' '.join(sorted(LANGUAGES))}"
    raise ValueError(f"unknown language {name!r}; {hint}")


def families(group: str = "family") -> dict[str, tuple[str, ...]]:
    """Return {family: codes} in the order of the registry; `group` is "family", "branch" or "script"."""
    if group not in ("family", "branch", "script"):
        raise ValueError(f"languages are grouped by family, branch or script, not by {group!r}")
    groups: dict[str, list[str]] = {}
    for entry in LANGUAGES.values():
        label = entry.scripts[0] if group == "script" else getattr(entry, group)
        groups.setdefault(label, []).append(entry.code)
    return {label: tuple(codes) for label, codes in groups.items()}
