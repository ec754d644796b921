"""Names that users give: what validate accepts is in the files, each in a place of its own."""

import json
from pathlib import Path
from typing import Any

import h5py
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima2cli.check import check_text
from lima2cli.files.nexus import OF_ENTRY, OF_INSTRUMENT
from lima2cli.files.tree import link_names
from tests.running import lima2, truth
from tests.running import run as run_text


def _pipeline(metadata: dict[str, Any] | None = None, detector: str | None = None, **nodes: Any) -> str:
    """JSON is YAML."""
    remu: dict[str, Any] = {"image": {"width": 4, "height": 4}, "datasets": {"data": {"dtype": "uint16"}}}
    if detector is not None:
        remu["name"] = detector
    return json.dumps(
        {
            "lima2": 1,
            "metadata": metadata or {},
            "detector": {"remu": remu},
            "acquisition": {"frames": 3},
            "nodes": nodes or {"save": {"input": "data", "io_hdf5": {}}},
        },
        ensure_ascii=False,
    )


def _rules(text: str) -> list[str]:
    found = check_text(text, "pipeline.yaml", Path(), cores=2, environment={}).findings
    return [item.rule for item in found if item.severity == "error"]


@pytest.mark.parametrize("name", [*OF_ENTRY, ".", "..", "n" * 300, "a\0b"])
def test_instruments_whose_name_is_taken_or_none_are_refused(name: str) -> None:
    assert _rules(json.dumps({**json.loads(_pipeline()), "metadata": {"instrument": name}}))


@pytest.mark.parametrize("name", [*OF_INSTRUMENT, "", ".", "...", "n" * 300, "a\0b"])
def test_detectors_whose_name_is_taken_or_none_are_refused(name: str) -> None:
    assert _rules(_pipeline(detector="x").replace('"name": "x"', f'"name": {json.dumps(name)}'))


@pytest.mark.parametrize(
    "metadata",
    [
        {"title": "a\0b"},
        {"sample": "\0"},
        {"extra": {"a": {"b": ["fine", "a\0b"]}}},
        {"extra": {"a\0b": 1}},
        {"extra": {"n" * 300: 1}},
        {"extra": {"a": {"b": [{"n": 1}], "é" * 130: 1}}},
    ],
)
def test_metadata_that_no_file_holds_are_refused(metadata: dict[str, Any]) -> None:
    text = json.dumps({**json.loads(_pipeline()), "metadata": metadata})
    assert _rules(text)


def test_parameters_of_nodes_that_no_file_holds_are_refused() -> None:
    python = {"function": "u.py:f", "params": {"word": "a\0b"}}
    text = _pipeline(p={"input": "data", "python": python}, save={"input": "p", "io_hdf5": {}})
    assert "control-character" in _rules(text)


def test_names_of_files_that_are_too_long_are_refused() -> None:
    assert "name-too-long" in _rules('{"name": "' + "n" * 250 + '", ' + _pipeline()[1:])
    assert "name-too-long" in _rules(_pipeline(**{"n" * 240: {"input": "data", "checkpoint": {}}}))
    # the longest that fit are saved
    fits = _pipeline(**{"m" * 110: {"input": "data", "io_hdf5": {}}})
    assert _rules('{"name": "' + "n" * 120 + '", ' + fits[1:]) == []


def test_the_longest_names_that_are_accepted_are_saved(tmp_path: Path) -> None:
    for length in range(250, 200, -1):
        text = '{"name": "' + "n" * length + '", ' + _pipeline()[1:]
        if not _rules(text):
            break
    text = text.replace('"acquisition"', '"output": {"directory": "run"}, "acquisition"')
    (tmp_path / "long.yaml").write_text(text)
    done = lima2("run", "long.yaml", "--transport", "inline", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert length > 225


LETTERS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)


