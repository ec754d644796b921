"""The processing graph placed: shapes and dtypes along every edge, and what each node makes of them."""

import numpy as np

from lima2cli.config.pipeline import GraphNode, Pipeline
from lima2cli.diagnostics import Findings, Path
from lima2cli.errors import FileProblem, Misfit
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Transform
from lima2cli.plan.records import Gdt, Numbering, Step
from lima2cli.poison import POISON, attempt
from lima2cli.spec import Files, FrameSpec, Spec, TableSpec
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
    before = specs.get(it.input)
    if before is None or node is POISON:
        return None
    at: Path = ("nodes", name, node.kind)
    if isinstance(before, TableSpec):
        findings.error(
            "edge-mismatch",
            f"node {name} takes frames, but {it.input} gives a {before}",
            ("nodes", name, "input"),
        )
        return None
    try:
        after = node.infer(before, files)
        step = Step(name, node, it.input, it.flow, before, after, numberings[it.input])
        _numbering_after(step)
        for warning in node.warnings(before, files):
            findings.warning(warning.rule, warning.message, (*at, *warning.key), help=warning.help)
    except Misfit as misfit:
        findings.error(
            misfit.rule, misfit.message, (*at, *misfit.key), help=misfit.help, notes=[f"input of {name}: {before}"]
        )
        return None
    except FileProblem as problem:
        findings.error(problem.rule, str(problem), _file_place(at, node, problem))
        return None
    return step


def _numbering_after(step: Step) -> Numbering:
    """Numbers of the frames that leave a node; raises `Misfit` where frames that belong together are apart."""
    if not isinstance(step.node, Transform):
        return step.numbering
    came = step.numbering
    rule, receivers, window = step.node.numbering(came.rule, came.receivers)
    selected = 1 if not window else None if came.selected is None else -(-came.selected // window)
    return Numbering(rule, tuple(receivers), selected, came.window * window, (*came.upstream, step.name))


def _file_place(at: Path, node: object, problem: FileProblem) -> Path:
    """The parameter whose reference the message names, else the node."""
    for key, value in vars(node).items():
        if isinstance(value, str) and value in str(problem):
            return (*at, key)
    return at
