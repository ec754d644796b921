"""Run directories: their names, what is never overwritten, what is found in them, and how broken ones are mended."""

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lima2cli.errors import EnvironmentUnfit
from lima2cli.files.rows import SAVED
from lima2cli.runs.directory import make_directory
from tests.running import TRANSPORTS, Live, Ran, lima2, run, truth

NOW = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)


def make(template: str, if_exists: str = "abort") -> str:
    return str(make_directory(template, "maze", if_exists, NOW))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_numbers_go_on_from_the_highest_and_latest_points_to_the_newest() -> None:
    assert make("runs/{name}_{run:04d}") == "runs/maze_0001"
    Path("runs/maze_0041").mkdir()
    Path("runs/other_0099").mkdir()
    assert make("runs/{name}_{run:04d}") == "runs/maze_0042"
    assert os.readlink("runs/latest") == "maze_0042"


def test_other_fields() -> None:
    assert make("data/{date}/{name}-{time}") == "data/2024-05-06/maze-070809"
    assert make("a/{uuid}") != make("a/{uuid}")
    assert make("n{run}/{name}") == "n1/maze"
    assert make("n{run}/{name}") == "n2/maze"


def test_runs_that_start_at_the_same_time_get_different_numbers() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make("runs/{name}_{run:04d}"), range(40)))
    assert sorted(made) == [f"runs/maze_{number:04d}" for number in range(1, 41)]


def test_a_directory_that_exists_is_never_written_into_unasked() -> None:
    assert make("fixed") == "fixed"
    with pytest.raises(EnvironmentUnfit, match="fixed exists"):
        make("fixed")


def test_only_run_directories_are_overwritten() -> None:
    folder = Path("fixed")
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    with pytest.raises(EnvironmentUnfit, match="not a run directory of lima2"):
        make("fixed", "overwrite")
    (folder / "summary.json").unlink()
    claim = make_directory("fixed", "maze", "overwrite", NOW)  # empty
    (folder / "summary.json").write_text("{}")
    claim.release()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(EnvironmentUnfit, match=r"has not written \(thesis\.tex\)"):
        make("fixed", "overwrite")
    assert sorted(os.listdir(folder)) == [".lima2-run", "summary.json", "thesis.tex"]
    (folder / "thesis.tex").unlink()
    claim = make_directory("fixed", "maze", "overwrite", NOW)
    assert os.listdir(folder) == [".lima2-run"]
    assert sorted(os.listdir("fixed.old")) == [".lima2-run", "summary.json"]
    assert claim.keep() == []
    assert not Path("fixed.old").exists()


def test_what_cannot_be_made_is_said() -> None:
    Path("file").write_text("")
    with pytest.raises(EnvironmentUnfit, match="cannot make the run directory"):
        make("file/{name}_{run}")
    with pytest.raises(EnvironmentUnfit, match="is not a directory"):
        make("file", "overwrite")


PIPELINE = """
lima2: 1
detector: {remu: {image: {width: 40, height: 30}, datasets: {D: {dtype: uint16}}, scene: {counter: {}}}}
acquisition:
  frames: ${LIMA2_TEST_FRAMES:-60}
receivers: 2
nodes:
  save: {input: D, io_hdf5: {frames_per_file: 10}}
  log: {input: D, checkpoint: {}}
"""


@pytest.fixture
def ran(tmp_path: Path) -> Ran:
    """A complete run."""
    ran = run(PIPELINE, tmp_path, "inline", name="maze")
    assert ran.code == 0, ran.output
    truth(ran)
    return ran


def inspect(ran: Ran, *options: str) -> tuple[int, str]:
    done = lima2("inspect", str(ran.directory), *options, cwd=ran.directory)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_inspect_of_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.h5").write_text("")
    said = {
        "nowhere": "no such directory: nowhere",
        "empty": "empty is not a run directory",
        "file.h5": "no such directory",
    }
    for path, message in said.items():
        done = lima2("inspect", path, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stdout == ""


def test_inspect_tells_of_a_file_that_is_gone(ran: Ran) -> None:
    (ran.directory / "maze_save_1_00001.h5").unlink()
    code, output = inspect(ran)
    assert code == 0
    assert "maze_save_1_00001.h5 is missing" in output
    assert inspect(ran, "--verify")[0] == 10
    found = json.loads(inspect(ran, "--format", "json")[1])
    assert found["channels"]["save"]["saved"] == 50
    assert found["channels"]["save"]["lost"] == 10


def test_inspect_tells_of_a_file_that_was_cut(ran: Ran) -> None:
    path = ran.directory / "maze_save_0_00002.h5"
    os.truncate(path, path.stat().st_size // 2)
    code, output = inspect(ran, "--verify")
    assert code == 10
    assert "maze_save_0_00002.h5" in output


def test_inspect_tells_of_a_master_and_a_table_that_are_gone_or_cut(ran: Ran) -> None:
    (ran.directory / "maze_save_master.h5").unlink()
    os.truncate(ran.directory / "maze_log.h5", 1000)
    code, output = inspect(ran, "--verify")
    assert code == 10
    assert "maze_save_master.h5 is missing" in output
    assert "maze_log.h5" in output


def test_recover_leaves_a_complete_run_as_it_is(ran: Ran) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in ran.directory.iterdir()}
    done = lima2("recover", str(ran.directory), cwd=ran.directory)
    assert done.returncode == 0
    assert "nothing to recover" in done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in ran.directory.iterdir()} == before


