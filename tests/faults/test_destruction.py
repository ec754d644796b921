"""Nothing is destroyed: what is removed or written over is ours, is read by nobody, and is used once."""

import hashlib
import json
import os
import shutil
import signal
import socket
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from lima2cli.errors import EnvironmentUnfit
from lima2cli.inputs.stacks import backing_files
from lima2cli.job import resources as disk
from lima2cli.paths import held_in
from lima2cli.runs.directory import Claim, find_run, make_directory, read_run
from lima2cli.runs.ownership import RunNames, is_live, remove_run
from lima2cli.transport.mapped import map_file
from tests.running import TRANSPORTS, Live, Ran, lima2, mpi, mpiexec, needs_mpi, program

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
FRAMES = np.arange(1, 81, dtype="u2").reshape(5, 4, 4)

REMU = """lima2: 1
name: p
detector: {remu: {image: {width: 8, height: 8}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 3}
output: {directory: results, if_exists: overwrite}
"""
SAVES = REMU + "nodes: {save: {input: data, io_hdf5: {}}}\n"

REPLAY = """lima2: 1
name: raw
detector: {{replay: {{file: "{file}"}}}}
output: {{directory: "{directory}", if_exists: overwrite}}
nodes: {{save: {{input: data, io_hdf5: {{}}}}}}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def contents(folder: Path) -> dict[str, str]:
    """All that lies below a folder: digests of files, targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "a folder" if path.is_dir() else "something else"
    return found


def run(text: str, cwd: Path, transport: str = "inline", name: str = "p.yaml") -> Ran:
    (cwd / name).write_text(text)
    done = lima2("run", name, "--transport", transport, cwd=cwd)
    assert "Traceback" not in done.stderr
    return Ran(done.returncode, done.stdout + done.stderr, cwd / "results")


def validate(text: str, cwd: Path, name: str = "p.yaml") -> set[str]:
    """Rules of the errors."""
    (cwd / name).write_text(text)
    done = lima2("validate", name, "--format", "json", cwd=cwd)
    return {item["rule"] for item in json.loads(done.stdout)["diagnostics"] if item["severity"] == "error"}


def refused(text: str, cwd: Path, rule: str | None, *words: str) -> None:
    """Both commands refuse, and nothing is changed. ``rule`` None: only the run can know it."""
    (cwd / "p.yaml").write_text(text)
    before = contents(cwd)
    assert validate(text, cwd) == ({rule} if rule else set())
    ran = run(text, cwd)
    assert ran.code == (1 if rule else 12), ran.output
    for word in words:
        assert word in ran.output
    assert contents(cwd) == before


# An output directory that holds what is read


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A run in `raw`, of frames that are nowhere else."""
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["data"] = FRAMES
    assert run(REPLAY.format(file="scan.h5::/data", directory="raw"), tmp_path).code == 0
    (tmp_path / "scan.h5").unlink()
    return tmp_path


def _master(folder: Path) -> str:
    return "raw/raw_save_master.h5"


def _frame_file(folder: Path) -> str:
    return "raw/raw_save_0_00000.h5"


def _link(folder: Path) -> str:
    (folder / "link.h5").symlink_to("raw/raw.h5")
    return "link.h5"


def _external(folder: Path) -> str:
    with h5py.File(folder / "other.h5", "w") as file:
        file["frames/scan"] = h5py.ExternalLink("raw/raw_save_master.h5", "/entry_0000/measurement/data")
    return "other.h5::/frames/scan"


def _virtual_of_external(folder: Path) -> str:
    layout = h5py.VirtualLayout((5, 4, 4), "u2")
    layout[:] = h5py.VirtualSource("raw/raw_save_master.h5", "/entry_0000/measurement/data", (5, 4, 4))
    with h5py.File(folder / "virtual.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
    return "virtual.h5"


@pytest.mark.parametrize("reference", [_master, _frame_file, _link, _external, _virtual_of_external])
def test_a_run_does_not_remove_the_frames_that_it_replays(reference: Callable[[Path], str], raw: Path) -> None:
    refused(REPLAY.format(file=reference(raw), directory="raw"), raw, "output-in-use", "the pipeline reads")


def test_a_directory_that_is_mounted_elsewhere_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bind mount is the same directory by a path that no link explains; mounts need a privilege, so it is played."""
    for name in ("own", "mount", "other"):
        (tmp_path / name / "deep").mkdir(parents=True)
    true = os.path.samefile

    def samefile(one: Path, other: Path) -> bool:
        return true(*(str(it).replace("/mount", "/own") for it in (one, other)))

    monkeypatch.setattr(os.path, "samefile", samefile)
    inputs = [tmp_path / place for place in ("mount/deep/a.h5", "mount/gone/b.h5", "mount", "other/deep/a.h5", ".")]
    assert held_in(tmp_path / "own", inputs) == inputs[:3]
    assert held_in(tmp_path / "own/deep", inputs) == inputs[:1]
    assert held_in(tmp_path / "nowhere", inputs) == []


