"""`lima2 doctor`: what it finds on this machine, on machines that lack something, and what a pipeline needs of one."""

import json
import os
import resource
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from lima2cli.doctor import Bandwidths, Check, Diagnosis, as_plain
from lima2cli.doctor import machine as doctor_machine
from lima2cli.doctor import machine as doctor_measure
from lima2cli.doctor import machine as doctor_pipeline
from lima2cli.doctor import machine as examine
from lima2cli.errors import EnvironmentUnfit
from lima2cli.files.compression import filter_problems
from lima2cli.job import resources as environment
from lima2cli.plan.ir import Plan
from lima2cli.units import rate_text
from tests.compiling import plan_of
from tests.running import lima2, needs_mpi

Usage = namedtuple("Usage", ["total", "used", "free"])

PIPELINE = """
lima2: 1
name: fast
detector: {{remu: {{image: {{width: 1000, height: 1000}}, datasets: {{D: {{dtype: uint16}}}}}}}}
acquisition: {{frames: 100, period: 1 ms}}
receivers: {{r: {{memspaces: {{m: {{host: {{size: {size}}}}}}}}}}}
flows: {{F: {{dataset: D, overrun: {overrun}, buffers: {{size: 20 MB}}}}}}
nodes: {{save: {{input: F, io_hdf5: {{compression: {compression}}}}}}}
"""
"""2 MB a frame, 2 GB/s, 200 MB in all."""


def pipeline(overrun: str = "wait", compression: str = "none", size: str = "20 MB") -> Plan:
    return plan_of(PIPELINE.format(overrun=overrun, compression=compression, size=size))


def found(plan: Plan, put: float | None = 5e9, disk: float | None = 5e9) -> dict[str, Check]:
    checks = doctor_pipeline.pipeline_checks(plan, Path(), Bandwidths(put, disk), shared=True)
    return {check.name: check for check in checks}


def test_a_pipeline_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_pipeline, "cores", lambda: 2)
    checks = found(pipeline())
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(
        ("CPUs", "memory", "detector remu", "transfers", "saving rate", "disk"), "ok"
    )
    assert checks["transfers"].message == "2.0 GB/s are needed, 5.0 GB/s were measured"
    assert checks["saving rate"].message == "2.0 GB/s are to be saved, 5.0 GB/s were measured"
    assert checks["disk"].message.startswith("190.7 MiB are to be saved, ")
    assert checks["memory"].message.startswith("memspaces need 20 000 000 bytes, /dev/shm has ")
    assert checks["CPUs"].message == "3 ranks, of which 2 move or process frames, on 2 CPUs"


@pytest.mark.parametrize(("overrun", "status"), [("wait", "warning"), ("stop", "problem"), ("continue", "problem")])
def test_rates_that_are_too_high(overrun: str, status: str) -> None:
    checks = found(pipeline(overrun), put=1e9, disk=1e8)
    for name, needed in (("transfers", "2.0 GB/s are needed, 1.0"), ("saving rate", "2.0 GB/s are to be saved, 100.0")):
        assert checks[name].status == status
        assert checks[name].message.startswith(needed)
        assert checks[name].help


def test_what_compression_will_save_is_not_known() -> None:
    checks = found(pipeline("stop", "bslz4"), disk=1e8)
    assert checks["saving rate"].status == "warning"
    assert "(before compression)" in checks["saving rate"].message


def test_what_was_not_measured_is_a_warning() -> None:
    checks = found(pipeline(), put=None, disk=None)
    assert [checks[name].status for name in ("transfers", "saving rate")] == ["warning", "warning"]
    unpaced = plan_of(PIPELINE.format(overrun="wait", compression="none", size="20 MB").replace(", period: 1 ms", ""))
    checks = found(unpaced, put=None, disk=None)
    assert [checks[name].status for name in ("transfers", "saving rate")] == ["ok", "ok"]


