"""Disks that are full: what was saved is there, the HDF5 library lives on, and `lima2 recover` mends the rest."""

import errno
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer

from lima2cli.accounting import summary
from lima2cli.accounting.acquisitions import LiveAcquisition
from lima2cli.accounting.summary import (
    RESERVE_BYTES,
    Summary,
    read_summary,
    release_ends,
    reserve_summary,
    write_summary,
)
from lima2cli.check import check_text
from lima2cli.cli.border import border
from lima2cli.errors import EnvironmentUnfit
from lima2cli.files import appending, common_file, master
from lima2cli.files import disk as room
from lima2cli.files.appending import BLOCK, level, reopenable
from lima2cli.files.common_file import complete_common, lay_out
from lima2cli.files.frame_writer import FrameWriter
from lima2cli.files.nexus import detector_path
from lima2cli.graph.operators import Writing
from lima2cli.job.launch import Log
from lima2cli.messages import Stats
from lima2cli.plan.figures import MOST_BYTES, end_bytes
from lima2cli.plan.ir import Plan
from lima2cli.runs.directory import make_another
from lima2cli.runs.ending import whole
from lima2cli.runs.ownership import RunNames
from tests import ROOT
from tests.artefacts_samples import make_block, make_channel
from tests.running import EXAMPLES, lima2, run

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _mounts() -> bool:
    """Return whether this user may mount a small disk where nobody else sees it."""
    own = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "--propagation", "private"]
    try:
        return not subprocess.run(
            [*own, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True
        ).returncode
    except FileNotFoundError:
        return False


def _searched(module: str, *options: str) -> str:
    """Words of a search for faults that finds none."""
    if not _mounts():
        pytest.skip("no right to mount a small disk")
    command = [sys.executable, "-m", f"tests.faults.{module}", *options]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("kind", "size"), [("files none", "1700"), ("parts zstd", "2200"), ("common", "3000")])
def test_what_was_saved_survives(kind: str, size: str) -> None:
    said = _searched("disk", "--kinds", kind, "--sizes", size)
    assert said.startswith("1 disks, exit codes {10: 1}"), said


def test_what_was_saved_survives_by_mpi() -> None:
    said = _searched("disk", "--kinds", "sparse bslz4", "--sizes", "2200", "--transport", "mpi")
    assert said.startswith("1 disks, exit codes {10: 1}"), said


@pytest.mark.parametrize("fault", ["fails", "no inodes"])
def test_a_disk_that_refuses(fault: str) -> None:
    if os.geteuid() or not os.path.exists("/dev/loop-control"):
        pytest.skip("no right to make a file system")
    assert _searched("refusals", "--faults", fault, "--transports", "inline") == "1 disks that refuse, 0 things wrong\n"


def test_what_a_refusal_means() -> None:
    full = f"save: {OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'runs/k/x.h5')}"
    assert room.advice(["some", full], "runs/k", whole=False) == [
        "the disk is full: make room, then `lima2 recover runs/k` makes what is missing"
    ]
    assert room.advice([full], "runs/k", whole=True) == ["the disk is full: make room"]
    assert room.advice(["[Errno 2] No such file", "[Errno 30] Read-only"], "k", whole=True)[0].startswith(
        "the disk is r"
    )
    assert room.advice(["[Errno 2] No such file"], "k", whole=False) == []


def _taken(path: Path) -> int:
    return path.stat().st_blocks * 512


KILLED = """
import os, sys
import numpy as np
from lima2cli.files.frame_writer import FrameWriter
from tests.artefacts_samples import make_block, make_channel
channel = make_channel(compression="none", frames_per_chunk=8)
writer = FrameWriter(channel, sys.argv[1], 0, 10**18)
writer.commit(writer.stage(make_block(channel, range(24))))
writer.flush()
os._exit(9)
"""


