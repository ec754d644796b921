"""Plan to programs: every rank's addresses in every other rank's windows."""

from collections.abc import Mapping
from dataclasses import dataclass

from lima2cli.detectors.base import XferParams
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Delegate
from lima2cli.plan.rashpa_calls import rashpa_calls
from lima2cli.plan.records import Gdt, Plan, RankRole, Step
from lima2cli.program.processing import processing_of
from lima2cli.program.records import (
    END_WORDS,
    ControlProgram,
    Delegation,
    DetectorProgram,
    OwnBuffer,
    Program,
    ReceiverFlow,
    ReceiverProgram,
    Route,
    SourceFlow,
    Target,
    Wiring,
    WorkerProgram,
)


@dataclass(frozen=True)
class _Words:
    """Where each thing lies in the control windows."""

    generations: Mapping[tuple[int, int], int]
    times: Mapping[tuple[int, int], int]
    failures: Mapping[tuple[int, int], int]
    ends: Mapping[tuple[int, int], int]
    credits: Mapping[tuple[int, int], int]
    sizes: tuple[int, ...]


def lower(plan: Plan) -> tuple[Wiring, tuple[Program, ...]]:
    """One program per rank, by rank number, and the memory that they share. Whatever compiles, lowers."""
    words = _lay_out_words(plan)
    owners = tuple(plan.rank_of_receiver(region.receiver) for region in plan.regions)
    circles = tuple(tuple(plan.rank_of_receiver(r) for r in step.circle) for step in _together(plan))
    lines = tuple(_delegation(plan, index, step).members for index, step in enumerate(_delegating(plan)))
    wiring = Wiring(plan.regions, owners, words.sizes, circles, lines)
    return wiring, tuple(_program(plan, role, words) for role in plan.ranks)


def _together(plan: Plan) -> list[Step]:
    """The collectives of a plan, in the order of the data."""
    return [step for step in plan.steps if step.circle]


def _delegating(plan: Plan) -> list[Step]:
    """The nodes that delegate, in the order of the data."""
    return [step for step in plan.steps if isinstance(step.node, Delegate)]


def _delegation(plan: Plan, index: int, step: Step) -> Delegation:
    receivers = tuple(plan.rank_of_receiver(r) for r in dict.fromkeys(step.numbering.receivers))
    workers = tuple(role.rank for role in plan.ranks if role.worker == step.name)
    return Delegation(index, receivers + workers, len(receivers), plan.timeout_s)


def _lay_out_words(plan: Plan) -> _Words:
    sizes = [1] * len(plan.ranks)  # never an empty window
    generations, times, failures, ends, credits = {}, {}, {}, {}, {}

    def take(rank: int, count: int) -> int:
        first = sizes[rank]
        sizes[rank] += count
        return first

    for gdt in plan.gdts:
        depth = min(gdt.rule.depth, _most_visits(gdt))
        for index, buffer in enumerate(gdt.buffers):
            rank = plan.rank_of_receiver(buffer.receiver)
            generations[gdt.index, index] = take(rank, depth * len(gdt.parts))
            times[gdt.index, index] = take(rank, depth * gdt.rule.blocks)
            if plan.info.can_fail:
                failures[gdt.index, index] = take(rank, depth * gdt.rule.blocks * len(gdt.parts))
        for receiver in gdt.receivers:
            ends[gdt.index, receiver] = take(plan.rank_of_receiver(receiver), END_WORDS * len(gdt.parts))
        for role in plan.ranks:
            if role.role == "detector":
                credits[gdt.index, role.rank] = take(role.rank, len(gdt.buffers))
    return _Words(generations, times, failures, ends, credits, tuple(sizes))


def _most_visits(gdt: Gdt) -> int:
    """Positions that can ever be used, so that a huge buffer for few frames costs few words."""
    return gdt.rule.depth if gdt.selected is None else max(1, gdt.rule.visits(0, gdt.selected))


