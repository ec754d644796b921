"""Transforms by themselves: accumulate and python, against numpy, in any split of blocks."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.errors import FileProblem, NodeMisuse, UserCodeError
from lima2cli.frames import DTYPES, Block, FrameSpec, Invalid
from lima2cli.geometry import Rect, Rule
from lima2cli.inputs.stacks import FileStore
from lima2cli.kernels.strips import store
from lima2cli.nodes.accumulate import Accumulate
from lima2cli.nodes.base import BlockDropped, Inputs, Transform
from lima2cli.nodes.python import Python
from lima2cli.nodes.user_function import FunctionOutput
from lima2cli.view import View

FILES = FileStore(Path())


def spec_of(frames: np.ndarray) -> FrameSpec:  # type: ignore[type-arg]
    height, width = frames.shape[1:]
    return FrameSpec(str(frames.dtype), View(Rect(0, 0, width, height)), (width, height))


def rule(start: int = 0, step: int = 1, count: int | None = None, blocks: int = 1, buffers: int = 1) -> Rule:
    return Rule(start, step, count, blocks, buffers, 100, 1)


def through(
    node: Transform,
    frames: np.ndarray,
    numbers: np.ndarray,
    cuts: list[int],
    of: Rule,  # type: ignore[type-arg]
) -> tuple[Any, list[int], list[int]]:
    """Return all that leaves a node when frames enter in blocks cut at ``cuts``: frames, numbers, times."""
    started = node.bind(Inputs.of(spec_of(frames), FILES, rule=of))
    out, found, times = [], [], []
    edges = [0, *sorted({c for c in cuts if 0 < c < len(frames)}), len(frames)]
    blocks = [started.step(Block(frames[a:b], numbers[a:b], numbers[a:b] * 10)) for a, b in itertools.pairwise(edges)]
    for block in [*blocks, started.finish()]:
        if block is not None:
            out.append(block.frames.copy())
            found += block.numbers.tolist()
            times += block.times.tolist()
    started.close()
    return (np.concatenate(out) if out else None), found, times


@settings(max_examples=50)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from(["sum", "mean", "max"]),
    st.integers(0, 5),
    st.lists(st.integers(1, 22), max_size=5),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_accumulate_is_what_numpy_says(
    dtype: str, operation: str, n: int, cuts: list[int], start: int, step: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    frames = random.integers(0, 100, (23, 3, 5)).astype(dtype)
    numbers = (np.arange(23) * step + start).astype(np.uint64)
    node = Accumulate(frames=n, operation=operation)
    got, found, times = through(node, frames, numbers, cuts, rule(start, step))
    size = n or 23
    windows = [frames[i : i + size] for i in range(0, 23 - size + 1, size)]
    exact = np.float64 if np.dtype(dtype).kind == "f" else np.int64
    expected = [
        w.max(axis=0)
        if operation == "max"
        else w.sum(axis=0, dtype=exact)
        if operation == "sum"
        else (w.sum(axis=0, dtype=exact) / size).astype(np.float32)
        for w in windows
    ]
    assert found == [int(numbers[i]) for i in range(0, 23 - size + 1, size)]
    assert times == [10 * number for number in found]
    assert got is not None
    assert got.dtype == node.infer(Inputs.of(spec_of(frames), FILES)).dtype
    if exact is np.int64:
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@settings(max_examples=150)
@given(
    dtype=st.sampled_from(DTYPES),
    n=st.integers(1, 9),
    cuts=st.lists(st.integers(1, 8), max_size=5),
    offset=st.sampled_from([0, 1, 1 << 15, 1 << 31, 1 << 52]),
    width=st.sampled_from([0, 1, 3, 1 << 14]),
    seed=st.integers(0, 2**31),
)
def test_standard_deviations(dtype: str, n: int, cuts: list[int], offset: int, width: int, seed: int) -> None:
    """By exact numbers, also of large values that hardly differ; blocks make no difference."""
    high = 2**24 if np.dtype(dtype).kind == "f" else int(np.iinfo(dtype).max)
    top = min(offset + width, high)
    values = np.random.default_rng(seed).integers(max(0, top - width), top, (n, 2, 3), endpoint=True)
    frames, numbers = values.astype(dtype), np.arange(n, dtype=np.uint64)
    node = Accumulate(frames=n, operation="std")
    got, _, _ = through(node, frames, numbers, cuts, rule())
    assert got.dtype == np.float32
    for place in np.ndindex(2, 3):
        exact = [Fraction(value.item()) for value in frames[:, *place]]
        mean = sum(exact) / n
        expected = float(sum((value - mean) ** 2 for value in exact) / n) ** 0.5
        np.testing.assert_allclose(got[0, *place], expected, rtol=2e-7)
    np.testing.assert_array_equal(got, through(node, frames, numbers, [], rule())[0])


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16"])
def test_standard_deviations_of_limits_and_of_many_frames(dtype: str) -> None:
    limits = np.iinfo(dtype)
    frames = np.where(np.arange(2000) % 2, limits.max, limits.min).astype(dtype)[:, None, None]
    got = through(Accumulate(frames=0, operation="std"), frames, np.arange(2000, dtype=np.uint64), [7], rule())[0]
    assert got.tolist() == [[[(int(limits.max) - int(limits.min)) / 2]]]
    same = np.full((2000, 1, 1), limits.max, dtype)
    same[-1] -= 1
    got = through(Accumulate(frames=0, operation="std"), same, np.arange(2000, dtype=np.uint64), [7], rule())[0]
    np.testing.assert_allclose(got[0, 0, 0], (1999 / 2000**2) ** 0.5, rtol=1e-7)


def test_an_invalid_first_value_is_no_reference() -> None:
    """Else differences from it would leave no digits for those that count."""
    values = np.array([2**32 - 1, 2**32 - 1, 10, 13, 2**32 - 1, 16], np.uint32)[:, None, None]
    spec = replace(spec_of(values), invalid=Invalid((2**32 - 1,)))
    for cuts in ([6], [1, 5], [2, 1, 3]):
        started = Accumulate(frames=6, operation="std").bind(Inputs.of(spec, FILES, rule=rule()))
        edges = [0, *itertools.accumulate(cuts)]
        numbers = np.arange(6, dtype=np.uint64)
        out = [started.step(Block(values[a:b], numbers[a:b], numbers[a:b])) for a, b in itertools.pairwise(edges)]
        assert out[-1] is not None
        assert out[-1].frames.tolist() == [[[np.float32(6**0.5).item()]]]


def test_a_window_that_lost_a_frame_gives_nothing() -> None:
    frames = np.ones((11, 2, 2), np.uint16)
    numbers = np.delete(np.arange(12), 5).astype(np.uint64)
    got, found, _ = through(Accumulate(frames=4), frames, numbers, [3, 7], rule())
    assert found == [0, 8]
    assert got.tolist() == (np.ones((2, 2, 2)) * 4).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "int64"])
def test_accumulate_clips_to_the_dtype_asked_for(dtype: str) -> None:
    frames = np.full((4, 1, 2), 200, np.uint16)
    node = Accumulate(frames=4, dtype=dtype)
    got, _, _ = through(node, frames, np.arange(4, dtype=np.uint64), [], rule())
    assert got.dtype == dtype
    assert got.tolist() == [[[min(800, np.iinfo(dtype).max)] * 2]]
    mean = Accumulate(frames=4, operation="mean", dtype=dtype)
    assert through(mean, frames, np.arange(4, dtype=np.uint64), [], rule())[0].tolist() == [
        [[min(200, np.iinfo(dtype).max)] * 2]
    ]


INTEGERS = tuple(name for name in DTYPES if np.dtype(name).kind in "iu")


def clipped(value: Any, dtype: str) -> int:
    """A number as an integer of ``dtype``, by exact arithmetic."""
    if value != value:
        return 0
    limits = np.iinfo(dtype)
    whole = value if isinstance(value, int) or math.isinf(value) else round(value)
    return int(min(max(whole, int(limits.min)), int(limits.max)))


@settings(max_examples=200)
@given(st.data(), st.sampled_from(INTEGERS), st.sampled_from(["sum", "max"]), st.sampled_from([None, *INTEGERS]))
def test_no_sum_of_integers_wraps(data: st.DataObject, dtype: str, operation: str, target: str | None) -> None:
    """Near the limits of every dtype, from every dtype: exact, or clipped."""
    limits = np.iinfo(dtype)
    near = st.integers(0, 3).flatmap(lambda i: st.sampled_from([int(limits.min) + i, int(limits.max) - i, i]))
    values = data.draw(st.lists(near, min_size=3, max_size=3))
    frames = np.array(values, dtype)[:, None, None]
    node = Accumulate(frames=3, operation=operation, dtype=target)
    got, _, _ = through(node, frames, np.arange(3, dtype=np.uint64), data.draw(st.lists(st.integers(1, 2))), rule())
    exact = sum(values) if operation == "sum" else max(values)
    assert int(got[0, 0, 0]) == clipped(exact, node.infer(Inputs.of(spec_of(frames), FILES)).dtype)


@settings(max_examples=200)
@given(
    st.sampled_from(["float32", "float64"]),
    st.sampled_from(INTEGERS),
    st.sampled_from([0.5, 1.5, -0.5, math.nan, math.inf, -math.inf, 2.0**31, 2.0**32, 2.0**63, 2.0**64, -(2.0**63)]),
    st.sampled_from([-math.inf, 0.0, math.inf]),
)  # fmt: skip
def test_no_float_wraps_in_an_integer(source: str, target: str, edge: float, to: float) -> None:
    """At the limits and beside them, where the nearest float is beyond that of the dtype."""
    value = np.dtype(source).type(edge)
    value = np.nextafter(value, np.dtype(source).type(to)) if to else value
    frames = np.full((1, 1, 1), value)
    for operation in ("max", "sum"):
        got, _, _ = through(
            Accumulate(frames=1, operation=operation, dtype=target), frames, np.arange(1, dtype=np.uint64), [], rule()
        )
        assert int(got[0, 0, 0]) == clipped(float(value), target)
    out = np.empty((1, 1, 1), target)
    if not np.isnan(value):
        store(frames.copy(), out)
        assert int(out[0, 0, 0]) == clipped(float(value), target)


def test_sums_beyond_float32_are_infinite_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    frames = np.full((2, 1, 1), 3e38, np.float32)
    node = Accumulate(frames=2, dtype="float32")
    assert through(node, frames, np.arange(2, dtype=np.uint64), [], rule())[0].tolist() == [[[math.inf]]]
    assert not recwarn


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_means_of_wide_integers_do_not_wrap(dtype: str) -> None:
    largest = int(np.iinfo(dtype).max)
    frames = np.full((3, 1, 1), largest, dtype)
    node = Accumulate(frames=3, operation="mean", dtype="float64")
    assert through(node, frames, np.arange(3, dtype=np.uint64), [1], rule())[0].tolist() == [[[float(largest)]]]


def test_accumulate_numbers_its_frames() -> None:
    two = rule(start=3, step=2, count=25, blocks=6, buffers=2)
    fewer, receivers, window = Accumulate(frames=3).numbering(two, (0, 1))
    assert (fewer.start, fewer.step, fewer.count, fewer.blocks, fewer.buffers, window) == (3, 6, 8, 2, 2, 3)
    assert list(receivers) == [0, 1]
    fewer, receivers, window = Accumulate(frames=4).numbering(two, (1, 1))
    assert (fewer.count, fewer.blocks, fewer.buffers, list(receivers), window) == (6, 1, 1, [1], 4)
    for node in (Accumulate(frames=4), Accumulate(frames=0)):
        with pytest.raises(NodeMisuse, match="several receivers"):
            node.numbering(two, (0, 1))


CODE = """
import numpy as np

