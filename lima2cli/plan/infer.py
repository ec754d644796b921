"""Place the processing graph: infer shapes and dtypes along every edge, and the output of each node."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import POISON, Findings, KeyPath, Poisoned, attempt
from lima2cli.errors import FileProblem, NodeMisuse
from lima2cli.frames import DetectorInfo, Experiment, Files, FrameSpec, SparseSpec, Spec, TableSpec
from lima2cli.geometry import Rect
from lima2cli.language.pipeline import Pipeline
from lima2cli.language.records import GraphNode
from lima2cli.nodes.base import Exchange, Inputs, Node, Reduce, Sink
from lima2cli.plan.ir import Gdt, Numbering, Passage, Step
from lima2cli.plan.numbering import after, of_flow, paired
from lima2cli.view import View

Edge = tuple[Spec, ...]
"""Specs of an edge: one for all receivers, or one for each where these hold parts of frames."""


def flow_specs(pipeline: Pipeline, gdts: Sequence[Gdt], files: Files) -> dict[str, FrameSpec]:
    """Return frames as each GDT delivers them, by its name: gaps are masked, and the detector's defective pixels.

    Raises: NodeMisuse or FileProblem where the detector's pixel mask is unfit, or all masks together are too large.
    """
    info = pipeline.detector
    defective = _defective(info, files)
    masks: dict[tuple[Any, ...], NDArray[np.bool_] | None] = {}
    looked, experiment = _Looked(), _experiment(pipeline)
    specs = {}
    for gdt in gdts:
        parts = tuple(Rect(part.x, part.y, part.width, part.height) for part in gdt.parts)
        key = gdt.source, parts if gdt.gap_pixels else None  # of flows that show the same there is one mask
        if key not in masks:
            masks[key] = _flow_mask(info, gdt.source, key[1], defective)
        specs[gdt.name] = _flow_spec(info, gdt, pipeline.flows[gdt.flow].rect, masks[key], experiment)
        looked.add(0, specs[gdt.name])
    return specs


def _flow_mask(
    info: DetectorInfo, source: Rect, parts: Sequence[Rect] | None, defective: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """Return the mask of frames that show ``source``: pixels that no part covers (None: none), and defective ones."""
    mask = None
    if parts is not None:
        mask = np.ones((source.height, source.width), dtype=bool)
        for part in parts:
            mask[part.within(source)] = False
    if defective is None:
        return mask
    own = defective[source.within(info.image)]
    return own if mask is None else mask | own


def _experiment(pipeline: Pipeline) -> Experiment:
    """Return what the pipeline says of the experiment."""
    known, sensor = pipeline.metadata, pipeline.detector.sensor
    center = None if known.beam_center is None else (known.beam_center.x, known.beam_center.y)
    return Experiment(known.photon_energy, known.distance, center, sensor.pixel_size, (sensor.width, sensor.height))


def _flow_spec(
    info: DetectorInfo, gdt: Gdt, source: Rect, mask: NDArray[np.bool_] | None, experiment: Experiment
) -> FrameSpec:
    """Return the frames of a GDT; ``source`` is the flow's, of which the GDT may deliver a part."""
    return FrameSpec(
        gdt.dtype,
        View(gdt.source),
        (info.width, info.height),
        mask,
        info.saturation,
        None if gdt.place is None else View(source),
        info.datasets[gdt.dataset].invalid,
        info.gap_value,
        base=info.base,
        packed=gdt.packed,
        experiment=experiment,
    )


def _defective(info: DetectorInfo, files: Files) -> NDArray[np.bool_] | None:
    """Return the detector's own pixel mask, bool (height, width) of its image after its operations; None without.

    Raises: NodeMisuse or FileProblem where it is unfit.
    """
    if info.pixel_mask is None:
        return None
    image = files.image(info.pixel_mask)
    bad = np.asarray((image != 0).any(axis=0) if image.ndim == 3 else image != 0)
    sensor = info.sensor
    if bad.shape != (sensor.height, sensor.width):
        message = (
            f"the pixel mask {info.pixel_mask} is {bad.shape[1]} x {bad.shape[0]}, "
            f"the detector {sensor.width} x {sensor.height}"
        )
        raise NodeMisuse("calibration-shape", message)
    return bad if info.operated is None else np.ascontiguousarray(info.operated.view.apply(bad, "any"))


LONGEST_WINDOW = 1 << 24
"""Most frames that become one."""


MOST_LOOKED_AT = 1 << 28
"""Most pixels of masks that are made and looked at by all nodes together: the cost of `validate`."""

PASSING = 64
"""Number of mask pixels, passed on by a node unchanged, that count as one."""


