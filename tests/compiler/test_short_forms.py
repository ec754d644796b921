"""Short forms of the language: each means what its long form means, and mistakes in it are told where they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lima2cli.check import check_text
from lima2cli.declare import Integer, Quantity, pair
from lima2cli.declare.reading import Reading
from lima2cli.detectors.base import PIXEL_SIZE, PixelSize
from lima2cli.detectors.modules import GAP, Gap
from lima2cli.diagnostics import Diagnostic, Findings
from lima2cli.document import load
from lima2cli.kernels.formula import read_formula
from lima2cli.kernels.regions import RECTS, ROIS
from lima2cli.language.schema import pipeline_schema
from lima2cli.plan.figures import plan_figures
from lima2cli.units import SPELLINGS, UNITS, scaled
from tests.compiling import compiled
from tests.node_inputs import read
from tests.running import TRANSPORTS, run, truth

FRAMES = "acquisition: {frames: 12}\n"
RING = "{ring: {x: 20, y: 20, r1: 0, r2: 9}}"
RECT = "{x: 3, y: 4, width: 10, height: 8}"


def pipeline(detector: str = "", rest: str = "", nodes: str = "{s: {input: data, io_hdf5: {}}}") -> str:
    """A pipeline with more about its detector, other tables, and nodes."""
    more = f", {detector}" if detector else ""
    return f"lima2: 1\ndetector: {{remu: {{image: {{width: 64, height: 48}}{more}}}}}\n{FRAMES}{rest}nodes: {nodes}\n"


HOST = "memspaces: {host: {host: {}}}"
DATA = "datasets: {data: {dtype: uint16}}"
GRID = "modules: {columns: 2, width: 28, height: 48, gap: "


def node(kind: str, source: str = "input: data") -> str:
    return f"{{n: {{{source}, {kind}}}, s: {{input: n, io_hdf5: {{}}}}}}"


def rois(kind: str, written: str) -> str:
    return f"{{n: {{input: data, {kind}: {{rois: {{a: {written}}}}}}}}}"


CASES = {
    "datasets": (pipeline(), pipeline(DATA)),
    "memspaces": (
        pipeline(rest="receivers: {a: {threads: 2}, b: {}}\n"),
        pipeline(rest=f"receivers: {{a: {{threads: 2, {HOST}}}, b: {{{HOST}}}}}\n"),
    ),
    "pixel size": (pipeline("pixel_size: 172 um"), pipeline("pixel_size: {x: 172 um, y: 172 um}")),
    "pixel size in metres": (pipeline("pixel_size: 1.72e-4"), pipeline("pixel_size: {x: 172 um, y: 172 um}")),
    "gap": (pipeline(f"{GRID}7}}"), pipeline(f"{GRID}{{x: 7, y: 7}}}}")),
    "binning of the detector": (
        pipeline(rest="").replace("frames: 12", "frames: 12, binning: 2"),
        pipeline(rest="").replace("frames: 12", "frames: 12, binning: {x: 2, y: 2}"),
    ),
    "binning of a node": (
        pipeline(nodes=node("roi_flip_rot: {binning: 2}")),
        pipeline(nodes=node("roi_flip_rot: {binning: {x: 2, y: 2}}")),
    ),
    "rectangle": (
        pipeline(nodes=rois("roi_counters", RECT)), pipeline(nodes=rois("roi_counters", f"{{rect: {RECT}}}")),
    ),
    "rectangle of profiles": (
        pipeline(nodes=rois("roi_profiles", RECT)), pipeline(nodes=rois("roi_profiles", f"{{rect: {RECT}}}")),
    ),
    "ring": (
        pipeline(nodes=rois("roi_counters", "{ring: {x: 20, y: 20, r1: 3, r2: 9}}")),
        pipeline(nodes=rois("roi_counters", "{arc: {x: 20, y: 20, r1: 3, r2: 9, a1: 0, a2: 360}}")),
    ),
    "arc without angles": (
        pipeline(nodes=rois("roi_counters", "{arc: {x: 20, y: 20, r1: 3, r2: 9}}")),
        pipeline(nodes=rois("roi_counters", "{arc: {x: 20, y: 20, r1: 3, r2: 9, a1: 0, a2: 360}}")),
    ),
    "dataset of a flow": (
        pipeline(rest="flows: {f: {source: full}}\n", nodes="{s: {input: f, io_hdf5: {}}}"),
        pipeline(rest="flows: {f: {dataset: data}}\n", nodes="{s: {input: f, io_hdf5: {}}}"),
    ),
    "input of an expression": (
        pipeline(nodes=node('expression: {expr: "data * 2"}')),
        pipeline(nodes=node('expression: {expr: "data * 2"}', "inputs: {data: data}")),
    ),
    "micro sign": (pipeline("pixel_size: 75 µm"), pipeline("pixel_size: 75 um")),
    "greek mu": (
        pipeline().replace("frames: 12", "frames: 12, period: 500 μs"),
        pipeline().replace("frames: 12", "frames: 12, period: 500 us"),
    ),
    "angstrom": (pipeline("pixel_size: 750000 Å"), pipeline("pixel_size: 75 um")),
    "angstrom sign": (
        pipeline("pixel_size: 750000 \N{ANGSTROM SIGN}"), pipeline("pixel_size: 75 um"),
    ),
}  # fmt: skip


def parsed(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    plan, findings = compiled(text)
    assert plan is not None, [item.message for item in findings]
    assert not [item for item in findings if not item.rule.startswith("unused")]
    return dict(plan.record), plan_figures(plan)


@pytest.mark.parametrize("name", CASES)
def test_a_short_form_means_its_long_form(name: str) -> None:
    short, long = CASES[name]
    assert parsed(short) == parsed(long)


@pytest.mark.parametrize("name", CASES)
def test_the_published_schema_takes_both(name: str) -> None:
    validator = Draft202012Validator(pipeline_schema())
    for text in CASES[name]:
        document = load(text, "t.yaml", Findings(), environment={})
        assert document is not None
        assert not [error.message for error in validator.iter_errors(document.data)]


def test_the_record_shows_the_long_form() -> None:
    record, _ = parsed(CASES["ring"][0])
    assert record["nodes"]["n"]["roi_counters"]["rois"] == {
        "a": {"x": 20, "y": 20, "r1": 3, "r2": 9, "a1": 0.0, "a2": 360.0}
    }
    record, _ = parsed(CASES["input of an expression"][0])
    assert record["nodes"]["n"]["inputs"] == {"data": "data"}


@given(st.floats(1e-9, 1e3), st.sampled_from(sorted(UNITS["metres"])))
def test_one_length_stands_for_both(value: float, unit: str) -> None:
    written = f"{value:.6f} {unit}"
    each = Quantity("metres").parse(written)
    if each > 0:
        assert read(PIXEL_SIZE, written) == PixelSize(x=each, y=each)


@given(st.integers(0, 65536))
def test_one_number_stands_for_both(value: int) -> None:
    assert read(GAP, value) == read(GAP, {"x": value, "y": value}) == Gap(x=value, y=value)


@given(*[st.integers(0, 100)] * 2, *[st.integers(1, 100)] * 2)
def test_a_rectangle_stands_for_itself(x: int, y: int, width: int, height: int) -> None:
    rect = {"x": x, "y": y, "width": width, "height": height}
    for shape in (ROIS, RECTS):
        assert read(shape, {"a": rect}) == read(shape, {"a": {"rect": rect}})


@given(st.decimals(0, 10**6, places=3), st.sampled_from([(q, u) for q, units in UNITS.items() for u in units]))
def test_other_spellings_are_the_same_number(number: Any, unit: tuple[str, str]) -> None:
    quantity, name = unit
    for plain, others in SPELLINGS.items():
        for other in others:
            texts = [f"{number} {name}", f"{number}{name.replace(plain, other)}"]
            if quantity not in ("bytes", "bits"):
                assert len({Quantity(quantity).parse(text) for text in texts}) == 1


@given(st.integers(0, 10**9), st.integers(-9, 9))
def test_powers_of_ten_are_rounded_once(number: int, power: int) -> None:
    assert scaled(str(number), 10.0**power) == float(f"{number}e{power}")


def told(text: str) -> list[Diagnostic]:
    return list(compiled(text)[1])


@pytest.mark.parametrize(
    ("text", "rule", "at", "help"),
    [
        (pipeline("pixel_size: 172 umm"), "bad-quantity", "pixel_size", "`172 um`"),
        (pipeline("pixel_size: {x: 172 um, z: 172 um}"), "unknown-key", "z", "known: y"),
        (pipeline("pixel_size: [172 um]"), "wrong-type", "pixel_size", None),
        (pipeline(f"{GRID}seven}}"), "wrong-type", "gap", None),
        (pipeline(f"{GRID}-1}}"), "out-of-range", "gap", None),
        (pipeline(nodes=rois("roi_counters", "{x: 1, y: 2, width: 3, hight: 4}")), "unknown-key", "hight", "`height`"),
        (pipeline(nodes=rois("roi_counters", "{x: 1, y: 2, width: 3}")), "missing-key", "a", "height"),
        (pipeline(nodes=rois("roi_counters", "{widht: 1, hieght: 2}")), "unknown-key", "widht", "`width`"),
        (pipeline(nodes=rois("roi_counters", "{rong: {x: 1, y: 2, r1: 3, r2: 4}}")), "unknown-kind", "rong", "`ring`"),
        (pipeline(nodes=rois("roi_counters", "{ring: {x: 1, y: 2, r1: 3, r3: 4}}")), "unknown-key", "r3", "known: r2"),
        (pipeline(nodes=rois("roi_profiles", "{ring: {x: 1, y: 2, r1: 3, r2: 4}}")), "unknown-kind", "ring", "rect"),
        (pipeline(nodes=rois("roi_counters", "{x: 60, y: 2, width: 30, height: 4}")), "roi-outside", "rect", None),
        (pipeline(rest="receivers: {a: {treads: 2}}\n"), "unknown-key", "treads", "`threads`"),
        (pipeline(nodes=node('expression: {expr: "dat * 2"}')), "bad-expression", "expr", "`data`"),
        (pipeline(nodes=node('expression: {expr: "dat * 2"}', "input: dat")), "unknown-input", "dat", "`data`"),
        (pipeline(nodes=node('expression: {expr: "data > 1 && data < 9"}')), "bad-expression", "expr", "`and`"),
        (pipeline(nodes=node('expression: {expr: "data <= 1 || data == 9"}')), "bad-expression", "expr", "`or`"),
        (pipeline(nodes=node('expression: {expr: "!(data != 1)"}')), "bad-expression", "expr", "`not` for `!`"),
        (pipeline(nodes=node('expression: {expr: "where(data >= 1, data = 1, 2)"}')), "bad-expression", "expr", "="),
        (pipeline(rest="flows: {f: {overrun:stop}}\n"), "unknown-key", "overrun:stop", "`overrun: stop`"),
        (pipeline().replace("acquisition: {", "acquisition: {allow_lost: 1,5 %, "), "unknown-key", "5 %", "a comma"),
        (pipeline(nodes=node("io_hdf5: {}, compression: none")), "unknown-key", "compression", "a key of `io_hdf5`"),
        (pipeline("").replace("}}\n", "}, invalid: [1]}\n", 1), "unknown-key", "invalid", "a key of `remu`"),
        (pipeline(nodes=node("type: io_hdf5")), "unknown-kind", "type", "the kind is the key: `io_hdf5: {…}`"),
        (
            pipeline("datasets: {a: {dtype: uint8}, b: {dtype: uint8}}", "flows: {f: {}}\n", "{}"),
            "missing-key", "f", "a, b",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_short_forms(text: str, rule: str, at: str, help: str | None) -> None:
    found = [item for item in told(text) if item.severity == "error"]
    assert found[0].rule == rule
    assert found[0].at[-1] == at
    assert help is None or help in str(found[0].help)


def test_a_mistake_is_shown_where_the_short_form_is() -> None:
    text = pipeline(nodes=node('expression: {expr: "dat * 2"}', "input: dat"))
    findings = Findings()
    from lima2cli.language.definitions import with_named_inputs

    document = load(text, "t.yaml", findings, environment={})
    assert document is not None
    (item,) = [item for item in told(text) if item.rule == "unknown-input"]
    place = with_named_inputs(document).locate(item)
    line = text.splitlines()[place.span.line - 1]
    assert line[place.span.column - 1 : place.span.end_column - 1] == "dat"
    assert line[: place.span.column - 1].endswith("input: ")


def test_an_input_of_a_graph_keeps_its_name_there() -> None:
    """The variable is the name that the graph gives to what it reads."""
    graph = "graphs: {g: {inputs: [raw], output: out, nodes: {out: {input: raw, expression: {expr: raw - 1}}}}}\n"
    text = pipeline(rest=graph, nodes="{n: {input: data, graph: {g: {}}}, s: {input: n, io_hdf5: {}}}")
    checked = check_text(text, "t.yaml", Path(), cores=2, environment={})
    assert checked.plan is not None, list(checked.findings)
    assert checked.plan.record["nodes"]["n"]["inputs"] == {"raw": "data"}


def test_a_name_that_no_variable_can_have() -> None:
    head = pipeline(rest="flows: {my-flow: {}}\n", nodes=node('expression: {expr: "input - 1"}', "input: my-flow"))
    record, _ = parsed(head)
    assert record["nodes"]["n"]["inputs"] == {"input": "my-flow"}
    assert [item.rule for item in told(head.replace("input - 1", "my - flow"))] == ["bad-expression"]


@pytest.mark.parametrize(
    ("words", "signs"),
    [
        ("a > 1 and b < 2", "(a > 1) & (b < 2)"),
        ("a > 1 or b < 2 and a == 3", "(a > 1) | ((b < 2) & (a == 3))"),
        ("not a > 1 and b < 2", "(~(a > 1)) & (b < 2)"),
        ("not (a > 1 or b < 2)", "~((a > 1) | (b < 2))"),
        ("a + 1 > b and 1 < a < 5", "(a + 1 > b) & (1 < a < 5)"),
        ("where(a > 1 and not b > 2, a, b)", "where((a > 1) & ~(b > 2), a, b)"),
    ],
)
def test_words_bind_as_in_python(words: str, signs: str) -> None:
    assert read_formula(words, ["a", "b"]) == read_formula(signs, ["a", "b"])


def test_columns_of_two_regions_never_collide() -> None:
    """No statistic ends as another does behind an underscore, so that each column has one region and statistic."""
    from lima2cli.kernels.statistics import STATISTICS, columns
    from tests.node_inputs import spec_of

    statistics = [name for name in (*STATISTICS, "above") if name != "saturated"]
    assert not any(one.endswith(f"_{other}") for one in STATISTICS for other in statistics)
    names = ["a", "a_sum", "a_sum_sum", "a_avg", "A", "a-sum", "a__sum", "a_com", "com_x"]
    assert len(columns(names, statistics, spec_of("uint16", 8, 8))) == len(names) * len(statistics)


@pytest.mark.parametrize("data", [{"x": 1, "y": 2}, {"x": 1}, {}, 3, 3.0, "3", None, [1], True])
def test_the_alternative_that_fits_is_the_one_that_is_read(data: Any) -> None:
    shape = pair(Gap, Integer(0))
    findings = Findings()
    value = shape.read(data, (), Reading(findings))
    assert shape.pick(data) is {dict: shape.shapes[0], int: shape.shapes[1], float: shape.shapes[1]}.get(type(data))
    if not findings.failed:
        assert isinstance(value, Gap)
    else:
        assert not isinstance(data, dict)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_runs_with_short_forms_give_the_same_values(tmp_path: Path, transport: str) -> None:
    """Counters by underscored names, through a filter: from the files."""
    import h5py

    text = pipeline("scene: {counter: {}}", "name: t\n", "") + (
        "  d: {input: data, expression: {expr: 'where(data > 100 and not data > 60000, data - 2, 0)'}}\n"
        f"  c: {{input: d, roi_counters: {{rois: {{my_door: {RECT}, a_sum: {RING}}}}}}}\n"
        "  b: {input: d, filter: {keep: c.my_door_avg >= 0 and not c.a_sum_sum < 0}}\n  s: {input: b, io_hdf5: {}}\n"
    )
    ran = run(text, tmp_path, transport)
    assert truth(ran)["channels"]["s"]["saved"] == 12
    number, y, x = np.ogrid[:12, 4:12, 3:13]
    raw = (7919 * number + y * 64 + x) % 2**16
    expected = np.where((raw > 100) & ~(raw > 60000), raw - 2, 0).sum(axis=(1, 2))
    with h5py.File(ran.directory / "t_c.h5") as file:
        rows = file["entry_0000/measurement"]
        assert np.array_equal(rows["my_door_sum"][()], expected)
        assert "a_sum_sum" in rows
