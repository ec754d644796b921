"""Show a plan in numbers: the machine-readable form, with the volume that a run will save."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.diagnostics import Diagnostic
from lima2cli.files.channel import Channel
from lima2cli.frames import SparseSpec
from lima2cli.geometry import Rect
from lima2cli.kernels.strips import demanded
from lima2cli.nodes.base import Map, Reduce, Sink
from lima2cli.plan.ir import Gdt, Kernel, Plan, Step
from lima2cli.plan.join_depth import Unreleased, held_frames, unreleased
from lima2cli.plan.lowering import bus_bytes, device_of
from lima2cli.units import volume_text
from lima2cli.view import View, view_plain

ROW_BYTES = 8 + 8 + 1 + 1 + 8
"""Bytes of a row in a master: number, time, statuses, and the entry that maps it to a frame file or its checksum."""

FILE_BYTES = 512
"""Bytes of a frame file in a master."""

END_BYTES = 192 << 10
"""Further bytes of a master, or a table."""

MARGIN_BYTES = 640 << 10
"""Bytes that the HDF5 library needs while one of them is written."""

MOST_BYTES = 64 << 20
"""Most bytes kept for the end of a run; if more are needed, `lima2 recover` makes the masters."""


@dataclass(frozen=True)
class Volume:
    """The volume that one channel saves of a run, all its acquisitions together.

    frames       at most, None where the run has no end;  frame_bytes  of one, pixels alone
    less         it may be less: frames are compressed, sparse, or chosen during the run
    """

    node: str
    frames: int | None
    frame_bytes: int
    less: bool

    @property
    def bytes(self) -> int | None:
        """Return the bytes of all frames; None without an end."""
        return None if self.frames is None else self.frames * self.frame_bytes

    def __str__(self) -> str:
        each = volume_text(self.frame_bytes)
        if self.bytes is None:
            return f"{self.node} {each} a frame"
        return f"{self.node} {self.frames} x {each} = {volume_text(self.bytes)}"


def volumes(plan: Plan) -> tuple[Volume, ...]:
    """Return the volumes of all channels."""
    return tuple(_volume(plan, name, channel) for name, channel in plan.channels.items())


def end_bytes(plan: Plan) -> int:
    """Return about how many bytes masters and tables of one acquisition take: to be kept for the end of a run.

    Data copied into masters of sparse frames, and masters of an endless run, are not known before.
    """
    size = MARGIN_BYTES + END_BYTES
    for channel in plan.channels.values():
        rows = channel.selected or 0
        files = rows // channel.frames_per_file if channel.frames_per_file else 0
        mask = 0 if channel.mask is None else 4 * channel.mask.size
        size += END_BYTES + mask + rows * ROW_BYTES + (files + len(channel.receivers)) * FILE_BYTES
    for table in plan.tables.values():
        lengths = {"frame_number": 1, **dict.fromkeys(table.columns, 1), **table.lengths}
        row = sum(n * np.dtype(table.columns.get(name, "uint64")).itemsize for name, n in lengths.items())
        size += END_BYTES + (table.selected or 0) * row
    return min(size, MOST_BYTES)


def _volume(plan: Plan, name: str, channel: Channel) -> Volume:
    frames = channel.selected * plan.repeat if channel.selected is not None and plan.repeat else None
    pixels = sum(part.area for part in channel.places) or channel.height * channel.width
    size = pixels * np.dtype(channel.dtype).itemsize
    return Volume(name, frames, size, channel.sparse or channel.filtered or channel.compression != "none")


def volume_figures(plan: Plan) -> dict[str, Any]:
    """Return volumes as plain data: ``bytes`` is null where the run has no end, ``less`` True if it may be fewer."""
    return {
        one.node: {
            "frames": one.frames,
            "frame_bytes": one.frame_bytes,
            "bytes": one.bytes,
            "less": one.less,
        }
        for one in volumes(plan)
    }


VERSION = 1


def plan_figures(plan: Plan, warnings: Sequence[Diagnostic] = ()) -> dict[str, Any]:
    """Return the plan as plain data: the output of ``plan --format json``."""
    return {
        "version": VERSION,
        "name": plan.name,
        "frames": plan.frames,
        **({"taken": list(plan.info.sensor.taken)} if plan.info.sensor.taken else {}),
        "period_s": plan.period_s,
        "gdts": {gdt.name: gdt_figures(plan, gdt) for gdt in plan.gdts},
        "ranks": [
            {"rank": role.rank, "role": role.role}
            | ({"modules": list(role.modules)} if role.role == "detector" else {})
            | (
                {"receiver": plan.receivers[role.receiver], "threads": plan.threads[role.receiver]}
                | plan.placement_of(role).requested
                if role.receiver is not None
                else {}
            )
            | ({"node": role.worker} if role.worker is not None else {})
            for role in plan.ranks
        ],
        "nodes": [
            {
                "flow": step.flow,
                "name": step.name,
                "kind": step.node.kind,
                "input": str(step.before),
                **({"inputs": {name: str(spec) for name, spec in step.specs.items()}} if step.inputs else {}),
                "output": str(step.after),
                "receivers": [plan.receivers[r] for r in dict.fromkeys(step.numbering.receivers)],
                "collective": bool(step.collective),
            }
            for step in plan.steps
        ],
        "kernels": kernel_figures(plan),
        "memory": memory_figures(plan),
        "links": link_figures(plan),
        "channels": {
            name: {
                "flow": channel.flow,
                "dtype": channel.dtype,
                "shape": [channel.height, channel.width],
                "compression": channel.compression,
                "frames_per_file": channel.frames_per_file,
                "frames_per_chunk": channel.frames_per_chunk,
            }
            for name, channel in plan.channels.items()
        },
        "volume": volume_figures(plan),
        "visible": visible_figures(plan),
        "regions": region_figures(plan),
        "warnings": [{"rule": w.rule, "message": w.message, "path": "/" + "/".join(map(str, w.at))} for w in warnings],
    }


def visible_figures(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the frames of all flows and nodes that can be looked at: shape (height, width), dtype, and the view.

    ``view`` says which pixels of the detector they show, and how: ``area`` (x, y, width, height) in detector pixels,
    ``binning`` (x, y), whether left and right are changed, and the degrees clockwise by which they are turned then.
    """
    frames: dict[str, dict[str, Any]] = {}
    for name, spec in plan.visible.items():
        view = View(Rect(0, 0, *spec.detector)) if isinstance(spec, SparseSpec) else spec.view
        frames[name] = {"shape": list(view.shape), "dtype": spec.dtype, "view": view_plain(view)}
    return frames


