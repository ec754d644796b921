"""Formulae: what is read and what is refused, and their values against numpy's."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.errors import NodeMisuse
from lima2cli.frames import FrameSpec
from lima2cli.geometry import Rect
from lima2cli.kernels.formula import FUNCTIONS, names, read_formula
from lima2cli.kernels.strips import TILE_PIXELS
from lima2cli.nodes.base import Inputs
from lima2cli.nodes.expression import Expression, work_dtype
from lima2cli.view import View
from tests.node_inputs import DTYPES, MemoryFiles, padded, pixels, spec_of, splits

FILES = MemoryFiles()


def computed(expr: str, frames: Mapping[str, Any], dtype: str | None = None) -> Any:
    """Return the result of the node for frames (n, h, w)."""
    specs = {name: spec_of(str(array.dtype), *array.shape[1:]) for name, array in frames.items()}
    return Expression(expr=expr, dtype=dtype).bind(Inputs(specs, FILES))(*frames.values()).copy()


@pytest.mark.parametrize(
    ("expr", "words"),
    [
        ("a.real", "cannot have attributes, at column 1"),
        ("b + a[0]", "cannot have subscripts, at column 5"),
        ("'a'", "is not a number, at column 1"),
        ("f'{a}'", "cannot have strings, at column 1"),
        ("lambda: a", "cannot have functions of its own, at column 1"),
        ("(lambda: a)()", "cannot have a call of functions of its own"),
        ("__import__('os')", "no function `__import__`, at column 1"),
        ("a.__class__()", "cannot have a call of attributes"),
        ("eval(a)", "no function `eval`"),
        ("a + sqr(b)", "no function `sqr`, at column 5"),
        ("sqrt", "`sqrt` is a function"),
        ("sqrt(a, b)", "takes 1 arguments, got 2"),
        ("sqrt(x=a)", "takes no keywords"),
        ("sqrt(*a)", "cannot have `*` before a value, at column 6"),
        ("a + c", "`c` is not an input, at column 5"),
        ("µ + c", "`μ` is not an input, at column 1"),
        ("µ(a) + c", "no function `μ`"),
        ("where(a, a, b)", "a condition is needed here, not a number, at column 7"),
        ("a & b", "a condition is needed"),
        ("~a", "a condition is needed"),
        ("a > 1 & b < 2", "a condition is needed here, not a number, at column 5"),
        ("a and b < 2", "a condition is needed"),
        ("not a", "a condition is needed"),
        ("a if a > b else b", "cannot have `if`"),
        ("a in b", "cannot have `in`"),
        ("a is b", "cannot have `is`"),
        ("a @ b", "cannot have `@`"),
        ("a << 2", "cannot have `<<`"),
        ("[a]", "cannot have lists"),
        ("(a, b)", "cannot have tuples"),
        ("{a}", "cannot have sets"),
        ("(x := a)", "cannot have assignments"),
        ("True * a", "`True` is not a number"),
        ("2j * a", "`2j` is not a number"),
        ("1e400 * a", "too large"),
        (f"{10**400} * a", "too large"),
        ("1 < 2", "this compares only numbers"),
        ("isnan(3) & (a > 1)", "is only a number"),
        ("1 + 2", "uses no input"),
        ("0 * sqrt(2)", "uses no input"),
        ("a; b", "cannot be read at column 2"),
        ("a = b", "cannot be read"),
        ("import os", "cannot be read"),
        ("", "cannot be read"),
        ("\0", "cannot be read"),
        ("(" * 500 + "a" + ")" * 500, "cannot be read"),
        ("-" * 500 + "a", "more than 100 operations"),
        ("+".join("a" * 200), "more than 100 operations"),
        ("a" + "%b" * 12, "more than 500 operations written out"),
        ("a" * 3000, "3000 characters"),
    ],
)
def test_what_a_formula_may_not_have(expr: str, words: str) -> None:
    specs = {"a": spec_of("uint16", 4, 5), "b": spec_of("uint16", 4, 5)}
    with pytest.raises(NodeMisuse) as caught:
        Expression(expr=expr).infer(Inputs(specs, FILES))
    assert (caught.value.rule, caught.value.key) == ("bad-expression", ("expr",))
    assert words in caught.value.message


A = np.array([[-7.5, -1, -0.25, 0, 0.25, 1, 3, 1e4, np.nan, np.inf]], np.float32)[np.newaxis]
B = np.array([[2, -3, 0.5, 0, -0.5, 7, np.nan, 0.1, 1, 3]], np.float32)[np.newaxis]
VALUES: dict[str, Callable[[Any, Any], Any]] = {
    "a - 2*b": lambda a, b: a - 2 * b,
    "-a + +b": lambda a, b: -a + b,
    "a / b": lambda a, b: a / b,
    "a // b": lambda a, b: a // b,
    "a % b": lambda a, b: a % b,
    "a // 0.7 + 7 % b + a % -2": lambda a, b: a // np.float32(0.7) + 7 % b + a % -2,
    "a**2 - b**3 + a**4": lambda a, b: a**2 - b**3 + a**4,
    "2**a + abs(b)**0.5": lambda a, b: 2**a + np.abs(b) ** np.float32(0.5),
    "a < b": lambda a, b: a < b,
    "(a <= b) + 2*(a >= b) + 4*(a == b) + 8*(a != b) + 16*(a > b)": lambda a, b: (
        (a <= b) + 2.0 * (a >= b) + 4 * (a == b) + 8 * (a != b) + 16 * (a > b)
    ),
    "-1 < a < b <= 3": lambda a, b: (a > -1) & (a < b) & (b <= 3),
    "where((a > 0) & ~(b > 1) | (a < -2) ^ (b < 0), a, -b)": lambda a, b: np.where(
        (a > 0) & ~(b > 1) | (a < -2) ^ (b < 0), a, -b
    ),
    "minimum(a, b) + maximum(2, b) - minimum(a, 1)": lambda a, b: (
        np.minimum(a, b) + np.maximum(2, b) - np.minimum(a, 1)
    ),
    "isnan(a) + 2*isfinite(b)": lambda a, b: np.isnan(a) + 2.0 * np.isfinite(b),
    "arctan2(a, b)": np.arctan2,
    "a * (7 // 2 + 7 % -2 + minimum(1, 2) + sqrt(4))": lambda a, b: a * (3 - 1 + 1 + 2),
}


@pytest.mark.parametrize("expr", VALUES)
def test_values_are_those_of_numpy(expr: str) -> None:
    with np.errstate(all="ignore"):
        want = np.asarray(VALUES[expr](A, B), np.float32)
    if "isnan" not in expr:  # else the formula decides
        want = np.where(np.isnan(A) | np.isnan(B), np.float32(np.nan), want)
    found = computed(expr, {"a": A, "b": B})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, count in FUNCTIONS.items() if count == 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_are_those_of_numpy(name: str, dtype: str) -> None:
    frames = np.concatenate([A.ravel(), np.linspace(-3, 3, 50)]).astype(dtype).reshape(1, 6, 10)
    with np.errstate(all="ignore"):
        want = getattr(np, name)(frames)
    np.testing.assert_allclose(computed(f"{name}(a)", {"a": frames}), want, rtol=1e-6 if dtype == "float32" else 1e-14)


Pair = tuple[str, Callable[[Any, Any], Any]]


def _both(text: str, function: Callable[..., Any], *parts: Pair) -> Pair:
    texts = [part[0] for part in parts]
    return text.format(*texts), lambda a, b: function(*(part[1](a, b) for part in parts))


def _binary(children: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    numeric = {"({} + {})": np.add, "({} - {})": np.subtract, "({} * {})": np.multiply,
               "({} / ({} + 0))": lambda x, y: x / (y + 0.0),
               "({} % {})": np.remainder, "({} // ({} + 0))": lambda x, y: x // (y + 0.0),
               "minimum({}, {})": np.minimum, "maximum({}, {})": np.maximum}  # fmt: skip
    unary = {"(-{})": np.negative, "abs({})": np.abs, "floor({})": np.floor, "ceil({})": np.ceil, "({})**2": np.square}
    compared = {"({} < {})": np.less, "({} >= {})": np.greater_equal, "({} == {})": np.equal}
    names_in = children.filter(lambda pair: "a" in pair[0].replace("maximum", "").replace("abs", ""))
    pairs = [st.builds(lambda x, y, t=t, f=f: _both(t, f, x, y), children, children) for t, f in numeric.items()]
    ones = [st.builds(lambda x, t=t, f=f: _both(t, f, x), children) for t, f in unary.items()]
    conditions = st.one_of(
        [st.builds(lambda x, y, t=t, f=f: _both(t, f, x, y), names_in, children) for t, f in compared.items()]
    )
    logic = st.builds(lambda x, y: _both("({} & ~{})", lambda p, q: p & ~q, x, y), conditions, conditions)
    chosen = st.builds(
        lambda c, x, y: _both("where({}, {}, {})", np.where, c, x, y), st.one_of(conditions, logic), children, children
    )
    return st.one_of([*pairs, *ones, chosen])


def _constant(value: float) -> Pair:
    return f"({value!r})", lambda a, b: np.float64(value)


LEAVES = st.one_of(
    st.just(("a", lambda a, b: a)),
    st.just(("b", lambda a, b: b)),
    st.sampled_from([0.5, 1.0, -3.0, 2.25, 100.0, 0.0]).map(_constant),
)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of formulae as functions in functions
@settings(max_examples=120)
@given(pair=st.recursive(LEAVES, _binary, max_leaves=8), seed=st.integers(0, 9))
def test_random_formulae(pair: Pair, seed: int) -> None:
    """In float64, where each operation rounds as numpy's; nothing is divided by a negative zero."""
    expr, oracle = pair
    random = np.random.default_rng(seed)
    a, b = random.integers(-8, 9, (2, 2, 5, 7)).astype(np.float64) / 4
    try:
        read_formula(expr, ("a", "b"))
    except ValueError as refused:  # the only reasons for a formula of this grammar
        assert any(words in str(refused) for words in ("uses no input", "numbers alone", "operations"))  # noqa: PT017
        return
    with np.errstate(all="ignore"):
        want = np.broadcast_to(np.asarray(oracle(a, b), np.float64), a.shape)
    np.testing.assert_array_equal(computed(expr, {"a": a, "b": b}), want)


