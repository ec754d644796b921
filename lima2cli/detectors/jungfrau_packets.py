"""UDP packets of JUNGFRAU modules (header version 2 of slsDetectorPackage), and emulated modules that send them."""

import ctypes
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.detectors.scenes import Scene
from lima2cli.detectors.sources import PixelSource, Pool
from lima2cli.errors import EnvironmentUnfit
from lima2cli.frames import Array, DatasetInfo, DetectorInfo, Files
from lima2cli.geometry import Rect

if TYPE_CHECKING:
    from lima2cli.detectors.jungfrau import Jungfrau


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
"""Value of pixels whose packet did not arrive. Gain bits 2 are not a stage: node `gain` makes NaN of it."""

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


DUTY = 0.8
"""Share of a period in which packets are sent."""

SHORTEST_PAUSE_S = 0.5e-3


class ModuleEmulator:
    """Sender of the packets of one module, in a thread of its own."""

    def __init__(self, config: "Jungfrau", module: int, photons: PixelSource) -> None:
        """Make a sender; ``photons`` are those that the module sees, frames (n, 512, 1024) uint16."""
        assert config.emulate is not None
        self.module, self._emulation, self._first = module, config.emulate, config.first_frame
        self._turn = -1 if config.rotated(module) else 1
        self._place = (config.places() or {module: (0, 0)})[module]
        self._codes, self._photons = config.emulate.codes(config.gain_mode), photons
        self._frames = self._encode(photons.frames) if isinstance(photons, Pool) else None
        self._ready: dict[int, tuple[Array, Datagrams]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: Exception | None = None
        self.limit = 0
        """Number of frames that are sent."""

    def _encode(self, photons: Array) -> Array:
        """Return packets (n, 128) of frames (n, 512, 1024) in photons."""
        packets = np.zeros((len(photons), PACKETS), PACKET)
        packets["packet"] = np.arange(PACKETS)
        packets["row"], packets["column"] = self._place
        packets["module"], packets["type"], packets["version"] = self.module, DETECTOR_TYPE, VERSION
        turned = photons[:, :: self._turn, :: self._turn].reshape(len(photons), PACKETS, PIXELS)
        packets["pixels"] = self._codes[turned]
        return packets

    def _frame(self, number: int) -> tuple[Array, Datagrams]:
        """Return the packets of a frame, (128,), and the same as datagrams."""
        place = 0 if self._frames is None else number % len(self._frames)
        if self._frames is None:
            packets = self._encode(self._photons.get(range(number, number + 1)))[0]
        elif place in self._ready:
            return self._ready[place]
        else:
            packets = self._frames[place]
        self._ready[place] = packets, Datagrams(packets.view(np.uint8).reshape(PACKETS, PACKET.itemsize))
        return self._ready[place]

    def start(self, to: tuple[str, int], start_ns: int, frames: int, period_s: float, burst: int) -> None:
        """Begin to send, frame 0 at ``start_ns``; ``burst`` is how many packets may come at once."""
        self.limit = frames
        bursts = max(-(-PACKETS // burst), min(8, int(DUTY * period_s / SHORTEST_PAUSE_S)), 1)
        steps = [range(PACKETS * i // bursts, PACKETS * (i + 1) // bursts) for i in range(bursts)]
        arguments = (to, start_ns * 1e-9, period_s, steps)
        name = f"emulated module {self.module}"
        self._thread = threading.Thread(target=self._run, args=arguments, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, to: tuple[str, int], start_s: float, period_s: float, steps: Sequence[range]) -> None:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.connect(to)
                self._send(sender, start_s, period_s, steps)
        except Exception as error:  # noqa: BLE001  the thread that asks for frames reports it
            self.failure = error

    def _send(self, sender: socket.socket, start_s: float, period_s: float, steps: Sequence[range]) -> None:
        """Send the frames, each in as many bursts as ``steps``; what is late is sent no more than twice as fast."""
        number, earliest, pause = 0, 0.0, DUTY * period_s / len(steps)
        while number < self.limit:
            packets, datagrams = self._frame(number)
            packets["frame"], packets["timestamp"] = number + self._first, round(number * period_s * 1e9 / TICK_NS)
            lost = self._emulation.lost(self.module, number) if self._emulation.loss else None
            for index, step in enumerate(steps):
                left = max(start_s + number * period_s + index * pause, earliest) - time.time()
                if self._stop.wait(left) if left > 0 else self._stop.is_set():
                    return
                earliest = time.time() + pause / 2
                for run in (step,) if lost is None else _runs(~lost, step):
                    _send_all(sender, datagrams, run)
            number += 1


def _runs(chosen: NDArray[np.bool_], within: range) -> list[range]:
    """Return runs of what is chosen within a range."""
    edges = np.flatnonzero(np.diff(chosen[within.start : within.stop], prepend=False, append=False)) + within.start
    return [range(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _send_all(sender: socket.socket, datagrams: Datagrams, run: range) -> None:
    first = run.start
    while first < run.stop:
        first += datagrams.send(sender.fileno(), first, run.stop - first)


STAGE_BITS = np.array((0x0000, 0x4000, 0xC000), np.uint16)
"""Gain bits of stages 0, 1, 2."""

LARGEST_ADC = 0x3FFF

FIXED_STAGE = {"dynamic": None, "forceswitchg1": 1, "forceswitchg2": 2, "fixg1": 1, "fixg2": 2, "fixg0": 0}
"""Stage that all pixels take in the gain modes of slsDetectorPackage; None: each pixel its own."""

PHOTONS = 1 << 16
"""Numbers of photons that are coded: 0 to this - 1."""


def codes(pedestal: Sequence[float], gain: Sequence[float], photon_energy: float, gain_mode: str) -> NDArray[np.uint16]:
    """Return what a pixel sends for 0, 1, 2… photons, (65536,) uint16.

    ``pedestal`` in ADU and ``gain`` in ADU per keV, of the three stages; ``photon_energy`` in eV.
    """
    kev = np.arange(PHOTONS) * photon_energy * 1e-3
    adc = np.rint(np.asarray(pedestal)[:, np.newaxis] + np.asarray(gain)[:, np.newaxis] * kev)
    fits = (adc >= 0) & (adc <= LARGEST_ADC)
    fixed = FIXED_STAGE[gain_mode]
    stage = np.where(fits.any(axis=0), fits.argmax(axis=0), 2) if fixed is None else np.full(PHOTONS, fixed)
    chosen = np.take_along_axis(np.clip(adc, 0, LARGEST_ADC).astype(np.uint16), stage[np.newaxis], 0)[0]
    coded: NDArray[np.uint16] = chosen | STAGE_BITS[stage]
    return coded


def photon_bits(coded: NDArray[np.uint16]) -> int:
    """Return the bits of the numbers of photons below where ``coded`` (see `codes`) stays the same, at least 1."""
    changes = np.flatnonzero(coded[1:] != coded[:-1])
    return max(1, (int(changes[-1]) + 2).bit_length() - 1) if len(changes) else 1


@dataclass(frozen=True, kw_only=True)
class Charge(Scene):
    """Photons of ``scene`` as raw frames; the other fields are those of `jungfrau_charge.codes`. Users write none."""

    kind: ClassVar[str] = "charge"

    scene: Scene
    pedestal: tuple[float, ...]
    gain: tuple[float, ...]
    photon_energy: float
    gain_mode: str

    @property
    def lossy(self) -> bool:
        """See `Scene`."""
        return self.scene.lossy

    def seen_by(self, info: DetectorInfo) -> Scene:
        """See `Scene`."""
        return replace(self, scene=self.scene.seen_by(info))

    def sources(self, dataset: DatasetInfo, image: Rect, modules: Sequence[Rect], files: Files) -> list[PixelSource]:
        """See `Scene`."""
        table = codes(self.pedestal, self.gain, self.photon_energy, self.gain_mode)
        photons = DatasetInfo(dataset.name, dataset.index, "uint16", photon_bits(table))
        made = self.scene.sources(photons, image, modules, files)
        return [
            Pool(table[source.frames], source.absent) if isinstance(source, Pool) else _Coded(source, table)
            for source in made
        ]


class _Coded(PixelSource):
    """A source of frames that are coded as they are asked for."""

    def __init__(self, photons: PixelSource, table: NDArray[np.uint16]) -> None:
        self._photons, self._table = photons, table

    def get(self, numbers: Sequence[int]) -> Array:
        """See `PixelSource`."""
        coded: Array = self._table[self._photons.get(numbers)]
        return coded

    def missing(self, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `PixelSource`."""
        return self._photons.missing(numbers)
