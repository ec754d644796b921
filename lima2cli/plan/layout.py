"""Lay out one data flow: slots, groups, modules' parts; and check it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lima2cli.diagnostics import Findings, KeyPath, Related, attempt
from lima2cli.geometry import BlockLayout, Rect, Rule, lay_out_block, round_up
from lima2cli.language.flows import share_box
from lima2cli.language.pipeline import Pipeline
from lima2cli.language.records import Alignment, Flow
from lima2cli.packed import ALIGNMENT, slot_bytes
from lima2cli.plan.ir import Gdt, Part
from lima2cli.units import grouped, size_text

DEFAULT_FRAMES = 256
"""Fewest frames of a local buffer for which the pipeline gives no size."""

HOLD_S, HOLD_BYTES = 0.5, 24 << 20
"""Fewest seconds of frames in such a buffer, too, as long as they take no more memory than this."""


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


def most_slots(flow: Flow, gdt: Gdt) -> int:
    """Return the slots that a local buffer has for groups, or may get where the pipeline does not give its size."""
    rule = gdt.rule
    slots = gdt.buffer_size // rule.stride
    if flow.buffers.size is None and flow.buffers.frames is None and not rule.bounded:
        slots = max(slots, rule.start_slot + HOLD_BYTES // rule.stride)
    return max(0, slots - rule.start_slot)


def lay_out_flow(pipeline: Pipeline, flow: Flow, place: int | None = None, blocks: int = 1) -> Gdt:
    """Lay out slots and groups of one flow, or of one place: integer arithmetic, whatever the number of frames.

    ``blocks`` per group, where the flow does not say how many. Its local buffers have no place in memspaces yet.
    """
    info, alignment, rules, slices = pipeline.detector, flow.alignment, flow.rules, flow.slices
    share = range(len(info.modules)) if place is None or flow.shares is None else flow.shares[place]
    source = flow.rect if place is None else share_box(share, info, flow.rect)
    dataset = info.datasets[flow.index]
    packed = dataset.packed if place is None and _travels_packed(pipeline, flow) else ""
    if packed:
        layout = lay_out_block(
            slot_bytes(source.area, dataset.pixel_bytes), 1, 1, block_bits=8 * ALIGNMENT, row_bits=8, header=0, footer=0
        )
    else:
        layout = lay_out_block(
            source.width,
            source.height,
            dataset.pixel_bytes,
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
    size = flow.buffers.size
    if size is None:
        frames = flow.buffers.frames or default_frames(rule, selected, pipeline.acquisition.period_s)
        size = (rules.start_slot + frames) * layout.stride
    parts = parts_of(source, {module: info.modules[module] for module in sorted(share)}, layout, dataset.pixel_bytes)
    return Gdt(
        name=flow.name if place is None else f"{flow.name}[{place}]",
        flow=flow.name,
        place=place,
        index=0,
        dataset=flow.index,
        dataset_name=dataset.name,
        dtype=dataset.dtype,
        pixel_bytes=dataset.pixel_bytes,
        source=source,
        full=flow.source == "full" and place is None,
        layout=layout,
        rule=replace(rule, slots=size // layout.stride),
        selected=selected,
        group_event=flow.events.group,
        end_event=flow.events.end,
        alignment=(alignment.block, alignment.row, alignment.header, alignment.footer),
        buffer_size=size,
        buffers=(),
        parts=parts,
        gap_pixels=source.area - sum(part.width * part.height for part in parts),  # modules don't overlap
        gap_value=info.gap_value,
        overrun=flow.overrun,  # type: ignore[arg-type]
        packed=packed,
    )


def _travels_packed(pipeline: Pipeline, flow: Flow) -> bool:
    """Return True if frames of a detector that compresses them can go to receivers as they are.

    So they can where receivers get the whole image, and the pipeline does not say how its rows lie in memory.
    """
    info = pipeline.detector
    memspaces = (list(pipeline.receivers.values())[place.receiver].memspaces[place.memspace] for place in flow.places)
    return (
        flow.rect == info.image
        and flow.shares is None
        and len(info.modules) == 1
        and info.operated is None
        and flow.alignment == Alignment()
        and all(memspace.kind == "host" for memspace in memspaces)
    )


def default_frames(rule: Rule, selected: int | None, period_s: float | None) -> int:
    """Return the frames of a local buffer whose size is not given: for the pauses of a receiver, and whole groups."""
    if rule.bounded or period_s is None:
        return max(DEFAULT_FRAMES, rule.blocks)
    held = int(min(HOLD_S / (period_s * rule.step * rule.buffers), HOLD_BYTES / rule.stride))
    if selected is not None:
        held = min(held, -(-selected // rule.buffers))
    return round_up(max(DEFAULT_FRAMES, held, rule.blocks), rule.blocks)


def check_flow(pipeline: Pipeline, gdts: Sequence[Gdt], findings: Findings) -> None:
    """Check one flow on its own: as laid out, or as laid out for each place."""
    at: KeyPath = ("flows", gdts[0].flow)
    largest = max(gdts, key=lambda each: each.layout.stride)
    for check in (_check_slices, _check_buffer, _check_parts, _check_events):
        attempt(lambda check=check: check(pipeline, largest, at, findings))  # type: ignore[misc]


def _check_slices(pipeline: Pipeline, gdt: Gdt, at: KeyPath, findings: Findings) -> None:
    frames, rule, selected = frames_of(pipeline), gdt.rule, gdt.selected
    if frames is None or selected is None:
        return
    if selected == 0:
        findings.error(
            "slices-empty",
            f"{gdt.flow} selects no frame: it starts at frame {rule.start} of {frames}",
            (*at, "slices", "start"),
            help=f"start below {frames}",
        )
    elif rule.count is not None and selected < rule.count:
        findings.warning(
            "slices-beyond",
            f"{gdt.flow} selects {rule.count} frames, but only {selected} of them exist",
            (*at, "slices", "count"),
            notes=[f"the last selected frame would be {rule.frame(rule.count - 1)}; there are {frames}"],
        )


def _check_buffer(pipeline: Pipeline, gdt: Gdt, at: KeyPath, findings: Findings) -> None:
    rule = gdt.rule
    if rule.groups_per_buffer >= 1:
        return
    flow, source, dataset = pipeline.flows[gdt.flow], gdt.source, pipeline.detector.datasets[gdt.dataset]
    needed = (rule.start_slot + rule.blocks) * rule.stride
    what = "a block" if rule.blocks == 1 and not rule.start_slot else f"a group of {rule.blocks} blocks"
    if rule.start_slot:
        what += f" after {rule.start_slot} free slots"
    alignment = flow.alignment
    aligned = f", aligned on {alignment.block} bits" if alignment.block > 1 else ""
    pixels = f"{source.width} x {source.height} px x {dataset.pixel_bytes} bytes ({dataset.dtype}){aligned}"
    pixels += ", with room for frames that compression makes larger" if gdt.packed else ""
    key = "size" if flow.buffers.size is not None else "frames"
    helps = f"at least {grouped(needed)} bytes"
    larger = 2**24 // rule.stride
    if larger > rule.start_slot + rule.blocks:
        helps += f"; 16 MiB holds {larger} {'frame' if larger == 1 else 'frames'}"
    related = [Related(("detector", pipeline.config.kind, "image"), "full image")] if flow.source == "full" else []
    findings.error(
        "buffer-too-small",
        f"{what} of {gdt.flow} needs {grouped(needed)} bytes, its local buffer has {size_text(gdt.buffer_size)}",
        (*at, "buffers", key),
        notes=[pixels],
        help=helps,
        related=related,
    )


def _check_parts(pipeline: Pipeline, gdt: Gdt, at: KeyPath, findings: Findings) -> None:
    if not gdt.parts:
        findings.error(
            "source-in-gap",
            f"no module covers any pixel of the source of {gdt.name} ({gdt.source})",
            (*at, "source"),
        )


def _check_events(pipeline: Pipeline, gdt: Gdt, at: KeyPath, findings: Findings) -> None:
    """Report data without an event, or that would be overwritten before any event."""
    rule, selected, name, period, ends = gdt.rule, gdt.selected, gdt.flow, gdt.group_event, gdt.end_event
    if rule.groups_per_buffer < 1:
        return
    where = (*at, "events")
    if not period and not ends:
        findings.error(
            "never-told", f"{name} has no events: receivers would never be notified of its data", where,
            help="events: {group: 1}, or {end: true}",
        )  # fmt: skip
        return
    if selected is not None and not ends and not rule.bounded:
        _check_rest(gdt, where, findings)
    counts = [None if selected is None else rule.visits(buffer, selected) for buffer in range(rule.buffers)]
    depth = rule.depth
    deep = [count for count in counts if count is None or count > depth]
    if rule.bounded or not deep or 0 < period <= depth:
        return
    events_text = f"only every {period} groups" if period else "only at the end"
    message = (
        f"receivers of {name} are notified {events_text}, but a local buffer keeps {depth} group{'s' * (depth != 1)}"
    )
    if gdt.overrun == "continue":
        lost = "all but the last" if None in counts else str(sum((c or 0) - depth for c in deep) * rule.blocks)
        findings.warning("told-too-late", f"{message}: {lost} frames will be lost", (*where, "group"))
    else:
        notes = [f"a local buffer gets {'endless' if None in counts else max(c or 0 for c in counts)} groups"]
        findings.error(
            "told-too-late", message, (*where, "group"), notes=notes,
            help=f"events: {{group: n}} with n from 1 to {depth}, or a larger buffer",
        )  # fmt: skip


def _check_rest(gdt: Gdt, where: KeyPath, findings: Findings) -> None:
    rule, selected, period = gdt.rule, gdt.selected or 0, gdt.group_event
    rest = selected % rule.blocks
    if rest:
        findings.error(
            "rest-never-told",
            f"the last group of {gdt.flow} has {rest} of {rule.blocks} blocks: no group event reports it",
            where,
            notes=[f"{selected} frames in groups of {rule.blocks}"],
            help="events: {end: true} reports it",
        )
        return
    for buffer in range(rule.buffers):
        visits = rule.visits(buffer, selected)
        if visits % period:
            findings.error(
                "rest-never-told",
                f"local buffer {buffer} of {gdt.flow} gets {visits} groups, with an event every {period}: "
                f"the last {visits % period} would never be reported",
                (*where, "group"),
                help="events: {end: true} reports them",
            )
            return


def check_channels(pipeline: Pipeline, gdts: Sequence[Gdt], findings: Findings) -> None:
    """Report more flows on a module than it has data channels."""
    limit = pipeline.detector.channels
    if limit is None:
        return
    for module in range(len(pipeline.detector.modules)):
        users = [gdt.flow for gdt in gdts if any(part.module == module for part in gdt.parts)]
        if len(users) > limit:
            findings.error(
                "too-many-channels",
                f"module {module} serves {len(users)} flows, it has {limit} data channel{'s' * (limit != 1)}",
                ("flows", users[limit]),
                notes=["flows that it contributes to: " + ", ".join(users)],
                on_key=True,
            )
            return
