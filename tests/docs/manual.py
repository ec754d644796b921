"""Pages of the manual about the language, made from the same declarations as the parser and the schema."""

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lima2cli.declare import Either, ListOf, MapOf, OneKind, Shape, Short, Table, params
from lima2cli.declare.wording import words
from lima2cli.detectors.base import detector_kinds
from lima2cli.detectors.capability_record import CapabilityRecord
from lima2cli.detectors.experiments import SCENES
from lima2cli.kernels import regions as rois
from lima2cli.language.records import PipelineTable
from lima2cli.language.templates import Template
from lima2cli.nodes import calibration
from lima2cli.nodes.registry import LANGUAGE, NodeEntry, node_kinds
from lima2cli.units import UNITS
from tests.docs.interface import interface

NOTE = "<!-- Made from the declarations in the code by tests/docs/manual.py. -->\n\n"

PAGES = {"detector": "[a detector](detectors.md)", "scene": "[a scene](detectors.md#scenes)"}
"""Kinds that are described elsewhere."""


def manual() -> dict[str, str]:
    """The pages by file name, in ``docs/reference``."""
    pages = {"language.md": _language(), "nodes.md": _nodes(), "detectors.md": _detectors()}
    return pages | {"interface.md": interface()}


def _language() -> str:
    intro = (
        "Every table of a pipeline and its keys, from the outside in. How values are written (units, names,\n"
        "variables, coordinates) is explained in [writing pipelines](writing.md). `<name>` is any name of yours,\n"
        "`<n>` a place in a list. Of several kinds exactly one is written: `kind: {parameters}`.\n"
    )
    sections = [
        f"## {f'`{path}`' if path else 'The pipeline'}\n\n{_summary(table)}\n\n{_keys(path, table)}"
        for path, table in _tables("", Table(PipelineTable))
    ]
    return _page("Tables and keys of the language", intro, [*sections, _units()])


def _nodes() -> str:
    missing = ", ".join(f"`{kind}`" for kind in LANGUAGE if kind not in node_kinds())
    intro = (
        "A node is written `name: {input: flow-or-node, kind: {parameters}}`, with exactly one kind; `kind: {}`\n"
        "takes all defaults. A join reads several: `name: {inputs: {a: flow-or-node, b: flow-or-node}, kind: …}`.\n"
        "In place of a kind, `graph: {name: {parameters}}` stands for a [graph](../how-to/reuse.md) of several nodes.\n"
        "Frames travel as blocks, arrays (n, height, width) with their frame numbers.\n"
    ) + (f"\nPart of the language, but not available in this version: {missing}.\n" if missing else "")
    sections = [_kind(kind, table, _module_text(table.__module__)) for kind, table in node_kinds().items()]
    shared = {"Calibration images": calibration, "Regions of interest": rois}
    sections += [f"## {title}\n\n{_module_text(module.__name__)}\n" for title, module in shared.items()]
    return _page("Nodes", intro, sections)


DETECTORS = """\
The source of frames is written `detector: {kind: {parameters}}`. `remu`, `replay` and the emulated `smartpix` can wait
for receivers, so that flows lose nothing unless they are asked to (`overrun`); hardware cannot.

What the detector itself does to frames (`accumulate`, `binning`, `roi`, `flip` of
[`acquisition`](language.md#acquisition), in this order) changes the image: size, modules, pixel size, and the dtype,
which is widened to hold sums. All coordinates of flows and nodes are those of that image; `image_operation`, the beam
centre and the pixel size in the files refer to the whole sensor. A module keeps the binned pixels that it covers whole;
others are gaps. `remu` does all of it in software, before the acquisition as far as frames repeat.

A `software` trigger starts `frames_per_trigger` frames, a period apart: frames of trigger k are numbered from
k * frames_per_trigger on. Pulses of an `external` trigger, and gates, are emulated by a generator as regular as the
clock, one every frames_per_trigger periods: frames arrive as with the internal trigger. `shutter: closed` gives zeros.

A frame that a module has failed to give is incomplete: no node gets it, `frame_status` in the files is 3, and it is
counted in `missing` of its flow.
"""

CAPABILITIES = """\
## Capabilities

What a detector can do is retrieved before any flow is laid out, and all that a pipeline asks of it is checked against
that: data channels, dtypes and bit depths, parts of the image and their granularity, alignment, triggers, operations,
shutter ([rules](diagnostics.md#what-the-detector-can-do)). `lima2 detectors list` compares kinds;
`lima2 detectors show KIND` shows what a kind can do regardless of its parameters, and `lima2 detectors show FILE` what
the detector of a pipeline can do.

With `--format json` the latter is its *capability record*, a file that [`rashpa`](#rashpa) reads. (It takes the whole
output for a kind too, which holds the record of its defaults as `record`, where all parameters have one.) Lengths are
in metres, energies in eV, sizes in pixels, alignment in bits; `null` is the same as leaving a key out.
"""


def _detectors() -> str:
    scenes = (
        "## Scenes\n\nWhat the emulator sees, written `scene: {kind: {parameters}}`. The content of a frame depends\n"
        "on its number, the dataset and the pixel alone: it is the same whatever the flows, the number of ranks, or\n"
        "timing.\n"
    )
    return _page(
        "Detectors",
        DETECTORS,
        [
            *(_kind(kind, table, _detector_text(table)) for kind, table in detector_kinds().items()),
            _capabilities(),
            scenes,
            *(_kind(kind, table, _text(table), "###") for kind, table in SCENES.items()),
        ],
    )


