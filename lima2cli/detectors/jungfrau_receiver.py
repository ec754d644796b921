"""JUNGFRAU as a detector rank sees it: a socket, a thread and an assembler for each module that the rank serves."""

import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lima2cli.detectors.base import AcqParams, State, XferParams
from lima2cli.detectors.jungfrau_assembler import Assembler, Gate
from lima2cli.detectors.jungfrau_packets import DETECTOR_TYPE, LARGEST_BUFFER, PACKET, Inbox, ModuleEmulator
from lima2cli.detectors.lifecycle import ENDLESS, Lifecycle
from lima2cli.errors import StateError
from lima2cli.frames import Array, DetectorInfo, Files
from lima2cli.units import counted_text, frames_text

if TYPE_CHECKING:
    from lima2cli.detectors.jungfrau import Jungfrau

BATCH = 256
"""Maximal number of packets that are read at once."""

LULL_S = 0.5e-3
"""Seconds between reads of a socket whose buffer would hold the packets of a longer time."""

LOOK_S = 0.02
"""Seconds between looks at the clock where no packet arrives."""

LEAST_BUFFER = 64 << 20
"""Bytes of the buffer of a socket, worth asking for where packets were dropped."""

PACKET_MEMORY = 20_000
"""Bytes of the kernel's memory that a packet takes, about."""


