"""Frames and rows of a run on request, while it goes on or from its files."""

import io
import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.drive import LiveFrame, Run
from lima2cli.errors import FileProblem, RunFailed, StateError
from lima2cli.files.picture import picture, png
from lima2cli.runs.control_socket import HangUp
from lima2cli.runs.ending import record_of
from lima2cli.web.routes import JSON, Answer, Asked, Problem, Service

NPY, PNG = "application/x-npy", "image/png"

WAIT_S = 5.0
"""Seconds that a frame of a run that goes on is waited for."""

MOST_JSON = 1 << 20
"""Maximal number of pixels of a frame as JSON."""


async def frame(service: Service, asked: Asked) -> Answer:
    """Answer with a frame of a flow or node."""
    run = await service.call(service.library.open, asked.path["name"])
    found = await service.call(frame_of, run, asked.path["node"], asked.query["number"])
    return await service.call(_frame_answer, found, asked.query["as"])


def frame_of(run: Run, node: str, number: int) -> LiveFrame:
    """Return a frame: the last (-1) of a run that goes on is live, any other is one that is saved.

    Raises:
        Problem: there is no such flow or node, or no frame yet.
    """
    saved = node in record_of(run.directory).channels
    if run.live and number == -1:
        try:
            live = next_frame(run, node)
        except StateError as error:  # it has just ended, or its frames cannot be looked at
            if not saved:
                raise Problem(404, str(error)) from error
            live = None
        if live is not None:
            return live
        if not saved:
            raise Problem(404, f"no frame of {node} has come in {WAIT_S:g} s")
    if not saved:
        raise Problem(404, f"no frames of {node} are saved")
    return run.saved(node, number)


def next_frame(run: Run, node: str) -> LiveFrame | None:
    """Return the next frame of a flow or node of a run that goes on; None where none comes.

    Raises:
        StateError: the run has ended, or has no such frames.
    """
    hang_up = HangUp()
    timer = threading.Timer(WAIT_S, hang_up)
    timer.start()
    try:
        return next(iter(run.tap(node, count=1, hang_up=hang_up)), None)
    except RunFailed as error:
        raise StateError(str(error)) from error
    finally:
        timer.cancel()


def _frame_answer(found: LiveFrame, form: str) -> Answer:
    about = {
        "frame_number": found.number, "time_ns": found.time_ns, "acquisition": found.acquisition,
        "receiver": found.receiver,
    }  # fmt: skip
    headers = {
        f"Lima2-{key.replace('_', '-').title()}": str(value) for key, value in about.items() if value is not None
    }
    if form == "png":
        return Answer(png(picture(found.pixels, found.mask)), media=PNG, headers=headers)
    if form == "npy":
        return Answer(npy(found.pixels), media=NPY, headers=headers)
    if found.pixels.size > MOST_JSON:
        raise Problem(400, f"frames of more than {MOST_JSON} pixels are not given as JSON: as=npy")
    more = {"dtype": str(found.pixels.dtype), "shape": list(found.pixels.shape), "pixels": found.pixels.tolist()}
    return Answer({"node": found.node} | about | more, media=JSON, headers=headers)


def npy(array: NDArray[Any]) -> bytes:
    """Return an array as a npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


async def counters(service: Service, asked: Asked) -> Answer:
    """Answer with the rows of a table."""
    run = await service.call(service.library.open, asked.path["name"])
    node, since = asked.path["node"], asked.query["since"]
    columns = await service.call(final_rows, run, node, since)
    numbers = columns["frame_number"]
    last = int(numbers[-1]) if len(numbers) else since
    if asked.query["as"] == "npy":
        content = await service.call(lambda: npy(structured(columns)))
        return Answer(content, media=NPY, headers={"Lima2-Since": str(last)})
    plain = {name: values.tolist() for name, values in columns.items()}
    return Answer({"node": node, "rows": len(numbers), "since": last, "columns": plain})


def final_rows(run: Run, node: str, since: int) -> dict[str, NDArray[Any]]:
    """Return the rows of a table of frames with a greater number than ``since``.

    While the run goes on only those before which no other can come, where that is known: receivers write theirs at
    different times.

    Raises:
        Problem: there is no such table.
        FileProblem: its file can't be read.
    """
    tables = record_of(run.directory).tables
    if node not in tables:
        raise Problem(404, f"there are no rows of {node}; these have some: {', '.join(tables) or '(none)'}")
    before = math.inf
    if run.live and tables[node].complete and tables[node].window == 1:
        try:
            final = run.status()["rows"].get(node)
        except (StateError, RunFailed):
            final = None  # it has just ended: all are there
        if final is not None:
            before = tables[node].rule.frame(int(final))
    try:
        columns = run.rows(node, since)
    except FileProblem:
        if not run.live:
            raise
        return {"frame_number": np.zeros(0, np.uint64)}  # no file yet
    kept = columns["frame_number"] < before
    return columns if kept.all() else {name: values[kept] for name, values in columns.items()}


def structured(columns: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Return columns as one structured array (n,), of vectors a field (length,)."""
    fields = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    table = np.empty(len(columns["frame_number"]), np.dtype(fields))
    for name, values in columns.items():
        table[name] = values
    return table
