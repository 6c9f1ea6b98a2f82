"""How processes meet before JAX starts: by sockets, with the missing and the mistaken ones named."""

import socket
import threading
import time

import jax
import pytest

from lingregions.run import Run, RunError, cluster, failure, meeting


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        number: int = probe.getsockname()[1]
    return number


def meet(*claims: tuple[int, int], timeout: float = 20.0, address: str = "") -> list[str]:
    """What `_meet` tells each of the processes that claim (number of processes, place); "" for all well."""
    address = address or f"localhost:{port()}"
    said = [""] * len(claims)

    def come(index: int) -> None:
        try:
            for _, line in meeting._meet(address, *claims[index], timeout).values():
                line.close()
        except RunError as error:
            said[index] = str(error)

    threads = [threading.Thread(target=come, args=(index,)) for index in range(len(claims))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_all_come_in_any_order():
    assert meet((4, 3), (4, 1), (4, 0), (4, 2)) == [""] * 4


def test_the_missing_are_named_to_all_that_came():
    for said in meet((4, 2), (4, 0), timeout=0.5):
        assert f"processes 1, 3 of 4 did not come to the start within 0 s; here are 0 ({socket.gethostname()})" in said


def test_without_process_0_the_others_say_so():
    address = f"localhost:{port()}"
    (said,) = meet((2, 1), timeout=0.3, address=address)
    assert said.startswith(f"process 0 did not come to the start within 0 s: {address} says: ")


def test_two_of_one_number_are_refused():
    for said in meet((3, 0), (3, 1), (3, 1)):
        host = socket.gethostname()
        assert f"two processes say that they are process 1: on {host} and on {host}" in said


def test_another_number_of_processes_is_refused():
    for said in meet((2, 0), (3, 1)):
        assert f"process 1 ({socket.gethostname()}) was told of 3 processes, process 0 of 2" in said


def test_strangers_and_processes_that_start_again_do_no_harm():
    number = port()
    said: list[list[str]] = []
    first = threading.Thread(target=lambda: said.append(meet((2, 0), address=f"localhost:{number}")))
    first.start()
    for line in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"process": 1}\n', b""):
        _call(number, line)
    assert meet((2, 1), address=f"localhost:{number}") == [""]
    first.join()
    assert said == [[""]]
    # Process 1 of 3 comes, dies and comes again while process 2 is awaited.
    number = port()
    first = threading.Thread(target=lambda: said.append(meet((3, 0), address=f"localhost:{number}")))
    first.start()
    _call(number, b'{"process": 1, "host": "far", "processes": 3}\n')
    assert meet((3, 1), (3, 2), address=f"localhost:{number}") == ["", ""]
    first.join()
    assert said[1] == [""]


def _call(number: int, text: bytes) -> None:
    """Say something to the port and hang up, as soon as somebody listens."""
    while True:
        try:
            with socket.create_connection(("localhost", number), timeout=5) as line:
                line.sendall(text)
                return
        except ConnectionRefusedError:
            time.sleep(0.01)  # poll for the state, not for a time


def test_a_taken_port_is_said():
    with socket.create_server(("", 0)) as taken:
        (said,) = meet((2, 0), address=f"localhost:{taken.getsockname()[1]}")
    assert "cannot listen on port" in said
    assert "is an earlier run still there?" in said


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "nothing says where the other processes are"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; it must be a whole number"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "this is process 2 of 2: they count from 0 to 1",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            "it must be host:port",
        ),
    ],
)
def test_mistaken_variables_are_told(variables, message):
    with pytest.raises(ValueError, match=message):
        meeting.connect(variables, 1)


def test_slurm_says_it_all_by_itself(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "4096",
        "SLURM_STEP_NODELIST": "node[001,003-004]",
        "SLURM_NTASKS": "3",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    assert meeting._place({}, 1) == ("node001:61440", 3, 2, [0])
    # What the user says comes first.
    assert meeting._place({"JAX_COORDINATOR_ADDRESS": "here:7"}, 1)[0] == "here:7"


def test_who_is_gone_or_silent_is_mourned_and_who_said_goodbye_is_not(monkeypatch):
    mourned = []
    monkeypatch.setattr(failure, "_mourn", lambda number, message: mourned.append((number, message)))
    monkeypatch.setattr(failure.distributed.global_state, "client", object())
    pairs = [socket.socketpair() for _ in range(4)]
    living, gone, leaving, _ = (theirs for _, theirs in pairs)
    lines = {number: ("far", ours) for number, (ours, _) in enumerate(pairs)}
    listener = threading.Thread(target=failure._listen, args=(lines, 1.0))
    gone.close()
    leaving.send(b".!")
    leaving.close()
    listener.start()
    end = time.monotonic() + 20
    while len({number for number, _ in mourned}) < 2 and time.monotonic() < end:
        living.send(b".")
        time.sleep(0.05)
    assert set(mourned) == {
        (1, "process 1 (far) ended without a word: was it killed?"),
        (3, "process 3 (far) has said nothing for 1 s: stopped, or cut off?"),
    }
    assert 2 not in lines
    del lines[1], lines[3]
    failure._leave(lines)
    mourned.clear()
    living.close()  # as the others do, once this process is at its end too
    listener.join(20)
    assert not listener.is_alive()
    assert mourned == []
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_a_single_process_needs_nobody():
    meeting.connect({"JAX_COORDINATOR_ADDRESS": "nowhere:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, 1)
    assert cluster.alone()
    assert cluster.exchange("anything", "value") == [(socket.gethostname(), "value")]
    with pytest.raises(KeyError), cluster.ready("anything"):
        raise KeyError
    failure.abandon(3)  # and is still here


def test_hosts_that_a_tpu_runtime_joined_are_told_to_meet(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(RunError, match="one of 4 processes.*machine.distributed=True"):
        Run.open(tmp_path / "run", {"seed": 0})
    assert not (tmp_path / "run").exists()
