"""Every selected frame of a run that was not cut short has its row, and `inspect` finds masters that hide something."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.running import TRANSPORTS, Ran, lima2, run, truth

PARTS = """
lima2: 1
detector:
  remu:
    image: {width: 8, height: 8}
    datasets: {data: {dtype: uint16}}
    modules: {columns: 1, rows: 2, width: 8, height: 4}
    scene: {counter: {}}
    faults: {died: {frame: 12, module: 0}}
acquisition: {frames: 20, allow_lost: 100 %}
receivers: 2
flows: {all: {dataset: data, dispatch: modules}}
nodes: {save: {input: all, io_hdf5: {layout: virtual}}}
"""

WHOLE = """
lima2: 1
detector:
  remu:
    image: {width: 8, height: 8}
    datasets: {data: {dtype: uint16}}
    modules: {columns: 1, rows: 2, width: 8, height: 4}
    scene: {counter: {}}
    faults: {FAULTS}
acquisition: {frames: 20, allow_lost: 100 %}
nodes:
  save: {input: data, io_hdf5: {}}
  one: {input: data, io_hdf5: {layout: common}}
  bright: {input: data, sparsify: {above: 3}}
  sparse: {input: bright, io_hdf5: {}}
  counts: {input: data, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 8, height: 8}}}}}
"""
SAVING = ("save", "one", "sparse")


def _status(ran: Ran, node: str) -> list[int]:
    with h5py.File(ran.directory / f"pipeline_{node}_master.h5") as file:
        detector = file["entry_0000/instrument/remu"]
        status: list[int] = detector["frame_status"][()].tolist()
        assert len(detector["frame_number"]) == len(detector["frame_time"]) == len(status)
        data = detector["data"]
        assert (len(data["frame_ptr"]) - 1 if isinstance(data, h5py.Group) else len(data)) == len(status)
        assert detector["frame_number"][()].tolist() == list(range(len(status)))
        assert "start_time" in file["entry_0000"]
        return status


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_parts_that_came_are_shown(transport: str, tmp_path: Path) -> None:
    ran = run(PARTS, tmp_path, transport)
    assert truth(ran)["state"] == "complete"
    assert _status(ran, "save") == [0] * 12 + [3] * 8
    frames, _, _ = ran.saved("save")
    for receiver, rows in ((0, 12), (1, 20)):
        with h5py.File(ran.directory / f"pipeline_save_{receiver}_00000.h5") as file:
            part = file["entry_0000/measurement/data"][()]
        assert len(part) == rows
        np.testing.assert_array_equal(frames[:rows, 4 * receiver : 4 * receiver + 4], part)


@pytest.mark.parametrize(
    ("faults", "absent"),
    [
        ("failed: {rate: 0.4, module: 1}", [4, 13, 16, 17, 19]),
        ("died: {frame: 0, module: 0}", list(range(20))),
        ("died: {frame: 15}", list(range(15, 20))),
        ("dropped: {rate: 0.99}", None),
    ],
)
def test_a_complete_run_has_a_row_for_each_frame(faults: str, absent: list[int] | None, tmp_path: Path) -> None:
    ran = run(WHOLE.replace("FAULTS", faults), tmp_path, "inline")
    summary = truth(ran)
    assert summary["state"] == "complete"
    told = _status(ran, "save")
    assert len(told) == 20
    if absent is not None:
        assert told == [3 if k in absent else 0 for k in range(20)]
    assert {node: _status(ran, node) for node in SAVING} == dict.fromkeys(SAVING, told)
    # as after a loss of what the end made: the same rows again
    shutil.copytree(ran.directory, tmp_path / "copy")
    for name in ("pipeline_save_master.h5", "pipeline_sparse_master.h5", "pipeline.h5"):
        (tmp_path / "copy" / name).unlink()
    assert lima2("recover", "copy", cwd=tmp_path).returncode == 0
    again = Ran(0, "", tmp_path / "copy")
    if any(value == 0 for value in told):  # else nothing is left that tells the start
        assert {node: _status(again, node) for node in SAVING} == dict.fromkeys(SAVING, told)


SUMS = """
lima2: 1
detector:
  remu:
    image: {width: 8, height: 8}
    datasets: {data: {dtype: uint16}}
    faults: {died: {frame: 5}}
acquisition: {frames: 12, repeat: 2}
nodes:
  sums: {input: data, accumulate: {frames: 3}}
  save: {input: sums, io_hdf5: {}}
