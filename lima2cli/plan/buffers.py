"""Place local buffers in memory: every flow's slots, and the blocks of a group where the pipeline leaves it open."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import lcm

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import POISON, Findings, KeyPath, attempt
from lima2cli.geometry import Rule, round_up
from lima2cli.language.pipeline import Pipeline
from lima2cli.language.records import FileMemspace, Flow, GpuMemspace, GraphNode, Memspace
from lima2cli.nodes.base import Transform
from lima2cli.plan.ir import EVENTS_HZ, GROUPS, Gdt, LocalBuffer, Region
from lima2cli.plan.layout import check_channels, check_flow, lay_out_flow, most_slots
from lima2cli.units import exact_size, grouped, size_text

LONGER = 8
"""Largest multiple of the size that the rate asks for which is tried, until one fits."""

ANY = Rule(0, 1, None, 1, 1, 1, 1)
"""Rule of frames without an end at one receiver."""


@dataclass(frozen=True)
class _Grouped:
    """A flow laid out in groups of one block, for each of its places; the blocks of its groups may be to choose.

    window   number of blocks that groups are a multiple of
    """

    flow: Flow
    gdts: Sequence[Gdt]
    window: int

    @property
    def given(self) -> int | None:
        """Return the blocks per group where the pipeline says how many; None where they are to choose."""
        blocks = self.flow.rules.blocks_per_group
        return None if blocks == "auto" else int(blocks)

    @property
    def rule(self) -> Rule:
        """Return the rule of its first place."""
        return self.gdts[0].rule

    @property
    def receivers(self) -> int:
        """Return the number of receivers that it reaches."""
        return len({place.receiver for place in self.flow.places})

    @property
    def most(self) -> int:
        """Return the blocks of the largest group; at least a window, which may be too large for the buffer."""
        groups = max(GROUPS, self.flow.events.group)
        return max(1, min(most_slots(self.flow, gdt) for gdt in self.gdts) // groups // self.window) * self.window

    def blocks(self, span: int) -> int:
        """Return the blocks of groups that span so many acquired frames, or a few more."""
        return self.given or min(self.most, -(-span // (self.rule.step * self.window)) * self.window)

    def share(self, receiver: int) -> float:
        """Return the group events at a receiver for each group of the flow."""
        own = sum(place.receiver == receiver for place in self.flow.places)
        period = self.flow.events.group
        if not period:
            return 0.0
        return own / period / (1 if self.flow.shares is not None else len(self.flow.places))

    def fits(self, blocks: int, burst: int | None) -> bool:
        """Return True if groups of so many blocks waste no frames; ``burst``: acquired frames of a trigger."""
        rule, selected, events = self.rule, self.gdts[0].selected, self.flow.events
        span = blocks * rule.step
        if burst is not None and (burst % span or rule.start % span):
            return False
        if rule.bounded and any(max(0, gdt.rule.slots - gdt.rule.start_slot) % blocks for gdt in self.gdts):
            return False
        if events.end or selected is None or rule.bounded:
            return True
        groups, rest = divmod(selected, blocks)
        return not rest and groups % (rule.buffers * max(1, events.group)) == 0


def choose_groups(pipeline: Pipeline, single: Mapping[str, Sequence[Gdt]]) -> dict[str, int]:
    """Return blocks per group of the flows that leave it open; ``single`` are all flows in groups of one block."""
    windows, joins = _read_together(pipeline)
    flows = {name: _grouped(pipeline.flows[name], gdts, windows.get(name, 1)) for name, gdts in single.items()}
    if all(flow.given is not None for flow in flows.values()):
        return {}
    acquisition = pipeline.acquisition
    burst = None if acquisition.trigger == "internal" else acquisition.frames_per_trigger
    span = _shortest_span(pipeline, list(flows.values())) if acquisition.period_s is not None else 1
    chosen: dict[str, int] = {}
    for names in _tied(flows, joins):
        alike = [flows[name] for name in names if flows[name].given is None]
        given = [flows[name] for name in names if flows[name].given is not None]
        sizes = _alike(alike, given, span, burst) if len(names) > 1 else [_size(one, span, burst) for one in alike]
        chosen |= {one.flow.name: size for one, size in zip(alike, sizes, strict=True)}
    return chosen


def _grouped(flow: Flow, gdts: Sequence[Gdt], frames: int) -> _Grouped:
    """Return a flow with its window, of ``frames``; 1 at one receiver, which puts windows together from any groups."""
    single = _Grouped(flow, gdts, 1)
    return replace(single, window=frames) if single.receivers > 1 and flow.shares is None else single


def _size(one: _Grouped, span: int, burst: int | None) -> int:
    """Choose the group size of a flow by itself: the first that fits from the span's size on, else the smallest."""
    first = one.blocks(span)
    sizes = range(first, min(one.most, LONGER * first) + 1, one.window)
    return next((size for size in sizes if one.fits(size, burst)), one.window)


