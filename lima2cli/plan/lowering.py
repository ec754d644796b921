"""Choose the kernels that can be computed on devices.

They read a flow whose frames come to the memory of one, or what such a kernel makes there.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.frames import Files, FrameSpec
from lima2cli.kernels.chain import Recipe, settle
from lima2cli.kernels.opencl import (
    SLOTS,
    ChainSource,
    NotLowered,
    SumsSource,
    chain_source,
    piece_frames,
    sums_source,
)
from lima2cli.kernels.strips import Stage, Turn
from lima2cli.nodes.base import Map, Reduce, Reducer, RegionReducer
from lima2cli.plan.fuse import StepsByName, pixelwise
from lima2cli.plan.ir import Gdt, Kernel, Plan, Region, Step


@dataclass(frozen=True, eq=False)
class Lowering:
    """The part of a kernel that is computed on a device.

    ``summed`` are reductions over regions, in the order of their ``sums``.
    """

    chain: ChainSource
    sums: tuple[SumsSource, ...]
    summed: tuple[str, ...]
    makes: bool

    @property
    def constant_bytes(self) -> int:
        """Return the bytes of calibrations and tables of regions."""
        tables = (array for one in self.sums for array in (one.tiles, one.masks, one.places))
        return sum(array.nbytes for array in (*self.chain.images, *tables))

    @property
    def result_bytes(self) -> int:
        """Return the bytes of what is made of a frame."""
        sums = sum(len(one.tiles) * dtype.itemsize for one in self.sums for dtype in one.keys.values())
        return sums + (math.prod(self.chain.shape) * self.chain.target.itemsize if self.makes else 0)


def on_devices(regions: Sequence[Region], gdts: Sequence[Gdt]) -> frozenset[str]:
    """Return the flows whose frames come to the memory of a device, at any receiver."""
    return frozenset(gdt.flow for gdt in gdts for buffer in gdt.buffers if regions[buffer.region].device is not None)


def mark_lowered(
    kernels: Sequence[Kernel], steps: Sequence[Step], flows: Collection[str], files: Files
) -> tuple[Kernel, ...]:
    """Return kernels, those marked that can be computed on a device; ``flows`` are those of `on_devices`."""
    by_name, marked = {step.name: step for step in steps}, list[Kernel]()
    frames = {step.source: step.before for step in steps if step.source in flows}
    most = {flow: piece_frames(_frame_bytes(spec)) for flow, spec in frames.items()}
    for kernel in kernels:
        if kernel.source in most and _may_be(kernel, by_name):
            lowering = _lowering(kernel, by_name, files)
            if lowering is not None:
                ring = SLOTS * most[kernel.source] * lowering.result_bytes
                kernel = replace(kernel, lowered=True, device_bytes=ring + lowering.constant_bytes)
                most |= dict.fromkeys(kernel.makes, most[kernel.source])
        marked.append(kernel)
    return tuple(marked)


def _may_be(kernel: Kernel, steps: StepsByName) -> bool:
    """Return whether a kernel has a form that devices compute: its maps, and sums over regions."""
    if kernel.others or any(steps[name].workers is not None or steps[name].collective for name in kernel.nodes):
        return False
    ends = [steps[name].node for name in kernel.ends]
    if not all(isinstance(node, Reduce) and node.strips and (node.summed or kernel.maps) for node in ends):
        return False
    return not steps[kernel.nodes[0]].before.packed and all(pixelwise(steps[name]) for name in kernel.maps)


def _lowering(kernel: Kernel, steps: StepsByName, files: Files) -> Lowering | None:
    ends = {name: steps[name] for name in kernel.ends}
    try:
        recipe = recipe_of(kernel.maps, steps[kernel.nodes[0]].before, lambda name: _stage_of(steps[name], files))
        return lower_kernel(
            kernel, steps, recipe, {name: cast(Reduce, end.node).bind(end.given(files)) for name, end in ends.items()}
        )
    except NotLowered:
        return None


def _stage_of(step: Step, files: Files) -> Stage | Turn:
    return cast(Map, step.node).stage_of(step.given(files))


def lower_kernel(kernel: Kernel, steps: StepsByName, recipe: Recipe, reducers: Mapping[str, Reducer]) -> Lowering:
    """Return what of a kernel is computed on a device; ``reducers`` are those of its ends.

    Raises:
        NotLowered: nothing of it can be.
    """
    before = steps[kernel.nodes[0]].before
    chain = chain_source(recipe, before.dtype, before.shape[1])
    summed = {
        name: reducer.regions
        for name, reducer in reducers.items()
        if isinstance(reducer, RegionReducer) and reducer.regions
    }
    sums = tuple(sums_source(f"sums{i}", regions, chain) for i, regions in enumerate(summed.values()))
    return Lowering(chain, sums, tuple(summed), bool(kernel.makes) or len(summed) < len(reducers))


def recipe_of(maps: Sequence[str], before: FrameSpec, stage_of: Callable[[str], Stage | Turn]) -> Recipe:
    """Return the recipe of maps for frames of ``before``; without any, of the frames as they are."""
    return settle([stage_of(name) for name in maps], before.dtype, *before.shape)


def come_back(kernel: Kernel, kernels: Sequence[Kernel], steps: StepsByName, *, own: bool) -> bool:
    """Return whether frames of a kernel on a device are copied back: some of those that read them are not there.

    own  a program of the user's may take blocks of any node
    """
    if not all(cast(Reduce, steps[name].node).summed for name in kernel.ends):
        return True
    readers = [one for one in kernels if not set(kernel.makes).isdisjoint(one.sources)]
    return bool(kernel.makes) and (own or not all(one.lowered for one in readers))


def device_of(plan: Plan, kernel: Kernel) -> dict[int, int]:
    """Return the memspaces of devices in which a kernel computes, by receiver; none where it is not lowered."""
    if not kernel.lowered:
        return {}
    makers = {name: one for one in plan.kernels for name in one.makes}
    while kernel.source in makers:
        kernel = makers[kernel.source]
    buffers = [buffer for gdt in plan.gdts_of(kernel.source) for buffer in gdt.buffers]
    return {one.receiver: one.region for one in buffers if plan.regions[one.region].device is not None}


def bus_bytes(plan: Plan, kernel: Kernel, steps: StepsByName) -> tuple[int, int]:
    """Return the bytes of a frame to a device, and back: what is there for another kernel, and sums, not counted."""
    before = steps[kernel.nodes[0]].before
    first = next(one for one in plan.kernels if one.lowered and one.source == kernel.source)
    uploaded = first is kernel and not any(kernel.source in one.makes for one in plan.kernels)
    after = cast(FrameSpec, steps[kernel.maps[-1]].after if kernel.maps else before)
    back = come_back(kernel, plan.kernels, steps, own=plan.processing is not None)
    return _frame_bytes(before) if uploaded else 0, _frame_bytes(after) if back else 0


def _frame_bytes(spec: FrameSpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def device_bytes(plan: Plan, region: int) -> int:
    """Return the bytes that a memspace has on its device: a ring of pieces of each flow, and what its kernels need."""
    kernels = [kernel for kernel in plan.kernels if region in device_of(plan, kernel).values()]
    flows = {gdt.flow for gdt in plan.gdts}
    read = {kernel.source: kernel.nodes[0] for kernel in kernels if kernel.source in flows}
    frames = [_frame_bytes(step.before) for step in plan.steps if step.name in read.values()]
    return sum(SLOTS * piece_frames(size) * size for size in frames) + sum(kernel.device_bytes for kernel in kernels)