"""


def test_sums_and_repeated_acquisitions_have_all_their_rows(tmp_path: Path) -> None:
    ran = run(SUMS, tmp_path, "inline")
    for number in (1, 2):
        each = Ran(ran.code, ran.output, tmp_path / "runs" / f"pipeline_{number:04d}")
        truth(each)
        with h5py.File(each.directory / "pipeline_save_master.h5") as file:
            assert file["entry_0000/instrument/remu/frame_status"][()].tolist() == [0, 3, 3, 3]


SLICED = """
lima2: 1
detector:
  remu:
    image: {width: 8, height: 8}
    datasets: {data: {dtype: uint16}}
    faults: {failed: {rate: 0.5}}
acquisition: {frames: 40}
flows: {F: {dataset: data, slices: {start: 3, count: 9, step: 4}, rules: {blocks_per_group: 2}}}
receivers: 2
nodes: {save: {input: F, io_hdf5: {}}}
"""


def test_row_k_is_the_k_th_selected_frame(tmp_path: Path) -> None:
    ran = run(SLICED, tmp_path, "inline")
    summary = truth(ran)
    absent = [n for a, b, by in summary["flows"]["F"]["missing_frames"] for n in range(a, b + 1, by)]
    assert absent
    assert summary["state"] == "failed"  # more than may be lost; no frame was left out for it
    with h5py.File(ran.directory / "pipeline_save_master.h5") as file:
        detector = file["entry_0000/instrument/remu"]
        numbers = list(range(3, 36, 4))
        assert detector["frame_number"][()].tolist() == numbers
        assert detector["frame_status"][()].tolist() == [3 if n in absent else 0 for n in numbers]


# What masters can hide


def _rebuild(path: Path, change: Callable[[list[Any]], list[Any]], rows: int | None = None) -> None:
    """The virtual dataset of a master with other mappings (selection in it, file, dataset, selection there), and all
    that has a value for each row cut to ``rows``.
    """
    with h5py.File(path, "r+") as file:
        detector = file["entry_0000/instrument/remu"]
        if "checksum" in detector:  # of what was there
            del detector["checksum"]
        data = detector["data"]
        plist, shape = data.id.get_create_plist(), list(data.shape)
        maps = [
            (plist.get_virtual_vspace(i), plist.get_virtual_filename(i), plist.get_virtual_dsetname(i),
             plist.get_virtual_srcspace(i))
            for i in range(plist.get_virtual_count())
        ]  # fmt: skip
        made, dtype = h5py.h5p.create(h5py.h5p.DATASET_CREATE), data.id.get_type()
        for space, name, source, origin in change(maps):
            made.set_virtual(space, name.encode(), source.encode(), origin)
        if rows is not None:
            shape[0] = rows
            for name in ("frame_number", "frame_time", "frame_status"):
                kept = detector[name][:rows]
                del detector[name]
                detector[name] = kept
        del detector["data"]
        h5py.h5d.create(detector.id, b"data", dtype, h5py.h5s.create_simple(tuple(shape)), made)


def _selected(shape: tuple[int, ...], start: tuple[int, ...], count: tuple[int, ...]) -> Any:
    space = h5py.h5s.create_simple(shape)
    space.select_hyperslab(start, count)
    return space


def _map(rows: int, at: int, of: int, count: int, *, y: int = 0, height: int = 4, file: int = 1) -> Any:
    """Rows of a part of PARTS."""
    name, held = f"pipeline_save_{file}_00000.h5", 12 if file == 0 else 20
    return (
        _selected((rows, 8, 8), (at, y, 0), (count, height, 8)),
        name,
        "/entry_0000/instrument/remu/data",
        _selected((held, 4, 8), (of, 0, 0), (count, height, 8)),
    )


HIDING: dict[str, tuple[Callable[[list[Any]], list[Any]], int | None, str]] = {
    "a_part": (lambda maps: [it for it in maps if "_1_" not in it[1]], None, "does not show all of its frames"),
    "the_last_parts": (
        lambda maps: [_map(12, 0, 0, 12, file=0), _map(12, 0, 0, 12, y=4)],
        12,
        "does not show all of its frames, the first of them 12",
    ),
    "one_row": (
        lambda maps: [_map(20, 0, 0, 12, file=0), _map(20, 0, 0, 7, y=4), _map(20, 8, 8, 12, y=4)],
        None,
        "does not show all of its frames, the first of them 7",
    ),
    "rows_of_others": (
        lambda maps: [_map(20, 0, 0, 12, file=0), _map(20, 0, 1, 19, y=4), _map(20, 19, 0, 1, y=4)],
        None,
        "its frame numbers are not those",
    ),
    "in_the_wrong_place": (
        lambda maps: [_map(20, 0, 0, 12, file=0), _map(20, 0, 0, 20, y=0)],
        None,
        "does not show its frames where they belong",
    ),
    "some_lines": (
        lambda maps: [_map(20, 0, 0, 12, file=0), _map(20, 0, 0, 20, y=4, height=3)],
        None,
        "does not show its frames where they belong",
    ),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(PARTS, tmp_path_factory.mktemp("parts"), "inline")


def _problems(directory: Path) -> list[str]:
    done = lima2("inspect", "--verify", "--format", "json", str(directory), cwd=directory)
    found: dict[str, list[str]] = json.loads(done.stdout)
    assert done.returncode == (10 if found["problems"] else 0)
    return found["problems"]


@pytest.mark.parametrize("name", HIDING)
def test_what_a_master_hides_is_found(name: str, parts: Ran, tmp_path: Path) -> None:
    change, rows, said = HIDING[name]
    folder = tmp_path / "run"
    shutil.copytree(parts.directory, folder)
    assert _problems(folder) == []
    _rebuild(folder / "pipeline_save_master.h5", lambda maps: maps)
    assert _problems(folder) == []  # it is not the rebuilding
    _rebuild(folder / "pipeline_save_master.h5", change, rows)
    assert any(said in problem for problem in _problems(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    ran = run(WHOLE.replace("FAULTS", "died: {frame: 15}"), tmp_path_factory.mktemp("whole"), "inline")
    assert _problems(ran.directory) == []
    return ran


@pytest.mark.parametrize("node", ["save", "one", "sparse"])
@pytest.mark.parametrize("dataset", ["frame_number", "frame_time", "frame_status", "all"])
def test_a_short_master_is_found(node: str, dataset: str, whole: Ran, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.directory, folder)
    with h5py.File(folder / f"pipeline_{node}_master.h5", "r+") as file:
        detector = file["entry_0000/instrument/remu"]
        every = ("frame_number", "frame_time", "frame_status")
        for name in every if dataset == "all" else (dataset,):
            kept = detector[name][:15]
            del detector[name]
            detector[name] = kept
    assert _problems(folder)


def test_rows_that_came_in_vain_are_missed_in_a_master_that_lacks_them_all(tmp_path: Path) -> None:
    ran = run(PARTS.replace(", dispatch: modules", "").replace("{layout: virtual}", "{}"), tmp_path, "inline")
    with h5py.File(ran.directory / "pipeline_save_master.h5") as file:
        saved = file["entry_0000/instrument/remu/frame_status"][()] == 0
    assert saved.tolist() == [True] * 12 + [False] * 8
    _rebuild(ran.directory / "pipeline_save_master.h5", lambda maps: maps, 20)
    assert _problems(ran.directory) == []

    def cut(maps: list[Any]) -> list[Any]:
        shape = (12, 8, 8)
        whole = "/entry_0000/instrument/remu/data"
        return [
            (_every_other(shape, k), f"pipeline_save_{k}_00000.h5", whole, h5py.h5s.create_simple((6, 8, 8)))
            for k in (0, 1)
        ]

    _rebuild(ran.directory / "pipeline_save_master.h5", cut, 12)
    said = "pipeline_save_master.h5 is short: it has 12 rows, and 20 frames were to be shown"
    assert _problems(ran.directory) == [said]


def _every_other(shape: tuple[int, int, int], first: int) -> Any:
    space = h5py.h5s.create_simple(shape)
    space.select_hyperslab((first, 0, 0), (shape[0] // 2, 1, 1), (2, 1, 1), (1, *shape[1:]))
    return space


def test_other_times_are_found(tmp_path: Path) -> None:
    ran = run(WHOLE.replace("FAULTS", "failed: {rate: 0.4}"), tmp_path, "inline")
    with h5py.File(ran.directory / "pipeline_save_master.h5", "r+") as file:
        times = file["entry_0000/instrument/remu/frame_time"]
        times[:] = times[()][::-1]
    assert "pipeline_save_0_00000.h5: its frames have other times in pipeline_save_master.h5" in _problems(
        ran.directory
    )


def test_rows_of_a_part_that_the_table_lacks_are_found_and_joined_again(tmp_path: Path) -> None:
    ran = run(WHOLE.replace("FAULTS", "jitter: {by: 1 us}"), tmp_path, "inline")
    table, part = ran.directory / "pipeline_counts.h5", ran.directory / "pipeline_counts_0_rows.h5"
    shutil.copy(table, part)
    with h5py.File(part, "r+") as file:
        file["entry_0000/channel"].attrs["role"] = "rows"
    assert _problems(ran.directory) == []
    with h5py.File(table, "r+") as file:
        columns = file["entry_0000/measurement"]
        for name in list(columns):
            kept = columns[name][:15]
            del columns[name]
            columns[name] = kept
    assert f"{part.name}: {table.name} does not have all of its rows" in _problems(ran.directory)
    (ran.directory / "pipeline.h5").unlink()
    assert lima2("recover", str(ran.directory), cwd=tmp_path).returncode == 0
    assert _problems(ran.directory) == []
    with h5py.File(table) as file:
        assert len(file["entry_0000/measurement/frame_number"]) == 20
