"""Turn a Pipeline into a Plan: one pass of plain functions, in constant time whatever the number of frames."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lima2cli.diagnostics import POISON, Findings, Poisoned, attempt
from lima2cli.errors import FileProblem, NodeMisuse
from lima2cli.files.channel import Channel, RowSource, TableChannel
from lima2cli.frames import DetectorInfo, Files, FrameSpec, SparseSpec, TableSpec
from lima2cli.geometry import Rect
from lima2cli.language.pipeline import Pipeline
from lima2cli.language.records import GraphNode
from lima2cli.nodes.base import Reduce, Sink
from lima2cli.plan.buffers import lay_out
from lima2cli.plan.destinations import check_file_names, check_stored
from lima2cli.plan.fuse import fuse_steps
from lima2cli.plan.infer import flow_specs, place_nodes
from lima2cli.plan.ir import Gdt, Kernel, Numbering, Placement, Plan, RankRole, Region, Step
from lima2cli.plan.join_depth import check_skew
from lima2cli.plan.layout import frames_of
from lima2cli.plan.lowering import mark_lowered, on_devices
from lima2cli.secret import hide


def compile_plan(pipeline: Pipeline, files: Files, findings: Findings, *, cores: int, fuse: bool = True) -> Plan | None:
    """Decide everything: memory, routes, ranks, graph. Adds what is wrong to ``findings``; None if anything is.

    ``cores`` bounds the number of detector ranks: where modules outnumber cores, several share a rank.
    ``fuse`` False makes every node a kernel of its own.
    """
    if pipeline.flows is POISON or pipeline.receivers is POISON:
        return None
    laid_out = attempt(lambda: lay_out(pipeline, findings))
    regions, gdts = ((), ()) if laid_out is POISON else laid_out
    sources = attempt(lambda: _sources_of(pipeline, gdts, files, findings))
    placed = sources is not POISON and pipeline.nodes is not POISON
    steps = place_nodes(pipeline, gdts, sources, files, findings) if placed else ()
    attempt(lambda: check_file_names(pipeline.name, steps, findings))
    attempt(lambda: check_skew(steps, gdts, findings))
    record = attempt(lambda: _plain(pipeline))
    attempt(lambda: check_stored(pipeline, record, findings))
    if findings.failed:
        return None
    sinks = {step.name: (step, step.node) for step in steps if isinstance(step.node, Sink)}
    channels = {name: _channel(pipeline, step, sink, record, gdts) for name, (step, sink) in sinks.items()}
    for name, (_, sink) in sinks.items():
        if (misfit := sink.check(channels[name])) is not None:
            findings.error(misfit.rule, misfit.message, ("nodes", name, sink.kind, *misfit.key), help=misfit.help)
    if findings.failed:
        return None
    kernels = mark_lowered(fuse_steps(steps, on=fuse), steps, on_devices(regions, gdts), files)
    _warn_of_unused_devices(pipeline, regions, gdts, kernels, findings)
    return Plan(
        name=pipeline.name,
        detector=pipeline.config,
        info=pipeline.detector,
        frames=frames_of(pipeline),
        period_s=pipeline.acquisition.period_s,
        timeout_s=pipeline.acquisition.timeout,
        receivers=tuple(pipeline.receivers),
        regions=regions,
        gdts=gdts,
        ranks=rank_roles(
            len(pipeline.detector.modules),
            len(pipeline.receivers),
            1 if pipeline.config.writes_itself else cores,
            [step.name for step in steps if step.workers is not None for _ in range(step.workers.ranks)],
        ),
        steps=steps,
        kernels=kernels,
        channels=channels,
        tables={step.name: _table(pipeline, step, record, gdts) for step in steps if isinstance(step.node, Reduce)},
        output_directory=pipeline.output.directory,
        if_exists=pipeline.output.if_exists,
        pva=pipeline.output.pva,
        record=record,
        threads=tuple(receiver.threads for receiver in pipeline.receivers.values()),
        placements=tuple(Placement(table.host, table.cpus, table.numa) for table in pipeline.receivers.values()),
        acquisition=pipeline.acquisition.params(frames_of(pipeline)),
        repeat=pipeline.acquisition.repeat,
        on_request=pipeline.acquisition.start == "request",
        sources=sources,
        allow_lost=pipeline.acquisition.allow_lost,
    )


def _warn_of_unused_devices(
    pipeline: Pipeline, regions: Sequence[Region], gdts: Sequence[Gdt], kernels: Sequence[Kernel], findings: Findings
) -> None:
    """Report memspaces of devices to which frames come that nothing computes with there."""
    computed = {kernel.source for kernel in kernels if kernel.lowered}
    for index, region in enumerate(regions):
        flows = {gdt.flow for gdt in gdts if any(buffer.region == index for buffer in gdt.buffers)}
        if region.device is None or computed & flows:
            continue
        name = list(pipeline.receivers)[region.receiver]
        message = f"memspace {region.name} of {name} is on a device, where nothing is computed with its frames"
        help = (
            "corrections, formulae, cuts, flips and ROI counters directly behind its flows are; host memory costs less"
        )
        findings.warning(
            "device-unused", message, ("receivers", name, "memspaces", region.name), on_key=True, help=help
        )


def _sources_of(pipeline: Pipeline, gdts: Sequence[Gdt], files: Files, findings: Findings) -> Mapping[str, FrameSpec]:
    """Return the frames as the GDTs deliver them.

    Raises: Poisoned, after reporting it, where the detector's pixel mask is unfit.
    """
    at = ("detector", pipeline.config.kind)
    try:
        return flow_specs(pipeline, gdts, files)
    except NodeMisuse as misfit:
        findings.error(misfit.rule, misfit.message, at, help=misfit.help)
    except FileProblem as problem:
        findings.error(problem.rule, str(problem), at)
    raise Poisoned


def rank_roles(modules: int, receivers: int, cores: int, workers: Sequence[str] = ()) -> tuple[RankRole, ...]:
    """Return the role of each rank.

    Rank 0 controls, then detector ranks (a module each, several where they outnumber the cores), then receivers, then
    ``workers``, each by its node.
    """
    detectors = min(modules, max(1, cores))
    shares = [tuple(m for m in range(modules) if m * detectors // modules == d) for d in range(detectors)]
    return (
        RankRole(0, "control"),
        *(RankRole(1 + d, "detector", modules=share) for d, share in enumerate(shares)),
        *(RankRole(1 + detectors + r, "receiver", receiver=r) for r in range(receivers)),
        *(RankRole(1 + detectors + receivers + w, "worker", worker=node) for w, node in enumerate(workers)),
    )


def fitted(plan: Plan, ranks: int) -> Plan | None:
    """Return the plan for so many ranks, with more or fewer detector ranks for its modules; None: impossible."""
    detectors, modules = sum(role.role == "detector" for role in plan.ranks), len(plan.info.modules)
    wanted = detectors + ranks - len(plan.ranks)
    if not 1 <= wanted <= (1 if plan.detector.writes_itself else modules):
        return None
    workers = [role.worker for role in plan.ranks if role.worker is not None]
    return replace(plan, ranks=rank_roles(modules, len(plan.receivers), wanted, workers))


def _channel(pipeline: Pipeline, step: Step, sink: Sink, record: Mapping[str, Any], gdts: Sequence[Gdt]) -> Channel:
    spec: FrameSpec = step.before
    places: tuple[Rect, ...] = ()
    if step.numbering.parts:
        spec, places = _whole([passage.before for passage in step.passages])
    return Channel(
        name=pipeline.name,
        node=step.name,
        flow=step.flow,
        flows=step.numbering.flows,
        sources=_sources(step.numbering, gdts),
        places=places,
        filtered=bool(step.numbering.filters),
        dtype=spec.dtype,
        height=spec.shape[0],
        width=spec.shape[1],
        rule=step.numbering.rule,
        selected=step.numbering.selected,
        receivers=step.numbering.receivers,
        view=spec.view,
        detector=_detector(pipeline, step.numbering.flows),
        mask=spec.mask,
        saturation=spec.saturation,
        invalid=spec.invalid,
        hole=spec.hole,
        metadata=record["metadata"],
        acquisition=record["acquisition"],
        processing={name: record["nodes"][name] for name in _upstream(pipeline, step.name)},
        window=step.numbering.window,
        upstream=step.numbering.upstream,
        unmatched=step.numbering.unmatched,
        sparse=isinstance(spec, SparseSpec),
        rings=spec.experiment if isinstance(spec, SparseSpec) and spec.background else None,
        **sink.channel(step.before, _period_at_receivers(pipeline, step.numbering)),
    )


def _upstream(pipeline: Pipeline, name: str) -> list[str]:
    """Return a node and all that its frames or rows have passed, in the order of the data."""
    names, ahead = set(), [name]
    while ahead:
        if (one := ahead.pop()) in pipeline.nodes and one not in names:
            names.add(one)
            ahead += [*pipeline.nodes[one].reads.values(), *pipeline.nodes[one].tables]
    order = {node: index for index, node in enumerate(pipeline.nodes)} if len(names) > 1 else {}
    return sorted(names, key=lambda node: order.get(node, 0))


def _detector(pipeline: Pipeline, flows: Sequence[str]) -> DetectorInfo:
    """Return the detector without the datasets that none of ``flows`` takes frames of."""
    own = {pipeline.flows[flow].index for flow in flows}
    every = pipeline.detector.datasets
    return replace(pipeline.detector, datasets=tuple(dataset for index, dataset in enumerate(every) if index in own))


def _whole(parts: Sequence[FrameSpec]) -> tuple[FrameSpec, tuple[Rect, ...]]:
    """Return the frames that parts make, and the place of each part in them."""
    assert parts[0].whole is not None
    mask = np.ones(parts[0].whole.shape, bool)
    for part in parts:
        mask[part.place] = False if part.mask is None else part.mask
    whole = replace(parts[0], view=parts[0].whole, whole=None, mask=mask if mask.any() else None)
    return whole, tuple(part.part for part in parts)


def _period_at_receivers(pipeline: Pipeline, numbering: Numbering) -> float | None:
    """Return the seconds from one frame to the next at each receiver, on average; None where unpaced."""
    period = pipeline.acquisition.period_s
    shared = 1 if numbering.parts else len(set(numbering.receivers))
    return None if period is None else period * numbering.rule.step * shared


def _sources(numbering: Numbering, gdts: Sequence[Gdt]) -> tuple[RowSource, ...]:
    """Return the rules of the frames that flows select to feed a node."""
    of = {gdt.flow: (gdt.rule.start, gdt.rule.step, gdt.selected) for gdt in gdts}
    return tuple(of[flow] for flow in numbering.flows)


def _table(pipeline: Pipeline, step: Step, record: Mapping[str, Any], gdts: Sequence[Gdt]) -> TableChannel:
    assert isinstance(step.after, TableSpec)
    assert isinstance(step.node, Reduce)
    entering = step.numbering
    return TableChannel(
        name=pipeline.name,
        node=step.name,
        flow=step.flow,
        columns=dict(step.after.columns),
        default=step.after.default,
        rule=step.numbering.rule,
        selected=step.numbering.selected,
        receivers=step.numbering.receivers,
        units=dict(step.after.units),
        labels=dict(step.after.labels),
        others=step.after.others,
        axes=step.after.axes or None,
        errors=step.after.errors,
        facts=dict(step.after.facts),
        metadata=record["metadata"],
        unmatched=step.numbering.unmatched,
        lengths=dict(step.after.lengths),
        flows=entering.flows,
        sources=_sources(entering, gdts),
        window=entering.window,
        complete=step.node.every == 1
        and entering.window == 1
        and len(entering.flows) == 1
        and not (entering.filters or entering.upstream or entering.unmatched),
    )


def _plain(pipeline: Pipeline) -> dict[str, Any]:
    """Return the pipeline as plain data in base units, for the record in the files."""
    return {
        "metadata": plain(pipeline.metadata),
        "acquisition": plain(pipeline.acquisition),
        "detector": {pipeline.config.kind: plain(pipeline.config)},
        "nodes": {
            name: _wiring(graph_node) | {graph_node.node.kind: plain(graph_node.node)}
            for name, graph_node in pipeline.nodes.items()
            if graph_node.node is not POISON
        }
        if pipeline.nodes is not POISON
        else {},
    }


def _wiring(user: GraphNode) -> dict[str, Any]:
    return {"inputs": dict(user.inputs)} if user.inputs else {"input": next(iter(user.reads.values()))}


def plain(value: Any) -> Any:
    """Return tables as mappings, tuples as lists, without absent values, and with secrets hidden."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {key: plain(item) for key, item in fields.items() if item is not None}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return hide(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN
