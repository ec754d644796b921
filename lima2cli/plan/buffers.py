"""Local buffers placed in memory: every flow's slots, and the blocks of a group where the pipeline leaves it open."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm

from lima2cli.diagnostics import POISON, Findings, KeyPath, attempt
from lima2cli.geometry import Rect, Rule, up
from lima2cli.language.pipeline import DataFlow, GraphNode, Pipeline
from lima2cli.language.records import FileMemspace, GpuMemspace, Memspace
from lima2cli.nodes.base import Transform
from lima2cli.plan.ir import Gdt, LocalBuffer, Part, Region
from lima2cli.plan.layout import FlowLayout, check_channels, check_flow, lay_out_flow, most_slots
from lima2cli.units import exact_size, grouped, size_text

EVENTS_HZ = 2000.0
"""Group events of a receiver stay under this."""

GROUPS = 4
"""Groups that a local buffer holds at least, so that some arrive while others are processed."""

LONGER = 8
"""So many times the size that the rate asks for is tried, until one fits."""

ANY = Rule(0, 1, None, 1, 1, 1, 1)
"""Of frames without an end at one receiver."""


@dataclass(frozen=True)
class _Open:
    """A flow whose groups are to be chosen, laid out in groups of one block: one layout for each of its places.

    window   groups are a multiple of so many blocks
    """

    flow: DataFlow
    layouts: Sequence[FlowLayout]
    window: int

    @property
    def step(self) -> int:
        """Acquired frames from block to block."""
        return self.layouts[0].rule.step

    @property
    def most(self) -> int:
        """Blocks of the largest group; at least a window, which may be too large for the buffer."""
        groups = max(GROUPS, self.flow.config.events.group)
        return max(1, min(most_slots(it) for it in self.layouts) // groups // self.window) * self.window

    def blocks(self, span: int) -> int:
        """Of groups that span so many acquired frames, or a few more."""
        return min(self.most, -(-span // (self.step * self.window)) * self.window)

    def fits(self, blocks: int, burst: int | None) -> bool:
        """Whether groups of so many blocks waste no frames; ``burst``: acquired frames of a trigger."""
        rule, selected, events = self.layouts[0].rule, self.layouts[0].selected, self.flow.config.events
        span = blocks * self.step
        if burst is not None and (burst % span or rule.start % span):
            return False
        if rule.bounded and any(max(0, it.rule.slots - it.rule.start_slot) % blocks for it in self.layouts):
            return False
        if events.end or selected is None or rule.bounded:
            return True
        groups, rest = divmod(selected, blocks)
        return not rest and groups % (rule.buffers * max(1, events.group)) == 0


def choose_groups(pipeline: Pipeline, single: Mapping[str, Sequence[FlowLayout]]) -> dict[str, int]:
    """Blocks per group of the flows that leave it open; ``single`` are all flows in groups of one block."""
    windows, joins = _read_together(pipeline)
    left = {name: _Open(layouts[0].flow, layouts, _window(layouts[0].flow, windows.get(name, 1)))
            for name, layouts in single.items() if layouts[0].flow.config.rules.blocks_per_group == "auto"}  # fmt: skip
    if not left:
        return {}
    said = pipeline.acquisition
    burst = None if said.trigger == "internal" else said.frames_per_trigger
    span = _shortest_span(pipeline, single, left) if said.period_s is not None else 1
    chosen: dict[str, int] = {}
    for names in _tied(single, joins):
        alike = [left[name] for name in names if name in left]
        given = [single[name][0] for name in names if name not in left]
        sizes = _alike(alike, given, span, burst) if len(names) > 1 else [_size(one, span, burst) for one in alike]
        chosen |= {one.flow.name: size for one, size in zip(alike, sizes, strict=True)}
    return chosen


def _size(one: _Open, span: int, burst: int | None) -> int:
    """Of a flow by itself: the first size from that of the span on that fits, else the smallest."""
    first = one.blocks(span)
    sizes = range(first, min(one.most, LONGER * first) + 1, one.window)
    return next((size for size in sizes if one.fits(size, burst)), one.window)


def _alike(flows: Sequence[_Open], given: Sequence[FlowLayout], span: int, burst: int | None) -> list[int]:
    """Of flows that are joined at several receivers: groups of one span, which begin with the same frames.

    That of flows whose groups are ``given``, where there are such; the smallest groups where there is none.
    """
    smallest = [one.window for one in flows]
    starts = {it.rule.start for it in (*given, *(one.layouts[0] for one in flows))}
    spans = {it.rule.step * int(it.flow.config.rules.blocks_per_group) for it in given}
    unit = lcm(*(one.step * one.window for one in flows))
    if len(starts) > 1 or len(spans) > 1:
        return smallest
    first = -(-span // unit) * unit
    tried = spans or range(first, LONGER * first + 1, unit)
    for common in tried:
        if common % unit:
            continue
        sizes = [common // one.step for one in flows]
        if spans or all(n <= one.most and one.fits(n, burst) for one, n in zip(flows, sizes, strict=True)):
            return sizes
    return smallest


def _shortest_span(pipeline: Pipeline, single: Mapping[str, Sequence[FlowLayout]], left: Mapping[str, _Open]) -> int:
    """Acquired frames from group to group with which no receiver gets more events than it should."""
    rate = 1 / (pipeline.acquisition.period_s or 1.0)

    def events(receiver: int, span: int) -> float:
        return sum(rate * _share(one.flow, receiver) / (one.step * one.blocks(span)) for one in left.values())

    def given(receiver: int) -> float:
        return sum(
            rate * _share(it[0].flow, receiver) / (it[0].rule.step * int(it[0].flow.config.rules.blocks_per_group))
            for name, it in single.items()
            if name not in left
        )

    longest = 1
    for receiver in range(len(pipeline.receivers)):
        limit = max(EVENTS_HZ - given(receiver), EVENTS_HZ / 2) * (1 - 1e-9)
        shares = sum(_share(one.flow, receiver) for one in left.values())
        low, high = 1, int(rate * shares / limit) + 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if events(receiver, middle) < limit else (middle + 1, high)
        longest = max(longest, low)
    return longest


def _share(flow: DataFlow, receiver: int) -> float:
    """Group events at a receiver for each group of a flow."""
    own = sum(place.receiver == receiver for place in flow.places)
    period = flow.config.events.group
    if not period:
        return 0.0
    return own / period / (1 if flow.shares is not None else len(flow.places))


def _window(flow: DataFlow, frames: int) -> int:
    """One receiver puts windows together of whatever groups there are."""
    return frames if len({place.receiver for place in flow.places}) > 1 and flow.shares is None else 1


def _read_together(pipeline: Pipeline) -> tuple[dict[str, int], list[set[str]]]:
    """Frames of each flow that become one, and flows of which a node reads frames or rows together."""
    windows: dict[str, int] = {}
    feeding: dict[str, set[str]] = {name: {name} for name in pipeline.flows}
    length: dict[str, int] = {}
    joins = []
    for name, it in pipeline.nodes.items() if pipeline.nodes is not POISON else ():
        sources = attempt(lambda it=it: [*it.reads.values(), *it.tables])  # type: ignore[misc]
        if sources is POISON:
            continue
        feeding[name] = set[str]().union(*(feeding.get(source, ()) for source in sources))
        length[name] = lcm(*(length.get(source, 1) for source in sources)) * _frames_of_one(it)
        joins.append(feeding[name])
        for flow in feeding[name]:
            windows[flow] = lcm(windows.get(flow, 1), length[name])
    return windows, joins


def _frames_of_one(it: GraphNode) -> int:
    """Frames that enter a node for one that leaves; 1 where it takes all, of which no group can hold the windows."""
    node = it.node
    if node is POISON or not isinstance(node, Transform):
        return 1
    frames = attempt(lambda: node.numbering(ANY, (0,))[2])
    return 1 if frames is POISON else max(1, frames)


def _tied(single: Mapping[str, Sequence[FlowLayout]], joins: Sequence[set[str]]) -> Iterator[list[str]]:
    """All flows, those together that are joined and reach several receivers."""
    sets: dict[str, set[str]] = {name: {name} for name in single}
    for join in joins:
        names = [name for name in join if name in single and _receivers(single[name]) > 1]
        whole = set[str]().union(*(sets[name] for name in names))
        for name in whole:
            sets[name] = whole
    done: set[str] = set()
    for name in single:
        if name not in done:
            done |= sets[name]
            yield [other for other in single if other in sets[name]]


def _receivers(layouts: Sequence[FlowLayout]) -> int:
    return len({place.receiver for it in layouts for place in it.places})


def place_buffers(
    pipeline: Pipeline, layouts: list[FlowLayout], findings: Findings
) -> tuple[tuple[Region, ...], dict[str, tuple[LocalBuffer, ...]]]:
    """Memspaces as regions, and each local buffer's place: in file order, aligned to max(block alignment, 64)."""
    keys = [(r, name) for r, table in enumerate(pipeline.receivers.values()) for name in table.memspaces]
    used = dict.fromkeys(keys, 0)
    users: dict[tuple[int, str], list[str]] = {key: [] for key in keys}
    placed: dict[str, tuple[LocalBuffer, ...]] = {}
    for it in layouts:
        buffers = []
        for place in it.places:
            key = (place.receiver, place.memspace)
            offset = up(used[key], max(it.layout.alignment, 64))
            used[key] = offset + it.size
            users[key].append(f"{it.name} {size_text(it.size)}")
            buffers.append(LocalBuffer(place.receiver, keys.index(key), offset, it.size))
        placed[it.name] = tuple(buffers)
    names = list(pipeline.receivers)
    regions = []
    for receiver, name in keys:
        memspace = pipeline.receivers[names[receiver]].memspaces[name]
        at: KeyPath = ("receivers", names[receiver], "memspaces", name)
        regions.append(
            attempt(lambda m=memspace, r=receiver, n=name, a=at: _region(m, r, n, used[r, n], users[r, n], a, findings))  # type: ignore[misc]
        )
    return tuple(regions), placed


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
            help=f"size: {exact_size(up(used, 2**20))}",
        )
    kind, path = "host", None
    if isinstance(memspace, FileMemspace):
        kind, path = "file", memspace.path
    elif isinstance(memspace, GpuMemspace):
        if memspace.fallback is None:
            findings.error(
                "not-available",
                f"memspace {name} of {at[1]} is on a GPU: this version moves data to host memory only",
                (*at, "gpu"),
                help="fallback: host",
            )
        else:
            findings.warning(
                "gpu-fallback",
                f"memspace {name} of {at[1]} is in host memory: this version moves no data to GPUs",
                (*at, "gpu", "fallback"),
            )
    return Region(receiver, name, kind, memspace.kind, size, used, path)  # type: ignore[arg-type]