class _Looked:
    """Count of mask pixels that were looked at so far; those of one array are made once."""

    def __init__(self) -> None:
        self._masks: dict[int, NDArray[Any]] = {}
        self._pixels, self._reported = 0, False

    def add(self, pixels: int, *specs: Any) -> None:
        """Count pixels, and masks of frames.

        Raises: NodeMisuse where all together are too many, once; then Poisoned.
        """
        self._pixels += pixels
        for mask in (getattr(spec, "mask", None) for spec in specs):
            if mask is None:
                continue
            made = mask
            while isinstance(made.base, np.ndarray):
                made = made.base
            self._pixels += mask.size // PASSING if id(made) in self._masks else made.size
            self._masks[id(made)] = made
        if self._reported:
            raise Poisoned
        if self._pixels > MOST_LOOKED_AT:
            self._reported = True
            message = f"up to here masks and regions of the nodes have {self._pixels} pixels, at most {MOST_LOOKED_AT}"
            raise NodeMisuse("masks-too-large", message, (), "smaller regions, a smaller image, or several pipelines")


@dataclass(frozen=True)
class _Known:
    """The known specs of everything that can be read, by name."""

    edges: dict[str, Edge]
    numberings: dict[str, Numbering]
    steps: dict[str, Step]
    looked: "_Looked"


def place_nodes(
    pipeline: Pipeline, gdts: tuple[Gdt, ...], sources: Mapping[str, FrameSpec], files: Files, findings: Findings
) -> tuple[Step, ...]:
    """Infer the frames along every edge; a misused node poisons only its descendants. ``sources``, by the name of the
    GDT, are the frames of flows.
    """
    flows = {flow: [gdt for gdt in gdts if gdt.flow == flow] for flow in dict.fromkeys(gdt.flow for gdt in gdts)}
    known = _Known(
        {flow: tuple(sources[gdt.name] for gdt in own) for flow, own in flows.items()},
        {flow: of_flow(own) for flow, own in flows.items()},
        {},
        _Looked(),
    )
    receivers = tuple(pipeline.receivers)
    for name, graph_node in pipeline.nodes.items():
        step = attempt(lambda n=name, i=graph_node: _place(n, i, known, receivers, files, findings))  # type: ignore[misc]
        if step is POISON or step is None:
            continue
        known.edges[name] = tuple(passage.after for passage in step.passages)
        if step.gathers:
            known.edges[name] = known.edges[name][:1]
        known.numberings[name] = after(step)
        known.steps[name] = step
    return tuple(known.steps.values())


def _place(
    name: str, graph_node: GraphNode, known: _Known, receivers: Sequence[str], files: Files, findings: Findings
) -> Step | None:
    node = graph_node.node
    if node is POISON or any(source not in known.edges for source in (*graph_node.reads.values(), *graph_node.tables)):
        return None
    at: KeyPath = ("nodes", name)
    entering = {place: _frames(node, source, known) for place, source in graph_node.reads.items()}
    for place, frames in entering.items():
        if isinstance(frames, str):
            findings.error("edge-mismatch", f"node {name} takes {frames}", (*at, *place))
    if any(isinstance(frames, str) for frames in entering.values()):
        return None
    edges = {place: frames for place, frames in entering.items() if not isinstance(frames, str)}
    try:
        inputs = _inputs(graph_node, edges, known, files)
        looked_at = sum(map(node.looked_at, inputs))
        known.looked.add(looked_at, *(spec for frames in edges.values() for spec in frames))
        step = _step(graph_node, inputs, known, receivers)
        known.looked.add(0, *(passage.after for passage in step.passages))
        for warning in (*node.warnings(inputs[0]), *_no_window(step)):
            findings.warning(warning.rule, warning.message, _misfit_place(at, node, warning), help=warning.help)
    except NodeMisuse as misfit:
        notes = [f"input of {name}: {edge[0]}" for edge in edges.values()]
        findings.error(misfit.rule, misfit.message, _misfit_place(at, node, misfit), help=misfit.help, notes=notes)
        return None
    except FileProblem as problem:
        findings.error(problem.rule, str(problem), _file_place((*at, node.kind), node, problem))
        return None
    return step


Specs = tuple[FrameSpec, ...]
"""Frames along an edge."""

Entering = Mapping[KeyPath, Specs]
"""Frames that enter a node, by the place where they are named."""


def _frames(node: Node, source: str, known: _Known) -> Specs | str:
    """Return the frames of an edge; the objection in words where the node does not take them."""
    edge = known.edges[source]
    frames = tuple(spec for spec in edge if isinstance(spec, FrameSpec))
    if not frames:
        return f"frames, but {source} gives a {edge[0]}"
    if isinstance(frames[0], SparseSpec) and not node.sparse:
        return f"dense frames, but {source} gives sparse ones"
    if not known.numberings[source].parts:
        return frames
    if not node.parts:
        return f"full frames, but {source} gives parts of them: reconstruct them before"
    step = known.steps.get(source)
    virtual = step is not None and isinstance(step.node, Exchange) and step.workers is None
    if isinstance(node, Sink):
        if node.assembles or virtual:
            return frames
        return f"full frames, but {source} gives parts of them: `layout: virtual`, or a reconstruction before"
    if virtual:
        return f"frames of a receiver, but `strategy: virtual` of {source} shows them in the saved files only"
    return frames


