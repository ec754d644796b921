"""Documents to pipelines: defaults, resolved names, poison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lima2cli.diagnostics import POISON, Diagnostic, Findings, attempt
from lima2cli.document import load
from lima2cli.geometry import Rect
from lima2cli.inputs.stacks import FileStore
from lima2cli.language.pipeline import Pipeline, name_of_file, parse
from lima2cli.language.records import BufferPlace
from tests import ROOT

HEAD = """\
lima2: 1
detector: {remu: {image: {width: 64, height: 48}, datasets: {A: {dtype: uint16}, B: {dtype: uint8}}}}
acquisition: {frames: 10}
"""


def parsed(text: str, base: Path = ROOT, file: str = "scan.yaml") -> tuple[Pipeline, list[Diagnostic]]:
    findings = Findings()
    document = load(text, file, findings, environment={})
    assert document is not None
    with FileStore(base) as files:
        return parse(document, findings, files), list(findings)


def good(text: str, base: Path = ROOT) -> Pipeline:
    pipeline, found = parsed(text, base)
    assert not [item for item in found if item.severity == "error"]
    return pipeline


def rules(text: str) -> list[str]:
    return [item.rule for item in parsed(text)[1]]


def test_everything_has_a_default() -> None:
    pipeline = good(HEAD)
    assert pipeline.name == "scan"
    assert list(pipeline.receivers) == ["receiver0"]
    assert list(pipeline.receivers["receiver0"].memspaces) == ["host"]
    assert [(flow.name, flow.index) for flow in pipeline.flows.values()] == [("A", 0), ("B", 1)]
    flow = pipeline.flows["B"]
    assert flow.rect == Rect(0, 0, 64, 48)
    assert flow.places == (BufferPlace(0, "host"),)
    assert flow.overrun == "wait"
    assert not pipeline.nodes
    assert pipeline.output.directory == "runs/{name}_{run:04d}"


@pytest.mark.parametrize(
    ("file", "name"),
    [("a/maze.yaml", "maze"), ("-", "pipeline"), ("x.y z.yaml", "x_y_z"), ("3d.yaml", "pipeline_3d")],
)
def test_name_is_the_stem_as_far_as_names_allow(file: str, name: str) -> None:
    assert name_of_file(file) == name


def test_shape_and_frames_of_a_replayed_file(tmp_path: Path) -> None:
    np.save(tmp_path / "stack.npy", np.zeros((5, 6, 7), np.uint16))
    pipeline = good(
        "lima2: 1\ndetector: {replay: {file: stack.npy}}\nnodes: {save: {input: data, io_hdf5: {}}}", tmp_path
    )
    assert (pipeline.detector.width, pipeline.detector.height, pipeline.detector.datasets[0].frames) == (7, 6, 5)


def test_a_missing_file_is_told_at_the_parameter_that_names_it(tmp_path: Path) -> None:
    pipeline, (found,) = parsed("lima2: 1\ndetector: {replay: {file: stack.npy}}", tmp_path)
    assert (found.rule, found.at) == ("file-missing", ("detector", "replay", "file"))
    assert pipeline.detector is POISON
    assert pipeline.flows is POISON


def test_what_a_detector_refuses_is_told_at_its_parameter() -> None:
    _, (found,) = parsed(HEAD.replace("uint8", "uint8, bits: 12"))
    assert found.at == ("detector", "remu", "datasets", "B", "bits")


PLACES = HEAD + "receivers: {r0: {memspaces: {m: {host: }, g: {host: }}}, r1: {memspaces: {g: {host: }}}}\n"


@pytest.mark.parametrize(
    ("at", "places"),
    [
        ("", ((0, "m"), (1, "g"))),
        ("at: g", ((0, "g"), (1, "g"))),
        ("at: m", ((0, "m"),)),
        ("at: [r1.g, r0.m, r1.g]", ((1, "g"), (0, "m"), (1, "g"))),
    ],
)
def test_places_of_local_buffers(at: str, places: tuple[tuple[int, str], ...]) -> None:
    pipeline = good(f"{PLACES}flows: {{f: {{dataset: A, buffers: {{{at}}}}}}}")
    assert pipeline.flows["f"].places == tuple(BufferPlace(*place) for place in places)


def test_nodes_come_after_what_they_read_else_as_written() -> None:
    nodes = (
        "c: {input: b, io_hdf5: }",
        "x: {input: B, io_hdf5: }",
        "b: {input: a, mask: {image: 0}}",
        "a: {input: A, mask: {image: 0}}",
    )
    pipeline = good(f"{HEAD}nodes: {{{', '.join(nodes)}}}")
    assert list(pipeline.nodes) == ["a", "b", "c", "x"]
    assert [(*node.reads.values(), node.flow) for node in pipeline.nodes.values()] == [
        ("A", "A"),
        ("a", "A"),
        ("b", "A"),
        ("B", "B"),
    ]


def test_a_cycle_is_told_once_and_poisons_its_nodes_only() -> None:
    chain = "a: {input: b, mask: {image: 0}}, b: {input: a, mask: {image: 0}}, s: {input: b, io_hdf5: }"
    pipeline, found = parsed(f"{HEAD}nodes: {{{chain}, t: {{input: A, io_hdf5: }}}}")
    assert [(item.rule, item.message, item.at) for item in found] == [
        ("cycle", "cycle: a → b → a", ("nodes", "a", "input"))
    ]
    assert pipeline.nodes["a"].reads is POISON
    assert pipeline.nodes["s"].flow is POISON
    assert pipeline.nodes["t"].flow == "A"


def test_a_thousand_nodes_in_a_row() -> None:
    """No recursion, and no time that grows with the square."""
    nodes = "".join(f"  n{i}: {{input: {f'n{i + 1}' if i < 999 else 'A'}, mask: {{image: 0}}}}\n" for i in range(1000))
    pipeline = good(f"{HEAD}nodes:\n{nodes}")
    assert next(iter(pipeline.nodes)) == "n999"
    assert pipeline.nodes["n0"].flow == "A"


def test_a_node_named_as_the_flow_that_it_reads_is_no_cycle() -> None:
    assert rules(HEAD + "nodes: {A: {input: A, io_hdf5: }, b: {input: B, io_hdf5: }}") == ["name-taken"]


def test_one_bad_value_makes_no_second_mistake() -> None:
    """Each line has one mistake; nothing that hangs on it is reported."""
    text = f"""{HEAD}
