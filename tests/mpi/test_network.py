"""Nothing of a run on one machine listens beyond its loopback."""

import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lima2cli.job import loopback
from lima2cli.job.loopback import DEVICE, OPEN_MPI, VARIABLES, Confined, is_alone, local_variables
from lima2cli.plan.ir import Placement
from lima2cli.runs.channel import LAUNCHED
from lima2cli.runs.processes import is_stopped, processes_with
from tests.compiling import plan_of
from tests.running import TRANSPORTS, Live, needs_mpi

TEXT = """
lima2: 1
name: k
detector: {remu: {image: {width: 32, height: 32}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 600, rate: 200 Hz}
receivers: 2
nodes: {w: {input: data, mpi: {function: "u.py:f"}}, save: {input: w, io_hdf5: {}}}
"""


def reachable(pids: list[int]) -> Iterator[str]:
    """Sockets of processes that other machines can reach: TCP that listens, and UDP that is bound."""
    for pid in pids:
        for one in psutil.Process(pid).net_connections("inet"):
            waits = one.status == psutil.CONN_LISTEN or (one.type == socket.SOCK_DGRAM and not one.raddr)
            if waits and one.laddr and not ipaddress.ip_address(one.laddr.ip).is_loopback:
                yield f"{psutil.Process(pid).name()} at {one.laddr.ip}:{one.laddr.port}"


def job_of(live: Live) -> list[int]:
    """All processes of a run."""
    own = psutil.Process(live.process.pid)
    names = {child.environ().get(LAUNCHED, "") for child in own.children(recursive=True)} - {""}
    return [own.pid, *(pid for name in names for pid in processes_with(LAUNCHED, name))]


@pytest.mark.launch
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_listens_beyond_the_loopback(tmp_path: Path, transport: str) -> None:
    (tmp_path / "u.py").write_text("def f(frames, numbers): return frames\n")
    live = Live(TEXT, tmp_path, transport)
    live.wait_for_frames()
    pids = job_of(live)
    seen = [*reachable(pids)]
    ran = live.end()
    assert len(pids) == (1 if transport == "inline" else 8), pids  # launcher, mpiexec, proxy, five ranks
    assert seen == [], "\n".join(seen)
    assert (ran.code, ran.summary["state"]) == (0, "complete")


@pytest.mark.launch
@pytest.mark.mpi
@needs_mpi
def test_nor_does_another_library_below_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIR_CVAR_CH4_NETMOD", "ofi")  # in MPICHs that have it
    test_nothing_listens_beyond_the_loopback(tmp_path, "mpi")


LISTENS = """
import socket, time
waits = socket.create_server(("", 0))
print(waits.getsockname()[1], flush=True)
while True:
    waits.accept()[0].sendall(b"hello")
"""


def test_a_socket_of_another_process_is_held_to_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens sees nothing of it, being asleep meanwhile, and hears those who call from here."""
    asleep, unbind = [], loopback._unbind

    def unbind_and_note(taken: socket.socket) -> None:
        asleep.append(is_stopped(other.pid))
        unbind(taken)

    monkeypatch.setattr(loopback, "_unbind", unbind_and_note)
    with subprocess.Popen([sys.executable, "-c", LISTENS], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert [*reachable([other.pid])] == [f"{psutil.Process(other.pid).name()} at 0.0.0.0:{port}"]
        confined = Confined(other.pid)
        for _ in range(1000):
            if confined._held:
                break
            time.sleep(0.01)
        confined.settle()
        seen, state = [*reachable([other.pid])], other.poll()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as call:
            heard = call.recv(5)
        other.kill()
    if seen and os.uname().release < "5.7":
        pytest.skip("not on this system")
    assert (seen, state, heard, asleep) == ([], None, b"hello", [True])


def test_what_cannot_be_held_stays_as_it_is() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as other:
        other.wait()
        confined = Confined(other.pid)
        confined.settle()
    assert (confined._held, confined._over) == ([], True)


def test_runs_on_several_machines_listen_as_before() -> None:
    plan = plan_of(TEXT.replace('w: {input: data, mpi: {function: "u.py:f"}}, save: {input: w', "save: {input: data"))
    assert is_alone(plan)
    assert is_alone(replace(plan, placements=(Placement(host="localhost"),) * 2))
    assert not is_alone(replace(plan, placements=(Placement(), Placement(host="node17"))))


def test_the_users_environment_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *OPEN_MPI):
        monkeypatch.delenv(name, raising=False)
    assert local_variables() == dict.fromkeys(VARIABLES, DEVICE) | OPEN_MPI
    for name in ("UCX_NET_DEVICES", "OMPI_MCA_btl"):
        monkeypatch.setenv(name, "mine")
        assert name not in local_variables()


def test_without_a_loopback_nothing_is_asked_for() -> None:
    """In a network namespace that nobody has set up a run works as it did."""
    code = "from lima2cli.job.loopback import DEVICE, local_variables; print(DEVICE in local_variables().values())"
    done = subprocess.run(["unshare", "-rn", sys.executable, "-c", code], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no namespaces here: {done.stderr}")
    assert done.stdout == "False\n"
