"""A pipeline as a detector of bluesky: documents that its own schemas accept, and files that agree with them."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import h5py
import hdf5plugin  # noqa: F401  filters, as readers of these files have them
import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, counter

pytest.importorskip("ophyd_async", reason="pip install 'lima2cli[bluesky]'")

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import event_model
from bluesky import RunEngine
from ophyd_async.core import TriggerInfo

from lima2cli.bluesky import Lima2Detector

pytestmark = pytest.mark.interchange

PIPELINE = """
lima2: 1
name: b
detector: {remu: {image: {width: 64, height: 48}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {period: 2 ms}
receivers: 2
nodes:
  save: {input: data, io_hdf5: {}}
  roi: {input: data, roi_counters: {rois: {spot: {rect: {x: 10, y: 10, width: 20, height: 20}}}}}
"""

Documents = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run engine, which writes to this folder, and the documents that it gives; these are valid."""
    monkeypatch.chdir(tmp_path)
    documents: Documents = []

    def take(name: str, document: dict[str, Any]) -> None:
        event_model.schema_validators[event_model.DocumentNames[name]].validate(document)
        documents.append((name, document))

    run_engine = RunEngine()
    run_engine.subscribe(take)
    run_engine.documents = documents
    return run_engine


def counted(documents: Documents, key: str) -> list[tuple[int, int]]:
    """The ranges of rows that were announced of a data key."""
    (resource,) = [one["uid"] for name, one in documents if name == "stream_resource" and one["data_key"] == key]
    data = [one["indices"] for name, one in documents if name == "stream_datum" and one["stream_resource"] == resource]
    return [(one["start"], one["stop"]) for one in data]


def saved(documents: Documents, key: str) -> Any:
    """The dataset that documents name."""
    (one,) = [one for name, one in documents if name == "stream_resource" and one["data_key"] == key]
    with h5py.File(urlparse(one["uri"]).path) as file:
        return file[one["parameters"]["dataset"]][()]


def check_files(documents: Documents, frames: int) -> None:
    """Frames and sums are those of the scene."""
    shown = counter(np.arange(frames, dtype=np.uint64), Rect(0, 0, 64, 48), 64)
    assert np.array_equal(saved(documents, "det"), shown)
    assert np.array_equal(saved(documents, "det-roi-spot_sum"), shown[:, 10:30, 10:30].sum(axis=(1, 2)))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_count(transport: str, engine: Any) -> None:
    detector = Lima2Detector(PIPELINE, name="det", transport=transport)
    for _ in range(2):  # a stage is a run
        engine.documents.clear()
        engine(bp.count([detector], 4))
        names = Counter(name for name, _ in engine.documents)
        assert (names["event"], names["stream_datum"]) == (4, 4 * names["stream_resource"])
        assert counted(engine.documents, "det") == [(0, 1), (1, 2), (2, 3), (3, 4)]
        (descriptor,) = [one for name, one in engine.documents if name == "descriptor"]
        key = descriptor["data_keys"]["det"]
        assert (key["shape"], key["dtype_numpy"], key["external"]) == ([1, 48, 64], "<u2", "STREAM:")
        check_files(engine.documents, 4)


def test_a_fly_scan(engine: Any) -> None:
    detector = Lima2Detector(PIPELINE, name="det", transport="inline")

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def fly() -> Any:
        yield from bps.prepare(detector, TriggerInfo(number_of_events=500, livetime=5e-4, deadtime=5e-4), wait=True)
        yield from bps.declare_stream(detector, name="main", collect=True)
        yield from bps.kickoff(detector, wait=True)
        yield from bps.complete(detector, wait=True)
        yield from bps.collect(detector, name="main")

    engine(fly())
    ranges = counted(engine.documents, "det")
    assert (ranges[0][0], ranges[-1][1]) == (0, 500)
    assert all(one[1] == other[0] for one, other in pairwise(ranges))
    check_files(engine.documents, 500)


def test_several_frames_a_point(engine: Any) -> None:
    detector = Lima2Detector(PIPELINE, name="det", nodes=["save"], transport="inline")

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def scan() -> Any:
        yield from bps.prepare(detector, TriggerInfo(exposures_per_collection=1, collections_per_event=5), wait=True)
        for _ in range(3):
            yield from bps.trigger_and_read([detector])

    engine(scan())
    assert len(saved(engine.documents, "det")) == 15
    assert counted(engine.documents, "det") == [(0, 1), (1, 2), (2, 3)]


def test_times_are_those_of_a_stage(engine: Any) -> None:
    """Another period within a stage is refused, not ignored."""
    detector = Lima2Detector(PIPELINE, name="det", transport="inline")

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def scan() -> Any:
        for livetime in (1e-3, 2e-3):
            yield from bps.prepare(detector, TriggerInfo(livetime=livetime, deadtime=1e-3), wait=True)
            yield from bps.trigger_and_read([detector])

    with pytest.raises(Exception, match="stage again"):
        engine(scan())


def test_what_is_not_saved_is_no_data_key() -> None:
    with pytest.raises(ValueError, match="raw saves nothing; these do"):
        Lima2Detector(PIPELINE, name="det", nodes=["raw"])
