"""The command line: `lingregions VERB ...`. Reads flags, locks the config, opens the work directory, calls the verb.

    lingregions run core_removal:smollm2 --workdir=runs/core_removal
    lingregions sweep definitions_seeds:smollm2 --workdir=runs/definitions_seeds

An error is told in one sentence. Exit codes: 2 where the user must change something; 1 where the disk, the network,
memory or another process was in the way, and the same command goes on when it no longer is; 128 + its number after a
signal. --debug prints the traceback, which the work directory keeps in metrics.jsonl in any case. With --dry-run `run`
and `sweep` print what they would do and leave the work directory as it is; for memory and time `run` asks the devices
(see `forecast`), and may keep in the cache folder what a random model of that shape took.
"""

import difflib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lingregions import VERSION
from lingregions.display import inert
from lingregions.settings import SettingsError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Nothing heavy here: `lingregions --help` answers at once; each verb imports what it needs.
_USAGE = "usage: lingregions VERB ...\n\n"


def _run(words: Sequence[str]) -> int:
    """Run the experiment of a config in a work directory; the same command again resumes, or says that it is done."""
    from lingregions import guide, settings

    if _help(words):
        print(guide.run())
        return 0
    asked = settings.parse(words)
    config = asked.config
    if "experiment" not in config:
        raise settings.SettingsError(f"{asked.source} names no experiment; a sweep is run with: lingregions sweep")
    # From here on JAX is imported: what a wrong word costs ends above.
    from lingregions import door, forecast, micro
    from lingregions.experiments import find, perform
    from lingregions.run import Run, programs

    find(config.experiment)
    if asked.dry_run:
        return _plan(config, asked.workdir)
    if not Run.examine(asked.workdir, config) or asked.fresh:
        door.check(config, asked.workdir, fetch=True)
    if config.machine.distributed:
        _connect(os.environ, config.machine.get("wait_seconds"))
    programs.keep(config.machine.get("cache", ""))
    for name, size in micro.choose(config).items():
        print(f"machine.{name}={size}: the most that fits")
    with Run.open(asked.workdir, config, asked.fresh) as opened:
        performed = perform(config, opened)
        print("done" if performed else "done already", opened.path("report.html"), sep=": ")
    if performed:
        forecast.record(config, asked.workdir)
    return 0


def _plan(config: "ConfigDict", workdir: Path) -> int:
    """Check the config, and print its steps, what they take on this machine, and the config; nothing is written."""
    from lingregions import door, forecast
    from lingregions.run import Run

    Run.examine(workdir, config)
    steps, problems = door.problems(config, workdir)
    if steps:
        print(forecast.render(config, steps, workdir))
    if problems:  # what the run would be refused for here; on another machine it may go
        raise door.refusal(problems)
    return 0


def _sweep(words: Sequence[str]) -> int:
    """Run every cell of a grid over the fields of a config; the same command again goes on where it stopped."""
    from lingregions import guide

    if _help(words):
        print(guide.sweep())
        return 0
    from lingregions import sweep as sweeps

    return sweeps.main(words)


def _connect(variables: Mapping[str, str], wait: float | None = None) -> None:
    """Meet the other processes of the run; see `run.meeting.connect`."""
    from lingregions.run import cluster, meeting

    meeting.connect(variables, cluster.WAIT if wait is None else wait)


def _data(words: Sequence[str]) -> int:
    """Build token files, check a corpus, show its first samples, or write it as a TFDS data set."""
    from lingregions import verbs

    verbs.data().parse_args(words)  # a wrong word ends here, before JAX is imported
    from lingregions.corpus import command

    return command.main(words)


def _regions(words: Sequence[str]) -> int:
    """Show, compare, combine, verify, export, import or publish region files."""
    from lingregions import verbs

    verbs.regions().parse_args(words)
    from lingregions.regions import command

    return command.main(words)


def _models(words: Sequence[str]) -> int:
    """List families of models, show one's parameters, compare it with transformers, or write it as a folder."""
    from lingregions import verbs

    verbs.models().parse_args(words)
    from lingregions import models_command

    return models_command.main(words)


def _fit(words: Sequence[str]) -> int:
    """Say whether a job fits on a TPU slice and how long it takes there, by compiling it with no TPU."""
    from lingregions import verbs

    verbs.plan().parse_args(words)
    from lingregions.plan import command

    return command.main(words)


