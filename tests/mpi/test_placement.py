"""Placement of receivers: what is told of it, the command that starts ranks, CPUs and memory of processes."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lima2cli.cli.plan_text import show_plan
from lima2cli.doctor import Bandwidths, Check
from lima2cli.doctor import machine as doctor_pipeline
from lima2cli.errors import EnvironmentUnfit
from lima2cli.job import resources as environment
from lima2cli.job import resources as placement
from lima2cli.job.launch import command_line
from lima2cli.plan.ir import Placement, Plan
from tests.compiling import compiled, figures, plan_of
from tests.running import lima2, mpiexec, needs_mpi, program, run

PIPELINE = """
lima2: 1
detector: {{remu: {{image: {{width: 8, height: 6}}, datasets: {{F: {{dtype: uint16}}}}}}}}
acquisition: {{frames: 12}}
receivers:
  a: {{memspaces: {{host: {{host: {{}}}}}}{a}}}
  b: {{memspaces: {{host: {{host: {{}}}}}}{b}}}
  c: {{memspaces: {{host: {{host: {{}}}}}}}}
nodes: {{{nodes}}}
"""

SAVE = "save: {input: F, io_hdf5: {}}"


def text(a: str = "", b: str = "", nodes: str = SAVE) -> str:
    return PIPELINE.format(a=a and f", {a}", b=b and f", {b}", nodes=nodes)


def plan(a: str = "", b: str = "", nodes: str = SAVE) -> Plan:
    return plan_of(text(a, b, nodes))


def told(a: str, b: str = "") -> list[tuple[str, str, tuple[str | int, ...]]]:
    return [(item.severity, item.rule, item.at) for item in compiled(text(a, b))[1]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host `here` with eight CPUs in two NUMA nodes."""
    monkeypatch.setattr(socket, "gethostname", lambda: "here.example.org")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(placement, "NUMA_NODES", tmp_path)
    for node, cpus in enumerate(("0-2,6\n", "3-5,7\n", "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cpus)


@pytest.mark.parametrize(
    ("said", "rule", "at"),
    [
        ("cpus: []", "out-of-range", ("cpus",)),
        ("cpus: 1", "wrong-type", ("cpus",)),
        ("cpus: [0, -1]", "out-of-range", ("cpus", 1)),
        ("cpus: [0, 1, 0]", "repeated-cpu", ("cpus", 2)),
        ("numa: -1", "out-of-range", ("numa",)),
        ('host: "a,b"', "bad-text", ("host",)),
        ('host: "a:2"', "bad-text", ("host",)),
        ('host: "-f"', "bad-text", ("host",)),
    ],
)
def test_each_mistake_is_told_once_at_its_place(said: str, rule: str, at: tuple[str | int, ...]) -> None:
    assert told(said) == [("error", rule, ("receivers", "a", *at))]


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        ("cpus: [0, 1]", "cpus: [1, 2]", True),
        ("cpus: [0, 1]", "cpus: [1], host: localhost", True),
        ("cpus: [0], host: x", "cpus: [0], host: x", True),
        ("cpus: [0], host: x", "cpus: [0], host: y", False),
        ("cpus: [0], host: x", "cpus: [0]", False),
        ("cpus: [0, 1]", "cpus: [2, 3]", False),
        ("cpus: [0, 1]", "", False),
    ],
)
def test_cpus_that_receivers_share(a: str, b: str, shared: bool) -> None:
    assert told(a, b) == [("warning", "shared-cpus", ("receivers", "b", "cpus"))] * shared


def test_the_plan_shows_places() -> None:
    made = plan("cpus: [3, 1], numa: 0", "host: node17")
    assert "receiver  a: F, CPUs 3, 1, NUMA node 0\n" in show_plan(made)
    assert "receiver  b: F, on node17\n" in show_plan(made)
    a, b, c = figures(made)["ranks"][2:]
    assert a == {"rank": 2, "role": "receiver", "receiver": "a", "threads": 1, "cpus": [3, 1], "numa": 0}
    assert b == {"rank": 3, "role": "receiver", "receiver": "b", "threads": 1, "host": "node17"}
    assert c == {"rank": 4, "role": "receiver", "receiver": "c", "threads": 1}