def test_recover_refuses_what_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    for path in (".", "nowhere", "notes.txt"):
        done = lima2("recover", path, cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        assert "is not a run directory" in done.stderr


def test_recover_rebuilds_what_the_end_of_a_run_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overrides, variables and the folder of the file are those of the run, wherever it is recovered from."""
    monkeypatch.setenv("LIMA2_TEST_FRAMES", "48")
    ran = run(PIPELINE, tmp_path, "inline", "--set", "nodes.save.io_hdf5.frames_per_file=7", name="maze")
    monkeypatch.delenv("LIMA2_TEST_FRAMES")
    for name in ("summary.json", "maze_save_master.h5", "maze.h5"):
        (ran.directory / name).unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = lima2("recover", str(ran.directory), cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = truth(ran)
    assert summary["reason"] == "the run was aborted; its files were recovered"
    assert summary["flows"]["D"]["received"] == summary["channels"]["save"]["saved"] == 48
    assert (ran.directory / "maze_log.h5").exists()


CALIBRATED = """
lima2: 1
name: c
detector: {remu: {image: {width: 64, height: 48}, datasets: {D: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 0, period: 1 ms}
nodes:
  clean: {input: D, background_sub: {image: dark.npy}}
  raw: {input: D, io_hdf5: {frames_per_file: 20}}
  save: {input: clean, io_hdf5: {frames_per_chunk: 10}}
  log: {input: clean, checkpoint: {}}
"""


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.launch
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_recover_needs_nothing_but_the_run_directory(transport: str, tmp_path: Path) -> None:
    """All processes are killed, the directory is moved, what the pipeline was made from is gone; once is enough."""
    np.save(tmp_path / "dark.npy", np.full((48, 64), 3, np.uint16))
    live = Live(CALIBRATED, tmp_path, transport)
    live.wait_until_saved(100)
    live.process.kill()
    for rank in live.ranks:
        with suppress(psutil.NoSuchProcess):
            rank.kill()
    live.end()
    assert live.survivors() == []
    moved = tmp_path / "elsewhere" / "kept"
    moved.parent.mkdir()
    (tmp_path / "runs" / "c_0001").rename(moved)
    for path in ("dark.npy", "pipeline.yaml", "elsewhere/kept/pipeline.yaml"):
        (tmp_path / path).unlink()
    done = lima2("recover", "kept", cwd=moved.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = Ran(0, "", moved)
    summary = truth(ran)
    assert (summary["state"], summary["reason"]) == ("failed", "the run was aborted; its files were recovered")
    raw, clean = ran.saved("raw"), ran.saved("save")
    np.testing.assert_array_equal(raw[1], clean[1])  # both end with the last frame that is known
    both = (raw[2] == SAVED) & (clean[2] == SAVED)
    assert np.count_nonzero(both) > 20
    np.testing.assert_array_equal(clean[0][both], raw[0][both].astype(np.float32) - 3)
    assert summary["tables"]["log"]["rows"] > 20
    before = contents(moved)
    again = lima2("recover", "kept", cwd=moved.parent)
    assert (again.returncode, "nothing to recover" in again.stdout) == (0, True), again.stdout + again.stderr
    assert contents(moved) == before


def test_recover_loads_no_compiler(ran: Ran) -> None:
    (ran.directory / "summary.json").unlink()
    code = f"""if True:
        import sys
        from lima2cli.cli import app
        try:
            app(["recover", {str(ran.directory)!r}])
        except SystemExit as error:
            print("code", error.code)
        print(sorted(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "code 0" in done.stdout, done.stdout + done.stderr
    loaded = [name for name in COMPILER if f"'{name}'" in done.stdout]
    assert not loaded


COMPILER = ("lima2cli.check", "lima2cli.plan.compile", "lima2cli.language.pipeline", "lima2cli.inputs", "jsonschema")

DAMAGES = {
    "no record": (lambda kept: kept.pop("recovery"), "has no `recovery`"),
    "another version": (lambda kept: kept["recovery"].update(version=7), "it is of version 7, made by lima2 "),
    "no object": (lambda kept: kept.update(recovery=[1]), "it is damaged"),
    "a number": (lambda kept: kept["recovery"]["record"]["channels"]["save"].update(width=41), "it is damaged"),
    "a name": (lambda kept: kept["recovery"]["record"].update(name="m"), "it is damaged"),
    "a key": (lambda kept: kept["recovery"]["record"]["channels"]["save"].pop("mask"), "it is damaged"),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGES.values(), ids=DAMAGES)
def test_recover_refuses_a_record_that_is_not_as_it_was_written(
    damage: Callable[[dict[str, Any]], None], why: str, ran: Ran
) -> None:
    (ran.directory / "summary.json").unlink()
    kept = json.loads((ran.directory / "plan.json").read_text())
    damage(kept)
    (ran.directory / "plan.json").write_text(json.dumps(kept))
    before = contents(ran.directory)
    done = lima2("recover", str(ran.directory), cwd=ran.directory)
    assert done.returncode == 2, done.stdout
    assert why in done.stderr
    assert "plan.json" in done.stderr
    assert contents(ran.directory) == before


def test_recover_needs_of_the_plan_the_record_alone(ran: Ran) -> None:
    (ran.directory / "summary.json").unlink()
    kept = json.loads((ran.directory / "plan.json").read_text())
    (ran.directory / "plan.json").write_text(json.dumps({"recovery": kept["recovery"]}))
    done = lima2("recover", str(ran.directory), cwd=ran.directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((ran.directory / "summary.json").read_text())["channels"]["save"]["lost"] == 0