@pytest.mark.parametrize(("compression", "status"), [("none", "problem"), ("bslz4", "warning")])
def test_a_disk_that_is_too_small(monkeypatch: pytest.MonkeyPatch, compression: str, status: str) -> None:
    plan = pipeline(compression=compression)
    monkeypatch.setattr(doctor_pipeline.shutil, "disk_usage", lambda _: Usage(2**30, 2**29, 100 << 20))
    check = found(plan)["disk"]
    assert check.status == status
    assert "100 MiB free" in check.message


def test_memory_is_what_a_run_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "available_memory", lambda: 100 << 20)
    check = found(pipeline())["memory"]
    assert check.status == "problem"
    assert "the run needs" in check.message
    assert "r.m 20 000 000 bytes" in check.message


def test_fewer_cpus_than_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_pipeline, "cores", lambda: 1)
    assert found(pipeline())["CPUs"].status == "warning"


@pytest.mark.parametrize(
    ("template", "folder"),
    [
        ("runs/{name}_{run:04d}", "runs"),
        ("runs/{name}/x", "runs"),
        ("nowhere/a{date}", "."),
        ("{name}", "."),
        ("a", "."),
    ],
)
def test_the_folder_that_runs_go_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, folder: str
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert doctor_pipeline.output_folder(template) == Path(folder)


def machine() -> dict[str, Check]:
    return {check.name: check for check in doctor_machine.machine_checks()}


def test_this_machine() -> None:
    checks = machine()
    assert checks["packages"].status == "ok"
    assert f"Python {sys.version.split()[0]}" in checks["packages"].message
    assert checks["HDF5"].message.endswith("written and read: bslz4, none, gzip, lz4, zstd, blosc")
    assert "librashpa" in checks
    assert all(check.part == "machine" for check in checks.values())


def test_a_machine_that_lacks_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "_version", lambda name: None if name == "h5py" else "1")
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda _: Usage(64 << 20, 0, 64 << 20))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    (tmp_path / "gpus" / "0").mkdir(parents=True)
    monkeypatch.setattr(doctor_machine, "GPUS", tmp_path / "gpus")
    checks = machine()
    assert (checks["packages"].status, checks["packages"].message[-13:]) == ("problem", "missing: h5py")
    assert checks["/dev/shm"].status == "warning"
    assert "--shm-size" in str(checks["/dev/shm"].help)
    assert (checks["open files"].status, checks["open files"].help) == ("warning", "ulimit -n 512")
    assert checks["HDF5 bslz4"].status == "problem"
    assert "HDF5 gzip" not in checks
    assert (checks["GPU"].status, checks["GPU"].message[:12]) == ("warning", "1 found, but")
    monkeypatch.setattr(doctor_machine, "SHARED_MEMORY", tmp_path / "none")
    assert machine()["/dev/shm"].status == "warning"


def test_packets_need_a_large_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "RECEIVE_BUFFER", tmp_path / "rmem_max")
    assert doctor_machine.receive_buffer(None).status == "ok"
    assert doctor_machine.receive_buffer(4 << 20).status == "warning"
    (tmp_path / "rmem_max").write_text("212992\n")
    check = doctor_machine.receive_buffer(4 << 20)
    assert (check.status, check.help) == ("warning", "sysctl -w net.core.rmem_max=4194304")
    assert "is 212992 bytes" in check.message
    (tmp_path / "rmem_max").write_text("4194304\n")
    assert doctor_machine.receive_buffer(4 << 20).status == "ok"


def test_filters_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(filter_problems().values()) == {None}
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    problems = filter_problems()
    assert "hdf5plugin" in str(problems["bslz4"])
    assert problems["gzip"] is None


