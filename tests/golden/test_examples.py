"""The examples, one for each capability: they run, nothing is lost but what faults take, and their files tell all."""

from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.test_inspect_truth import check_accounting
from tests.running import EXAMPLES, Ran, lima2

ALL = sorted(file.stem for file in EXAMPLES.glob("*.yaml"))

ELSEWHERE = {"rt_align"}
"""Run by tests of their own: they need other processes."""

INLINE = ("--transport", "inline", "--progress", "none")

SHORTER = {
    "jungfrau": ["--set", "acquisition.frames=10"],
    "parts": ["--set", "acquisition.frames=40"],
    "round_robin": ["--set", "acquisition.frames=80"],
}
"""Options of examples that take seconds."""

MAY_LOSE = {"slow_viewer"}
"""Examples with a flow that may lose frames, and its channel."""

INSPECTED = {
    "accumulate", "common", "counters", "expression", "faults", "filter", "joined_flows", "maze", "parts", "sparse",
}  # fmt: skip
"""Examples that have something of their own to account for."""


@pytest.mark.parametrize("name", [name for name in ALL if name not in ELSEWHERE])
def test_an_example_runs_and_loses_nothing(name: str, tmp_path: Path) -> None:
    file = EXAMPLES / f"{name}.yaml"
    done = lima2("run", str(file), *INLINE, *SHORTER.get(name, []), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = Ran(done.returncode, done.stdout + done.stderr, (tmp_path / "runs" / "latest").resolve())
    summary = ran.summary
    assert summary["state"] == "complete"
    assert not summary["problems"]
    for flow in summary["flows"].values():
        lost = flow["missing"] if name == "faults" else flow["lost"] if name in MAY_LOSE else 0
        assert flow["expected"] == flow["received"] + lost
        assert flow["received"] > 0
    for channel in summary["channels"].values():
        assert channel["expected"] == channel["saved"] + channel["vetoed"] + (
            channel["lost"] if name in {"faults", *MAY_LOSE} else 0
        )
        assert channel["saved"] > 0
        check_masked(name, ran.directory, *channel["dataset"].split("::"))
    if name in INSPECTED:
        check_accounting(ran)


FILLED = {"maze"}
"""Examples that fill masked pixels with a number."""

SWITCHED = {"gain", "jungfrau"}
"""Examples in which pixels of single frames have no gain stage, and are NaN."""


def check_masked(name: str, directory: Path, file: str, dataset: str) -> None:
    """Frames of floats are NaN exactly where they are masked: arithmetic made up no value."""
    import h5py
    import hdf5plugin  # noqa: F401

    with h5py.File(directory / file) as found:
        detector = found[f"entry_0000/{found['entry_0000'].attrs['default']}"].parent
        data = found[dataset]
        if not isinstance(data, h5py.Dataset) or data.dtype.kind != "f":
            return
        frames = data[()][detector["frame_status"][()] == 0]
        masked = detector["pixel_mask"][()] != 0 if "pixel_mask" in detector else np.zeros(frames.shape[1:], bool)
    if name in FILLED:
        assert (frames[:, masked] == 0).all()
    else:
        assert np.isnan(frames[:, masked]).all()
    assert name in SWITCHED or not np.isnan(frames[:, ~masked]).any()


@pytest.mark.parametrize("name", ALL)
def test_an_example_says_first_what_it_shows(name: str) -> None:
    schema, first, *rest = (EXAMPLES / f"{name}.yaml").read_text().splitlines()
    assert schema == "# yaml-language-server: $schema=../../schemas/pipeline-1.schema.json"
    assert first.startswith("# ") or any(line.startswith("description: ") for line in rest[:2])
