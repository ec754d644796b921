"""Joins: what is said of their inputs, and whole runs in which frames are paired, or are not."""

from pathlib import Path

import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.compiling import compiled, figures, plan_of
from tests.running import EXAMPLES, TRANSPORTS, counter, lima2, mpi, run

HEAD = """
lima2: 1
detector: {remu: {image: {width: 16, height: 12}, datasets: {D: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 40}
receivers: 2
flows:
  F: {dataset: D, rules: {blocks_per_group: 4}, buffers: {frames: 16}}
"""
SECOND = "  G: {dataset: D, rules: {blocks_per_group: 1}, buffers: {frames: 16}}\n"
SOURCE = Rect(0, 0, 16, 12)


def found(nodes: str, head: str = HEAD) -> list[tuple[str, tuple[str | int, ...]]]:
    """Rules and places of what is wrong with these nodes."""
    _, findings = compiled(f"{head}nodes:\n{nodes}")
    return [(item.rule, item.at) for item in findings]


SAVE = "  s: {input: j, io_hdf5: {}}\n"


@pytest.mark.parametrize(
    ("nodes", "rule", "at"),
    [
        ("j: {inputs: {a: F, b: nope}, expression: {expr: a + b}}", "unknown-input", ("inputs", "b")),
        ("j: {inputs: {a: F, b: j}, expression: {expr: a + b}}", "cycle", ("inputs", "b")),
        ("j: {input: F, inputs: {a: F}, expression: {expr: a}}", "wrong-input", ("input",)),
        ("j: {inputs: {a: F}, mask: {image: 0}}", "wrong-input", ("inputs",)),
        ("j: {input: F, inputs: {a: F}, mask: {image: 0}}", "wrong-input", ("inputs",)),
        ("j: {expression: {expr: a}}", "missing-key", ()),
        ("j: {inputs: {}, expression: {expr: a}}", "out-of-range", ("inputs",)),
        ("j: {inputs: F, expression: {expr: a}}", "wrong-type", ("inputs",)),
        ("j: {inputs: {a: 3}, expression: {expr: a}}", "wrong-type", ("inputs", "a")),
        ("j: {inputs: {a-b: F}, expression: {expr: a}}", "bad-name", ("inputs", "a-b")),
        ("j: {inptus: {a: F}, expression: {expr: a}}", "unknown-key", ("inptus",)),
        ("j: {inputs: {a: F}, expression: {expr: a + c}}", "bad-expression", ("expression", "expr")),
        ("j: {inputs: {a: F, b: t}, expression: {expr: a + b}}\n  t: {input: F, checkpoint: {}}", "edge-mismatch",
         ("inputs", "b")),
        ("j: {inputs: {a: F, b: t}, expression: {expr: a + b}}\n  t: {input: F, roi_flip_rot: {flip: both}}",
         "edge-mismatch", ("inputs", "b")),
        ("j: {inputs: {a: F, b: t}, expression: {expr: a + b}}\n  t: {input: F, roi_flip_rot: {rotation: 90}}",
         "edge-mismatch", ("inputs", "b")),
        ("j: {inputs: {a: F, b: t}, expression: {expr: a + b}}\n  t: {input: F, accumulate: {frames: 2}}",
         "edge-mismatch", ("inputs", "b")),
        ("j: {inputs: {a: F, b: G}, expression: {expr: a + b}}", "not-co-located", ("inputs", "b")),
    ],
)  # fmt: skip
def test_each_mistake_is_told_once_at_its_place(nodes: str, rule: str, at: tuple[str, ...]) -> None:
    head = HEAD + (SECOND if "G}" in nodes else "")
    assert found(f"  {nodes}\n{SAVE}", head) == [(rule, ("nodes", "j", *at))]


def test_all_cycles_through_joins_are_broken() -> None:
    nodes = (
        "  j: {inputs: {a: k, b: m, c: F}, expression: {expr: a + b + c}}\n"
        "  k: {inputs: {a: j}, expression: {expr: a}}\n"
        "  m: {inputs: {a: k, b: j}, expression: {expr: a + b}}\n" + SAVE
    )
    rules = found(nodes)
    assert rules
    assert {rule for rule, _ in rules} == {"cycle"}


def test_what_a_join_reads_is_not_unused() -> None:
    nodes = "  x: {input: F, mask: {image: 0}}\n  j: {inputs: {a: F, b: x}, expression: {expr: a + b}}\n"
    assert found(nodes + SAVE) == []
    assert found(nodes) == [("unused-node", ("nodes", "j"))]


