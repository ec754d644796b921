"""Predict the rate of a run, and what limits it, from what ``lima2 doctor --bench`` has measured on a machine. Pure.

Each stage of a run takes some seconds for each frame of the detector:

transfer     of a detector rank: the frames of all its flows, put into the receivers' memory
copying      of a receiver: frames of flows with `overrun: continue`, which may be overwritten while they are used
kernels      of a receiver: the pixels that its nodes read or compute
compression  of a receiver: frames compressed and written; uncompressed ones are written only (saving)
disk         of all receivers together: uncompressed frames, at the rate of a plain file
processors   of all ranks together: their seconds, on the processors that there are

A receiver's copying, kernels and saving add up, all else goes on at the same time: the slowest limits the run. What was
not measured is left out, and named, and so is what devices compute. Costs are those of frames that look like the
measured ones.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from lima2cli.dataclass import dataclass
from lima2cli.frames import FrameSpec
from lima2cli.kernels.strips import demanded
from lima2cli.nodes.base import Map, Reduce, Select, Sink
from lima2cli.plan.ir import Gdt, Kernel, Plan, RankRole, Step
from lima2cli.plan.lowering import device_of

PIXEL_BYTES = 2
"""Bytes of a pixel of the frames that were measured, raw."""

REGION_SHARE = 1 / 12
"""Share of the pixels in the regions of the case `regions`."""

TRANSFER = "transfer "
"""Beginning of the names of cases that move frames; the side of these follows, in pixels."""

NEEDED = ("sum", "statistics", "correct", "regions", "make", "save bslz4", "save float32", "save none")
"""Cases without which nothing is predicted; transfers are measured where there is MPI only."""


@dataclass(frozen=True)
class Limits:
    """The rates that a machine was measured to reach, in bytes of raw frames per second, by case.

    reached  by lima2;  bare  as little as the machine can do of it
    """

    processor: str
    cores: int
    reached: Mapping[str, float]
    bare: Mapping[str, float]

    @classmethod
    def of(cls, record: Any) -> "Limits":
        """Return the limits in what ``doctor --bench -o`` has written. Raises ValueError with what is wrong."""
        if not isinstance(record, dict) or not isinstance(record.get("cases"), list):
            raise ValueError("it has no `cases`")
        if record.get("version") != 1:
            raise ValueError(f"its version is {record.get('version')}, and 1 is read")
        reached, bare = {}, {}
        for case in record["cases"]:
            try:
                name = str(case["name"])
                reached[name], bare[name] = float(case["lima2_bytes_per_s"]), float(case["limit_bytes_per_s"])
            except (TypeError, KeyError, ValueError) as error:
                raise ValueError(f"one of its cases is none: {error!r}") from error
            if name.startswith(TRANSFER) and not name.removeprefix(TRANSFER).isdecimal():
                raise ValueError(f"`{name}` does not name a side in pixels")
            if not (0 < reached[name] < math.inf and 0 < bare[name] < math.inf):
                raise ValueError(f"the rates of `{name}` are not above 0")
        if lacking := [name for name in NEEDED if name not in reached]:
            raise ValueError(f"it lacks {', '.join(lacking)}: measure again")
        machine = record.get("machine")
        machine = machine if isinstance(machine, dict) else {}
        cores = machine.get("cores")
        return cls(str(machine.get("processor", "")), cores if isinstance(cores, int) else 0, reached, bare)

    def pixel_s(self, case: str) -> float:
        """Return the seconds that lima2 takes for a pixel that is read, of a case in which all are."""
        return PIXEL_BYTES / self.reached[case]

    def transfer_rate(self, size: int) -> float | None:
        """Return bytes per second of frames of so many bytes, moved; None where no transfer was measured."""
        return _between(self.reached, size)

    def copy_rate(self, size: int) -> float | None:
        """Return bytes per second of frames of so many bytes, put alone, as a copy does; None where not measured."""
        return _between(self.bare, size)

    @property
    def rectangles(self) -> float:
        """Return the rate of parts of rows, as a share of that of whole ones: the worst that was measured."""
        shares = [self.reached[name] / self.bare[name] for name in self.reached if name.startswith("rectangle ")]
        return min([1.0, *shares])


def _between(rates: Mapping[str, float], size: int) -> float | None:
    """Return the rate of transfers of so many bytes, between those of the sizes that were measured."""
    known = {
        PIXEL_BYTES * int(name.removeprefix(TRANSFER)) ** 2: rates[name] for name in rates if name.startswith(TRANSFER)
    }
    if not known:
        return None
    sizes = sorted(known)
    return float(np.interp(math.log(size), [math.log(one) for one in sizes], [known[one] for one in sizes]))


@dataclass(frozen=True)
class Stage:
    """A stage of a run, the seconds that it takes for each frame of the detector, and the nodes that it is of."""

    name: str
    place: str
    frame_s: float
    nodes: tuple[str, ...] = ()

    @property
    def hz(self) -> float:
        """Return the frames of the detector per second that it can do."""
        return 1 / self.frame_s if self.frame_s else math.inf


@dataclass(frozen=True)
class Receiving:
    """The prediction of a receiver: its stages, and the highest rate of frames of the detector, in Hz."""

    stages: tuple[Stage, ...]
    hz: float


@dataclass(frozen=True)
class Prediction:
    """The prediction of a run.

    hz         frames of the detector per second;  bottleneck  the stage that limits them, None where nothing does
    shared     stages that are not of one receiver: disk and processors
    left_out   nodes, and ``transfer``, whose costs were not measured
    on_devices  nodes that devices compute, which are left out, too
    """

    receivers: Mapping[str, Receiving]
    shared: tuple[Stage, ...]
    hz: float
    bottleneck: Stage | None
    left_out: tuple[str, ...]
    on_devices: tuple[str, ...]


def predict(plan: Plan, limits: Limits, cores: int) -> Prediction:
    """Return what is predicted of a plan on a machine with so many ``cores`` for it."""
    work = {r: list(_work(plan, r, limits)) for r in range(len(plan.receivers))}
    transfers = {role.rank: _transfer(plan, role, limits) for role in plan.ranks if role.role == "detector"}
    there = _on_devices(plan)
    left_out = dict.fromkeys(name for name, known in _known(plan, limits).items() if not known and name not in there)
    if None in transfers.values():
        left_out["transfer"] = None
    receivers = {}
    for number, name in enumerate(plan.receivers):
        serving = [stage for rank, stage in transfers.items() if stage and number in _served(plan, rank)]
        slowest = max(serving, key=lambda stage: stage.frame_s, default=None)
        own = [stage for stage in work[number] if stage.frame_s]
        total = sum(stage.frame_s for stage in own)
        rates = [1 / total if total else math.inf, slowest.hz if slowest else math.inf]
        receivers[name] = Receiving((*([slowest] if slowest else []), *own), min(rates))
    busy = sum(stage.frame_s for stages in work.values() for stage in stages)
    busy += sum(stage.frame_s for stage in transfers.values() if stage)
    disk = Stage("disk", "all receivers", _plain_bytes(plan) / limits.bare["save none"], _plain(plan))
    shared = tuple(stage for stage in (disk, Stage("processors", f"{cores} cores", busy / cores)) if stage.frame_s)
    hz = min([*(one.hz for one in receivers.values()), *(stage.hz for stage in shared)], default=math.inf)
    return Prediction(receivers, shared, hz, _slowest(receivers, shared, hz), tuple(left_out), there)


def prediction_figures(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as plain data; rates are null where nothing limits them."""

    def stage(one: Stage) -> dict[str, Any]:
        return {"name": one.name, "place": one.place, "frame_s": one.frame_s, "nodes": list(one.nodes)}

    def rate(hz: float) -> float | None:
        return None if math.isinf(hz) else hz

    return {
        "hz": rate(prediction.hz),
        "bottleneck": None if prediction.bottleneck is None else stage(prediction.bottleneck),
        "receivers": {
            name: {"hz": rate(one.hz), "stages": [stage(each) for each in one.stages]}
            for name, one in prediction.receivers.items()
        },
        "shared": [stage(one) for one in prediction.shared],
        "left_out": list(prediction.left_out),
        "on_devices": list(prediction.on_devices),
    }


