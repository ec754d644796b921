"""Statistics of regions as the client reads them: records in frame order, each at the place of its frame."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.errors import FileProblem
from lima2cli.web.conductor.acquisition import AcquisitionRun
from lima2cli.web.conductor.mapping import Region
from lima2cli.web.conductor.refusals import Refused
from lima2cli.web.routes import Service

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