def test_it_is_seen_in_a_directory_that_is_named_when_the_run_begins(raw: Path) -> None:
    (raw / "raw").rename(raw / f"raw-{datetime.now().astimezone():%Y-%m-%d}")
    (raw / "raw").symlink_to(f"raw-{datetime.now().astimezone():%Y-%m-%d}")
    text = REPLAY.format(file="raw/raw_save_master.h5", directory="raw-{date}")
    refused(text, raw, None, "contains inputs of the pipeline")


def test_other_inputs_that_lie_in_the_output_directory(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    np.save(tmp_path / "results" / "dark.npy", np.ones((8, 8)))
    (tmp_path / "results" / "u.py").write_text("def f(frames, numbers):\n    return frames\n")
    (tmp_path / "results" / "serve.py").write_text("")
    graph = "lima2: 1\ngraphs: {g: {nodes: {save: {input: frames, io_hdf5: {}}}}}\n"
    (tmp_path / "results" / "g.yaml").write_text(graph)
    nodes = (
        "nodes: {d: {input: data, background_sub: {image: results/dark.npy}}, save: {input: d, io_hdf5: {}}}",
        'nodes: {d: {input: data, python: {function: "results/u.py:f"}}, save: {input: d, io_hdf5: {}}}',
        "nodes: {d: {input: data, mpi: {command: [python, results/serve.py]}}, save: {input: d, io_hdf5: {}}}",
        "graphs: {g: {file: results/g.yaml}}\nnodes: {s: {input: data, graph: {g: {}}}}",
    )
    for text in nodes:
        refused(f"{REMU}{text}\n", tmp_path, "output-in-use")


@pytest.mark.parametrize("directory", [".", "..", "/", "sub/..", "../{name}"])
def test_a_directory_that_holds_the_pipeline_or_the_working_directory(directory: str, tmp_path: Path) -> None:
    here = tmp_path / "p"
    (here / "sub").mkdir(parents=True)
    for exists in ("abort", "overwrite"):
        text = SAVES.replace(
            "directory: results, if_exists: overwrite", f'directory: "{directory}", if_exists: {exists}'
        )
        assert validate(text, here) & {"output-in-use", "bad-format"}
        before = contents(tmp_path)
        assert run(text, here).code == 1
        assert contents(tmp_path) == before


def test_the_pipeline_may_not_lie_in_the_directory_that_is_overwritten(tmp_path: Path) -> None:
    assert run(SAVES, tmp_path).code == 0
    before = contents(tmp_path)
    done = lima2("run", "results/pipeline.yaml", "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 1
    assert "output-in-use" in done.stderr
    assert contents(tmp_path) == before


def test_files_that_stand_behind_a_reference(tmp_path: Path) -> None:
    with h5py.File("c.h5", "w") as file:
        file["x"] = FRAMES
    with h5py.File("b.h5", "w") as file:
        file["group/x"] = h5py.ExternalLink("c.h5", "/x")
        file["group/own"] = 1
        file["back"] = h5py.ExternalLink("a.h5", "/")  # a cycle
        file.create_dataset("raw", (5, 4, 4), "u2", external=[("bytes.bin", 0, 160)])
    with h5py.File("a.h5", "w") as file:
        file["it"] = h5py.ExternalLink("b.h5", "/group")
        file["soft"] = h5py.SoftLink("it/x")
        file["gone"] = h5py.ExternalLink("gone.h5", "/x")
        file["raw"] = h5py.ExternalLink("b.h5", "raw")

    def names(*inner: str) -> set[str]:
        return {path.name for path in backing_files(Path("a.h5"), *inner)}

    assert names() == {"a.h5"}
    assert names("/it/x") == names("soft") == names("/it") == {"a.h5", "b.h5", "c.h5"}
    assert names("gone") == {"a.h5", "gone.h5"}
    assert names("raw") == {"a.h5", "b.h5", "bytes.bin"}
    assert names("/") == {"a.h5", "b.h5", "c.h5", "gone.h5", "bytes.bin"}
    os.mkfifo("pipe.h5")
    assert backing_files(Path("pipe.h5"), "/") == {Path("pipe.h5").resolve()}


def test_a_file_is_looked_for_where_hdf5_looks(tmp_path: Path) -> None:
    """From the working directory, and beside a link of the file system; each by reading, then by name."""
    (tmp_path / "deep" / "raw").mkdir(parents=True)
    with h5py.File("x.h5", "w") as file:
        file["x"] = FRAMES
    with h5py.File("deep/raw/it.h5", "w") as file:
        file["x"] = h5py.ExternalLink("x.h5", "x")
    (tmp_path / "deep" / "it.h5").symlink_to("raw/it.h5")
    shutil.copy("x.h5", "deep/x.h5")
    for path, expected in {"deep/raw/it.h5": {"x.h5"}, "deep/it.h5": {"deep/x.h5", "x.h5"}}.items():
        with h5py.File(path) as file:
            assert file["x"].file.filename.removeprefix("./") in {*expected, str(tmp_path / "deep/x.h5")}
        names = {str(found.relative_to(tmp_path)) for found in backing_files(Path(path), "x")}
        assert names == {"deep/raw/it.h5", *expected}


# A directory that is not ours, or not only ours


def test_a_directory_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results" / "sub").mkdir(parents=True)
    (tmp_path / "results" / "summary.json").write_text('{"made by": "another program"}')
    (tmp_path / "results" / "sub" / "raw.dat").write_text("raw")
    refused(SAVES, tmp_path, None, "not a run directory of lima2")
    (tmp_path / "results" / ".lima2-run").write_text("{}")
    refused(SAVES, tmp_path, None, "is not a marker of lima2")
    (tmp_path / "results" / ".lima2-run").unlink()
    (tmp_path / "results" / "plan.json").write_text(lima2("plan", "p.yaml", "--format", "json", cwd=tmp_path).stdout)
    refused(SAVES, tmp_path, None, "not a run directory of lima2")


def _notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("exposure was too long")


def _analysis(folder: Path) -> None:
    (folder / "p_save.h5").write_bytes(b"averages")  # not quite a name of the run's own


def _folder(folder: Path) -> None:
    (folder / "p_save_0_00001.h5").mkdir()


def _link_in_place(folder: Path) -> None:
    (folder / "p_save_0_00001.h5").symlink_to("/etc/hostname")


@pytest.mark.parametrize("put", [_notes, _analysis, _folder, _link_in_place])
def test_what_a_user_has_put_beside_a_run_is_not_lost(put: Callable[[Path], None], tmp_path: Path) -> None:
    assert run(SAVES, tmp_path).code == 0
    put(tmp_path / "results")
    refused(SAVES, tmp_path, None, "contains files that its run has not written")


def test_a_link_is_left_alone(tmp_path: Path) -> None:
    assert run(SAVES, tmp_path).code == 0
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    (tmp_path / "results").symlink_to("elsewhere")
    refused(SAVES, tmp_path, None, "results is a link to elsewhere")
    shutil.rmtree(tmp_path / "elsewhere")
    refused(SAVES, tmp_path, None, "results is a link to elsewhere")
    (tmp_path / "runs").mkdir()
    text = SAVES.replace("directory: results", "directory: latest")
    assert (tmp_path / "latest").is_symlink()
    refused(text, tmp_path, None, "latest is a link")


def test_a_link_named_latest_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for target in ("data", "/nowhere/else", "../x"):
        (tmp_path / "latest").unlink(missing_ok=True)
        (tmp_path / "latest").symlink_to(target)
        assert run(SAVES, tmp_path).code == 0
        assert os.readlink(tmp_path / "latest") == target
    (tmp_path / "latest").unlink()
    for _ in range(2):
        assert run(SAVES, tmp_path).code == 0
        assert os.readlink(tmp_path / "latest") == "results"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_complete_run_takes_the_place_of_the_one_before(transport: str, tmp_path: Path) -> None:
    assert run(SAVES, tmp_path, transport).code == 0
    first = (tmp_path / "results" / ".lima2-run").read_text()
    ran = run(SAVES.replace("frames: 3", "frames: 7"), tmp_path, transport)
    assert ran.code == 0
    assert ran.summary["channels"]["save"]["saved"] == 7
    assert (tmp_path / "results" / ".lima2-run").read_text() != first
    assert {path.name for path in tmp_path.iterdir()} == {"p.yaml", "results", "latest"}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_without_files_gives_the_one_before_its_place_again(transport: str, tmp_path: Path) -> None:
    assert run(SAVES, tmp_path, transport).code == 0
    before = contents(tmp_path / "results")
    (tmp_path / "u.py").write_text("def f(frames, numbers):\n    raise ValueError('bad frame')\n")
    nodes = 'nodes: {py: {input: data, python: {function: "u.py:f"}}, save: {input: py, io_hdf5: {}}}\n'
    for _ in range(2):
        ran = run(REMU + nodes, tmp_path, transport)
        assert ran.code == 10
        assert "nothing was saved: results is the previous run, results.failed what this run left" in ran.output
        assert contents(tmp_path / "results") == before
        assert json.loads((tmp_path / "results.failed" / "summary.json").read_text())["state"] == "failed"
    (tmp_path / "results.failed" / "notes.txt").write_text("why?")
    assert run(REMU + nodes, tmp_path, transport).code == 10
    assert (tmp_path / "results.failed" / "notes.txt").exists()
    assert (tmp_path / "results.failed-2" / "summary.json").exists()
    assert contents(tmp_path / "results") == before


def test_a_run_that_is_not_started_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(SAVES, tmp_path).code == 0
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lima2cli.runs.saved_plan.Origin.write", full)
    assert run(SAVES, tmp_path).code == 12
    assert contents(tmp_path) == before


@needs_mpi
@pytest.mark.mpi
@pytest.mark.launch
def test_nor_does_one_whose_ranks_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(SAVES, tmp_path).code == 0
    before = contents(tmp_path)

    def none(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("lima2cli.job.launch.subprocess.Popen", none)
    assert run(SAVES, tmp_path, "mpi").code == 12
    assert contents(tmp_path) == before


def test_a_saved_plan_is_read_too(tmp_path: Path) -> None:
    assert run(SAVES, tmp_path).code == 0
    before = contents(tmp_path)
    done = lima2("run", "results/plan.json", "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 12
    assert "contains inputs of the pipeline" in done.stderr
    assert contents(tmp_path) == before


@needs_mpi
@pytest.mark.mpi
def test_under_mpiexec_too(tmp_path: Path) -> None:
    assert run(SAVES, tmp_path).code == 0
    assert mpiexec(3, "run", "p.yaml", cwd=tmp_path).returncode == 0
    _notes(tmp_path / "results")
    before = contents(tmp_path)
    done = mpiexec(3, "run", "p.yaml", cwd=tmp_path)
    assert done.returncode != 0
    assert "notes.txt" in done.stderr
    assert contents(tmp_path) == before


LIVE = """lima2: 1
name: p
detector: {remu: {image: {width: 8, height: 8}, datasets: {data: {dtype: uint16}}}}
acquisition: {frames: 0, rate: 20 Hz}
output: {directory: runs/results, if_exists: overwrite}
nodes: {save: {input: data, io_hdf5: {}}}
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_that_goes_on_is_not_touched(transport: str, tmp_path: Path) -> None:
    live = Live(LIVE, tmp_path, transport)
    try:
        live.wait_for_frames()
        for command in (("run", "pipeline.yaml", "--transport", "inline"), ("recover", "runs/results")):
            done = lima2(*command, cwd=tmp_path)
            assert done.returncode == (12 if command[0] == "run" else 10)
            assert "is active" in done.stderr
        told = "the run in runs/results is active, and is not touched: `lima2 stop runs/results` ends it"
        assert told in done.stderr  # of the last: recover
        assert not (tmp_path / "runs" / "results" / "summary.json").exists()
        assert lima2("stop", "runs/results", cwd=tmp_path).returncode == 0
    finally:
        ran = live.end()
    assert ran.code == 0
    assert ran.summary["state"] == "stopped"
    assert lima2("recover", "runs/results", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(("how", "transport"), [("moved", "inline"), ("removed", "inline"), mpi("removed")])
def test_a_run_whose_directory_goes_away_does_not_cost_the_one_before(how: str, transport: str, tmp_path: Path) -> None:
    assert run(LIVE.replace("frames: 0, rate: 20 Hz", "frames: 3"), tmp_path).code == 0
    before = contents(tmp_path / "runs" / "results")
    live = Live(LIVE, tmp_path, transport)
    try:
        live.wait_for_frames()
        (tmp_path / "runs" / "results").rename(tmp_path / "gone")
        if how == "removed":
            shutil.rmtree(tmp_path / "gone")
        live.process.send_signal(signal.SIGINT)
    finally:
        ran = live.end()
    assert ran.code
    if how == "removed":
        assert contents(tmp_path / "runs" / "results.old") == before
        assert "results.old" in ran.output
    else:  # the new run has its files where it went
        summary = json.loads((tmp_path / "gone" / "summary.json").read_text())
        assert summary["channels"]["save"]["saved"] > 0
        assert summary["problems"] == []


def test_a_run_of_another_machine_that_has_not_ended_is_not_removed(tmp_path: Path) -> None:
    assert run(SAVES, tmp_path).code == 0
    results = tmp_path / "results"
    told = {"version": 1, "host": f"not-{socket.gethostname()}", "pid": 1, "socket": "/tmp/lima2-x/run"}
    (results / "control.json").write_text(json.dumps(told))
    (results / "summary.json").unlink()
    refused(SAVES, tmp_path, None, "of another machine")


def claim(directory: str = "results") -> Claim | None:
    try:
        return make_directory(directory, "p", "overwrite", NOW, names=RunNames("p", ("save",)))
    except EnvironmentUnfit:
        return None


@pytest.mark.parametrize("before", ["nothing", "empty", "a run"])
def test_of_runs_that_start_at_once_in_one_directory_one_gets_it(before: str, tmp_path: Path) -> None:
    for turn in range(10):
        name = f"it{turn}"
        if before == "empty":
            Path(name).mkdir()
        if before == "a run":
            first = claim(name)
            assert first is not None
            (first.path / "p_save_0_00000.h5").write_text("frames")
            first.release()
        with ThreadPoolExecutor(8) as pool:
            got = [one for one in pool.map(claim, [name] * 8) if one is not None]
        assert len(got) == 1
        assert os.listdir(name) == [".lima2-run"]
        assert is_live(Path(name))
        if before == "a run":
            assert (Path(f"{name}.old") / "p_save_0_00000.h5").read_text() == "frames"
        got[0].keep()
        got[0].release()
        assert not is_live(Path(name))
    assert not [path for path in tmp_path.iterdir() if "old" in path.name or path.name.startswith(".")]


def test_what_is_removed_is_removed_by_name(tmp_path: Path) -> None:
    made = claim()
    assert made is not None
    for name in ("p_save_0_00000.h5", "p_save_0_00001.h5.new", "summary.json", "p_other_0_00000.h5"):
        (made.path / name).write_text("")
    assert remove_run(made.path) == ["p_other_0_00000.h5"]
    assert sorted(os.listdir(made.path)) == [".lima2-run", "p_other_0_00000.h5"]
    (tmp_path / "mine").mkdir()
    assert remove_run(tmp_path / "mine") == []
    assert (tmp_path / "mine").is_dir()


def test_recovery_touches_no_file_but_the_runs_own(tmp_path: Path) -> None:
    """A user's file that looks like one that is open, beside the run's, and one elsewhere that a link leads to."""
    assert run(SAVES, tmp_path).code == 0
    results = tmp_path / "results"
    shutil.copy(results / "p_save_0_00000.h5", tmp_path / "elsewhere.h5")
    for path in (tmp_path / "elsewhere.h5", results / "mine.h5"):
        if not path.exists():
            shutil.copy(tmp_path / "elsewhere.h5", path)
        data = bytearray(path.read_bytes())
        data[11] = 5  # as of a writer that was killed
        path.write_bytes(data)
    (results / "p_save_0_00007.h5").symlink_to("../elsewhere.h5")
    (results / "mine.h5.new").write_text("mine")
    (results / "summary.json").unlink()
    before = contents(tmp_path)
    lima2("recover", "results", cwd=tmp_path)
    after = contents(tmp_path)
    for name in ("elsewhere.h5", "results/mine.h5", "results/mine.h5.new", "results/p_save_0_00007.h5"):
        assert after[name] == before[name]
    assert (results / "summary.json").exists()


def test_a_folder_that_is_said_to_hold_a_socket_is_not_emptied(tmp_path: Path) -> None:
    from lima2cli.runs.control_socket import forget

    mine = tmp_path / "lima2-data"
    mine.mkdir()
    (mine / "thesis.tex").write_text("")
    for name in ("run", "thesis.tex"):
        told = {"version": 1, "host": socket.gethostname(), "pid": 1, "socket": str(mine / name)}
        (tmp_path / "control.json").write_text(json.dumps(told))
        forget(tmp_path)
        assert (mine / "thesis.tex").exists()
        assert not (tmp_path / "control.json").exists()


# Memspaces in files

MAPPED = """lima2: 1
detector: {{remu: {{image: {{width: 8, height: 8}}, datasets: {{data: {{dtype: uint16}}}}}}}}
acquisition: {{frames: 3}}
receivers:
  r0: {{memspaces: {{m: {{file: {{path: "{one}"}}}}}}}}
  r1: {{memspaces: {{m: {{file: {{path: "{other}"}}}}}}}}
output: {{directory: "out/{{name}}_{{run}}"}}
nodes: {{save: {{input: data, io_hdf5: {{}}}}}}
"""


def mapped(one: str = "a.bin", other: str = "b.bin") -> str:
    return MAPPED.format(one=one, other=other)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_memspace_is_new_or_ours(transport: str, tmp_path: Path) -> None:
    for frames in (3, 40, 3):
        ran = run(mapped().replace("frames: 3", f"frames: {frames}"), tmp_path, transport)
        assert ran.code == 0, ran.output
    size = (tmp_path / "a.bin").stat().st_size
    assert size == 256 * 128
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.bin", "a.bin.lima2", "b.bin", "b.bin.lima2", "out", "p.yaml",
    }  # fmt: skip
    smaller = mapped().replace("nodes:", "flows: {data: {dataset: data, buffers: {frames: 8}}}\nnodes:")
    assert run(smaller, tmp_path, transport).code == 0
    assert (tmp_path / "a.bin").stat().st_size == 8 * 128


def _input_file(folder: Path) -> str:
    (folder / "a.bin").write_text("1 2 3")
    return "a.bin"


def _empty_file(folder: Path) -> str:
    (folder / "a.bin").touch()
    return "a.bin"


def _symlink(folder: Path) -> str:
    (folder / "data.txt").write_text("1 2 3")
    (folder / "a.bin").symlink_to("data.txt")
    return "a.bin"


def _dangling(folder: Path) -> str:
    (folder / "a.bin").symlink_to("nowhere")
    return "a.bin"


def _second_name(folder: Path) -> str:
    map_file("a.bin", 100).close()
    os.link("a.bin", "keep.bin")
    return "a.bin"


def _pipe(folder: Path) -> str:
    os.mkfifo("a.bin")
    return "a.bin"


def _device(folder: Path) -> str:
    return "/dev/null"


def _the_folder(folder: Path) -> str:
    return "."


def _below_a_file(folder: Path) -> str:
    (folder / "data.txt").write_text("1 2 3")
    return "data.txt/a.bin"


def _replaced(folder: Path) -> str:
    """Ours was there, and the user has put something else of that name in its place."""
    map_file("a.bin", 100).close()
    Path("new").write_bytes(bytes(100))
    Path("new").rename("a.bin")
    return "a.bin"


def _written_over(folder: Path) -> str:
    """As `cp data a.bin` does."""
    map_file("a.bin", 100).close()
    Path("a.bin").write_text("1 2 3")
    return "a.bin"


def _copied(folder: Path) -> str:
    map_file("a.bin", 100).close()
    shutil.copy("a.bin", "c.bin")
    shutil.copy("a.bin.lima2", "c.bin.lima2")
    return "c.bin"


def _no_marker(folder: Path) -> str:
    Path("a.bin.lima2").write_text("mine")
    return "a.bin"


def _marker_itself(folder: Path) -> str:
    map_file("a.bin", 100).close()
    return "a.bin.lima2"


@pytest.mark.parametrize(
    "make",
    [
        _input_file, _empty_file, _symlink, _dangling, _second_name, _pipe, _device, _the_folder, _below_a_file,
        _replaced, _written_over, _copied, _no_marker, _marker_itself,
    ],
)  # fmt: skip
def test_another_file_is_no_memspace(make: Callable[[Path], str], tmp_path: Path) -> None:
    text = mapped(make(tmp_path))
    refused(text, tmp_path, "memspace-taken", "memspace m of r0")


def test_a_memspace_is_no_input(tmp_path: Path) -> None:
    with h5py.File("scan.h5", "w") as file:
        file["data"] = np.zeros((3, 8, 8), "u2")
    np.save("dark.npy", np.ones((8, 8)))
    text = mapped().replace("{remu: {image: {width: 8, height: 8}, datasets: {data: {dtype: uint16}}}}", "DETECTOR")
    replay = text.replace("DETECTOR", "{replay: {file: scan.h5}}")
    dark = mapped("dark.npy").replace(
        "nodes: {save: {input: data,", "nodes: {d: {input: data, background_sub: {image: dark.npy}}, save: {input: d,"
    )
    os.link("scan.h5", "second.h5")
    for one in (
        replay.replace("a.bin", "second.h5"),
        replay.replace("a.bin", "scan.h5"),
        replay.replace("a.bin", "./x/../scan.h5"),
        dark,
        mapped("p.yaml"),
    ):
        refused(one, tmp_path, "memspace-taken", "which the pipeline reads")


@pytest.mark.parametrize(
    "other", ["a.bin", "./a.bin", "sub/../a.bin", "sub/up/a.bin", "linked.bin", "/proc/self/cwd/a.bin"]
)
def test_two_memspaces_are_two_files(other: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to("..")
    if other == "linked.bin":
        (tmp_path / "linked.bin").symlink_to("a.bin")
    refused(mapped("a.bin", other), tmp_path, "memspace-shared", "are one file")


def test_two_memspaces_by_two_names_of_one_file(tmp_path: Path) -> None:
    map_file("a.bin", 100).close()
    os.link("a.bin", "b.bin")
    shutil.copy("a.bin.lima2", "b.bin.lima2")
    assert "memspace-shared" in validate(mapped(), tmp_path)


@pytest.mark.parametrize("path", ["out/p_1/a.bin", "out/p_77/sub/a.bin", "sub/up/out/p_1/a.bin"])
def test_a_memspace_does_not_lie_in_a_run_directory(path: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to("..")
    refused(mapped(path), tmp_path, "memspace-taken", "lies in the output directory")
    assert validate(mapped("out/a.bin"), tmp_path) == set()


def test_a_memspace_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    held = map_file(str(tmp_path / "a.bin"), 100)
    held.memory[:] = 7
    refused(mapped(), tmp_path, None, "is the memspace of an active run")
    with pytest.raises(EnvironmentUnfit, match="of an active run"):
        map_file(str(tmp_path / "a.bin"), 100)
    assert held.memory.tolist() == [7] * 100
    held.close()
    assert run(mapped(), tmp_path).code == 0


@pytest.mark.launch
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_memspace_is_ours_after_a_kill(transport: str, tmp_path: Path) -> None:
    endless = mapped().replace("frames: 3", "frames: 0, rate: 20 Hz").replace("out/{name}_{run}", "runs/{name}_{run}")
    live = Live(endless, tmp_path, transport)
    live.wait_for_frames()
    live.process.kill()
    for rank in live.ranks:
        with suppress(psutil.NoSuchProcess):  # they end with their launcher
            rank.kill()
    live.end()
    assert not live.survivors()
    assert read_run(find_run(str(tmp_path / "runs" / "latest"))).state == "aborted"
    assert run(mapped(), tmp_path, transport).code == 0


# Names of directories


@pytest.mark.parametrize(
    ("directory", "rule"),
    [
        ("~/runs/{name}", "home-directory"),
        ("~", "home-directory"),
        ("~user/runs", "home-directory"),
        ("{home}/runs", "unknown-field"),
        ("runs/{run}/..", "bad-format"),
        ("{name}/../{run}", "bad-format"),
        ("", "bad-format"),
        ("{run:{run}}", "bad-format"),
        ("{run:x}", "bad-format"),
        ("{run!r}", "bad-format"),
        ("{name:>40}", "bad-format"),
        ("a\\0b", "control-character"),
    ],
)
def test_names_that_would_not_be_what_they_say(directory: str, rule: str, tmp_path: Path) -> None:
    refused(SAVES.replace("directory: results", f'directory: "{directory}"'), tmp_path, rule)


def test_a_memspace_in_the_home_directory_is_said_as_such(tmp_path: Path) -> None:
    refused(mapped("~/a.bin"), tmp_path, "home-directory")
    refused(mapped("a\\0.bin"), tmp_path, "control-character")


def test_a_number_that_is_none_and_a_folder_that_is_none(tmp_path: Path) -> None:
    """Each was looked for a free number for ever."""
    assert run(SAVES.replace("directory: results", 'directory: "{{run}}"'), tmp_path).code == 0
    (tmp_path / "nowhere").symlink_to("gone/away")
    refused(SAVES.replace("directory: results", 'directory: "nowhere/{run}"'), tmp_path, None, "cannot make")


def test_names_that_are_fine(tmp_path: Path) -> None:
    for directory in ("../{name}_{run}", "a~/b", "./~x/{run:04d}", "{{~}}/{run:d}", "{date}/{name}/{run:3}"):
        assert not validate(SAVES.replace("directory: results", f'directory: "{directory}"'), tmp_path)


def test_a_simulation_overwrites_nothing(tmp_path: Path) -> None:
    assert run(SAVES, tmp_path).code == 0
    before = contents(tmp_path)
    done = lima2("simulate", "p.yaml", "-o", "results", cwd=tmp_path)
    assert done.returncode == 12
    assert "a simulation does not overwrite files" in done.stderr
    assert contents(tmp_path) == before


# Files that options name


@pytest.mark.parametrize("output", ["p.yaml", "scan.h5", "other.yaml", "linked", "runs/latest/plan.json"])
@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_what_is_printed_is_not_written_over_what_is_read(command: str, output: str, tmp_path: Path) -> None:
    with h5py.File("scan.h5", "w") as file:
        file["data"] = FRAMES
    (tmp_path / "other.yaml").write_text("mine")
    (tmp_path / "linked").symlink_to("scan.h5")
    text = REPLAY.format(file="scan.h5", directory="runs/{name}_{run}")
    assert run(text, tmp_path).code == 0
    before = contents(tmp_path)
    option = "-o" if command == "plan" else "--report"
    done = lima2(command, "p.yaml", option, output, cwd=tmp_path)
    assert done.returncode == 12, done.stderr
    assert output in done.stderr
    assert contents(tmp_path) == before


def test_what_was_printed_before_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(SAVES)
    for _ in range(2):
        assert lima2("plan", "p.yaml", "--format", "json", "-o", "plan.json", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "plan.json").read_text())["name"] == "p"
    assert lima2("plan", "p.yaml", "-o", "nowhere/plan.txt", cwd=tmp_path).returncode == 12


# What is written fits on the disk

Usage = namedtuple("Usage", ["total", "used", "free"])

LARGE = """lima2: 1
name: p
detector: {remu: {image: {width: 1000, height: 500}, datasets: {data: {dtype: uint16}}}}
acquisition: {frames: 100, REPEAT}
nodes:
  plain: {input: data, io_hdf5: {compression: none}}
  small: {input: data, io_hdf5: {compression: bslz4}}
"""


def large(repeat: int = 1) -> str:
    return LARGE.replace("REPEAT", f"repeat: {repeat}")


@pytest.fixture
def disk_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the disk have so many bytes free."""

    def small(free: int) -> None:
        usage = shutil.disk_usage
        near = {os.stat(".").st_dev}
        monkeypatch.setattr(
            disk.shutil, "disk_usage",
            lambda path: Usage(2**40, 0, free) if os.stat(path).st_dev in near else usage(path),
        )  # fmt: skip

    return small


def test_what_cannot_fit_is_not_started(disk_of: Callable[[int], None], tmp_path: Path) -> None:
    disk_of(99_000_000)
    refused(large(), tmp_path, None, "the run writes 95.4 MiB (plain 100 x 977 KiB = 95.4 MiB)", "has 94.4 MiB free")
    disk_of(250_000_000)
    refused(large(3), tmp_path, None, "plain 300 x 977 KiB = 286 MiB")


def test_what_may_not_fit_is_a_warning(disk_of: Callable[[int], None], tmp_path: Path) -> None:
    disk_of(150_000_000)
    ran = run(large(), tmp_path)
    assert ran.code == 0
    assert "warning: the run writes up to 191 MiB before compression" in ran.output
    disk_of(250_000_000)
    ran = run(large(), tmp_path)
    assert "warning: the run writes" not in ran.output
    assert "to be saved before compression: plain 100 x 977 KiB = 95.4 MiB, small 100 x" in ran.output


def test_memspaces_count_as_far_as_they_are_not_there_yet(disk_of: Callable[[int], None], tmp_path: Path) -> None:
    text = mapped().replace('path: "a.bin"', 'path: "a.bin", size: 4 MiB')
    disk_of(3 << 20)
    refused(text, tmp_path, None, "memspace m of r0 4 MiB", "has 3 MiB free")
    disk_of(5 << 20)
    assert run(text, tmp_path).code == 0
    (tmp_path / "a.bin").write_bytes(bytes(4 << 20))  # as one that has been written to all over
    disk_of(3 << 20)
    ran = run(text, tmp_path)
    assert ran.code == 0, ran.output


def test_what_is_saved_and_what_is_free_is_told(disk_of: Callable[[int], None], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(large())
    disk_of(7 << 30)
    shown = lima2("plan", "p.yaml", cwd=tmp_path).stdout
    assert (
        "to be saved\n  plain  100 frames  977 KiB each  95.4 MiB\n  small  100 frames  977 KiB each  95.4 MiB" in shown
    )
    assert f"{tmp_path} has 7 GiB free" in shown
    figures = json.loads(lima2("plan", "p.yaml", "--format", "json", cwd=tmp_path).stdout)["volume"]
    assert figures["plain"] == {"frames": 100, "frame_bytes": 10**6, "bytes": 10**8, "less": False}
    assert figures["small"]["less"]
    shown = program("doctor", "p.yaml", cwd=tmp_path).stdout
    assert "plain 100 x 977 KiB = 95.4 MiB, small 100 x 977 KiB = 95.4 MiB" in shown
