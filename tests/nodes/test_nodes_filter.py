"""Node filter: its grammar, its choice against numpy's, and what is told of mistakes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.check import check_text
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, TableSpec
from lima2cli.geometry import Rule
from lima2cli.kernels.formula import FormulaError
from lima2cli.nodes.base import Inputs
from lima2cli.nodes.filter import Filter, evaluate, read_condition
from tests.compiling import compiled
from tests.node_inputs import MemoryFiles, node, spec_of

NONE = MemoryFiles()


def rule(start: int = 0, step: int = 1) -> Rule:
    return Rule(start, step, None, blocks=1, buffers=1, slots=8, stride=1)


def rows(numbers: Array, **columns: Any) -> dict[str, Array]:
    return {"frame_number": numbers, **{name: np.asarray(values) for name, values in columns.items()}}


def kept(keep: str, every: int = 0, **columns: Any) -> list[int]:
    """Frames that pass, of frames 0, 1, … with these columns of node `a`."""
    numbers = np.arange(len(next(iter(columns.values()))), dtype=np.uint64)
    chosen = Filter(keep=keep, every=every).choose(numbers, rule(), {"a": rows(numbers, **columns)})
    assert chosen.dtype == np.bool_
    return np.flatnonzero(chosen).tolist()


# The grammar


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ("a.x", "a condition is needed, not a number"),
        ("a.x + 1", "a condition is needed, not a number"),
        ("where(a.x > 1, 1, 0)", "a condition is needed, not a number"),
        ("a.x > 1 and a.y", "a condition is needed here, not a number, at column 13"),
        ("not a.x", "a condition is needed here, not a number, at column 5"),
        ("a.x > 1 | a.y > 2", "a condition is needed here"),
        ("x > 1", "`x` is not a column, at column 1"),
        ("a.x > door", "`door` is not a column, at column 7"),
        ("sqrt > 1", "`sqrt` is a function"),
        ("a.x.real > 1", "a column is written with one point, at column 1"),
        ("1 < a.x.y.z", "a column is written with one point, at column 5"),
        ("a.x-b.y > 1", "a column is written with one point, at column 1"),
        ("(a.x).real > 1", "a column is written with one point"),
        ("(1).real > 1", "cannot have attributes, at column 1"),
        ("(a + b).x > 1", "cannot have attributes, at column 1"),
        ("f(1).x > 1", "cannot have attributes, at column 1"),
        ("a.x() > 1", "cannot have a call of attributes, at column 1"),
        ("a.__class__.__mro__ > 1", "a column is written with one point"),
        ("a.x[0] > 1", "cannot have subscripts, at column 1"),
        ("[a.x for a in b] > 1", "at column 1"),
        ("{a.x} > 1", "cannot have sets"),
        ("any(a.x)", "no function `any`"),
        ("__import__('os') > 1", "no function `__import__`"),
        ("(lambda: a.x)() > 1", "cannot have a call of functions of its own"),
        ("'a.x' > 1", "is not a number"),
        ("f'{a.x}' > 1", "cannot have strings"),
        ("a.x if a.y > 1 else a.z", "cannot have `if`"),
        ("a.x in (1, 2)", "cannot have tuples"),
        ("a.x is a.y", "cannot have `is`"),
        ("(a := 1) > 1", "cannot have assignments"),
        ("True", "`True` is not a number"),
        ("a.x == True", "`True` is not a number"),
        ("1 < 2", "this compares only numbers"),
        ("a\N{MIDDLE DOT}b.x > 1", "which no name contains"),
        ("a.x >", "cannot be read"),
        ("a.x > 1; a.y > 1", "cannot be read"),
        ("", "cannot be read"),
        ("not " * 200 + "a.x > 1", "more than 100 operations"),
        ("(" * 500 + "a.x" + ")" * 500 + "> 1", "cannot be read"),
        (" and ".join(["a.x>1"] * 120), "more than 100 operations"),
        ("a.x > 1" + " " * 2000 + "+ 1", "more than 2000"),
    ],
)
def test_refused(keep: str, words: str) -> None:
    with pytest.raises(FormulaError) as caught:
        read_condition(keep)
    assert words in str(caught.value)
    with pytest.raises(NodeMisuse) as misfit:
        _ = Filter(keep=keep).tables
    assert (misfit.value.rule, misfit.value.key) == ("bad-expression", ("keep",))


@pytest.mark.parametrize(
    ("keep", "tables"),
    [
        ("a.x > 1", ["a"]),
        ("b.x > 1 and a.y < b.z", ["b", "a"]),
        ("door-1.left-gate_sum - 2 > side-2.n", ["door-1", "side-2"]),
        ("3-b.y > -c.z*2", ["b", "c"]),
        ("1e6-b.y > 0", ["b"]),
        ("a_1.x > 1 or (not\na_2.y == 0)", ["a_1", "a_2"]),
    ],
)
def test_names_of_nodes(keep: str, tables: list[str]) -> None:
    assert list(Filter(keep=keep).tables) == tables


def test_names_may_have_hyphens() -> None:
    numbers = np.arange(4, dtype=np.uint64)
    given = {"c-1": rows(numbers, **{"left-gate_sum": [1.0, 5.0, 9.0, 2.0], "left": [9.0] * 4, "n": [0, 4, 4, 4]})}
    for keep, expected in (
        ("c-1.left-gate_sum > 4", [1, 2]),
        ("c-1.left - 3 > 5", [0, 1, 2, 3]),
        ("c-1.left-gate_sum - c-1.n > 2", [2]),
        ("-c-1.n>-1", [0]),
        ("2-c-1.n>0", [0]),
    ):
        assert np.flatnonzero(Filter(keep=keep).choose(numbers, rule(), given)).tolist() == expected, keep


# The choice


def test_values_are_compared_as_float64() -> None:
    near = np.array([0.1, 0.1], np.float32)
    assert kept("a.x == 0.1", x=near) == []
    assert kept("a.x > 0.1", x=near) == [0, 1], "the float32 nearest to 0.1 lies above it"
    assert kept("a.x + 1 == 4294967296", x=np.array([2**32 - 1, 0], np.uint32)) == [0]
    assert kept("a.x - 1 < 0", x=np.array([0, 1], np.uint8)) == [0]


def test_nan_satisfies_no_comparison_but_unequal() -> None:
    x = [np.nan, 1.0, 2.0]
    assert kept("a.x > 1", x=x) == [2]
    assert kept("a.x <= 1", x=x) == [1]
    assert kept("a.x != 1", x=x) == [0, 2]
    assert kept("not a.x > 1", x=x) == [0, 1]
    assert kept("isnan(a.x)", x=x) == [0]
    assert kept("a.x / (a.x - 1) > 0", x=x) == [1, 2], "what is divided by 0 is infinite"


def test_precedence_is_that_of_python() -> None:
    x, y = [0, 1, 2, 3], [1, 1, 0, 0]
    assert kept("not a.x > 1 and a.y > 0 or a.x == 3", x=x, y=y) == [0, 1, 3]
    assert kept("0 < a.x < 3", x=x) == [1, 2]
    assert kept("(a.x > 0) & ~(a.y > 0) | (a.x == 0)", x=x, y=y) == [0, 2, 3]
    assert kept("(a.x > 1) ^ (a.y > 0)", x=x, y=y) == [0, 1, 2, 3]
    assert kept("a.x % 2 == 1 or a.x // 2 == 1", x=x) == [1, 2, 3]


def test_frame_numbers_are_a_column() -> None:
    numbers = np.array([10, 13, 16, 19], np.uint64)
    chosen = Filter(keep="a.frame_number % 2 == 0").choose(numbers, rule(10, 3), {"a": rows(numbers)})
    assert chosen.tolist() == [True, False, True, False]


def test_frames_without_a_row_are_not_kept_but_by_every() -> None:
    numbers = np.arange(6, dtype=np.uint64)
    given = {"a": rows(numbers[::2], x=[1, 1, 1]), "b": rows(numbers[1:], y=[5, 0, 5, 5, 5])}
    use = Filter(keep="a.x != 7 and b.y > 1")
    assert np.flatnonzero(use.choose(numbers, rule(), given)).tolist() == [4]
    assert np.flatnonzero(Filter(keep=use.keep, every=3).choose(numbers, rule(), given)).tolist() == [0, 3, 4]


COLUMNS: Mapping[str, Any] = {
    "a.x": st.integers(-5, 5),
    "a.y": st.floats(-2, 2) | st.just(float("nan")),
    "b-2.n": st.integers(0, 3),
}
ORACLES: Mapping[str, Any] = {
    "a.x > 0": lambda c: c["a.x"] > 0,
    "a.x > a.y or b-2.n == 2": lambda c: (c["a.x"] > c["a.y"]) | (c["b-2.n"] == 2),
    "not (-1 <= a.y < 1) and b-2.n != 1": lambda c: ~((c["a.y"] >= -1) & (c["a.y"] < 1)) & (c["b-2.n"] != 1),
    "minimum(a.x, b-2.n) >= 1": lambda c: np.minimum(c["a.x"], c["b-2.n"]) >= 1,
    "where(a.y > 0, a.x, b-2.n) != 0": lambda c: np.where(c["a.y"] > 0, c["a.x"], c["b-2.n"]) != 0,
    "abs(a.x) ** 2 - 4 * b-2.n < 3": lambda c: np.abs(c["a.x"]) ** 2 - 4 * c["b-2.n"] < 3,
    "not (a.x < 0 or a.y > 0.5)": lambda c: ~((c["a.x"] < 0) | (c["a.y"] > 0.5)),
    "a.x % 3 == 1 and a.frame_number < 40": lambda c: (c["a.x"] % 3 == 1) & (c["number"] < 40),
}


@pytest.mark.parametrize("keep", ORACLES)
@settings(max_examples=15)
@given(data=st.data())
def test_choice_is_numpys(keep: str, data: st.DataObject) -> None:
    """Also of blocks, with rows of more frames, and of some of them only."""
    start, step, count = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 4)), data.draw(st.integers(0, 12))
    every = data.draw(st.integers(0, 4))
    numbers = np.arange(start, start + step * count, step, dtype=np.uint64)
    columns = {name: np.array(data.draw(st.lists(values, min_size=count, max_size=count)), np.float64)
               for name, values in COLUMNS.items()}  # fmt: skip
    there = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_)
    given = {
        "a": rows(numbers, x=columns["a.x"].astype(np.int32), y=columns["a.y"]),
        "b-2": rows(numbers[there], n=columns["b-2.n"][there].astype(np.uint8)),
    }
    with np.errstate(all="ignore"):
        expected = ORACLES[keep]({**columns, "number": numbers})
    if "b-2" in keep:
        expected = expected & there
    if every:
        expected = expected | (np.arange(count) % every == 0)
    use = Filter(keep=keep, every=every)
    given = {name: given[name] for name in use.tables}
    np.testing.assert_array_equal(use.choose(numbers, rule(start, step), given), expected)
    cut = data.draw(st.integers(0, count))
    parts = [use.choose(part, rule(start, step), given) for part in (numbers[:cut], numbers[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_columns_are_left_alone() -> None:
    x = np.arange(3.0)
    x.flags.writeable = False
    assert evaluate(read_condition("a.x > 0"), {"a.x": x}).tolist() == [False, True, True]


# What is told of mistakes

TABLE = TableSpec({"door_sum": "float64", "door_line": "float32"}, lengths={"door_line": 20})


@pytest.mark.parametrize(
    ("keep", "rule", "message", "help"),
    [
        ("counters.dor_sum > 1", "unknown-column", "`counters` has no column `dor_sum`", "did you mean `door_sum`?"),
        ("counters.__class__ > 1", "unknown-column", "`counters` has no column `__class__`", "known: door_sum"),
        ("counters.door_line > 1", "edge-mismatch", "`counters.door_line` has 20 values per frame", "roi_counters"),
    ],
)
def test_columns_are_checked(keep: str, rule: str, message: str, help: str) -> None:
    with pytest.raises(NodeMisuse) as caught:
        node("filter", keep=keep).infer(Inputs.of(spec_of("uint16", 8, 8), NONE, tables={"counters": TABLE}))
    assert (caught.value.rule, caught.value.key) == (rule, ("keep",))
    assert message in caught.value.message
    assert help in str(caught.value.help)


START = """\
lima2: 1
detector: {remu: {image: {width: 16, height: 8}, datasets: {data: {dtype: uint16}}}}
acquisition: {frames: 20}
nodes:
  counters: {input: data, roi_counters: {rois: {door: {rect: {x: 0, y: 0, width: 4, height: 4}}}}}
