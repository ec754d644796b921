"""Inputs of nodes in conformance tests."""

import pickle
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from lima2cli.declare import Table, params
from lima2cli.errors import FileProblem
from lima2cli.frames import Array, Block, FrameReader, FrameSpec, StackInfo, TableSpec
from lima2cli.geometry import Rect
from lima2cli.plugins import KIND
from lima2cli.view import View


class NoFiles:
    """`Files` without a file."""

    def stack(self, reference: str, *, skip: bool = False) -> StackInfo:
        """Raise `FileProblem`."""
        raise FileProblem(f"{reference}: no such file", "file-missing")

    def image(self, reference: str) -> Array:
        """Raise `FileProblem`."""
        raise FileProblem(f"{reference}: no such file", "file-missing")

    def frames(self, reference: str, *, skip: bool = False) -> FrameReader:
        """Raise `FileProblem`."""
        raise FileProblem(f"{reference}: no such file", "file-missing")

    def backing(self, reference: str) -> tuple[str, ...]:
        """Return no file."""
        return ()

    def path(self, reference: str) -> str:
        """Raise `FileProblem`."""
        raise FileProblem(f"{reference}: no such file", "file-missing")


def frame_spec(dtype: str, height: int, width: int, **more: Any) -> FrameSpec:
    """Return full frames of a detector of this size; ``more``: mask, saturation, invalid."""
    return FrameSpec(dtype, View(Rect(0, 0, width, height)), (width, height), **more)


def parts_of(spec: FrameSpec) -> tuple[FrameSpec, FrameSpec]:
    """Return the upper and the lower part of whole frames, as two receivers hold them."""
    height, width = spec.shape
    upper, lower = (
        replace(
            spec,
            view=spec.view.cut(part),
            mask=None if spec.mask is None else spec.mask[part.y : part.bottom],
            whole=spec.view,
        )
        for part in (Rect(0, 0, width, height // 2), Rect(0, height // 2, width, height - height // 2))
    )
    return upper, lower


def random_frames(spec: FrameSpec, count: int, seed: int = 1) -> Array:
    """Return read-only frames (count, height, width) over the whole range of the dtype, its limits among them.

    Floats are up to 10000 either way, with one NaN.
    """
    random = np.random.default_rng(seed)
    shape, dtype = (count, *spec.shape), np.dtype(spec.dtype)
    frames: Array
    if dtype.kind == "f":
        frames = random.uniform(-1e4, 1e4, shape).astype(dtype)
        frames[0, -1, -1] = np.nan
    else:
        limits = np.iinfo(dtype)
        frames = random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        frames.flat[0], frames.flat[-1] = limits.min, limits.max
    frames.flags.writeable = False
    return frames


def random_rows(table: TableSpec, numbers: NDArray[np.uint64], seed: int = 1) -> dict[str, NDArray[Any]]:
    """Return read-only rows of frames ``numbers`` (n,): columns (n,) or (n, length), small values, a NaN in floats."""
    random = np.random.default_rng(seed)
    rows = {"frame_number": numbers.copy()}
    for name, dtype in table.columns.items():
        shape = (len(numbers), *((table.lengths[name],) if name in table.lengths else ()))
        rows[name] = random.integers(0, 100, shape).astype(dtype)
        if rows[name].dtype.kind == "f":
            rows[name][-1:] = np.nan
    for values in rows.values():
        values.flags.writeable = False
    return rows


def padded(frames: Array) -> Array:
    """Return the same frames (n, height, width), read-only, with gaps between rows and frames, as in aligned slots."""
    count, height, width = frames.shape
    memory = np.zeros((count, height + 2, width + 5), frames.dtype)
    view = memory[:, 1 : height + 1, 2 : width + 2]
    view[...] = frames
    view.flags.writeable = False
    return view


FIRST, STEP = 10, 2
"""Frames are numbered 10, 12, 14…"""


def frame_block(frames: Array, begin: int = 0, end: int | None = None) -> Block:
    """Return frames ``begin`` to ``end`` of a flow that selects every second one from number 10 on; one each ms."""
    part = frames[begin:end]
    numbers = FIRST + STEP * np.arange(begin, begin + len(part), dtype=np.uint64)
    return Block(part, numbers, np.uint64(10**18) + numbers * np.uint64(1_000_000))


SPLITS: tuple[tuple[int, ...], ...] = ((), (1,), (3, 4), (2, 4, 6), (1, 2, 3, 4, 5, 6))
"""The places at which 7 frames are cut into blocks."""

COUNT = 7


def blocks(frames: Array, cuts: Sequence[int]) -> list[Block]:
    """Return frames (n, height, width) as consecutive blocks, cut before the indices ``cuts``."""
    return [frame_block(frames, begin, end) for begin, end in pairwise([0, *cuts, len(frames)])]


def leave_out(tests: type, prefixes: Sequence[str]) -> None:
    """Hide the tests that begin so from pytest. Raises TypeError where a base class lacks tests that this one needs."""
    for name in [name for name in dir(tests) if name.startswith("test_")]:
        if name.startswith(tuple(prefixes)):
            setattr(tests, name, None)
        elif getattr(tests, name) is None:
            raise TypeError(f"{tests.__name__} lacks {name}: {tests.mro()[1].__name__} is for something else")


def check_declaration(value: Any) -> None:
    """Assert that it is a frozen dataclass with a kind, whose fields are parameters with a doc, and can be pickled."""
    table = type(value)
    assert re.fullmatch(KIND, table.kind), "kinds are written in small letters, digits and _"
    assert (table.__doc__ or "").strip(), "the class has a docstring: its first paragraph stands in lists"
    assert not (table.__doc__ or "").startswith(f"{table.__name__}("), "dataclass made the docstring: write one"
    assert {field.name for field in fields(table)} == set(params(table)), "each field is made by `param`"
    assert all(declared.doc.strip() for declared in params(table).values()), "each parameter has a doc"
    schema = Table(table).schema()
    Draft202012Validator.check_schema(schema)
    assert schema["properties"].keys() == params(table).keys()
    name = next(iter(params(table)), "kind")
    with pytest.raises((FrozenInstanceError, AttributeError)):
        setattr(value, name, None)
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301  made here


def same_spec(one: Any, other: Any) -> bool:
    """Return whether two specs are equal."""
    if type(one) is not type(other):
        return False
    if not isinstance(one, FrameSpec):
        return bool(one == other)
    if one.mask is None or other.mask is None:
        same_mask = one.mask is other.mask
    else:
        same_mask = np.array_equal(one.mask, other.mask)
    rest = [field.name for field in fields(FrameSpec) if field.name != "mask"]
    values = [(getattr(one, name), getattr(other, name)) for name in rest]
    return same_mask and all(mine == yours or repr(mine) == repr(yours) == "nan" for mine, yours in values)
