"""Saved sparse frames as the images that they stand for: while the run goes on, and after its end."""

from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import lima2cli as l2
from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, counter, lima2

PIPELINE = """
lima2: 1
name: k
detector:
  remu:
    image: {width: 64, height: 48}
    modules: {columns: 2, rows: 1, width: 30, height: 48, gap: {x: 4, y: 0}}
    datasets: {raw: {dtype: uint16}}
    scene: {counter: {}}
acquisition: {frames: 30, period: 2 ms, trigger: software, frames_per_trigger: 10}
receivers: 2
nodes:
  cut: {input: raw, roi_flip_rot: {roi: {x: 2, y: 4, width: 20, height: 10}, rotation: 90}}
  bright: {input: raw, sparsify: {above: 900}}
  few: {input: cut, sparsify: {above: 900}}
  whole: {input: bright, io_hdf5: {frames_per_file: 4}}
  part: {input: few, io_hdf5: {}}
"""


def image(number: int, part: tuple[slice, slice] = (slice(None), slice(None))) -> NDArray[np.uint16]:
    """The image of the detector, with the pixels that were chosen of a part of it."""
    frame = counter(np.array([number], np.uint64), Rect(0, 0, 64, 48), 64)[0]
    frame[:, 30:34] = 0
    kept = np.zeros_like(frame)
    kept[part] = np.where(frame[part] > 900, frame[part], 0)
    return kept


PART = (slice(4, 14), slice(2, 22))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_while_it_goes_on_and_after(transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with l2.run(PIPELINE, transport=transport) as run:
        progress = run.progress
        for fired in (1, 2):
            run.trigger()
            next(event for event in progress if event["rows"]["whole"] >= 10 * fired <= event["rows"]["part"])
            last = run.saved("whole", -1)
            assert last.number == 10 * fired - 1
            assert np.array_equal(last.pixels, image(last.number))
            assert last.mask is not None
            assert last.mask.sum() == 4 * 48
            assert np.array_equal(run.frame("part", 10 * fired - 4), image(10 * fired - 4, PART))
        with pytest.raises(l2.FileProblem, match="has no frame 25 yet"):
            run.frame("whole", 25)
        run.trigger()
        run.wait(60)
    for number in (0, 13, 29):
        assert np.array_equal(run.frame("whole", number), image(number))
        assert np.array_equal(run.frame("part", number), image(number, PART))
    assert run.frame("whole").dtype == np.uint16
    assert (run.last("part").number, run.last("part").mask) == (29, None)
    assert "<img" in run._repr_html_()
    (tmp_path / "seen").mkdir()
    done = lima2("tap", "part", "--as", "npy", "-o", "seen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "seen").iterdir()
    assert np.array_equal(np.load(file), image(29, PART))


def test_a_frame_that_was_lost_is_no_dark_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with l2.run(PIPELINE, transport="inline") as run:
        run.trigger(3)
        run.wait(60)
    with h5py.File(run.directory / "k_whole_master.h5", "r+") as file:
        status = file["entry_0000/instrument/remu/frame_status"]
        status[5] = status[29] = 2
    with pytest.raises(l2.FileProblem, match=r"has no frame 5$"):
        run.frame("whole", 5)
    assert run.saved("whole", -1).number == 28
    assert np.array_equal(run.frame("whole", 6), image(6))


@pytest.mark.skipif(find_spec("bokeh") is None, reason="pip install 'lima2cli[view]'")
def test_regions_are_drawn_where_the_image_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lima2cli.web.page.facts import layout_of

    monkeypatch.chdir(tmp_path)
    with l2.run(PIPELINE, transport="inline") as run:
        run.trigger(3)
        run.wait(60)
        layout = layout_of("k", run)
    assert {node: view.shape for node, view in layout.saved.items()} == {"whole": (48, 64), "part": (48, 64)}
    assert layout.live["few"] == layout.saved["part"]
