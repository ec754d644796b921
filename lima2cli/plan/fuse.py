"""Turn steps into kernels: computed together, while a strip of a frame is in cache.

The passes, in order, each from kernels to kernels:

drop_unread       maps whose frames are unused are left out
join_maps         pixel-wise neighbours become one kernel, where no other node reads the frames between them; formulae
                  of one source, cuts and flips are such neighbours, binning and quarter turns are not
join_reductions   reductions that take strips join the pixel-wise kernel whose result they read
keep_what_is_read frames that only a kernel's own reductions read are never made whole

Results are those of the steps one by one: pixels bit for bit, sums except for the order of their terms.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lima2cli.nodes.base import Map, Reduce, Sink
from lima2cli.plan.ir import Kernel, Step

StepsByName = Mapping[str, Step]
Kernels = tuple[Kernel, ...]


def fuse_steps(steps: Sequence[Step], *, on: bool = True) -> Kernels:
    """Return the kernels of steps that are in the order of the data; ``on`` False = one each."""
    by_name = {step.name: step for step in steps}
    kernels = tuple(_alone(step) for step in steps)
    verify(kernels, by_name)
    for one in PASSES if on else ():
        kernels = one(kernels, by_name)
        verify(kernels, by_name)
    return kernels


def drop_unread(kernels: Kernels, steps: StepsByName) -> Kernels:
    """Leave out unused maps, from the end of the data on, so that maps read only by left out ones go too."""
    read: set[str] = set()
    kept = []
    for kernel in reversed(kernels):
        if kernel.ends or not isinstance(steps[kernel.maps[-1]].node, Map) or kernel.maps[-1] in read:
            kept.append(kernel)
            read.update(kernel.sources)
    return tuple(reversed(kept))


def join_maps(kernels: Kernels, steps: StepsByName) -> Kernels:
    """Join maps to chains; each stands where its first map stood, before all that read it. Within it cuts and flips go
    first, see `kernels.chain`.
    """
    readers = _readers(kernels)
    joined: list[Kernel] = []
    for kernel in kernels:
        at = _chain_before(kernel, joined, steps)
        if at is not None and readers[kernel.source] == 1 and in_strips(kernel, steps):
            joined[at] = replace(joined[at], maps=joined[at].maps + kernel.maps, makes=kernel.makes)
        else:
            joined.append(kernel)
    return tuple(joined)


def join_reductions(kernels: Kernels, steps: StepsByName) -> Kernels:
    """Join the reductions of one pixel-wise result: they share its strips."""
    joined: list[Kernel] = []
    for kernel in kernels:
        at = _chain_before(kernel, joined, steps)
        if at is not None and _takes_strips(kernel, steps):
            joined[at] = replace(joined[at], ends=joined[at].ends + kernel.ends)
        else:
            joined.append(kernel)
    return tuple(joined)


def keep_what_is_read(kernels: Kernels, steps: StepsByName) -> Kernels:
    """Mark the frames that a kernel makes for others: those that another kernel begins with."""
    readers = _readers(kernels)
    return tuple(replace(kernel, makes=tuple(name for name in kernel.makes if name in readers)) for kernel in kernels)


PASSES: tuple[Callable[[Kernels, StepsByName], Kernels], ...] = (
    drop_unread,
    join_maps,
    join_reductions,
    keep_what_is_read,
)


def verify(kernels: Kernels, steps: StepsByName) -> None:
    """Check the invariants that hold after every pass.

    Each node is in one kernel at most, and all that save or count are in one; frames exist before they are read; maps
    are chained in the order of the data, within one flow, and only reductions that take strips stand behind them.

    Raises: AssertionError where the compiler is wrong.
    """
    known = {flow for step in steps.values() for flow in step.numbering.flows}
    names: list[str] = []
    for kernel in kernels:
        assert known.issuperset(kernel.sources), f"{kernel.nodes} before {kernel.sources}"
        reads = [kernel.source, *kernel.maps]
        for name, source in zip(kernel.maps, reads, strict=False):
            assert steps[name].source == source, f"{name} reads {steps[name].source}, not {source}"
        assert all(steps[name].source == reads[-1] for name in kernel.ends), kernel.nodes
        assert {steps[name].flow for name in kernel.nodes} == {kernel.flow}, kernel.nodes
        assert not kernel.fused or in_strips(kernel, steps), kernel.nodes
        assert set(kernel.makes) <= set(kernel.maps[-1:]) | set(kernel.ends), kernel.nodes
        known |= set(kernel.makes)
        names += kernel.nodes
    assert len(set(names)) == len(names), names
    assert all(name in names for name, step in steps.items() if not isinstance(step.node, Map))


def _alone(step: Step) -> Kernel:
    """Return the kernel of one step; a sink hands its frames on."""
    if isinstance(step.node, Reduce):
        return Kernel(step.flow, step.source, (), (step.name,), ())
    if isinstance(step.node, Sink):
        return Kernel(step.flow, step.source, (), (step.name,), (step.name,))
    return Kernel(step.flow, step.source, (step.name,), (), (step.name,), step.sources[1:])


def _chain_before(kernel: Kernel, others: Sequence[Kernel], steps: StepsByName) -> int | None:
    """Return the index of the pixel-wise kernel whose result this one reads; None without one."""
    at = (i for i, other in enumerate(others) if kernel.source in other.maps[-1:] and in_strips(other, steps))
    return next(at, None)


def _readers(kernels: Kernels) -> dict[str, int]:
    counts: dict[str, int] = {}
    for kernel in kernels:
        for source in kernel.sources:
            counts[source] = counts.get(source, 0) + 1
    return counts


def in_strips(kernel: Kernel, steps: StepsByName) -> bool:
    """Return True if its maps are computed strip by strip: pixel-wise, formulae of one source, cuts and flips."""
    return bool(kernel.maps) and all(pixelwise(steps[name]) for name in kernel.maps)


def pixelwise(step: Step) -> bool:
    """Return True if the step is a map that is computed strip by strip, see `in_strips`."""
    return isinstance(step.node, Map) and step.node.in_strips(len(step.sources))


def _takes_strips(kernel: Kernel, steps: StepsByName) -> bool:
    nodes = [steps[name].node for name in kernel.nodes]
    return all(isinstance(node, Reduce) and node.strips for node in nodes)
