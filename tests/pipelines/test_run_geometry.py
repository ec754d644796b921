"""Runs whose frames are cut, binned and turned: pixels, counters and saved geometry against whole frames and numpy."""

from typing import Any

import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.running import EXAMPLES, TRANSPORTS, Ran, counter, covered, run

MODULES = [Rect(0, 0, 250, 384), Rect(262, 0, 250, 384)]
IMAGE = Rect(0, 0, 512, 384)


def raw(numbers: Any) -> Any:
    """Whole frames of the example, its scene replaced by one that every pixel can be told of."""
    frames = counter(numbers, IMAGE, 512)
    frames[:, ~covered(MODULES, IMAGE)] = 0
    return frames


def turned(images: Any) -> Any:
    """The example's node, by numpy: (…, 384, 512) → (…, 200, 160)."""
    *more, height, width = images.shape
    bins = images.reshape(*more, height // 2, 2, width // 2, 2).sum(axis=(-3, -1))
    return np.rot90(bins[..., 8:168, 16:216][..., ::-1], -1, axes=(-2, -1))


@pytest.fixture(scope="module", params=TRANSPORTS)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("turned")
    np.save(folder / "dark.npy", np.arange(384 * 512, dtype=np.int32).reshape(384, 512) % 97)
    text = (EXAMPLES / "roi_flip_rot.yaml").read_text().replace("rings: {seed: 1}", "counter: {}")
    text += (
        "  dark: {input: turned, background_sub: {image: dark.npy}}\n"
        "  dark_save: {input: dark, io_hdf5: {}}\n"
        "  again: {input: turned, roi_flip_rot: {binning: {x: 3, y: 1}, flip: vertical}}\n"
        "  again_save: {input: again, io_hdf5: {}}\n"
    )
    done = run(text, folder, request.param, name="turned")
    assert done.code == 0, done.output
    return done


def test_frames_are_those_of_numpy(ran: Ran) -> None:
    frames, numbers, status = ran.saved("save")
    assert (frames.dtype, frames.shape) == (np.uint32, (100, 200, 160))
    assert numbers.tolist() == list(range(100))
    assert not status.any()
    np.testing.assert_array_equal(frames, turned(raw(numbers).astype(np.uint64)))


def test_a_dark_of_the_detector_goes_the_same_way(ran: Ran) -> None:
    frames, numbers, _ = ran.saved("dark_save")
    dark = np.arange(384 * 512, dtype=np.int64).reshape(384, 512) % 97
    assert frames.dtype == np.float32
    expected = np.where(covered(MODULES, IMAGE), raw(numbers).astype(np.int64) - dark, np.nan)
    np.testing.assert_array_equal(frames, turned(expected))  # small enough for float32


def test_a_second_node_goes_on_from_the_first(ran: Ran) -> None:
    frames, numbers, _ = ran.saved("again_save")
    whole = turned(raw(numbers).astype(np.uint64))[:, :, :159].reshape(100, 200, 53, 3).sum(axis=3)
    assert frames.dtype == np.uint64
    np.testing.assert_array_equal(frames, whole[:, ::-1])


def test_counters_in_detector_coordinates_count_the_detectors_pixels(ran: Ran) -> None:
    import h5py

    y, x = np.mgrid[0.5:384:2, 0.5:512:2]  # centres of the bins
    radius = np.hypot(x - 250, y - 200)
    inside = (radius >= 20) & (radius < 60)
    gap = ~covered(MODULES, IMAGE).reshape(192, 2, 256, 2).all(axis=(1, 3))
    shown = np.zeros((192, 256), bool)
    shown[8:168, 16:216] = True
    numbers = np.arange(100, dtype=np.uint64)
    bins = raw(numbers).astype(np.uint64).reshape(100, 192, 2, 256, 2).sum(axis=(2, 4))
    with h5py.File(ran.directory / "turned_beam.h5") as file:
        np.testing.assert_array_equal(
            file["entry_0000/measurement/beam_sum"][()], bins[:, inside & ~gap & shown].sum(axis=1)
        )


def geometry(ran: Ran, node: str) -> dict[str, Any]:
    """Return the data saved next to the frames, plain."""
    import h5py

    found: dict[str, Any] = {}
    with h5py.File(ran.directory / f"turned_{node}_master.h5") as file:
        detector = file["entry_0000/instrument/remu"]
        for name in ("x_pixel_size", "y_pixel_size", "beam_center_x", "beam_center_y", "pixel_mask"):
            found[name] = detector[name][()]
        operation = detector["image_operation"]
        operation.visititems(
            lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def test_the_saved_geometry_is_that_of_the_frames(ran: Ran) -> None:
    found = geometry(ran, "save")
    # bins of 2 x 2 from (32, 16): the beam is in bin (108.75, 91.75), 199 - 108.75 = 90.25 after the flip
    assert (found["beam_center_x"], found["beam_center_y"]) == (159 - 91.75, 90.25)
    assert (found["x_pixel_size"], found["y_pixel_size"]) == (pytest.approx(150e-6), pytest.approx(150e-6))
    assert (found["origin/x"], found["origin/y"], found["width"], found["height"]) == (32, 16, 400, 320)
    assert (found["binning/x"], found["binning/y"], found["flip"], found["rotation"]) == (2, 2, b"horizontal", 90)
    masked = turned((~covered(MODULES, IMAGE)).astype(int)) > 0
    np.testing.assert_array_equal(found["pixel_mask"] != 0, masked)
    again = geometry(ran, "again_save")
    # columns are the detector's rows by now, and the last one of 160 is the first on the detector
    assert (again["binning/x"], again["binning/y"]) == (2, 6)
    assert (again["x_pixel_size"], again["y_pixel_size"]) == (pytest.approx(450e-6), pytest.approx(150e-6))
    assert (again["origin/y"], again["height"]) == (18, 318)
    assert (again["flip"], again["rotation"]) == (b"none", 90)