def double(frames, numbers, factor=2):
    return frames * np.uint16(factor)

def row(frames, numbers):
    return frames.sum(axis=1, keepdims=True, dtype=np.float32)

def fails(frames, numbers):
    raise ValueError("no light")

def writes(frames, numbers):
    frames[0] = 0
    return frames

class Running:
    def __init__(self, spec, offset):
        self.last, self.offset, self.shape = 0, offset, spec.shape
        self.closed = []

    def __call__(self, frames, numbers):
        self.last += len(frames)
        return np.full(frames.shape, self.last + self.offset, frames.dtype)

    def close(self):
        raise RuntimeError("closed")
"""


@pytest.fixture
def code(tmp_path: Path) -> FileStore:
    (tmp_path / "user.py").write_text(CODE)
    return FileStore(tmp_path)


FRAMES = np.arange(24, dtype=np.uint16).reshape(4, 2, 3)
BLOCK = Block(FRAMES, np.arange(4, dtype=np.uint64), np.arange(4, dtype=np.uint64))


def test_a_function_gets_blocks_and_parameters(code: FileStore) -> None:
    node = Python(function="user.py:double", params={"factor": 3})
    result = node.bind(Inputs.of(spec_of(FRAMES), code, rule=rule())).step(BLOCK)
    assert result is not None
    np.testing.assert_array_equal(result.frames, FRAMES * 3)
    node = Python(function="user.py:row", output=FunctionOutput(dtype="float32", shape=(1, 3)))
    assert node.infer(Inputs.of(spec_of(FRAMES), code)).shape == (1, 3)
    result = node.bind(Inputs.of(spec_of(FRAMES), code, rule=rule())).step(BLOCK)
    assert result is not None
    np.testing.assert_array_equal(result.frames, FRAMES.sum(axis=1, keepdims=True))


def test_a_class_is_made_once_and_closed(code: FileStore) -> None:
    started = Python(function="user.py:Running", params={"offset": 10}).bind(
        Inputs.of(spec_of(FRAMES), code, rule=rule())
    )
    first, second = started.step(BLOCK), started.step(BLOCK)
    assert first is not None
    assert second is not None
    assert (first.frames[0, 0, 0], second.frames[0, 0, 0]) == (14, 18)
    with pytest.raises(UserCodeError, match="closed"):
        started.close()


def test_an_exception_stops_drops_or_passes(code: FileStore) -> None:
    line = CODE.splitlines().index('    raise ValueError("no light")') + 1
    spec = spec_of(FRAMES)
    with pytest.raises(UserCodeError, match=rf"user.py:{line}: ValueError: no light"):
        Python(function="user.py:fails").bind(Inputs.of(spec, code, rule=rule())).step(BLOCK)
    with pytest.raises(BlockDropped, match="no light"):
        Python(function="user.py:fails", on_error="drop").bind(Inputs.of(spec, code, rule=rule())).step(BLOCK)
    with pytest.raises(BlockDropped, match="no light") as given_up:
        Python(function="user.py:fails", on_error="pass").bind(Inputs.of(spec, code, rule=rule())).step(BLOCK)
    assert given_up.value.instead is BLOCK


def test_what_a_function_may_not_do(code: FileStore) -> None:
    spec = spec_of(FRAMES)
    with pytest.raises(UserCodeError, match="read-only"):
        Python(function="user.py:writes").bind(Inputs.of(spec, code, rule=rule())).step(BLOCK)
    with pytest.raises(UserCodeError, match=r"\(4, 1, 3\).*was declared"):
        Python(function="user.py:row").bind(Inputs.of(spec, code, rule=rule())).step(BLOCK)


def test_what_is_not_there_is_told_before_the_run(code: FileStore) -> None:
    spec = spec_of(FRAMES)
    with pytest.raises(NodeMisuse, match="does not define treble"):
        Python(function="user.py:treble").infer(Inputs.of(spec, code))
    with pytest.raises(NodeMisuse, match="no module nowhere_at_all"):
        Python(function="nowhere_at_all:f").infer(Inputs.of(spec, code))
    with pytest.raises(FileProblem, match=r"no file usr\.py"):
        Python(function="usr.py:double").infer(Inputs.of(spec, code))
    with pytest.raises(NodeMisuse, match="can't be passed on"):
        Python(function="user.py:row", output=FunctionOutput(shape=(1, 3)), on_error="pass").infer(
            Inputs.of(spec, code)
        )
