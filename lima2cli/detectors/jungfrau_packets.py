"""UDP packets of JUNGFRAU modules, header version 2 of slsDetectorPackage, and many datagrams per system call."""

import ctypes
import errno
import os
import select
import socket

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import EnvironmentUnfit

ROWS, COLUMNS = 512, 1024
"""Pixels of a module."""

PACKETS = 128
"""Packets of a frame of a module."""

PIXELS = ROWS * COLUMNS // PACKETS
"""Pixels of a packet: whole rows."""

DETECTOR_TYPE, VERSION = 3, 2

TICK_NS = 100
"""Unit of the detector's times."""

ABSENT = 0x8000
"""Value of pixels whose packet did not arrive. Gain bits 2 are no stage: node `gain` makes NaN of it."""

PACKET = np.dtype(
    [
        ("frame", "<u8"), ("exposure", "<u4"), ("packet", "<u4"), ("bunch", "<u8"), ("timestamp", "<u8"),
        ("module", "<u2"), ("row", "<u2"), ("column", "<u2"), ("spec2", "<u2"), ("spec3", "<u4"), ("spec4", "<u2"),
        ("type", "u1"), ("version", "u1"), ("pixels", "<u2", (PIXELS,)),
    ]
)  # fmt: skip
"""One packet, 8240 bytes."""


FORCE = 33
"""Option SO_RCVBUFFORCE of Linux, which socket.py lacks: a size above net.core.rmem_max, for root."""


MEMORY_INFO, DROPS = 55, 8
"""Option SO_MEMINFO of Linux, which socket.py lacks: numbers of a socket (uint32), among them datagrams dropped."""

LARGEST_BUFFER = (1 << 30) - 1
"""Maximal bytes of the buffer of a socket."""

VECTOR = np.dtype([("base", np.uintp), ("length", np.uintp)])
"""struct iovec."""

HEADER = np.dtype(
    [
        ("name", np.uintp), ("name_length", np.uint32), ("vectors", np.uintp), ("vector_count", np.uintp),
        ("control", np.uintp), ("control_length", np.uintp), ("flags", np.intc),
    ],
    align=True,
)  # fmt: skip
"""struct msghdr."""

MESSAGE = np.dtype([("header", HEADER), ("length", np.uint32)], align=True)
"""struct mmsghdr."""


class Datagrams:
    """Rows of ``memory``, (n, bytes) uint8, one datagram each."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        count, size = memory.shape
        self._memory = memory  # the kernel reads or writes there
        self._vectors = np.zeros(count, VECTOR)
        self._vectors["base"] = memory.ctypes.data + memory.strides[0] * np.arange(count)
        self._vectors["length"] = size
        self._messages = np.zeros(count, MESSAGE)
        header = self._messages["header"]
        header["vectors"] = self._vectors.ctypes.data + VECTOR.itemsize * np.arange(count)
        header["vector_count"] = 1
        self._first = self._messages.ctypes.data
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.lengths: NDArray[np.uint32] = self._messages["length"]
        """Number of bytes of each datagram received, as they were sent."""

    def receive(self, descriptor: int) -> int:
        """Return how many have arrived, from row 0 on; does not wait.

        Raises:
            OSError: the system refuses.
        """
        flags = socket.MSG_DONTWAIT | socket.MSG_TRUNC
        return self._call("recvmmsg", descriptor, 0, len(self._messages), flags, None)

    def send(self, descriptor: int, first: int, count: int) -> int:
        """Send rows ``first`` and following; return how many were sent.

        Raises:
            OSError: the system refuses.
        """
        return self._call("sendmmsg", descriptor, first, count, 0)

    def _call(self, name: str, descriptor: int, first: int, count: int, *rest: object) -> int:
        start = ctypes.c_void_p(self._first + first * MESSAGE.itemsize)
        done: int = getattr(self._libc, name)(descriptor, start, count, *rest)
        if done >= 0:
            return done
        code = ctypes.get_errno()
        if code in (errno.EAGAIN, errno.EINTR, errno.ECONNREFUSED):  # the last: no socket listened to an earlier one
            return 0
        raise OSError(code, os.strerror(code))


class Inbox:
    """A bound UDP socket and the datagrams that have arrived at it: rows of ``memory``, (n, bytes) uint8."""

    def __init__(self, address: str, port: int, memory: NDArray[np.uint8], buffer: int) -> None:
        """Bind a socket; ``buffer`` bytes of the kernel's memory are asked for.

        Raises:
            EnvironmentUnfit: it can't be bound.
        """
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((address, port))
        except OSError as error:
            self._socket.close()
            raise EnvironmentUnfit(f"cannot listen at {address}, UDP port {port}: {error.strerror}") from error
        self.buffer = self._reserve(buffer)
        """Bytes that the kernel does give."""
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._datagrams = Datagrams(memory)
        self.lengths = self._datagrams.lengths

    @property
    def place(self) -> tuple[str, int]:
        """Address and port."""
        address, port = self._socket.getsockname()
        return address, port

    def _reserve(self, buffer: int) -> int:
        asked = min(buffer, LARGEST_BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, asked)
        if (granted := self._given()) < asked:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, FORCE, asked)
            except PermissionError:
                return granted
        return self._given()

    def _given(self) -> int:
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # Linux reports twice what it takes

    @property
    def dropped(self) -> int:
        """Return the number of datagrams that the kernel had no memory for, since the socket was opened.

        0 where it does not count them.
        """
        try:
            info = self._socket.getsockopt(socket.SOL_SOCKET, MEMORY_INFO, 4 * (DROPS + 1))
        except OSError:
            return 0
        numbers = np.frombuffer(info, np.uint32)
        return int(numbers[DROPS]) if len(numbers) > DROPS else 0

    def receive(self, patience_s: float) -> int:
        """Return how many datagrams have arrived, from row 0 on; 0 after ``patience_s`` seconds without any.

        Raises:
            OSError: the system refuses.
        """
        if not self._poll.poll(patience_s * 1e3):
            return 0
        return self._datagrams.receive(self._socket.fileno())

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
