"""A plan as the calls of librashpa that set up its data flows, in the order of the RASHPA deck (ESRF, 2020)."""

from lima2cli.detectors.calls import MANAGER, ByteCount, Call, Flags, GdtCalls, Handle, ReceiverHandle
from lima2cli.plan.records import Gdt, Plan

GDT, BUFFER = Handle("GDT"), Handle("buffer")

ENDLESS = 0
"""Count of slices without end. The deck has no such flow: an assumption of ours."""


def rashpa_calls(plan: Plan) -> tuple[GdtCalls, ...]:
    """The calls of each data flow, flows in the order of the plan. They need the manager and the receivers."""
    return tuple(_gdt_calls(plan, gdt) for gdt in plan.gdts)


def _gdt_calls(plan: Plan, gdt: Gdt) -> GdtCalls:
    rule = gdt.rule
    count = rule.count if rule.count is not None else gdt.selected
    placement = "RASHPA_OVERWRITE" if rule.overwrite else "RASHPA_CONCATENATE"
    cycle = "RASHPA_CIRCULAR" if rule.circular else "RASHPA_ONESHOT"
    asked = (("RASHPA_EV_GRP", gdt.group_event > 0), ("RASHPA_EV_ATEND", gdt.end_event))
    events = Flags(tuple(name for name, on in asked if on))
    places = (
        (ReceiverHandle(plan.receivers[buffer.receiver]), plan.regions[buffer.region].name) for buffer in gdt.buffers
    )
    return (
        Call("rashpaManagerCreateGDT", (MANAGER, gdt.name, gdt.dataset_name), GDT.name),
        _source(gdt),
        Call("rashpaGDTSetAlignment", (GDT, *gdt.alignment)),
        Call("rashpaGDTSetSourceSlices", (GDT, rule.start, ENDLESS if count is None else count, rule.step)),
        Call("rashpaGDTSetRules", (GDT, rule.blocks, rule.start_slot, Flags((placement, cycle)))),
        Call("rashpaGDTSetEvents", (GDT, gdt.group_event, events)),
        Call("rashpaManagerGetGDTBuffer", (MANAGER, GDT, ByteCount(gdt.buffer_size)), BUFFER.name),
        *(Call("rashpaBufferCreateLocalBufferInMemSpace", (BUFFER, *place)) for place in places),
    )


def _source(gdt: Gdt) -> Call:
    if gdt.full:
        return Call("rashpaGDTSetSourceFullImage", (GDT,))
    source = gdt.source
    return Call("rashpaGDTSetSourceImage", (GDT, source.x, source.width, source.y, source.height))
