"""The C API of librashpa, by cffi in ABI mode, and its calls as plain records."""

from collections.abc import Mapping, Sequence
from typing import Any

from lima2cli.dataclass import dataclass
from lima2cli.errors import EnvironmentUnfit, RunFailed


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
"""Type of an argument; a str is a string of C."""


@dataclass(frozen=True)
class RashpaCall:
    """One call; ``result`` names the variable that keeps what it returns, None where that is of no use."""

    function: str
    arguments: tuple[Argument, ...]
    result: str | None = None


GdtCalls = tuple[RashpaCall, ...]
"""The calls that set up one data flow, in order; their results are known to each other only."""

MANAGER = Handle("manager_pt")
"""The caller's manager."""


LIBRARY = "librashpa.so"

DECK = """
typedef struct rashpa_manager rashpa_manager_t;
typedef struct rashpa_receiver rashpa_receiver_t;
typedef struct rashpa_gdt rashpa_gdt_t;
typedef struct rashpa_buffer rashpa_buffer_t;

rashpa_gdt_t *rashpaManagerCreateGDT(rashpa_manager_t *, const char *name, const char *dataset);
void rashpaGDTSetSourceFullImage(rashpa_gdt_t *);
void rashpaGDTSetSourceImage(rashpa_gdt_t *, long x0, long width, long y0, long height);
void rashpaGDTSetAlignment(rashpa_gdt_t *, long bits, long row_bits, long header_bytes, long footer_bytes);
void rashpaGDTSetSourceSlices(rashpa_gdt_t *, long start, long count, long period);
void rashpaGDTSetRules(rashpa_gdt_t *, long blocks_per_group, long start_slot, long flags);
void rashpaGDTSetEvents(rashpa_gdt_t *, long period, long mask);
rashpa_buffer_t *rashpaManagerGetGDTBuffer(rashpa_manager_t *, rashpa_gdt_t *, ssize_t bytes);
void rashpaBufferCreateLocalBufferInMemSpace(rashpa_buffer_t *, rashpa_receiver_t *, const char *memspace);
"""

ASSUMED = """
rashpa_manager_t *rashpaManagerCreate(const char *detector);
rashpa_receiver_t *rashpaManagerGetReceiver(rashpa_manager_t *, const char *name);
void rashpaManagerStart(rashpa_manager_t *);
void rashpaManagerStop(rashpa_manager_t *);
void rashpaManagerDestroy(rashpa_manager_t *);
"""

CONSTANTS: Mapping[str, int] = {
    "RASHPA_CONCATENATE": 1, "RASHPA_OVERWRITE": 2, "RASHPA_CIRCULAR": 4, "RASHPA_ONESHOT": 8,
    "RASHPA_EV_GRP": 1, "RASHPA_EV_ATEND": 2,
}  # fmt: skip


def load(library: str) -> tuple[Any, Any]:
    """Return cffi's FFI, and the library with all functions, found as the dynamic loader does (dlopen(3)).

    Raises:
        EnvironmentUnfit: with what is missing.
    """
    try:
        from cffi import FFI
    except ImportError as error:
        raise EnvironmentUnfit(f"a RASHPA detector needs cffi ({error}): pip install 'lima2cli[rashpa]'") from error
    ffi = FFI()
    ffi.cdef(DECK + ASSUMED)
    try:
        loaded = ffi.dlopen(library)
    except OSError as error:
        reason = str(error).partition(": ")[2].partition(".  Additionally")[0] or str(error)  # else of cffi's ways
        raise EnvironmentUnfit(
            f"a RASHPA detector needs {library}, which cannot be loaded ({reason}); install it, add its folder to "
            "LD_LIBRARY_PATH, or give the detector its path as `library`"
        ) from error
    absent = [name for name in dir(loaded) if not hasattr(loaded, name)]
    if absent:
        raise EnvironmentUnfit(
            f"{library} is not the librashpa that lima2 assumes: it has no {', '.join(sorted(absent))}"
        )
    return ffi, loaded


class Manager:
    """A manager of librashpa: data flows set up, started, stopped.

    Every method raises `RunFailed` where the library gives no pointer.
    """

    def __init__(self, library: str, detector: str) -> None:
        """Load the library and make a manager for a detector.

        Raises:
            EnvironmentUnfit: the library is missing.
            RunFailed: it gives no manager.
        """
        self._ffi, self._library = load(library)
        self._receivers: dict[str, Any] = {}
        self._manager = self._call("rashpaManagerCreate", self._text(detector))

    def set_up(self, flows: Sequence[GdtCalls]) -> None:
        """Make the calls of all data flows, in order."""
        for calls in flows:
            known = {MANAGER.name: self._manager}
            for call in calls:
                self._make(call, known)

    def start(self) -> None:
        """Start the acquisition."""
        self._library.rashpaManagerStart(self._manager)

    def stop(self) -> None:
        """Stop the acquisition."""
        self._library.rashpaManagerStop(self._manager)

    def close(self) -> None:
        """Release the manager, and all that it made; only once."""
        self._library.rashpaManagerDestroy(self._manager)

    def _make(self, call: RashpaCall, known: dict[str, Any]) -> None:
        result = self._call(call.function, *(self._value(argument, known) for argument in call.arguments))
        if call.result is not None:
            known[call.result] = result

    def _call(self, function: str, *values: Any) -> Any:
        """Return what a function returns: a pointer that is not NULL, or None."""
        result = getattr(self._library, function)(*values)
        if result == self._ffi.NULL:
            shown = [self._ffi.string(value).decode() for value in values if self._is_text(value)]
            raise RunFailed(f"librashpa: {function} returned no pointer ({', '.join(shown) or 'no names'})")
        return result

    def _value(self, argument: Argument, known: Mapping[str, Any]) -> Any:
        if isinstance(argument, Handle):
            return known[argument.name]
        if isinstance(argument, ReceiverHandle):
            return self._receiver(argument.receiver)
        if isinstance(argument, Flags):
            return sum(CONSTANTS[name] for name in argument.names)
        if isinstance(argument, ByteCount):
            return argument.size
        return self._text(argument) if isinstance(argument, str) else argument

    def _receiver(self, name: str) -> Any:
        if name not in self._receivers:
            self._receivers[name] = self._call("rashpaManagerGetReceiver", self._manager, self._text(name))
        return self._receivers[name]

    def _text(self, text: str) -> Any:
        return self._ffi.new("char[]", text.encode())

    def _is_text(self, value: Any) -> bool:
        return isinstance(value, self._ffi.CData) and self._ffi.typeof(value).item.cname == "char"
