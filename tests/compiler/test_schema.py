"""The published JSON Schema, and what a check against it says."""

import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from lima2cli.cli import app
from lima2cli.declare import (
    Choice,
    Either,
    FileReference,
    Flag,
    Integer,
    ListOf,
    MapOf,
    Number,
    OneKind,
    Quantity,
    Shape,
    Table,
    Text,
    param,
)
from lima2cli.declare.reading import Reading
from lima2cli.diagnostics import NAME, POISON, Diagnostic, Findings
from lima2cli.document import load
from lima2cli.language.records import MEMSPACES, PipelineTable
from lima2cli.language.schema import pipeline_schema, pipeline_shape, schema_text
from tests import ROOT
from tests.faults.texts import mutants
from tests.golden import agrees
from tests.node_inputs import read


def told(data: Any, shape: Shape) -> list[Diagnostic]:
    reading = Reading(Findings())
    shape.read(data, (), reading)
    assert reading.findings.failed or not reading.bad
    return list(reading.findings)


def one(data: Any, shape: Shape) -> Diagnostic:
    (found,) = told(data, shape)
    return found


def test_the_published_schema_is_the_one_of_the_code() -> None:
    agrees(ROOT / "schemas" / "pipeline-1.schema.json", schema_text())


def test_the_command_prints_the_schema() -> None:
    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    assert result.stdout == schema_text()


def test_the_schema_is_a_schema_and_takes_the_examples() -> None:
    import yaml

    Draft202012Validator.check_schema(pipeline_schema())
    validator = Draft202012Validator(json.loads(schema_text()))
    for path in sorted((ROOT / "examples" / "pipelines").glob("*.yaml")):
        assert not list(validator.iter_errors(yaml.safe_load(path.read_text()))), path


def test_the_schema_and_the_walk_agree() -> None:
    """Whatever the walk reads, the schema takes; of what the walk refuses, it takes little."""
    validator = Draft202012Validator(json.loads(schema_text()))
    refused: list[bool] = []
    for text in islice(mutants(3), 300):
        document = load(text, "t.yaml", Findings(), environment={})
        if document is None or "graphs" in document.data:
            continue
        reading = Reading(Findings(), set(document.bad))
        pipeline_shape(document.data, Findings()).read(document.data, (), reading)
        if reading.findings.failed:
            refused.append(validator.is_valid(document.data))
        else:
            assert document.bad or validator.is_valid(document.data), text
    assert len(refused) > 60
    assert sum(refused) < 0.1 * len(refused)


def test_editors_are_told_what_each_key_means() -> None:
    """Every declared key has a sentence, however deep."""
    todo, seen = [pipeline_schema()], 0
    while todo:
        schema = todo.pop()
        for key, entry in schema.get("properties", {}).items():
            kinds = set(schema["properties"]) - set(schema.get("x-beside", ())) if "x-kind" in schema else set()
            assert entry.get("description") or key in kinds, key
            seen += 1
            todo.append(entry)
        todo += schema.get("anyOf", [])
        todo += [part for part in (schema.get("items"), schema.get("additionalProperties")) if isinstance(part, dict)]
    assert seen > 80


@dataclass(frozen=True, kw_only=True)
class Box:
    """A table to try."""

    width: int = param("Columns.", Integer(1))
    color: str = param("Its color.", Choice(("red", "green")), "red")


@dataclass(frozen=True, kw_only=True)
class Ring:
    """A kind to try."""

    radius: float = param("Radius.", Number(above=0))


BOX = Table(Box)
KINDS = OneKind("figure", lambda: {"box": Box, "ring": Ring})