def gap_pixels(source: Rect, parts: tuple[Part, ...]) -> int:
    """Pixels of a source that no module covers (modules don't overlap)."""
    return source.area - sum(part.width * part.height for part in parts)


def gdt_of(pipeline: Pipeline, index: int, it: FlowLayout, buffers: tuple[LocalBuffer, ...]) -> Gdt:
    """The compiled flow."""
    flow, table, info = it.flow, it.flow.config, pipeline.detector
    dataset = info.datasets[flow.dataset]
    alignment = table.alignment
    return Gdt(
        name=it.name,
        flow=flow.name,
        place=it.place,
        index=index,
        dataset=flow.dataset,
        dataset_name=dataset.name,
        dtype=dataset.dtype,
        pixel_bytes=dataset.pixel_bytes,
        source=it.source,
        full=table.source == "full" and it.place is None,
        layout=it.layout,
        rule=it.rule,
        selected=it.selected,
        group_event=table.events.group,
        end_event=table.events.end,
        alignment=(alignment.block, alignment.row, alignment.header, alignment.footer),
        buffer_size=it.size,
        buffers=buffers,
        parts=it.parts,
        gap_pixels=gap_pixels(it.source, it.parts),
        gap_value=info.gap_value,
        overrun=flow.overrun,  # type: ignore[arg-type]
    )


