"""Detectors of DECTRIS as a detector rank sees them: a thread that takes messages, and threads that decompress."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq
from numpy.typing import NDArray

from lima2cli.detectors.base import AcqParams, State, XferParams
from lima2cli.detectors.dectris_facts import facts_of
from lima2cli.detectors.lifecycle import ENDLESS, Lifecycle
from lima2cli.detectors.simplon import Simplon
from lima2cli.errors import EnvironmentUnfit, StateError, StreamProblem
from lima2cli.facts import Facts
from lima2cli.frames import Array, DetectorInfo
from lima2cli.packed import HEAD_BYTES, slot_bytes
from lima2cli.stream.stream2 import End, Image, Pixels, Start, read
from lima2cli.units import counted_text

if TYPE_CHECKING:
    from lima2cli.detectors.dectris import Dectris

LOOK_S = 0.02
"""Seconds between looks at the clock where no message arrives."""

CONNECT_S = 10
"""Seconds that the detector has to open its stream, once it is configured."""

HELD_MESSAGES = 16
"""Messages that zmq reads ahead; the detector holds the others."""


class Ring:
    """The last images of one channel, with the number of each: their pixels, or as they came, or both."""

    def __init__(self, shape: tuple[int, int, int], dtype: str, *, pixels: bool, packed: bool) -> None:
        depth, height, width = shape
        self.numbers = np.full(depth, -1, np.int64)
        self._dtype, self._shape = np.dtype(dtype), (height, width)
        self._pixels: Array = np.zeros((depth if pixels else 0, height, width), dtype)
        self._packed: list[tuple[str, bytes]] = [("none", b"")] * (depth if packed else 0)
        self._gap: Array = np.zeros((1, height, width), dtype)

    def keep(self, slot: int, number: int, pixels: Pixels) -> None:
        """Keep an image.

        Raises:
            StreamProblem: it is damaged, as far as that shows when it is unpacked.
        """
        self.numbers[slot] = -1
        if len(self._pixels):
            pixels.read(self._pixels[slot])
        if self._packed:
            self._packed[slot] = pixels.packed(slot_bytes(self._gap.size, self._dtype.itemsize) - HEAD_BYTES)
        self.numbers[slot] = number

    def fits(self, pixels: Pixels) -> bool:
        """Return whether an image has the dtype and size of the channel."""
        return pixels.shape == self._shape and pixels.dtype.newbyteorder("=") == self._dtype

    def frames(self, numbers: Sequence[int]) -> Array:
        """Return the leading images, (n, height, width), that lie in a row, at least one; of one missing the gap."""
        depth = len(self.numbers)
        first = numbers[0] % depth
        if self.numbers[first] != numbers[0]:
            return self._gap
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        most = min(len(numbers), -(-(depth - first) // step))
        slots = slice(first, first + (most - 1) * step + 1, step)
        same = self.numbers[slots] == np.arange(numbers[0], numbers[0] + most * step, step)
        count = most if same.all() else int(same.argmin())
        return self._pixels[first : first + (count - 1) * step + 1 : step]

    def packed(self, numbers: Sequence[int]) -> list[tuple[str, bytes]]:
        """Return images as they came: compression and bytes; of one missing no bytes."""
        slots = [number % len(self.numbers) for number in numbers]
        lacks = self.lacks(numbers).tolist()
        return [("none", b"") if lack else self._packed[slot] for slot, lack in zip(slots, lacks, strict=True)]

    def lacks(self, numbers: Sequence[int]) -> NDArray[np.bool_]:
        """Return which of these numbers (n,) are not there."""
        wanted = np.asarray(numbers, np.int64)
        lacking: NDArray[np.bool_] = self.numbers[wanted % len(self.numbers)] != wanted
        return lacking


class Series:
    """The images of one series, taken by a thread from the start message on.

    ``closed``: before which number all images are there, or never will be. ``served``: before which nobody asks any
    more, but for ``span`` of them.
    """

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        config: "Dectris",
        info: DetectorInfo,
        frames: int,
        transfer: XferParams,
        before: "Series | None" = None,
    ) -> None:
        self._socket, self._frames, self._span = socket, frames, transfer.span
        self._depth = config.depth + 2 * transfer.span
        self._info = info
        shape = (self._depth, info.height, info.width)
        unpacked, packed = ({dataset for dataset, _ in pairs} for pairs in (transfer.routes, transfer.packed))
        self.rings = {
            index: Ring(shape, info.datasets[index].dtype, pixels=index in unpacked, packed=index in packed)
            for index in sorted(unpacked | packed)
        }
        self._names = {info.datasets[index].name: ring for index, ring in self.rings.items()}
        self.times = np.zeros(self._depth, np.uint64)
        self.served = 0
        self.failure: Exception | None = None
        self.counts = dict.fromkeys(("damaged", "incomplete", "late", "outside", "others"), 0)
        self.begun: Start | None = None if before is None else before.begun
        self.facts: Facts | None = None if before is None else before.facts
        self.doubts: list[str] = [] if before is None else before.doubts
        self._closed = self._next = 0
        self._ended = False
        self._under_way: deque[tuple[int, Future[None]]] = deque()
        self._pool = ThreadPoolExecutor(config.threads, "decompress") if unpacked else None
        self.news = threading.Event()
        """Set when more may be known."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)

    def start(self) -> None:
        """Take messages from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more; what is there can still be asked for."""
        self._end.set()
        self._thread.join()
        if self._pool is not None:
            self._pool.shutdown()

    @property
    def unused(self) -> bool:
        """Return whether it has begun, and no image of it has been taken: another may go on with it."""
        return self.begun is not None and not self._next and not self._ended and self.failure is None

    @property
    def closed(self) -> int:
        """Return before which number all is known. Raises what has gone wrong."""
        while self._under_way and self._under_way[0][1].done():
            number, future = self._under_way.popleft()
            future.result()
            self._closed = number + 1
        if self._ended and not self._under_way and self._frames < ENDLESS:
            self._closed = self._frames
        if self.failure is not None:
            raise self.failure
        return min(self._closed, self._frames)

    def _run(self) -> None:
        try:
            self._socket.rcvtimeo = int(LOOK_S * 1000)
            while not self._end.is_set() and not self._ended:
                with suppress(zmq.Again):
                    self._take(self._socket.recv())
        except Exception as error:  # noqa: BLE001  whatever it is, the rank raises it
            self.failure = error
        finally:
            self.news.set()

    def _take(self, data: bytes) -> None:
        message = read(data)
        if isinstance(message, Start):
            if self.begun is not None:  # the end of the last never came
                self._ended = True
                raise StreamProblem("another series began before the end of the one that was taken")
            self._check(message)
            self.facts, self.doubts = facts_of(message.fields, self._info)
            self.begun = replace(message, fields={})  # its arrays may be large
        elif self.begun is None or message is None or message.series_id != self.begun.series_id:
            self.counts["others"] += isinstance(message, Image)
        elif isinstance(message, End):
            self._ended = True
        else:
            self._keep(message)

    def _check(self, start: Start) -> None:
        """Raise `StreamProblem` where a series is not what the pipeline was made for."""
        info = self._info
        if (start.width, start.height) != (info.width, info.height):
            sent, expected = f"{start.width} x {start.height}", f"{info.width} x {info.height}"
            raise StreamProblem(f"the detector sends images of {sent}, not {expected} (`image`)")
        for dataset in info.datasets:
            if start.channels and dataset.name not in start.channels:
                raise StreamProblem(f"the detector has channels {', '.join(start.channels)}, not {dataset.name}")
            if start.dtype is not None and start.dtype != dataset.dtype:
                raise StreamProblem(f"the detector sends {start.dtype}, not {dataset.dtype} ({dataset.name})")

    def _keep(self, image: Image) -> None:
        """Keep an image, once a thread has decompressed it where that is asked for; wait while there is no room."""
        number = image.number
        if number < self._next or number >= self._frames:
            self.counts["late" if number < self._next else "outside"] += 1
            return
        while number >= self.served - self._span + self._depth:
            if self._end.wait(1e-3):
                return
        self._next = number + 1
        slot = number % self._depth
        self.times[slot] = time.time_ns() if image.time_ns is None else image.time_ns
        if self._pool is None:
            self._put(image, slot)
            self._closed = number + 1
            self.news.set()
        else:
            future = self._pool.submit(self._put, image, slot)
            self._under_way.append((number, future))
            future.add_done_callback(lambda _: self.news.set())

    def _put(self, image: Image, slot: int) -> None:
        for name, ring in self._names.items():
            pixels = image.pixels.get(name)
            if pixels is None:
                ring.numbers[slot] = -1
                self.counts["incomplete"] += 1
                continue
            if not ring.fits(pixels):
                expected = f"{self._info.dataset(name).dtype} {self._info.width} x {self._info.height}"
                raise StreamProblem(f"the detector sends {pixels}, not {expected} ({name})")
            try:
                ring.keep(slot, image.number, pixels)
            except StreamProblem:
                self.counts["damaged"] += 1


