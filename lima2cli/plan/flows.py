"""Data flows laid out in memory: slots, groups, memspaces, modules' parts; and what is wrong with them."""

from dataclasses import dataclass

from lima2cli.config.pipeline import DataFlow, Pipeline
from lima2cli.config.records import FileMemspace, GpuMemspace, Memspace
from lima2cli.diagnostics import Findings, Path, Related
from lima2cli.geometry import BlockLayout, Rect, Rule, lay_out_block, up
from lima2cli.plan.records import Gdt, LocalBuffer, Part, Region
from lima2cli.poison import POISON, attempt

DEFAULT_FRAMES = 256
"""Frames that a local buffer is sized for where the pipeline says nothing."""


@dataclass(frozen=True)
class FlowLayout:
    """A flow before its local buffers have a place in their memspaces."""

    flow: DataFlow
    layout: BlockLayout
    rule: Rule
    selected: int | None
    size: int
    parts: tuple[Part, ...]


def size_text(size: int) -> str:
    """Bytes for people: exact, in the largest binary unit that comes out whole, else grouped digits."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{grouped(size)} bytes"


def grouped(number: int) -> str:
    """Digits in groups of three: 500 000."""
    return f"{number:,}".replace(",", " ")


def frames_of(pipeline: Pipeline) -> int | None:
    """Frames of the acquisition: those asked for, at most those that exist; None = until stopped."""
    asked = pipeline.acquisition.frames or None
    recorded = [dataset.frames for dataset in pipeline.detector.datasets if dataset.frames is not None]
    limits = [*recorded, *([asked] if asked is not None else [])]
    return min(limits) if limits else None


def parts_of(source: Rect, modules: tuple[Rect, ...], layout: BlockLayout, pixel_bytes: int) -> tuple[Part, ...]:
    """The modules' parts of a source: row y of I goes to ``payload + (y - source.y)*pitch + (I.x - source.x)*bpp``."""
    parts = []
    for number, module in enumerate(modules):
        common = module & source
        if common.area:
            offset = layout.payload_offset + (common.y - source.y) * layout.pitch + (common.x - source.x) * pixel_bytes
            parts.append(Part(number, common.x, common.y, common.width, common.height, offset))
    return tuple(parts)


def lay_out_flow(pipeline: Pipeline, flow: DataFlow) -> FlowLayout:
    """Slots and groups of one flow; pure integer arithmetic, whatever the number of frames."""
    info, table = pipeline.detector, flow.said
    pixel_bytes = info.datasets[flow.dataset].pixel_bytes
    alignment, rules, slices = table.alignment, table.rules, table.slices
    layout = lay_out_block(
        flow.source.width,
        flow.source.height,
        pixel_bytes,
        block_bits=alignment.block,
        row_bits=alignment.row,
        header=alignment.header,
        footer=alignment.footer,
    )
    size = table.buffers.size
    if size is None:
        frames = table.buffers.frames or max(DEFAULT_FRAMES, rules.blocks_per_group)
        size = (rules.start_slot + frames) * layout.stride
    rule = Rule(
        start=slices.start,
        step=slices.step,
        count=slices.count,
        blocks=rules.blocks_per_group,
        buffers=len(flow.places),
        slots=size // layout.stride,
        stride=layout.stride,
        start_slot=rules.start_slot,
        overwrite=rules.placement == "overwrite",
        circular=rules.cycle == "circular",
    )
    parts = parts_of(flow.source, info.modules, layout, pixel_bytes)
    return FlowLayout(flow, layout, rule, rule.selected(frames_of(pipeline)), size, parts)


def check_flow(pipeline: Pipeline, it: FlowLayout, findings: Findings) -> None:
    """What is wrong with one flow on its own."""
    at: Path = ("flows", it.flow.name)
    for check in (_check_slices, _check_buffer, _check_parts, _check_events):
        attempt(lambda check=check: check(pipeline, it, at, findings))  # type: ignore[misc]


