"""One data flow laid out: slots, groups, modules' parts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lima2cli.config.dispatch import share_box
from lima2cli.config.pipeline import DataFlow, Pipeline, Place
from lima2cli.geometry import BlockLayout, Rect, Rule, lay_out_block, up
from lima2cli.plan.records import Part

DEFAULT_FRAMES = 256
"""Frames that a local buffer is sized for where the pipeline says nothing, at least."""

HOLD_S, HOLD_BYTES = 0.5, 24 << 20
"""And at least so many seconds of frames, as long as they take no more memory than this."""


@dataclass(frozen=True)
class FlowLayout:
    """A flow, or what one place gets of it (``place``), before its local buffers have a place in their memspaces.

    source  what it takes of each frame: that of the flow, or the box around the modules of the place
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
        """Unique among all."""
        return self.flow.name if self.place is None else f"{self.flow.name}[{self.place}]"

    @property
    def places(self) -> tuple[Place, ...]:
        """Of its local buffers, in rotation order."""
        return self.flow.places if self.place is None else (self.flow.places[self.place],)


def frames_of(pipeline: Pipeline) -> int | None:
    """Frames of the acquisition: those asked for, at most those that exist; None = until stopped."""
    asked = pipeline.acquisition.frames or None
    recorded = [dataset.frames for dataset in pipeline.detector.datasets if dataset.frames is not None]
    limits = [*recorded, *([asked] if asked is not None else [])]
    return min(limits) if limits else None


def parts_of(source: Rect, modules: Mapping[int, Rect], layout: BlockLayout, pixel_bytes: int) -> tuple[Part, ...]:
    """The modules' parts of a source: row y of I goes to ``payload + (y - source.y)*pitch + (I.x - source.x)*bpp``."""
    parts = []
    for number, module in modules.items():
        common = module & source
        if common.area:
            offset = layout.payload_offset + (common.y - source.y) * layout.pitch + (common.x - source.x) * pixel_bytes
            parts.append(Part(number, common.x, common.y, common.width, common.height, offset))
    return tuple(parts)


def most_slots(it: FlowLayout) -> int:
    """Slots that a local buffer has for groups, or may get where the pipeline does not give its size."""
    rule, said = it.rule, it.flow.said.buffers
    slots = it.size // rule.stride
    if said.size is None and said.frames is None and not rule.bounded:
        slots = max(slots, rule.start_slot + HOLD_BYTES // rule.stride)
    return max(0, slots - rule.start_slot)


def lay_out_flow(pipeline: Pipeline, flow: DataFlow, place: int | None = None, blocks: int = 1) -> FlowLayout:
    """Slots and groups of one flow, or of what one place gets: integer arithmetic, whatever the number of frames.

    ``blocks`` per group, where the flow does not say how many.
    """
    info, table = pipeline.detector, flow.said
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
    """Frames of a local buffer whose size is not given: for the pauses of a receiver, and whole groups."""
    if rule.bounded or period_s is None:
        return max(DEFAULT_FRAMES, rule.blocks)
    held = int(min(HOLD_S / (period_s * rule.step * rule.buffers), HOLD_BYTES / rule.stride))
    if selected is not None:
        held = min(held, -(-selected // rule.buffers))
    return up(max(DEFAULT_FRAMES, held, rule.blocks), rule.blocks)
