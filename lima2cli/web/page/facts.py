"""Facts of a run that a page shows next to its frames: gathered in a thread, handed over whole."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lima2cli.accounting.summary import Summary
from lima2cli.dataclass import dataclass
from lima2cli.drive import Run
from lima2cli.errors import FileProblem, Lima2Error, RunFailed, StateError
from lima2cli.files.channel import Channel, TableChannel
from lima2cli.geometry import Rect
from lima2cli.paths import read_json_object
from lima2cli.runs.ending import record_of
from lima2cli.runs.saved_plan import PLAN_FILE
from lima2cli.view import Outline, View, view_from
from lima2cli.web.library import Library

MOST_ROWS = 2000
"""Rows of a table that are plotted, the last."""

MOST_NAMES = 200
"""Runs that are listed, the newest."""

MOST_FILES = 40
"""Files of a run that are listed."""


@dataclass(frozen=True)
class Layout:
    """The parts of a run that can be shown, which do not change while it goes on.

    live, saved  flows and nodes whose frames can be looked at, while it goes on and after its end, with their views
    regions      outlines in detector pixels, by node and name
    tables       the nodes that have rows
    triggered    whether it takes software triggers
    """

    name: str
    run: Run
    live: Mapping[str, View]
    saved: Mapping[str, View]
    regions: Mapping[str, Mapping[str, Outline]]
    tables: Mapping[str, TableChannel]
    triggered: bool


@dataclass(frozen=True, eq=False)
class Facts:
    """A run as it stands.

    names     of all runs, the newest first
    layout    None where there is no run, or it cannot be read: ``problem`` says why
    status    of a run that goes on, with ``detail``
    summary   of one that has ended
    warnings  of the run so far
    files     name and bytes of each, after the end
    rows      of the table that was asked for, its last `MOST_ROWS`
    """

    names: Sequence[str]
    layout: Layout | None = None
    problem: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    summary: Summary | None = None
    warnings: Sequence[str] = ()
    files: Sequence[tuple[str, int]] = ()
    rows: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Return whether the run goes on."""
        return bool(self.status)

    @property
    def regions(self) -> Mapping[str, Mapping[str, Outline]]:
        """Return the regions of nodes, as far as they were changed those of now."""
        return {} if self.layout is None else {**self.layout.regions, **self.status.get("regions", {})}

    @property
    def takes_triggers(self) -> bool:
        """Return whether the run takes software triggers."""
        return self.live and self.layout is not None and self.layout.triggered

    @property
    def state(self) -> str:
        """Return the state of the run in words."""
        if self.layout is None:
            return "no run"
        return str(self.status.get("state") or (self.summary.state if self.summary else "aborted"))


def gather(library: Library, name: str, table: str, known: Layout | None) -> Facts:
    """Return a run as it stands, ``latest`` the newest; ``known`` is its layout where that has been read."""
    names = library.names()[::-1]
    if not names:
        return Facts([])
    try:
        directory = library.directory(name)
        run = library.open(directory.name)
        layout = known if known is not None and known.run is run else layout_of(directory.name, run)
        return _facts(names[:MOST_NAMES], layout, table)
    except (Lima2Error, OSError, ValueError, KeyError) as error:
        return Facts(names[:MOST_NAMES], problem=f"{name}: {error}")


def layout_of(name: str, run: Run) -> Layout:
    """Return what can be shown of a run."""
    plan, record = read_json_object(run.directory / PLAN_FILE), record_of(run.directory)
    live = {node: view_from(spec["view"]) for node, spec in plan["visible"].items()}
    saved = {node: _view_of(channel) for node, channel in record.channels.items()}
    return Layout(name, run, live, saved, plan["regions"], record.tables,
                  plan["parameters"]["acquisition"].get("trigger") == "software")  # fmt: skip


def _view_of(channel: Channel) -> View:
    """Return the view of saved frames: sparse ones are shown as whole detector images."""
    detector = channel.detector
    return View(Rect(0, 0, detector.width, detector.height)) if channel.sparse else channel.view


def _facts(names: Sequence[str], layout: Layout, table: str) -> Facts:
    run = layout.run
    status: Mapping[str, Any] = {}
    if run.live:
        try:
            status = run.status(detail=True)
        except (StateError, RunFailed):
            status = {}  # it has ended just now
    summary = None if status else run.summary
    told = [event["message"] for event in run.events if event.get("event") == "warning"]
    found = told if summary is None else [*summary.losses, *summary.problems, *summary.warnings]
    files = [] if status else [(path.name, path.stat().st_size) for path in run.files[:MOST_FILES]]
    return Facts(
        names, layout, "", status, summary, found, files,
        _rows(run, layout.tables[table]) if table in layout.tables else {},
    )  # fmt: skip


def _rows(run: Run, table: TableChannel) -> Mapping[str, NDArray[Any]]:
    """Return the last rows of a table; none where there are none yet."""
    try:
        newest = run.rows(table.node, _before(run, table))
    except (FileProblem, StateError, RunFailed):
        return {}
    return {name: values[-MOST_ROWS:] for name, values in newest.items()}


def _before(run: Run, table: TableChannel) -> int:
    """Return the number of a frame before which no row is plotted, so that long tables are not read whole."""
    count = run.status()["rows"].get(table.node) if run.live else table.selected
    if count is None or table.window != 1:
        return -1
    return int(table.rule.frame(max(0, int(count) - 2 * MOST_ROWS))) - 1


def corners(outline: Outline, view: View) -> Outline:
    """Return an outline as frames show it that show the detector by ``view``: closed lines, in pixels of the frame."""
    return [[view.point(x, y) for x, y in (*line, line[0])] for line in outline]


def where(path: Path) -> str:
    """Return a path in short: below the working directory relative to it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