def _program(plan: Plan, role: RankRole, words: _Words) -> Program:
    if role.role == "control":
        return ControlProgram(role.rank, plan)
    if role.receiver is not None:
        return _receiver(plan, role.rank, role.receiver, words)
    if role.worker is not None:
        index, step = next(it for it in enumerate(_delegating(plan)) if it[1].name == role.worker)
        return WorkerProgram(role.rank, step, index, _delegation(plan, index, step).receivers)
    return _detector(plan, role, words)


def _detector(plan: Plan, role: RankRole, words: _Words) -> DetectorProgram:
    flows = []
    for gdt in plan.gdts:
        routes = []
        for contributor, part in enumerate(gdt.parts):
            if part.module in role.modules:
                module = plan.info.modules[part.module]
                cut = Rect(part.x - module.x, part.y - module.y, part.width, part.height)
                routes.append(Route(part.module, cut, part.offset_in_slot, contributor))
        if not routes:
            continue
        targets = tuple(
            Target(
                plan.rank_of_receiver(buffer.receiver),
                buffer.region,
                buffer.offset,
                words.generations[gdt.index, index],
                words.times[gdt.index, index],
                words.failures.get((gdt.index, index)),
            )
            for index, buffer in enumerate(gdt.buffers)
        )
        ends = tuple((plan.rank_of_receiver(r), words.ends[gdt.index, r]) for r in gdt.receivers)
        flows.append(SourceFlow(gdt, tuple(routes), len(gdt.parts), targets, words.credits[gdt.index, role.rank], ends))
    asked = {(flow.gdt.dataset, route.module) for flow in flows for route in flow.routes}
    return DetectorProgram(
        role.rank,
        role.modules,
        plan.detector,
        plan.info,
        plan.acquisition,
        XferParams(
            tuple(sorted(asked)),
            rashpa_calls(plan) if plan.detector.writes_itself else (),
            max((flow.gdt.rule.step * (flow.gdt.rule.blocks - 1) + 1 for flow in flows), default=1),
        ),
        tuple(flows),
        plan.timeout_s,
    )


def _receiver(plan: Plan, rank: int, receiver: int, words: _Words) -> ReceiverProgram:
    flows = []
    for gdt in plan.gdts:
        if receiver not in gdt.receivers:
            continue
        own = tuple(
            OwnBuffer(
                index,
                buffer.region,
                buffer.offset,
                words.generations[gdt.index, index],
                words.times[gdt.index, index],
                words.failures.get((gdt.index, index)),
            )
            for index, buffer in enumerate(gdt.buffers)
            if buffer.receiver == receiver
        )
        modules = {part.module for part in gdt.parts}
        credits = tuple(
            (role.rank, words.credits[gdt.index, role.rank])
            for role in plan.ranks
            if gdt.waits and modules.intersection(role.modules)
        )
        flows.append(ReceiverFlow(gdt, own, len(gdt.parts), credits, words.ends[gdt.index, receiver]))
    steps = {step.name: step.at(receiver) for step in plan.steps if receiver in step.numbering.receivers}
    kernels = tuple(kernel for kernel in plan.kernels if kernel.nodes[0] in steps)
    return ReceiverProgram(
        rank,
        receiver,
        tuple(flows),
        tuple(steps.values()),
        kernels,
        {step.name: index for index, step in enumerate(_together(plan)) if step.name in steps},
        {step.name: tuple(passage.before.part for passage in step.passages) for step in _together(plan)},
        {name: channel.part(receiver) for name, channel in plan.channels.items() if name in steps},
        {name: table for name, table in plan.tables.items() if name in steps},
        threads=plan.threads[receiver],
        placement=plan.placements[receiver],
        delegations={
            step.name: _delegation(plan, i, step) for i, step in enumerate(_delegating(plan)) if step.name in steps
        },
        processing=processing_of(plan, receiver, [flow.gdt for flow in flows], kernels, steps),
    )
