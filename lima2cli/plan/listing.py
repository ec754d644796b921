"""A plan as a listing in C of the calls of librashpa that set it up, as in those of the RASHPA deck (ESRF, 2020)."""

import json

from lima2cli import __version__
from lima2cli.detectors.calls import Argument, ByteCount, Call, Flags, Handle, ReceiverHandle
from lima2cli.plan.rashpa_calls import rashpa_calls
from lima2cli.plan.records import Plan

TYPES = {"rashpaManagerCreateGDT": "rashpa_gdt_t *", "rashpaManagerGetGDTBuffer": "rashpa_buffer_t* "}
"""Of results, written as in the deck."""

BYTES = "lbuff_bytes"


def c_listing(plan: Plan) -> str:
    """C statements, one block per flow; ``manager_pt`` and one ``<receiver>_pt`` for each receiver are the caller's
    (a ``-`` in a receiver's name becomes ``_``)."""
    lines = [f"/* {plan.name}: GDT set-up by lima2 {__version__} */", ""]
    for calls in rashpa_calls(plan):
        statements = [line for call in calls for line in _statements(call)]
        lines += ["{", *(f"    {line}" if line else "" for line in statements), "}", ""]
    return "\n".join(lines)


def _statements(call: Call) -> list[str]:
    """A call, and before it the number of bytes that it is given."""
    said = f"{call.function}({', '.join(map(_argument, call.arguments))});"
    sizes = [argument.size for argument in call.arguments if isinstance(argument, ByteCount)]
    before = [line for size in sizes for line in ("", f"ssize_t {BYTES} = {_bytes(size)};")]
    return [*before, said if call.result is None else f"{TYPES[call.function]}{call.result} = {said}"]


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