@settings(max_examples=200)
@given(texts=st.sets(LETTERS | st.sampled_from(["a/b", "a-b", "a-b_2", ".", "..", "", "unnamed", "data"]), max_size=12))
def test_links_have_names_of_their_own(texts: set[str]) -> None:
    names = link_names(sorted(texts), ("data", "title"))
    assert set(names) == texts
    assert len(set(names.values())) == len(texts)
    for text, name in names.items():
        assert name
        assert "/" not in name
        assert name.strip(".")
        assert name not in ("data", "title")
        if "/" not in text and text.strip(".") and text not in ("data", "title"):
            assert name == text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    instrument=LETTERS | st.sampled_from([*OF_ENTRY, "a/b", "%d", "instrument"]),
    detector=LETTERS | st.sampled_from([*OF_INSTRUMENT, "data", "plot", "instrument", "%s", "/entry_0000"]),
    extra=st.dictionaries(
        LETTERS | st.sampled_from(["a/b", "a-b", "title", "data", ".", "..", "", "NX_class"]),
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False, allow_infinity=False)
        | LETTERS
        | st.lists(st.integers() | LETTERS, max_size=3),
        max_size=5,
    ),
)
def test_what_validate_accepts_is_saved(
    instrument: str, detector: str, extra: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    metadata = {"instrument": instrument, "title": "t", "sample": "s", "photon_energy": 1e3, "extra": {"e": extra}}
    text = _pipeline(metadata, detector)
    if _rules(text):
        return
    folder = tmp_path_factory.mktemp("run")
    ran = run_text(text, folder, "inline")
    assert ran.code == 0, ran.output
    truth(ran)
    with h5py.File(ran.directory / "pipeline_save_master.h5") as file:
        entry = file["entry_0000"]
        saved = {item.attrs.get("key", name): item for name, item in list(entry["extra/e"].items())}
        assert set(saved) == {key for key, value in extra.items() if value is not None}
        for key, value in extra.items():
            if isinstance(value, str):
                assert saved[key].asstr()[()] == value
            elif isinstance(value, int) and not isinstance(value, bool):
                held = saved[key][()]
                assert int(held) == value


def test_nodes_named_as_the_linking_file_names_things(tmp_path: Path) -> None:
    names = ("title", "measurement", "flows", "channel", "title_2", "start_time", "sample", "extra")
    nodes = {name: {"input": "data", "io_hdf5": {}} for name in ("first", *names)}
    nodes |= {"table": {"input": "data", "checkpoint": {}}}
    nodes |= {"good": {"input": "data", "mask": {"image": 0, "fill": 0}}, "data_2": {"input": "good", "io_hdf5": {}}}
    ran = run_text(_pipeline(**nodes), tmp_path, "inline")
    assert ran.code == 0, ran.output
    truth(ran)
    with h5py.File(ran.directory / "pipeline.h5") as file:
        entry = file["entry_0000"]
        groups = {name: entry[name] for name in list(entry) if isinstance(entry[name], h5py.Group)}
        found = {item.attrs.get("key", name): name for name, item in groups.items() if "plot" in item}
        assert set(found) == {"first", *names, "table", "data_2"}
        assert found["title"] == "title_3"  # title_2 is a node, too
        for name in ("first", *names):
            assert entry[found[name]]["data"].shape == (3, 4, 4)
            assert entry[found[name]]["data"].file.filename.endswith(f"pipeline_{name}_master.h5")
        assert entry["title"].asstr()[()] == "pipeline"
        measured = entry["measurement"]
        assert measured["data"].file.filename.endswith("pipeline_first_master.h5")
        assert set(measured) == {"data", "first", *names, "table", "data_2"}


def test_a_channel_named_data_that_is_not_the_first(tmp_path: Path) -> None:
    flows = '"flows": {"F": {"dataset": "data"}}, "acquisition"'
    nodes = {"first": {"input": "F", "io_hdf5": {}}, "data": {"input": "F", "io_hdf5": {}}}
    ran = run_text(_pipeline(**nodes).replace('"acquisition"', flows), tmp_path, "inline")
    assert ran.code == 0, ran.output
    with h5py.File(ran.directory / "pipeline.h5") as file:
        measured = file["entry_0000/measurement"]
        assert measured["data"].file.filename.endswith("pipeline_first_master.h5")
        assert measured["data_2"].file.filename.endswith("pipeline_data_master.h5")


def test_keys_that_collide_or_are_no_names(tmp_path: Path) -> None:
    extra = {"e": {"a/b": 1, "a-b": 2, "..": 3, "": 4, "unnamed": {"NX_class": "x"}}}
    metadata = {"instrument": "P11/PETRA III", "extra": extra}
    ran = run_text(_pipeline(metadata, "a/b"), tmp_path, "inline")
    assert ran.code == 0, ran.output
    with h5py.File(ran.directory / "pipeline_save_master.h5") as file:
        entry = file["entry_0000"]
        assert entry["P11-PETRA III/name"].asstr()[()] == "P11/PETRA III"
        assert entry["P11-PETRA III/a-b/data"].shape == (3, 4, 4)
        assert entry["P11-PETRA III/a-b/detector_information/name"].asstr()[()] == "a/b"
        saved = {name: (item.attrs.get("key"), item) for name, item in list(entry["extra/e"].items())}
        assert saved["a-b"][1][()] == 2
        assert saved["a-b_2"][0] == "a/b"
        assert saved["a-b_2"][1][()] == 1
        assert saved["unnamed"][1]["NX_class"].asstr()[()] == "x"
        assert {saved["unnamed_2"][0], saved["unnamed_3"][0]} == {"..", ""}
