"""Files of receivers that work together: partial frames, filtered channels, and one file that all of them write."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fabio
import h5py
import numpy as np
import pytest
import silx.io
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from silx.io import nxdata

from lima2cli.files import common_writer as common_rounds
from lima2cli.files.channel import Channel
from lima2cli.files.common_file import complete_common
from lima2cli.files.common_writer import CommonWriter
from lima2cli.files.frame_writer import FrameWriter
from lima2cli.files.master import write_master
from lima2cli.files.rows import DROPPED, INCOMPLETE, LOST, SAVED
from lima2cli.files.run_file import FlowRecord
from lima2cli.frames import Block
from lima2cli.geometry import Rect
from lima2cli.job.launch import find_mpiexec
from lima2cli.nodes.io_hdf5 import check_common
from lima2cli.transport.base import Stripes
from lima2cli.transport.inline import CollectiveTable, InlineCollectiveGroup
from tests import ROOT
from tests.artefacts_samples import START_NS, detector_group, make_block, make_channel, write_all
from tests.running import inspect_run

quiet = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _account(found: dict[str, Any]) -> tuple[int | None, ...]:
    account = found["channels"]["save"]
    if account["lost"] is not None:
        assert account["expected"] == account["saved"] + account["vetoed"] + account["dropped"] + account["lost"]
    return tuple(account[key] for key in ("expected", "saved", "vetoed", "dropped", "lost"))


# partial frames

PLACES = (Rect(0, 0, 4, 3), Rect(5, 0, 4, 3), Rect(0, 4, 9, 2))
"""Modules of frames of 9 x 6; column 4 and row 3 belong to nobody."""


def _write_parts(folder: Path, channel: Channel, held: Sequence[Iterable[int]]) -> None:
    for receiver, rows in enumerate(held):
        part, place = channel.part(receiver), channel.place(receiver)
        if not (numbers := [channel.rule.frame(k) for k in rows]):
            continue
        whole = make_block(channel, numbers)
        writer = FrameWriter(part, str(folder), receiver, START_NS)
        frames = whole.frames[(slice(None), *place.within(Rect(0, 0, 9, 6)))]
        writer.commit(writer.stage(Block(frames, whole.numbers, whole.times)))
        writer.close()


def _parts_channel(selected: int, **storage: Any) -> Channel:
    channel = make_channel(selected=selected, layout="virtual", frames_per_chunk=2, **storage)
    return replace(channel, receivers=(0, 1, 2), places=PLACES)


@quiet
@given(
    lost=st.tuples(*[st.sets(st.integers(0, 14))] * 3),
    per_file=st.sampled_from([0, 4]),
    step=st.integers(1, 3),
    known=st.booleans(),
)
def test_a_master_puts_parts_together(
    tmp_path_factory: pytest.TempPathFactory, lost: tuple[set[int], ...], per_file: int, step: int, known: bool
) -> None:
    folder, selected = tmp_path_factory.mktemp("run"), 15
    channel = _parts_channel(selected, frames_per_file=per_file, start=3, step=step)
    held = [[k for k in range(selected) if k not in gone] for gone in lost]
    _write_parts(folder, channel, held)
    absent = np.zeros((selected, 3), bool)
    for receiver, gone in enumerate(lost):
        absent[sorted(gone), receiver] = True
    told = np.where(absent.any(axis=1), np.where(np.arange(selected) % 2, LOST, DROPPED), SAVED).astype(np.uint8)
    path = write_master(
        channel, str(folder), rows=selected, statuses=told if known else None, totals={"expected": selected}
    )
    numbers = 3 + step * np.arange(selected)
    want = np.full((selected, 6, 9), 7, np.uint16)
    for receiver, place in enumerate(PLACES):
        inside = (slice(None), *place.within(Rect(0, 0, 9, 6)))
        shown = np.where(absent[:, receiver, None, None], 7, make_block(channel, numbers).frames[inside])
        want[inside] = shown
    missing, whole = absent.all(axis=1), ~absent.any(axis=1)
    status = np.where(whole, SAVED, np.where(missing & known, told, INCOMPLETE))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(detector_group(file)["data"][()], want)
        np.testing.assert_array_equal(detector_group(file)["frame_number"][()], numbers)
        np.testing.assert_array_equal(detector_group(file)["frame_status"][()], status)
    found = inspect_run(str(folder), verify=True)
    assert found["problems"] == []
    dropped = int(((told == DROPPED) & known).sum())
    assert _account(found) == (selected, whole.sum(), 0, dropped, selected - whole.sum() - dropped)
    flow = found["flows"]["FullDet1"]
    assert (flow["received"], flow["lost"], flow["dropped"]) == (whole.sum(), ((told == LOST) & known).sum(), dropped)
    os.remove(path)  # the frame files alone tell what was saved
    if all(held):
        found = inspect_run(str(folder))
        assert _account(found)[:2] == (selected, whole.sum())
        assert found["problems"] == ["maze_save_master.h5 is missing or unreadable: `lima2 recover` rebuilds it"]


def test_files_of_parts_say_where_they_lie(tmp_path: Path) -> None:
    channel = _parts_channel(2)
    _write_parts(tmp_path, channel, [range(2)] * 3)
    with h5py.File(tmp_path / "maze_save_1_00000.h5") as file:
        detector = detector_group(file)
        assert detector["data"].shape == (2, 3, 4)
        assert detector["image_operation/origin/x"][()] == 2 + 5  # the channel's own origin is (2, 1)
        assert detector["image_operation/origin/y"][()] == 1
        assert "pixel_mask" not in detector  # it has no column of the gap
    with h5py.File(tmp_path / "maze_save_2_00000.h5") as file:
        np.testing.assert_array_equal(detector_group(file)["pixel_mask"][()], np.arange(9) == [[4]] * 2)


def test_a_short_part_is_told(tmp_path: Path) -> None:
    channel = _parts_channel(4)
    _write_parts(tmp_path, channel, [range(4)] * 3)
    write_master(channel, str(tmp_path), rows=4, statuses=np.zeros(4, np.uint8))
    with h5py.File(tmp_path / "maze_save_2_00000.h5", "r+") as file:
        for name in ("data", "frame_number"):
            detector_group(file)[name].resize(3, axis=0)
    found = inspect_run(str(tmp_path))
    assert "maze_save_2_00000.h5 is short: it has 3 frames, maze_save_master.h5 needs more" in found["problems"]
    assert "save: frames 3 are marked saved but are in no file" in found["problems"]
    assert _account(found) == (4, 3, 0, 0, 1)


# filtered channels


@quiet
@given(
    kept=st.sets(st.integers(0, 39)),
    lost=st.sets(st.integers(0, 39)),
    receivers=st.sampled_from([(0,), (0, 1), (0, 1, 2), (0, 1, 0)]),
    blocks=st.integers(1, 3),
    step=st.integers(1, 3),
    per_file=st.sampled_from([0, 3]),
)
def test_a_filtered_master_has_a_row_for_each_saved_frame(
    tmp_path_factory: pytest.TempPathFactory,
    kept: set[int],
    lost: set[int],
    receivers: tuple[int, ...],
    blocks: int,
    step: int,
    per_file: int,
) -> None:
    folder, selected = tmp_path_factory.mktemp("run"), 40
    channel = make_channel(
        selected=selected, receivers=receivers, blocks=blocks, step=step, start=1, frames_per_file=per_file,
        frames_per_chunk=2, filtered=True,
    )  # fmt: skip
    saved = sorted(kept - lost)
    for receiver in set(receivers):
        own = [k for k in saved if receivers[k // blocks % len(receivers)] == receiver]
        if own:
            write_all(channel, str(folder), [channel.rule.frame(k) for k in own], receiver)
    statuses = np.zeros(selected, np.uint8)
    statuses[sorted(lost)] = [(LOST, DROPPED, INCOMPLETE)[k % 3] for k in sorted(lost)]
    vetoed = selected - len(kept | lost)
    totals = {"expected": selected, "vetoed": vetoed}
    counts = np.bincount(statuses, minlength=4).tolist()
    told = FlowRecord("FullDet1", 1, step, selected, *counts, statuses)
    path = write_master(channel, str(folder), rows=selected, statuses=statuses, totals=totals, flows=[told])
    numbers = 1 + step * np.array(saved, int)
    with h5py.File(path) as file:
        detector = detector_group(file)
        np.testing.assert_array_equal(detector["data"][()], make_block(channel, numbers).frames)
        np.testing.assert_array_equal(detector["frame_number"][()], numbers)
        np.testing.assert_array_equal(detector["frame_status"][()], np.zeros(len(saved)))
        np.testing.assert_allclose(detector["frame_time"][()], numbers * 1e-3, atol=1e-9)
    found = inspect_run(str(folder), verify=True)
    assert found["problems"] == []
    dropped = sum(k % 3 == 1 for k in lost)
    assert _account(found) == (selected, len(saved), vetoed, dropped, len(lost) - dropped)
    flow = found["flows"]["FullDet1"]  # what was vetoed has been received
    assert (flow["received"], flow["lost"], flow["dropped"], flow["missing"]) == tuple(
        np.bincount(statuses, minlength=4)
    )


def test_only_the_master_knows_what_was_vetoed(tmp_path: Path) -> None:
    channel = make_channel(selected=10, filtered=True)
    write_all(channel, str(tmp_path), [2, 3, 8])
    found = inspect_run(str(tmp_path))
    assert _account(found) == (10, 3, None, None, None)
    assert "save: no file tells how many frames were vetoed" in found["warnings"]
    write_master(channel, str(tmp_path), totals={"expected": 10})  # as after a kill
    found = inspect_run(str(tmp_path))
    assert found["problems"] == []
    assert "save: no file tells how many frames were vetoed" in found["warnings"]
    assert _account(found) == (10, 3, None, None, None)
    assert found["flows"]["FullDet1"]["received"] is None


def test_wrong_rows_of_a_filtered_channel_are_told(tmp_path: Path) -> None:
    channel = make_channel(selected=10, filtered=True, receivers=(0, 1))
    write_all(channel, str(tmp_path), [2, 8], 0)
    write_all(channel, str(tmp_path), [3, 5, 7], 1)
    write_master(channel, str(tmp_path), rows=10, statuses=np.zeros(10, np.uint8), totals={"vetoed": 5})
    assert inspect_run(str(tmp_path))["problems"] == []
    with h5py.File(tmp_path / "maze_save_1_00000.h5", "r+") as file:
        detector_group(file)["frame_number"][1] = 6
    assert inspect_run(str(tmp_path))["problems"] == [
        "maze_save_1_00000.h5: its frame numbers are not those that maze_save_master.h5 shows",
        "save: frames 5 are marked saved but are in no file",
    ]


def test_partial_frames_can_be_filtered(tmp_path: Path) -> None:
    channel = replace(_parts_channel(12), filtered=True)
    _write_parts(tmp_path, channel, [[1, 4, 9], [1, 4, 9], [1, 9]])
    path = write_master(channel, str(tmp_path), rows=12, statuses=np.zeros(12, np.uint8), totals={"vetoed": 9})
    with h5py.File(path) as file:
        np.testing.assert_array_equal(detector_group(file)["frame_number"][()], [1, 4, 9])
        np.testing.assert_array_equal(detector_group(file)["frame_status"][()], [SAVED, INCOMPLETE, SAVED])
        shown = detector_group(file)["data"][()]
    np.testing.assert_array_equal(shown[1, :3, :4], make_block(channel, [4]).frames[0, :3, :4])
    assert (shown[1, 4:] == 7).all()
    found = inspect_run(str(tmp_path))
    assert found["problems"] == []
    assert _account(found) == (12, 2, 9, 0, 1)


# common files


class _Disk(InlineCollectiveGroup):
    """A collective whose members' files may refuse to be opened or written."""

    refuses: str | None = None
    opened: list["_Disk"]

    def open_file(self, path: str, stripes: Stripes) -> Any:
        if self.refuses == "open":
            raise OSError(errno.EACCES, "not allowed", path)
        file = super().open_file(path, stripes)
        if self.refuses == "write":
            os.close(file._descriptor)
            file._descriptor = os.open(path, os.O_RDONLY)
        return file


