"""The thirty languages of the paper, in its alphabetical order: the one list that everything else asks.

Codes are ISO 639-1; Norwegian is written Bokmal (`nb`). Whatever else a language is called (zh_CN, Chinese, eng_Latn,
no) becomes that code once, at the border: `canonical` for people and the API, `listed` for the lists of a config,
`of_name` for names of files and folders. Scripts are Unicode script names, several where a language is written in
several at once. Families and branches are those of Glottolog 5, shortened to the level at which the reports group
languages. wiki40b has no edition in Malayalam, Swahili and Tamil; Wikipedia has all thirty.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """One language: ISO 639-1 code, English name, family, branch, scripts, and its names in TFDS (None: none).

    `aliases` are its ISO 639-2 and 639-3 codes (those of FLORES-200 among them) and other names, in lower case.
    """

    code: str
    name: str
    aliases: tuple[str, ...]
    family: str
    branch: str
    scripts: tuple[str, ...]
    wiki40b: str | None
    wikipedia: str


def _language(
    code: str,
    name: str,
    aliases: str,
    family: str,
    branch: str,
    scripts: str,
    wiki40b: str | None = "",
    wikipedia: str = "",
) -> Language:
    edition = code if wiki40b == "" else wiki40b
    words = tuple(aliases.split()), tuple(scripts.split())
    return Language(code, name, words[0], family, branch, words[1], edition, wikipedia or code)


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        _language("ar", "Arabic", "ara arb العربية", "Afro-Asiatic", "Semitic", "Arabic"),
        _language("zh", "Chinese", "zho cmn chi mandarin 中文", "Sino-Tibetan", "Sinitic", "Han", wiki40b="zh-cn"),
        _language("cs", "Czech", "ces cze čeština", "Indo-European", "Slavic", "Latin"),
        _language("da", "Danish", "dan dansk", "Indo-European", "Germanic", "Latin"),
        _language("nl", "Dutch", "nld dut nederlands", "Indo-European", "Germanic", "Latin"),
        _language("en", "English", "eng", "Indo-European", "Germanic", "Latin"),
        _language("fi", "Finnish", "fin suomi", "Uralic", "Finnic", "Latin"),
        _language("fr", "French", "fra fre français", "Indo-European", "Romance", "Latin"),
        _language("de", "German", "deu ger deutsch", "Indo-European", "Germanic", "Latin"),
        _language("el", "Greek", "ell gre ελληνικά", "Indo-European", "Hellenic", "Greek"),
        _language("hu", "Hungarian", "hun magyar", "Uralic", "Ugric", "Latin"),
        _language("id", "Indonesian", "ind bahasa-indonesia", "Austronesian", "Malayic", "Latin"),
        _language("it", "Italian", "ita italiano", "Indo-European", "Romance", "Latin"),
        _language("ja", "Japanese", "jpn 日本語", "Japonic", "Japonic", "Han Hiragana Katakana"),
        _language("ko", "Korean", "kor 한국어", "Koreanic", "Koreanic", "Hangul"),
        _language("ms", "Malay", "msa zsm bahasa-melayu", "Austronesian", "Malayic", "Latin"),
        _language("ml", "Malayalam", "mal മലയാളം", "Dravidian", "South Dravidian", "Malayalam", wiki40b=None),
        _language(
            "nb",
            "Norwegian",
            "no nob nor bokmål bokmal norwegian-bokmål norsk",
            "Indo-European",
            "Germanic",
            "Latin",
            wiki40b="no",
            wikipedia="no",
        ),
        _language("fa", "Persian", "fas pes farsi فارسی", "Indo-European", "Iranian", "Arabic"),
        _language("pl", "Polish", "pol polski", "Indo-European", "Slavic", "Latin"),
        _language("pt", "Portuguese", "por português", "Indo-European", "Romance", "Latin"),
        _language("ro", "Romanian", "ron rum română", "Indo-European", "Romance", "Latin"),
        _language("ru", "Russian", "rus русский", "Indo-European", "Slavic", "Cyrillic"),
        _language("es", "Spanish", "spa castilian español", "Indo-European", "Romance", "Latin"),
        _language("sw", "Swahili", "swa swh kiswahili", "Atlantic-Congo", "Bantu", "Latin", wiki40b=None),
        _language("sv", "Swedish", "swe svenska", "Indo-European", "Germanic", "Latin"),
        _language("ta", "Tamil", "tam தமிழ்", "Dravidian", "South Dravidian", "Tamil", wiki40b=None),
        _language("tr", "Turkish", "tur türkçe", "Turkic", "Oghuz", "Latin"),
        _language("uk", "Ukrainian", "ukr українська", "Indo-European", "Slavic", "Cyrillic"),
        _language("vi", "Vietnamese", "vie tiếng-việt", "Austroasiatic", "Vietic", "Latin"),
    )
}

# The six languages that the paper scores (docs/method.md 1): English is not among them.
SCORED: tuple[str, ...] = ("ar", "es", "ru", "zh", "ko", "vi")

# How ISO 15924 abbreviates the scripts, in tags such as zh-Hans and eng_Latn.
_TAGS = {
    "Latin": ("latn",),
    "Greek": ("grek",),
    "Cyrillic": ("cyrl",),
    "Arabic": ("arab",),
    "Tamil": ("taml",),
    "Malayalam": ("mlym",),
    "Han": ("hans", "hant", "hani", "jpan"),
    "Hangul": ("hang", "kore"),
}
_NAMES = {word: entry.code for entry in LANGUAGES.values() for word in (entry.code, entry.name.lower(), *entry.aliases)}
# A language in the name of a file or folder: a date or `c4-` may come before it, numbers and words of shards after it.
_NAMED = re.compile(
    r"(?P<spelled>(?:c4-|\d{6,8}\.)?(?P<name>[^\W\d_]+(?:[-_][^\W\d_]+)*?))"
    r"(?:[-_.]?\d+|[-_.](?:of|part|shard|chunk|meta|train|tfrecord)(?![^\W\d_]))*"
)


def understood(name: str) -> str | None:
    """Return the code of a language by any of its names, None where it is none of the thirty.

    A tag may carry the language's script and a region (pt_BR, zh-Hant-TW, arb_Arab); other subtags mean other texts.
    """
    wanted = re.sub(r"[\s_]+", "-", unicodedata.normalize("NFC", name).strip().lower().removesuffix(".utf-8"))
    if wanted in _NAMES:
        return _NAMES[wanted]
    first, *rest = wanted.split("-")
    code = _NAMES.get(first)
    if code is None or len(first) > 3:
        return None
    tags = [tag for script in LANGUAGES[code].scripts for tag in _TAGS.get(script, ())]
    if rest and rest[0] in tags:
        rest = rest[1:]
    if not rest or (len(rest) == 1 and re.fullmatch(r"[a-z]{2}|\d{3}", rest[0])):
        pair = rest and _NAMES.get(rest[0], code) != code and not name.endswith(rest[0].upper())
        return None if pair else code  # en-fr is a pair of languages, es-AR Spanish of Argentina
    return None


def canonical(name: str) -> str:
    """Return the code of a language by any of its names; raises ValueError with the nearest names otherwise."""
    code = understood(name)
    if code is not None:
        return code
    # Two letters are near to any other two: only words are guessed at.
    near = difflib.get_close_matches(name.strip().lower(), [word for word in _NAMES if len(word) > 3], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {' '.join(sorted(LANGUAGES))}"
    raise ValueError(f"unknown language {name!r}, none of the thirty; {hint}")


def listed(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the codes of the languages that a config or command line lists under `where`, each once.

    Raises ValueError for a language listed twice, which would count twice in every mean, for an unknown one, and for a
    code of three letters, which names one standard of a language: results go by the code of two.
    """
    codes: dict[str, str] = {}
    for name in names:
        code = canonical(name)
        if re.match(r"[A-Za-z]{3}(?![^\W_])", name.strip()):
            raise ValueError(f"{where}: unknown code {name!r}; did you mean {code} ({LANGUAGES[code].name})?")
        if code in codes:
            raise ValueError(f"{where} names {LANGUAGES[code].name} twice ({codes[code]}, {name}): keep one")
        codes[code] = name
    return tuple(codes)


def of_name(stem: str) -> tuple[str, str] | None:
    """Return (code, how the language is written there) of a folder's name, or of a file's without its endings.

    None where the name is not that of a language with a date before or shards after it.
    """
    match = _NAMED.fullmatch(stem)
    code = understood(match["name"]) if match else None
    return (code, match["spelled"]) if match and code else None


def families(group: str = "family") -> dict[str, tuple[str, ...]]:
    """Return {family: codes} in the order of the registry; `group` is "family", "branch" or "script"."""
    if group not in ("family", "branch", "script"):
        raise ValueError(f"languages are grouped by family, branch or script, not by {group!r}")
    groups: dict[str, list[str]] = {}
    for entry in LANGUAGES.values():
        label = entry.scripts[0] if group == "script" else getattr(entry, group)
        groups.setdefault(label, []).append(entry.code)
    return {label: tuple(codes) for label, codes in groups.items()}
