"""The parts of frames, limits of colours and words that a page is sent, without a browser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lima2cli.drive import LiveFrame
from lima2cli.geometry import Rect
from lima2cli.view import View
from lima2cli.web.page import text
from lima2cli.web.page.facts import Facts, corners
from lima2cli.web.page.image import MOST, fit, limits, window

ALL = (-1e9, 1e9)


def test_small_frames_are_sent_whole() -> None:
    frame = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
    shown = window(frame, None, ALL, ALL)
    assert np.array_equal(shown.pixels, frame)
    assert shown.pixels.dtype == np.uint16
    assert shown.place == (-0.5, -0.5, 64, 48)


@pytest.mark.parametrize("x_range", [ALL, (-0.5, 4147.5), (101.2, 3999.9), (1000.0, 1300.0), (4000.0, 9000.0)])
@pytest.mark.parametrize("y_range", [ALL, (2000.0, 17.0)])
def test_every_nth_pixel_of_what_is_visible_is_sent(x_range: Any, y_range: Any) -> None:
    """True values, at the places that they have in the frame; all that is visible is covered."""
    frame = np.random.default_rng(1).integers(0, 1 << 16, (2162, 4148), np.uint16)
    shown = window(frame, frame > 60000, x_range, y_range)
    assert max(shown.pixels.shape) <= MOST + 1
    rows, columns = np.indices(shown.pixels.shape)
    assert np.array_equal(shown.pixels, frame[shown.y + shown.step * rows, shown.x + shown.step * columns])
    assert shown.masked is not None
    assert np.array_equal(shown.masked, shown.pixels > 60000)
    left, top, width, height = shown.place
    low, high = max(0, min(x_range)), min(4147, max(x_range))
    assert left <= low
    assert left + width >= high
    low, high = max(0, min(y_range)), min(2161, max(y_range))
    assert top <= low
    assert top + height >= high


@pytest.mark.parametrize("ranges", [(np.nan, np.nan), (-20.0, -10.0), (500.0, 600.0)])
def test_all_is_sent_where_nothing_of_it_is_visible(ranges: Any) -> None:
    assert window(np.zeros((48, 64), np.uint8), None, ranges, ranges).pixels.shape == (48, 64)


@pytest.mark.parametrize(
    ("dtype", "sent"), [("uint64", "float64"), ("int64", "float64"), (">u2", "uint16"), ("f4", "f4")]
)
def test_values_stay_in_what_browsers_show(dtype: str, sent: str) -> None:
    frame = np.arange(12).astype(dtype).reshape(3, 4)
    shown = window(frame, None, ALL, ALL).pixels
    assert shown.dtype == np.dtype(sent)
    assert np.array_equal(shown, frame)


def test_limits_are_those_of_measured_pixels() -> None:
    frame = np.full((100, 100), 10.0)
    frame[0, :50], frame[1], frame[2, 0] = 1e9, np.nan, np.inf
    frame[3:60] = 20.0
    mask = frame == 1e9
    assert limits(window(frame, mask, ALL, ALL), "linear") == (10.0, 20.0)
    zeros = np.zeros((10, 10))
    assert limits(window(zeros, None, ALL, ALL), "linear") == (0.0, 1.0)
    assert limits(window(zeros, None, ALL, ALL), "log") == (1.0, 10.0)
    zeros[:5] = 3
    assert limits(window(zeros, None, ALL, ALL), "log") == (3.0, 30.0)
    assert limits(window(np.full((9, 9), np.nan), None, ALL, ALL), "linear") == (0.0, 1.0)


@pytest.mark.parametrize(
    ("shape", "across", "down"), [((48, 64), 700, 560), ((512, 2), 700, 560), ((2, 4096), 300, 900)]
)
def test_all_of_a_frame_fits_and_pixels_are_square(shape: tuple[int, int], across: int, down: int) -> None:
    x, y = fit(shape, across, down)
    assert (x[1] - x[0]) / across == pytest.approx((y[1] - y[0]) / down)
    assert x[0] <= -0.5 + 1e-9
    assert x[1] >= shape[1] - 0.5 - 1e-9
    assert min(x[1] - x[0] - shape[1], y[1] - y[0] - shape[0]) == pytest.approx(0)


def test_outlines_are_closed_and_turn_with_frames() -> None:
    square = [[(3.5, 1.5), (5.5, 1.5), (5.5, 4.5), (3.5, 4.5)]]
    view = View(Rect(2, 1, 8, 6)).rotate(90)
    (line,) = corners(square, view)
    assert line[0] == line[-1]
    assert {(x, y) for x, y in line} == {(5 - (y - 1), x - 2) for x, y in square[0]}


def test_words_of_runs_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    assert "<script" not in text.head(Facts([], problem=evil))
    assert "<script" not in text.warnings([evil] * 7)
    assert "and 2 more" in text.warnings([evil] * 7)
    frame = LiveFrame("a", 3, 0, 1, evil, np.zeros((2, 3), np.uint16))
    assert "<script" not in text.about(frame, "") + text.about(None, evil)
    assert "uint16 3 x 2" in text.about(frame, "")


def test_no_page_is_imported_by_other_commands() -> None:
    import subprocess
    import sys

    script = (
        "import sys, lima2cli.cli, lima2cli.drive; print({'tornado', 'bokeh', 'prometheus_client'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from tests.running import lima2

    for name in [name for name in sys.modules if name.startswith(("lima2cli.web", "tornado"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tornado", None)
    done = lima2("serve", cwd=tmp_path)
    assert done.returncode == 12
    assert "pip install 'lima2cli[serve]'" in done.stderr
