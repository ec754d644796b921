"""Rows that are reported while a run goes on: leading rows that are final, and that readers of the files see."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import lima2cli as l2
from lima2cli.accounting.acquisitions import REPORTS, _Chosen
from lima2cli.files.live_master import is_final
from lima2cli.files.nexus import frame_file_names, part_names
from tests.running import mpi

ROI = "{rois: {all: {rect: {x: 0, y: 0, width: 10, height: 10}}}}"
GRAPH = f"""
lima2: 1
name: k
detector:
  remu: {{image: {{width: 16, height: 12}}, datasets: {{A: {{dtype: uint16}}, B: {{dtype: uint16}}}},
         scene: {{counter: {{}}}}FAULTS}}
receivers:
  a: {{memspaces: {{m: {{host: {{size: 1 MiB}}}}, n: {{host: {{size: 1 MiB}}}}}}}}
  b: {{memspaces: {{m: {{host: {{size: 1 MiB}}}}, n: {{host: {{size: 1 MiB}}}}}}}}
flows:
  data: {{dataset: A, buffers: {{size: 64 KiB, at: [a.m, b.m]}}, rules: {{blocks_per_group: 14}}}}
  other: {{dataset: B, buffers: {{size: 64 KiB, at: [a.n, b.n]}}, rules: {{blocks_per_group: 14}}}}
acquisition: {{frames: 701, period: 3 msMORE}}
nodes:
  roi: {{input: data, roi_counters: {ROI}}}
  odd: {{input: data, filter: {{keep: roi.all_avg % 2 < 1}}}}
  some: {{input: odd, io_hdf5: {{}}}}
  sumroi: {{input: odd, roi_counters: {ROI}}}
  acc: {{input: data, accumulate: {{frames: 7}}}}
  sums: {{input: acc, io_hdf5: {{}}}}
  both: {{inputs: {{a: data, b: other}}, expression: {{expr: a + b}}}}
  joined: {{input: both, io_hdf5: {{}}}}
  seldom: {{input: data, checkpoint: {{every: 5}}}}
"""
CHANNELS, TABLES = ("some", "sums", "joined"), ("sumroi", "seldom")


def seen(directory: Path, node: str) -> NDArray[np.uint64]:
    """Numbers of the frames or rows of a node that readers see in the files of the receivers now."""
    patterns: tuple[re.Pattern[str], ...] = (frame_file_names("k", node), part_names("k", node))
    found = [np.empty(0, np.uint64)]
    for path in directory.iterdir():
        if any(pattern.fullmatch(path.name) for pattern in patterns):
            with h5py.File(path, swmr=True) as file:
                entry = file["entry_0000"]
                frames = node in CHANNELS
                group = entry[str(entry.attrs["default"])].parent if frames else entry["measurement"]
                found.append(group["frame_number"][()])
    return np.sort(np.concatenate(found))


def final(directory: Path, node: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Number of each row at the end, and whether it is saved."""
    if node in TABLES:
        with h5py.File(directory / f"k_{node}.h5") as file:
            numbers = file["entry_0000/measurement/frame_number"][()]
            return numbers, np.ones(len(numbers), bool)
    with h5py.File(directory / f"k_{node}_master.h5") as file:
        group = file["entry_0000/" + file["entry_0000"].attrs["default"]].parent
        return group["frame_number"][()], group["frame_status"][()] == 0


SOME = ", faults: {seed: 1, dropped: {rate: 0.1}}"


@pytest.mark.parametrize(("faults", "transport"), [("", "inline"), (SOME, "inline"), mpi(SOME)])
def test_rows_that_are_reported(transport: str, faults: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind filters, windows and joins: all that come before the last one are in files, or never will be."""
    monkeypatch.chdir(tmp_path)
    text = GRAPH.replace("FAULTS", faults).replace("MORE", ", allow_lost: 100 %")
    run = l2.run(text, transport=transport)
    looks: list[tuple[dict[str, int], dict[str, NDArray[np.uint64]]]] = []
    for event in run.progress:
        try:
            looks.append((event["rows"], {node: seen(run.directory, node) for node in CHANNELS + TABLES}))
        except OSError:  # parts of tables are joined, and removed, at the end
            break
    assert run.wait(60).state == "complete"
    events = [event["rows"] for event in run.events if event["type"] == "progress"]
    for node in CHANNELS + TABLES:
        numbers, saved = final(run.directory, node)
        assert events[-1][node] == len(numbers)
        assert np.all(np.diff([rows[node] for rows in events]) >= 0)
        assert len({rows[node] for rows in events}) > 2
        for rows, there in looks:
            claimed = numbers[: rows[node]][saved[: rows[node]]]
            if len(there):
                assert np.isin(claimed, there[node]).all(), node


def test_each_trigger_is_awaited_behind_a_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live master has its rows, too."""
    monkeypatch.chdir(tmp_path)
    text = GRAPH.replace("FAULTS", "").replace("MORE", ", trigger: software, frames_per_trigger: 28")
    run = l2.run(text.replace("frames: 701", "frames: 280"), transport="inline")
    files = next(event["files"] for event in run.events if "files" in event)
    assert {node: file["live"] for node, file in files.items() if "live" in file} == {
        "some": False, "sums": True, "joined": True,
    }  # fmt: skip
    progress, shown = run.progress, list[Any]()
    for point in range(10):
        run.trigger()
        due = 28 * point + 28
        event = next(event for event in progress if event["rows"]["joined"] >= due)
        assert event["rows"]["joined"] == due
        data = run.open("joined")
        with data.file:
            assert len(data) == due
        shown.append(data_of(run, "joined"))
        assert not is_final(run.directory / "k_joined_master.h5") or point == 9
    assert run.wait(60).state == "complete"
    frames = data_of(run, "joined")
    assert all(np.array_equal(some, frames[: len(some)]) for some in shown)


def data_of(run: l2.Run, node: str) -> Any:
    data = run.open(node)
    with data.file:
        return data[()]


def test_how_many_were_saved_before_a_frame() -> None:
    chosen = _Chosen()
    assert chosen.count([0, 1], 10, together=sum) == 0
    for first, saved in ((5, 2), (9, 4), (13, 7)):
        chosen.note(0, first, saved)
    chosen.note(1, 8, 1)
    assert chosen.count([0, 1], 8, together=sum) == 3
    chosen.note(1, 20, 5)
    assert chosen.count([0, 1], 13, together=sum) == 8
    assert chosen.count([0, 1], 20, together=min) == 5
    for first in range(30, 30 + 4 * REPORTS):
        chosen.note(0, first, first)
    assert len(chosen._reports[0]) <= REPORTS
    assert 100 <= chosen.count([0], 130, together=sum) <= 130
    assert chosen.count([0], 10**6, together=sum) == 29 + 4 * REPORTS
