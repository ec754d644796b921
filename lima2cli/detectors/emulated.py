"""A detector made of sources of pixels: the common part of REMU and replay."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lima2cli.detectors.base import AcqParams, Operations, State, XferParams
from lima2cli.detectors.emulator_faults import Faults, Struck, with_bad_pixels
from lima2cli.detectors.lifecycle import Lifecycle
from lima2cli.detectors.modules import operate, operated
from lima2cli.detectors.sources import PixelSource, Pool
from lima2cli.errors import StateError
from lima2cli.frames import Array, DetectorInfo

PartKey = tuple[int, int]
"""Indices (dataset, module)."""

OpenSources = Callable[[Sequence[PartKey]], Mapping[PartKey, PixelSource]]


class EmulatedDetector:
    """The implementation of `Detector`, `Foresees` and `Warns` by sources of pixels.

    ``open_sources`` makes the source of each route ready, ``faults`` change what it gives, ``warnings`` returns
    warnings.
    """

    def __init__(
        self,
        info: DetectorInfo,
        open_sources: OpenSources,
        faults: Faults | None = None,
        warnings: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._warnings = warnings
        self._info, self._open_sources, self._faults = info, open_sources, faults
        self._sources: Mapping[PartKey, PixelSource] = {}
        self._rendered: tuple[Operations, str, XferParams] | None = None
        self._life = Lifecycle()

    def prepare(self, acq_params: AcqParams, xfer_params: XferParams) -> None:
        """Render or open what the routes need; what is there from the last time, for the same, is used again."""
        self._life.require("prepare", State.IDLE, State.STOPPED)
        asked = acq_params.operations, acq_params.shutter, xfer_params
        if self._rendered != asked:
            self._make_sources(acq_params, xfer_params)
            self._rendered = asked
        recorded = min((dataset.frames for dataset in self._info.datasets if dataset.frames is not None), default=None)
        self._prepare_clock(acq_params, recorded, [module for _, module in self._sources])

    def _make_sources(self, acq_params: AcqParams, xfer_params: XferParams) -> None:
        try:
            info = operate(self._info, acq_params.operations)
            routes = [route for route in xfer_params.routes if info.modules[route[1]].area]
            sources = self._closed(routes) if acq_params.shutter == "closed" else self._open_sources(routes)
            if self._faults is not None:
                sources = with_bad_pixels(sources, self._info, self._faults)
            if info.operated is not None:
                sources = {route: operated(source, info, *route) for route, source in sources.items()}
            if self._faults is not None:
                sources = {route: Struck(it, self._faults, info, *route) for route, it in sources.items()}
            self._sources = sources
        except BaseException:
            self._life.fail()
            raise

    def _prepare_clock(self, acq_params: AcqParams, recorded: int | None, modules: Sequence[int]) -> None:
        faults, period_ns = self._faults, (acq_params.period_s or 0) * 1e9
        if faults is None:
            self._life.prepared(acq_params, recorded)
            return
        jitter = None if faults.jitter is None else lambda numbers: faults.delays(numbers, period_ns)
        self._life.prepared(acq_params, recorded, faults.lag_ns(modules), jitter)

    def _closed(self, routes: Sequence[PartKey]) -> dict[PartKey, PixelSource]:
        """Return the frames of a detector whose shutter is closed: nothing."""
        shapes = [(self._info.datasets[d].dtype, self._info.modules[m]) for d, m in routes]
        return {
            route: Pool(np.zeros((1, module.height, module.width), dtype))
            for route, (dtype, module) in zip(routes, shapes, strict=True)
        }

    def start(self, start_ns: int) -> None:
        """See `Detector`."""
        self._life.start(start_ns)

    def trigger(self) -> None:
        """See `Detector`."""
        self._life.trigger()

    def stop(self) -> None:
        """See `Detector`."""
        self._life.stop()

    def reset(self) -> None:
        """See `Detector`; frees what was rendered, unless the next acquisition may be of the same."""
        if self._life.state is not State.PREPARED:
            self._sources, self._rendered = {}, None
        self._life.reset()

    def status(self) -> State:
        """See `Detector`."""
        return self._life.state

    def nb_acq_frames(self) -> int:
        """See `Detector`."""
        return self._life.acquired()

    def due_ns(self, number: int) -> int | None:
        """See `Foresees`."""
        return self._life.due_ns(number)

    def get_frames(self, dataset: int, module: int, numbers: Sequence[int]) -> Array:
        """See `Detector`.

        Raises:
            StateError: routes were not prepared.
            FileProblem: a file is damaged.
        """
        self._life.require("ask for frames of", State.RUNNING, State.STOPPED)
        source = self._sources.get((dataset, module))
        if source is None:
            raise StateError(f"module {module} of dataset {dataset} was not prepared")
        try:
            return source.get(numbers)
        except StateError:
            raise
        except BaseException:
            self._life.fail()
            raise

    def missing(self, dataset: int, module: int, numbers: Sequence[int]) -> NDArray[np.bool_] | None:
        """See `Detector`."""
        source = self._sources.get((dataset, module))
        return None if source is None else source.missing(numbers)

    def warnings(self) -> Sequence[str]:
        """See `Warns`."""
        return self._warnings()

    def times(self, numbers: Sequence[int]) -> NDArray[np.uint64]:
        """See `Detector`."""
        return self._life.times(numbers)
