"""Lay out one data flow: slots, groups, modules' parts; and check it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lima2cli.diagnostics import Findings, KeyPath, Related, attempt
from lima2cli.geometry import BlockLayout, Rect, Rule, lay_out_block, up
from lima2cli.language.flows import share_box
from lima2cli.language.pipeline import BufferPlace, DataFlow, Pipeline
from lima2cli.plan.ir import Part
from lima2cli.units import grouped, size_text

DEFAULT_FRAMES = 256
"""Fewest frames of a local buffer for which the pipeline gives no size."""

HOLD_S, HOLD_BYTES = 0.5, 24 << 20
"""Fewest seconds of frames in such a buffer, too, as long as they take no more memory than this."""


@dataclass(frozen=True)
class FlowLayout:
    """A flow, or the part of one ``place``, before its local buffers have a place in their memspaces.

    source  the part of each frame that it takes: that of the flow, or the box around the modules of the place
    """

    flow: DataFlow
    place: int | None
    source: Rect
    layout: BlockLayout
    rule: Rule
    selected: int | None
    size: int
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """Return the name, unique among all."""
        return self.flow.name if self.place is None else f"{self.flow.name}[{self.place}]"

    @property
    def places(self) -> tuple[BufferPlace, ...]:
        """Return the places of its local buffers, in rotation order."""
        return self.flow.places if self.place is None else (self.flow.places[self.place],)


def frames_of(pipeline: Pipeline) -> int | None:
    """Return the frames of the acquisition: those asked for, at most those that exist; None = until stopped."""
    asked = pipeline.acquisition.frames or None
    recorded = [dataset.frames for dataset in pipeline.detector.datasets if dataset.frames is not None]
    limits = [*recorded, *([asked] if asked is not None else [])]
    return min(limits) if limits else None


def parts_of(source: Rect, modules: Mapping[int, Rect], layout: BlockLayout, pixel_bytes: int) -> tuple[Part, ...]:
    """Return the modules' parts of a source.

    Row y of I goes to ``payload + (y - source.y)*pitch + (I.x - source.x)*bpp``.
    """
    parts = []
    for number, module in modules.items():
        common = module & source
        if common.area:
            offset = layout.payload_offset + (common.y - source.y) * layout.pitch + (common.x - source.x) * pixel_bytes
            parts.append(Part(number, common.x, common.y, common.width, common.height, offset))
    return tuple(parts)


def most_slots(laid_out: FlowLayout) -> int:
    """Return the slots that a local buffer has for groups, or may get where the pipeline does not give its size."""
    rule, config = laid_out.rule, laid_out.flow.config.buffers
    slots = laid_out.size // rule.stride
    if config.size is None and config.frames is None and not rule.bounded:
        slots = max(slots, rule.start_slot + HOLD_BYTES // rule.stride)
    return max(0, slots - rule.start_slot)


def lay_out_flow(pipeline: Pipeline, flow: DataFlow, place: int | None = None, blocks: int = 1) -> FlowLayout:
    """Lay out slots and groups of one flow, or of one place: integer arithmetic, whatever the number of frames.

    ``blocks`` per group, where the flow does not say how many.
    """
    info, table = pipeline.detector, flow.config
    share = range(len(info.modules)) if place is None or flow.shares is None else flow.shares[place]
    source = flow.source if place is None else share_box(share, info, flow.source)
    pixel_bytes = info.datasets[flow.dataset].pixel_bytes
    alignment, rules, slices = table.alignment, table.rules, table.slices
    layout = lay_out_block(
        source.width,
        source.height,
        pixel_bytes,
        block_bits=alignment.block,
        row_bits=alignment.row,
        header=alignment.header,
        footer=alignment.footer,
    )
    rule = Rule(
        start=slices.start,
        step=slices.step,
        count=slices.count,
        blocks=blocks if rules.blocks_per_group == "auto" else int(rules.blocks_per_group),
        buffers=len(flow.places) if place is None else 1,
        slots=0,
        stride=layout.stride,
        start_slot=rules.start_slot,
        overwrite=rules.placement == "overwrite",
        circular=rules.cycle == "circular",
    )
    selected = rule.selected(frames_of(pipeline))
    size = table.buffers.size
    if size is None:
        frames = table.buffers.frames or default_frames(rule, selected, pipeline.acquisition.period_s)
        size = (rules.start_slot + frames) * layout.stride
    rule = replace(rule, slots=size // layout.stride)
    parts = parts_of(source, {module: info.modules[module] for module in sorted(share)}, layout, pixel_bytes)
    return FlowLayout(flow, place, source, layout, rule, selected, size, parts)


def default_frames(rule: Rule, selected: int | None, period_s: float | None) -> int:
    """Return the frames of a local buffer whose size is not given: for the pauses of a receiver, and whole groups."""
    if rule.bounded or period_s is None:
        return max(DEFAULT_FRAMES, rule.blocks)
    held = int(min(HOLD_S / (period_s * rule.step * rule.buffers), HOLD_BYTES / rule.stride))
    if selected is not None:
        held = min(held, -(-selected // rule.buffers))
    return up(max(DEFAULT_FRAMES, held, rule.blocks), rule.blocks)


def check_flow(pipeline: Pipeline, layouts: Sequence[FlowLayout], findings: Findings) -> None:
    """Check one flow on its own: as laid out, or as laid out for each place."""
    at: KeyPath = ("flows", layouts[0].flow.name)
    largest = max(layouts, key=lambda each: each.layout.stride)
    for check in (_check_slices, _check_buffer, _check_parts, _check_events):
        attempt(lambda check=check: check(pipeline, largest, at, findings))  # type: ignore[misc]


def _check_slices(pipeline: Pipeline, laid_out: FlowLayout, at: KeyPath, findings: Findings) -> None:
    frames, rule, selected = frames_of(pipeline), laid_out.rule, laid_out.selected
    if frames is None or selected is None:
        return
    if selected == 0:
        findings.error(
            "slices-empty",
            f"{laid_out.flow.name} selects no frame: it starts at frame {rule.start} of {frames}",
            (*at, "slices", "start"),
            help=f"start below {frames}",
        )
    elif rule.count is not None and selected < rule.count:
        findings.warning(
            "slices-beyond",
            f"{laid_out.flow.name} selects {rule.count} frames, but only {selected} of them exist",
            (*at, "slices", "count"),
            notes=[f"the last selected frame would be {rule.frame(rule.count - 1)}; there are {frames}"],
        )


def _check_buffer(pipeline: Pipeline, placed: FlowLayout, at: KeyPath, findings: Findings) -> None:
    rule = placed.rule
    if rule.groups_per_buffer >= 1:
        return
    source, dataset = placed.source, pipeline.detector.datasets[placed.flow.dataset]
    needed = (rule.start_slot + rule.blocks) * rule.stride
    what = "a block" if rule.blocks == 1 and not rule.start_slot else f"a group of {rule.blocks} blocks"
    if rule.start_slot:
        what += f" after {rule.start_slot} free slots"
    alignment = placed.flow.config.alignment
    aligned = f", aligned on {alignment.block} bits" if alignment.block > 1 else ""
    pixels = f"{source.width} x {source.height} px x {dataset.pixel_bytes} bytes ({dataset.dtype}){aligned}"
    key = "size" if placed.flow.config.buffers.size is not None else "frames"
    helps = f"at least {grouped(needed)} bytes"
    larger = 2**24 // rule.stride
    if larger > rule.start_slot + rule.blocks:
        helps += f"; 16 MiB holds {larger} {'frame' if larger == 1 else 'frames'}"
    related = (
        [Related(("detector", pipeline.config.kind, "image"), "full image")]
        if placed.flow.config.source == "full"
        else []
    )
    findings.error(
        "buffer-too-small",
        f"{what} of {placed.flow.name} needs {grouped(needed)} bytes, its local buffer has {size_text(placed.size)}",
        (*at, "buffers", key),
        notes=[pixels],
        help=helps,
        related=related,
    )


def _check_parts(pipeline: Pipeline, laid_out: FlowLayout, at: KeyPath, findings: Findings) -> None:
    if not laid_out.parts:
        findings.error(
            "source-in-gap",
            f"no module covers any pixel of the source of {laid_out.name} ({laid_out.source})",
            (*at, "source"),
        )


def _check_events(pipeline: Pipeline, laid_out: FlowLayout, at: KeyPath, findings: Findings) -> None:
    """Report data without an event, or that would be overwritten before any event."""
    rule, events, selected, name = laid_out.rule, laid_out.flow.config.events, laid_out.selected, laid_out.flow.name
    if rule.groups_per_buffer < 1:
        return
    where = (*at, "events")
    if not events.group and not events.end:
        findings.error(
            "never-told", f"{name} has no events: receivers would never be told of its data", where,
            help="events: {group: 1}, or {end: true}",
        )  # fmt: skip
        return
    if selected is not None and not events.end and not rule.bounded:
        _check_rest(laid_out, where, findings)
    counts = [None if selected is None else rule.visits(buffer, selected) for buffer in range(rule.buffers)]
    period, depth = events.group, rule.depth
    deep = [count for count in counts if count is None or count > depth]
    if rule.bounded or not deep or 0 < period <= depth:
        return
    events_text = f"only every {period} groups" if period else "only at the end"
    message = f"{name} is told of {events_text}, but a local buffer keeps {depth} group{'s' * (depth != 1)}"
    if laid_out.flow.overrun == "continue":
        lost = "all but the last" if None in counts else str(sum((c or 0) - depth for c in deep) * rule.blocks)
        findings.warning("told-too-late", f"{message}: {lost} frames will be lost", (*where, "group"))
    else:
        notes = [f"a local buffer gets {'endless' if None in counts else max(c or 0 for c in counts)} groups"]
        findings.error(
            "told-too-late", message, (*where, "group"), notes=notes,
            help=f"events: {{group: n}} with n from 1 to {depth}, or a larger buffer",
        )  # fmt: skip


def _check_rest(laid_out: FlowLayout, where: KeyPath, findings: Findings) -> None:
    rule, selected, period = laid_out.rule, laid_out.selected or 0, laid_out.flow.config.events.group
    rest = selected % rule.blocks
    if rest:
        findings.error(
            "rest-never-told",
            f"the last group of {laid_out.flow.name} has {rest} of {rule.blocks} blocks: no group event tells of it",
            where,
            notes=[f"{selected} frames in groups of {rule.blocks}"],
            help="events: {end: true} tells of it",
        )
        return
    for buffer in range(rule.buffers):
        visits = rule.visits(buffer, selected)
        if visits % period:
            findings.error(
                "rest-never-told",
                f"local buffer {buffer} of {laid_out.flow.name} gets {visits} groups, with an event every {period}: "
                f"the last {visits % period} would never be told of",
                (*where, "group"),
                help="events: {end: true} tells of them",
            )
            return


def check_channels(pipeline: Pipeline, layouts: list[FlowLayout], findings: Findings) -> None:
    """Report more flows on a module than it has data channels."""
    limit = pipeline.detector.channels
    if limit is None:
        return
    for module in range(len(pipeline.detector.modules)):
        users = [layout.flow.name for layout in layouts if any(part.module == module for part in layout.parts)]
        if len(users) > limit:
            findings.error(
                "too-many-channels",
                f"module {module} serves {len(users)} flows, it has {limit} data channel{'s' * (limit != 1)}",
                ("flows", users[limit]),
                notes=["flows that it contributes to: " + ", ".join(users)],
                on_key=True,
            )
            return