def _check_slices(pipeline: Pipeline, it: FlowLayout, at: Path, findings: Findings) -> None:
    frames, rule, selected = frames_of(pipeline), it.rule, it.selected
    if frames is None or selected is None:
        return
    if selected == 0:
        findings.error(
            "slices-empty",
            f"{it.flow.name} selects no frame: it starts at frame {rule.start} of {frames}",
            (*at, "slices", "start"),
            help=f"start below {frames}",
        )
    elif rule.count is not None and selected < rule.count:
        findings.warning(
            "slices-beyond",
            f"{it.flow.name} selects {rule.count} frames, but only {selected} of them exist",
            (*at, "slices", "count"),
            notes=[f"the last selected frame would be {rule.frame(rule.count - 1)}; there are {frames}"],
        )


def _check_buffer(pipeline: Pipeline, it: FlowLayout, at: Path, findings: Findings) -> None:
    rule = it.rule
    if rule.groups_per_buffer >= 1:
        return
    source, dataset = it.flow.source, pipeline.detector.datasets[it.flow.dataset]
    needed = (rule.start_slot + rule.blocks) * rule.stride
    what = "a block" if rule.blocks == 1 and not rule.start_slot else f"a group of {rule.blocks} blocks"
    if rule.start_slot:
        what += f" after {rule.start_slot} free slots"
    alignment = it.flow.said.alignment
    aligned = f", aligned on {alignment.block} bits" if alignment.block > 1 else ""
    pixels = f"{source.width} x {source.height} px x {dataset.pixel_bytes} bytes ({dataset.dtype}){aligned}"
    key = "size" if it.flow.said.buffers.size is not None else "frames"
    helps = f"at least {grouped(needed)} bytes"
    larger = 2**24 // rule.stride
    if larger > rule.start_slot + rule.blocks:
        helps += f"; 16 MiB holds {larger} {'frame' if larger == 1 else 'frames'}"
    related = (
        [Related(("detector", pipeline.config.kind, "image"), "full image")] if it.flow.said.source == "full" else []
    )
    findings.error(
        "buffer-too-small",
        f"{what} of {it.flow.name} needs {grouped(needed)} bytes, its local buffer has {size_text(it.size)}",
        (*at, "buffers", key),
        notes=[pixels],
        help=helps,
        related=related,
    )


def _check_parts(pipeline: Pipeline, it: FlowLayout, at: Path, findings: Findings) -> None:
    if not it.parts:
        findings.error(
            "source-in-gap",
            f"no module covers any pixel of the source of {it.flow.name} ({it.flow.source})",
            (*at, "source"),
        )


def _check_events(pipeline: Pipeline, it: FlowLayout, at: Path, findings: Findings) -> None:
    """Data that no event tells of, or that would be overwritten before any event can tell of it."""
    rule, events, selected, name = it.rule, it.flow.said.events, it.selected, it.flow.name
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
        _check_rest(it, where, findings)
    counts = [None if selected is None else rule.visits(buffer, selected) for buffer in range(rule.buffers)]
    period, depth = events.group, rule.depth
    deep = [count for count in counts if count is None or count > depth]
    if rule.bounded or not deep or 0 < period <= depth:
        return
    told = f"only every {period} groups" if period else "only at the end"
    message = f"{name} is told of {told}, but a local buffer keeps {depth} group{'s' * (depth != 1)}"
    if it.flow.overrun == "continue":
        lost = "all but the last" if None in counts else str(sum((c or 0) - depth for c in deep) * rule.blocks)
        findings.warning("told-too-late", f"{message}: {lost} frames will be lost", (*where, "group"))
    else:
        notes = [f"a local buffer gets {'endless' if None in counts else max(c or 0 for c in counts)} groups"]
        findings.error(
            "told-too-late", message, (*where, "group"), notes=notes,
            help=f"events: {{group: n}} with n from 1 to {depth}, or a larger buffer",
        )  # fmt: skip


