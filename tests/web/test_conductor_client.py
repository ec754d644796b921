"""``lima2 serve --conductor``, driven by Lima2's own client."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.running import PATIENCE_S
from tests.web.conducting import conducting, counter_frames, roi
from tests.web.serving import until

pytest.importorskip("tornado")
services = pytest.importorskip("lima2.client.services")
errors = pytest.importorskip("lima2.common.exceptions")

pytestmark = pytest.mark.interchange

LEGACY = "LimaProcessingLegacy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the server runs."""
    return tmp_path_factory.mktemp("conducted")


@pytest.fixture(scope="module")
def lima2(folder: Path) -> Iterator[Any]:
    """The client of a conductor."""
    with conducting(folder) as server:
        client = services.init("127.0.0.1", server.port)
        yield client
        client.session.session.close()


@pytest.fixture(autouse=True)
def _clean(lima2: Any) -> Iterator[None]:
    """Leave nothing that runs behind, whatever happens."""
    yield
    if lima2.acquisition.running():
        lima2.acquisition.stop()
    lima2.acquisition.reset()


def prepare(lima2: Any, acq: dict[str, Any], *, metadata: Any = None, **processing: dict[str, Any]) -> str:
    """Prepare an acquisition: defaults, with what is given put into them."""
    control, receiver = lima2.acquisition.default_params()
    for one in (control, receiver):
        one["acq"].update(acq)
    chain = lima2.pipeline.default_params(LEGACY)
    for key, values in processing.items():
        chain[key].update(values)
    return str(lima2.acquisition.prepare(control, receiver, chain, metadata))


def ended(lima2: Any) -> None:
    """Wait for the end of the acquisition and its processing."""
    until(lambda: not lima2.acquisition.running() and not lima2.pipeline.running())


def saved(lima2: Any) -> NDArray[Any]:
    """The frames of the master."""
    path, dataset = lima2.pipeline.master_files()["frame"]
    with h5py.File(path) as file:
        frames: NDArray[Any] = file[dataset][()]
        return frames


def test_the_client_accepts_the_server(lima2: Any) -> None:
    lima2.handshake()
    assert lima2.operational()
    assert lima2.connection_state() is services.ConnectionState.ONLINE
    assert lima2.detector.info()["dimensions"] == {"x": 64, "y": 48}
    assert "software" in lima2.detector.capabilities()["trigger_modes"]
    assert lima2.detector.version() == lima2.pipeline.version(LEGACY) == "core-1.2.0"
    assert lima2.pipeline.classes() == [LEGACY]
    assert lima2.pipeline.params_schema(LEGACY)["properties"].keys() == lima2.pipeline.default_params(LEGACY).keys()
    assert lima2.acquisition.state() == "IDLE"
    assert isinstance(lima2.acquisition.result(), services.Unknown)


def test_frames_and_statistics_are_those_of_the_detector(lima2: Any, folder: Path) -> None:
    """The master is known before the start; live frames, rows and files agree with numpy."""
    name = prepare(
        lima2,
        {"nb_frames": 60, "expo_time": 15_000, "latency_time": 5_000},
        metadata={"sample": {"angles": np.array([1.5, 2.5])}},
        statistics={"rect_rois": [roi(3, 4, 20, 10)], "arc_rois": [ARC]},
        profiles={"rois": [roi(0, 0, 30, 8), roi(2, 3, 6, 7)], "directions": ["vertical", "horizontal"]},
        saving={"base_path": str(folder / "all"), "filename_prefix": "d", "nx_detector_name": "eiger"},
    )
    assert str(lima2.pipeline.current_pipeline()) == name
    assert lima2.system_state()["state"] == "PREPARED"
    path, dataset = lima2.pipeline.master_files()["frame"]
    assert Path(path).parent == folder / "all" / "d"
    assert "eiger" in dataset
    info = lima2.pipeline.frame_channels()["frame"]
    assert (info.width, info.height, info.pixel_type) == (64, 48, np.uint16)
    assert [len(found) for found in lima2.pipeline.reduced_data_channels().values()] == [2, 2]
    lima2.acquisition.start()
    assert lima2.acquisition.running()
    until(lambda: lima2.pipeline.progress("frame") > 0)
    frames = counter_frames(60)
    assert np.array_equal(lima2.pipeline.get_frame(0, "frame").data, frames[0])
    live = lima2.pipeline.get_frame(-1, "frame")
    assert lima2.acquisition.running()
    assert any(np.array_equal(live.data, frame) for frame in frames)
    rows = {
        (kind, index): np.concatenate(list(lima2.pipeline.reduced_data(kind, index)))
        for kind in ("roi_stats", "roi_profile")
        for index in (0, 1)
    }
    ended(lima2)
    assert np.array_equal(saved(lima2), frames)
    real = frames.astype(np.float64)
    check(rows["roi_stats", 0], real[:, 4:14, 3:23].reshape(60, -1), -1)
    y, x = np.mgrid[:48, :64]
    check(rows["roi_stats", 1], real[:, ring(x, y)], -1)
    check(rows["roi_profile", 0], real[:, :8, :30], 2)
    check(rows["roi_profile", 1], real[:, 3:10, 2:8], 1)
    assert np.array_equal(lima2.pipeline.get_frame(-1, "frame").data, frames[-1])
    assert np.array_equal(lima2.pipeline.get_frame(-1, "input_frame").data, frames[-1])
    assert lima2.acquisition.result().warnings == []
    assert lima2.acquisition.nb_frames_acquired() == lima2.acquisition.nb_frames_xferred() == 60
    with h5py.File(path) as file:
        extra = file["entry_0000/sample"] if "sample" in file["entry_0000"] else file["entry_0000"]
        assert np.array_equal(found(extra, "angles"), [1.5, 2.5])


