"""Calls of librashpa as plain records: what a plan asks of it, whether they are printed or made."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Handle:
    """A pointer, by the name of the variable that holds it: the manager, or what an earlier call returned."""

    name: str


@dataclass(frozen=True)
class ReceiverHandle:
    """A pointer to a receiver, by the receiver's name."""

    receiver: str


@dataclass(frozen=True)
class Flags:
    """Constants of librashpa, joined by ``|``."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class ByteCount:
    """A number of bytes; the listings keep it in a variable of its own."""

    size: int


Argument = Handle | ReceiverHandle | Flags | ByteCount | str | int
"""A str is a string of C."""


@dataclass(frozen=True)
class Call:
    """One call; ``result`` names the variable that keeps what it returns, None where that is of no use."""

    function: str
    arguments: tuple[Argument, ...]
    result: str | None = None


GdtCalls = tuple[Call, ...]
"""The calls that set up one data flow, in order; their results are known to each other only."""

MANAGER = Handle("manager_pt")
"""The caller's manager."""
