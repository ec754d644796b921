"""A new pipeline, as text: what must be filled in is REPLACEME, other parameters are comments with their defaults."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lima2cli.cli.descriptions import plain_default
from lima2cli.cli.explanations import value_words
from lima2cli.declare import Either, ListOf, MapOf, OneKind, Shape, Table, params
from lima2cli.detectors.base import DetectorConfig
from lima2cli.document.writing import flow_text
from lima2cli.language.records import Metadata
from lima2cli.nodes.base import Reduce, Sink

REPLACEME = "REPLACEME"

FLOW = "data"
"""Name of the data flow."""

ALSO: Mapping[str, tuple[str, ...]] = {"mpi": ("function",), "histogram": ("range",), "jungfrau": ("udp",)}
"""Parameters without which most pipelines with these kinds are refused, although others do without."""

AROUND_THE_BEAM = ("azimuthal", "peaks")
"""Nodes that have to know where the detector stands."""

GEOMETRY = ("photon_energy", "distance", "beam_center")
"""Facts that such nodes need; the size of pixels is the detector's."""


def scaffold(
    title: str,
    detector: tuple[str, type],
    nodes: Sequence[tuple[str, type]],
    *,
    filled: Mapping[str, str] | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """Return a pipeline in which each node reads the frames of the last one before it that hands frames on.

    title     said in the first line
    detector, nodes   kinds with their tables
    filled    texts of required parameters of the detector that are known, with a comment where there is one to make
    datasets  names of the detector's datasets, where they are known
    """
    kind, table = detector
    parts = any(node == "reconstruction" for node, _ in nodes)
    recorded = filled is not None
    geometry = any(node in AROUND_THE_BEAM for node, _ in nodes)
    known = params(Metadata)
    also = (*ALSO.get(kind, ()), *(["pixel_size"] if geometry else []))
    lines = [
        f"# {' '.join(title.split())}",
        f"# Put values for {REPLACEME}. Lines behind `#` are optional, shown with their defaults.",
        "lima2: 1",
        *(["metadata:"] if geometry else []),
        *(line for key in GEOMETRY if geometry for line in _required(key, known[key].shape, known[key].doc, "  ")),
        "detector:",
        f"  {kind}:",
        *_parameters(table, "    ", filled or {}, also),
        "acquisition:",
        "  frames: 0  # 0 = all of the file" if recorded else "  frames: 100  # 0 = until stopped",
        "  # rate: 100 Hz  # or period: 10 ms; default: as fast as the slowest part allows",
        "# receivers: 1",
        "flows:",
        f"  {FLOW}:",
        *_dataset(datasets),
        *(["    dispatch: modules  # Of several receivers each gets its part of the modules."] if parts else []),
        "    source: full  # the whole image, or a part: {x: 0, y: 0, width: 100, height: 100}",
        "    # slices: {start: 0, step: 1}  # Selection of frames.",
    ]
    if nodes:
        lines.append("nodes:")
    current, names = FLOW, {FLOW}
    for kind, table in nodes:
        name = next(each for each in _candidates(kind) if each not in names)
        names.add(name)
        lines.append(f"  {name}:")
        if getattr(table, "wiring", "input") == "inputs":
            lines.append(f"    inputs: {{a: {current}}}  # one or several, by name")
        else:
            lines.append(f"    input: {current}")
        lines += [f"    {kind}:", *_parameters(table, "      ", {}, ALSO.get(kind, ()))]
        current = current if issubclass(table, Reduce | Sink) else name
    return "\n".join(lines) + "\n"


def _candidates(kind: str) -> Iterator[str]:
    yield kind
    yield from (f"{kind}_{number}" for number in range(2, 1000))


def _dataset(datasets: Sequence[str]) -> list[str]:
    if len(datasets) > 1:
        return [f"    dataset: {datasets[0]}  # or {', '.join(datasets[1:])}"]
    return ["    # dataset:  # default: the only one of the detector"]


def _parameters(table: type, indent: str, filled: Mapping[str, str], also: Iterable[str] = ()) -> Iterator[str]:
    """Yield the lines of a table's keys: required ones first, then comments."""
    fields = {field.name: field for field in dataclasses.fields(table)}
    declared = params(table)
    required = [key for key, one in declared.items() if one.required or key in also]
    for key in required:
        if key in filled:
            yield f"{indent}{key}: {filled[key]}"
        else:
            yield from _required(key, declared[key].shape, declared[key].doc, indent)
    of_all = params(DetectorConfig) if issubclass(table, DetectorConfig) else {}
    for key in sorted(declared.keys() - set(required), key=lambda key: (key in of_all, list(declared).index(key))):
        value = plain_default(fields[key])
        yield f"{indent}# {key}:{'' if value is None else f' {flow_text(value)}'}  # {declared[key].doc}"


def _required(key: str, shape: Shape, doc: str, indent: str) -> Iterator[str]:
    """Yield the lines of a key that must be filled in, and of those below it."""
    shape = shape.shapes[0] if isinstance(shape, Either) and isinstance(shape.shapes[0], Table | OneKind) else shape
    if isinstance(shape, Table):
        yield f"{indent}{key}:  # {doc}"
        yield from _parameters(shape.table, indent + "  ", {})
    elif isinstance(shape, OneKind):
        kind, table = next(iter(shape.kinds().items()))
        others = [other for other in shape.kinds() if other != kind]
        yield f"{indent}{key}:  # {doc}"
        yield f"{indent}  {kind}:" + (f"  # or {', '.join(others)}" if others else "")
        yield from _parameters(table, indent + "    ", {})
    elif isinstance(shape, MapOf):
        yield f"{indent}{key}:  # {doc}"
        yield from _required("first", shape.item, "One, by a name of yours.", indent + "  ")
    elif isinstance(shape, ListOf) and isinstance(shape.item, Table):
        yield f"{indent}{key}:  # {doc}"
        yield f"{indent}  -"
        yield from _parameters(shape.item.table, indent + "    ", {})
    elif isinstance(shape, ListOf):
        items = ", ".join([REPLACEME] * max(1, shape.minimum))
        yield f"{indent}{key}: [{items}]  # {doc} ({value_words(shape.item)})"
    else:
        yield f"{indent}{key}: {REPLACEME}  # {doc} ({value_words(shape)})"
