"""A run of lima2 as a detector of bluesky, for step scans and fly scans (extra `bluesky`: ophyd-async).

    from lima2cli.bluesky import Lima2Detector

    eiger = Lima2Detector("eiger.yaml", name="eiger")
    RE(bp.count([eiger], 4))

A stage is a run: its files grow over all points. Each node that saves frames is a data key, and so is each column of
each table; documents name the files of the run, frames are never copied. A point is complete when its frames are in
files that readers can see.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ophyd_async.core import (
    DetectorAcquireLogic,
    DetectorDataLogic,
    DetectorTriggerLogic,
    SignalR,
    StandardDetector,
    StreamResourceDataProvider,
    StreamResourceInfo,
    TriggerInfo,
    soft_signal_r_and_setter,
)

from lima2cli.drive import Pipeline, Run, run
from lima2cli.errors import RunFailed, StateError

MIMETYPE = "application/x-hdf5"


class _Stage:
    """The run of a stage, once it is prepared, and what was asked for."""

    def __init__(self, pipeline: Pipeline, transport: str, overrides: Sequence[str]) -> None:
        self._pipeline, self._transport, self._overrides = pipeline, transport, overrides
        self.trigger, self.count, self.period = "software", 1, 0.0
        self.exposure = 0.0
        self._started: tuple[str, float, float] | None = None
        self.run: Run | None = None
        self.files: Mapping[str, Any] = {}
        self.signals: dict[str, tuple[SignalR[int], Callable[[int], None]]] = {}
        self._lock = asyncio.Lock()

    async def begin(self) -> Run:
        """Return the run, which is started where that is not done.

        Raises:
            StateError: it goes on, and another trigger or period was asked for since.
        """
        async with self._lock:
            wanted = self.trigger, self.period, self.exposure
            if self.run is not None and self._started != wanted:
                raise StateError("trigger and times of a stage are those of its first point: stage again")
            if self.run is None:
                self._started = wanted
                self.run = await asyncio.to_thread(self._launch)
                self._follow(self.run)
            return self.run

    def _launch(self) -> Run:
        asked = [f"acquisition.trigger={self.trigger}", "acquisition.frames=0"]
        asked += [f"acquisition.period={self.period}"] if self.period else []
        asked += [f"acquisition.exposure={self.exposure}"] if self.exposure else []
        if self.trigger == "software":
            asked.append("acquisition.frames_per_trigger=1")
        return run(self._pipeline, transport=self._transport, overrides=[*self._overrides, *asked])

    def _follow(self, started: Run) -> None:
        """Keep the signals of the rows of each node up to date, in this thread."""
        loop = asyncio.get_running_loop()
        self.files = next(event["files"] for event in reversed(started.events) if "files" in event)
        for node in self.files:
            self.signals[node] = soft_signal_r_and_setter(int, initial_value=0)

        signals = dict(self.signals)

        def note(rows: Mapping[str, int]) -> None:
            for node, count in rows.items():
                signals[node][1](count)

        def take(event: dict[str, Any]) -> None:
            if event["type"] == "progress":
                loop.call_soon_threadsafe(note, event["rows"])

        started.on_event(take)

    async def end(self) -> None:
        """End the run, if there is one, and wait for its files."""
        ended, self.run = self.run, None
        self.signals = {}
        if ended is not None:
            await asyncio.to_thread(ended.stop)
            await asyncio.to_thread(ended.wait)


class _Trigger(DetectorTriggerLogic):
    """Triggers by software, by edges (`external`) and by levels (`gate`)."""

    def __init__(self, stage: _Stage) -> None:
        self._stage = stage

    async def prepare_internal(self, num: int, livetime: float, deadtime: float) -> None:
        """See `DetectorTriggerLogic`: each point is a request for so many triggers."""
        self._prepare("software", num, livetime + deadtime, livetime)

    async def prepare_edge(self, num: int, livetime: float) -> None:
        """See `DetectorTriggerLogic`."""
        self._prepare("external", num, 0.0, livetime)

    async def prepare_level(self, num: int) -> None:
        """See `DetectorTriggerLogic`."""
        self._prepare("gate", num, 0.0, 0.0)

    def get_deadtime(self, config_values: Any) -> float:
        """See `DetectorTriggerLogic`: lima2 adds none to that of the detector."""
        return 0.0

    async def default_trigger_info(self) -> TriggerInfo:
        """See `DetectorTriggerLogic`: one frame a point, of the pipeline's exposure."""
        return TriggerInfo()

    def _prepare(self, trigger: str, count: int, period: float, exposure: float) -> None:
        stage = self._stage
        stage.trigger, stage.count = trigger, count
        stage.period, stage.exposure = period, exposure


