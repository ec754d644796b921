"""One file that all receivers of a channel write, in whole runs."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, Live, counter, run, truth

DETECTOR = """
detector:
  remu: {image: {width: 20, height: 14}, datasets: {D: {dtype: uint16}}, modules: {columns: 2, width: 10, height: 14},
         scene: {counter: {}}}
"""
SOURCE = Rect(0, 0, 20, 14)


def columns(path: Path) -> dict[str, np.ndarray]:
    """Return the part of a master that does not depend on when frames came."""
    with h5py.File(path) as file:
        detector = file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent
        return {name: detector[name][()] for name in ("data", "frame_number", "frame_status")}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_three_receivers_write_what_one_writes(transport: str, tmp_path: Path) -> None:
    found = []
    for receivers in (1, 3):
        cwd = tmp_path / str(receivers)
        cwd.mkdir()
        ran = run(
            f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 114}}
receivers: {receivers}
flows: {{F: {{dataset: D, slices: {{start: 3, step: 2}}, rules: {{blocks_per_group: 4}}, buffers: {{frames: 8}}}}}}
nodes: {{save: {{input: F, io_hdf5: {{layout: common}}}}}}
""",
            cwd,
            transport,
        )
        assert ran.code == 0, ran.output
        truth(ran)
        assert ran.summary["channels"]["save"]["files"] == ["pipeline_save_master.h5"]
        found.append(columns(ran.directory / "pipeline_save_master.h5"))
    one, three = found
    for name, values in one.items():
        np.testing.assert_array_equal(three[name], values)
    numbers = np.arange(3, 114, 2, dtype=np.uint64)
    np.testing.assert_array_equal(one["data"], counter(numbers, SOURCE, 20))
    assert one["frame_number"].tolist() == numbers.tolist()


def test_gathered_frames_go_to_one_file(tmp_path: Path) -> None:
    ran = run(
        f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 31}}
receivers: 2
flows: {{F: {{dataset: D, dispatch: modules, rules: {{blocks_per_group: 3}}}}}}
nodes:
  full: {{input: F, reconstruction: {{}}}}
  save: {{input: full, io_hdf5: {{layout: common}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    truth(ran)
    saved = columns(ran.directory / "pipeline_save_master.h5")
    np.testing.assert_array_equal(saved["data"], counter(np.arange(31, dtype=np.uint64), SOURCE, 20))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stopped_run_leaves_a_file_that_opens(transport: str, tmp_path: Path) -> None:
    live = Live(
        f"""
lima2: 1
{DETECTOR}
acquisition: {{frames: 100000, period: 5 ms}}
receivers: 2
nodes: {{save: {{input: D, io_hdf5: {{layout: common}}}}}}
""",
        tmp_path,
        transport,
    )
    live.wait_for_frames(2)
    live.process.terminate()
    ran = live.end()
    assert ran.code == 143, ran.output
    summary = truth(ran)
    saved = columns(ran.directory / "pipeline_save_master.h5")
    count = summary["channels"]["save"]["saved"]
    assert count == summary["flows"]["D"]["received"] > 10
    np.testing.assert_array_equal(saved["data"][:count], counter(np.arange(count, dtype=np.uint64), SOURCE, 20))
    assert not saved["frame_status"][:count].any()
    assert len(saved["frame_status"]) == count or saved["frame_status"][count:].all()
