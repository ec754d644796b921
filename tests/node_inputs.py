"""Inputs of nodes in tests: files in memory, specs, blocks of all layouts, nodes as users write them."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from lima2cli.declare import Shape, Table
from lima2cli.declare.reading import Reading
from lima2cli.diagnostics import Findings, KeyPath
from lima2cli.errors import FileProblem
from lima2cli.frames import Array, Block, FrameReader, FrameSpec, StackInfo
from lima2cli.geometry import Rect
from lima2cli.nodes.registry import node_kinds
from lima2cli.testing.inputs import padded
from lima2cli.view import View

__all__ = ["DTYPES", "MemoryFiles", "block", "node", "padded", "pixels", "read", "spec_of", "splits"]

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


class MemoryFiles:
    """`Files` over arrays by reference."""

    def __init__(self, arrays: Mapping[str, Array] | None = None, **more: Array) -> None:
        self._arrays = {**(arrays or {}), **more}

    def image(self, reference: str) -> Array:
        if reference not in self._arrays:
            raise FileProblem(f"{reference}: no such file", "file-missing")
        return self._arrays[reference]

    def stack(self, reference: str, *, skip: bool = False) -> StackInfo:
        array = self.image(reference)
        shape = array.shape if array.ndim == 3 else (1, *array.shape)
        return StackInfo(shape, str(array.dtype))

    def frames(self, reference: str, *, skip: bool = False) -> FrameReader:
        raise NotImplementedError

    def backing(self, reference: str) -> tuple[str, ...]:
        return ()

    def path(self, reference: str) -> str:
        raise NotImplementedError


class _Unbounded(Reading):
    def look(self, data: Any, at: KeyPath) -> None:
        pass


def read(shape: Shape, data: Any) -> Any:
    """Return the Python value of data that fit; numbers may be larger than texts can give.

    Raises: ValueError, with all that is wrong.
    """
    reading = _Unbounded(Findings())
    value = shape.read(data, (), reading)
    if reading.findings.failed:
        raise ValueError("; ".join(f"{item.at}: {item.message}" for item in reading.findings))
    return value


def node(kind: str, **parameters: Any) -> Any:
    """A node from what a user writes below its kind; tuples stand for lists, None for nothing."""
    written = {key: _written(value) for key, value in parameters.items() if value is not None}
    return read(Table(node_kinds()[kind]), written)


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    return [_written(item) for item in value] if isinstance(value, list | tuple) else value


def spec_of(dtype: str, height: int, width: int, **more: Any) -> FrameSpec:
    """Full frames of a detector of this size."""
    return FrameSpec(dtype, View(Rect(0, 0, width, height)), (width, height), **more)


def pixels(dtype: str, shape: tuple[int, ...], seed: int = 1) -> Array:
    """Read-only pixels over the dtype's range (floats: +-1e4), the extremes among them."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        values = random.uniform(-1e4, 1e4, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        values = random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        values.flat[0], values.flat[-1] = limits.min, limits.max
    values.flags.writeable = False
    return values


def block(frames: Array, first: int = 0, step: int = 1) -> Block:
    """A block numbered from ``first``, a frame each ms."""
    numbers = np.arange(first, first + step * len(frames), step, dtype=np.uint64)
    return Block(frames, numbers, numbers * np.uint64(1_000_000))


def splits(count: int, cuts: list[int]) -> list[slice]:
    """Consecutive pieces of ``count`` frames, cut where ``cuts`` say."""
    edges = sorted({0, count, *(cut for cut in cuts if 0 < cut < count)})
    return [slice(a, b) for a, b in pairwise(edges)]


TWO_MODULES = """\
lima2: 1
name: t
detector:
  remu:
    image: {width: 64, height: 48}
    datasets: {data: {dtype: uint16}}
    scene: {counter: {}}
    modules: {columns: 1, rows: 2, width: 64, height: 20, gap: {y: 8}}
acquisition: {frames: 12}
receivers: {a: {threads: 2}, b: {}}
flows: {data: {DISPATCH}}
nodes:
"""
"""The beginning of a pipeline whose frames are those of the scene `counter`, of two modules with a gap between them."""
