"""A plan as the calls of librashpa that set up its data flows, and as a listing of them in C."""

import json

from lima2cli import __version__
from lima2cli.detectors.librashpa import (
    MANAGER,
    Argument,
    ByteCount,
    Flags,
    GdtCalls,
    Handle,
    RashpaCall,
    ReceiverHandle,
)
from lima2cli.plan.ir import Gdt, Plan

GDT, BUFFER = Handle("GDT"), Handle("buffer")

ENDLESS = 0
"""Count of slices without end. The deck has no such flow: an assumption of ours."""


def rashpa_calls(plan: Plan) -> tuple[GdtCalls, ...]:
    """Return the calls of each data flow, flows in the order of the plan. They need the manager and the receivers."""
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
        RashpaCall("rashpaManagerCreateGDT", (MANAGER, gdt.name, gdt.dataset_name), GDT.name),
        _source(gdt),
        RashpaCall("rashpaGDTSetAlignment", (GDT, *gdt.alignment)),
        RashpaCall("rashpaGDTSetSourceSlices", (GDT, rule.start, ENDLESS if count is None else count, rule.step)),
        RashpaCall("rashpaGDTSetRules", (GDT, rule.blocks, rule.start_slot, Flags((placement, cycle)))),
        RashpaCall("rashpaGDTSetEvents", (GDT, gdt.group_event, events)),
        RashpaCall("rashpaManagerGetGDTBuffer", (MANAGER, GDT, ByteCount(gdt.buffer_size)), BUFFER.name),
        *(RashpaCall("rashpaBufferCreateLocalBufferInMemSpace", (BUFFER, *place)) for place in places),
    )


def _source(gdt: Gdt) -> RashpaCall:
    if gdt.full:
        return RashpaCall("rashpaGDTSetSourceFullImage", (GDT,))
    source = gdt.source
    return RashpaCall("rashpaGDTSetSourceImage", (GDT, source.x, source.width, source.y, source.height))


TYPES = {"rashpaManagerCreateGDT": "rashpa_gdt_t *", "rashpaManagerGetGDTBuffer": "rashpa_buffer_t* "}
"""C types of results, written as in the deck."""

BYTES = "lbuff_bytes"


def c_listing(plan: Plan) -> str:
    """Return C statements, one block per flow; ``manager_pt`` and one ``<receiver>_pt`` for each receiver are the
    caller's (a ``-`` in a receiver's name becomes ``_``).
    """
    lines = [f"/* {plan.name}: GDT set-up by lima2 {__version__} */", ""]
    for calls in rashpa_calls(plan):
        statements = [line for call in calls for line in _statements(call)]
        lines += ["{", *(f"    {line}" if line else "" for line in statements), "}", ""]
    return "\n".join(lines)


def _statements(call: RashpaCall) -> list[str]:
    """Return a call, and before it the number of bytes that it is given."""
    statement = f"{call.function}({', '.join(map(_argument, call.arguments))});"
    sizes = [argument.size for argument in call.arguments if isinstance(argument, ByteCount)]
    before = [line for size in sizes for line in ("", f"ssize_t {BYTES} = {_bytes(size)};")]
    return [*before, statement if call.result is None else f"{TYPES[call.function]}{call.result} = {statement}"]


def _argument(argument: Argument) -> str:
    if isinstance(argument, Handle):
        return argument.name
    if isinstance(argument, ReceiverHandle):
        return f"{argument.receiver.replace('-', '_')}_pt"
    if isinstance(argument, Flags):
        return " | ".join(argument.names) or "0"
    if isinstance(argument, ByteCount):
        return BYTES
    return json.dumps(argument) if isinstance(argument, str) else str(argument)


def _bytes(size: int) -> str:
    for factor, text in ((2**20, "(1024*1024)"), (2**10, "1024")):
        if size % factor == 0:
            return f"{size // factor}*{text}"
    return str(size)
