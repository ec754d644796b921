"""Rows of what receivers write together: a file of all, and tables of parts of frames."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import lima2cli as l2
from tests.running import TRANSPORTS

ROI = "{rois: {all: {rect: {x: 236, y: 0, width: 40, height: 10}}}}"
DETECTOR = """
lima2: 1
name: k
detector:
  remu:
    image: {width: 512, height: 128}
    datasets: {A: {dtype: uint32}, B: {dtype: uint32}}
    modules: {columns: 2, width: 256, height: 128}
    scene: {counter: {}}
receivers: 2
"""
COMMON = (
    DETECTOR
    + """
acquisition: {frames: 192, period: 1 ms, trigger: software, frames_per_trigger: 64}
flows: {a: {dataset: A}, b: {dataset: B}}
nodes:
  both: {inputs: {a: a, b: b}, expression: {expr: a + b}}
  joined: {input: both, io_hdf5: {layout: common}}
"""
)
PARTS = (
    DETECTOR
    + f"""
acquisition: {{frames: 240, period: 1 ms, trigger: software, frames_per_trigger: 16}}
flows: {{a: {{dataset: A, dispatch: modules, rules: {{blocks_per_group: 4}}}}}}
nodes:
  roi: {{input: a, roi_counters: {ROI}}}
"""
)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_frames_of_a_file_of_all(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row that is reported can be read, and stays. A round is 64 frames here, 8 MiB of each receiver."""
    monkeypatch.chdir(tmp_path)
    frames: dict[int, Any] = {}
    with l2.run(COMMON, transport=transport) as run:
        progress = run.progress
        for fired in (1, 2, 3):
            run.trigger()
            event = next(event for event in progress if event["rows"]["joined"] >= 64 * fired)
            assert event["rows"]["joined"] == 64 * fired
            for number in (0, 64 * fired - 2, 64 * fired - 1):
                frames[number] = run.frame("joined", number)
            assert run.saved("joined", -1).number == 64 * fired - 1
        assert run.wait(60).state == "complete"
    with h5py.File(run.directory / "k_joined_master.h5") as file:
        data = file["entry_0000/measurement/data"]
        for row, pixels in frames.items():
            assert np.array_equal(data[row], pixels), row
            assert pixels.any()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_rows_of_parts(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is that of the detector, which waits, though a round of a file of all is not whole yet."""
    monkeypatch.chdir(tmp_path)
    text = PARTS + "  whole: {input: a, reconstruction: {}}\n  save: {input: whole, io_hdf5: {layout: common}}\n"
    with l2.run(text, transport=transport) as run:
        progress = run.progress
        for fired in (1, 2, 3):
            run.trigger()
            event = next(event for event in progress if event["rows"]["roi"] >= 16 * fired)
            assert event["rows"] == {"save": 0, "roi": 16 * fired}
            assert run.counters["roi"]["frame_number"].tolist() == list(range(16 * fired))
        with pytest.raises(l2.FileProblem, match="has no frame 0 yet"):
            run.frame("save", 0)
        assert run.state == "armed, waiting for trigger 4 of 15"
