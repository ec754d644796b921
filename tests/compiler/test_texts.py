"""Texts and names that files cannot hold are refused before anything runs."""

from pathlib import Path

import pytest

from lima2cli.check import check_text
from lima2cli.diagnostics import Diagnostic
from tests.compiling import compiled

HEAD = "lima2: 1\ndetector: {remu: {image: {width: 16, height: 16}MORE}}\n"
SAVE = "nodes: {s: {input: data, io_hdf5: {}}}\n"


def told(text: str) -> list[Diagnostic]:
    return list(compiled(text.replace("MORE", ""))[1])


BAD = ["a\\0b", "\\0", "a\\eb", "a\\x7fb", "a\\x85b"]


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize(
    "place",
    [
        "metadata: {title: TEXT}",
        "metadata: {sample: TEXT, instrument: ID00}",
        "metadata: {instrument: TEXT}",
        "metadata: {extra: {a: [1, {b: TEXT}]}}",
        "description: TEXT",
        "output: {directory: TEXT}",
        "receivers: {r: {memspaces: {m: {file: {path: TEXT}}}}}",
    ],
)
def test_control_characters(place: str, text: str) -> None:
    found = told(HEAD + place.replace("TEXT", f'"{text}"') + "\n" + SAVE)
    assert "control-character" in [item.rule for item in found]


@pytest.mark.parametrize("text", BAD)
def test_control_characters_in_nodes_and_detectors(text: str) -> None:
    for more, node in (
        (f', name: "{text}"', "io_hdf5: {}"),
        ("", f'python: {{function: "u.py:f", params: {{a: "{text}"}}}}'),
        ("", f'python: {{function: "u.py:f", params: {{"{text}": 1}}}}'),
        ("", f'background_sub: {{image: "{text}"}}'),
        ("", f'mpi: {{command: [python, "{text}"]}}'),
    ):
        found = told(HEAD.replace("MORE", more) + f"nodes: {{s: {{input: data, {node}}}}}\n")
        assert "control-character" in [item.rule for item in found], (more, node)


def test_halves_of_characters_from_the_environment() -> None:
    """Bytes of a variable that are no UTF-8 are surrogates in Python."""
    text = HEAD.replace("MORE", "") + 'metadata: {title: "${T}"}\n' + SAVE
    variables = {"T": b"\xff".decode("utf-8", "surrogateescape")}
    checked = check_text(text, "t.yaml", Path(), cores=2, environment=variables)
    assert [item.rule for item in checked.findings] == ["control-character"]


@pytest.mark.parametrize("text", ["two\\nlines", "a\\tb", "µ Å 漢 🙂", "a\\r\\nb"])
def test_other_characters_are_fine(text: str) -> None:
    assert told(HEAD + f'metadata: {{title: "{text}"}}\ndescription: "{text}"\n' + SAVE) == []


@pytest.mark.parametrize("name", ["s\\n", "s t", "s.t", "\\ns"])
def test_a_name_ends_where_it_ends(name: str) -> None:
    """A pattern's end is the end of the text, not of its line."""
    for text in (
        f'nodes: {{"{name}": {{input: data, io_hdf5: {{}}}}}}\n',
        f'name: "{name}"\n{SAVE}',
        f'receivers: {{"{name}": {{}}}}\n{SAVE}',
        f'receivers: {{r: {{host: "{name}_"}}}}\n{SAVE}',
    ):
        assert {"bad-name", "bad-text", "control-character"} & {item.rule for item in told(HEAD + text)}, text


@pytest.mark.parametrize(
    ("name", "node", "at"),
    [
        ("n" * 250, "s", ("name",)),
        ("n" * 251, "s", ("name",)),
        ("n", "s" * 250, ("nodes", "s" * 250)),
        ("n" * 100, "s" * 140, ("nodes", "s" * 140)),
    ],
)
def test_names_that_are_too_long_together(name: str, node: str, at: tuple[str, ...]) -> None:
    for kind in ("io_hdf5: {}", "checkpoint: {}"):
        found = told(HEAD + f"name: {name}\nnodes: {{{node}: {{input: data, {kind}}}}}\n")
        assert {(item.rule, item.at) for item in found} == {("name-too-long", at)}


def test_the_longest_names_there_are() -> None:
    assert told(HEAD + f"name: {'n' * 110}\nnodes: {{{'s' * 110}: {{input: data, io_hdf5: {{}}}}}}\n") == []


@pytest.mark.parametrize(
    ("directory", "at"),
    [
        ("d" * 256, ("output", "directory")),
        ("a/" * 2000, ("output", "directory")),
        ("é" * 128, ("output", "directory")),
    ],
)
def test_run_directories_that_are_too_long(directory: str, at: tuple[str, ...]) -> None:
    found = told(HEAD + f'output: {{directory: "{directory}"}}\n' + SAVE)
    assert [(item.rule, item.at) for item in found if item.rule == "name-too-long"] == [("name-too-long", at)]


def test_files_that_differ_in_case_only() -> None:
    save = "{input: data, io_hdf5: {}}"
    nodes = f"nodes: {{Save: {save}, save: {save}, SAVE: {{input: data, checkpoint: {{}}}}}}\n"
    found = told(HEAD + nodes)
    assert [(item.rule, item.severity, item.at[-1]) for item in found] == [
        ("names-differ-in-case", "warning", "save"),
        ("names-differ-in-case", "warning", "SAVE"),
    ]


def test_files_of_one_name() -> None:
    common = "{input: data, io_hdf5: {layout: common, compression: none}}"
    nodes = f"nodes: {{a: {common}, a_0_rows: {{input: data, checkpoint: {{}}}}}}\n"
    found = told(HEAD + "acquisition: {frames: 4}\n" + nodes)
    assert [item.rule for item in found] == ["file-name-clash"]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "true", "1e400", "1e30"])
@pytest.mark.parametrize(
    "place",
    [
        "metadata: {photon_energy: VALUE}",
        "metadata: {beam_center: {x: VALUE, y: 0}}",
        "acquisition: {frames: VALUE}",
        "acquisition: {period: VALUE}",
        "acquisition: {binning: VALUE}",
        "receivers: VALUE",
        "flows: {f: {buffers: {frames: VALUE}}}",
    ],
)
def test_numbers_that_are_none(place: str, value: str) -> None:
    found = told(HEAD + place.replace("VALUE", value) + "\n" + SAVE)
    assert {"not-finite", "wrong-type", "out-of-range"} & {item.rule for item in found}
