"""Masters, tables, the linking file, and the accounting that is made of them."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
import silx.io
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nexusformat.nexus import nxload
from silx.io import nxdata

from lima2cli.files.appending import reopenable
from lima2cli.files.frame_writer import FrameWriter
from lima2cli.files.master import write_master
from lima2cli.files.master_rows import pieces, rows
from lima2cli.files.rows import DROPPED, INCOMPLETE, LOST, ranges
from lima2cli.files.run_file import write_links
from lima2cli.files.tables import TableWriter, merge_tables
from lima2cli.geometry import locate
from tests import ROOT
from tests.artefacts_samples import START_NS, detector_group, make_block, make_channel, make_rule, make_table, write_all
from tests.running import inspect_run

assert hdf5plugin  # registers the filters for h5py


def _write(folder: Path, channel, lost: set[int] = frozenset()) -> None:  # type: ignore[no-untyped-def, assignment]
    """The frame files of a channel whose rows ``lost`` did not arrive, as its rule sends frames to receivers."""
    held: dict[int, list[int]] = {}
    for k in range(channel.selected):
        place = locate(channel.rule, channel.rule.frame(k))
        assert place is not None
        if k not in lost:
            held.setdefault(channel.receivers[place.buffer], []).append(channel.rule.frame(k))
    for receiver, numbers in held.items():
        write_all(channel, str(folder), numbers, receiver)


@settings(max_examples=12)
@given(
    selected=st.integers(1, 40),
    receivers=st.sampled_from([(0,), (0, 1), (1, 0), (0, 1, 2), (0, 1, 0, 1), (0, 0, 1), (0, 0, 1, 0, 1)]),
    blocks=st.integers(1, 5),
    per_file=st.integers(0, 6),
    start=st.integers(0, 5),
    step=st.integers(1, 4),
    lost=st.sets(st.integers(0, 39)),
)
def test_a_master_shows_every_saved_frame_in_its_row(
    tmp_path_factory: pytest.TempPathFactory,
    selected: int,
    receivers: tuple[int, ...],
    blocks: int,
    per_file: int,
    start: int,
    step: int,
    lost: set[int],
) -> None:
    folder = tmp_path_factory.mktemp("run")
    channel = make_channel(
        selected=selected,
        receivers=receivers,
        blocks=blocks,
        frames_per_file=per_file,
        frames_per_chunk=2,
        start=start,
        step=step,
    )
    lost = {k for k in lost if k < selected}
    _write(folder, channel, lost)
    statuses = np.zeros(selected, np.uint8)
    statuses[list(lost)] = [(LOST, DROPPED, INCOMPLETE)[k % 3] for k in lost]
    totals = {"expected": selected, "received": selected - len(lost)}
    path = write_master(channel, str(folder), rows=selected, statuses=statuses, totals=totals)
    numbers = start + step * np.arange(selected)
    want = make_block(channel, numbers).frames
    want[sorted(lost)] = 7
    with h5py.File(path) as file:
        detector = detector_group(file)
        np.testing.assert_array_equal(detector["data"][()], want)
        np.testing.assert_array_equal(detector["frame_number"][()], numbers)
        np.testing.assert_array_equal(detector["frame_status"][()], statuses)
        times = detector["frame_time"][()]
        assert set(np.flatnonzero(np.isnan(times))) == lost
        kept = np.setdiff1d(np.arange(selected), sorted(lost))
        np.testing.assert_allclose(times[kept], numbers[kept] * 1e-3, atol=1e-9)
    found = inspect_run(str(folder), verify=True)
    assert found["problems"] == []
    flow = found["flows"]["FullDet1"]
    assert flow["expected"] == selected == flow["received"] + flow["lost"] + flow["dropped"] + flow["missing"]
    assert flow["received"] == selected - len(lost)
    assert (flow["lost"], flow["dropped"], flow["missing"]) == tuple(np.bincount(statuses, minlength=4)[1:])
    absent = [n for first, last, by in flow["missing_frames"] for n in range(first, last + 1, by)]
    assert absent == [start + step * k for k in sorted(lost)]
    account = found["channels"]["save"]
    assert account["saved"] == selected - len(lost)
    assert account["expected"] == account["saved"] + account["vetoed"] + account["dropped"] + account["lost"]
    # nothing but the frame files: the same frames, and it is said that the master is gone
    os.remove(path)
    assume(len(lost) < selected)
    found = inspect_run(str(folder))
    assert any("master.h5 is missing" in problem for problem in found["problems"])
    assert found["channels"]["save"]["saved"] == selected - len(lost)
    assert found["flows"]["FullDet1"]["expected"] == selected


@given(target=st.sets(st.integers(0, 60)))
def test_pieces_cover_all_rows_once(target: set[int]) -> None:
    wanted = np.array(sorted(target), np.int64)
    _check_pieces(wanted)


def _check_pieces(wanted: np.ndarray) -> None:  # type: ignore[type-arg]
    found = pieces(wanted, wanted % 3)
    to = [rows(p.target, p.target_stride, p.count, p.block) for p in found]
    of = [rows(p.source, p.source_stride, p.count, p.block) for p in found]
    source = np.concatenate([np.empty(0, np.int64), *of])
    np.testing.assert_array_equal(np.sort(source), np.arange(len(wanted)))
    np.testing.assert_array_equal(np.concatenate([np.empty(0, np.int64), *to]), wanted[source])


@given(order=st.permutations(range(12)))
def test_pieces_of_frames_in_any_order(order: list[int]) -> None:
    _check_pieces(np.array(order, np.int64))


@pytest.mark.parametrize(
    ("receivers", "blocks", "most"),
    [((0,), 1, 1), ((0, 1, 2), 1, 1), ((0, 1), 4, 2), ((0, 1, 0, 1), 3, 2), ((0, 0, 1, 0, 1), 2, 8)],
)
def test_regular_rows_are_few_pieces_however_many(receivers: tuple[int, ...], blocks: int, most: int) -> None:
    channel = make_channel(selected=100_001, receivers=receivers, blocks=blocks)
    k = np.arange(100_001)
    buffer = k // blocks % len(receivers)
    mine = k[np.array(receivers)[buffer] == 0]
    assert len(pieces(mine, buffer[mine])) <= most
    assert channel.rule.buffers == len(receivers)


def test_a_lost_row_costs_one_piece() -> None:
    wanted = np.delete(np.arange(0, 3000, 3), [200, 500, 700])
    assert len(pieces(wanted)) == 4


def test_many_irregular_losses_are_few_mappings(tmp_path: Path) -> None:
    channel = make_channel(height=2, width=3, selected=6000, receivers=(0, 1), frames_per_chunk=500)
    kept = np.flatnonzero(np.random.default_rng(1).random(6000) < 0.7)
    for receiver in (0, 1):
        write_all(channel, str(tmp_path), kept[kept % 2 == receiver], receiver)
    statuses = np.ones(6000, np.uint8)
    statuses[kept] = 0
    path = write_master(channel, str(tmp_path), rows=6000, statuses=statuses, totals={"expected": 6000})
    want = make_block(channel, range(6000)).frames
    want[statuses != 0] = 7
    with h5py.File(path) as file:
        data = detector_group(file)["data"]
        assert len(data.virtual_sources()) < 100
        np.testing.assert_array_equal(data[()], want)
        np.testing.assert_array_equal(data[2345], want[2345])
    assert inspect_run(str(tmp_path))["problems"] == []
    with h5py.File(tmp_path / "maze_save_0_00000.h5", "r+") as file:
        numbers = detector_group(file)["frame_number"]
        numbers[100:102] = numbers[100:102][::-1]
    assert inspect_run(str(tmp_path))["problems"] == [
        "maze_save_0_00000.h5: its frame numbers are not those that maze_save_master.h5 shows"
    ]


def test_a_million_rows(tmp_path: Path) -> None:
    channel = make_channel(height=1, width=2, selected=1_000_000, receivers=(0, 1), frames_per_chunk=50_000)
    for receiver in (0, 1):
        writer = FrameWriter(channel, str(tmp_path), receiver, START_NS)
        for first in range(receiver, 1_000_000, 100_000):
            writer.commit(writer.stage(make_block(channel, range(first, first + 100_000, 2))))
        writer.close()
    begin = time.process_time()
    path = write_master(channel, str(tmp_path), rows=1_000_000)
    with h5py.File(path) as file:
        data = detector_group(file)["data"]
        assert len(data.virtual_sources()) == 2
        np.testing.assert_array_equal(data[777_777], make_block(channel, [777_777]).frames[0])
    assert inspect_run(str(tmp_path))["problems"] == []
    assert time.process_time() - begin < 20


def test_readers_find_the_image_of_master_and_links(tmp_path: Path) -> None:
    channel = make_channel(selected=6, receivers=(0, 1), frames_per_chunk=2)
    other = make_channel(selected=3, node="half", height=4)
    _write(tmp_path, channel)
    _write(tmp_path, other)
    masters = [write_master(c, str(tmp_path), rows=c.selected) for c in (channel, other)]
    table = _table(tmp_path)
    moved = tmp_path / "moved"
    link = write_links("maze", str(tmp_path), masters, [table])
    moved.mkdir()
    for file in list(tmp_path.glob("*.h5")):
        shutil.move(file, moved)  # all names are relative
    want = make_block(channel, range(6)).frames
    for path in (moved / Path(masters[0]).name, moved / Path(link).name):
        with silx.io.open(str(path)) as file:
            plot = nxdata.get_default(file)
            np.testing.assert_array_equal(plot.signal[()], want)
            assert plot.signal.attrs["interpretation"] == "image"
        image = fabio.open(str(path))
        assert image.nframes == 6
        np.testing.assert_array_equal(image.getframe(5).data, want[5])
        image.close()
        tree = nxload(str(path))
        np.testing.assert_array_equal(tree.plottable_data.nxsignal[4].nxdata, want[4])
    with h5py.File(moved / "maze.h5") as file:
        np.testing.assert_array_equal(file["entry_0000/half/data"][()], make_block(other, range(3)).frames)
        assert len(file["entry_0000/measurement/counters/door_sum"]) == 9
        assert len(file["entry_0000/counters/door_sum"]) == 9


def _table(folder: Path) -> str:
    channel = make_table(receivers=(0, 1), units={"door_avg": "counts"})
    for receiver in (1, 0):
        writer = TableWriter(channel, str(folder), receiver)
        for first in range(receiver, 9, 4):
            numbers = np.arange(first, min(first + 3, 9), 2, dtype=np.uint64)
            writer.append(numbers, {name: numbers.astype(dtype) * 2 for name, dtype in channel.columns.items()})
            writer.flush()
        writer.close()
        writer.close()
    return merge_tables(channel, str(folder))


def test_tables_are_merged_in_frame_order(tmp_path: Path) -> None:
    path = _table(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["maze_counters.h5"]
    with h5py.File(path) as file:
        columns = file["entry_0000/measurement"]
        np.testing.assert_array_equal(columns["frame_number"][()], np.arange(9))
        for name, dtype in make_table().columns.items():
            assert columns[name].dtype == dtype
            np.testing.assert_array_equal(columns[name][()], 2 * np.arange(9))
        assert columns["door_avg"].attrs["units"] == "counts"
    with silx.io.open(path) as file:
        plot = nxdata.get_default(file)
        assert plot.is_curve
        assert plot.signal_name == "door_sum"
        np.testing.assert_array_equal(plot.axes[0][()], np.arange(9))
    curve = nxload(path).plottable_data
    np.testing.assert_array_equal(curve.nxsignal.nxdata, 2 * np.arange(9))
    found = inspect_run(str(tmp_path))
    assert found["problems"] == []
    assert found["flows"]["FullDet1"]["received"] == 9


def test_a_table_without_rows(tmp_path: Path) -> None:
    writer = TableWriter(make_table(), str(tmp_path), 0)
    writer.flush()
    writer.close()
    with h5py.File(merge_tables(make_table(), str(tmp_path))) as file:
        assert file["entry_0000/measurement/door_sum"].shape == (0,)


def test_many_small_and_one_large_append(tmp_path: Path) -> None:
    channel = make_table(columns={"a": "float64"}, default=None)
    writer = TableWriter(channel, str(tmp_path), 0)
    sizes = [1] * 300 + [9000, 5, 4096]
    first = 0
    for size in sizes:
        numbers = np.arange(first, first + size, dtype=np.uint64)
        writer.append(numbers, {"a": numbers * 0.5})
        first += size
    writer.close()
    with h5py.File(merge_tables(channel, str(tmp_path))) as file:
        np.testing.assert_array_equal(file["entry_0000/measurement/a"][()], np.arange(first) * 0.5)
        assert file["entry_0000"].attrs["default"] == "plot"


TABLE_WRITES_FOREVER = """
import itertools, sys
import numpy as np
from lima2cli.files.rows import ranges
from lima2cli.files.appending import reopenable
from lima2cli.files.tables import TableWriter
from tests.artefacts_samples import make_table
writer = TableWriter(make_table(), sys.argv[1], 0)
for i in itertools.count():
    numbers = np.arange(i * 3, i * 3 + 3, dtype=np.uint64)
    writer.append(numbers, {name: numbers.astype(dtype) for name, dtype in make_table().columns.items()})
    if i % 7 == 0:
        writer.flush()
        print(i * 3 + 3, flush=True)