def _common_channel(selected: int, receivers: tuple[int, ...], **more: Any) -> Channel:
    return make_channel(selected=selected, receivers=receivers, layout="common", compression="none", **more)


def _writers(channel: Channel, folder: Path, refuses: dict[int, str] | None = None) -> dict[int, CommonWriter]:
    members = tuple(sorted(set(channel.receivers)))
    table, writers = CollectiveTable(members), {}
    for receiver in members:
        collective = _Disk(table, receiver)
        collective.refuses = (refuses or {}).get(receiver)
        writers[receiver] = CommonWriter(channel, str(folder), receiver, START_NS, collective)
    return writers


def _run(
    channel: Channel,
    writers: dict[int, CommonWriter],
    lost: set[int] = frozenset(),  # type: ignore[assignment]
    rows: int | None = None,
    turns: Iterable[int] = (),
) -> list[str]:
    """Hand each receiver its frames, in blocks as large as ``turns`` say; what they complained of."""
    total = channel.selected if rows is None else rows
    assert total is not None
    rule, complaints, turn = channel.rule, [], iter(turns)
    left = {
        receiver: [k for k in range(total) if channel.receivers[k // rule.blocks % rule.buffers] == receiver]
        for receiver in writers
    }
    ended: set[int] = set()
    for _ in range(500):
        for receiver, writer in writers.items():
            try:
                writer.poll()
            except OSError as error:
                complaints.append(f"{receiver}: {error}")
            if receiver in ended or writer.full:
                continue
            size = next(turn, 3)
            own, left[receiver] = left[receiver][:size], left[receiver][size:]
            if block := [rule.frame(k) for k in own if k not in lost]:
                writer.commit(writer.stage(make_block(channel, block, strided=bool(size % 2))))
            if own:
                writer.advance(rule.frame(own[-1]) + 1)
            if not left[receiver]:
                writer.finish(total)
                ended.add(receiver)
        if ended == set(writers) and all(writer.done for writer in writers.values()):
            break
    else:
        raise AssertionError("it hangs")
    for writer in writers.values():
        writer.close()
        writer.close()
    return complaints


@pytest.fixture
def small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of two frames of each receiver."""
    monkeypatch.setattr(common_rounds, "ROUND_BYTES", 2 * 6 * 9 * 2)


@settings(quiet, max_examples=12)
@example(selected=1, receivers=(0, 1), blocks=1, start=0, step=1, lost=set(), stop=0, turns=[])
@example(selected=9, receivers=(0, 1), blocks=4, start=0, step=1, lost=set(), stop=6, turns=[1])
@given(
    selected=st.integers(1, 40),
    receivers=st.sampled_from([(0,), (0, 1), (1, 0), (2, 0, 1), (0, 1, 0), (0, 0, 1, 2)]),
    blocks=st.integers(1, 5),
    start=st.integers(0, 3),
    step=st.integers(1, 3),
    lost=st.sets(st.integers(0, 39)),
    stop=st.integers(0, 40),
    turns=st.lists(st.integers(1, 9), max_size=20),
)
@pytest.mark.usefixtures("small_rounds")
def test_a_common_file_is_what_one_receiver_would_write(
    tmp_path_factory: pytest.TempPathFactory,
    selected: int,
    receivers: tuple[int, ...],
    blocks: int,
    start: int,
    step: int,
    lost: set[int],
    stop: int,
    turns: list[int],
) -> None:
    folder, rows = tmp_path_factory.mktemp("run"), min(stop, selected)
    channel = _common_channel(selected, receivers, blocks=blocks, start=start, step=step)
    assert check_common(channel) is None
    lost = {k for k in lost if k < rows}
    assert _run(channel, _writers(channel, folder), lost, rows, turns) == []
    statuses = np.zeros(rows, np.uint8)
    statuses[sorted(lost)] = [(LOST, DROPPED, INCOMPLETE)[k % 3] for k in sorted(lost)]
    path = complete_common(channel, str(folder), rows=rows, statuses=statuses, totals={"expected": selected})
    assert os.listdir(folder) == ["maze_save_master.h5"]
    numbers = start + step * np.arange(rows)
    want = make_block(channel, numbers).frames
    want[sorted(lost)] = 7
    with h5py.File(path) as file:
        detector = detector_group(file)
        assert not detector["data"].is_virtual
        assert detector["data"].chunks is None
        np.testing.assert_array_equal(detector["data"][()], want)
        np.testing.assert_array_equal(detector["frame_number"][()], numbers)
        np.testing.assert_array_equal(detector["frame_status"][()], statuses)
        times = detector["frame_time"][()]
        assert set(np.flatnonzero(np.isnan(times))) == lost
        kept = np.setdiff1d(np.arange(rows), sorted(lost))
        np.testing.assert_allclose(times[kept], numbers[kept] * 1e-3, atol=1e-9)
    found = inspect_run(str(folder), verify=True)
    assert found["problems"] == []
    dropped = sum(k % 3 == 1 for k in lost)
    assert _account(found) == (selected, rows - len(lost), 0, dropped, len(lost) - dropped + selected - rows)
    assert found["channels"]["save"]["files"] == ["maze_save_master.h5"]


@pytest.mark.usefixtures("small_rounds")
def test_a_common_file_of_three_receivers_equals_that_of_one(tmp_path: Path) -> None:
    dumps = []
    for receivers in ((0,), (0, 1, 2)):
        folder = tmp_path / str(len(receivers))
        folder.mkdir()
        channel = _common_channel(20, receivers)
        _run(channel, _writers(channel, folder), {4, 5}, 17)
        path = complete_common(channel, str(folder), rows=17, totals={"expected": 20})
        with h5py.File(path) as file:
            dumps.append({name: item[()] for name, item in _datasets(file).items()})
        with silx.io.open(path) as file:
            np.testing.assert_array_equal(nxdata.get_default(file).signal[()], dumps[-1][DATA])
        image = fabio.open(path)
        assert image.nframes == 17
        np.testing.assert_array_equal(image.getframe(16).data, dumps[-1][DATA][16])
        image.close()
        if shutil.which("h5dump"):
            command = ["h5dump", "-d", DATA, "-y", path]
            dumps[-1]["h5dump"] = subprocess.run(command, capture_output=True, check=True).stdout.partition(b"\n")[2]
    one, three = dumps
    assert one.keys() == three.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], three[name], name)


DATA = "/entry_0000/instrument/remu/data"


def _datasets(file: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    file.visititems(lambda _, item: found.update({item.name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.usefixtures("small_rounds")
def test_a_disk_that_refuses_one_receiver_does_not_stop_the_others(tmp_path: Path, where: int) -> None:
    channel = _common_channel(30, (0, 1, 2))
    complaints = _run(channel, _writers(channel, tmp_path, {where: "write"}))
    assert len(complaints) == 1
    assert complaints[0].startswith(f"{where}: [Errno 9]")
    path = complete_common(channel, str(tmp_path), rows=30, statuses=np.zeros(30, np.uint8))
    status = np.zeros(30, np.uint8)
    status[where::3] = LOST
    status[:6] = LOST  # of the round in which it was refused nobody can be sure
    want = make_block(channel, range(30)).frames
    want[status == LOST] = 7
    with h5py.File(path) as file:
        np.testing.assert_array_equal(detector_group(file)["frame_status"][()], status)
        np.testing.assert_array_equal(detector_group(file)["data"][()], want)


@pytest.mark.parametrize("where", [0, 1])
def test_a_file_that_one_receiver_can_not_open_is_written_by_none(tmp_path: Path, where: int) -> None:
    channel = _common_channel(6, (0, 1))
    complaints = _run(channel, _writers(channel, tmp_path, {where: "open"}))
    assert sorted(complaints)[where] == f"{where}: [Errno 13] not allowed: '{tmp_path}/maze_save_master.h5.part'"
    assert "another receiver could not open it" in sorted(complaints)[1 - where]


def test_a_file_that_can_not_be_made_is_told_by_all(tmp_path: Path) -> None:
    channel = _common_channel(6, (0, 1))
    complaints = _run(channel, _writers(channel, tmp_path / "absent"))
    assert len(complaints) == 2
    assert "No such file or directory" in complaints[0]


@pytest.mark.usefixtures("small_rounds")
def test_a_receiver_that_is_ahead_waits(tmp_path: Path) -> None:
    channel = _common_channel(100, (0, 1))
    ahead, other = _writers(channel, tmp_path).values()
    for frame in range(0, 14, 2):  # the last one begins the fourth round
        assert not ahead.full
        ahead.commit(ahead.stage(make_block(channel, [frame])))
        ahead.poll()
        other.poll()
    assert ahead.full
    other.advance(100)
    while ahead.poll() or other.poll():
        pass
    assert not ahead.full


@pytest.mark.usefixtures("small_rounds")
def test_what_a_kill_leaves_is_recovered(tmp_path: Path) -> None:
    channel = _common_channel(30, (0, 1))
    writers = _writers(channel, tmp_path)
    for frame in range(11):
        writer = writers[frame % 2]
        writer.commit(writer.stage(make_block(channel, [frame])))
        for each in writers.values():
            each.poll()
    for writer in writers.values():
        writer.poll()
        writer.flush()
    found = inspect_run(str(tmp_path))
    assert "maze_save_master.h5 is missing or unreadable: `lima2 recover` rebuilds it" in found["problems"]
    assert _account(found)[:2] == (30, 8)  # two rounds
    for writer in writers.values():
        writer.close()
    complete_common(channel, str(tmp_path), totals={"expected": 30})
    found = inspect_run(str(tmp_path))
    assert found["problems"] == []
    assert _account(found)[:2] == (30, 8)


OVER_MPI = """
import sys
from mpi4py import MPI
from lima2cli.files import common_writer as common_rounds
from lima2cli.files.common_writer import CommonWriter
from lima2cli.transport.mpi_collective import MpiCollectiveGroup
from tests.artefacts_samples import START_NS, make_block, make_channel
world = MPI.COMM_WORLD
common_rounds.ROUND_BYTES = int(sys.argv[3])
channel = make_channel(
    height=int(sys.argv[2]), receivers=(0, 1, 2), blocks=2, selected=40, layout="common", compression="none"
)
collective = MpiCollectiveGroup(world, (0, 1, 2), 1)
writer = CommonWriter(channel, sys.argv[1], world.rank, START_NS, collective)
for frame in range(38):
    if frame // 2 % 3 == world.rank and frame not in (7, 20):
        while writer.full:
            writer.poll()
        writer.commit(writer.stage(make_block(channel, [frame])))
writer.finish(38)
while not writer.done:
    writer.poll()
writer.close()
collective.close()
"""


@pytest.mark.parametrize("height", [6, 4000])  # put together by the ranks, and written by each itself
def test_a_common_file_over_mpi(tmp_path: Path, height: int) -> None:
    mpiexec = find_mpiexec()
    if mpiexec is None:
        pytest.skip("there is no MPI here")
    command = [mpiexec, "-n", "3", sys.executable, "-m", "mpi4py", "-c", OVER_MPI, str(tmp_path)]
    rounds = 5 * height * 9 * 2
    subprocess.run([*command, str(height), str(rounds)], check=True, timeout=60, cwd=ROOT)
    channel = make_channel(
        height=height, receivers=(0, 1, 2), blocks=2, selected=40, layout="common", compression="none"
    )
    path = complete_common(channel, str(tmp_path), rows=38, totals={"expected": 40})
    want = make_block(channel, range(38)).frames
    want[[7, 20]] = 7
    with h5py.File(path) as file:
        np.testing.assert_array_equal(detector_group(file)["data"][()], want)
        status = detector_group(file)["frame_status"][()]
        assert np.flatnonzero(status).tolist() == [7, 20]
    assert inspect_run(str(tmp_path))["problems"] == []


def test_what_a_common_file_needs() -> None:
    for channel, words in (
        (_common_channel(5, (0,), filtered=True), "filter"),
        (replace(_common_channel(5, (0,)), selected=None), "known number"),
        (replace(_parts_channel(5), layout="common"), "parts"),
    ):
        misfit = check_common(channel)
        assert misfit is not None
        assert misfit.key == ("layout",)
        assert words in misfit.message
    assert check_common(make_channel(filtered=True)) is None