def _slowest(receivers: Mapping[str, Receiving], shared: Sequence[Stage], hz: float) -> Stage | None:
    """Return the stage to blame for a rate: of the slowest receiver its largest, if no shared one is as slow."""
    if math.isinf(hz):
        return None
    blamed = [stage for stage in shared if stage.hz <= hz]
    for one in receivers.values():
        if one.hz <= hz:
            blamed += one.stages
    own = [stage for stage in blamed if stage.hz <= hz]
    return max(own or blamed, key=lambda stage: stage.frame_s)


def _served(plan: Plan, rank: int) -> set[int]:
    modules = next(role.modules for role in plan.ranks if role.rank == rank)
    return {r for gdt in plan.gdts if any(part.module in modules for part in gdt.parts) for r in gdt.receivers}


def _transfer(plan: Plan, role: RankRole, limits: Limits) -> Stage | None:
    """Return the transfer of a detector rank; None where its cost is not known."""
    seconds = 0.0
    for gdt in plan.gdts:
        for part in gdt.parts:
            if part.module not in role.modules:
                continue
            size = part.width * part.height * gdt.pixel_bytes
            rate = limits.transfer_rate(size)
            if rate is None or gdt.packed:
                return None
            whole = part.width * gdt.pixel_bytes == gdt.layout.pitch
            seconds += size / (rate if whole else rate * limits.rectangles) / gdt.rule.step
    return Stage("transfer", f"detector rank {role.rank}", seconds)


