"""The summary and the record of a run as plain data: published, read back, refused where they are damaged."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from lima2cli.accounting.record import RunRecord, seal, unseal
from lima2cli.accounting.summary import Summary, read_summary, schema_text
from lima2cli.check import check_text
from lima2cli.declare.plain import Misshapen, from_plain, key, schema_of, to_plain
from lima2cli.plan.ir import Plan
from tests import ROOT
from tests.golden import agrees
from tests.running import EXAMPLES, lima2, run


def planned(name: str) -> Plan:
    path = EXAMPLES / f"{name}.yaml"
    plan = check_text(path.read_text(), str(path), path.parent, cores=2, environment={}).plan
    assert plan is not None
    return plan


def test_the_published_schema_is_the_one_of_the_code() -> None:
    agrees(ROOT / "schemas" / "summary-1.schema.json", schema_text())
    Draft202012Validator.check_schema(json.loads(schema_text()))


def test_every_key_has_its_meaning() -> None:
    schema = json.loads(schema_text())
    tables = [schema, *schema["$defs"].values()]
    described = [entry for table in tables for entry in table["properties"].values()]
    assert len(described) > 80
    assert all(entry["description"].endswith((".", "]")) for entry in described)
    assert all(table["description"] for table in tables)


@pytest.mark.parametrize("name", ["maze", "filter", "joined_flows", "parts"])
def test_what_runs_write_is_what_is_published_and_is_read_back(name: str, tmp_path: Path) -> None:
    """A run that ended in order, and then the same one as it is recovered from its files."""
    validator = Draft202012Validator(json.loads(schema_text()))
    ran = run((EXAMPLES / f"{name}.yaml").read_text(), tmp_path, "inline", name=name)
    assert ran.code == 0, ran.output
    for state in ("complete", "failed"):
        written = ran.summary
        assert written["state"] == state
        assert not list(validator.iter_errors(written))
        summary = read_summary(ran.directory)
        assert to_plain(summary) == written
        assert set(written) <= set(json.loads(schema_text())["properties"])
        (ran.directory / "summary.json").unlink()
        assert lima2("recover", str(ran.directory), cwd=tmp_path).returncode == 0


def test_damaged_summaries_are_none_or_of_the_declared_types(tmp_path: Path) -> None:
    """Whatever stands for a value; what is read can be shown."""
    from lima2cli.cli.display import show_summary

    ran = run((EXAMPLES / "joined_flows.yaml").read_text(), tmp_path, "inline")
    draw, sound, read = random.Random(3), (ran.directory / "summary.json").read_text(), 0
    for _ in range(600):
        damaged = json.loads(sound)
        places: list[tuple[Any, Any]] = []
        ahead: list[Any] = [damaged]
        while ahead:
            item = ahead.pop()
            inside = list(item if isinstance(item, dict) else range(len(item)))
            places += [(item, name) for name in inside]
            ahead += [item[name] for name in inside if isinstance(item[name], dict | list)]
        item, name = draw.choice(places)
        if draw.random() < 0.2:
            del item[name]
        else:
            item[name] = draw.choice((None, True, -1, 1.5, 10**400, float("nan"), "x", [], {}, [[1, 2]], {"a": 1}))
        (ran.directory / "summary.json").write_text(json.dumps(damaged))
        summary = read_summary(ran.directory)
        if summary is not None:
            read += 1
            assert isinstance(show_summary(ran.directory, summary), str)
    assert 50 < read < 500


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.yaml")))
def test_the_record_of_a_plan_is_read_back_whole(name: str) -> None:
    record = RunRecord.of(planned(name))
    sealed = json.loads(json.dumps(seal(record), allow_nan=False))
    again = unseal(sealed)
    assert to_plain(again) == to_plain(record)
    for node, channel in record.channels.items():
        other, (mine, theirs) = again.channels[node], (channel.mask, again.channels[node].mask)
        assert (mine is None) == (theirs is None)
        assert mine is None or theirs is None or np.array_equal(mine, theirs)
        assert replace(channel, mask=None, metadata={}, acquisition={}, processing={}) is not other
        assert (other.rule, other.view, other.detector.base, other.places) == (
            channel.rule, channel.view, channel.detector.base, channel.places
        )  # fmt: skip


@dataclass(frozen=True)
class Inner:
    """A table in another."""

    name: str = key("Its name.")
    below: "Inner | None" = key("Another in it.", None)


@dataclass(frozen=True)
class Outer:
    """A table to try."""

    count: int = key("How many.")
    share: float = key("Which part.")
    kind: Literal["a", "b"] = key("One of two.")
    pair: tuple[int, str] = key("A number and a text.")
    inner: Inner | None = key("Its keys stand here.", None, none="spread")
    unknown: int | None = key("Left out where it is not known.", None, none="absent")
    nothing: Inner | None = key("Empty where it is not known.", None, none="empty")


@dataclass(frozen=True, eq=False)
class Masked:
    """A table with what messages need not show."""

    mask: NDArray[np.bool_] | None
    gap: float


OUTER = Outer(3, 0.5, "a", (1, "x"), Inner("n", Inner("m")), 4, Inner("k"))


@pytest.mark.parametrize("value", [OUTER, replace(OUTER, inner=None, unknown=None, nothing=None)])
def test_tables_are_read_back_and_fit_their_schema(value: Outer) -> None:
    plain = json.loads(json.dumps(to_plain(value)))
    assert from_plain(Outer, plain) == value
    assert not list(Draft202012Validator(schema_of(Outer)).iter_errors(plain))
    assert ("name" in plain, "unknown" in plain) == (value.inner is not None, value.unknown is not None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "/count: expected a whole number, got bool"),
        ({"count": 10**30}, "/count: expected a whole number, got int"),
        ({"share": "nan"}, "/share: expected a number, got str"),
        ({"share": float("inf")}, "/share: expected a number, got float"),
        ({"kind": "c"}, "/kind: expected one of a, b, got str"),
        ({"kind": []}, "/kind: expected one of a, b, got list"),
        ({"pair": [1]}, "/pair: expected a list of 2, got list"),
        ({"pair": [1, 2]}, "/pair/1: expected a string, got int"),
        ({"below": {"below": None}}, "/below: there is no name"),
        ({"nothing": {"name": 1}}, "/nothing/name: expected a string, got int"),
        ({"unknown": None}, "/unknown: expected a whole number, got NoneType"),
        ({"count": ...}, "/: there is no count"),
    ],
)
def test_each_misshapen_value_is_refused_with_its_place(change: dict[str, Any], message: str) -> None:
    plain = {name: value for name, value in (to_plain(OUTER) | change).items() if value is not ...}
    with pytest.raises(Misshapen) as refused:
        from_plain(Outer, plain)
    assert str(refused.value) == message


@pytest.mark.parametrize("gap", [float("nan"), float("inf"), -1.5])
def test_masks_and_numbers_that_json_lacks_are_kept(gap: float) -> None:
    mask = np.random.default_rng(1).random((13, 7)) < 0.3
    again = from_plain(Masked, json.loads(json.dumps(to_plain(Masked(mask, gap)), allow_nan=False)))
    np.testing.assert_array_equal(again.mask, mask)
    assert repr(again.gap) == repr(gap)


def test_a_summary_is_as_small_as_it_is_declared() -> None:
    summary = Summary(
        state="failed", reason=None, file=None, frames=None, flows={}, channels={}, tables={}, seconds=None
    )
    assert to_plain(summary) == {
        "version": 1, "flows": {}, "channels": {}, "tables": {}, "problems": [], "warnings": [], "state": "failed",
        "reason": None, "overrun": False, "losses": [], "file": None, "frames": None, "seconds": None, "rates": {},
        "resources": {},
    }  # fmt: skip