def _check_rest(it: FlowLayout, where: Path, findings: Findings) -> None:
    rule, selected, period = it.rule, it.selected or 0, it.flow.said.events.group
    rest = selected % rule.blocks
    if rest:
        findings.error(
            "rest-never-told",
            f"the last group of {it.flow.name} has {rest} of {rule.blocks} blocks: no group event tells of it",
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
                f"local buffer {buffer} of {it.flow.name} gets {visits} groups, with an event every {period}: "
                f"the last {visits % period} would never be told of",
                (*where, "group"),
                help="events: {end: true} tells of them",
            )
            return


def check_channels(pipeline: Pipeline, layouts: list[FlowLayout], findings: Findings) -> None:
    """More flows on a module than it has data channels."""
    limit = pipeline.detector.channels
    if limit is None:
        return
    for module in range(len(pipeline.detector.modules)):
        users = [it.flow.name for it in layouts if any(part.module == module for part in it.parts)]
        if len(users) > limit:
            findings.error(
                "too-many-channels",
                f"module {module} serves {len(users)} flows, it has {limit} data channel{'s' * (limit != 1)}",
                ("flows", users[limit]),
                notes=["flows that it contributes to: " + ", ".join(users)],
                on_key=True,
            )
            return


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
        for place in it.flow.places:
            key = (place.receiver, place.memspace)
            offset = up(used[key], max(it.layout.alignment, 64))
            used[key] = offset + it.size
            users[key].append(f"{it.flow.name} {size_text(it.size)}")
            buffers.append(LocalBuffer(place.receiver, keys.index(key), offset, it.size))
        placed[it.flow.name] = tuple(buffers)
    names = list(pipeline.receivers)
    regions = []
    for receiver, name in keys:
        memspace = pipeline.receivers[names[receiver]].memspaces[name]
        at: Path = ("receivers", names[receiver], "memspaces", name)
        regions.append(
            attempt(lambda m=memspace, r=receiver, n=name, a=at: _region(m, r, n, used[r, n], users[r, n], a, findings))  # type: ignore[misc]
        )
    return tuple(regions), placed


def _region(
    memspace: Memspace, receiver: int, name: str, used: int, users: list[str], at: Path, findings: Findings
) -> Region:
    size = memspace.size if memspace.size is not None else used
    if used > size:
        findings.error(
            "memspace-full",
            f"memspace {name} of {at[1]} has {size_text(size)}, its local buffers need {size_text(used)}",
            (*at, memspace.kind, "size"),
            notes=[f"{' + '.join(users)} = {grouped(used)} bytes"],
            help=f"size: {size_text(up(used, 2**20))}",
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
    flow, table, info = it.flow, it.flow.said, pipeline.detector
    dataset = info.datasets[flow.dataset]
    alignment = table.alignment
    return Gdt(
        name=flow.name,
        index=index,
        dataset=flow.dataset,
        dataset_name=dataset.name,
        dtype=dataset.dtype,
        pixel_bytes=dataset.pixel_bytes,
        source=flow.source,
        full=table.source == "full",
        layout=it.layout,
        rule=it.rule,
        selected=it.selected,
        group_event=table.events.group,
        end_event=table.events.end,
        alignment=(alignment.block, alignment.row, alignment.header, alignment.footer),
        buffer_size=it.size,
        buffers=buffers,
        parts=it.parts,
        gap_pixels=gap_pixels(flow.source, it.parts),
        gap_value=info.gap_value,
        overrun=flow.overrun,  # type: ignore[arg-type]
    )


def lay_out(pipeline: Pipeline, findings: Findings) -> tuple[tuple[Region, ...], tuple[Gdt, ...]]:
    """All flows of a pipeline, checked."""
    layouts: list[FlowLayout] = []
    for flow in pipeline.flows.values():
        it = attempt(lambda flow=flow: lay_out_flow(pipeline, flow))  # type: ignore[misc]
        if it is POISON:
            continue
        attempt(lambda it=it: check_flow(pipeline, it, findings))  # type: ignore[misc]
        layouts.append(it)
    attempt(lambda: check_channels(pipeline, layouts, findings))
    regions, placed = place_buffers(pipeline, layouts, findings)
    gdts = tuple(gdt_of(pipeline, index, it, placed[it.flow.name]) for index, it in enumerate(layouts))
    return regions, gdts