"""


def test_a_kill_leaves_the_rows_that_were_flushed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TABLE_WRITES_FOREVER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        flushed = [int(child.stdout.readline()) for _ in range(40)][-1]
        child.kill()
    with pytest.raises(OSError, match="already open for write"):
        merge_tables(make_table(), str(tmp_path))
    assert "maze_counters_0_rows.h5" in os.listdir(tmp_path)
    assert reopenable(str(tmp_path / "maze_counters_0_rows.h5"))
    with h5py.File(merge_tables(make_table(), str(tmp_path))) as file:
        columns = file["entry_0000/measurement"]
        rows = len(columns["frame_number"])
        assert rows >= flushed
        for name in make_table().columns:
            np.testing.assert_array_equal(columns[name][()], np.arange(rows).astype(columns[name].dtype))


def test_an_unreadable_frame_file_does_not_take_the_master(tmp_path: Path) -> None:
    channel = make_channel(selected=20, receivers=(0, 1))
    _write(tmp_path, channel)
    (tmp_path / "maze_save_1_00000.h5").write_bytes(b"nothing")
    with pytest.raises(OSError, match=r"master\.h5 was written without maze_save_1_00000\.h5"):
        write_master(channel, str(tmp_path), rows=20)
    with h5py.File(tmp_path / "maze_save_master.h5") as file:
        np.testing.assert_array_equal(detector_group(file)["frame_status"][()], [0, 3] * 10)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    channel = make_channel(selected=20, receivers=(0, 1), frames_per_chunk=2, frames_per_file=5)
    _write(tmp_path, channel)
    write_master(channel, str(tmp_path), rows=20, statuses=np.zeros(20, np.uint8), totals={"expected": 20})
    assert inspect_run(str(tmp_path), verify=True)["problems"] == []
    return tmp_path


def test_a_missing_file_is_told(run: Path) -> None:
    os.remove(run / "maze_save_1_00001.h5")
    found = inspect_run(str(run))
    assert found["problems"] == [
        "maze_save_1_00001.h5 is missing",
        "save: frames 11-19 step 2 are marked saved but are in no file",
    ]
    assert found["flows"]["FullDet1"]["missing_frames"] == [[11, 19, 2]]
    assert found["channels"]["save"]["lost"] == 5


def test_a_short_file_is_told(run: Path) -> None:
    with h5py.File(run / "maze_save_0_00001.h5", "r+") as file:
        for name in ("data", "frame_number"):
            data = detector_group(file)[name]
            data.resize(3, axis=0)
    found = inspect_run(str(run))
    assert "maze_save_0_00001.h5 is short: it has 3 frames, maze_save_master.h5 needs more" in found["problems"]
    assert found["flows"]["FullDet1"]["missing_frames"] == [[16, 18, 2]]


def test_wrong_frame_numbers_are_told(run: Path) -> None:
    with h5py.File(run / "maze_save_0_00000.h5", "r+") as file:
        numbers = detector_group(file)["frame_number"]
        numbers[:2] = numbers[:2][::-1]
    found = inspect_run(str(run))
    assert found["problems"] == ["maze_save_0_00000.h5: its frame numbers are not those that maze_save_master.h5 shows"]


def test_an_unreadable_chunk_is_told(run: Path) -> None:
    path = run / "maze_save_1_00000.h5"
    with h5py.File(path) as file:
        chunk = detector_group(file)["data"].id.get_chunk_info(1)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + 12)
        raw.write(b"\xff" * (chunk.size - 12))
    assert inspect_run(str(run))["problems"] == []
    damaged = "maze_save_1_00000.h5: frames 5-7 step 2 are damaged: the bytes of data are not those that were written"
    assert inspect_run(str(run), verify=True)["problems"] == [damaged]


def test_a_file_that_is_no_hdf5_is_told(run: Path) -> None:
    (run / "maze_save_1_00000.h5").write_bytes(b"nothing")
    found = inspect_run(str(run))
    assert any(p.startswith("maze_save_1_00000.h5 can't be read") for p in found["problems"])
    assert found["channels"]["save"]["saved"] == 15


def test_a_broken_master_is_told(run: Path) -> None:
    (run / "maze_save_master.h5").write_bytes(b"nothing")
    found = inspect_run(str(run))
    assert any("rebuilds it" in p for p in found["problems"])
    assert found["channels"]["save"]["saved"] == 20
    assert found["channels"]["save"]["dataset"] is None


def test_an_empty_directory(tmp_path: Path) -> None:
    assert inspect_run(str(tmp_path))["problems"] == [f"{tmp_path} holds no file of a run"]


def test_a_stopped_run_expects_more_than_it_has(tmp_path: Path) -> None:
    channel = make_channel(selected=10)
    write_all(channel, str(tmp_path), range(4))
    write_master(channel, str(tmp_path), rows=4, statuses=np.zeros(4, np.uint8), totals={"expected": 6})
    flow = inspect_run(str(tmp_path))["flows"]["FullDet1"]
    assert (flow["expected"], flow["received"], flow["missing"]) == (6, 4, 2)
    assert flow["missing_frames"] == [[4, 5, 1]]


def test_a_frame_that_the_flow_does_not_select(tmp_path: Path) -> None:
    channel = make_channel(selected=4, step=2)
    write_all(channel, str(tmp_path), [0, 2, 3])
    with pytest.raises(ValueError, match="frame 3 is not one of 0, 2"):
        write_master(channel, str(tmp_path))
    assert not list(tmp_path.glob("*master*"))


@given(numbers=st.sets(st.integers(0, 300), max_size=60))
def test_ranges_are_the_numbers(numbers: set[int]) -> None:
    found = ranges(sorted(numbers))
    assert [n for first, last, step in found for n in range(first, last + 1, step)] == sorted(numbers)


def test_ranges_are_few() -> None:
    assert ranges([]) == []
    assert ranges([5]) == [[5, 5, 1]]
    assert ranges(range(0, 100, 5)) == [[0, 95, 5]]
    assert ranges([3, 4, 5, 9, 10, 11]) == [[3, 5, 1], [9, 11, 1]]
    assert ranges(make_rule(start=2, step=3, count=4).start + 3 * np.arange(4)) == [[2, 11, 3]]