ARC = {"center": {"x": 30.0, "y": 20.0}, "r1": 5.0, "r2": 9.0, "a1": 0.0, "a2": 360.0}


def ring(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """The pixels of `ARC`."""
    radius = np.hypot(x - 30, y - 20)
    return (radius >= 5) & (radius < 9)


def found(group: Any, name: str) -> Any:
    """The dataset of that name, wherever it is below a group."""
    paths: list[str] = []
    group.visit(lambda path: paths.append(path) if path.rpartition("/")[2] == name else None)
    return group[paths[0]][()]


def check(rows: NDArray[Any], pixels: NDArray[Any], axis: int) -> None:
    """Records are the statistics of pixels along an axis."""
    assert np.array_equal(rows["sum"], pixels.sum(axis))
    assert np.array_equal(rows["min"], pixels.min(axis))
    assert np.array_equal(rows["max"], pixels.max(axis))
    assert np.allclose(rows["avg"], pixels.mean(axis), rtol=1e-6)
    assert np.allclose(rows["std"], pixels.std(axis), rtol=1e-4)


def test_a_step_scan(lima2: Any, folder: Path) -> None:
    """Prepared and started once; a trigger for each point, whose frame is there as soon as it is counted."""
    prepare(
        lima2,
        {"nb_frames": 4, "expo_time": 1000, "trigger_mode": "software"},
        saving={"base_path": str(folder / "step"), "filename_prefix": "d"},
    )
    lima2.acquisition.trigger()  # ignored: it is not started
    lima2.acquisition.start()
    frames = counter_frames(4)
    for point in range(4):
        assert lima2.acquisition.nb_frames_acquired() == point
        lima2.acquisition.trigger()
        until(lambda p=point: lima2.pipeline.progress("frame") == p + 1)
        assert np.array_equal(lima2.pipeline.get_frame(-1, "frame").data, frames[point])
    ended(lima2)
    assert np.array_equal(saved(lima2), frames)


def test_an_endless_acquisition_is_stopped(lima2: Any, folder: Path) -> None:
    prepare(lima2, {"nb_frames": 0, "expo_time": 5000}, saving={"base_path": str(folder / "endless")})
    lima2.acquisition.start()
    until(lambda: lima2.acquisition.nb_frames_acquired() >= 5)
    lima2.acquisition.stop()
    assert not lima2.acquisition.running()
    lima2.acquisition.stop()  # as a request that is sent again
    count = lima2.acquisition.nb_frames_acquired()
    assert np.array_equal(saved(lima2), counter_frames(count))
    assert isinstance(lima2.acquisition.result(), services.AcquisitionSuccess)


def test_a_processing_chain_is_that_of_numpy(lima2: Any, folder: Path) -> None:
    """Background and mask; the raw frame can be looked at besides, and statistics leave masked pixels out."""
    chance = np.random.default_rng(3)
    background = chance.integers(0, 100, (48, 64)).astype(np.float32)
    mask = np.zeros((48, 64), np.uint8)
    mask[5:9, 7:20] = 1
    with h5py.File(folder / "images.h5", "w") as file:
        file["background"], file["mask"] = background, mask
    prepare(
        lima2,
        {"nb_frames": 40, "expo_time": 20_000},
        background={"enabled": True, "path": "images.h5::/background"},
        mask={"enabled": True, "path": "images.h5::/mask"},
        statistics={"rect_rois": [roi(0, 0, 30, 20)]},
        saving={"base_path": str(folder / "chain"), "compression": "none"},
    )
    assert lima2.pipeline.frame_channels()["frame"].pixel_type == np.float32
    lima2.acquisition.start()
    raw = counter_frames(40)
    seen = lima2.pipeline.get_frame(-1, "input_frame")
    assert any(np.array_equal(seen.data, frame) for frame in raw)
    (sums,) = (np.concatenate([part["sum"] for part in lima2.pipeline.reduced_data("roi_stats", 0)]),)
    ended(lima2)
    clean = np.where(mask, 0, raw - background)
    assert np.array_equal(saved(lima2), clean)
    assert np.allclose(sums, clean[:, :20, :30].sum((1, 2), np.float64))
    with pytest.raises(RuntimeError, match="is in no file"):
        lima2.pipeline.get_frame(0, "input_frame")


def test_processed_frames_need_not_be_saved(lima2: Any) -> None:
    """Sums of two frames are computed, counted and shown, and no frame is in a file."""
    prepare(
        lima2,
        {"nb_frames": 100, "expo_time": 10_000},
        accumulation={"enabled": True, "nb_frames": 2},
        saving={"enabled": False},
    )
    assert lima2.pipeline.master_files() == {}
    lima2.acquisition.start()
    frame = lima2.pipeline.get_frame(-1, "frame").data
    frames = counter_frames(100).astype(np.int64)
    assert any(np.array_equal(frame, one + other) for one, other in zip(frames[::2], frames[1::2], strict=True))
    ended(lima2)
    assert lima2.pipeline.progress("frame") == 50
    assert lima2.pipeline.progress("input_frame") == 100


def test_errors_are_those_of_the_client(lima2: Any, folder: Path) -> None:
    with pytest.raises(errors.Lima2BadCommand):
        lima2.acquisition.start()
    with pytest.raises(errors.Lima2NotFound):
        lima2.pipeline.current_pipeline()
    with pytest.raises(errors.Lima2ParamError) as wrong:
        prepare(lima2, {"nb_frames": -1})
    assert (wrong.value.path, wrong.value.schema["minimum"]) == ("$.acq.nb_frames", 0)
    with pytest.raises(errors.Lima2ParamError) as wrong:
        prepare(lima2, {}, statistics={"rect_rois": [roi(60, 0, 9, 9)]})
    assert wrong.value.path == "$.nodes.roi_stats.roi_counters.rois.r0.rect"
    with pytest.raises(errors.Lima2ParamError, match="there is no file"):
        prepare(lima2, {}, background={"enabled": True, "path": "none.h5"})
    with pytest.raises(errors.Lima2ValueError):
        prepare(lima2, {}, max_countrate_protection={"enabled": True})
    (folder / "taken" / "d").mkdir(parents=True)
    (folder / "taken" / "d" / "notes.txt").write_text("mine")
    for policy in ("abort", "overwrite"):
        place = {"base_path": str(folder / "taken"), "filename_prefix": "d", "file_exists_policy": policy}
        with pytest.raises(errors.Lima2BackendError):
            prepare(lima2, {}, saving=place)
    prepare(lima2, {"nb_frames": 10, "trigger_mode": "software"}, saving={"enabled": False})
    with pytest.raises(RuntimeError, match="yet"):
        lima2.pipeline.get_frame(0, "frame")
    with pytest.raises(ValueError, match="no frames 'x'"):
        lima2.pipeline.get_frame(0, "x")
    with pytest.raises(errors.Lima2NotFound):
        lima2.pipeline.progress("x")
    with pytest.raises(errors.Lima2NotFound):
        next(lima2.pipeline.reduced_data("roi_stats", 0))
    assert not lima2.pipeline.running("00000000-0000-0000-0000-000000000000")


def test_one_command_at_a_time(lima2: Any, folder: Path) -> None:
    other = services.init("127.0.0.1", lima2.session.port)
    preparing = threading.Thread(target=prepare, args=(other, {}), kwargs={"saving": {"enabled": False}})
    preparing.start()
    end = time.monotonic() + PATIENCE_S
    conflict = False
    while preparing.is_alive() and not conflict:
        assert time.monotonic() < end
        try:
            lima2.acquisition.start()
        except errors.Lima2Conflict:
            conflict = True
        except errors.Lima2BadCommand:
            time.sleep(0.01)  # it has not begun yet
    preparing.join(PATIENCE_S)
    other.session.session.close()
    assert conflict


def test_a_run_that_fails_is_a_fault(lima2: Any, folder: Path) -> None:
    """A run whose process is killed has failed, until it is reset."""
    from lima2cli import open as open_run

    prepare(lima2, {"nb_frames": 0, "expo_time": 10_000}, saving={"base_path": str(folder / "broken")})
    lima2.acquisition.start()
    until(lambda: lima2.acquisition.nb_frames_acquired() > 0)
    watched = open_run(folder / "broken" / "lima2")
    os.kill(watched.status(detail=True)["detail"]["pid"], signal.SIGKILL)
    until(lambda: lima2.acquisition.state() == "FAULT")
    assert lima2.acquisition.failed()
    assert lima2.acquisition.errors() == lima2.pipeline.errors()
    assert "lima2 recover" in lima2.acquisition.errors()[0]
    assert isinstance(lima2.acquisition.result(), services.AcquisitionFailure)
    lima2.acquisition.reset()
    assert not lima2.acquisition.failed()
