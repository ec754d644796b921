"""Modules of a detector: how they are written, the rectangles that they cover, and the gaps between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lima2cli.declare import Either, Integer, ListOf, Shape, Table, pair, param
from lima2cli.errors import NodeMisuse
from lima2cli.frames import DatasetInfo
from lima2cli.geometry import Rect

LARGEST = 65536
"""Pixels of an image along one axis."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Pixels between neighbouring modules."""

    x: int = param("Columns between modules.", Integer(0, LARGEST), 0)
    y: int = param("Rows between modules.", Integer(0, LARGEST), 0)


GAP: Shape = pair(Gap, Integer(0, LARGEST))


@dataclass(frozen=True, kw_only=True)
class ModuleGrid:
    """Equal modules from the top left corner on, numbered row by row."""

    columns: int = param("Modules side by side.", Integer(1, 256), 1)
    rows: int = param("Modules one below the other.", Integer(1, 256), 1)
    width: int = param("Columns of pixels of a module.", Integer(1, LARGEST))
    height: int = param("Rows of pixels of a module.", Integer(1, LARGEST))
    gap: Gap = param("Pixels between neighbours.", GAP, Gap())

    def rects(self) -> list[Rect]:
        """Return one rectangle per module."""
        right, down = self.width + self.gap.x, self.height + self.gap.y
        return [
            Rect(column * right, row * down, self.width, self.height)
            for row in range(self.rows)
            for column in range(self.columns)
        ]


@dataclass(frozen=True, kw_only=True)
class Module:
    """Rectangle of the image that a module covers, in pixels."""

    x: int = param("First column.", Integer(0, LARGEST))
    y: int = param("First row.", Integer(0, LARGEST))
    width: int = param("Columns.", Integer(1, LARGEST))
    height: int = param("Rows.", Integer(1, LARGEST))


Modules = ModuleGrid | tuple[Module, ...] | None

MODULES: Shape = Either((Table(ModuleGrid), ListOf(Table(Module), minimum=1)))
"""A grid, or a list of rectangles."""


def lay_out_modules(modules: Modules, image: Rect) -> tuple[Rect, ...]:
    """Return the rectangles of all modules; None is one that covers the image.

    Raises:
        NodeMisuse: (module-outside, module-overlap) with a key that begins with ``modules``.
    """
    if modules is None:
        return (image,)
    if isinstance(modules, ModuleGrid):
        rects = modules.rects()
        _check_inside(rects[-1:], image, ("modules",), len(rects) - 1)
        return tuple(rects)
    rects = [Rect(module.x, module.y, module.width, module.height) for module in modules]
    for i, rect in enumerate(rects):
        _check_inside([rect], image, ("modules", i), i)
    _check_apart(rects)
    return tuple(rects)


def _check_inside(rects: list[Rect], image: Rect, key: tuple[str | int, ...], number: int) -> None:
    for rect in rects:
        if not image.contains(rect):
            size = f"at least {rect.right} x {rect.bottom}"
            raise NodeMisuse(
                "module-outside",
                f"module {number} ({rect}) lies beyond the image of {image.width} x {image.height} pixels",
                key,
                help=f"the image must be {size}" if key == ("modules",) else None,
            )


def _check_apart(rects: list[Rect]) -> None:
    order = sorted(range(len(rects)), key=lambda i: rects[i].y)
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if rects[j].y >= rects[i].bottom:
                break  # so are all after it
            if (rects[i] & rects[j]).area:
                first, second = sorted((i, j))
                raise NodeMisuse(
                    "module-overlap",
                    f"modules {first} ({rects[first]}) and {second} ({rects[second]}) overlap",
                    ("modules", second),
                )


def check_gap_value(value: float, datasets: Sequence[DatasetInfo]) -> None:
    """Raise `NodeMisuse` (gap-value) where a dataset's dtype cannot hold the value of pixels without a module."""
    for dataset in datasets:
        dtype = np.dtype(dataset.dtype)
        if dtype.kind == "f":
            fits = math.isnan(value) or abs(value) <= float(np.finfo(dtype).max)
        else:
            limits = np.iinfo(dtype)
            fits = math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
        if not fits:
            message = f"{value} does not fit the pixels of dataset {dataset.name} ({dataset.dtype})"
            help = "nan goes with frames of floats only" if math.isnan(value) else None
            raise NodeMisuse("gap-value", message, ("gap_value",), help)