def test_negative_zero_is_not_zero() -> None:
    a = np.full((1, 1, 3), 2.0)
    assert (computed("1 / (a * (-3.0 % -3.0) + 0.0)", {"a": a}) == np.inf).all()
    assert (computed("1 / (a * 0.0 * (-3.0 % -3.0))", {"a": a}) == -np.inf).all()


@pytest.mark.parametrize("one", DTYPES)
@pytest.mark.parametrize("other", ["uint8", "uint16", "int32", "float32", "float64"])
def test_dtypes(one: str, other: str) -> None:
    a, b = pixels(one, (3, 6, 9)), pixels(other, (3, 6, 9), 2)
    target = "float64" if "float64" in (one, other) else "float32"
    exact = all(np.can_cast(dtype, np.float32) for dtype in (one, other))
    work = np.float32 if exact and target == "float32" else np.float64
    found = computed("a - 2*b", {"a": a, "b": b})
    assert found.dtype == target
    np.testing.assert_array_equal(found, (a.astype(work) - 2 * b.astype(work)).astype(target))


@pytest.mark.parametrize("target", DTYPES)
def test_results_are_rounded_half_to_even_and_clipped(target: str) -> None:
    a = np.array([[[-3e19, -129.0, -0.5, 0.5, 1.5, 2.5, 254.5, 255.5, 3e19, np.nan, np.inf, -np.inf]]])
    found = computed("a * 1", {"a": a}, target)
    if np.dtype(target).kind == "f":
        np.testing.assert_array_equal(found, a.astype(target))
        return
    limits = np.iinfo(target)
    want = [
        0 if np.isnan(x) else limits.max if x > limits.max else limits.min if x < limits.min else int(np.rint(x))
        for x in a.ravel()
    ]
    assert found.ravel().tolist() == want


