"""Cluster: the processes of one run meet, wait for each other by name, and learn why one of them left.

JAX ends a process whose partner is missing by an abort that names nobody, and lets the others wait in a collective. So
the processes meet here first (`connect`), and wherever one may fail or be late alone, they say so to each other before
the next collective (`exchange`, `ready`); `abandon` ends all of them when one has failed. All must call these in the
same order, as with collectives. The lines of the meeting stay open: over them process 0 and each of the others say
every second that they live, so that whoever is killed, or stopped, or cut off, is named (`_listen`), wherever the
others wait. In a run of one process everything here does nothing.

Costs a byte a process and second and a few hundred a call, over the port of process 0 that JAX uses as well; no device
is touched.
"""

import atexit
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import distributed  # the coordination service has no public face; orbax takes it from here too

from lingregions.run.files import RunError, Unavailable, exit_code

WAIT = 600.0  # seconds, where the config says nothing
WORK = 4 * 3600.0  # seconds for work of unknown length: a host that dies is noticed anyway, one that is late is told of
_PATIENCE = 30.0  # seconds until a process that waits says for whom
_GRACE = 5.0  # seconds that a process has to end by itself after another one failed
_ALIVE, _GOODBYE = b".", b"!"  # what goes over a line after the meeting
_turns = itertools.count()
_lost: dict[int, str] = {}  # processes that are gone without a word, and how that is told

_open: list[socket.socket] = []  # every line: it closes with the process, for one that closes tells of a death

_Lines = dict[int, tuple[str, socket.socket]]  # process -> its host, and the connection with it


def connect(variables: Mapping[str, str], timeout: float = WAIT) -> None:
    """Meet the other processes of the run: by JAX_* variables, or by what a TPU pod, SLURM or Open MPI says by itself.

    Args:
      variables: the environment; JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID come first.
      timeout: seconds to wait for all of them.

    Raises:
      ValueError: nothing says how many processes there are, which one this is, and where process 0 listens.
      RunError: a process did not come (it is named), or two claim to be the same.
    """
    address, count, place, devices = _place(variables, timeout)
    if count == 1:
        return
    lines = _meet(address, count, place, timeout)
    # SIGTERM is answered by `Run.check`, for all processes together.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address,
        count,
        place,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout),
        heartbeat_timeout_seconds=max(100, int(2 * timeout)),  # JAX names nobody: `_listen` speaks first
        # At a good end the others wait for process 0, which writes the report; a bad end is for `abandon`.
        shutdown_timeout_seconds=max(3600, int(timeout)),
    )
    atexit.register(_leave, lines)  # before what JAX does at the end, where all wait for all
    threading.Thread(target=_watch, name="cluster", daemon=True).start()
    threading.Thread(target=_listen, args=(lines, timeout), name="lines", daemon=True).start()


