"""Failure: how a process of a run learns that another one has failed, was killed, has stopped or was cut off.

A process that fails says so and ends (`abandon`), and then the others end too, wherever they wait. Over the lines of
the meeting process 0 and each of the others say every fifth of a second that they live, so that whoever is killed, or
stopped, or cut off, is named. In a run of one process everything here does nothing.

Costs some bytes a process and second, over the port of process 0 that JAX uses as well; no device is touched.
"""

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any

import jax
from jax._src import distributed

from lingregions.run import cluster

Lines = dict[int, tuple[str, socket.socket]]  # process -> its host, and the connection with it

_GRACE = 5.0  # seconds that a process has to end by itself after another one failed
_ALIVE, _GOODBYE = b".", b"!"  # what goes over a line after the meeting
_FAILED = "lingregions/failed"
_lost: dict[int, str] = {}  # processes that are gone without a word, and how that is told
_open: list[socket.socket] = []  # every line: it closes with the process, for one that closes tells of a death


def notice(lines: Lines, timeout: float) -> None:
    """Notice from now on who leaves: processes that say that they fail, and those at the end of a line, by its silence.

    Args:
      lines: to the other processes, as the meeting opened them.
      timeout: seconds of silence after which a process counts as stopped, or cut off.
    """
    atexit.register(_leave, lines)  # before what JAX does at the end, where all wait for all
    threading.Thread(target=_watch, name="cluster", daemon=True).start()
    threading.Thread(target=_listen, args=(lines, timeout), name="lines", daemon=True).start()


def abandon(code: int, message: str = "") -> None:
    """End this process at once and let the others know why: they may wait in a collective, and would wait for long.

    Does nothing in a run of one process, or where code is 0. Process 0, without which the others can hear nothing,
    gives them a few seconds to end by themselves.
    """
    if cluster.alone() or not code:
        return
    state: Any = distributed.global_state
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        mine = {"host": socket.gethostname(), "message": message}
        state.client.key_value_set(f"{_FAILED}/{state.process_id}", json.dumps(mine))
        end = time.monotonic() + 2 * _GRACE
        while state.process_id == 0 and time.monotonic() < end:
            if len({*_failed(), *_lost}) == state.num_processes:
                break
            time.sleep(0.1)
    os._exit(code)


def blame() -> str:
    """Return who of the others is gone or has failed, if anybody: what this process then raises is no reason."""
    if cluster.alone():
        return ""
    end = time.monotonic() + 2
    while time.monotonic() < end and not _lost:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if failed := _failed():  # this process is not among them yet
                return min(failed.items())[1]
        time.sleep(0.1)
    return next(iter(_lost.values()), "")


def _failed() -> dict[int, str]:
    """Return the processes that have failed and said so, and how that is told."""
    client: Any = distributed.global_state.client
    found = {}
    for key, text in client.key_value_dir_get(_FAILED):
        number, said = int(key.rpartition("/")[2]), json.loads(text)
        found[number] = f"process {number} ({said['host']}) failed: {said['message']}"
    return found


def _watch() -> None:
    """End this process when another one has failed and this one does not notice, since it waits for it."""
    me = distributed.global_state.process_id
    while True:
        time.sleep(1)
        if distributed.global_state.client is None:
            return
        try:
            failed = _failed()
        except jax.errors.JaxRuntimeError:
            return
        if failed and me not in failed:
            _, message = min(failed.items())
            time.sleep(_GRACE)  # it may be about to end with the same error
            cluster.say(message)
            abandon(1, message)


def _listen(lines: Lines, timeout: float) -> None:
    """End this process, and tell the others, when one at the end of a line is gone, or silent for `timeout` seconds.

    A thread of its own, as the one that looks for failures waits for process 0, which may be what has stopped.
    """
    heard = dict.fromkeys(lines, time.monotonic())
    for _, line in lines.values():
        line.settimeout(0)
        _open.append(line)
    while lines and distributed.global_state.client is not None:
        for number, (host, line) in list(lines.items()):
            said = _exchanged(line)
            if number not in lines:  # this process has come to its end: the others may end too
                continue
            if said and _GOODBYE in said:
                lines.pop(number, None)
            elif said:
                heard[number] = time.monotonic()
            elif said is not None:
                _mourn(number, f"process {number} ({host}) ended without a word: was it killed?")
            elif time.monotonic() - heard[number] > timeout:
                _mourn(number, f"process {number} ({host}) has said nothing for {timeout:.0f} s: stopped, or cut off?")
        time.sleep(0.2)


def _exchanged(line: socket.socket) -> bytes | None:
    """Say that this process lives, and return what the other one has said: nothing (None), or b"" where it is gone."""
    with contextlib.suppress(OSError):  # it does not read, or is gone: what it has said last tells
        line.send(_ALIVE)
    try:
        return line.recv(4096)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _mourn(number: int, message: str) -> None:
    """End this process because another one is gone; returns where that one had failed, and told why."""
    if number:  # else nobody is left to ask, or to tell
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if number in _failed():
                return
    message = f"{message} The same command goes on from what is finished"
    cluster.say(message)
    _lost[number] = message  # only now: a thread that waits to know this ends the process
    if number == 0:
        os._exit(1)
    abandon(1, message)


def _leave(lines: Lines) -> None:
    """Say goodbye: this process has come to its end, and listens no more, as what JAX does next is to wait for all."""
    for _, line in lines.values():
        with contextlib.suppress(OSError):
            line.send(_GOODBYE)
    lines.clear()