@settings(max_examples=40)
@given(
    count=st.integers(1, 6),
    cuts=st.lists(st.integers(1, 5), max_size=3),
    size=st.sampled_from([(3, 5), (7, TILE_PIXELS // 3), (TILE_PIXELS // 64 + 3, 130)]),
    dtype=st.sampled_from([None, "int16"]),
)
def test_any_blocks_of_any_layout(count: int, cuts: list[int], size: tuple[int, int], dtype: str | None) -> None:
    a, b = pixels("uint16", (count, *size)), pixels("float32", (count, *size), 3)
    specs = {"a": spec_of("uint16", *size), "b": spec_of("float32", *size)}
    function = Expression(expr="where(a > 900, a - b, b)", dtype=dtype).bind(Inputs(specs, FILES))
    found = [function(padded(a[part]), b[part]).copy() for part in splits(count, cuts)]
    want = np.where(a > 900, a.astype(np.float64 if dtype else np.float32) - b, b)
    if dtype:
        want = np.clip(np.rint(want), -(2**15), 2**15 - 1).astype(dtype)
    np.testing.assert_array_equal(np.concatenate(found), want)


def test_masks_are_joined_and_the_level_of_saturation_is_forgotten() -> None:
    one, other = np.zeros((2, 4, 5), bool)
    one[0, 1] = other[2, 3] = True
    specs = {
        "a": spec_of("uint16", 4, 5, mask=one, saturation=1000.0),
        "b": spec_of("uint16", 4, 5, mask=other),
        "c": spec_of("uint16", 4, 5),
    }
    after = Expression(expr="a + b + c").infer(Inputs(specs, FILES))
    assert (after.dtype, after.saturation, after.view) == ("float32", None, specs["a"].view)
    np.testing.assert_array_equal(after.mask, one | other)
    assert one.sum() == other.sum() == 1


def test_inputs_must_go_together() -> None:
    def refused(other: FrameSpec) -> NodeMisuse:
        with pytest.raises(NodeMisuse) as caught:
            Expression(expr="a + b").infer(Inputs({"a": spec_of("uint16", 4, 5), "b": other}, FILES))
        assert (caught.value.rule, caught.value.key) == ("edge-mismatch", ("inputs", "b"))
        return caught.value

    assert "`a` is uint16 5 x 4, but `b` is uint8 4 x 5" in refused(spec_of("uint8", 5, 4)).message
    moved = FrameSpec("uint16", View(Rect(1, 0, 5, 4)), (6, 4))
    assert "the same part" in refused(moved).message
    assert "the same part" in refused(FrameSpec("uint16", View(Rect(0, 0, 5, 4), mirrored=True), (5, 4))).message


def test_an_input_that_is_not_used_is_told() -> None:
    specs = {name: spec_of("uint16", 4, 5) for name in "abc"}
    assert [item.key for item in Expression(expr="a + c").warnings(Inputs(specs, FILES))] == [("inputs", "b")]
    with pytest.raises(NodeMisuse, match="16 inputs"):
        Expression(expr="i0").infer(Inputs({f"i{i}": specs["a"] for i in range(17)}, FILES))


def test_formulae_as_large_as_may_be_are_computed() -> None:
    """Registers, temporaries and inputs of the evaluator suffice."""
    frames = {f"i{i}": pixels("uint8", (1, 3, 4), i) for i in range(16)}
    expr = " + ".join(f"{name} * {i + 0.5}" for i, name in enumerate(frames))
    want = sum(frames[name].astype(np.float32) * np.float32(i + 0.5) for i, name in enumerate(frames))
    np.testing.assert_allclose(computed(expr, frames), want, rtol=1e-6)
    nested = "a"
    for i in range(49):
        nested = f"(b * {i + 2}) + ({nested})" if i % 2 else f"({nested}) - a / {i + 2}"
    a, b = frames["i0"], frames["i1"]
    value: Any = a.astype(np.float64)
    for i in range(49):
        value = b * (i + 2.0) + value if i % 2 else value - a / (i + 2.0)
    deep = computed(nested, {"a": a, "b": b})
    np.testing.assert_allclose(deep, value, rtol=1e-4)
    right = "a"
    for i in range(49):
        right = f"(a + {i + 0.25}) - ({right})"
    flipped: Any = a.astype(np.float64)
    for i in range(49):
        flipped = (a + (i + 0.25)) - flipped
    np.testing.assert_allclose(computed(right, {"a": a}), flipped, rtol=1e-4)


def test_numbers_beyond_float32_are_kept() -> None:
    specs = {"a": spec_of("uint8", 1, 1)}
    assert work_dtype(read_formula("a * 1e300 / 1e300", "a"), specs, "float32") == np.float64
    assert work_dtype(read_formula("a * 1e30", "a"), specs, "float32") == np.float32
    assert names(read_formula("where(b > 1, a, b) * a", "ab")) == ["b", "a"]
    np.testing.assert_array_equal(computed("a * 1e300 / 1e300", {"a": np.full((1, 1, 1), 3, np.uint8)}), 3)


def test_shared_operations_are_counted_once() -> None:
    """``%`` within ``%`` is written out several times, and computed once."""
    a, b = pixels("int16", (1, 4, 5)), pixels("float32", (1, 4, 5), 2)
    want = a.astype(np.float32)
    for _ in range(3):
        want = want % b
    np.testing.assert_array_equal(computed("a % b % b % b", {"a": a, "b": b}), want)


def test_lines_of_a_formula_are_one() -> None:
    ones = np.ones((1, 2, 2), np.uint8)
    np.testing.assert_array_equal(computed("a\n  + 2 *\n  b", {"a": ones, "b": ones}), 3)
