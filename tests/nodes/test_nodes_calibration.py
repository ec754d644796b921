"""Calibration images brought to the shape of a node's input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lima2cli.errors import FileProblem, NodeMisuse
from lima2cli.frames import Array, FrameSpec
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Inputs
from lima2cli.nodes.calibration import bad_pixels, calibration
from lima2cli.view import View
from tests.node_inputs import MemoryFiles, spec_of

PART = FrameSpec("uint16", View(Rect(1, 2, 4, 3)), (10, 8))


def test_an_image_of_the_inputs_shape_is_taken_as_it_is() -> None:
    image = np.arange(12, dtype=np.uint16).reshape(3, 4)
    got = calibration("i", Inputs.of(PART, MemoryFiles(i=image)), "image", "sum")
    np.testing.assert_array_equal(got, image)
    assert np.asarray(got).dtype == np.float64


def test_an_image_of_the_detectors_shape_is_cut() -> None:
    image = np.arange(80, dtype=np.int32).reshape(8, 10)
    np.testing.assert_array_equal(
        calibration("i", Inputs.of(PART, MemoryFiles(i=image)), "image", "sum"), image[2:5, 1:5]
    )


def test_a_stack_is_averaged_in_float64() -> None:
    stack = np.stack([np.full((3, 4), 2**31 - 1, np.int32), np.full((3, 4), 2**31 - 2, np.int32)])
    got = calibration("i", Inputs.of(PART, MemoryFiles(i=stack)), "image", "sum")
    np.testing.assert_array_equal(got, np.full((3, 4), 2**31 - 1.5))


@pytest.mark.parametrize("shape", [(8, 10), (3, 4)])
def test_bad_pixels_of_a_stack_are_bad_in_any(shape: tuple[int, int]) -> None:
    stack = np.zeros((2, *shape), np.uint8)
    y, x = (2, 1) if shape == (8, 10) else (0, 0)
    stack[0, y, x], stack[1, y + 1, x + 1] = 1, 255
    got = bad_pixels("m", Inputs.of(PART, MemoryFiles(m=stack)), "image")
    assert got is not None
    assert np.argwhere(got).tolist() == [[0, 0], [1, 1]]


def test_bad_pixels_of_bool_nan_and_numbers() -> None:
    spec = spec_of("uint16", 1, 2)
    np.testing.assert_array_equal(
        bad_pixels("m", Inputs.of(spec, MemoryFiles(m=np.array([[True, False]]))), "image"), [[True, False]]
    )
    np.testing.assert_array_equal(
        bad_pixels("m", Inputs.of(spec, MemoryFiles(m=np.array([[0, np.nan]]))), "image"), [[False, True]]
    )
    assert bad_pixels("m", Inputs.of(spec, MemoryFiles(m=np.zeros((1, 2)))), "image") is None
    assert bad_pixels(0, Inputs.of(spec, MemoryFiles()), "image") is None
    np.testing.assert_array_equal(bad_pixels(2, Inputs.of(spec, MemoryFiles()), "image"), [[True, True]])


@pytest.mark.parametrize("shape", [(4, 3), (10, 8), (8, 11), (2, 10, 8), (0, 3, 4)])
def test_another_shape_is_refused_naming_both(shape: tuple[int, ...]) -> None:
    reads: list[Callable[..., Any]] = [lambda *given: calibration(*given, "sum"), bad_pixels]
    for read in reads:
        with pytest.raises(NodeMisuse) as refused:
            read("dark.h5::/d", Inputs.of(PART, MemoryFiles({"dark.h5::/d": np.zeros(shape)})), "background")
        assert (refused.value.rule, refused.value.key) == ("calibration-shape", ("background",))
        if shape[0]:
            assert "4 x 3" in refused.value.message
            assert "10 x 8" in refused.value.message
        assert ("transposed" in (refused.value.help or "")) == (shape[-2:] in [(4, 3), (10, 8)])


@pytest.mark.parametrize("image", [np.zeros((3, 4), complex), np.zeros((3, 4), "S3"), np.zeros((3, 4), bool)])
def test_only_real_numbers_calibrate(image: Array) -> None:
    with pytest.raises(NodeMisuse, match="not real numbers") as refused:
        calibration("i", Inputs.of(PART, MemoryFiles(i=image)), "image", "sum")
    assert refused.value.rule == "calibration-dtype"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_are_finite(number: Any) -> None:
    with pytest.raises(NodeMisuse):
        calibration(number, Inputs.of(PART, MemoryFiles()), "image", "sum")


def test_a_missing_file_is_told_of() -> None:
    with pytest.raises(FileProblem):
        calibration("gone.h5::/d", Inputs.of(PART, MemoryFiles()), "image", "sum")
