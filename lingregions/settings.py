"""From a command line to a locked config: `core_removal:smollm2 --config.score.samples=64`.

A config is named by a file (`mine.py:tiny`) or by the name of one that ships with the package; it may stand as the
first word or as `--config=`. It is a Python file with `get_config(variant)` that returns an
`ml_collections.ConfigDict`. Beside it the file may hold two dicts that make messages better: `VARIANTS` (variant -> one
sentence) and `HELP` (dotted key -> one sentence).
Values are parsed, and their types enforced, by `ml_collections.config_flags` (a tuple of words may also be written
`ar,zh` or `1%,3%`); this module finds the file and answers mistakes in words: what was wrong, what there
is, what was probably meant. A `placeholder(type)` in a config is a value that the user must give: one that is still
unset at the start is an error. Costs nothing: no device is touched.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import re
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags
from ml_collections.config_flags import config_path

from lingregions.corpus.languages import listed

_LANGUAGES = re.compile(r"\.(languages?|replayed)$")  # keys whose values are languages
CONFIGS = Path(__file__).parent / "configs"  # those of the package: in a checkout a link to its configs/
# What `run` and `sweep` take beside --config.KEY=VALUE; the help prints it.
FLAGS = {
    "--config=VALUE": "the config, where it is not the first word",
    "--workdir=VALUE": "folder for everything that the run writes (default: runs/CONFIG-VARIANT)",
    "--fresh": "move an existing work directory aside and start again",
    "--dry-run": "check everything, say what would be done, how long it takes and what it needs, and stop",
}
_OVERRIDE = re.compile(r"^--?(?:no)?config\.([^=]+)(?:=|$)")


class SettingsError(ValueError):
    """A mistake in the command line or in a config file, told in words that the user can act on."""


@dataclasses.dataclass(frozen=True)
class Invocation:
    """What one command line asks for."""

    config: config_dict.ConfigDict  # locked, nothing unset
    source: str  # the config and its variant, as given
    workdir: Path
    fresh: bool  # start afresh: move an existing work directory aside
    dry_run: bool  # say what would be done, do nothing
    flags: flags.FlagValues  # these and the caller's own flags, parsed


def parse(argv: Sequence[str], values: flags.FlagValues | None = None) -> Invocation:
    """Parse the words after a verb: CONFIG, --config.*, --workdir, --fresh, --dry-run and the caller's own flags.

    A flag may be written with dashes or underscores. The config is the first word that is no flag, or --config.

    Args:
      argv: the words, without the program and the verb.
      values: an absl `FlagValues` in which the caller has defined flags of its own; parsed in place.

    Raises:
      SettingsError: for an unknown flag or word, a wrong type, a missing config, and all that `load` refuses.
    """
    values = flags.FlagValues() if values is None else values
    values.set_gnu_getopt(True)
    for name in ("config", "workdir"):
        flags.DEFINE_string(name, None, FLAGS[f"--{name}=VALUE"], flag_values=values)
    for name in ("fresh", "dry_run"):
        flags.DEFINE_boolean(name, False, FLAGS["--" + name.replace("_", "-")], flag_values=values)
    try:
        rest = values(["lingregions", *map(_underscored, argv)], known_only=True)[1:]
    except flags.Error as error:
        raise SettingsError(str(error)) from None
    names = [name.replace("_", "-") for name in values]
    for word in rest:
        if word.startswith("-") and key(word) is None:
            name = word.lstrip("-").partition("=")[0]
            raise SettingsError(f"no flag --{name}{_hint(name, names, '--')} Flags: {_enumerate(names, '--')}")
    source, rest = _source(values["config"].value, rest)
    workdir = values["workdir"].value or f"runs/{Path(source.partition(':')[0]).stem}" + (
        f"-{source.partition(':')[2]}" if ":" in source else ""
    )
    return Invocation(
        config=load(source, rest),
        source=source,
        workdir=Path(workdir),
        fresh=bool(values["fresh"].value),
        dry_run=bool(values["dry_run"].value),
        flags=values,
    )


def _source(given: str | None, words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the config that --config names, or else the first word, and the words that are left."""
    if given is not None:
        return given, list(words)
    # `--config.seed 3` is two words, the second no config.
    taken = False
    for place, word in enumerate(words):
        if not word.startswith("-") and not taken:
            return word, [*words[:place], *words[place + 1 :]]
        taken = key(word) is not None and "=" not in word and not word.lstrip("-").startswith("no")
    listed = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "base"))
    raise SettingsError(f"which config? Name a file of your own, or one of {listed}")


def locate(source: str) -> Path:
    """Return the file of a config: a path that exists, or the config of that name which ships with the package.

    Raises:
      SettingsError: there is none; the message names those that there are.
    """
    path = Path(source.partition(":")[0]).expanduser()
    inside = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    shipped = [CONFIGS.joinpath(*inside)]
    if len(path.parts) == 1 and not path.suffix:
        shipped = [CONFIGS / f"{path}.py", CONFIGS / "sweeps" / f"{path}.py"]
    for candidate in (path, *(shipped if not path.is_absolute() else ())):
        if candidate.is_file():
            return Path(candidate)
    raise SettingsError(_missing(path))


