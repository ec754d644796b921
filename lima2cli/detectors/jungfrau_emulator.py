"""Modules of a JUNGFRAU that are not there: their packets, sent to the loopback at the pace of the acquisition."""

import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lima2cli.detectors.datagrams import Datagrams
from lima2cli.detectors.jungfrau_packets import DETECTOR_TYPE, PACKET, PACKETS, PIXELS, TICK_NS, VERSION
from lima2cli.detectors.sources import Pool, Source
from lima2cli.spec import Array

if TYPE_CHECKING:
    from lima2cli.detectors.jungfrau import Jungfrau

DUTY = 0.8
"""Of a period in which packets are sent."""

SHORTEST_PAUSE_S = 0.5e-3


class ModuleEmulator:
    """Sends the packets of one module in a thread of its own."""

    def __init__(self, config: "Jungfrau", module: int, photons: Source) -> None:
        """``photons`` are those that the module sees, frames (n, 512, 1024) uint16."""
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
        """Frames that are sent."""

    def _encode(self, photons: Array) -> Array:
        """Packets (n, 128) of frames (n, 512, 1024) in photons."""
        packets = np.zeros((len(photons), PACKETS), PACKET)
        packets["packet"] = np.arange(PACKETS)
        packets["row"], packets["column"] = self._place
        packets["module"], packets["type"], packets["version"] = self.module, DETECTOR_TYPE, VERSION
        turned = photons[:, :: self._turn, :: self._turn].reshape(len(photons), PACKETS, PIXELS)
        packets["pixels"] = self._codes[turned]
        return packets

    def _frame(self, number: int) -> tuple[Array, Datagrams]:
        """The packets of a frame, (128,), and the same as datagrams."""
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
        except Exception as error:  # noqa: BLE001  the thread that asks for frames tells of it
            self.failure = error

    def _send(self, sender: socket.socket, start_s: float, period_s: float, steps: Sequence[range]) -> None:
        """Send the frames, each in as many bursts as ``steps``; what is late comes no more than twice as fast."""
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
    """Runs of what is chosen within a range."""
    edges = np.flatnonzero(np.diff(chosen[within.start : within.stop], prepend=False, append=False)) + within.start
    return [range(int(first), int(end)) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _send_all(sender: socket.socket, datagrams: Datagrams, run: range) -> None:
    first = run.start
    while first < run.stop:
        first += datagrams.send(sender.fileno(), first, run.stop - first)