def _inputs(graph_node: GraphNode, entering: Entering, known: _Known, files: Files) -> list[Inputs]:
    """Return what enters a node: at all receivers, or where these hold parts of frames at each."""
    specs = [
        {str(place[-1]): frames[min(i, len(frames) - 1)] for place, frames in entering.items()}
        for i in range(max(len(frames) for frames in entering.values()))
    ]
    rule = known.numberings[next(iter(graph_node.reads.values()))].rule
    tables = {name: _rows(name, known) for name in graph_node.tables}
    parts = [next(iter(each.values())) for each in specs]
    return [Inputs(each, files, rule, tables, parts) for each in specs]


def _step(graph_node: GraphNode, inputs: Sequence[Inputs], known: _Known, receivers: Sequence[str]) -> Step:
    node = graph_node.node
    numberings = {str(place[-1]): known.numberings[source] for place, source in graph_node.reads.items()}
    numbering = paired(numberings, receivers)
    if graph_node.tables:
        numbering = _with_rows(numbering, graph_node, known, receivers)
    gathers = isinstance(node, Exchange) and node.gathers
    first = _made(node, inputs[0])
    after = [first, *(first if gathers else _made(node, each) for each in inputs[1:])]
    together = numbering.parts and (gathers or isinstance(node, Reduce))
    together = together or (isinstance(node, Sink) and node.together)
    return Step(
        graph_node.name,
        node,
        next(iter(graph_node.reads.values())),
        numbering.flows[0],
        tuple(Passage(each.specs, spec) for each, spec in zip(inputs, after, strict=True)),
        numbering,
        graph_node.inputs,
        tuple(graph_node.tables),
        tuple(dict.fromkeys(numbering.receivers)) if together else (),
    )


def _made(node: Node, inputs: Inputs) -> Spec:
    """Return what a node gives: frames as the detector has sent them only where it takes them so. Raises as `infer`."""
    spec = node.infer(inputs)
    if not isinstance(spec, FrameSpec) or not spec.packed or node.as_sent(inputs):
        return spec
    return replace(spec, packed="")


def _rows(name: str, known: _Known) -> TableSpec:
    spec = known.edges[name][0]
    assert isinstance(spec, TableSpec)  # names of nodes without rows have been refused
    return spec


def _with_rows(numbering: Numbering, graph_node: GraphNode, known: _Known, receivers: Sequence[str]) -> Numbering:
    """Return the numbering of the frames that have rows.

    Rows that receivers made together are known to all of these.

    Raises: NodeMisuse.
    """
    for name in graph_node.tables:
        rows, collective = known.numberings[name], known.steps[name].collective
        if collective:
            rows = replace(rows, parts=False, everywhere=True)
        try:
            numbering = paired({"frames": numbering, name: rows}, receivers)
        except NodeMisuse as misfit:
            raise NodeMisuse(misfit.rule, misfit.message, ("keep",), misfit.help) from misfit
    return numbering


def _no_window(step: Step) -> Sequence[NodeMisuse]:
    """Return the warning ``window-too-long`` where no window of frames is ever whole.

    Raises: NodeMisuse as `after` does.
    """
    entering, left = step.numbering, after(step)
    if left.window > LONGEST_WINDOW:
        message = f"a window of {left.window} frames is too long: each of its frames is accounted for"
        raise NodeMisuse("window-too-long", message, ("frames",), f"at most {LONGEST_WINDOW}, or 0 for all")
    if entering.selected is None or left.selected != 0 or entering.selected == 0:
        return ()
    window = left.window // max(1, entering.window)
    message = f"with {entering.selected} frames, no window of {window} is ever complete: {step.name} gives nothing"
    return (NodeMisuse("window-too-long", message, ("frames",), f"at most {entering.selected}, or 0 for all"),)


def _misfit_place(at: KeyPath, node: Node, misfit: NodeMisuse) -> KeyPath:
    """Return the path of a misuse: below the node's kind, or of inputs next to it."""
    return (*at, *misfit.key) if misfit.key[:1] == ("inputs",) else (*at, node.kind, *misfit.key)


def _file_place(at: KeyPath, node: object, problem: FileProblem) -> KeyPath:
    """Return the path of the parameter whose reference the message names, else of the node."""
    for key, value in vars(node).items():
        if isinstance(value, str) and value in str(problem):
            return (*at, key)
    return at
