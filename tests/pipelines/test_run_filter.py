"""Runs with filters: what passes is what the saved tables say, and the rest is counted as vetoed."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.running import EXAMPLES, TRANSPORTS, Ran, run, truth

START = """\
lima2: 1
detector:
  remu:
    image: {width: 32, height: 20}
    datasets: {data: {dtype: uint16}}
    modules: {columns: 2, rows: 2, width: 15, height: 9, gap: {x: 2, y: 2}}
    scene: {noise: {mean: 3}}
acquisition: {frames: 60}
receivers: 2
"""
COUNTERS = """\
  counters:
    input: data
    roi_counters:
      rois: {left: {rect: {x: 0, y: 0, width: 14, height: 20}}, right: {rect: {x: 18, y: 0, width: 14, height: 20}}}
      statistics: [avg, sum, max]
"""


def rows(ran: Ran, node: str) -> dict[str, Any]:
    """Columns of a table."""
    with h5py.File(next(ran.directory.glob(f"*_{node}.h5"))) as file:
        return {name: item[()] for name, item in file["entry_0000/measurement"].items()}


def check(ran: Ran, passes: Any, every: int = 0) -> Any:
    """Frames that passed by the table are saved, all others vetoed; the saved frames."""
    assert ran.code == 0, ran.output
    counters = rows(ran, "counters")
    numbers = counters["frame_number"]
    assert numbers.tolist() == list(range(60)), "also of vetoed frames"
    wanted = passes(counters)
    if every:
        wanted = wanted | (numbers % every == 0)
    assert 0 < np.count_nonzero(wanted) < 60, "the test chooses some"
    frames, saved, status = ran.saved("save")
    assert saved.tolist() == numbers[wanted].tolist()
    assert not status.any()
    account = ran.summary["channels"]["save"]
    assert (account["saved"], account["vetoed"], account["lost"]) == (len(saved), 60 - len(saved), 0)
    return frames


def test_frames_that_satisfy_pass(tmp_path: Path) -> None:
    nodes = (
        "nodes:\n  some: {input: data, filter: {keep: counters.left_sum > counters.right_sum, every: 20}}\n"
        + COUNTERS
        + "  save: {input: some, io_hdf5: {}}\n"
    )
    ran = run(START + nodes, tmp_path, "inline")
    frames = check(ran, lambda c: c["left_sum"] > c["right_sum"], 20)
    counters = rows(ran, "counters")
    among = np.isin(counters["frame_number"], ran.saved("save")[1])
    np.testing.assert_array_equal(frames[:, :, :14].sum(axis=(1, 2)), counters["left_sum"][among])


def test_filters_follow_each_other_and_read_counters_of_other_pixels(tmp_path: Path) -> None:
    nodes = (
        "nodes:\n  dark: {input: data, background_sub: {image: 1}}\n"
        + COUNTERS.replace("input: data", "input: dark")
        + "  log: {input: data, checkpoint: {every: 2}}\n"
        "  one: {input: data, filter: {keep: counters.left_avg > counters.right_avg}}\n"
        "  again: {input: one, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 9, height: 9}}}}}\n"
        "  two: {input: one, filter: {keep: log.latency > -1e9 and again.all_sum > 0}}\n"
        "  save: {input: two, io_hdf5: {}}\n"
    )
    ran = run(START + nodes, tmp_path, "inline")
    check(ran, lambda c: (c["left_avg"] > c["right_avg"]) & (c["frame_number"] % 2 == 0))


SHARED = "flows: {data: {dataset: data, dispatch: {modules: [[0, 2], [1, 3]]}}}\n"
WHOLE = "  whole: {input: some, reconstruction: {}}\n  save: {input: whole, io_hdf5: {}}\n"
SOME = "nodes:\n  some: {input: data, filter: {keep: counters.left_sum > counters.right_sum}}\n"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_parts_of_frames_are_chosen_together(transport: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    plain = START + SOME + COUNTERS + "  save: {input: some, io_hdf5: {}}\n"
    whole = run(plain, tmp_path / "whole", "inline")
    ran = run(START + SHARED + SOME + WHOLE + COUNTERS, tmp_path, transport)
    frames = check(ran, lambda c: c["left_sum"] > c["right_sum"])
    np.testing.assert_array_equal(frames, check(whole, lambda c: c["left_sum"] > c["right_sum"]))
    merged, counted = rows(ran, "counters"), rows(whole, "counters")
    for name in ("left_sum", "left_max", "left_avg", "right_sum", "right_max", "right_avg"):
        np.testing.assert_array_equal(merged[name], counted[name], err_msg=name)


def test_nothing_passes(tmp_path: Path) -> None:
    nodes = "nodes:\n  some: {input: data, filter: {keep: counters.left_sum < 0}}\n" + COUNTERS
    ran = run(START + nodes + "  save: {input: some, io_hdf5: {}}\n", tmp_path, "inline")
    assert ran.code == 0, ran.output
    account = ran.summary["channels"]["save"]
    assert (account["saved"], account["vetoed"], account["lost"]) == (0, 60, 0)


def test_the_example(tmp_path: Path) -> None:
    ran = run((EXAMPLES / "filter.yaml").read_text(), tmp_path, "inline", name="filter")
    assert ran.code == 0, ran.output
    account = ran.summary["channels"]["save"]
    assert account["saved"] + account["vetoed"] == 100
    assert account["vetoed"] > 20
    truth(ran)
