"""Recorded frames of real detectors, replayed, processed and saved; opened by readers that we did not write."""

from pathlib import Path

import numpy as np
import pytest

from tests.running import TRANSPORTS, Ran, run

STACK = "::/entry/data/data"


def stack(data_dir: Path, name: str) -> Path:
    """A file of recorded frames; the test is skipped where it is absent."""
    path = data_dir / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path


def frames_of(path: Path, dataset: str = "/entry/data/data") -> np.ndarray:  # type: ignore[type-arg]
    """A dataset, whole."""
    import h5py
    import hdf5plugin  # noqa: F401

    with h5py.File(path) as file:
        whole: np.ndarray = file[dataset][()]  # type: ignore[type-arg]
    return whole


def test_tomography_corrected_as_numpy_does(data_dir: Path, tmp_path: Path) -> None:
    path = stack(data_dir, "tomo_pco_raw_dark_flat.h5")
    mask = np.zeros((135, 160), np.uint8)
    mask[20:25, 30:40] = 1
    np.save(tmp_path / "mask.npy", mask)
    ran = run(
        f"""
lima2: 1
detector: {{replay: {{file: "{path}{STACK}"}}}}
receivers: 2
flows: {{raw: {{dataset: data, rules: {{blocks_per_group: 4}}, buffers: {{frames: 16}}}}}}
nodes:
  dark: {{input: raw, background_sub: {{image: "{path}::/entry/data/dark"}}}}
  flat: {{input: dark, flatfield: {{image: "{path}::/entry/data/flat", background: "{path}::/entry/data/dark"}}}}
  good: {{input: flat, mask: {{image: mask.npy, fill: -1}}}}
  save: {{input: good, io_hdf5: {{compression: gzip}}}}
  counters: {{input: good, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 160, height: 135}}}}}}}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    raw = frames_of(path)
    dark, flat = frames_of(path, "/entry/data/dark"), frames_of(path, "/entry/data/flat")
    with np.errstate(all="ignore"):
        expected = (raw.astype(np.float32) - dark) / (flat - dark)
    expected[:, mask > 0] = -1
    saved, numbers, status = ran.saved("save")
    assert saved.dtype == np.float32
    assert numbers.tolist() == list(range(91))
    assert not status.any()
    valid = (flat - dark != 0) & (mask == 0)
    assert valid.sum() == 135 * 160 - 50 - 1  # pixel (0, 0) is 0 in dark and flat
    np.testing.assert_allclose(saved[:, valid], expected[:, valid], rtol=2**-22)
    assert (saved[:, ~valid] == -1).all()  # pixel (0, 0) too
    check_pixel_mask(ran, ~valid)
    check_sums(ran, saved[:, valid].sum(axis=1, dtype=np.float64))


def check_pixel_mask(ran: Ran, masked: np.ndarray) -> None:  # type: ignore[type-arg]
    """Masked pixels are saved as NeXus pixel_mask."""
    import h5py

    with h5py.File(ran.directory / "pipeline_save_master.h5") as file:
        detector = file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent
        np.testing.assert_array_equal(detector["pixel_mask"][()] != 0, masked)


def check_sums(ran: Ran, sums: np.ndarray) -> None:  # type: ignore[type-arg]
    """The table of counters is in frame order, receivers merged."""
    import h5py

    with h5py.File(ran.directory / "pipeline_counters.h5") as file:
        table = file["entry_0000/measurement"]
        assert table["frame_number"][()].tolist() == list(range(len(sums)))
        np.testing.assert_allclose(table["all_sum"][()], sums, rtol=1e-12)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_pilatus_as_its_ten_modules_bit_for_bit(transport: str, data_dir: Path, tmp_path: Path) -> None:
    path = stack(data_dir, "pilatus3_1m_crop_thaumatin_stack.h5")
    ran = run(
        f"""
lima2: 1
name: pilatus
detector:
  replay:
    file: "{path}{STACK}"
    modules: {{columns: 2, rows: 5, width: 487, height: 195, gap: {{x: 7, y: 17}}}}
    gap_value: -1
    pixel_size: {{x: 172 um, y: 172 um}}
receivers: 2
flows: {{frames: {{dataset: data, buffers: {{frames: 4}}}}}}
nodes: {{save: {{input: frames, io_hdf5: {{}}}}}}
""",
        tmp_path,
        transport,
        name="pilatus",
    )
    assert ran.code == 0, ran.output
    saved, numbers, status = ran.saved("save")
    recorded = frames_of(path)
    assert saved.dtype == recorded.dtype
    assert numbers.tolist() == list(range(19))
    assert not status.any()
    np.testing.assert_array_equal(saved, recorded)
    check_readers(ran, "pilatus_save_master.h5", recorded)
    check_readers(ran, "pilatus.h5", recorded)


def check_readers(ran: Ran, name: str, frames: np.ndarray) -> None:  # type: ignore[type-arg]
    """silx, fabio and nexusformat find the frames without a path."""
    import fabio
    from nexusformat import nexus
    from silx import io as silx_io
    from silx.io import nxdata as silx_nxdata

    path = str(ran.directory / name)
    with silx_io.open(path) as file:
        default = silx_nxdata.get_default(file)
        assert default is not None
        np.testing.assert_array_equal(default.signal[5], frames[5])
        assert default.signal.shape == frames.shape
    with fabio.open(path) as image:
        assert image.nframes == len(frames)
        np.testing.assert_array_equal(image.get_frame(3).data, frames[3])
    tree = nexus.nxload(path)
    signal = tree.get_default().nxsignal
    np.testing.assert_array_equal(signal[7].nxdata, frames[7])


def test_the_shortest_pipeline(data_dir: Path, tmp_path: Path) -> None:
    path = stack(data_dir, "pco_edge_id03_dfxm_long_stack.h5")
    ran = run(
        f"""lima2: 1
detector: {{replay: {{file: "{path}{STACK}"}}}}
nodes: {{save: {{input: data, io_hdf5: {{}}}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    saved, numbers, status = ran.saved("save")
    assert numbers.tolist() == list(range(481))
    assert not status.any()
    np.testing.assert_array_equal(saved, frames_of(path))


def test_a_large_frame_less_its_dark(data_dir: Path, tmp_path: Path) -> None:
    path = stack(data_dir, "perkinelmer_xpd_ni_light_dark.h5")
    ran = run(
        f"""
lima2: 1
detector: {{replay: {{file: "{path}{STACK}"}}}}
flows: {{light: {{dataset: data, buffers: {{frames: 1}}}}}}
nodes:
  net: {{input: light, background_sub: {{image: "{path}::/entry/data/dark", dtype: keep}}}}
  save: {{input: net, io_hdf5: {{compression: none}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    raw, dark = frames_of(path), frames_of(path, "/entry/data/dark")
    saved, _, _ = ran.saved("save")
    assert saved.dtype == np.uint16
    np.testing.assert_array_equal(saved, np.clip(raw.astype(np.int64) - dark, 0, 65535))