def _export(words: Sequence[str]) -> int:
    """Write a trained checkpoint as a Hugging Face folder, its frozen region proved equal to the base to the bit."""
    from lingregions import verbs

    asked = verbs.export().parse_args(words)
    from lingregions.experiments import find
    from lingregions.run import Run, files

    config = Run.stored(asked.workdir)
    write = find(config.get("experiment", "")).export
    if write is None:
        raise ValueError(f"{asked.workdir} holds a run of {config.experiment}: nothing was trained there")
    for left in files.sweep_beside(asked.out.expanduser()):
        print(f"{left} was left half-written by a process that is no more, and is removed", file=sys.stderr)
    with Run.open(asked.workdir, config) as run:
        write(config, run, asked.training, asked.out, asked.dtype)
    print(f"written: {asked.out}")
    return 0


def _report(words: Sequence[str]) -> int:
    """Write the report of a work directory again, or that of several with their models side by side."""
    from lingregions import verbs

    asked = verbs.report().parse_args(words)
    if (len(asked.workdirs) > 1) != (asked.out is not None):
        raise ValueError("several work directories are reported into one folder: name it with --out, and for one none")
    if asked.out is not None:
        from lingregions.experiments import comparison

        written = comparison.write(asked.workdirs, asked.out, asked.pictures)
    else:
        from lingregions import report

        written = report.write(asked.workdirs[0], asked.pictures)
    print(f"written: {written}")
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "sweep": _sweep,
    "data": _data,
    "regions": _regions,
    "models": _models,
    "plan": _fit,
    "export": _export,
    "report": _report,
}


def _help(words: Sequence[str]) -> bool:
    return any(word in ("-h", "--help", "-help") for word in words) or list(words) == ["help"]


def main(argv: Sequence[str] | None = None) -> int:
    """Call the verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s")
    listing = "\n".join(f"  {name:<10}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items())
    if not words or words[0] in ("-h", "--help", "help"):
        print(f"{_USAGE}{listing}\n\nlingregions VERB --help shows examples; --version prints the version.")
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        print(f"lingregions {VERSION}")
        return 0
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"lingregions: there is no verb {words[0]!r}{hint}\n\n{_USAGE}{listing}", file=sys.stderr)
        return 2
    debug = "--debug" in words
    try:
        return VERBS[words[0]]([word for word in words[1:] if word != "--debug"])
    except SettingsError as error:
        print(f"lingregions {words[0]}: {inert(str(error))}", file=sys.stderr)
        return 2
    except BaseException as error:
        if isinstance(error, SystemExit) and "lingregions.run" not in sys.modules:
            raise  # a parser has spoken: nothing was begun, and JAX need not be imported to say so
        return _fail(words[0], error, debug)


def _fail(verb: str, error: BaseException, debug: bool) -> int:
    """Tell an error and let the other processes know; returns the exit code."""
    from lingregions.run import Interrupted, RunError, failure

    if isinstance(error, Interrupted):
        print(error, file=sys.stderr)
        return int(error.code or 1)
    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        code, said = 130, "stopped by SIGINT"
    elif isinstance(error, Exception):
        code, said = _explain(error)
        if code == 1 and not isinstance(error, RunError):  # a collective breaks where another process is gone
            said = failure.blame() or said
    else:
        raise error
    print(f"lingregions {verb}: {inert(said)}", file=sys.stderr)
    failure.abandon(code, said)  # the others must hear of a defect too
    return code


def _explain(error: Exception) -> tuple[int, str]:
    """Return the exit code of an error, and what is said of it."""
    from lingregions.run import RunError, environment, files

    code, text = files.exit_code(error), environment.masked(str(error))
    if isinstance(error, RunError) or (code == 2 and text):
        return code, text
    if why := files.reason(error):
        return code, f"{text.splitlines()[0]}: {why}; the same command goes on when that is mended"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        line = (text.splitlines() or ["no more can be had"])[0]
        return (
            code,
            f"memory is exhausted ({line}); take smaller batches or more devices (`lingregions plan`)",
        )
    if isinstance(error, OSError):
        return code, text or type(error).__name__
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" in {Path(last[0].filename).name}, line {last[0].lineno}" if last else ""
    line = (text.splitlines() or [""])[0]
    return code, (
        f"{type(error).__name__}{where}: {line}; lingregions did not expect this: a damaged file or a defect "
        "(--debug prints the traceback)"
    )


if __name__ == "__main__":
    sys.exit(main())