def options(made: Plan) -> list[str]:
    """Return the options of the command before the first program."""
    command = command_line("mpiexec", made, Path(), ["job", "digest"])
    return command[1 : command.index("-n")]


@pytest.mark.usefixtures("machine")
def test_the_command_has_the_hosts_of_all_ranks() -> None:
    away = plan("host: node17", "host: localhost")
    assert options(away) == ["-hosts", "here.example.org,node17", "-rankmap", "0,0,1,0,0"]
    assert options(plan("host: x", "host: x")) == ["-hosts", "here.example.org,x", "-rankmap", "0,0,1,1,0"]
    assert options(plan("host: here")) == ["-hosts", "here.example.org", "-rankmap", "0,0,0,0,0"]
    workers = plan("host: x", nodes=f"{SAVE}, w: {{input: F, mpi: {{command: [prog], ranks: 2}}}}")
    assert options(workers) == ["-hosts", "here.example.org,x", "-rankmap", "0,0,1,0,0,0,0"]


def test_the_command_without_hosts_is_as_ever() -> None:
    assert options(plan("cpus: [0]", "numa: 0")) == []


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("cpus", "numa", "expected"),
    [
        (None, None, None),
        ((1, 3), None, {1, 3}),
        (None, 1, {3, 4, 5, 7}),
        ((2, 3, 6), 0, {2, 6}),
        ((0, 1), 1, "NUMA node 1 has CPUs 3-5, 7, not CPUs 0-1"),
        ((0, 9), None, "CPU 9 cannot be used here, only CPUs 0-7"),
        (None, 2, "NUMA node 2 has CPUs (none), not CPUs 0-7"),
        (None, 5, "there is no NUMA node 5 here"),
    ],
)
def test_cpus_of_a_receiver(cpus: tuple[int, ...] | None, numa: int | None, expected: set[int] | str | None) -> None:
    wanted = Placement(cpus=cpus, numa=numa)
    if isinstance(expected, str):
        with pytest.raises(EnvironmentUnfit) as caught:
            placement.cpus_of(wanted)
        assert str(caught.value) == expected
    else:
        assert placement.cpus_of(wanted) == expected


def checked(made: Plan, *, by_mpi: bool = True) -> Check | None:
    checks = doctor_pipeline.pipeline_checks(made, Path(), Bandwidths(5e9, 5e9), shared=by_mpi)
    return next((check for check in checks if check.name == "placement"), None)


@pytest.mark.usefixtures("machine")
def test_what_the_doctor_finds() -> None:
    assert checked(plan()) is None
    statuses = {
        "cpus: [0, 1], numa: 0": "ok",
        "cpus: [0, 8]": "problem",
        "numa: 7": "problem",
        "cpus: [99], host: here": "problem",
        "cpus: [99], host: node17": "warning",
    }
    for said, status in statuses.items():
        check = checked(plan(said))
        assert check is not None
        assert check.status == status, said
    inline = checked(plan("cpus: [99]"), by_mpi=False)
    assert inline is not None
    assert inline.status == "warning"


@pytest.mark.usefixtures("machine")
def test_memory_of_receivers_elsewhere_is_not_needed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda: 0)
    with pytest.raises(EnvironmentUnfit, match=r"memspaces: a\.host .* b\.host .* c\.host [^;]*; chunks[^;]*; 5 ranks"):
        environment.check_memory(plan(), shared=False)
    with pytest.raises(EnvironmentUnfit, match=r"memspaces: b\.host [^;]*c\.host [^;]*; chunks[^;]*; 4 ranks"):
        environment.check_memory(plan("host: node17"), shared=False)
    with pytest.raises(EnvironmentUnfit, match=r"a\.host .* 5 ranks"):
        environment.check_memory(placement.without_placement(plan("host: node17")), shared=False)