class _Acquire(DetectorAcquireLogic):
    """The points of a run."""

    def __init__(self, stage: _Stage) -> None:
        self._stage = stage

    async def start_acquiring(self) -> None:
        """See `DetectorAcquireLogic`; with external triggers the detector waits for them already."""
        started = await self._stage.begin()
        if self._stage.trigger == "software":
            await asyncio.to_thread(started.trigger, self._stage.count)

    async def wait_for_idle(self) -> None:
        """See `DetectorAcquireLogic`. Raises `RunFailed` where the run has ended."""
        if self._stage.run is not None and not self._stage.run.live:
            raise RunFailed("the run has ended")

    async def ensure_stopped(self) -> None:
        """See `DetectorAcquireLogic`."""
        await self._stage.end()


class _Data(DetectorDataLogic):
    """The frames, or the columns of the table, that one node saves."""

    def __init__(self, stage: _Stage, node: str, suffix: str) -> None:
        self._stage, self._node, self.datakey_suffix = stage, node, suffix

    async def prepare_unbounded(self, datakey_name: str) -> StreamResourceDataProvider:
        """See `DetectorDataLogic`: the run is started here, its files are known from then on."""
        started = await self._stage.begin()
        file = self._stage.files[self._node]
        path = os.path.abspath(started.directory / file["file"])
        signal, _ = self._stage.signals[self._node]
        if "columns" in file:
            resources = [
                StreamResourceInfo(
                    data_key=f"{datakey_name}-{column}", shape=(), chunk_shape=(1024,), dtype_numpy=_numpy(dtype),
                    parameters={"dataset": f"{file['dataset']}/{column}"},
                )
                for column, dtype in file["columns"].items()
            ]  # fmt: skip
        else:
            _, height, width = file["shape"]
            # concat: a reader may find more frames in the file than were announced (tiled)
            parameters = {"dataset": file["dataset"], "join_method": "concat"}
            resources = [
                StreamResourceInfo(
                    data_key=datakey_name, shape=(height, width), chunk_shape=tuple(file["chunk"]),
                    dtype_numpy=_numpy(file["dtype"]), parameters=parameters,
                )
            ]  # fmt: skip
        return StreamResourceDataProvider(f"file://localhost{path}", resources, MIMETYPE, signal)

    def get_hinted_fields(self, datakey_name: str) -> Sequence[str]:
        """See `DetectorDataLogic`: frames are hinted."""
        return [] if self._node in self._stage.files and "columns" in self._stage.files[self._node] else [datakey_name]

    async def stop(self) -> None:
        """See `DetectorDataLogic`."""
        await self._stage.end()


def _numpy(dtype: str) -> str:
    import numpy as np

    return np.dtype(dtype).str


class Lima2Detector(StandardDetector):
    """A pipeline as a detector: a run for each stage, a trigger, or as many as are asked for, for each point.

    pipeline   its file, its text, or its content; the run sets `acquisition.trigger`, `frames` and times
    nodes      of those that save, which are data keys: the first has the detector's name, others a suffix; default: all
    transport, overrides   as of `lima2cli.run`
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        nodes: Sequence[str] | None = None,
        transport: str = "auto",
        overrides: Sequence[str] = (),
        name: str = "",
    ) -> None:
        from lima2cli.drive import compile_pipeline

        plan = compile_pipeline(pipeline, [*overrides, "acquisition.frames=0"])
        saved = [*plan.channels, *plan.tables] if nodes is None else list(nodes)
        unknown = [node for node in saved if node not in plan.channels and node not in plan.tables]
        if unknown or not saved:
            raise ValueError(f"{', '.join(unknown) or 'no node'} saves nothing; these do: {', '.join(saved)}")
        stage = _Stage(pipeline, transport, overrides)
        self.add_detector_logics(_Trigger(stage), _Acquire(stage))
        for index, node in enumerate(saved):
            self.add_detector_logics(_Data(stage, node, "" if index == 0 else f"-{node}"))
        super().__init__(name=name)