def variants(path: Path) -> dict[str, str]:
    """Return {variant: one sentence} of a config file."""
    return dict(_execute(path).get("VARIANTS", {}))


def _underscored(word: str) -> str:
    """Write the name of a flag with underscores, as absl does; keys and values stay as they are."""
    name, equals, value = word.partition("=")
    return word if not name.startswith("--") or "." in name else f"--{name[2:].replace('-', '_')}{equals}{value}"


def key(word: str) -> str | None:
    """Return the dotted key that a word of a command line sets ("--config.a.b=3": "a.b"), None for any other word."""
    match = _OVERRIDE.match(word)
    return match[1] if match else None


def _quoted(word: str, default: tuple[Any, ...]) -> str:
    """Put quotes around what is no Python (`1%,3%`), or no number by the default (`1e-8`), for the parser of tuples.

    Nothing after the sign, as shells write it, is a tuple of nothing.
    """
    name, equals, value = word.partition("=")
    if equals and not value.strip():
        return f"{name}=()"
    try:
        ast.literal_eval(value)
    except (SyntaxError, ValueError):
        number = False
    else:
        number = not default or not all(isinstance(element, str) for element in default)
    return word if number or not re.fullmatch(r"[^'\"()\[\]]+", value) else f"{name}={value!r}"


def load(source: str, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> config_dict.ConfigDict:
    """Return the locked config of `source` ("configs/x.py:variant") with overrides ("--config.a.b=3") applied.

    Args:
      source: the config file and its variant.
      overrides: words of a command line.
      values: {dotted key: value}, set after the overrides.

    Raises:
      SettingsError: for a missing file (naming those beside it), an unknown variant or key (naming what there is), a
        value of the wrong type, a value set on a whole section, and a placeholder that nobody set.
    """
    module, config = _get(source)
    for word in overrides:
        if (path := key(word)) is not None:
            _find(config, path, source)
    tuples = {path: value for path, value in leaves(config) if isinstance(value, tuple)}
    overrides = [_quoted(word, tuples[path]) if (path := key(word)) in tuples else word for word in overrides]
    parser = flags.FlagValues()
    parser.set_gnu_getopt(True)
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=parser, lock_config=False, sys_argv=["lingregions", *overrides]
        )
        rest = parser(["lingregions", *overrides])[1:]
    except (flags.Error, ValueError, TypeError) as error:
        raise SettingsError(_explain(str(error), config, source)) from None
    if rest:
        raise SettingsError(f"what is {rest[0]!r} for? Values are set with --config.KEY=VALUE")
    for path, given in (values or {}).items():
        _find(config, path, source)
        try:
            config_path.set_value(path, config, given)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise SettingsError(
                f"{path} of {source} takes a value of type {_type_name(config, path)}, not {given!r} ({error})"
            ) from None
    for path, default in tuples.items():
        value = config_path.get_value(path, config)
        if len(value) == 1 and isinstance(value[0], str) and "," in value[0]:
            # `--config.languages=ar,zh` reaches us as one word.
            value = tuple(word.strip() for word in value[0].rstrip(", ").split(","))
            config_path.set_value(path, config, value)
        _check_elements(path, default, value, source)
    for path, value in leaves(config):
        if _LANGUAGES.search(path) and not isinstance(value, config_dict.FieldReference):
            config_path.set_value(path, config, _codes(path, value))
    unset = [path for path, value in leaves(config) if isinstance(value, config_dict.FieldReference)]
    if unset:
        help_texts = module.get("HELP", {})
        lines = [f"  --config.{path}=...  {help_texts.get(path, _type_name(config, path))}" for path in unset]
        raise SettingsError("\n".join([f"{source} leaves to you:", *lines]))
    return config.lock()


def _get(source: str) -> tuple[Mapping[str, Any], config_dict.ConfigDict]:
    """Run the config file; return its globals and the fresh, unlocked config of the variant."""
    path, (_, colon, variant) = locate(source), source.partition(":")
    module = _execute(path)
    get_config = module.get("get_config")
    if not callable(get_config):
        raise SettingsError(f"{path} is not a config: it defines no function get_config")
    variants = module.get("VARIANTS")
    listing = "" if not variants else f" Variants: {_describe(variants)}"
    parameters = inspect.signature(get_config).parameters.values()
    if colon and variants is not None and variant not in variants:
        raise SettingsError(
            f'{source.partition(":")[0]} has no variant "{variant}"{_hint(variant, list(variants))}{listing}'
        )
    if colon and not parameters:
        raise SettingsError(f'{source.partition(":")[0]} has no variants, but ":{variant}" asks for one')
    if not colon and any(parameter.default is parameter.empty for parameter in parameters):
        raise SettingsError(f"{source} needs a variant: {source}:VARIANT{listing}")
    config = get_config(variant) if colon else get_config()
    if not isinstance(config, config_dict.ConfigDict):
        raise SettingsError(f"{path}: get_config returned {type(config).__name__}, a ConfigDict is needed")
    return module, config.unlock()