def launcher(tmp_path: Path, body: str) -> str:
    """Something that stands for mpiexec."""
    path = tmp_path / "mpiexec"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_ranks_that_hang_are_ended(tmp_path: Path) -> None:
    mpiexec = launcher(tmp_path, f"echo $$ > {tmp_path}/pid; sleep 60 & wait")
    begin = time.monotonic()
    with pytest.raises(EnvironmentUnfit, match=r"have not ended after 500 ms"):
        doctor_measure.measure_put(mpiexec, 0.5)
    assert time.monotonic() - begin < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo of another MPI >&2; exit 3", r"exit code 3\): of another MPI"),
        ("echo 17", "no output"),
        ('echo \'{"bytes_per_s": 1, "library": "x"}\'; exit 1', "exit code 1"),
    ],
)
def test_ranks_that_fail_say_why(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(EnvironmentUnfit, match=words):
        doctor_measure.measure_put(launcher(tmp_path, body))


def test_a_launcher_of_another_mpi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "find_mpiexec", lambda: launcher(tmp_path, "echo strange >&2; exit 1"))
    for name in doctor_measure.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor_machine.importlib.util, "find_spec", lambda _: object())
    check, rate = doctor_machine.mpi_check()
    assert (check.status, rate) == ("problem", None)
    assert "strange" in check.message
    assert "must belong to the MPI that mpi4py uses" in str(check.help)
    monkeypatch.setenv("PMI_RANK", "0")
    assert doctor_machine.mpi_check()[0].status == "warning"
    monkeypatch.setattr(doctor_machine, "find_mpiexec", lambda: None)
    assert doctor_machine.mpi_check()[0].status == "problem"
    monkeypatch.setattr(doctor_machine.importlib.util, "find_spec", lambda _: None)
    assert doctor_machine.mpi_check()[0].status == "warning"


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    assert doctor_measure.measure_disk(tmp_path, seconds=0.05, limit=32 << 20) > 0
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(examine, "mpi_check", lambda: (Check("machine", "MPI", "ok", ""), 1e9))
    monkeypatch.setattr(examine, "measure_disk", full)
    diagnosis = examine.examine()
    assert not diagnosis.fit
    (problem,) = [check for check in diagnosis.checks if check.status == "problem"]
    assert problem.name == "disk"
    assert "No space left on device" in problem.message
    assert as_plain(diagnosis)["measured"] == {"put_bytes_per_s": 1e9, "disk_bytes_per_s": None}


def test_verdicts() -> None:
    warning, problem = Check("machine", "a", "warning", ""), Check("pipeline", "b", "problem", "")
    assert Diagnosis((warning,)).fit
    assert not Diagnosis((warning, problem)).fit
    assert (rate_text(2.5e9), rate_text(2.5e6)) == ("2.5 GB/s", "2.5 MB/s")


@pytest.mark.mpi
@needs_mpi
def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "fast.yaml").write_text(PIPELINE.format(overrun="wait", compression="bslz4", size="20 MB"))
    done = lima2("doctor", "fast.yaml", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert (said["version"], said["fit"]) == (1, True)
    assert said["measured"]["put_bytes_per_s"] > 1e7
    assert said["measured"]["disk_bytes_per_s"] > 1e4
    assert {check["part"] for check in said["checks"]} == {"machine", "pipeline"}
    assert next(check for check in said["checks"] if check["name"] == "MPI")["status"] == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["fast.yaml"]


def test_the_command_in_text_where_it_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text(PIPELINE.format(overrun="wait", compression="none", size="64 TiB"))
    done = lima2("doctor", "large.yaml", cwd=tmp_path)
    assert done.returncode == 12, done.stdout + done.stderr
    assert done.stdout.startswith("this machine\n  ")
    assert "\nlarge.yaml\n" in done.stdout
    assert "problem  memory" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("not fit for large.yaml: 1 problem")


def test_files_with_problems_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("lima2: 1\n")
    done = lima2("doctor", "wrong.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "missing-key" in done.stderr
    assert lima2("doctor", "none.yaml", cwd=tmp_path).returncode == 2