def lay_out(pipeline: Pipeline, findings: Findings) -> tuple[tuple[Region, ...], tuple[Gdt, ...]]:
    """All flows of a pipeline, checked. One that is dispatched by modules is a GDT for each place."""
    layouts: list[FlowLayout] = []
    single = {name: attempt(lambda flow=flow: _layouts(pipeline, flow)) for name, flow in pipeline.flows.items()}  # type: ignore[misc]
    single = {name: own for name, own in single.items() if own is not POISON}
    groups = attempt(lambda: choose_groups(pipeline, single))
    for name, own in single.items():
        if groups is not POISON and groups.get(name, 1) > 1:
            own = _layouts(pipeline, pipeline.flows[name], groups[name])
        attempt(lambda own=own: check_flow(pipeline, own, findings))  # type: ignore[misc]
        layouts += own
    attempt(lambda: check_channels(pipeline, layouts, findings))
    regions, placed = place_buffers(pipeline, layouts, findings)
    gdts = tuple(gdt_of(pipeline, index, it, placed[it.name]) for index, it in enumerate(layouts))
    return regions, gdts


def _layouts(pipeline: Pipeline, flow: DataFlow, blocks: int = 1) -> list[FlowLayout]:
    if flow.shares is None:
        return [lay_out_flow(pipeline, flow, None, blocks)]
    return [lay_out_flow(pipeline, flow, place, blocks) for place in range(len(flow.shares))]
