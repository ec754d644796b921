"""The processing graph placed: shapes and dtypes along every edge, and what each node makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lima2cli.config.pipeline import GraphNode, Pipeline
from lima2cli.diagnostics import Findings, Path
from lima2cli.errors import FileProblem, Misfit
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Join, Node, Transform
from lima2cli.plan.records import Gdt, Numbering, Step
from lima2cli.poison import POISON, attempt
from lima2cli.spec import Files, FrameSpec, SparseSpec, Spec, TableSpec
from lima2cli.view import View


def flow_spec(pipeline: Pipeline, gdt: Gdt) -> FrameSpec:
    """Frames as a flow delivers them; gaps are masked."""
    mask = None
    if gdt.gap_pixels:
        mask = np.ones((gdt.source.height, gdt.source.width), dtype=bool)
        for part in gdt.parts:
            mask[Rect(part.x, part.y, part.width, part.height).within(gdt.source)] = False
    info = pipeline.detector
    return FrameSpec(gdt.dtype, View(gdt.source), (info.width, info.height), mask, info.saturation)


def place_nodes(pipeline: Pipeline, gdts: tuple[Gdt, ...], files: Files, findings: Findings) -> tuple[Step, ...]:
    """Infer what flows along every edge; a node that misfits poisons only what hangs on it."""
    specs: dict[str, Spec] = {gdt.name: flow_spec(pipeline, gdt) for gdt in gdts}
    numberings = {
        gdt.name: Numbering(gdt.rule, tuple(buffer.receiver for buffer in gdt.buffers), gdt.selected) for gdt in gdts
    }
    steps = []
    for name, it in pipeline.nodes.items():
        step = attempt(lambda n=name, i=it: _place(n, i, specs, numberings, files, findings))  # type: ignore[misc]
        if step is POISON or step is None:
            continue
        specs[name], numberings[name] = step.after, _numbering_after(step)
        steps.append(step)
    return tuple(steps)


def _place(
    name: str,
    it: GraphNode,
    specs: dict[str, Spec],
    numberings: dict[str, Numbering],
    files: Files,
    findings: Findings,
) -> Step | None:
    node = it.node
    if node is POISON or any(source not in specs for source in it.reads.values()):
        return None
    frames = {place: specs[source] for place, source in it.reads.items()}
    for place, before in frames.items():
        if isinstance(before, TableSpec):
            message = f"node {name} takes frames, but {it.reads[place]} gives a {before}"
            findings.error("edge-mismatch", message, ("nodes", name, *place))
        elif isinstance(before, SparseSpec) and not node.sparse:
            message = f"node {name} takes dense frames, but {it.reads[place]} gives sparse ones"
            findings.error("edge-mismatch", message, ("nodes", name, *place))
    entering = {
        place: before
        for place, before in frames.items()
        if isinstance(before, FrameSpec) and (node.sparse or not isinstance(before, SparseSpec))
    }
    if len(entering) < len(frames):
        return None
    at: Path = ("nodes", name)
    try:
        step = (_join if it.inputs else _single)(it, entering, numberings, files)
        _numbering_after(step)
        for warning in _warnings(step, files):
            findings.warning(warning.rule, warning.message, _misfit_place(at, node, warning), help=warning.help)
    except Misfit as misfit:
        notes = [f"input of {name}: {before}" for before in entering.values()]
        findings.error(misfit.rule, misfit.message, _misfit_place(at, node, misfit), help=misfit.help, notes=notes)
        return None
    except FileProblem as problem:
        findings.error(problem.rule, str(problem), _file_place((*at, node.kind), node, problem))
        return None
    return step


Entering = Mapping[Path, FrameSpec]
"""What enters a node, by the place where it is named."""


def _single(it: GraphNode, entering: Entering, numberings: Mapping[str, Numbering], files: Files) -> Step:
    ((place, before),) = entering.items()
    source = it.reads[place]
    return Step(it.name, it.node, source, it.flow, before, it.node.infer(before, files), numberings[source])


def _join(it: GraphNode, entering: Entering, numberings: Mapping[str, Numbering], files: Files) -> Step:
    assert isinstance(it.node, Join)
    specs = {str(place[-1]): before for place, before in entering.items()}
    after = it.node.infer_all(specs, files)
    numbering = paired({name: numberings[source] for name, source in it.inputs.items()})
    first = next(iter(specs))
    return Step(it.name, it.node, it.inputs[first], it.flow, specs[first], after, numbering, it.inputs, specs)


def _warnings(step: Step, files: Files) -> Sequence[Misfit]:
    if isinstance(step.node, Join):
        return step.node.warnings_all(step.specs, files)
    return step.node.warnings(step.before, files)


def paired(numberings: Mapping[str, Numbering]) -> Numbering:
    """Numbers of the frames that are in all inputs, by name; raises `Misfit` where they are not numbered alike."""
    (first, one), *others = numberings.items()
    for name, other in others:
        if _numbers(other) != _numbers(one):
            message = f"`{first}` has {_counted(one)}, `{name}` {_counted(other)}: they cannot be paired"
            raise Misfit("edge-mismatch", message, ("inputs", name), "accumulate behind the join, or both alike")
    common = tuple(name for name in one.upstream if all(name in other.upstream for _, other in others))
    apart = [name for it in numberings.values() for name in (*it.upstream, *it.unmatched) if name not in common]
    return replace(one, upstream=common, unmatched=tuple(dict.fromkeys(apart)))


def _numbers(it: Numbering) -> tuple[object, ...]:
    return it.rule, it.receivers, it.selected, it.window


def _counted(it: Numbering) -> str:
    """Frames in words: those of the flow, or windows of them."""
    if it.window == 1:
        return "the frames of the flow"
    return f"one frame made of {it.window}" if it.window else "one frame made of all"


def _numbering_after(step: Step) -> Numbering:
    """Numbers of the frames that leave a node; raises `Misfit` where frames that belong together are apart."""
    came = step.numbering
    if isinstance(step.node, Join):
        return replace(came, unmatched=(*came.unmatched, step.name)) if len(step.sources) > 1 else came
    if not isinstance(step.node, Transform):
        return came
    rule, receivers, window = step.node.numbering(came.rule, came.receivers)
    selected = 1 if not window else None if came.selected is None else -(-came.selected // window)
    upstream = (*came.upstream, step.name)
    return Numbering(rule, tuple(receivers), selected, came.window * window, upstream, came.unmatched)


def _misfit_place(at: Path, node: Node, misfit: Misfit) -> Path:
    """Below the node's kind; inputs stand beside it."""
    return (*at, *misfit.key) if misfit.key[:1] == ("inputs",) else (*at, node.kind, *misfit.key)


def _file_place(at: Path, node: object, problem: FileProblem) -> Path:
    """The parameter whose reference the message names, else the node."""
    for key, value in vars(node).items():
        if isinstance(value, str) and value in str(problem):
            return (*at, key)
    return at