def _execute(path: Path) -> dict[str, Any]:
    """Run a config file and return its globals."""
    with _beside(path.parent):
        return runpy.run_path(str(path))


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let a config import what lies beside it (`from base import base`), and forget it afterwards."""
    before, place = set(sys.modules), str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(place):
                del sys.modules[name]


def _missing(path: Path) -> str:
    """Say what there is in place of a config file that is not there."""
    folder = path.parent
    if len(path.parts) == 1 and not path.suffix and not path.is_dir():
        names = sorted(found.stem for found in CONFIGS.rglob("*.py") if found.stem != "base")
        return f"no config {path}{_hint(path.name, names)} Configs: {', '.join(names)}, or a file of your own"
    if path.is_dir():
        folder, what = path, f"{path} is a folder, a config file is needed"
    elif not folder.is_dir():
        return f"no config {path}: there is no folder {folder}"
    else:
        what = f"no config {path}"
    names = sorted(found.name for found in folder.glob("*.py") if not found.name.startswith("_"))
    if not names:
        return f"{what}; {folder.resolve()} holds no config"
    wanted = path.name if path.suffix else f"{path.name}.py"
    prefix = "" if folder == Path() else f"{folder}/"
    return f"{what}{_hint(wanted, names, prefix)} Configs in {folder.resolve()}: {', '.join(names)}"


def _find(config: config_dict.ConfigDict, path: str, source: str) -> None:
    """Refuse an override of a key that is not there, or of a whole section."""
    try:
        keys = config_path.split(path)
    except ValueError:
        raise SettingsError(f"--config.{path}: this is no key; a key reads like scores.samples") from None
    node: Any = config
    walked: list[str] = []
    for key in keys:
        level = ".".join(walked)
        if not isinstance(node, config_dict.ConfigDict):
            if isinstance(key, str):
                raise SettingsError(f'{source} has no key "{path}": {level} is a value and has no keys below it')
            return  # an element of a tuple or list: config_flags checks the index
        if key not in node:
            prefix = f"{level}." if level else ""
            hint = _hint(str(key), list(node), prefix)
            elsewhere = [found for found, _ in leaves(config) if found.rpartition(".")[2] == str(keys[-1])]
            if hint == "." and elsewhere:
                hint = f'; did you mean "{elsewhere[0]}"?'
            where = f'Keys of "{level}"' if level else "Keys"
            raise SettingsError(f'{source} has no key "{prefix}{key}"{hint} {where}: {", ".join(sorted(node))}')
        walked.append(str(key))
        node = node.get(key)
    if isinstance(node, config_dict.ConfigDict):
        raise SettingsError(f'"{path}" is a section; set its keys one by one: {_enumerate(sorted(node), path + ".")}')


def leaves(config: config_dict.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value); an unset placeholder comes as its FieldReference."""
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, config_dict.FieldReference) and value.get() is not None:
            value = value.get()
        if isinstance(value, config_dict.ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _codes(path: str, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return the languages of a config by their codes, whatever they are called there: the border that they pass."""
    if not all(isinstance(each, str) for each in value):  # a grid: the config of each cell is read by itself
        return value
    try:
        return listed([value], path)[0] if isinstance(value, str) else listed(value, path)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _check_elements(path: str, default: tuple[Any, ...], value: tuple[Any, ...], source: str) -> None:
    """Hold the elements of a tuple to the one type of the default's elements; config_flags does not."""
    types = {type(element) for element in default}
    if len(types) != 1:
        return
    (wanted,) = types
    for element in value:
        if type(element) is not wanted and not (wanted is float and type(element) is int):
            raise SettingsError(
                f"--config.{path}: {element!r} is of type {type(element).__name__}; "
                f"the elements of {path} in {source} are of type {wanted.__name__}, for example {default[0]!r}"
            )


def _explain(message: str, config: config_dict.ConfigDict, source: str) -> str:
    """Add to a message about an override what the key takes."""
    match = re.search(r"--(?:no)?config\.([^\s=:]+)", message)
    if match is None:
        return message
    return f"{message} ({match[1]} in {source} takes a value of type {_type_name(config, match[1])})"


def _type_name(config: config_dict.ConfigDict, path: str) -> str:
    return str(getattr(config_path.get_type(path, config), "__name__", "any"))


def _describe(variants: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({text})" if text else name for name, text in variants.items())


def _enumerate(names: Sequence[str], prefix: str) -> str:
    return ", ".join(prefix + name for name in names)


def _hint(word: str, names: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f'; did you mean "{prefix}{close[0]}"?' if close else "."