def test_recover_gives_back_what_a_killed_writer_had_taken(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    path = tmp_path / "maze_save_0_00000.h5"
    assert _taken(path) > path.stat().st_size + appending.AHEAD // 2
    assert reopenable(str(path))
    assert _taken(path) <= path.stat().st_size + BLOCK
    assert _numbers(path) == list(range(24))
    with path.open("r+b") as file:  # one that was ended, but for that
        room.allocate(file.fileno(), path.stat().st_size, path.stat().st_size + (1 << 20))
    content = path.read_bytes()
    assert not reopenable(str(path))
    assert _taken(path) <= path.stat().st_size + BLOCK
    assert path.read_bytes() == content


class _Disk:
    """Refuses room while ``full``."""

    full = False

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        had = room.allocate

        def allocate(descriptor: int, first: int, last: int) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            had(descriptor, first, last)

        for module in (room, common_file):
            monkeypatch.setattr(module, "allocate", allocate)


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> _Disk:
    return _Disk(monkeypatch)


def _numbers(path: Path) -> list[int]:
    with h5py.File(path) as file:
        detector = file[detector_path(make_channel())]
        assert len(detector["data"]) == len(detector["frame_number"]) == len(detector["frame_status"])
        numbers: list[int] = detector["frame_number"][()].tolist()
        np.testing.assert_array_equal(detector["data"][()], make_block(make_channel(), numbers).frames)
        return numbers


def _open_files() -> int:
    return int(h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE))


@pytest.mark.parametrize("before", [10, 4096, 5000])
def test_rows_of_earlier_flushes_stay(tmp_path: Path, small_disk: _Disk, before: int) -> None:
    """Also where rows of a second chunk of the index come."""
    channel = make_channel(compression="none", frames_per_chunk=64)
    writer = FrameWriter(channel, str(tmp_path), 0, 10**18)
    writer.commit(writer.stage(make_block(channel, range(before))))
    writer.flush()
    small_disk.full = True
    with pytest.raises(OSError, match="No space"):
        writer.commit(writer.stage(make_block(channel, range(before, before + 100))))
    with pytest.raises(OSError, match="after an error"):
        writer.commit(writer.stage(make_block(channel, range(before + 100, before + 200))))
    writer.close()
    assert _open_files() == 0
    assert _numbers(tmp_path / "maze_save_0_00000.h5") == list(range(before))


def test_a_chunk_of_numbers_that_is_refused_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        columns = appending.Columns(file, {"a": "uint64", "b": "float64"})
        columns.append((np.arange(1, 5), np.ones(4)))
        columns.write()
        columns.append((np.arange(5, 8), np.ones(3)))

        def refuse(target: Any, *_: Any) -> None:
            target.set_extent((7,))
            raise FULL

        with monkeypatch.context() as patch:
            patch.setattr(appending, "_extend", refuse)
            with pytest.raises(OSError, match="No space"):
                columns.write()
        assert len(file["a"]) == len(file["b"]) == 4
        columns.write()
        assert file["a"][()].tolist() == list(range(1, 8))


def _write(path: Path, size: int, disk: _Disk) -> None:
    with appending.written(str(path)) as file:
        file["x"] = np.arange(size)
        file.create_group("y").attrs["z"] = "some"
        disk.full = True


def test_files_that_are_refused_leave_nothing(tmp_path: Path, small_disk: _Disk) -> None:
    for size in (0, 1, 20_000):
        with pytest.raises(OSError, match="No space"):
            _write(tmp_path / "x.h5", size, small_disk)
        assert list(tmp_path.iterdir()) == []
        assert _open_files() == 0
        with pytest.raises(OSError, match="No space"), appending.written(str(tmp_path / "x.h5")):
            pytest.fail("there was no room for a beginning")
        small_disk.full = False


LEVEL = """
import sys
from lima2cli.files.appending import level
level(sys.argv[1])
"""