def _place(variables: Mapping[str, str], timeout: float) -> tuple[str, int, int, Any]:
    """Return where process 0 listens, the number of processes, which one this is, and its devices (None: all)."""
    from jax._src.clusters import ClusterEnv  # the detection that jax.distributed.initialize uses

    def number(name: str) -> int | None:
        text = variables.get(name)
        if text and not text.isdecimal():
            raise ValueError(f"{name} is {text!r}; it must be a whole number")
        return int(text) if text else None

    address, count, place = (
        variables.get("JAX_COORDINATOR_ADDRESS"),
        number("JAX_NUM_PROCESSES"),
        number("JAX_PROCESS_ID"),
    )
    devices: Any = [int(each) for each in variables.get("JAX_LOCAL_DEVICE_IDS", "").split(",") if each] or None
    reason = ""
    if address is None or count is None or place is None:
        try:
            address, count, place, devices = ClusterEnv.auto_detect_unset_distributed_params(
                address, count, place, devices, None, int(timeout)
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = f" ({error})"
    if address is None or count is None or place is None:
        raise ValueError(
            f"machine.distributed is set, but nothing says where the other processes are{reason}; anywhere but on a "
            "TPU pod, under SLURM or Open MPI set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID"
        )
    if not place < count:
        raise ValueError(f"this is process {place} of {count}: they count from 0 to {count - 1}")
    if not address.rpartition(":")[2].isdecimal():
        raise ValueError(f"JAX_COORDINATOR_ADDRESS is {address!r}; it must be host:port")
    return address, count, place, devices


# --- before JAX is started --------------------------------------------------------------------------------------------


def _meet(address: str, count: int, place: int, timeout: float) -> _Lines:
    """Wait until all processes have called this, over plain sockets on the port that JAX uses afterwards.

    Returns the lines to all others in process 0, the one to process 0 in the others.

    Args:
      address: host:port of process 0.
      count: number of processes.
      place: which of them this is.
      timeout: seconds.

    Raises:
      RunError: a process did not come, or the processes do not agree on who they are; all that came raise the same.
    """
    host, _, port = address.rpartition(":")
    if place == 0:
        problem, lines = _gather(int(port), count, timeout)
    else:
        problem, lines = _report(host, int(port), count, place, timeout)
    if problem:
        raise Unavailable(problem)
    return lines


def _gather(port: int, count: int, timeout: float) -> tuple[str, _Lines]:
    """Hear all other processes and tell them how it ended; returns the problem, or nothing and the lines."""
    end, told = time.monotonic() + timeout, time.monotonic() + _PATIENCE
    names, lines, problem = {0: socket.gethostname()}, dict[int, socket.socket](), ""
    try:
        listener = socket.create_server(("", port), backlog=count)
    except OSError as error:
        return f"process 0 cannot listen on port {port} ({error.strerror}); is an earlier run still there?", {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        while not problem:
            for who in [who for who, line in lines.items() if _hung_up(line)]:  # it will come again
                lines.pop(who).close()
                del names[who]
            if len(names) == count:
                break
            left = end - time.monotonic()
            missing = sorted(set(range(count)) - set(names))
            if left <= 0:
                problem = (
                    f"{_processes(missing)} of {count} did not come to the start within {timeout:.0f} s; here are "
                    f"{_names(names)}. Was the same command started on every host (worker N of a TPU pod is process "
                    f"N), and can they reach port {port} of {names[0]}?"
                )
                break
            if time.monotonic() > told:
                _say(f"waiting for {_processes(missing)} of {count} at the start")
                told += _PATIENCE
            listener.settimeout(max(0.01, min(left, told - time.monotonic())))
            try:
                line = stack.enter_context(listener.accept()[0])
            except OSError:
                continue
            try:
                line.settimeout(5)  # a stranger on this port sends nothing
                said = _receive(line)
                who, where, number = int(said["process"]), str(said["host"]), int(said["processes"])
            except (OSError, ValueError, KeyError):
                line.close()
                continue
            if number != count:
                problem = f"process {who} ({where}) was told of {number} processes, process 0 of {count}"
            elif who in names and not (who in lines and _hung_up(lines[who])):
                problem = f"two processes say that they are process {who}: on {names[who]} and on {where}"
            if not problem and who in lines:
                lines.pop(who).close()  # it hung up and is here again
            names[who], lines[-1 if problem else who] = where, line
        for line in lines.values():
            with contextlib.suppress(OSError):
                _send(line, {"problem": problem, "host": names[0]})
        if problem:
            return problem, {}
        listener.close()
        stack.pop_all()  # the lines stay
    return "", {number: (names[number], line) for number, line in lines.items()}


def _hung_up(line: socket.socket) -> bool:
    """Tell whether the other end is gone: a process that was started again while the others were awaited."""
    line.settimeout(0)
    try:
        return line.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        line.settimeout(5)


def _report(host: str, port: int, count: int, place: int, timeout: float) -> tuple[str, _Lines]:
    """Tell process 0 that this one is here, and hear how the meeting ended: the problem, or nothing and the line."""
    end = time.monotonic() + timeout
    reason = "no answer"
    while time.monotonic() < end:
        try:
            with contextlib.ExitStack() as stack:
                left = max(0.1, end - time.monotonic())
                line = stack.enter_context(socket.create_connection((host, port), timeout=left))
                _send(line, {"process": place, "host": socket.gethostname(), "processes": count})
                line.settimeout(max(0.1, end - time.monotonic()) + 5)  # process 0 began later, and knows more
                said = _receive(line)
                if said["problem"]:
                    return str(said["problem"]), {}
                stack.pop_all()  # the line stays
                return "", {0: (str(said["host"]), line)}
        except (OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            time.sleep(0.2)
    return f"process 0 did not come to the start within {timeout:.0f} s: {host}:{port} says: {reason}", {}


def _send(line: socket.socket, content: dict[str, Any]) -> None:
    line.sendall(json.dumps(content).encode() + b"\n")


def _receive(line: socket.socket) -> dict[str, Any]:
    """Return the JSON object of one line.

    Raises:
      ValueError: it is something else.
    """
    with line.makefile("rb") as file:
        content = json.loads(file.readline(4096))
    if not isinstance(content, dict):
        raise ValueError("not one of ours")
    return content


# --- with JAX running -------------------------------------------------------------------------------------------------


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
    client, count = _client(), distributed.global_state.num_processes
    folder = f"lingregions/{next(_turns)}"
    mine = {"what": what, "host": socket.gethostname(), "value": value}
    client.key_value_set(f"{folder}/{distributed.global_state.process_id}", json.dumps(mine))
    end, found = time.monotonic() + timeout, []
    for process in range(count):
        content = None
        while content is None:
            left = end - time.monotonic()
            try:
                milliseconds = max(1, int(1000 * min(left, _PATIENCE)))
                content = json.loads(client.blocking_key_value_get(f"{folder}/{process}", milliseconds))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                came = {int(key.rpartition("/")[2]): json.loads(text) for key, text in client.key_value_dir_get(folder)}
                missing = sorted(set(range(count)) - set(came))
                if not missing:
                    continue
                if left <= _PATIENCE:
                    raise Unavailable(
                        f"{_processes(missing)} of {count} did not come to {what!r} within {timeout:.0f} s; here are "
                        f"{_names({number: each['host'] for number, each in came.items()})}. Look at what the missing "
                        "said last; machine.wait_seconds says how long to wait"
                    ) from error
                _say(f"waiting for {_processes(missing)} of {count} at {what!r}")
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


def abandon(code: int, message: str = "") -> None:
    """End this process at once and let the others know why: they may wait in a collective, and would wait for long.

    Does nothing in a run of one process, or where code is 0. Process 0, without which the others can hear nothing,
    gives them a few seconds to end by themselves.
    """
    if alone() or not code:
        return
    state, client = distributed.global_state, _client()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        mine = {"host": socket.gethostname(), "message": message}
        client.key_value_set(f"{_FAILED}/{state.process_id}", json.dumps(mine))
        end = time.monotonic() + 2 * _GRACE
        while state.process_id == 0 and time.monotonic() < end:
            if len({*_failed(), *_lost}) == state.num_processes:
                break
            time.sleep(0.1)
    os._exit(code)


_FAILED = "lingregions/failed"


def _failed() -> dict[int, str]:
    """Return the processes that have failed and said so, and how that is told."""
    found = {}
    for key, text in _client().key_value_dir_get(_FAILED):
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
            _say(message)
            abandon(1, message)


def _listen(lines: _Lines, timeout: float) -> None:
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
    _lost[number] = message = f"{message} The same command goes on from what is finished"
    _say(message)
    if number == 0:
        os._exit(1)
    abandon(1, message)


def blame() -> str:
    """Return who of the others is gone or has failed, if anybody: what this process then raises is no reason."""
    if alone():
        return ""
    end = time.monotonic() + 2
    while time.monotonic() < end and not _lost:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if failed := _failed():  # this process is not among them yet
                return min(failed.items())[1]
        time.sleep(0.1)
    return next(iter(_lost.values()), "")


def _leave(lines: _Lines) -> None:
    """Say goodbye: this process has come to its end, and listens no more, as what JAX does next is to wait for all."""
    for _, line in lines.values():
        with contextlib.suppress(OSError):
            line.send(_GOODBYE)
    lines.clear()


def _client() -> Any:
    return distributed.global_state.client


def _processes(numbers: list[int]) -> str:
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _names(hosts: Mapping[int, str]) -> str:
    return ", ".join(f"{number} ({host})" for number, host in sorted(hosts.items()))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
