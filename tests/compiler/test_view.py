"""Views of a detector by its frames, against numpy doing one thing after the other to an image of pixel numbers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2cli.geometry import Rect
from lima2cli.view import View, view_from, view_plain
from tests.geometry_chains import CHAINS, Chain, do


def shown_pixels(chain: Chain) -> tuple[View, Any]:
    """The view, and by numpy the set of detector pixel numbers of each shown pixel."""
    numbers = np.empty((chain.height, chain.width), object)
    for i in range(numbers.size):
        numbers.flat[i] = frozenset([i])
    view = View(Rect(0, 0, chain.width, chain.height))
    for step in chain.steps:
        view = do(view, step)
    return view, chain.oracle(numbers, lambda sets: frozenset().union(*sets))


@given(CHAINS)
def test_each_shown_pixel_is_made_of_the_detectors(chain: Chain) -> None:
    view, sets = shown_pixels(chain)
    assert view.shape == sets.shape
    for row, column in np.ndindex(*sets.shape):
        behind = view.behind(Rect(column, row, 1, 1))
        pixels = {y * chain.width + x for y in range(behind.y, behind.bottom) for x in range(behind.x, behind.right)}
        assert pixels == sets[row, column]
        assert view.inside(behind) == Rect(column, row, 1, 1)
        center = behind.x + (behind.width - 1) / 2, behind.y + (behind.height - 1) / 2
        assert view.point(*center) == (column, row)
        assert view.place(column, row) == center
    assert view_from(view_plain(view)) == view


@given(CHAINS, st.sampled_from(["sum", "mean", "any"]))
def test_images_of_the_detector_are_shown_as_frames_are(chain: Chain, how: Any) -> None:
    view, sets = shown_pixels(chain)
    image = np.random.default_rng(1).integers(-1, 2, (2, chain.height, chain.width))
    shown = view.apply(image, how)
    reduce: Any = {"sum": np.sum, "mean": np.mean, "any": np.any}[how]
    assert shown.shape == (2, *sets.shape)
    for row, column in np.ndindex(*sets.shape):
        expected = reduce(image.reshape(2, -1)[:, sorted(sets[row, column])], axis=1)
        # without binning the image is shown as it is
        np.testing.assert_array_equal(shown[:, row, column].astype(expected.dtype), expected)


@given(CHAINS, st.integers(0, 8), st.integers(0, 8), st.integers(1, 9), st.integers(1, 9))
def test_of_a_rectangle_those_pixels_are_shown_that_lie_wholly_in_it(
    chain: Chain, x: int, y: int, width: int, height: int
) -> None:
    view, sets = shown_pixels(chain)
    asked = {j * chain.width + i for j in range(y, y + height) for i in range(x, min(x + width, chain.width))}
    expected = [[bool(pixels <= asked) for pixels in row] for row in sets]
    got = np.zeros(sets.shape, bool)
    got[view.inside(Rect(x, y, width, height)).within(Rect(0, 0, 0, 0))] = True
    np.testing.assert_array_equal(got, expected)


@given(CHAINS)
def test_turning_back_undoes_turning(chain: Chain) -> None:
    view, _ = shown_pixels(chain)
    bins = np.arange(view.bins[0] * view.bins[1]).reshape(view.bins[::-1])
    np.testing.assert_array_equal(view.turn_back(view.turn(bins)), bins)
    assert view.turn(bins).shape == view.shape
    part = Rect(0, 0, max(1, view.bins[0] // 2), max(1, view.bins[1] // 2))
    turned = view.turn(bins)[view.placed(part).within(Rect(0, 0, 0, 0))]
    assert set(turned.ravel()) == set(bins[: part.height, : part.width].ravel())


@pytest.mark.parametrize(
    ("degrees", "expected"), [(0, [[1, 2], [3, 4]]), (90, [[3, 1], [4, 2]]), (270, [[2, 4], [1, 3]])]
)
def test_rotation_is_clockwise(degrees: int, expected: list[list[int]]) -> None:
    shown = View(Rect(0, 0, 2, 2)).rotate(degrees).apply(np.array([[1, 2], [3, 4]]), "sum")
    assert shown.tolist() == expected


def test_pixels_are_as_wide_as_their_bins_as_shown() -> None:
    view = View(Rect(0, 0, 8, 9)).bin(4, 3).rotate(90)
    assert (view.pixel, view.binning, view.shape) == ((3, 4), (4, 3), (2, 3))
    again = view.bin(3, 1)  # along what were rows
    assert (again.binning, again.shape, again.area) == ((4, 9), (2, 1), Rect(0, 0, 8, 9))


def test_what_trails_in_a_turned_image_leads_on_the_detector() -> None:
    assert View(Rect(0, 0, 7, 5)).flip(horizontal=True, vertical=True).bin(2, 2).area == Rect(1, 1, 6, 4)
