"""Place local buffers in memory: every flow's slots, and the blocks of a group where the pipeline leaves it open."""

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
"""Limit of a receiver's group events per second."""

GROUPS = 4
"""Fewest groups of a local buffer, so that some arrive while others are processed."""

LONGER = 8
"""Largest multiple of the size that the rate asks for which is tried, until one fits."""

ANY = Rule(0, 1, None, 1, 1, 1, 1)
"""Rule of frames without an end at one receiver."""


@dataclass(frozen=True)
class _Open:
    """A flow whose groups are to be chosen, laid out in groups of one block: one layout for each of its places.

    window   number of blocks that groups are a multiple of
    """

    flow: DataFlow
    layouts: Sequence[FlowLayout]
    window: int

    @property
    def step(self) -> int:
        """Return the acquired frames from block to block."""
        return self.layouts[0].rule.step

    @property
    def most(self) -> int:
        """Return the blocks of the largest group; at least a window, which may be too large for the buffer."""
        groups = max(GROUPS, self.flow.config.events.group)
        return max(1, min(most_slots(layout) for layout in self.layouts) // groups // self.window) * self.window

    def blocks(self, span: int) -> int:
        """Return the blocks of groups that span so many acquired frames, or a few more."""
        return min(self.most, -(-span // (self.step * self.window)) * self.window)

    def fits(self, blocks: int, burst: int | None) -> bool:
        """Return True if groups of so many blocks waste no frames; ``burst``: acquired frames of a trigger."""
        rule, selected, events = self.layouts[0].rule, self.layouts[0].selected, self.flow.config.events
        span = blocks * self.step
        if burst is not None and (burst % span or rule.start % span):
            return False
        if rule.bounded and any(max(0, layout.rule.slots - layout.rule.start_slot) % blocks for layout in self.layouts):
            return False
        if events.end or selected is None or rule.bounded:
            return True
        groups, rest = divmod(selected, blocks)
        return not rest and groups % (rule.buffers * max(1, events.group)) == 0


def choose_groups(pipeline: Pipeline, single: Mapping[str, Sequence[FlowLayout]]) -> dict[str, int]:
    """Return blocks per group of the flows that leave it open; ``single`` are all flows in groups of one block."""
    windows, joins = _read_together(pipeline)
    left = {name: _Open(layouts[0].flow, layouts, _window(layouts[0].flow, windows.get(name, 1)))
            for name, layouts in single.items() if layouts[0].flow.config.rules.blocks_per_group == "auto"}  # fmt: skip
    if not left:
        return {}
    acquisition = pipeline.acquisition
    burst = None if acquisition.trigger == "internal" else acquisition.frames_per_trigger
    span = _shortest_span(pipeline, single, left) if acquisition.period_s is not None else 1
    chosen: dict[str, int] = {}
    for names in _tied(single, joins):
        alike = [left[name] for name in names if name in left]
        given = [single[name][0] for name in names if name not in left]
        sizes = _alike(alike, given, span, burst) if len(names) > 1 else [_size(one, span, burst) for one in alike]
        chosen |= {one.flow.name: size for one, size in zip(alike, sizes, strict=True)}
    return chosen


def _size(one: _Open, span: int, burst: int | None) -> int:
    """Choose the group size of a flow by itself: the first that fits from the span's size on, else the smallest."""
    first = one.blocks(span)
    sizes = range(first, min(one.most, LONGER * first) + 1, one.window)
    return next((size for size in sizes if one.fits(size, burst)), one.window)


def _alike(flows: Sequence[_Open], given: Sequence[FlowLayout], span: int, burst: int | None) -> list[int]:
    """Choose group sizes of flows that are joined at several receivers: of one span, beginning with the same frames.

    The span is that of flows whose groups are ``given``, if any; the groups are the smallest where no span fits.
    """
    smallest = [one.window for one in flows]
    starts = {layout.rule.start for layout in (*given, *(one.layouts[0] for one in flows))}
    spans = {layout.rule.step * int(layout.flow.config.rules.blocks_per_group) for layout in given}
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
    """Return the acquired frames from group to group that keep the events of each receiver under the limit."""
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
    """Return the group events at a receiver for each group of a flow."""
    own = sum(place.receiver == receiver for place in flow.places)
    period = flow.config.events.group
    if not period:
        return 0.0
    return own / period / (1 if flow.shares is not None else len(flow.places))


def _window(flow: DataFlow, frames: int) -> int:
    """Return the blocks of a window; 1 at one receiver, which puts windows together from any groups."""
    return frames if len({place.receiver for place in flow.places}) > 1 and flow.shares is None else 1


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


def _tied(single: Mapping[str, Sequence[FlowLayout]], joins: Sequence[set[str]]) -> Iterator[list[str]]:
    """Yield all flows by name, those together that are joined and reach several receivers."""
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
    return len({place.receiver for layout in layouts for place in layout.places})


def place_buffers(
    pipeline: Pipeline, layouts: list[FlowLayout], findings: Findings
) -> tuple[tuple[Region, ...], dict[str, tuple[LocalBuffer, ...]]]:
    """Return memspaces as regions, and each local buffer's place: file order, aligned to max(block alignment, 64)."""
    keys = [(r, name) for r, table in enumerate(pipeline.receivers.values()) for name in table.memspaces]
    used = dict.fromkeys(keys, 0)
    users: dict[tuple[int, str], list[str]] = {key: [] for key in keys}
    placed: dict[str, tuple[LocalBuffer, ...]] = {}
    for layout in layouts:
        buffers = []
        for place in layout.places:
            key = (place.receiver, place.memspace)
            offset = up(used[key], max(layout.layout.alignment, 64))
            used[key] = offset + layout.size
            users[key].append(f"{layout.name} {size_text(layout.size)}")
            buffers.append(LocalBuffer(place.receiver, keys.index(key), offset, layout.size))
        placed[layout.name] = tuple(buffers)
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
    """Return the pixels of a source that no module covers (modules don't overlap)."""
    return source.area - sum(part.width * part.height for part in parts)


def gdt_of(pipeline: Pipeline, index: int, laid_out: FlowLayout, buffers: tuple[LocalBuffer, ...]) -> Gdt:
    """Return the compiled flow."""
    flow, table, info = laid_out.flow, laid_out.flow.config, pipeline.detector
    dataset = info.datasets[flow.dataset]
    alignment = table.alignment
    return Gdt(
        name=laid_out.name,
        flow=flow.name,
        place=laid_out.place,
        index=index,
        dataset=flow.dataset,
        dataset_name=dataset.name,
        dtype=dataset.dtype,
        pixel_bytes=dataset.pixel_bytes,
        source=laid_out.source,
        full=table.source == "full" and laid_out.place is None,
        layout=laid_out.layout,
        rule=laid_out.rule,
        selected=laid_out.selected,
        group_event=table.events.group,
        end_event=table.events.end,
        alignment=(alignment.block, alignment.row, alignment.header, alignment.footer),
        buffer_size=laid_out.size,
        buffers=buffers,
        parts=laid_out.parts,
        gap_pixels=gap_pixels(laid_out.source, laid_out.parts),
        gap_value=info.gap_value,
        overrun=flow.overrun,  # type: ignore[arg-type]
    )


def lay_out(pipeline: Pipeline, findings: Findings) -> tuple[tuple[Region, ...], tuple[Gdt, ...]]:
    """Lay out all flows of a pipeline, and check them. One that is dispatched by modules is a GDT for each place."""
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
    gdts = tuple(gdt_of(pipeline, index, layout, placed[layout.name]) for index, layout in enumerate(layouts))
    return regions, gdts


def _layouts(pipeline: Pipeline, flow: DataFlow, blocks: int = 1) -> list[FlowLayout]:
    if flow.shares is None:
        return [lay_out_flow(pipeline, flow, None, blocks)]
    return [lay_out_flow(pipeline, flow, place, blocks) for place in range(len(flow.shares))]