"""


def told(nodes: str) -> list[tuple[str, str, str]]:
    """Rule, place and message of all that is found."""
    _, findings = compiled(START + nodes)
    return [(item.rule, "/".join(map(str, item.at)), item.message) for item in findings]


def test_a_node_that_only_a_filter_reads_is_used_and_comes_before() -> None:
    plan, findings = compiled(
        START.replace("nodes:", "nodes:\n  bright: {input: data, filter: {keep: counters.door_sum > 5}}")
        + "  save: {input: bright, io_hdf5: {}}\n"
    )
    assert not list(findings)
    assert plan is not None
    assert [step.name for step in plan.steps] == ["counters", "bright", "save"]
    assert plan.steps[1].tables == ("counters",)
    assert plan.steps[1].sources == ("data",)


def test_a_filter_that_nobody_reads_is_warned_of() -> None:
    assert told("  bright: {input: data, filter: {keep: counters.door_sum > 5}}\n") == [
        ("unused-node", "nodes/bright", "the output of `bright` is unused")
    ]


def test_a_bad_condition_is_told_once() -> None:
    found = told("  bright: {input: data, filter: {keep: door_sum > 5}}\n  save: {input: bright, io_hdf5: {}}\n")
    assert found == [("bad-expression", "nodes/bright/filter/keep", "`door_sum` is not a column, at column 1")]


def test_cycles_through_conditions_are_told() -> None:
    ((rule, place, message),) = told(
        "  bright: {input: data, filter: {keep: inner.door_sum > 5}}\n"
        "  inner: {input: bright, roi_counters: {rois: {door: {rect: {x: 0, y: 0, width: 4, height: 4}}}}}\n"
    )
    assert (rule, place, message) == ("cycle", "nodes/bright/filter/keep", "cycle: bright → inner → bright")


def test_rows_and_frames_are_numbered_alike() -> None:
    ((rule, place, message),) = told(
        "  sums: {input: data, accumulate: {frames: 4}}\n"
        "  bright: {input: sums, filter: {keep: counters.door_sum > 5}}\n"
        "  save: {input: bright, io_hdf5: {}}\n"
    )
    assert (rule, place) == ("edge-mismatch", "nodes/bright/filter/keep")
    assert "they cannot be paired" in message


def test_conditions_within_a_graph_are_about_its_nodes() -> None:
    text = (
        START[: START.index("nodes:")]
        + """\
graphs:
  bright:
    output: pass
    nodes:
      c-1: {input: frames, roi_counters: {rois: {left-side: {rect: {x: 0, y: 0, width: 4, height: 4}}}}}
      pass: {input: frames, filter: {keep: "-c-1.left-side_sum < -5 and 3-c-1.left-side_min>0"}}
nodes:
  some: {input: data, graph: {bright: {}}}
  save: {input: some, io_hdf5: {}}
"""
    )
    checked = check_text(text, "pipeline.yaml", Path(), cores=2, environment={})
    assert checked.plan is not None, [(item.rule, item.at, item.message) for item in checked.findings]
    (step,) = (step for step in checked.plan.steps if isinstance(step.node, Filter))
    assert step.tables == ("some_c-1",)