class Stream:
    """A connection to the stream of a detector."""

    def __init__(self, address: str) -> None:
        self._address, self._context = address, zmq.Context[Any]()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.PULL)
        self.socket.set_hwm(HELD_MESSAGES)
        self._events: zmq.Socket[bytes] | None = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(address)
        self.close = weakref.finalize(self, self._context.destroy, linger=0)
        """Leaves the stream, at the latest with the last reference."""

    def wait(self) -> None:
        """Wait until the detector has taken the connection, the first time.

        Raises:
            EnvironmentUnfit: it does not.
        """
        if self._events is None:
            return
        if not self._events.poll(CONNECT_S * 1000):
            raise EnvironmentUnfit(f"the detector does not answer at {self._address}")
        self.socket.disable_monitor()
        self._events = None


class DectrisDetector:
    """The implementation of `Detector`, `SendsPacked`, `Wakes`, `Warns` and `Informs`."""

    def __init__(self, config: "Dectris", info: DetectorInfo) -> None:
        self._config, self._info = config, info
        self._life = Lifecycle()
        self._api = None if config.api is None else Simplon(config.api, config.api_version, config.header)
        self._stream: Stream | None = None
        self._series: Series | None = None
        self._acquisition = AcqParams(None, None)
        self._frames = self._stopped_at = 0

    def prepare(self, acq_params: AcqParams, xfer_params: XferParams) -> None:
        """Connect to the stream; with `api`, configure and arm the detector.

        Raises:
            EnvironmentUnfit: the detector does not answer, or refuses.
        """
        self._life.require("prepare", State.IDLE, State.STOPPED)
        before = self._series
        if before is not None:
            before.stop()
        self._frames = ENDLESS if acq_params.frames is None else acq_params.frames
        self._acquisition = acq_params
        if self._stream is None:
            self._stream = Stream(self._config.stream)
        if self._api is not None:
            self._api.configure(acq_params)
            self._stream.wait()  # a message that is sent before is lost
        goes_on = before if before is not None and before.unused and self._api is None else None
        self._series = Series(self._stream.socket, self._config, self._info, self._frames, xfer_params, goes_on)
        self._series.start()
        if self._api is not None:
            self._api.arm()
        self._life.prepared(acq_params, None)

    def start(self, start_ns: int) -> None:
        """See `Detector`; with `api`, and an internal trigger, the detector begins now."""
        self._life.start(start_ns)
        if self._api is not None and self._acquisition.trigger == "internal":
            self._api.trigger()

    def trigger(self) -> None:
        """See `Detector`: with `api` only."""
        self._life.require("trigger", State.RUNNING)
        if self._api is None:
            raise StateError("software triggers need `detector.dectris.api`")
        self._api.trigger()

    def stop(self) -> None:
        """See `Detector`; with `api` the detector is disarmed."""
        self._life.require("stop", State.RUNNING)
        self._stopped_at = self.nb_acq_frames()
        self._life.stop()
        self._end_series()

    def reset(self) -> None:
        """See `Detector`; leaves the stream, but for a series that has begun and may still be started."""
        self._end_series()
        if self._life.state is not State.PREPARED or self._series is None or not self._series.unused:
            if self._stream is not None:
                self._stream.close()
            self._stream = self._series = None
        self._life.reset()

    def _end_series(self) -> None:
        if self._series is not None:
            self._series.stop()
        if self._api is not None and self._api.armed:
            self._api.disarm()

    def status(self) -> State:
        """See `Detector`."""
        return self._life.state

    def nb_acq_frames(self) -> int:
        """See `Detector`: images that are there as far as they will be.

        Whoever asks has taken what was there when it asked last: the memory of these images is used again.

        Raises:
            StreamProblem: the detector sends something else than the pipeline was made for.
        """
        if self._life.state is not State.RUNNING:
            return self._stopped_at if self._life.state is State.STOPPED else 0
        series = self._taken()
        try:
            closed = series.closed
        except StreamProblem:
            self._life.fail()
            raise
        series.served, self._stopped_at = self._stopped_at, closed
        return closed

    def wait(self, seconds: float) -> None:
        """See `Wakes`."""
        news = self._taken().news
        news.wait(seconds)
        news.clear()

    def get_frames(self, dataset: int, module: int, numbers: Sequence[int]) -> Array:
        """See `Detector`: views of the images that are held.

        Raises:
            StateError: an image was not acquired.
        """
        self._life.require("ask for frames of", State.RUNNING, State.STOPPED)
        if numbers[0] >= self._stopped_at:
            raise StateError(f"frame {numbers[0]} was asked for, and {self._stopped_at} are acquired")
        return self._ring(dataset).frames(numbers)

    def packed(self, dataset: int, module: int, numbers: Sequence[int]) -> Sequence[tuple[str, bytes]]:
        """See `SendsPacked`."""
        self._life.require("ask for frames of", State.RUNNING, State.STOPPED)
        if numbers[-1] >= self._stopped_at:
            raise StateError(f"frame {numbers[-1]} was asked for, and {self._stopped_at} are acquired")
        return self._ring(dataset).packed(numbers)

    def missing(self, dataset: int, module: int, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `Detector`: images that never arrived, or that were damaged."""
        lacking = self._ring(dataset).lacks(numbers)
        return lacking if lacking.any() else None

    def times(self, numbers: Sequence[int]) -> NDArray[np.uint64]:
        """See `Detector`: when their exposures began, by the detector's clock; of a missing one what is known last."""
        self._life.require("ask for times of", State.RUNNING, State.STOPPED)
        series = self._taken()
        times: NDArray[np.uint64] = series.times[np.asarray(numbers, np.int64) % len(series.times)]
        return np.maximum.accumulate(times)

    def warnings(self) -> Sequence[str]:
        """Return what went wrong with the stream."""
        if self._series is None:
            return []
        series, counts = self._series, self._series.counts
        late = self._life.state in (State.RUNNING, State.STOPPED) and series.begun is None
        warnings: Mapping[str, object] = {
            f"no start message has come from {self._config.stream}: is the detector armed, and is its stream on?": late,
            f"{counted_text(counts['damaged'], 'channel')} of images could not be decompressed": counts["damaged"],
            f"images lacked {counted_text(counts['incomplete'], 'channel')}": counts["incomplete"],
            f"{counted_text(counts['late'], 'image')} came twice, or too late": counts["late"],
            f"{counted_text(counts['outside'], 'image')} came after the last frame": counts["outside"],
            f"{counted_text(counts['others'], 'image')} of another series left out": counts["others"],
        }
        return [*series.doubts, *(text for text, so in warnings.items() if so)]

    def facts(self) -> Facts | None:
        """Return what the start message says, once it is there."""
        return None if self._series is None else self._series.facts

    def _ring(self, dataset: int) -> Ring:
        return self._taken().rings[dataset]

    def _taken(self) -> Series:
        if self._series is None:
            raise StateError("the detector was not prepared")
        return self._series