class ModuleReceiver:
    """Reader of the packets of one module, in a thread of its own."""

    def __init__(self, config: "Jungfrau", module: int, depth: int) -> None:
        """Open the port of a module; ``depth`` as for `Assembler`."""
        place = ("127.0.0.1", 0) if not config.udp else (config.udp[module].address, config.udp[module].port)
        self._packets: Array = np.zeros(BATCH, PACKET)
        memory = self._packets.view(np.uint8).reshape(BATCH, PACKET.itemsize)
        self.module, self._patience_s = module, config.patience
        self.inbox = Inbox(*place, memory, config.buffer)
        self.assembler = Assembler(depth, config.window, config.first_frame, config.rotated(module))
        self.gate = Gate(config.window, config.patience, config.first_frame)
        self.failure: Exception | None = None
        self.strange = 0
        """Number of datagrams that are not packets of a JUNGFRAU."""
        self.place: tuple[int, int] | None = None
        """Row and column of the module, by its first packet."""
        self.stands = False
        """The detector's clock stands still, or goes back."""
        self._clock = (-1, 0)  # the last frame whose time was asked for, and this
        self._begun: tuple[int, int, int] | None = None  # first packet: its frame, the detector's time, ns since epoch
        self._last_s = 0.0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def begun(self) -> bool:
        """Return whether a packet of the acquisition has arrived."""
        return self._begun is not None

    def start(self, frames: int, period_s: float | None) -> None:
        """Begin to read; nothing was read before."""
        self.assembler.limit(frames)
        self.gate.start(time.monotonic(), frames, period_s)
        self._frames, self._period_s = frames, period_s
        self._thread = threading.Thread(target=self._run, name=f"module {self.module}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading, and close the port."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self.inbox.close()

    def _run(self) -> None:
        lull = LULL_S if self.inbox.buffer > BATCH * PACKET_MEMORY // 2 else 0
        try:
            while not self._end.is_set():
                count = self.inbox.receive(LOOK_S)
                if count:
                    self._take(count)
                    if count < BATCH // 4:
                        time.sleep(lull)  # so that more come at once
                elif self._begun is not None:
                    self._settle()
        except Exception as error:  # noqa: BLE001  the thread that asks for frames reports it
            self.failure = error

    def _take(self, count: int) -> None:
        packets = self._packets[:count]
        good = (self.inbox.lengths[:count] == PACKET.itemsize) & (packets["type"] == DETECTOR_TYPE)
        if not good.all():
            self.strange += count - int(np.count_nonzero(good))
            packets = packets[good]
        self._last_s = time.monotonic()
        for some in self.gate.through(packets, self._last_s):
            self.assembler.take(some)
        if self._begun is None and self.gate.begun:
            self.place = int(packets["row"][-1]), int(packets["column"][-1])
            number = self.assembler.highest
            stamp = int(self.assembler.stamps([number])[0][0])
            self._begun = number, stamp, time.time_ns()

    def _settle(self) -> None:
        """Give up frames that are due, when no packet has arrived for long."""
        silent = time.monotonic() - self._last_s
        if silent < self._patience_s or self._begun is None:
            return
        for some in self.gate.silent():
            self.assembler.take(some)
        due = self.assembler.highest + 1
        if self._period_s is not None:
            number, _, begun_ns = self._begun
            since = (time.time_ns() - begun_ns) * 1e-9 - self._patience_s
            due = max(due, number + 1 + int(since / self._period_s))
        self.assembler.settle(min(due, self._frames))

    def times(self, numbers: Sequence[int]) -> NDArray[np.uint64]:
        """Return the detector's times, counted from the first packet; of missing frames, a period after the other.

        Where the detector's clock stands still they are when the first packet of each arrived.
        """
        stamps, known = self.assembler.stamps(numbers)
        number, stamp, begun_ns = self._begun or (0, 0, time.time_ns())
        asked = np.asarray(numbers, np.int64)
        self._check_clock(asked[known], stamps[known].astype(np.int64))
        arrivals = self.assembler.arrivals(numbers) if self.stands else begun_ns + stamps.astype(np.int64) - stamp
        from_known = np.maximum.accumulate(np.where(known, np.arange(len(asked)), -1))
        base, base_number = (
            np.where(from_known < 0, begun_ns, arrivals[from_known]),
            np.where(from_known < 0, number, asked[from_known]),
        )
        period_ns = 0.0 if self._period_s is None else self._period_s * 1e9
        times: NDArray[np.uint64] = (base + ((asked - base_number) * period_ns).astype(np.int64)).astype(np.uint64)
        return times

    def _check_clock(self, numbers: NDArray[np.int64], stamps: NDArray[np.int64]) -> None:
        """Check that a later frame has a later time."""
        if self.stands or not len(numbers):
            return
        numbers, stamps = np.append(self._clock[0], numbers), np.append(self._clock[1], stamps)
        later = np.diff(numbers) > 0
        if numbers[0] < 0:
            later[0] = False
        self.stands = bool((np.diff(stamps)[later] <= 0).any())
        self._clock = int(numbers[-1]), int(stamps[-1])


class JungfrauDetector:
    """The implementation of `Detector`."""

    def __init__(self, config: "Jungfrau", info: DetectorInfo, files: Files) -> None:
        self._config, self._info, self._files = config, info, files
        self._recorded = info.datasets[0].frames
        self._life = Lifecycle()
        self._modules: Mapping[int, ModuleReceiver] = {}
        self._emulated: list[ModuleEmulator] = []
        self._frames, self._stopped_at, self._stopped_s = 0, 0, 0.0
        self._acquisition = AcqParams(None, None)

    def prepare(self, acq_params: AcqParams, xfer_params: XferParams) -> None:
        """Open the ports of the modules.

        Raises:
            EnvironmentUnfit: a port can't be opened.
        """
        self._life.require("prepare", State.IDLE, State.STOPPED)
        self._release()
        modules = sorted({module for _, module in xfer_params.routes})
        asked = ENDLESS if acq_params.frames is None else acq_params.frames
        self._frames = asked if self._recorded is None else min(asked, self._recorded)
        span = min(xfer_params.span, self._frames)
        try:
            receivers: dict[int, ModuleReceiver] = {}
            self._modules = receivers
            for module in modules:
                receivers[module] = ModuleReceiver(self._config, module, self._config.depth + span - 1)
            photons = self._config.photons(self._info, modules, self._files)
            self._emulated = [ModuleEmulator(self._config, module, source) for module, source in photons.items()]
        except BaseException:
            self._life.fail()
            self._release()
            raise
        self._acquisition, self._stopped_at = acq_params, 0
        self._life.prepared(acq_params, self._recorded)

    def start(self, start_ns: int) -> None:
        """See `Detector`; the packets of frame 0 are expected from now on."""
        self._life.start(start_ns)
        period = self._acquisition.period_s
        if self._config.emulate is not None:
            period = self._config.emulate.period if period is None else period
        elif self._acquisition.trigger != "internal":
            period = None  # triggers come when they come
        for receiver in self._modules.values():
            receiver.start(self._frames, period)
        for emulator in self._emulated:
            inbox = self._modules[emulator.module].inbox
            burst = max(1, min(16, inbox.buffer // (2 * PACKET_MEMORY)))
            emulator.start(inbox.place, start_ns, self._frames, period or 0.0, burst)

    def trigger(self) -> None:
        """See `Detector`: there is no trigger by software."""
        self._life.trigger()

    def stop(self) -> None:
        """See `Detector`. Packets are read on for a while: other ranks may have seen more frames by now."""
        self._life.require("stop", State.RUNNING)
        self._stopped_at, self._stopped_s = self.nb_acq_frames(), time.monotonic()
        self._life.stop()
        end = min(self._frames, self._stopped_at + self._config.depth // 2)
        for receiver in self._modules.values():
            receiver.assembler.limit(end)
        for emulator in self._emulated:
            emulator.limit = end

    def reset(self) -> None:
        """See `Detector`; closes the ports."""
        self._release()
        self._life.reset()

    def status(self) -> State:
        """See `Detector`."""
        return self._life.state

    def nb_acq_frames(self) -> int:
        """See `Detector`: frames that are there as far as they will be.

        Raises:
            OSError: the network fails.
        """
        if self._life.state is not State.RUNNING:
            return self._stopped_at if self._life.state is State.STOPPED else 0
        failures = [receiver.failure for receiver in self._modules.values()]
        for failure in failures + [emulator.failure for emulator in self._emulated]:
            if failure is not None:
                self._life.fail()
                raise failure
        return min((receiver.assembler.closed for receiver in self._modules.values()), default=self._frames)

    def get_frames(self, dataset: int, module: int, numbers: Sequence[int]) -> Array:
        """See `Detector`: views of the assembler's ring.

        Raises:
            StateError: a frame was not prepared or acquired.
        """
        self._life.require("ask for frames of", State.RUNNING, State.STOPPED)
        assembler = self._assembler(dataset, module)
        first = int(numbers[0])
        if first >= assembler.closed:
            self._await(assembler, first)
        return assembler.frames(numbers[: bisect_left(numbers, assembler.closed)])

    def _await(self, assembler: Assembler, number: int) -> None:
        """Wait, after stop, for a frame that another rank has seen: it arrives soon, or is given up."""
        if self._life.state is State.RUNNING:
            raise StateError(f"frame {number} was asked for, and {assembler.closed} are acquired")
        while assembler.closed <= number and time.monotonic() < self._stopped_s + self._config.patience:
            time.sleep(1e-3)
        assembler.settle(number + 1)

    def missing(self, dataset: int, module: int, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `Detector`: those that lack more packets than are tolerated."""
        missing = self._assembler(dataset, module).lacking(numbers) > self._config.tolerate
        return missing if missing.any() else None

    def times(self, numbers: Sequence[int]) -> NDArray[np.uint64]:
        """See `Detector`: by the clock of the first module of the rank."""
        self._life.require("ask for times of", State.RUNNING, State.STOPPED)
        return next(iter(self._modules.values())).times(numbers)

    def warnings(self) -> Sequence[str]:
        """Return what went wrong with the packets, and what may."""
        return [text for receiver in self._modules.values() for text in self._warn(receiver)]

    def _warn(self, receiver: ModuleReceiver) -> Sequence[str]:
        counts, inbox, asked = receiver.assembler.counts, receiver.inbox, self._config.buffer
        gate, dropped = receiver.gate, inbox.dropped
        first, last = gate.stale_frames or (0, 0)
        frames = f" of frames {first} to {last}" if last > first else f" of frame {first}"
        needed = min(max(4 * inbox.buffer, LEAST_BUFFER), LARGEST_BUFFER)
        warnings = {
            "no packet has arrived": self._life.state in (State.RUNNING, State.STOPPED) and not receiver.begun,
            f"{_were(gate.stale, 'packet', frames)} left over from another acquisition (`first_frame`?)": gate.stale,
            self._misplaced(receiver) or "": self._misplaced(receiver) is not None,
            "the clock of its packets stands still: frames are timed when they arrive": receiver.stands,
            f"{inbox.buffer} of {asked} bytes are given to its packets: raise net.core.rmem_max": inbox.buffer < asked,
            f"{counted_text(counts.lacking, 'packet')} of {frames_text(counts.incomplete + counts.absent)} never "
            "arrived": counts.lacking,
            f"{_were(dropped, 'packet')} dropped by the kernel, as they were not read in time: `buffer: {needed}`, and "
            f"sysctl -w net.core.rmem_max={needed}": dropped,
            f"{counted_text(counts.late, 'packet')} arrived too late": counts.late,
            f"{_were(counts.outside, 'packet')} of frames that are not of the acquisition "
            "(`first_frame`)": counts.outside,
            f"{counted_text(counts.overrun, 'packet')} found no room, as frames were not taken in time": counts.overrun,
            f"{_were(counts.forgotten, 'frame')} not taken in time": counts.forgotten,
            f"{_were(receiver.strange, 'datagram')} not packets of a JUNGFRAU": receiver.strange,
        }
        return [f"module {receiver.module}: {text}" for text, so in warnings.items() if so]

    def _misplaced(self, receiver: ModuleReceiver) -> str | None:
        """Return a warning where packets come from another place of the detector than that of the module."""
        places = self._config.places()
        if places is None or receiver.place is None or receiver.place == places[receiver.module]:
            return None
        row, column = receiver.place
        place = f"its packets report row {row}, column {column}"
        if receiver.place in places:
            place += f", the place of module {places.index(receiver.place)}"
        expected = "row {}, column {}".format(*places[receiver.module])
        port = receiver.inbox.place[1]
        return f"{place}, not {expected}: see the order of `udp` (port {port}) and `modules.order`"

    def _assembler(self, dataset: int, module: int) -> Assembler:
        if dataset != 0 or module not in self._modules:
            raise StateError(f"module {module} of dataset {dataset} was not prepared")
        return self._modules[module].assembler

    def _release(self) -> None:
        for emulator in self._emulated:
            emulator.stop()
        for receiver in self._modules.values():
            receiver.close()
        self._emulated, self._modules = [], {}


def _were(number: int, noun: str, of: str = "") -> str:
    """Return a subject and its verb: 1 packet of frame 39 was, 256 packets of frames 30 to 31 were."""
    return f"{counted_text(number, noun)}{of} {'was' if number == 1 else 'were'}"