def region_figures(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the regions that nodes look at, by node and name: lines [[x, y], …] in pixels of the detector, closed."""
    found = {step.name: outline_figures(step) for step in plan.steps}
    return {node: outlines for node, outlines in found.items() if outlines}


def outline_figures(step: Step) -> dict[str, Any]:
    """Return the regions that one node looks at, as `region_figures` has them."""
    return {
        name: [[[round(x, 2), round(y, 2)] for x, y in line] for line in outline]
        for name, outline in step.node.outlines(step.before).items()
    }


def gdt_figures(plan: Plan, gdt: Gdt) -> dict[str, Any]:
    """Return one flow as plain data; counts by receiver are null where the run has no end."""
    rule, selected = gdt.rule, gdt.selected
    held = waiting(plan, gdt)
    written = None if selected is None else [rule.written(index, selected) for index in range(rule.buffers)]
    events = None if selected is None else _group_events(gdt, selected)
    return {
        "dataset": gdt.dataset_name,
        "dtype": gdt.dtype,
        "source": {"x": gdt.source.x, "y": gdt.source.y, "width": gdt.source.width, "height": gdt.source.height},
        "selected": selected,
        "first_frame": rule.start,
        "last_frame": rule.frame(selected - 1) if selected else None,
        "step": rule.step,
        "pitch": gdt.layout.pitch,
        "payload_offset": gdt.layout.payload_offset,
        "stride": gdt.layout.stride,
        "packed": gdt.packed or None,
        "slots": rule.slots,
        "groups_per_buffer": rule.groups_per_buffer,
        "blocks_per_group": rule.blocks,
        "depth": rule.depth,
        "blocks_written": None if written is None else sum(written),
        "blocks_dropped": None if written is None or selected is None else selected - sum(written),
        "blocks_per_receiver": _by_receiver(plan, gdt, written),
        "group_events": _by_receiver(plan, gdt, events),
        "end_events": {plan.receivers[r]: int(gdt.end_event) for r in gdt.receivers},
        "last_group_blocks": None if selected is None else _last_group(gdt, selected),
        "parts": [
            {
                "module": part.module,
                "x": part.x,
                "y": part.y,
                "width": part.width,
                "height": part.height,
                "offset_in_slot": part.offset_in_slot,
            }
            for part in gdt.parts
        ],
        "gap_pixels": gdt.gap_pixels,
        "overrun": gdt.overrun,
        "buffers": [
            {
                "receiver": plan.receivers[buffer.receiver],
                "memspace": plan.regions[buffer.region].name,
                "offset": buffer.offset,
                "size": buffer.size,
            }
            for buffer in gdt.buffers
        ],
        "unreleased": {"frames": held.frames, "nodes": list(held.nodes)},
        "slack_s": slack_s(plan, gdt),
    }


def _last_group(gdt: Gdt, selected: int) -> int:
    return gdt.rule.blocks_of_group(gdt.rule.groups(selected) - 1, selected) if selected else 0


def _group_events(gdt: Gdt, selected: int) -> list[int]:
    if not gdt.group_event:
        return [0] * gdt.rule.buffers
    return [gdt.rule.full_visits(index, selected) // gdt.group_event for index in range(gdt.rule.buffers)]


def _by_receiver(plan: Plan, gdt: Gdt, counts: Sequence[int] | None) -> dict[str, int] | None:
    if counts is None:
        return None
    totals = {plan.receivers[receiver]: 0 for receiver in gdt.receivers}
    for buffer, count in zip(gdt.buffers, counts, strict=True):
        totals[plan.receivers[buffer.receiver]] += count
    return totals


def slack_s(plan: Plan, gdt: Gdt) -> float | None:
    """Return the seconds of frames that the local buffers of a flow hold together, without those that may have to wait
    there for other flows or receivers; None without a period.
    """
    if plan.period_s is None:
        return None
    return plan.period_s * (held_frames(gdt) - waiting(plan, gdt).frames)


def waiting(plan: Plan, gdt: Gdt) -> Unreleased:
    """Return the frames of a flow that may have to wait in its local buffers, and the nodes they wait for."""
    return unreleased(plan.steps, gdt, plan.gdts)


def memory_figures(plan: Plan) -> dict[str, Any]:
    """Return bytes per memspace, by receiver: size, used, kind (and the kind asked for where it is another)."""
    memory: dict[str, Any] = {name: {} for name in plan.receivers}
    for region in plan.regions:
        memory[plan.receivers[region.receiver]][region.name] = {
            "kind": region.kind,
            "asked": region.asked,
            "size": region.size,
            "used": region.used,
        }
    return memory


def link_figures(plan: Plan) -> dict[str, Any]:
    """Return the bytes per second that reach each receiver, and that each module sends; null without a period."""
    into = dict.fromkeys(plan.receivers, 0.0)
    out = {str(module): 0.0 for module in range(len(plan.info.modules))}
    for gdt in plan.gdts if plan.period_s is not None else ():
        rate = 1 / (plan.period_s * gdt.rule.step)  # type: ignore[operator]
        for part in gdt.parts:
            flow = rate * part.width * part.height * gdt.pixel_bytes
            out[str(part.module)] += flow
            for buffer in gdt.buffers:
                into[plan.receivers[buffer.receiver]] += flow / len(gdt.buffers)
    known = plan.period_s is not None
    return {
        "receivers": into if known else dict.fromkeys(into),
        "modules": out if known else dict.fromkeys(out),
    }


def kernel_figures(plan: Plan) -> list[dict[str, Any]]:
    """Return the nodes that are computed together, in the order of the data; unused nodes are in none.

    ``materialised`` are those whose frames are made whole, ``strips`` the reductions that read a frame while it is
    computed, ``first`` the cuts and flips that are done before the nodes in front of them, ``computed`` the share of
    the pixels that are computed, at the first receiver: where only reductions read them, those that they read.
    ``device``: where it can be computed on devices, the receivers that have one for it, and the bytes of a frame that
    are copied there and back, those that are there for another kernel, and sums of regions, not counted.
    """
    steps = {step.name: step for step in plan.steps}
    nodes = {name: step.node for name, step in steps.items()}
    return [
        {
            "flow": kernel.flow,
            "input": kernel.source,
            **({"inputs": list(kernel.sources)} if kernel.others else {}),
            "nodes": list(kernel.nodes),
            "fused": kernel.fused,
            "first": [name for name in kernel.maps[1:] if cast(Map, nodes[name]).turns],
            "strips": list(kernel.ends) if kernel.fused else [],
            "materialised": [name for name in kernel.makes if not isinstance(nodes[name], Sink)],
            **({"computed": round(_computed(kernel, steps), 4)} if kernel.fused else {}),
            **({"device": _device(plan, kernel, steps)} if kernel.lowered else {}),
        }
        for kernel in plan.kernels
    ]


def _device(plan: Plan, kernel: Kernel, steps: Mapping[str, Step]) -> dict[str, Any]:
    there, back = bus_bytes(plan, kernel, steps)
    receivers = [plan.receivers[receiver] for receiver in device_of(plan, kernel)]
    return {"receivers": receivers, "there_bytes": there, "back_bytes": back}


def _computed(kernel: Kernel, steps: Mapping[str, Step]) -> float:
    """Return the share of the pixels of a kernel's frames that are computed."""
    if kernel.makes or not kernel.ends:
        return 1.0
    spec = steps[kernel.ends[0]].before
    parts = demanded(spec.shape, [cast(Reduce, steps[name].node).reads(spec) for name in kernel.ends])
    return sum(part.area for part in parts) / math.prod(spec.shape)


def unused_nodes(plan: Plan) -> list[str]:
    """Return the nodes that are in no kernel: their output is unused."""
    used = {name for kernel in plan.kernels for name in kernel.nodes}
    return [step.name for step in plan.steps if step.name not in used]