def test_the_plan_shows_joins_and_fuses_around_them() -> None:
    plan = plan_of(
        HEAD
        + """
nodes:
  j: {inputs: {raw: F, good: flat}, expression: {expr: raw - good}}
  dark: {input: F, background_sub: {image: 3}}
  flat: {input: dark, flatfield: {image: 2}}
  less: {input: j, background_sub: {image: 3}}
  more: {input: less, mask: {image: 0}}
  s: {input: more, io_hdf5: {}}
  unread: {inputs: {a: j}, expression: {expr: a}}
"""
    )
    assert [kernel.nodes for kernel in plan.kernels] == [("dark", "flat"), ("j",), ("less", "more"), ("s",)]
    told = figures(plan)
    (join,) = [node for node in told["nodes"] if node["name"] == "j"]
    assert join["inputs"] == {"raw": "uint16 16 x 12", "good": "float32 16 x 12"}
    (kernel,) = [kernel for kernel in told["kernels"] if kernel["nodes"] == ["j"]]
    assert kernel["inputs"] == ["F", "flat"]
    assert plan.record["nodes"]["j"] == {"inputs": {"raw": "F", "good": "flat"}, "expression": {"expr": "raw - good"}}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_raw_and_corrected_frames(transport: str, tmp_path: Path) -> None:
    text = f"""{HEAD}
nodes:
  dark: {{input: F, background_sub: {{image: 100}}}}
  j: {{inputs: {{raw: F, good: dark}}, expression: {{expr: "where(raw > 30000, good, raw)"}}}}
  twice: {{inputs: {{a: j, b: F, c: F}}, expression: {{expr: a + b - c, dtype: int32}}}}
  s: {{input: j, io_hdf5: {{}}}}
  t: {{input: twice, io_hdf5: {{}}}}
  four: {{input: F, accumulate: {{frames: 4}}}}
  best: {{input: F, accumulate: {{frames: 4, operation: max}}}}
  spread: {{inputs: {{sum: four, max: best}}, expression: {{expr: max - sum / 4}}}}
  u: {{input: spread, io_hdf5: {{}}}}
"""
    ran = run(text, tmp_path, transport)
    assert ran.code == 0, ran.output
    frames = counter(np.arange(40, dtype=np.uint64), SOURCE, 16)
    want = np.where(frames > 30000, frames.astype(np.float32) - 100, frames)
    for node in ("s", "t"):
        saved, numbers, status = ran.saved(node)
        assert numbers.tolist() == list(range(40))
        assert not status.any()
        np.testing.assert_array_equal(saved, want)
        assert ran.summary["channels"][node]["unmatched"] == 0
    windows = frames.reshape(10, 4, 12, 16).astype(np.float64)
    saved, numbers, _ = ran.saved("u")
    assert numbers.tolist() == list(range(0, 40, 4))
    np.testing.assert_array_equal(saved, (windows.max(axis=1) - windows.mean(axis=1)).astype(np.float32))


@pytest.mark.parametrize("fuse", [True, False])
def test_joins_of_what_comes_at_the_end(fuse: bool, tmp_path: Path) -> None:
    text = f"""{HEAD.replace("receivers: 2", "receivers: 1")}
nodes:
  sum: {{input: F, accumulate: {{frames: 0}}}}
  max: {{input: F, accumulate: {{frames: 0, operation: max}}}}
  less: {{input: max, background_sub: {{image: 1}}}}
  j: {{inputs: {{a: sum, b: less}}, expression: {{expr: a - b, dtype: int64}}}}
  again: {{inputs: {{a: j, b: sum}}, expression: {{expr: b - a, dtype: int64}}}}
  s: {{input: again, io_hdf5: {{}}}}
"""
    ran = run(text, tmp_path, "inline", *([] if fuse else ["--no-fuse"]))
    assert ran.code == 0, ran.output
    frames = counter(np.arange(40, dtype=np.uint64), SOURCE, 16)
    saved, numbers, _ = ran.saved("s")
    assert numbers.tolist() == [0]
    np.testing.assert_array_equal(saved[0], frames.max(axis=0).astype(np.int64) - 1)
    assert (ran.summary["channels"]["s"]["saved"], ran.summary["channels"]["s"]["unmatched"]) == (1, 0)


