"""Random sequences of cutting, binning, flipping and rotating, done slowly by numpy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lima2cli.geometry import Rect
from lima2cli.view import View

Step = tuple[str, Any]
"""("bin", (x, y)), ("cut", Rect), ("flip", (horizontal, vertical)) or ("rotate", degrees)."""


@dataclass(frozen=True)
class Chain:
    """Draw the steps that are done to an image of this size."""

    width: int
    height: int
    steps: tuple[Step, ...]

    def oracle(self, image: Any, gather: Callable[[Any], Any]) -> Any:
        """An image (height, width) after all steps; ``gather`` makes one pixel of a list of pixels."""
        for step in self.steps:
            image = _slowly(image, step, gather)
        return image


def do(view: View, step: Step) -> View:
    """One step."""
    kind, value = step
    if kind == "bin":
        return view.bin(*value)
    if kind == "cut":
        return view.cut(value)
    if kind == "flip":
        return view.flip(horizontal=value[0], vertical=value[1])
    return view.rotate(value)


def _slowly(image: Any, step: Step, gather: Callable[[Any], Any]) -> Any:
    kind, value = step
    if kind == "cut":
        return image[value.y : value.bottom, value.x : value.right]
    if kind == "rotate":
        return np.rot90(image, -value // 90)
    if kind == "flip":
        image = image[:, ::-1] if value[0] else image
        return image[::-1] if value[1] else image
    x, y = value
    out = np.empty((image.shape[0] // y, image.shape[1] // x), image.dtype)
    for row, column in np.ndindex(*out.shape):
        out[row, column] = gather(list(image[row * y : row * y + y, column * x : column * x + x].ravel()))
    return out


@st.composite
def _chains(draw: st.DrawFn) -> Chain:
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    columns, rows, steps = width, height, []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["bin", "cut", "flip", "rotate"]))
        value: Any
        if kind == "bin":
            value = draw(st.integers(1, min(3, columns))), draw(st.integers(1, min(3, rows)))
            columns, rows = columns // value[0], rows // value[1]
        elif kind == "cut":
            x, y = draw(st.integers(0, columns - 1)), draw(st.integers(0, rows - 1))
            value = Rect(x, y, draw(st.integers(1, columns - x)), draw(st.integers(1, rows - y)))
            columns, rows = value.width, value.height
        elif kind == "flip":
            value = draw(st.booleans()), draw(st.booleans())
        else:
            value = draw(st.sampled_from([0, 90, 180, 270]))
            columns, rows = (rows, columns) if value % 180 else (columns, rows)
        steps.append((kind, value))
    return Chain(width, height, tuple(steps))


CHAINS = _chains()