@pytest.mark.parametrize("codec", ["none", "zstd", "lz4", "bslz4", "blosc"])
def test_frames_without_numbers_are_cut_whatever_compressed_them(tmp_path: Path, codec: str) -> None:
    """In a process that has not loaded the filters."""
    channel = make_channel(compression=codec, frames_per_chunk=8)
    writer = FrameWriter(channel, str(tmp_path), 0, 10**18)
    writer.commit(writer.stage(make_block(channel, range(30))))
    writer.close()
    path = tmp_path / "maze_save_0_00000.h5"
    with h5py.File(path, "r+") as file:
        file[f"{detector_path(channel)}/frame_number"].resize(21, axis=0)
    environment = {key: value for key, value in os.environ.items() if key != "HDF5_PLUGIN_PATH"}
    command = [sys.executable, "-c", textwrap.dedent(LEVEL), str(path)]
    subprocess.run(command, check=True, env=environment | {"PYTHONPATH": str(ROOT)}, timeout=180)
    assert _numbers(path) == list(range(21))
    content = path.read_bytes()
    level(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize(("zeros", "left"), [(25, 25), (1, 1), (0, 1)])
def test_rows_whose_number_falls_back_to_zero_are_cut(tmp_path: Path, zeros: int, left: int) -> None:
    """Frame 0 may be the first row, and no other."""
    channel = make_channel(compression="none", frames_per_chunk=8)
    writer = FrameWriter(channel, str(tmp_path), 0, 10**18)
    writer.commit(writer.stage(make_block(channel, range(30))))
    writer.close()
    path = tmp_path / "maze_save_0_00000.h5"
    with h5py.File(path, "r+") as file:
        file[f"{detector_path(channel)}/frame_number"][zeros:] = 0
    level(str(path))
    assert _numbers(path) == list(range(left))


def test_frame_zero_is_not_made_up_for_another_receiver(tmp_path: Path) -> None:
    channel = make_channel(compression="none", frames_per_chunk=8, receivers=(0, 1), selected=60)
    writer = FrameWriter(channel, str(tmp_path), 1, 10**18)
    writer.commit(writer.stage(make_block(channel, range(1, 60, 2))))
    writer.close()
    path = tmp_path / "maze_save_1_00000.h5"
    with h5py.File(path, "r+") as file:
        file[f"{detector_path(channel)}/frame_number"][()] = 0
    level(str(path))
    assert _numbers(path) == []


def test_rows_whose_chunk_was_never_written_are_cut(tmp_path: Path) -> None:
    channel = make_channel(compression="none", frames_per_chunk=8)
    writer = FrameWriter(channel, str(tmp_path), 0, 10**18)
    writer.commit(writer.stage(make_block(channel, range(32))))
    writer.close()
    path = tmp_path / "maze_save_0_00000.h5"
    with h5py.File(path, "r+") as file:
        detector = file[detector_path(channel)]
        for name in ("frame_number", "frame_time", "frame_status", "data"):
            detector[name].resize(45, axis=0)
        detector["frame_number"][:] = np.arange(45)
    level(str(path))
    assert _numbers(path) == list(range(32))


@pytest.mark.parametrize("rows", [3, 0, None])
def test_a_common_file_that_had_no_room_at_all_is_made_empty(
    tmp_path: Path, small_disk: _Disk, rows: int | None
) -> None:
    channel = make_channel(compression="none", layout="common", selected=30)
    small_disk.full = True
    with pytest.raises(OSError, match="No space"):
        lay_out(channel, str(tmp_path), 10**18)
    with pytest.raises(OSError, match="No space"):
        complete_common(channel, str(tmp_path), rows=rows)
    small_disk.full = False
    path = Path(complete_common(channel, str(tmp_path), rows=rows))
    assert list(tmp_path.iterdir()) == [path]
    with h5py.File(path) as file:
        assert len(file[f"{detector_path(channel)}/data"]) == (rows or 0)
        assert file[f"{detector_path(channel)}/frame_status"][()].tolist() == [3] * (rows or 0)
    content = path.read_bytes()
    complete_common(channel, str(tmp_path), rows=rows)
    assert path.read_bytes() == content


def test_a_common_file_waits_for_room(tmp_path: Path, small_disk: _Disk) -> None:
    channel = make_channel(compression="none", layout="common", selected=30)
    small_disk.full = True
    with pytest.raises(OSError, match="No space"):
        lay_out(channel, str(tmp_path), 10**18)
    small_disk.full = False
    lay_out(channel, str(tmp_path), 10**18)
    part = tmp_path / "maze_save_master.h5.part"
    content = part.read_bytes()
    small_disk.full = True
    with pytest.raises(OSError, match="No space"):
        complete_common(channel, str(tmp_path), rows=30)
    assert part.read_bytes() == content
    assert _open_files() == 0
    small_disk.full = False
    path = Path(complete_common(channel, str(tmp_path), rows=30))
    content = path.read_bytes()
    assert complete_common(channel, str(tmp_path), rows=30) == str(path)  # repeating it changes nothing once
    assert path.read_bytes() == content


PIPELINE = """\
lima2: 1
name: k
detector: {remu: {image: {width: 64, height: 48}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 40}
nodes:
  save: {input: data, io_hdf5: {}}
  count: {input: data, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 8, height: 8}}}}}
"""


def test_ends_that_could_not_be_made_are_made_by_recover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(master, "written", full)
        ran = run(PIPELINE, tmp_path, "inline")
    assert ran.code == 10
    assert ran.summary["channels"]["save"]["dataset"] is None
    assert ran.summary["channels"]["save"]["saved"] == 40  # in the frame files
    help = f"the disk is full: make room, then `lima2 recover {ran.directory}` makes what is missing"
    assert help in ran.summary["problems"]
    assert f"problem: {help}" in ran.output
    done = lima2("recover", str(ran.directory), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing to recover" not in done.stdout
    assert ran.summary["channels"]["save"]["saved"] == 40
    assert lima2("inspect", "--verify", str(ran.directory), cwd=tmp_path).returncode == 0
    assert ran.summary["channels"]["save"]["lost"] == 0
    stale = json.dumps({"version": 1, "host": socket.gethostname(), "pid": 1, "started": "long ago"})
    for left in (stale, "", "\0\0"):  # which a disk had kept from being removed, or a machine that went down has left
        for name in ("control.json", ".control.json.part"):
            (ran.directory / name).write_text(left)
        again = lima2("recover", str(ran.directory), cwd=tmp_path)
        assert again.returncode == 0
        assert "nothing to recover" in again.stdout
        assert not [path for path in ran.directory.iterdir() if "control" in path.name]


def test_frames_whose_numbers_had_no_room_are_cut_though_masters_are_there(tmp_path: Path) -> None:
    ran = run(PIPELINE, tmp_path, "inline")
    assert whole(ran.directory) is not None
    with h5py.File(ran.directory / "k_save_0_00000.h5", "r+") as file:
        file[f"{detector_path(make_channel())}/frame_number"].resize(33, axis=0)
    told = ran.summary | {"state": "failed", "reason": "save: the disk was full"}
    (ran.directory / "summary.json").write_text(json.dumps(told))
    assert whole(ran.directory) is None
    assert lima2("recover", str(ran.directory), cwd=tmp_path).returncode == 0
    assert whole(ran.directory) is not None
    with h5py.File(ran.directory / "k_save_0_00000.h5") as file:
        assert len(file[f"{detector_path(make_channel())}/data"]) == 33


def test_of_partial_frames_as_many_are_told_as_are_whole() -> None:
    plan = _planned((EXAMPLES / "parts.yaml").read_text())
    acquisition = LiveAcquisition("runs/k", plan, {5, 6}, stats={5: Stats(saved={"raw": 40, "counters": 20})})
    assert acquisition.saved_totals(plan) == {"raw": 0, "counters": 20}
    acquisition.stats[6] = Stats(saved={"raw": 37, "counters": 20})
    assert acquisition.saved_totals(plan) == {"raw": 37, "counters": 40}


def test_the_summary_has_its_room(tmp_path: Path) -> None:
    reserve_summary(tmp_path)
    part = tmp_path / ".summary.json.part"
    assert part.stat().st_blocks * 512 >= RESERVE_BYTES
    place = part.stat().st_ino
    content = Summary(
        state="complete", reason="x" * 1000, file=None, frames=1, flows={}, channels={}, tables={}, seconds=1.0
    )
    write_summary(tmp_path, content)
    made = tmp_path / "summary.json"
    assert made.stat().st_ino == place
    assert made.stat().st_blocks * 512 < RESERVE_BYTES
    assert list(tmp_path.iterdir()) == [made]
    assert read_summary(tmp_path) == content
    write_summary(tmp_path, content)  # where nothing was reserved


def test_masters_and_tables_have_their_room(tmp_path: Path) -> None:
    reserve_summary(tmp_path, 1 << 20)
    part = tmp_path / ".summary.json.part"
    assert _taken(part) >= RESERVE_BYTES + (1 << 20)
    release_ends(tmp_path)
    assert RESERVE_BYTES <= _taken(part) < 2 * RESERVE_BYTES
    write_summary(
        tmp_path,
        Summary(state="complete", reason=None, file=None, frames=1, flows={}, channels={}, tables={}, seconds=1),
    )
    assert _taken(tmp_path / "summary.json") < RESERVE_BYTES
    release_ends(tmp_path)  # nothing is there
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def _planned(text: str) -> Plan:
    plan = check_text(text, "k.yaml", Path(), cores=2, environment={}).plan
    assert plan is not None
    return plan


def test_the_room_for_the_end_is_that_of_masters_and_tables(tmp_path: Path) -> None:
    ran = run(PIPELINE, tmp_path, "inline")
    made = [ran.directory / f"{name}.h5" for name in ("k", "k_save_master", "k_count")]
    plan = _planned(PIPELINE)
    assert sum(map(_taken, made)) + appending.WHOLE_MARGIN < end_bytes(plan) < 8 * sum(map(_taken, made)) + (1 << 20)
    assert end_bytes(_planned(PIPELINE.replace("frames: 40", "frames: 1000000000"))) == MOST_BYTES


def test_another_acquisition_without_room_leaves_nothing(tmp_path: Path, small_disk: _Disk, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise FULL

    (tmp_path / "first").mkdir()
    for name in ("pipeline.yaml", "plan.json"):
        (tmp_path / "first" / name).touch()
    monkeypatch.setattr(summary, "allocate", refuse)
    with pytest.raises(EnvironmentUnfit, match="No space"):
        make_another(tmp_path / "first", f"{tmp_path}/runs/k_{{run:04d}}", RunNames("k"))
    assert not (tmp_path / "runs/k_0001").exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o027, 0o640)])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        ran = run(PIPELINE, tmp_path, "inline")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in ran.directory.iterdir()} == {mode}