def _share(step: Step, receiver: int) -> float:
    """Return how many of the frames of the detector enter a node at a receiver, for each of them."""
    numbering = step.numbering
    here = sum(place == receiver for place in numbering.receivers)
    share = 1.0 if numbering.parts or numbering.everywhere else here / len(numbering.receivers)
    return share / numbering.rule.step


def _work(plan: Plan, receiver: int, limits: Limits) -> Iterator[Stage]:
    """Yield what a receiver does for each frame of the detector."""
    steps = {step.name: step.at(receiver) for step in plan.steps if receiver in step.numbering.receivers}
    known = _known(plan, limits)
    threads = max(1, plan.threads[receiver])
    yield Stage("copying", plan.receivers[receiver], sum(_copy_s(gdt, receiver, limits) for gdt in plan.gdts))
    kernels, nodes = 0.0, list[str]()
    for kernel in plan.kernels:
        first = steps.get(kernel.nodes[0])
        if first is None or receiver in device_of(plan, kernel):
            continue
        share = _share(first, receiver)
        seconds = share * _kernel_s(kernel, steps, limits) / threads
        kernels += seconds
        nodes += kernel.nodes if seconds else ()
    yield Stage("kernels", plan.receivers[receiver], kernels, tuple(nodes))
    for name, channel in plan.channels.items():
        if name in steps and known[name]:
            size = math.prod(steps[name].before.shape) * np.dtype(channel.dtype).itemsize
            seconds = _saving_s(channel.compression, channel.dtype, size, limits, threads) or 0.0
            kind = "saving" if channel.compression == "none" else "compression"
            yield Stage(kind, plan.receivers[receiver], _share(steps[name], receiver) * seconds, (name,))


def _on_devices(plan: Plan) -> tuple[str, ...]:
    """Return the nodes that are computed on devices, at any receiver."""
    return tuple(name for kernel in plan.kernels if device_of(plan, kernel) for name in kernel.nodes)