def _capabilities() -> str:
    """Return the page about capabilities and every key of their record."""
    parts = [
        (f"#### `{path}`\n\n{_summary(table)}" if path else "### The record") + f"\n\n{_keys(path, table)}"
        for path, table in _tables("", Table(CapabilityRecord))
    ]
    return "\n".join([CAPABILITIES, *parts])


def _detector_text(table: type) -> str:
    """Return the words of the module, where it is about this kind alone; else those of the table."""
    module = inspect.cleandoc(sys.modules[table.__module__].__doc__ or "")
    return _module_text(table.__module__) if module.startswith("Detector ") else _text(table)


def _page(title: str, intro: str, sections: Sequence[str]) -> str:
    return NOTE + "\n".join([f"# {title}\n", intro, *sections])


def _kind(kind: str, table: type, text: str, marks: str = "##") -> str:
    """A kind: what is said of it, its keys, and the tables that they hold."""
    first, *inner = _tables(kind, Table(table))
    parts = [f"{marks} `{kind}`\n\n{text}\n\n{_keys(*first)}"]
    parts += [f"{marks}# `{path}`\n\n{_summary(held)}\n\n{_keys(path, held)}" for path, held in inner]
    return "\n".join(parts)


def _tables(path: str, shape: Shape) -> Iterator[tuple[str, type]]:
    """All tables that a value of this shape may hold and where they stand, outer ones first."""
    if isinstance(shape, Table):
        yield path, shape.table
        for key, declared in params(shape.table).items():
            yield from _tables(f"{path}.{key}" if path else key, declared.shape)
    elif isinstance(shape, OneKind) and shape.what not in PAGES:
        for kind, table in shape.kinds().items():
            yield from _tables(f"{path}.{kind}", Table(table))
    elif isinstance(shape, MapOf):
        yield from _tables(f"{path}.<name>", shape.item)
    elif isinstance(shape, ListOf):
        yield from _tables(f"{path}.<n>", shape.item)
    elif isinstance(shape, Either):
        for option in shape.shapes[:1] if isinstance(shape, Short) else shape.shapes:
            yield from _tables(path, option)


def _keys(path: str, table: type) -> str:
    """The keys of a table, one a row."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    defaults = {field.name: field for field in dataclasses.fields(table)}
    for key, declared in params(table).items():
        meaning = declared.doc.replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{key}` | {_value(declared.shape)} | {_default(defaults[key])} | {meaning} |")
    text = "\n".join(rows) if len(rows) > 2 else "It has no keys."
    return text + "\n"


def _value(shape: Shape) -> str:
    """Return the words for what may be written, with a link where another page tells."""
    if isinstance(shape, OneKind):
        return PAGES.get(shape.what) or "one of " + ", ".join(f"`{kind}`" for kind in shape.kinds())
    if isinstance(shape, MapOf):
        return f"names, each with {_value(shape.item)}"
    if isinstance(shape, ListOf):
        return f"a list, each item {_value(shape.item)}"
    if isinstance(shape, NodeEntry | Template):
        return "[a node](nodes.md)"
    if isinstance(shape, Table):
        return "a mapping (below)"
    if isinstance(shape, Short):
        return f"{_value(shape.shapes[0])}, or {shape.words}"
    if isinstance(shape, Either):
        return ", or ".join(_value(option) for option in shape.shapes)
    return words(shape.schema())


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{_made(field.default_factory())}`"
    if field.default is dataclasses.MISSING:
        return "required"
    return "" if field.default is None else f"`{_yaml(field.default)}`"


def _made(value: Any) -> str:
    """Write a default that is a mapping or a table: only its explicit values."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_made(item)}' for name, item in value.items())}}}"
    if not dataclasses.is_dataclass(value):
        return _yaml(value)
    if hasattr(value, "kind"):
        return f"{{{value.kind}: {{}}}}"
    declared = params(type(value))
    said = {key: getattr(value, key) for key in declared if declared[key].required}
    return f"{{{', '.join(f'{key}: {_yaml(item)}' for key, item in said.items())}}}"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if dataclasses.is_dataclass(value):
        return f"{{{', '.join(f'{key}: {_yaml(getattr(value, key))}' for key in params(type(value)))}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _summary(table: type) -> str:
    """First paragraph of a table's text."""
    return _text(table).split("\n\n")[0]


def _text(table: type) -> str:
    return _markdown(inspect.cleandoc(table.__doc__ or ""))


def _module_text(module: str) -> str:
    """Return the words of the module of a node or detector, all but its name."""
    text = inspect.cleandoc(sys.modules[module].__doc__ or "")
    said = text.partition(": ")[2] if text.startswith(("Node ", "Detector ")) else text
    return _markdown(said[:1].upper() + said[1:])


def _markdown(text: str) -> str:
    """A docstring as Markdown: lists of terms are kept as they are laid out."""
    blocks = []
    for block in text.replace("``", "`").split("\n\n"):
        aligned = any("   " in line.strip() for line in block.splitlines()) and not block.startswith(" ")
        blocks.append(f"```text\n{block.replace('`', '')}\n```" if aligned else block)
    return "\n\n".join(blocks)


def _units() -> str:
    rows = ["## Units\n", "| quantity | units | a plain number is in |", "|---|---|---|"]
    for quantity, units in UNITS.items():
        rows.append(f"| {quantity} | {' '.join(f'`{unit}`' for unit in units)} | {_base(units)} |")
    return "\n".join(rows) + "\n"


def _base(units: Mapping[str, float]) -> str:
    return next(f"`{unit}`" for unit, factor in units.items() if factor == 1)