@pytest.mark.parametrize(("error", "code"), [(errno.EIO, 10), (errno.ENOSPC, 10), (errno.EDQUOT, 10), (errno.EBADF, 3)])
def test_a_disk_that_refuses_is_no_bug(error: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, border(as_json=False, debug=False):
        raise OSError(error, os.strerror(error), "runs/k/x.h5")
    assert ended.value.exit_code == code
    assert ("this is a bug" in capsys.readouterr().err) == (code == 3)


def test_a_log_that_can_not_be_written_ends_nothing(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(b"one\n")
    assert log.lines() == ["one"]
    os.dup2(os.open(tmp_path / "lima2.log", os.O_RDONLY), log.fileno())  # EBADF from now on
    log.write(b"two\n")
    assert log.lines() == ["one"]
    os.dup2(os.open(tmp_path, os.O_RDONLY), log.fileno())
    log.write(b"three\n")
    assert log.lines() == []
    log.close()


class _Refusing:
    """A writer whose flush fails."""

    def __init__(self) -> None:
        self.full = False

    def stage(self, block: Any) -> Any:
        return block

    def commit(self, staged: Any) -> int:
        return int(staged)

    def flush(self) -> None:
        if self.full:
            raise FULL

    close = flush


def test_only_what_was_flushed_is_told_saved() -> None:
    writing, writer = Writing("save"), _Refusing()
    writing._writer = writer
    writing.commit(3)
    assert writing.saved == 0
    writing.flush()
    assert writing.saved == 3
    writing.commit(4)
    writer.full = True
    with pytest.raises(OSError, match="No space"):
        writing.flush()
    writer.full = False
    writing.close()
    assert writing.saved == 3
