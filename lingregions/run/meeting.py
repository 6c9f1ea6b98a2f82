"""Meeting: the processes of one run find each other before JAX is started, and the missing are named.

They meet over plain sockets, on the port of process 0 that JAX uses afterwards. The lines stay open: over them
`failure.py` learns who leaves. In a run of one process `connect` does nothing.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

import jax

from lingregions.run import cluster, failure
from lingregions.run.failure import Lines
from lingregions.run.files import Unavailable


def connect(variables: Mapping[str, str], timeout: float = cluster.WAIT) -> None:
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
        heartbeat_timeout_seconds=max(100, int(2 * timeout)),  # JAX names nobody: `failure` speaks first
        # At a good end the others wait for process 0, which writes the report; a bad end is for `failure.abandon`.
        shutdown_timeout_seconds=max(3600, int(timeout)),
    )
    failure.notice(lines, timeout)


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


def _meet(address: str, count: int, place: int, timeout: float) -> Lines:
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


def _gather(port: int, count: int, timeout: float) -> tuple[str, Lines]:
    """Hear all other processes and tell them how it ended; returns the problem, or nothing and the lines."""
    end, told = time.monotonic() + timeout, time.monotonic() + cluster.PATIENCE
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
            if left <= 0:
                problem = (
                    f"{cluster.late(names, count, 'the start', timeout)}. Was the same command started on every host "
                    f"(worker N of a TPU pod is process N), and can they reach port {port} of {names[0]}?"
                )
                break
            if time.monotonic() > told:
                cluster.say(f"waiting for {cluster.missing(names, count)} at the start")
                told += cluster.PATIENCE
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


def _report(host: str, port: int, count: int, place: int, timeout: float) -> tuple[str, Lines]:
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
