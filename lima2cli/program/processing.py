"""What a program of the user's on a receiver can have: flows, and nodes whose frames are made whole."""

from collections.abc import Mapping, Sequence

from lima2cli.nodes.base import Sink
from lima2cli.plan.records import Gdt, Kernel, Plan, Step
from lima2cli.program.records import Processing
from lima2cli.spec import FrameSpec, SparseSpec


def processing_of(
    plan: Plan, receiver: int, gdts: Sequence[Gdt], kernels: Sequence[Kernel], steps: Mapping[str, Step]
) -> Processing | None:
    """Of one receiver, which has these flows, kernels and steps; None where the plan has no such program."""
    if plan.processing is None:
        return None
    sources = {gdt.flow: plan.sources[gdt.name] for gdt in gdts}
    for name in (name for kernel in kernels for name in kernel.makes if not isinstance(steps[name].node, Sink)):
        after = steps[name].after
        if isinstance(after, FrameSpec) and not isinstance(after, SparseSpec):
            sources[name] = after
    return Processing(plan.processing, plan.receivers[receiver], len(plan.receivers), sources)