@pytest.mark.parametrize(
    ("data", "shape", "rule", "message", "help"),
    [
        ("abc", Integer(0), "wrong-type", "expected a whole number of at least 0, got the string `abc`", None),
        (True, Integer(), "wrong-type", "expected a whole number, got true", None),
        (1.5, Integer(), "wrong-type", "expected a whole number, got 1.5", None),
        (-1, Integer(0), "out-of-range", "expected a whole number of at least 0, got -1", None),
        (9, Integer(0, 3), "out-of-range", "expected a whole number from 0 to 3, got 9", None),
        (0, Number(above=0), "out-of-range", "expected a number above 0, got 0", None),
        (float("nan"), Number(), "not-finite", "expected a finite number, got nan", None),
        (float("-inf"), Number(), "not-finite", "expected a finite number, got -inf", None),
        (10**30, Integer(), "out-of-range", "the number is too large", None),
        (None, Flag(), "wrong-type", "expected true or false, got nothing", None),
        ("Yes", Flag(), "wrong-type", "expected true or false, got the string `Yes`", "did you mean `true`?"),
        ({"name": None}, Text(), "wrong-type", "expected a string, got a mapping", 'quote it: "{name}"'),
        (12, Text(), "wrong-type", "expected a string, got 12", 'quote it: "12"'),
        ("3d", Text(NAME), "bad-name",
         "expected a name: a letter, then letters, digits, - and _, got the string `3d`", None),
        ("", FileReference(), "bad-text", "expected a file, such as `dark.h5::/entry/data`, got an empty string", None),
        ("grene", Choice(("red", "green")), "unknown-value", "expected one of red, green, got the string `grene`",
         "did you mean `green`?"),
        (True, Choice((0, 1)), "wrong-type", "expected one of 0, 1, got true", None),
        ("x REPLACEME", Text(), "replaceme", "a placeholder was left in", "put the real value here"),
        ({}, ListOf(Text()), "wrong-type", "expected a list, got an empty mapping", "write a list: [ … ]"),
        ([], ListOf(Text(), 1), "out-of-range", "expected a list of at least one item, got an empty list", None),
        ("16 MIB", Quantity("bytes"), "bad-quantity",
         "expected a number with a unit (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB), got `16 MIB`",
         "did you mean `16 MiB`?"),
        ("16", Quantity("bits"), "bad-quantity",
         "expected a number with a unit (bit), got `16`", "did you mean `16 bit`?"),
        ("1.5 B", Quantity("bytes"), "bad-quantity", "expected a whole number of bytes, and 1.5 B is 1.5 bytes", None),
        (0.5, Quantity("bytes"), "bad-quantity", "expected a whole number of bytes, got 0.5", None),
        ("0 s", Quantity("seconds", above=0), "out-of-range", "expected more than 0 seconds, got 0 s", None),
        ("1e400 s", Quantity("seconds"), "out-of-range", "expected a smaller number, got 1e400 s", None),
        ([], Quantity("eV"), "wrong-type",
         "expected a number of eV, or a string such as `12.4 keV`, got an empty list", None),
        ("ful", Either((BOX, Choice(("full",)))), "unknown-value",
         "expected a mapping with the keys width, color, or full, got the string `ful`", "did you mean `full`?"),
        (3, Either((BOX, Choice(("full",)))), "wrong-type",
         "expected a mapping with the keys width, color, or full, got 3", None),
        ({"box": {"width": 1}, "ring": {"radius": 1}}, KINDS, "one-kind",
         "the pipeline has 2 kinds, `box` and `ring`; exactly one is needed", None),
        ({}, KINDS, "one-kind", "the pipeline has no kind of figure", "one of: box, ring"),
        ({"bxo": {}}, KINDS, "unknown-kind", "there is no figure of kind `bxo`", "did you mean `box`?"),
        ({"sphere": {}}, KINDS, "unknown-kind", "there is no figure of kind `sphere`", "known: box, ring"),
        ("box", KINDS, "wrong-type", "expected a mapping with one kind of figure (box, ring), got the string `box`",
         "write it as a mapping: {box: {}}"),
    ],
)  # fmt: skip
def test_each_mistake_in_our_words(data: Any, shape: Shape, rule: str, message: str, help: str | None) -> None:
    found = one(data, shape)
    assert (found.rule, found.message, found.help) == (rule, message, help)


def test_keys_of_a_map() -> None:
    assert [(item.rule, item.at, item.on_key) for item in told({}, BOX)] == [("missing-key", (), True)]
    near = one({"widht": 3}, BOX)
    assert (near.rule, near.at, near.help) == ("unknown-key", ("widht",), "did you mean `width`?")
    far = one({"width": 3, "zzz": 1}, BOX)
    assert (far.rule, far.help) == ("unknown-key", "known: color")


def test_a_key_that_was_meant_to_be_another_makes_that_one_unreadable() -> None:
    """Not its default, about which a later check would say what the user did not write."""
    assert BOX.read({"width": 3, "colour": "green"}, (), Reading(Findings())).color is POISON


def test_null_stands_for_no_parameters_and_lacks_those_that_are_needed() -> None:
    assert not told({"host": None}, OneKind("memspace", lambda: MEMSPACES))
    found = one({"ring": None}, KINDS)
    assert (found.rule, found.at) == ("missing-key", ("ring",))


def test_names_are_checked_as_keys_and_proposed() -> None:
    found = one({"door_1": 1, "ok": 2}, MapOf(Integer(), r"^[A-Za-z][A-Za-z0-9-]*$"))
    assert (found.rule, found.at, found.on_key) == ("bad-name", ("door_1",), True)
    assert found.help == "for example `door-1`"


def test_fit_values_are_read() -> None:
    assert not told({"width": 64.0, "color": "green"}, BOX)
    box = read(BOX, {"width": 64.0})
    assert (box.width, type(box.width), box.color) == (64, int, "red")
    either = Either((Integer(1), MapOf(BOX)))
    assert not told(4.0, either)
    assert read(either, 4.0) == 4
    assert read(KINDS, {"ring": {"radius": 2}}) == Ring(radius=2)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("16 MiB", "bytes", 16 * 2**20),
        ("1.5 kB", "bytes", 1500),
        ("9007199254740993 B", "bytes", 2**53 + 1),
        ("256 bit", "bits", 256),
        ("1 ms", "seconds", 1e-3),
        ("2e3 us", "seconds", 2e-3),
        ("12.4keV", "eV", 12400.0),
        (7, "bytes", 7),
        (0.25, "seconds", 0.25),
    ],
)
def test_quantities(text: str | float, unit: str, value: float) -> None:
    assert not told(text, Quantity(unit))
    assert Quantity(unit).parse(text) == pytest.approx(value, rel=1e-15)
    assert isinstance(Quantity(unit).parse(text), int) == (unit in ("bytes", "bits"))


def test_mistakes_deep_in_the_pipeline_have_their_paths() -> None:
    data = {
        "lima2": 1,
        "detector": {"remu": None},
        "flows": {"a": {"dataset": "d", "slices": {"step": 0}}},
        "nodes": {"n": {}},
    }
    paths = {(item.rule, item.at) for item in told(data, Table(PipelineTable))}
    assert paths == {
        ("missing-key", ("detector", "remu")),
        ("out-of-range", ("flows", "a", "slices", "step")),
        ("missing-key", ("nodes", "n")),
        ("one-kind", ("nodes", "n")),
    }
