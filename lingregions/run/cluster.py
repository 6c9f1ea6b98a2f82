"""Cluster: the processes of one run wait for each other by name.

JAX ends a process whose partner is missing by an abort that names nobody, and lets the others wait in a collective. So
wherever one may fail or be late alone, the processes say so to each other before the next collective (`exchange`,
`ready`). All must call these in the same order, as with collectives. How they meet is in `meeting.py`, what happens
when one of them leaves in `failure.py`. In a run of one process everything here does nothing.

Costs a few hundred bytes a call, over the port of process 0 that JAX uses as well; no device is touched.
"""

import contextlib
import itertools
import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # the coordination service has no public face; orbax takes it from here too

from lingregions.run.files import RunError, Unavailable, exit_code

WAIT = 600.0  # seconds, where the config says nothing
WORK = 4 * 3600.0  # seconds for work of unknown length: a host that dies is noticed anyway, one that is late is told of
PATIENCE = 30.0  # seconds until a process that waits says for whom
_turns = itertools.count()


def alone() -> bool:
    """Tell whether this is a run of one process."""
    return distributed.global_state.client is None or distributed.global_state.num_processes == 1


def exchange(what: str, value: str = "", timeout: float = WAIT) -> list[tuple[str, str]]:
    """Wait until every process is here; returns (host, value) of each, in order.

    Args:
      what: what the processes come together for, for messages; the same on all.
      value: what this one tells the others.
      timeout: seconds.

    Raises:
      RunError: a process did not come, or came to something else; it is named.
    """
    if alone():
        return [(socket.gethostname(), value)]
    client: Any = distributed.global_state.client
    count = distributed.global_state.num_processes
    folder = f"lingregions/{next(_turns)}"
    mine = {"what": what, "host": socket.gethostname(), "value": value}
    client.key_value_set(f"{folder}/{distributed.global_state.process_id}", json.dumps(mine))
    end, found = time.monotonic() + timeout, []
    for process in range(count):
        content = None
        while content is None:
            left = end - time.monotonic()
            try:
                milliseconds = max(1, int(1000 * min(left, PATIENCE)))
                content = json.loads(client.blocking_key_value_get(f"{folder}/{process}", milliseconds))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                came = dict(client.key_value_dir_get(folder))
                here = {int(key.rpartition("/")[2]): json.loads(text)["host"] for key, text in came.items()}
                if len(here) == count:
                    continue
                if left <= PATIENCE:
                    time.sleep(1)  # one that is stopped is told by its silence, which began no later
                    raise Unavailable(
                        f"{late(here, count, repr(what), timeout)}. Look at what the missing said last; "
                        "machine.wait_seconds says how long to wait"
                    ) from error
                say(f"waiting for {missing(here, count)} at {what!r}")
        if content["what"] != what:
            raise RunError(
                f"process {process} ({content['host']}) is at {content['what']!r}, this one at {what!r}: "
                "they do not run the same program"
            )
        found.append((content["host"], content["value"]))
    return found


@contextlib.contextmanager
def ready(what: str, timeout: float = WAIT) -> Iterator[None]:
    """Do the block on every process, or fail on every process; the block must not hold a collective.

    Raises:
      RunError: the block failed on another process (it is named, with its error), or did not end there in time.
    """
    try:
        yield
    except Exception as error:
        with contextlib.suppress(RunError):  # one that others miss or mistake is the lesser trouble
            exchange(what, f"{exit_code(error)} {str(error) or type(error).__name__}", timeout)
        raise
    if alone():
        return
    said = exchange(what, "", timeout)
    failed = [number for number, (_, text) in enumerate(said) if text]
    if failed:
        host, (code, _, text) = said[failed[0]][0], said[failed[0]][1].partition(" ")
        kind = RunError if int(code) == RunError.code else Unavailable
        raise kind(f"{what} failed on {len(failed)} of {len(said)} processes; process {failed[0]} ({host}): {text}")


def missing(here: Mapping[int, str], count: int) -> str:
    """Name those of `count` processes that are not among {process: host}, such as "processes 1, 3 of 4"."""
    numbers = sorted(set(range(count)) - set(here))
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of {count}"


def late(here: Mapping[int, str], count: int, place: str, timeout: float) -> str:
    """Return in words who did not come to a place within `timeout` seconds, and who is there, on which host."""
    hosts = ", ".join(f"{number} ({host})" for number, host in sorted(here.items()))
    return f"{missing(here, count)} did not come to {place} within {timeout:.0f} s; here are {hosts}"


def say(text: str) -> None:
    """Tell the user of this process at once, who may wait for it, or see it end."""
    print(text, file=sys.stderr, flush=True)
