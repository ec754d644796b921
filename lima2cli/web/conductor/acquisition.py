"""One acquisition of a client: a run that is armed, started, and ends; its counters, statistics, files and frames."""

import asyncio
import itertools
import shutil
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lima2cli.drive import Run
from lima2cli.errors import FileProblem, Lima2Error, RunFailed
from lima2cli.files.picture import GROUP, final_frame, write_frame
from lima2cli.runs.directory import LATEST, remove_unused
from lima2cli.runs.ending import record_of
from lima2cli.web.conductor.mapping import FRAME, Mapped, Region
from lima2cli.web.conductor.refusals import Refused
from lima2cli.web.looker import Looker
from lima2cli.web.routes import Service

INPUT = "input_frame"
SOURCES = (INPUT, FRAME)
"""The frames of a client: those of the detector, and the processed ones."""

LOOK_S = 0.02
"""The least seconds from one frame that is looked at to the next."""

FIRST_S = 1.0
"""Seconds that the first frame of a run is waited for."""

DISCARD_S = 30.0
"""Seconds that a run may take to end that was never started."""

KEPT = 64
"""Files of single frames that are kept."""

State = Literal["armed", "running", "ended", "failed"]


class AcquisitionRun:
    """An acquisition. ``run``: armed; ``flow``: whose frames it processes. Its methods may wait for files and the run.

    uuid     its name for clients
    started  whether it was started;  stopped  whether it was asked to stop
    """

    def __init__(self, run: Run, asked: Mapped, flow: str) -> None:
        self.uuid = str(uuid.uuid4())
        self.run, self.asked, self.flow = run, asked, flow
        self.started = self.stopped = False
        self.visible: Mapping[str, Any] = run.status(detail=True)["visible"]
        self.files: Mapping[str, Any] = next(event["files"] for event in run.events if "files" in event)
        self._progress: Mapping[str, Any] = {}
        self._views: dict[str, Looker] = {}
        self._folder: Path | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        run.on_event(self._note)
        threading.Thread(target=self._attend, daemon=True).start()

    def _note(self, event: dict[str, Any]) -> None:
        if event["type"] == "progress":
            self._progress = event

    def _attend(self) -> None:
        with suppress(Lima2Error):  # its summary says how it ended
            self.run.wait()

    @property
    def state(self) -> State:
        """Its state. A run that ends before it was started has failed."""
        if self.run.live:
            return "running" if self.started else "armed"
        summary = self.run.summary
        fine = self.started and summary is not None and summary.state != "failed"
        return "ended" if fine else "failed"

    def start(self) -> None:
        """Start it. Raises `StateError` where that is not possible."""
        self.run.start()
        self.started = True
        if not self._from_files(INPUT):
            self._look(self.flow)
        if not self.asked.saves and not self.asked.plain:
            self._look(self.asked.processed)

    def stop(self) -> None:
        """Stop it in order, and wait for its files."""
        self.stopped = True
        self.run.stop()
        with suppress(RunFailed):  # clients learn it from the state
            self.run.wait()

    def discard(self) -> None:
        """End it before it was started, and remove its directory."""
        self.run.stop()
        with suppress(RunFailed, TimeoutError):
            self.run.wait(DISCARD_S)
        directory = self.run.directory
        remove_unused(directory, directory)
        link = directory.parent / LATEST
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Look at it no longer; its run and its files stay."""
        for view in self._views.values():
            view.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def received(self) -> int:
        """Frames that receivers have used."""
        summary = None if self.run.live else self.run.summary
        if summary is not None and self.flow in summary.flows:
            return summary.flows[self.flow].received or 0
        return int(self._progress.get("flows", {}).get(self.flow, {}).get("received", 0))

    @property
    def lost(self) -> int:
        """Frames that were lost on the way to the receivers."""
        summary = None if self.run.live else self.run.summary
        if summary is not None and self.flow in summary.flows:
            flow = summary.flows[self.flow]
            return (flow.lost or 0) + (flow.dropped or 0) + (flow.missing or 0)
        return int(self._progress.get("flows", {}).get(self.flow, {}).get("lost", 0))

    def final_rows(self, node: str) -> int:
        """Return the leading rows of a node whose fate is known, and that readers of files can see."""
        return int(self._progress.get("rows", {}).get(node, 0))

    def progress(self, source: str) -> int:
        """Return how many frames of a source there are so far. Raises `Refused`."""
        if source in (INPUT, "raw_frame"):
            return self.received
        self._check(source)
        node = self.asked.counted
        return int(({**self._progress.get("saved", {}), **self._progress.get("rows", {})}).get(node, 0))

    @staticmethod
    def _check(source: str, code: int = 50) -> None:
        if source not in SOURCES:
            raise Refused(code, f"there are no frames {source!r}; there are {', '.join(SOURCES)}")

    def frames(self) -> dict[str, dict[str, Any]]:
        """Return size and dtype of the frames of each source."""
        shown = {INPUT: self.visible[self.flow], FRAME: self.visible[self.asked.processed]}
        return {
            source: {
                "num_channels": 1, "width": spec["shape"][1], "height": spec["shape"][0], "pixel_type": spec["dtype"]
            }
            for source, spec in shown.items()
        }  # fmt: skip

    def masters(self) -> dict[str, tuple[str, str]]:
        """Return path and dataset of the master of each source that is saved."""
        if not self.asked.saves:
            return {}
        file = self.files[FRAME]
        return {FRAME: (str(self.run.directory / file["file"]), file["dataset"])}

    def warnings(self) -> list[str]:
        """Return what users should know of it."""
        summary = self.run.summary
        found = list(self.asked.warnings) + ([] if summary is None else list(summary.warnings))
        return found + ([f"{self.lost} frames were lost"] if self.lost else [])

    def errors(self) -> list[str]:
        """Return why it failed; nothing where it did not."""
        if self.state != "failed":
            return []
        summary = self.run.summary
        if summary is None:
            return [f"the run was aborted; `lima2 recover {self.run.directory}` makes its files readable"]
        return list(dict.fromkeys([summary.reason or "the run failed", *summary.problems]))

    def place(self, source: str, index: int) -> dict[str, Any]:
        """Return the file in which a frame is, by its index among those of the source; -1: the latest.

        Raises:
            Refused: there is no such source, or no such frame (yet).
        """
        self._check(source, 80)
        if index < -1:
            raise Refused(80, f"{index}: an index is at least 0, or -1 for the latest frame")
        file = self._written(self._saved(index) if self._from_files(source) else self._seen(source, index))
        info = self.frames()[source]
        shape = [info["num_channels"], info["height"], info["width"]]
        return {"url": f"file://{file}:{GROUP}", "idx": 0, "frame_type": "DENSE", "shape": shape}

    def _from_files(self, source: str) -> bool:
        return self.asked.saves and (source == FRAME or self.asked.plain)

    def _saved(self, index: int) -> NDArray[Any]:
        found = None if self.run.live else final_frame(self.run.directory, self.run.name, FRAME, index)
        if found is not None:
            return found
        return self.run.saved(FRAME, -1 if index == -1 else int(self.rule(FRAME).frame(index))).pixels

    def rule(self, node: str) -> Any:
        """Return which frame each row of a node is."""
        record = record_of(self.run.directory)
        return (record.channels.get(node) or record.tables[node]).rule

    def _seen(self, source: str, index: int) -> NDArray[Any]:
        node = self.flow if source == INPUT else self.asked.processed
        if not self.started:
            raise Refused(60, f"there is no {source} yet")
        frame = self._look(node).last(FIRST_S)
        if frame is None:
            raise Refused(60, f"there is no {source} yet")
        latest = frame.number if source == INPUT else int(self.rule(self.asked.counted).index(frame.number))
        if index not in (-1, latest):
            raise Refused(60, f"{source} {index} is in no file; the latest, {latest}, is kept")
        return frame.pixels

    def _look(self, node: str) -> Looker:
        with self._lock:
            if node not in self._views:
                self._views[node] = Looker(self.run, node, LOOK_S)
            return self._views[node]

    def _written(self, pixels: NDArray[Any]) -> Path:
        """Write a frame as a file of its own; of these the last ones are kept."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="lima2-frames-"))
            number = next(self._numbers)
            (self._folder / f"{number - KEPT}.h5").unlink(missing_ok=True)
            path = self._folder / f"{number}.h5"
            write_frame(path, pixels)
            return path


