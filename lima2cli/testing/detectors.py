"""Conformance tests of detectors, which packages inherit."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from lima2cli.detectors.base import (
    OPERATIONS,
    TRIGGERS,
    AcqParams,
    Detector,
    DetectorConfig,
    Operations,
    State,
    XferParams,
)
from lima2cli.detectors.capability_record import read_record, write_record
from lima2cli.detectors.modules import operate
from lima2cli.errors import StateError
from lima2cli.frames import Array, DetectorInfo, Files
from lima2cli.geometry import Rect
from lima2cli.testing.inputs import NoFiles, check_declaration, leave_out

Route = tuple[int, int]


class DetectorTests:
    """Subclass it as ``Test…``; give ``config``.

    config     the detector, with parameters
    whole      the same with one module that covers the image, None where there is no such thing
    frames     how many are acquired;  period_s   from one to the next, None where there is no clock
    patience_s how long to wait for them
    files      the fixture `files`, where parameters name files
    """

    config: ClassVar[DetectorConfig]
    whole: ClassVar[DetectorConfig | None] = None
    frames: ClassVar[int] = 6
    period_s: ClassVar[float | None] = 1e-3
    patience_s: ClassVar[float] = 10

    def __init_subclass__(cls) -> None:
        """Leave out what needs ``whole``, where there is none."""
        if hasattr(cls, "config"):
            leave_out(cls, [] if cls.whole is not None else ["test_modules_are_parts_of_the_whole"])

    @pytest.fixture
    def files(self) -> Files:
        """Files that parameters name; override it."""
        return NoFiles()

    @pytest.fixture
    def info(self, files: Files) -> DetectorInfo:
        """Return the description of the detector."""
        return self.config.describe(files)

    @pytest.fixture
    def detector(self, info: DetectorInfo, files: Files) -> Iterator[Detector]:
        """Return the detector, idle."""
        detector = self.config.open(info, files)
        yield detector
        detector.reset()

    def _routes(self, info: DetectorInfo) -> list[Route]:
        return [(dataset.index, module) for dataset in info.datasets for module in range(len(info.modules))]

    def _acquire(self, detector: Detector, routes: Sequence[Route], period_s: float | None = None) -> None:
        """Start, and wait until all frames are there."""
        detector.prepare(AcqParams(self.frames, period_s), XferParams(tuple(routes)))
        detector.start(time.time_ns())
        self._wait(detector, self.frames)

    def _wait(self, detector: Detector, frames: int) -> None:
        """Wait until so many frames are there."""
        end = time.monotonic() + self.patience_s
        while detector.nb_acq_frames() < frames:
            assert time.monotonic() < end, f"{detector.nb_acq_frames()} of {frames} frames in {self.patience_s} s"
            time.sleep(1e-3)

    def _all(self, detector: Detector, route: Route, numbers: range) -> Array:
        """Frames of all numbers, asked for until they are there."""
        parts: list[Array] = []
        while numbers:
            part = detector.get_frames(*route, numbers)
            assert 1 <= len(part) <= len(numbers), "the leading frames, at least one"
            parts.append(part.copy())
            numbers = numbers[len(part) :]
        return np.concatenate(parts)

    def test_it_is_declared(self) -> None:
        check_declaration(self.config)

    def test_what_it_says_of_itself(self, info: DetectorInfo, files: Files) -> None:
        assert self.config.describe(files) == info
        assert info.kind == self.config.kind
        assert info.modules
        for module in info.modules:
            assert module.area
            assert info.image.contains(module)
        for index, module in enumerate(info.modules):
            assert not any((module & other).area for other in info.modules[:index]), "modules overlap"
        assert [dataset.index for dataset in info.datasets] == list(range(len(info.datasets)))
        assert info.datasets
        assert len({dataset.name for dataset in info.datasets}) == len(info.datasets)
        for dataset in info.datasets:
            assert np.dtype(dataset.dtype).name == dataset.dtype
            assert 1 <= dataset.bits <= 8 * dataset.pixel_bytes

    def test_capabilities_hold(self, info: DetectorInfo) -> None:
        can = self.config.capabilities
        if can is None:
            return
        assert can.largest is None or (info.width <= can.largest[0] and info.height <= can.largest[1])
        assert not can.dtypes or {dataset.dtype for dataset in info.datasets} <= set(can.dtypes)
        assert can.datasets is None or len(info.datasets) <= can.datasets
        assert can.modules is None or len(info.modules) <= can.modules
        assert can.channels is None or (info.channels is not None and info.channels <= can.channels)
        assert can.can_wait == info.can_wait
        for dataset in info.datasets:
            assert not can.bit_depths or dataset.bits in can.bit_depths

    def test_capabilities_as_it_is_configured(self, info: DetectorInfo) -> None:
        can = self.config.retrieve(info)
        assert can.largest == (info.width, info.height)
        assert set(can.dtypes) == {dataset.dtype for dataset in info.datasets}
        assert (can.datasets, can.modules) == (len(info.datasets), len(info.modules))
        assert (can.channels, can.can_wait) == (info.channels, info.can_wait)
        assert can.triggers
        assert set(can.triggers) <= set(TRIGGERS)
        assert set(can.operations) <= set(OPERATIONS)
        assert min(can.granularity) >= 1
        promised = self.config.capabilities
        if promised is not None:
            assert set(can.triggers) <= set(promised.triggers)
            assert set(can.operations) <= set(promised.operations)
            assert not (can.shutter and not promised.shutter)

    def test_its_record_says_the_same(self, info: DetectorInfo) -> None:
        can = self.config.retrieve(info)
        read_info, read_can = read_record(json.loads(json.dumps(write_record(info, can))), info.kind)
        assert read_can == can
        for name in ("kind", "name", "width", "height", "modules", "channels", "can_wait", "pixel_size"):
            assert getattr(read_info, name) == getattr(info, name), name
        assert np.array_equal(read_info.gap_value, info.gap_value, equal_nan=True)
        assert dict(read_info.versions) == dict(info.versions)
        assert [replace(it, frames=None) for it in info.datasets] == list(read_info.datasets)

    def test_states_and_refused_transitions(self, detector: Detector, info: DetectorInfo) -> None:
        routes = self._routes(info)
        acquisition, transfer = AcqParams(self.frames, None), XferParams(tuple(routes))
        calls: dict[str, Callable[[], object]] = {
            "prepare": lambda: detector.prepare(acquisition, transfer),
            "start": lambda: detector.start(time.time_ns()),
            "stop": detector.stop,
            "trigger": detector.trigger,
            "get_frames": lambda: detector.get_frames(*routes[0], range(1)),
        }

        def refused(state: State, *operations: str) -> None:
            assert detector.status() is state
            for operation in operations:
                with pytest.raises(StateError):
                    calls[operation]()
                assert detector.status() is state, f"{operation} was refused, and changed the state"

        refused(State.IDLE, "start", "stop", "trigger", "get_frames")
        for _ in range(2):  # after stop it can be prepared again
            calls["prepare"]()
            refused(State.PREPARED, "prepare", "stop", "trigger", "get_frames")
            calls["start"]()
            refused(State.RUNNING, "prepare", "start", "trigger")  # its trigger is the clock
            calls["stop"]()
            refused(State.STOPPED, "start", "stop", "trigger")
        detector.reset()
        refused(State.IDLE, "start", "stop", "trigger", "get_frames")

    def test_reset_from_any_state(self, detector: Detector, info: DetectorInfo) -> None:
        route = self._routes(info)[0]
        detector.reset()
        assert detector.status() is State.IDLE
        detector.prepare(AcqParams(self.frames, None), XferParams((route,)))
        detector.reset()
        assert detector.status() is State.IDLE
        self._acquire(detector, [route])
        detector.reset()
        assert detector.status() is State.IDLE
        assert detector.nb_acq_frames() == 0
        self._acquire(detector, [route])
        detector.stop()
        assert len(self._all(detector, route, range(self.frames))) == self.frames
        detector.reset()
        assert detector.status() is State.IDLE

    def test_software_triggers(self, detector: Detector, info: DetectorInfo) -> None:
        if "software" not in self.config.retrieve(info).triggers:
            return
        routes, frames = self._routes(info), self.frames
        self._acquire(detector, routes)
        expected = self._all(detector, routes[0], range(frames))
        detector.stop()
        params = AcqParams(frames, None, trigger="software", frames_per_trigger=frames - 2)
        detector.prepare(params, XferParams(tuple(routes)))
        detector.start(time.time_ns())
        assert detector.nb_acq_frames() == 0, "no frame before a trigger"
        for acquired in (frames - 2, frames, frames):
            detector.trigger()
            self._wait(detector, acquired)
            assert detector.nb_acq_frames() == acquired
        assert (np.diff(detector.times(range(frames)).astype(np.int64)) >= 0).all()
        np.testing.assert_array_equal(self._all(detector, routes[0], range(frames)), expected)
        detector.stop()

    def test_operations_of_the_detector(self, detector: Detector, info: DetectorInfo) -> None:
        can = self.config.retrieve(info).operations
        known = {
            "accumulation": Operations(accumulate=2),
            "binning": Operations(binning=(2, 3)),
            "roi": Operations(roi=Rect(1, 1, info.width - 2, info.height - 1)),
            "flip": Operations(flip="both"),
        }
        for operations in (it for name, it in known.items() if name in can):
            shown, routes = operate(info, operations), self._routes(info)
            count = self.frames // operations.accumulate
            self._acquire(detector, routes)
            raw = {route: self._all(detector, route, range(count * operations.accumulate)) for route in routes}
            detector.stop()
            detector.prepare(AcqParams(count, None, operations=operations), XferParams(tuple(routes)))
            detector.start(time.time_ns())
            self._wait(detector, count)
            for dataset, module in routes:
                frames = self._all(detector, (dataset, module), range(count))
                whole = np.zeros((len(raw[dataset, module]), info.height, info.width))
                whole[:, *info.modules[module].within(info.image)] = raw[dataset, module]
                sums = whole.reshape(count, -1, info.height, info.width).sum(axis=1)
                assert shown.operated is not None
                expected = shown.operated.view.apply(sums, "sum")[:, *shown.modules[module].within(shown.image)]
                assert frames.dtype == shown.datasets[dataset].dtype
                np.testing.assert_array_equal(frames, expected)
            detector.stop()

    def test_frames_that_it_fails_to_give(self, detector: Detector, info: DetectorInfo) -> None:
        self._acquire(detector, self._routes(info))
        for dataset, module in self._routes(info):
            frames = self._all(detector, (dataset, module), range(self.frames))
            missing = detector.missing(dataset, module, range(self.frames))
            if missing is not None:
                assert info.can_fail
                assert (missing.dtype, missing.shape) == (np.dtype(bool), (self.frames,))
                gaps = np.full_like(frames[missing], info.gap_value)
                assert np.array_equal(frames[missing], gaps, equal_nan=frames.dtype.kind == "f")

    def test_frames_are_the_leading_ones_asked_for(self, detector: Detector, info: DetectorInfo) -> None:
        self._acquire(detector, self._routes(info))
        for dataset, module in self._routes(info):
            rect = info.modules[module]
            for numbers in (range(self.frames), range(1, self.frames, 2), range(self.frames - 1, self.frames)):
                frames = detector.get_frames(dataset, module, numbers)
                assert 1 <= len(frames) <= len(numbers)
                assert frames.shape[1:] == (rect.height, rect.width)
                assert frames.dtype == info.datasets[dataset].dtype
                assert frames.shape[2] == 1 or frames.strides[2] == frames.itemsize, "pixels of a row are contiguous"

    def test_frames_are_the_same_whatever_is_asked(self, detector: Detector, info: DetectorInfo, files: Files) -> None:
        self._acquire(detector, self._routes(info))
        for route in self._routes(info):
            first = self._all(detector, route, range(self.frames))
            for number in reversed(range(self.frames)):
                np.testing.assert_array_equal(self._all(detector, route, range(number, number + 1))[0], first[number])
            np.testing.assert_array_equal(self._all(detector, route, range(0, self.frames, 2)), first[::2])
            np.testing.assert_array_equal(self._all(detector, route, range(1, self.frames, 3)), first[1::3])
            alone = self.config.open(info, files)  # as a rank sees it that serves this module only
            self._acquire(alone, [route])
            np.testing.assert_array_equal(self._all(alone, route, range(self.frames)), first)
            alone.reset()
        detector.stop()
        np.testing.assert_array_equal(self._all(detector, route, range(self.frames)), first)

    def test_modules_are_parts_of_the_whole(self, detector: Detector, info: DetectorInfo, files: Files) -> None:
        assert self.whole is not None
        described = self.whole.describe(files)
        assert described.modules == (info.image,)
        one = self.whole.open(described, files)
        self._acquire(one, self._routes(described))
        self._acquire(detector, self._routes(info))
        for dataset, module in self._routes(info):
            whole = self._all(one, (dataset, 0), range(self.frames))
            rows, columns = info.modules[module].within(info.image)
            part = self._all(detector, (dataset, module), range(self.frames))
            np.testing.assert_array_equal(part, whole[:, rows, columns])
        one.reset()

    def test_times_increase(self, detector: Detector, info: DetectorInfo) -> None:
        started = time.time_ns()
        self._acquire(detector, self._routes(info)[:1], self.period_s)
        times = detector.times(range(self.frames))
        assert (times.dtype.name, times.shape) == ("uint64", (self.frames,))
        steps = np.diff(times.astype(np.int64))
        assert (steps >= 0).all() if self.period_s is None else (steps > 0).all()
        assert abs(int(times[0]) - started) < 60e9, "ns since the epoch"

    def test_frames_are_counted(self, detector: Detector, info: DetectorInfo) -> None:
        assert detector.nb_acq_frames() == 0
        detector.prepare(AcqParams(self.frames, self.period_s), XferParams(tuple(self._routes(info))))
        assert detector.nb_acq_frames() == 0
        detector.start(time.time_ns())
        counts = [detector.nb_acq_frames() for _ in range(100)]
        end = time.monotonic() + self.patience_s
        while counts[-1] < self.frames and time.monotonic() < end:
            time.sleep(1e-3)
            counts.append(detector.nb_acq_frames())
        assert counts == sorted(counts)
        assert counts[-1] == self.frames, "not more than was asked for, and all of them in time"
        detector.stop()
        assert detector.nb_acq_frames() == self.frames