def _alike(flows: Sequence[_Grouped], given: Sequence[_Grouped], span: int, burst: int | None) -> list[int]:
    """Choose group sizes of flows that are joined at several receivers: of one span, beginning with the same frames.

    The span is that of flows whose groups are ``given``, if any; the groups are the smallest where no span fits.
    """
    smallest = [one.window for one in flows]
    starts = {one.rule.start for one in (*given, *flows)}
    spans = {one.rule.step * (one.given or 1) for one in given}
    unit = lcm(*(one.rule.step * one.window for one in flows))
    if len(starts) > 1 or len(spans) > 1:
        return smallest
    first = -(-span // unit) * unit
    tried = spans or range(first, LONGER * first + 1, unit)
    for common in tried:
        if common % unit:
            continue
        sizes = [common // one.rule.step for one in flows]
        if spans or all(n <= one.most and one.fits(n, burst) for one, n in zip(flows, sizes, strict=True)):
            return sizes
    return smallest


def _shortest_span(pipeline: Pipeline, flows: Sequence[_Grouped]) -> int:
    """Return the acquired frames from group to group that keep the events of each receiver under the limit."""
    rate = 1 / (pipeline.acquisition.period_s or 1.0)
    left = [one for one in flows if one.given is None]
    fixed = [one for one in flows if one.given is not None]

    def events(of: Sequence[_Grouped], receiver: int, span: int) -> float:
        return sum(rate * one.share(receiver) / (one.rule.step * one.blocks(span)) for one in of)

    longest = 1
    for receiver in range(len(pipeline.receivers)):
        limit = max(EVENTS_HZ - events(fixed, receiver, 1), EVENTS_HZ / 2) * (1 - 1e-9)
        low, high = 1, int(rate * sum(one.share(receiver) for one in left) / limit) + 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if events(left, receiver, middle) < limit else (middle + 1, high)
        longest = max(longest, low)
    return longest


def _read_together(pipeline: Pipeline) -> tuple[dict[str, int], list[set[str]]]:
    """Return frames of each flow that become one, and flows of which a node reads frames or rows together."""
    windows: dict[str, int] = {}
    feeding: dict[str, set[str]] = {name: {name} for name in pipeline.flows}
    length: dict[str, int] = {}
    joins = []
    for name, graph_node in pipeline.nodes.items() if pipeline.nodes is not POISON else ():
        sources = attempt(lambda graph_node=graph_node: [*graph_node.reads.values(), *graph_node.tables])  # type: ignore[misc]
        if sources is POISON:
            continue
        feeding[name] = set[str]().union(*(feeding.get(source, ()) for source in sources))
        length[name] = lcm(*(length.get(source, 1) for source in sources)) * _frames_of_one(graph_node)
        joins.append(feeding[name])
        for flow in feeding[name]:
            windows[flow] = lcm(windows.get(flow, 1), length[name])
    return windows, joins


def _frames_of_one(graph_node: GraphNode) -> int:
    """Return the frames that enter a node for one that leaves; 1 where it takes all: no group can hold the windows."""
    node = graph_node.node
    if node is POISON or not isinstance(node, Transform):
        return 1
    frames = attempt(lambda: node.numbering(ANY, (0,))[2])
    return 1 if frames is POISON else max(1, frames)


def _tied(flows: Mapping[str, _Grouped], joins: Sequence[set[str]]) -> Iterator[list[str]]:
    """Yield all flows by name, those together that are joined and reach several receivers."""
    sets: dict[str, set[str]] = {name: {name} for name in flows}
    for join in joins:
        names = [name for name in join if name in flows and flows[name].receivers > 1]
        whole = set[str]().union(*(sets[name] for name in names))
        for name in whole:
            sets[name] = whole
    done: set[str] = set()
    for name in flows:
        if name not in done:
            done |= sets[name]
            yield [other for other in flows if other in sets[name]]


def place_buffers(
    pipeline: Pipeline, gdts: Sequence[Gdt], findings: Findings
) -> tuple[tuple[Region, ...], tuple[Gdt, ...]]:
    """Return memspaces as regions, and flows with places of local buffers: file order, aligned to max(block's, 64)."""
    keys = [(r, name) for r, table in enumerate(pipeline.receivers.values()) for name in table.memspaces]
    used = dict.fromkeys(keys, 0)
    users: dict[tuple[int, str], list[str]] = {key: [] for key in keys}
    placed = []
    for index, gdt in enumerate(gdts):
        buffers, places = [], pipeline.flows[gdt.flow].places
        for place in places if gdt.place is None else places[gdt.place : gdt.place + 1]:
            key = (place.receiver, place.memspace)
            offset = round_up(used[key], max(gdt.layout.alignment, 64))
            used[key] = offset + gdt.buffer_size
            users[key].append(f"{gdt.name} {size_text(gdt.buffer_size)}")
            buffers.append(LocalBuffer(place.receiver, keys.index(key), offset, gdt.buffer_size))
        placed.append(replace(gdt, index=index, buffers=tuple(buffers)))
    names = list(pipeline.receivers)
    regions = []
    for receiver, name in keys:
        memspace = pipeline.receivers[names[receiver]].memspaces[name]
        at: KeyPath = ("receivers", names[receiver], "memspaces", name)
        regions.append(
            attempt(lambda m=memspace, r=receiver, n=name, a=at: _region(m, r, n, used[r, n], users[r, n], a, findings))  # type: ignore[misc]
        )
    return tuple(regions), tuple(placed)


def _region(
    memspace: Memspace, receiver: int, name: str, used: int, users: list[str], at: KeyPath, findings: Findings
) -> Region:
    size = memspace.size if memspace.size is not None else used
    if used > size:
        findings.error(
            "memspace-full",
            f"memspace {name} of {at[1]} has {size_text(size)}, its local buffers need {size_text(used)}",
            (*at, memspace.kind, "size"),
            notes=[f"{' + '.join(users)} = {grouped(used)} bytes"],
            help=f"size: {exact_size(round_up(used, 2**20))}",
        )
    region = Region(receiver, name, "host", memspace.kind, size, used)
    if isinstance(memspace, FileMemspace):
        return replace(region, kind="file", path=memspace.path)
    if isinstance(memspace, GpuMemspace):
        return replace(region, device=memspace.device, fallback=memspace.fallback is not None)
    return region


def lay_out(pipeline: Pipeline, findings: Findings) -> tuple[tuple[Region, ...], tuple[Gdt, ...]]:
    """Lay out all flows of a pipeline, and check them. One that is dispatched by modules is a GDT for each place."""
    gdts: list[Gdt] = []
    single = {name: attempt(lambda flow=flow: _gdts(pipeline, flow)) for name, flow in pipeline.flows.items()}  # type: ignore[misc]
    single = {name: own for name, own in single.items() if own is not POISON}
    groups = attempt(lambda: choose_groups(pipeline, single))
    for name, own in single.items():
        if groups is not POISON and groups.get(name, 1) > 1:
            own = _gdts(pipeline, pipeline.flows[name], groups[name])
        attempt(lambda own=own: check_flow(pipeline, own, findings))  # type: ignore[misc]
        gdts += own
    attempt(lambda: check_channels(pipeline, gdts, findings))
    return place_buffers(pipeline, gdts, findings)


def _gdts(pipeline: Pipeline, flow: Flow, blocks: int = 1) -> list[Gdt]:
    if flow.shares is None:
        return [lay_out_flow(pipeline, flow, None, blocks)]
    return [lay_out_flow(pipeline, flow, place, blocks) for place in range(len(flow.shares))]