def test_each_page_is_touched() -> None:
    memory = np.ones(3 * placement.mmap.PAGESIZE + 5, np.uint8)
    placement.touch(memory)
    assert np.flatnonzero(memory == 0).tolist() == [page * placement.mmap.PAGESIZE for page in range(4)]


WHO = """
import json, os
from pathlib import Path

def look(frames, numbers):
    threads = {tuple(sorted(os.sched_getaffinity(int(it.name)))) for it in Path("/proc/self/task").iterdir()}
    told = {"threads": sorted(threads), "host": os.environ.get("PMI_HOSTNAME")}
    (Path(__file__).parent / f"seen_{os.getpid()}.json").write_text(json.dumps(told))
    return frames
"""

LOOK = "w: {input: F, python: {function: 'who.py:look'}}, save: {input: w, io_hdf5: {}}"


def has(node: int, cpu: int) -> bool:
    """Return whether this machine has such a NUMA node with that CPU."""
    return (placement.NUMA_NODES / f"node{node}").exists() and cpu in placement.numa_cpus(node)


def seen(folder: Path) -> list[dict[str, Any]]:
    """Return the reports of the processes of receivers."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seen_*.json"))]


@pytest.mark.mpi
@needs_mpi
def test_receivers_are_where_they_should_be(tmp_path: Path) -> None:
    """Two names of this machine, which MPICH takes for two hosts; frames are the same."""
    (tmp_path / "who.py").write_text(WHO)
    usable = sorted(os.sched_getaffinity(0))
    node = next((it for it in (0, 1) if has(it, usable[-1])), None)
    numa = "" if node is None else f", numa: {node}"
    a = f"cpus: [{usable[-1]}], host: localhost{numa}"
    ran = run(text(a, "host: 127.0.0.1", LOOK), tmp_path, "mpi", by=program)
    assert ran.code == 0, ran.output
    found = seen(tmp_path)
    assert sorted(it["host"] for it in found) == sorted(["127.0.0.1", *[socket.gethostname()] * 2])
    assert [it["threads"] for it in found].count([[usable[-1]]]) == (1 if len(usable) > 1 else 3)
    inline = run(text(nodes=LOOK), tmp_path, "inline")
    assert np.array_equal(ran.saved("save")[0], inline.saved("save")[0])


@pytest.mark.mpi
@needs_mpi
def test_a_cpu_that_is_not_there_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text("cpus: [99999]"))
    done = lima2("run", "p.yaml", "--transport", "mpi", cwd=tmp_path)
    assert done.returncode == 12
    assert "receiver a: CPU 99999 cannot be used here" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.mpi
@needs_mpi
@pytest.mark.skipif(shutil.which("ssh") is None, reason="without ssh no other machine is reached")
def test_a_machine_that_is_not_reached_is_told(tmp_path: Path) -> None:
    ran = run(text("host: nowhere.invalid"), tmp_path, "mpi")
    assert ran.code == 10
    assert "no process could be started on nowhere.invalid" in ran.summary["reason"]


def test_in_one_process_it_means_nothing_and_that_is_told(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    ran = run(text("cpus: [99999]"), tmp_path, "inline")
    assert ran.code == 0
    assert "have no effect" in ran.output
    assert os.sched_getaffinity(0) == before


@pytest.mark.mpi
@needs_mpi
def test_a_job_that_is_joined_keeps_its_hosts(tmp_path: Path) -> None:
    (tmp_path / "who.py").write_text(WHO)
    usable = sorted(os.sched_getaffinity(0))
    (tmp_path / "p.yaml").write_text(text(f"cpus: [{usable[0]}], host: node17", nodes=LOOK))
    done = mpiexec(5, "run", "p.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "`host` of receivers has no effect" in done.stderr
    assert [[usable[0]]] in [it["threads"] for it in seen(tmp_path)]