def _copy_s(gdt: Gdt, receiver: int, limits: Limits) -> float:
    """Return the seconds to copy the frames of a flow at a receiver, for each frame of the detector."""
    here = sum(buffer.receiver == receiver for buffer in gdt.buffers)
    size = gdt.source.area * gdt.pixel_bytes
    rate = limits.copy_rate(size)
    if gdt.overrun != "continue" or gdt.rule.bounded or rate is None:
        return 0.0
    return size / rate * here / len(gdt.buffers) / gdt.rule.step


def _known(plan: Plan, limits: Limits) -> dict[str, bool]:
    """Return which nodes have costs that are known."""
    costs: dict[str, bool] = {}
    for step in plan.steps:
        node, known = step.node, False
        if isinstance(node, Map):
            known = node.turns or (len(step.sources) == 1 and node.in_strips(1))
        elif isinstance(node, Reduce):
            known = node.reads(step.before) == () or node.costs_as(step.before) is not None
        elif isinstance(node, Select):
            known = True
        elif isinstance(node, Sink) and step.name in plan.channels:
            channel = plan.channels[step.name]
            known = not channel.sparse and _saving_s(channel.compression, channel.dtype, 1, limits, 1) is not None
        costs[step.name] = known
    return costs


def _kernel_s(kernel: Kernel, steps: Mapping[str, Step], limits: Limits) -> float:
    """Return the seconds for one frame that enters a kernel, without those of what was not measured."""
    ends = [steps[name] for name in kernel.ends if isinstance(steps[name].node, Reduce)]
    reduced = [step for step in ends if cast(Reduce, step.node).costs_as(step.before) is not None]
    if not kernel.maps:
        return sum(_reduce_s(step, limits) for step in reduced)
    nodes = [cast(Map, steps[name].node) for name in kernel.maps]
    if not all(node.turns or node.in_strips(1) for node in nodes) or kernel.others:
        return 0.0
    shape = cast(FrameSpec, steps[kernel.maps[-1]].after).shape
    pixels = math.prod(shape)
    if kernel.makes:
        cost = limits.pixel_s("make")
        return pixels * (max(cost, limits.pixel_s("correct")) if reduced else cost)
    if not reduced:
        return 0.0
    parts = demanded(shape, [cast(Reduce, step.node).reads(step.before) for step in reduced])
    computed = sum(part.area for part in parts)
    case = limits.pixel_s("correct") if 2 * computed > pixels else limits.pixel_s("regions") / REGION_SHARE
    return computed * case


def _reduce_s(step: Step, limits: Limits) -> float:
    node = cast(Reduce, step.node)
    rects = node.reads(step.before)
    pixels = math.prod(step.before.shape) if rects is None else sum(rect.area for rect in rects)
    return pixels * limits.pixel_s(node.costs_as(step.before) or "statistics")


def _saving_s(compression: str, dtype: str, size: int, limits: Limits, threads: int) -> float | None:
    """Return the seconds to save so many bytes of frames; None where that was not measured."""
    if compression == "none":
        return size / limits.reached["save none"]
    if compression != "bslz4":
        return None
    case = "save float32" if np.dtype(dtype).kind == "f" else "save bslz4"
    codec, whole = size / limits.bare[case], size / limits.reached[case]
    return codec / threads + max(0.0, whole - codec)


def _plain(plan: Plan) -> tuple[str, ...]:
    return tuple(name for name, channel in plan.channels.items() if channel.compression == "none")


def _plain_bytes(plan: Plan) -> float:
    """Return the bytes that all receivers write uncompressed for each frame of the detector."""
    total = 0.0
    for step in plan.steps:
        if step.name in _plain(plan):
            channel = plan.channels[step.name]
            places = dict.fromkeys(step.numbering.receivers)
            size = np.dtype(channel.dtype).itemsize
            total += sum(_share(step, r) * math.prod(step.at(r).before.shape) * size for r in places)
    return total
