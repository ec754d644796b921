"""Choose the kernels that can be computed on devices: those that read a flow whose frames come to the memory of one."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from lima2cli.frames import Files, FrameSpec
from lima2cli.kernels.chain import Recipe, settle
from lima2cli.kernels.opencl import SLOTS, NotLowered, chain_source, piece_frames
from lima2cli.nodes.base import Map, Reduce
from lima2cli.plan.fuse import StepsByName, pixelwise
from lima2cli.plan.ir import Gdt, Kernel, Plan, Region, Step


def on_devices(regions: Sequence[Region], gdts: Sequence[Gdt]) -> frozenset[str]:
    """Return the flows whose frames come to the memory of a device, at any receiver."""
    return frozenset(gdt.flow for gdt in gdts for buffer in gdt.buffers if regions[buffer.region].device is not None)


def mark_lowered(
    kernels: Sequence[Kernel], steps: Sequence[Step], flows: Collection[str], files: Files
) -> tuple[Kernel, ...]:
    """Return kernels, those marked that can be computed on a device; ``flows`` are those of `on_devices`."""
    by_name = {step.name: step for step in steps}
    return tuple(
        replace(kernel, lowered=True) if kernel.source in flows and is_lowered(kernel, by_name, files) else kernel
        for kernel in kernels
    )


def is_lowered(kernel: Kernel, steps: StepsByName, files: Files) -> bool:
    """Return whether a kernel that reads a flow can be computed on a device: its maps, and sums over regions."""
    if kernel.others or any(steps[name].workers is not None or steps[name].collective for name in kernel.nodes):
        return False
    ends = [steps[name].node for name in kernel.ends]
    if not all(isinstance(node, Reduce) and node.strips and (node.summed or kernel.maps) for node in ends):
        return False
    before = steps[kernel.nodes[0]].before
    if before.packed or not all(pixelwise(steps[name]) for name in kernel.maps):
        return False
    try:
        chain_source(recipe_of(kernel, steps, files), before.dtype, before.shape[1])
    except NotLowered:
        return False
    return True


def recipe_of(kernel: Kernel, steps: StepsByName, files: Files) -> Recipe:
    """Return the recipe of a kernel's maps; without any, of the frames as they are."""
    before = steps[kernel.nodes[0]].before
    parts = [cast(Map, steps[name].node).stage_of(steps[name].given(files)) for name in kernel.maps]
    return settle(parts, before.dtype, *before.shape)


def bus_bytes(kernel: Kernel, steps: StepsByName) -> tuple[int, int]:
    """Return the bytes of a frame to a device, and back: frames that are read here, sums of regions not counted."""
    before = steps[kernel.nodes[0]].before
    others = not all(cast(Reduce, steps[name].node).summed for name in kernel.ends)
    after = cast(FrameSpec, steps[kernel.maps[-1]].after if kernel.maps else before)
    return _frame_bytes(before), _frame_bytes(after) if kernel.makes or others else 0


def _frame_bytes(spec: FrameSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def device_bytes(plan: Plan, region: int) -> int:
    """Return the bytes that the kernels of a memspace have on its device: a ring of pieces for each."""
    steps = {step.name: step for step in plan.steps}
    flows = {gdt.flow for gdt in plan.gdts if any(buffer.region == region for buffer in gdt.buffers)}
    kernels = [kernel for kernel in plan.kernels if kernel.lowered and kernel.source in flows]
    each = [bus_bytes(kernel, steps) for kernel in kernels]
    return sum(SLOTS * piece_frames(there) * (there + back) for there, back in each)
