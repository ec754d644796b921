"""The end of a run: exact at any window, in memory that does not grow with the number of frames."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.accounting.account import Visits, VisitStatuses
from lima2cli.accounting.verify import Selection
from lima2cli.files import rows
from lima2cli.files.appending import reopenable
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.files.frame_writer import FrameWriter
from lima2cli.files.master import write_master
from lima2cli.files.master_rows import RowMapping, pieces
from lima2cli.files.master_rows import rows as regular_rows
from lima2cli.files.rows import DROPPED, INCOMPLETE, LOST, Progressions, range_list, ranges, ranges_of
from lima2cli.files.tables import TableWriter, merge_tables
from tests import ROOT
from tests.artefacts_samples import START_NS, detector_group, make_block, make_channel, make_rule, make_table, write_all
from tests.compiling import compiled
from tests.running import inspect_run

BLOCK = 10_000


@given(numbers=st.sets(st.integers(0, 200), max_size=80), cuts=st.lists(st.integers(0, 80), max_size=6))
def test_sequences_in_pieces_are_as_the_whole(numbers: set[int], cuts: list[int]) -> None:
    whole = np.array(sorted(numbers), np.int64)
    parts = np.split(whole, sorted(cuts))
    assert ranges_of(parts) == ranges(whole)
    mapping, source = RowMapping(), np.arange(len(whole))
    for target, origin in zip(parts, np.split(source, sorted(cuts)), strict=True):
        mapping.add(target, origin, target % 3)
    assert mapping.finish() == pieces(whole, whole % 3)


def test_a_regular_sequence_of_any_length_is_one_progression() -> None:
    found = Progressions()
    for first in range(0, 3_000_000, 30_000):
        found.add(np.arange(first, first + 30_000, 3)[:, None])
    assert range_list(found) == [[0, 2_999_997, 3]]


@given(data=st.data())
def test_selections_count_and_give_their_rows(data: st.DataObject) -> None:
    block = data.draw(st.integers(1, 4))
    count = data.draw(st.integers(1, 6))
    stride = block + data.draw(st.integers(0, 4)) if count > 1 else data.draw(st.integers(1, 9))
    selection = Selection(data.draw(st.integers(0, 5)), stride, count, block)
    want = regular_rows(selection.start, stride, count, block)
    np.testing.assert_array_equal(selection.at(np.arange(len(selection))), want)
    assert selection.last == want[-1]
    for row in range(70):
        assert selection.below(row) == np.count_nonzero(want < row)


@given(data=st.data(), blocks=st.integers(1, 5), buffers=st.integers(1, 4), expected=st.integers(0, 60))
def test_visits_are_the_frames_of_their_groups(data: st.DataObject, blocks: int, buffers: int, expected: int) -> None:
    rule = make_rule(blocks=blocks, buffers=buffers)
    given_, want = [], np.zeros(expected, np.uint8)
    for buffer in range(buffers):
        for visit in sorted(data.draw(st.sets(st.integers(0, 20)))):
            given_.append((buffer, visit, 1))
            first = (visit * buffers + buffer) * blocks
            want[first : first + blocks] = LOST
    visits = Visits(rule, expected, tuple(given_))
    first, last = sorted(data.draw(st.tuples(st.integers(0, expected), st.integers(0, expected))))
    np.testing.assert_array_equal(VisitStatuses(expected, ((LOST, visits),))[first:last], want[first:last])


@settings(max_examples=8)
@given(lost=st.sets(st.integers(0, 59)), receivers=st.sampled_from([(0,), (0, 1, 2), (0, 0, 1)]))
def test_windows_smaller_than_the_run_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, lost: set[int], receivers: tuple[int, ...]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    channel = make_channel(height=1, width=2, selected=60, receivers=receivers, blocks=2, frames_per_file=7, step=3)
    table = make_table(rule=channel.rule, selected=60, receivers=receivers)
    for receiver in set(receivers):
        mine = [3 * k for k in range(60) if receivers[k // 2 % len(receivers)] == receiver and k not in lost]
        write_all(channel, str(folder), mine, receiver)
        writer = TableWriter(table, str(folder), receiver)
        numbers = np.array(mine, np.uint64)
        writer.append(numbers, {name: numbers.astype(dtype) for name, dtype in table.columns.items()})
        writer.close()
    statuses = np.zeros(60, np.uint8)
    statuses[sorted(lost)] = [(LOST, DROPPED, INCOMPLETE)[k % 3] for k in sorted(lost)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows.windows, "__defaults__", (11,))
        for module in ("files.master", "files.tables", "accounting.holdings"):
            patch.setattr(f"lima2cli.{module}.READ", 4)
        path = write_master(channel, str(folder), rows=60, statuses=statuses, totals={"expected": 60})
        merged = merge_tables(table, str(folder))
        found = inspect_run(str(folder))
    kept = np.setdiff1d(np.arange(60), sorted(lost))
    with h5py.File(path) as file:
        detector = detector_group(file)
        np.testing.assert_array_equal(detector["frame_status"][()], statuses)
        np.testing.assert_array_equal(detector["frame_number"][()], 3 * np.arange(60))
        np.testing.assert_array_equal(detector["data"][()][kept], make_block(channel, 3 * kept).frames)
        np.testing.assert_allclose(detector["frame_time"][()][kept], kept * 3e-3, atol=1e-9)
    with h5py.File(merged) as file:
        np.testing.assert_array_equal(file["entry_0000/measurement/frame_number"][()], 3 * kept)
        np.testing.assert_array_equal(file["entry_0000/measurement/door_sum"][()], 3.0 * kept)
    assert found["problems"] == []
    flow = found["flows"]["FullDet1"]
    assert (flow["lost"], flow["dropped"], flow["missing"]) == tuple(np.bincount(statuses, minlength=4)[1:])
    absent = [n for first, last, step in flow["missing_frames"] for n in range(first, last + 1, step)]
    assert absent == [3 * k for k in sorted(lost)]


def test_frames_out_of_order_are_left_out_and_told(tmp_path: Path) -> None:
    channel = make_channel(selected=6)
    write_all(channel, str(tmp_path), [0, 2, 1, 3])
    with pytest.raises(OSError, match="its frames are not in order"):
        write_master(channel, str(tmp_path), rows=6)
    with h5py.File(tmp_path / "maze_save_master.h5") as file:
        assert (detector_group(file)["frame_status"][()] == INCOMPLETE).all()


def test_a_table_out_of_order_is_refused_and_its_parts_stay(tmp_path: Path) -> None:
    channel = make_table(columns={"a": "float64"}, default=None)
    writer = TableWriter(channel, str(tmp_path), 0)
    writer.append(np.array([3, 1], np.uint64), {"a": np.zeros(2)})
    writer.close()
    with pytest.raises(OSError, match="not in frame order"):
        merge_tables(channel, str(tmp_path))
    assert (tmp_path / "maze_counters_0_rows.h5").exists()


def test_parts_of_a_table_are_not_those_of_a_longer_name(tmp_path: Path) -> None:
    for node, count in (("counters", 3), ("counters_0", 5)):
        table = make_table(node=node, flow=f"of_{node}", columns={}, default=None)
        writer = TableWriter(table, str(tmp_path), 0)
        writer.append(np.arange(count, dtype=np.uint64), {})
        writer.close()
    flows = inspect_run(str(tmp_path))["flows"]
    assert {name: flow["received"] for name, flow in flows.items()} == {"of_counters": 3, "of_counters_0": 5}


def _long_channel(frames: int) -> Channel:
    return make_channel(height=1, width=1, selected=frames, receivers=(0, 1, 2), frames_per_chunk=BLOCK)


def _long_table(frames: int) -> TableChannel:
    return make_table(selected=frames, receivers=(0, 1, 2))


def _write_long(folder: Path, frames: int) -> None:
    channel, table = _long_channel(frames), _long_table(frames)
    for receiver in range(3):
        saved, counted = (
            FrameWriter(channel, str(folder), receiver, START_NS),
            TableWriter(table, str(folder), receiver),
        )
        for first in range(receiver, frames, 3 * BLOCK):
            block = make_block(channel, range(first, min(frames, first + 3 * BLOCK), 3))
            saved.commit(saved.stage(block))
            counted.append(block.numbers, {name: block.numbers.astype(it) for name, it in table.columns.items()})
        saved.close()
        counted.close()


ENDS = """
import sys
from resource import RUSAGE_SELF, getrusage
from tests.files.test_ends import _long_channel, _long_table, inspect_run, merge_tables, write_master
folder, frames = sys.argv[1], int(sys.argv[2])
before = getrusage(RUSAGE_SELF).ru_maxrss
write_master(_long_channel(frames), folder, rows=frames, totals={"expected": frames})
merge_tables(_long_table(frames), folder)
found = inspect_run(folder)
assert found["problems"] == [] and found["flows"]["FullDet1"]["received"] == frames, found
print(getrusage(RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    """Ten bytes for each of 900 000 more frames would be 9 MB."""
    growth = []
    for frames in (100_000, 1_000_000):
        folder = tmp_path / str(frames)
        folder.mkdir()
        _write_long(folder, frames)
        command = [sys.executable, "-c", ENDS, str(folder), str(frames)]
        growth.append(int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout))
    small, large = growth
    assert large < small + 5_000  # KiB


CLASHES = [("save_master", "io_hdf5"), ("save_1_00000", "io_hdf5"), ("save_2_rows", "checkpoint")]


@pytest.mark.parametrize(("name", "kind"), CLASHES)
def test_nodes_that_would_write_one_file_are_refused(name: str, kind: str) -> None:
    text = f"""
lima2: 1
detector: {{remu: {{image: {{width: 8, height: 8}}, datasets: {{data: {{dtype: uint16}}}}}}}}
acquisition: {{frames: 10}}
nodes: {{save: {{input: data, {kind}: {{}}}}, {name}: {{input: data, checkpoint: {{}}}}}}
"""
    plan, findings = compiled(text)
    assert plan is None
    assert [(item.rule, item.at) for item in findings] == [("file-name-clash", ("nodes", name))]
    assert compiled(text.replace(name, "other"))[0] is not None


FAILS = """
import os, sys
import h5py, numpy as np
from lima2cli.files.appending import AppendingFile
from lima2cli.files.disk import library_is_broken

files = []
for name in sys.argv[1:]:
    file = AppendingFile(name)
    with file.making():
        data = file.h5.create_group("a").create_dataset("x", (0, 64), "u2", maxshape=(None, 64), chunks=(1, 64))
    file.start()
    data.resize(5, 0)
    data[:] = 7
    file.flush()
    files.append((file, data))
failing = os.open("/proc/self/mem", os.O_RDWR)  # where no memory is, a write ends with EIO
os.dup2(failing, files[0][0].h5.id.get_vfd_handle())
for file, data in files:
    try:
        data.resize(900, 0)
        data[5:] = 8
        file.flush()
        file.close()
    except (OSError, RuntimeError) as error:
        print("refused", library_is_broken())
        file.abandon()
sys.exit(7)
"""


def test_a_disk_that_fails_breaks_neither_the_process_nor_other_files(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.h5", "b.h5")]
    done = subprocess.run([sys.executable, "-c", FAILS, *paths], check=False, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "refused True\n"
    for path, count in zip(paths, (5, 900), strict=True):
        reopenable(path)
        with h5py.File(path) as file:
            assert file["a/x"].shape == (count, 64)
            assert file["a/x"][0, 0] == 7