CODE = """
def threes(frames, numbers):
    if (numbers % 10 == 3).any():
        raise ValueError("no threes")
    return frames

def fives(frames, numbers):
    if (numbers % 10 == 5).any():
        raise ValueError("no fives")
    return frames
"""
ALL = "rois: {all: {rect: {x: 0, y: 0, width: 16, height: 12}}}"


@pytest.mark.parametrize(
    ("other", "transport"), [("F", "inline"), ("fives", "inline"), ("threes", "inline"), mpi("fives")]
)
def test_frames_that_are_not_in_all_inputs(other: str, transport: str, tmp_path: Path) -> None:
    """Frames that one side drops are unmatched, and count as lost; those that went before both are dropped."""
    (tmp_path / "user.py").write_text(CODE)
    text = f"""{HEAD.replace("{blocks_per_group: 4}", "{}").replace("frames: 16", "frames: 4")}
nodes:
  threes: {{input: F, python: {{function: user.py:threes, on_error: drop}}}}
  fives: {{input: F, python: {{function: user.py:fives, on_error: drop}}}}
  j: {{inputs: {{a: threes, b: {other}}}, expression: {{expr: a + b, dtype: uint32}}}}
  s: {{input: j, io_hdf5: {{}}}}
  c: {{input: j, roi_counters: {{{ALL}}}}}
  t: {{input: threes, io_hdf5: {{}}}}
  f: {{input: fives, io_hdf5: {{}}}}
"""
    ran = run(text, tmp_path, transport)
    assert ran.code == 0, ran.output
    saved, numbers, status = ran.saved("s")
    gone = {node: set(np.flatnonzero(ran.saved(node)[2]).tolist()) for node in "tf"}
    assert {3, 13, 23, 33} <= gone["t"]
    absent = gone["t"] | (gone["f"] if other == "fives" else set())
    channel = ran.summary["channels"]["s"]
    if other == "threes":  # both sides are the same: nothing is unmatched
        assert set(np.flatnonzero(status == 2).tolist()) == absent
        assert (channel["dropped"], channel["lost"], channel.get("unmatched", 0)) == (len(absent), 0, 0)
    else:
        assert set(np.flatnonzero(status == 1).tolist()) == absent
        assert (channel["dropped"], channel["lost"], channel["unmatched"]) == (0, len(absent), len(absent))
        assert f"s: {len(absent)} unmatched: not in all inputs of a join" in ran.output
    assert channel["expected"] == 40 == channel["saved"] + channel["dropped"] + channel["lost"]
    assert ran.summary["tables"]["c"]["rows"] == 40 - len(absent)
    assert ran.summary["tables"]["c"].get("unmatched", 0) == channel.get("unmatched", 0)
    assert not ran.summary["problems"]
    kept = status == 0
    np.testing.assert_array_equal(saved[kept], 2 * counter(numbers[kept], SOURCE, 16).astype(np.uint32))
    inspected = lima2("inspect", "--verify", "--format", "json", str(ran.directory), cwd=tmp_path)
    assert inspected.returncode == 0, inspected.stdout


def test_a_join_goes_with_an_input_that_fails(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(CODE)
    text = f"""{HEAD.replace("receivers: 2", "receivers: 1").replace("{blocks_per_group: 4}", "{}")}
nodes:
  threes: {{input: F, python: {{function: user.py:threes}}}}
  j: {{inputs: {{a: F, b: threes}}, expression: {{expr: a + b}}}}
  s: {{input: j, io_hdf5: {{}}}}
"""
    ran = run(text.replace("frames: 40", "frames: 40, rate: 200"), tmp_path, "inline")
    assert ran.code == 10, ran.output
    assert "ValueError: no threes" in ran.output
    assert "Traceback" not in ran.output
    _, numbers, status = ran.saved("s")
    saved = numbers[status == 0].tolist()
    assert saved == [0, 1, 2][: len(saved)]  # several frames may come at once


def test_the_example(tmp_path: Path) -> None:
    text = (EXAMPLES / "expression.yaml").read_text().replace("rings: {seed: 1}", "counter: {}")
    ran = run(text, tmp_path, "inline", name="expression")
    assert ran.code == 0, ran.output
    saved, numbers, status = ran.saved("save")
    raw = counter(numbers, Rect(0, 0, 256, 192), 256).astype(np.float32)
    mixed = np.where(raw > 200, (raw - 100) / np.float32(0.98), raw).astype(np.float64)
    assert not status.any()
    np.testing.assert_array_equal(saved, np.rint(mixed / 12 + 0.5 * (mixed > 1000)).astype(np.uint32))