RECORD = np.dtype([("avg", "<f4"), ("std", "<f4"), ("min", "<f4"), ("max", "<f4"), ("sum", "<f8")])
"""The statistics of a frame, as Lima2 has them."""

PERIOD_S = 0.05
"""Seconds from one look for new rows to the next."""


def channels(acquisition: AcquisitionRun) -> dict[str, list[dict[str, Any]]]:
    """Return dtype and shape of the records of each region."""
    return {
        name: [{"dtype": RECORD.descr, "shape": [] if one.length is None else [one.length]} for one in found]
        for name, found in _regions(acquisition).items()
        if found
    }


def _regions(acquisition: AcquisitionRun) -> dict[str, tuple[Region, ...]]:
    return {"roi_stats": acquisition.asked.statistics, "roi_profile": acquisition.asked.profiles}


def region(acquisition: AcquisitionRun, name: str, index: int) -> Region:
    """Return a region by the name of its data and its place. Raises `Refused`."""
    found = _regions(acquisition).get(name, ())
    if index >= len(found):
        raise Refused(50, f"there are no data {name} {index}")
    return found[index]


def records(columns: Mapping[str, NDArray[Any]], one: Region, places: NDArray[np.int64], first: int) -> NDArray[Any]:
    """Return rows as records from place ``first`` to the last of ``places``; NaN where a frame was lost.

    Shapes: (n,) of records, (n, length) of a profile.
    """
    count = int(places[-1]) + 1 - first
    shape = (count,) if one.length is None else (count, one.length)
    made = np.full(shape, np.nan, RECORD)
    for name in RECORD.names or ():
        made[name][places - first] = columns[f"{one.roi}_{name}"]
    return made


async def stream(service: Service, acquisition: AcquisitionRun, one: Region) -> AsyncIterator[bytes]:
    """Yield the records of a region as they become final, to the end of the run."""
    sent, run = 0, acquisition.run
    while not service.closing:
        live = run.live
        final = acquisition.final_rows(one.node) if live else None
        if final is None or final > sent:
            made = await service.call(_since, acquisition, one, sent, final)
            if len(made):
                yield made.tobytes()
                sent += len(made)
        if not live:
            return
        await asyncio.sleep(PERIOD_S)


def _since(acquisition: AcquisitionRun, one: Region, sent: int, final: int | None) -> NDArray[Any]:
    """Return the records from place ``sent`` on, before place ``final``; None: all that there are."""
    rule = acquisition.rule(one.node)
    try:
        columns = acquisition.run.rows(one.node, int(rule.frame(sent)) - 1)
    except FileProblem:  # no frame came before the end
        return np.zeros(0, RECORD)
    places = rule.index(columns["frame_number"].astype(np.int64))
    kept = places < final if final is not None else np.ones(len(places), bool)
    if not kept.any():
        return np.zeros(0, RECORD)
    return records({name: values[kept] for name, values in columns.items()}, one, places[kept], sent)