receivers: {{r0: {{memspaces: {{m: {{hosst: }}}}}}}}
flows:
  one: {{datset: A, buffers: {{at: [r0.m]}}}}
  two: {{dataset: B, source: {{x: -1, y: 0, width: 100, height: 100}}}}
nodes:
  save: {{input: tow, io_hdf5: }}
  copy: {{input: save, io_hdf5: }}
"""
    assert sorted(rules(text)) == ["out-of-range", "unknown-input", "unknown-key", "unknown-kind"]


def test_bad_detector_leaves_other_checks() -> None:
    text = (
        HEAD.replace("width: 64", "width: 0")
        + "nodes: {a: {input: b, mask: {image: 0}}, b: {input: a, mask: {image: 0}}}"
    )
    assert rules(text) == ["out-of-range", "cycle"]


def test_an_empty_input_is_told_as_it_is() -> None:
    _, (found,) = parsed(HEAD + "flows: {f: {dataset: A}}\nnodes: {s: {input: , io_hdf5: }}")
    assert (found.message, found.at) == ("expected a string, got nothing", ("nodes", "s", "input"))


def test_a_document_that_is_no_map() -> None:
    pipeline, (found,) = parsed("[1, 2]")
    assert (found.rule, found.at) == ("wrong-type", ())
    assert pipeline.flows is POISON


def test_a_source_that_cannot_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from lima2cli.detectors.remu import Remu

    describe = Remu.describe
    monkeypatch.setattr(
        Remu, "describe", lambda self, files: dataclasses.replace(describe(self, files), can_wait=False)
    )
    assert parsed(HEAD)[0].flows["A"].overrun == "stop"
    asked = "flows: {f: {dataset: A, overrun: wait}}\nnodes: {s: {input: f, io_hdf5: }}"
    assert rules(HEAD + asked) == ["cannot-wait"]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("output: {directory: 'x{nam}'}", "unknown-field"),
        ("output: {directory: 'x{name.__class__}'}", "unknown-field"),
        ("output: {directory: 'x{'}", "bad-format"),
        ("output: {directory: 'x{name:04d}'}", "bad-format"),
        ("acquisition: {period: 1 ms, exposure: 2 ms}", "exposure-too-long"),
        ("acquisition: {period: 1 ms, rate: 1 kHz}", "period-or-rate"),
        ("flows: {A: {dataset: A, alignment: {row: 4}}}", "bad-alignment"),
        ("flows: {A: {dataset: A, alignment: {header: 15}}}", "bad-header"),
        ("flows: {A: {dataset: A, source: {x: 60, y: 0, width: 5, height: 1}}}", "roi-outside"),
        ("flows: {A: {dataset: C}}", "unknown-dataset"),
        ("flows: {A: {dataset: A, buffers: {size: 1 MiB, frames: 1}}}", "size-or-frames"),
    ],
)
def test_single_mistakes(line: str, rule: str) -> None:
    head = HEAD.replace("acquisition: {frames: 10}\n", "") if line.startswith("acquisition") else HEAD
    assert [item.rule for item in parsed(head + line)[1] if item.severity == "error"] == [rule]


@pytest.mark.parametrize(
    "use",
    [lambda it: it**2, lambda it: 2 % it, lambda it: it + 1, lambda it: it & 1, lambda it: it < 1, lambda it: it.x,
     lambda it: it[0], lambda it: f"{it}", bool, int, len, hash, list, abs, round, lambda it: divmod(it, 2)],
)  # fmt: skip
def test_a_value_that_was_reported_silences_whatever_is_made_of_it(use: Callable[[Any], Any]) -> None:
    assert attempt(lambda: use(POISON)) is POISON
