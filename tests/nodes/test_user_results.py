"""Results of users' functions in the declared dtype: every value, or an error that names one that is not there."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.errors import UserCodeError
from lima2cli.frames import DTYPES
from lima2cli.nodes.user_function import fitted

SOURCES = (*DTYPES, "bool", "float16", "longdouble", ">u2", ">i4", ">f8", "<u8")

BITS = (0, 7, 8, 15, 16, 24, 31, 32, 53, 63, 64)
EDGES = [
    *(sign * (2**bits + more) for bits in BITS for more in (-1, 0, 1) for sign in (1, -1)),
    *(0.5, -0.5, 2**24 + 0.5, 3.4e38, 3.5e38, 1e308, math.nan, math.inf, -math.inf, -0.0),
]


def held(source: str, value: float) -> Any:
    """The value of a dtype that is nearest."""
    dtype = np.dtype(source)
    if dtype.kind not in "iu":
        return dtype.type(value)
    limits = np.iinfo(dtype)
    return dtype.type(min(max(int(value), int(limits.min)), int(limits.max)) if math.isfinite(value) else 0)


def has(dtype: str, value: Any) -> bool:
    """Return whether a dtype has a value, by exact arithmetic."""
    target = np.dtype(dtype)
    if target.kind == "f":
        with np.errstate(over="ignore"):
            return bool(not np.isfinite(value) or np.isfinite(target.type(value)))
    if not np.isfinite(value):
        return False
    exact, limits = Fraction(int(value)) if value == np.rint(value) else None, np.iinfo(target)
    return exact is not None and limits.min <= exact <= limits.max


@settings(max_examples=400)
@given(st.sampled_from(SOURCES), st.sampled_from(DTYPES), st.lists(st.sampled_from(EDGES), min_size=6, max_size=6))
def test_every_value_or_the_first_that_does_not_fit(source: str, target: str, values: list[float]) -> None:
    with np.errstate(all="ignore"):
        returned = np.array([held(source, value) for value in values], source).reshape(3, 1, 2)
    numbers = np.array([10, 20, 30], np.uint64)
    bad = [i for i, value in enumerate(returned.ravel()) if not has(target, value)]
    if bad:
        with pytest.raises(UserCodeError) as raised:
            fitted(returned, numbers, (1, 2), target, "f")
        frame, x = divmod(bad[0], 2)
        assert raised.value.frame == numbers[frame]
        assert f"{returned.ravel()[bad[0]]} in frame {numbers[frame]} at y 0, x {x}, {target} has" in str(raised.value)
        return
    fit = fitted(returned, numbers, (1, 2), target, "f")
    assert fit.dtype == np.dtype(target)
    if np.dtype(target).kind == "f":
        np.testing.assert_array_equal(fit, returned.astype(target))
    else:
        assert [int(value) for value in fit.ravel()] == [int(value) for value in returned.ravel()]


NUMBERS = np.arange(4, 6, dtype=np.uint64)
FRAMES = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (None, "returned NoneType, uint16 (2, 3, 4) was declared"),
        (iter(FRAMES), "returned .*iterator"),
        (FRAMES.astype(complex), "values of the kind complex128"),
        (FRAMES.astype(object), "values of the kind object"),
        ([[[2**70] * 4] * 3] * 2, "values of the kind object"),
        (FRAMES.astype(str), "values of the kind <U"),
        (FRAMES.astype("datetime64[s]"), "values of the kind datetime64"),
        (FRAMES[:1], r"returned \(1, 3, 4\), \(2, 3, 4\) was declared"),
        (FRAMES.transpose(0, 2, 1), r"returned \(2, 4, 3\)"),
        (FRAMES[:, 0, 0], r"returned \(2,\)"),
        ([[1, 2], [3]], "returned something that is not an array"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value[:24],
)
def test_what_is_no_frames_of_numbers(result: Any, why: str) -> None:
    with pytest.raises(UserCodeError, match=why.replace(" (2, 3, 4) was", r" \(2, 3, 4\) was")):
        fitted(result, NUMBERS, (3, 4), "uint16", "f")


@pytest.mark.parametrize(
    "result",
    [
        FRAMES[:, ::-1],
        np.asfortranarray(FRAMES),
        FRAMES.astype(">u2"),
        FRAMES.tolist(),
        list(FRAMES),
        FRAMES.astype(float),
        np.ma.array(FRAMES, mask=False),
        np.broadcast_to(FRAMES[0, 0], (2, 3, 4)),
    ],
    ids=["flipped", "fortran", "big endian", "lists", "list of frames", "whole floats", "unmasked", "broadcast"],
)
def test_how_it_lies_in_memory_does_not_matter(result: Any) -> None:
    fit = fitted(result, NUMBERS, (3, 4), "uint16", "f")
    assert fit.dtype == np.dtype("uint16")
    np.testing.assert_array_equal(fit, np.asarray(result))


def test_nothing_is_copied_or_looked_at_where_nothing_has_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lima2cli.nodes.user_function._integers", None)
    monkeypatch.setattr("lima2cli.nodes.user_function._floats", None)
    assert fitted(FRAMES, NUMBERS, (3, 4), "uint16", "f") is FRAMES
    for wider in ("uint32", "int32", "float32", "float64"):
        np.testing.assert_array_equal(fitted(FRAMES, NUMBERS, (3, 4), wider, "f"), FRAMES)


@pytest.mark.parametrize("several", [False, True], ids=["one array", "a list of arrays"])
def test_masked_values_are_none(several: bool) -> None:
    masked: Any = np.ma.masked_equal(FRAMES, 17)
    returned = list(masked) if several else masked
    with pytest.raises(UserCodeError, match="returned a masked value in frame 5 at y 1, x 1") as raised:
        fitted(returned, NUMBERS, (3, 4), "uint16", "f")
    assert raised.value.frame == 5
    expected = FRAMES.astype(np.float32)
    expected[FRAMES == 17] = np.nan
    np.testing.assert_array_equal(fitted(returned, NUMBERS, (3, 4), "float32", "f"), expected)
    beyond = np.ma.masked_greater(np.array([[1e300, 2.0], [3.0, 4.0]]), 1e10)
    np.testing.assert_array_equal(fitted(beyond, NUMBERS, (2,), "float32", "f"), [[np.nan, 2], [3, 4]])


def test_vectors_name_their_element() -> None:
    with pytest.raises(
        UserCodeError, match="returned -1 in frame 5 at element 2, uint8 has whole numbers from 0 to 255"
    ):
        fitted(np.array([[0, 0, 0], [1, 2, -1]]), NUMBERS, (3,), "uint8", "f")
