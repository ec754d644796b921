"""Frame files: what goes in comes out, whatever the sizes of blocks, chunks and files, and whatever happens."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
import silx.io
from hypothesis import given, settings
from hypothesis import strategies as st
from silx.io import nxdata

from lima2cli.errors import FileProblem
from lima2cli.files.appending import lookup3, reopenable
from lima2cli.files.compression import COMPRESSIONS
from lima2cli.files.frame_writer import FrameWriter, frames_per_chunk_auto
from tests import ROOT
from tests.artefacts_samples import detector_group, make_block, make_channel, write_all
from tests.faults.apart import reset_peak, status

assert hdf5plugin  # registers the filters for h5py


@pytest.mark.parametrize("compression", COMPRESSIONS)
@settings(max_examples=6)
@given(
    stable=st.booleans(),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    per_chunk=st.integers(1, 5),
    per_file=st.integers(0, 7),
    strided=st.booleans(),
    flushes=st.sets(st.integers(0, 5)),
    thrown=st.sets(st.integers(0, 5)),
)
def test_rows_are_the_frames_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    compression: str,
    stable: bool,
    sizes: list[int],
    per_chunk: int,
    per_file: int,
    strided: bool,
    flushes: set[int],
    thrown: set[int],
) -> None:
    folder = tmp_path_factory.mktemp("run")
    channel = make_channel(compression=compression, frames_per_chunk=per_chunk, frames_per_file=per_file)
    writer = FrameWriter(channel, str(folder), 0, start_ns=10**18)
    first = 0
    for i, size in enumerate(sizes):
        block = make_block(channel, range(first, first + size), strided=strided, stable=stable)
        if i in thrown:
            writer.stage(make_block(channel, range(1000, 1000 + size)))
        staged = writer.stage(block)
        if not stable:
            block.frames[...] = 0  # what is overwritten after staging must not matter
        assert writer.commit(staged) == size
        if i in flushes:
            writer.flush()
        first += size
    writer.close()
    writer.close()
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == [f"maze_save_0_{i:05d}.h5" for i in range(len(files))]
    assert len(files) == (-(-first // per_file) if per_file else 1)
    row = 0
    for path in files:
        with h5py.File(path) as file:
            detector = detector_group(file)
            count = len(detector["data"])
            want = make_block(channel, range(row, row + count))
            np.testing.assert_array_equal(detector["data"][()], want.frames)
            np.testing.assert_array_equal(detector["frame_number"][()], want.numbers)
            np.testing.assert_allclose(detector["frame_time"][()], np.arange(row, row + count) * 1e-3, atol=1e-9)
            np.testing.assert_array_equal(detector["frame_status"][()], np.zeros(count, np.uint8))
            assert count == min(per_file or first, first - row)
            row += count
    assert row == first


def test_blocks_of_another_shape_are_refused(tmp_path: Path) -> None:
    channel = make_channel()
    writer = FrameWriter(channel, str(tmp_path), 0, 0)
    block = make_block(channel, range(2))
    block.frames = block.frames.astype("uint32")
    with pytest.raises(ValueError, match="uint32"):
        writer.stage(block)


def test_readers_find_the_image(tmp_path: Path) -> None:
    channel = make_channel(
        metadata={"photon_energy": 12400.0, "distance": 0.3, "sample": "lysozyme", "beam_center": {"x": 9, "y": 8}},
        acquisition={"exposure": 0.001},
    )
    write_all(channel, str(tmp_path), range(5))
    path = str(tmp_path / "maze_save_0_00000.h5")
    want = make_block(channel, range(5)).frames
    with silx.io.open(path) as file:
        plot = nxdata.get_default(file)
        assert plot is not None
        np.testing.assert_array_equal(plot.signal[()], want)
        assert plot.signal.attrs["interpretation"] == "image"
    image = fabio.open(path)
    assert image.nframes == 5
    np.testing.assert_array_equal(image.getframe(3).data, want[3])
    image.close()
    with h5py.File(path) as file:
        assert file.attrs["creator"].startswith("LIMA2-")
        detector = detector_group(file)
        assert detector["x_pixel_size"][()] == 75e-6
        assert detector["x_pixel_size"].attrs["units"] == b"m"
        assert detector["count_time"][()] == 0.001
        assert detector["beam_center_x"][()] == 9 - channel.view.area.x
        assert file["entry_0000/instrument/beam/incident_energy"].attrs["units"] == b"eV"
        assert file["entry_0000/sample/name"].asstr()[()] == "lysozyme"
        assert detector["image_operation/origin/x"][()] == channel.view.area.x
        mask = detector["pixel_mask"][()]
        assert mask[:, 4].all()  # the gap between the modules
        assert not mask[:, :4].any()
        classes: dict[str, Any] = {}
        file.visititems(lambda name, item: classes.setdefault(name, item.attrs.get("NX_class")))
        groups = [name for name in classes if isinstance(file[name], h5py.Group)]
        assert all(classes[name] for name in groups)


WRITES_FOREVER = """
    import itertools
    from tests.artefacts_samples import make_block, make_channel
    from lima2cli.files.frame_writer import FrameWriter
    channel = make_channel(frames_per_chunk=4, compression="{compression}")
    writer = FrameWriter(channel, "{folder}", 0, 10**18)
    for i in itertools.count():
        writer.commit(writer.stage(make_block(channel, range(i * 3, i * 3 + 3))))
        if i % 7 == 0:
            writer.flush()
            print(i * 3 + 3, flush=True)
"""


@pytest.mark.parametrize("compression", ["bslz4", "none", "zstd"])
def test_a_kill_leaves_all_that_was_flushed(tmp_path: Path, compression: str) -> None:
    path = str(tmp_path / "maze_save_0_00000.h5")
    with _start(WRITES_FOREVER.format(folder=tmp_path, compression=compression)) as child:
        assert child.stdout is not None
        flushed = [int(child.stdout.readline()) for _ in range(60)][-1]
        with pytest.raises(FileProblem, match="open in another process"):
            reopenable(path)
        child.kill()
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(path)
    assert reopenable(path)
    assert not reopenable(path)
    channel = make_channel()
    with h5py.File(path) as file:
        detector = detector_group(file)
        rows = len(detector["frame_number"])
        assert flushed <= rows <= len(detector["data"])
        want = make_block(channel, range(rows))
        np.testing.assert_array_equal(detector["frame_number"][()], want.numbers)
        np.testing.assert_array_equal(detector["data"][:rows], want.frames)
    assert fabio.open(path).nframes >= flushed
    with silx.io.open(path) as file:
        assert nxdata.get_default(file).signal.shape[0] >= flushed


FILLS_THE_DISK = """
    import resource
    from tests.artefacts_samples import make_block, make_channel
    from lima2cli.files.frame_writer import FrameWriter
    channel = make_channel(frames_per_chunk=4, compression="none", height=64, width=64)
    writer = FrameWriter(channel, "{folder}", 0, 10**18)
    if {limit}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
    written = 0
    try:
        while True:
            written += writer.commit(writer.stage(make_block(channel, range(written, written + 3))))
            if written % 30 == 0:
                writer.flush()
    except OSError as error:
        print(written, error.errno, flush=True)
    try:
        writer.commit(writer.stage(make_block(channel, range(written, written + 3))))
    except OSError as error:
        print("again", flush=True)
    if {limit} and {lifted}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.flush()
    writer.close()
    writer.close()
    import h5py
    with h5py.File("{folder}/other.h5", "w", driver="core", backing_store=False) as file:
        file["x"] = 1  # the library still works
    print("end", flush=True)
"""


@pytest.mark.parametrize("lifted", [True, False])
def test_a_file_that_may_not_grow(tmp_path: Path, lifted: bool) -> None:
    child = _start(FILLS_THE_DISK.format(folder=tmp_path, limit=2_000_000, lifted=lifted))
    out, _ = child.communicate(timeout=180)
    assert child.returncode == 0
    _check_full(out, tmp_path)


def test_a_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        child = _start(FILLS_THE_DISK.format(folder=tmp_path, limit=0, lifted=False))
        out, _ = child.communicate(timeout=180)
        assert child.returncode == 0
        _check_full(out, tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def _check_full(out: str, folder: Path) -> None:
    lines = out.split("\n")
    assert lines[1:3] == ["again", "end"]
    committed, number = map(int, lines[0].split())
    assert number > 0
    channel = make_channel(height=64, width=64)
    with h5py.File(folder / "maze_save_0_00000.h5") as file:
        detector = detector_group(file)
        rows = len(detector["frame_number"])
        assert committed - 30 <= rows <= committed + 3
        np.testing.assert_array_equal(detector["data"][:rows], make_block(channel, range(rows)).frames)


def _start(program: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_an_incomplete_chunk_is_kept_once(tmp_path: Path) -> None:
    channel = make_channel(frames_per_chunk=4, compression="none")
    writer = FrameWriter(channel, str(tmp_path), 0, 0)
    for i in range(7):
        writer.commit(writer.stage(make_block(channel, range(i, i + 1))))
        writer.flush()
        with h5py.File(tmp_path / "maze_save_0_00000.h5", swmr=True) as file:
            assert len(detector_group(file)["data"]) == len(detector_group(file)["frame_number"]) == i + 1
    writer.close()


def test_checksum_is_that_of_the_library(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver=("v110", "v110")) as file:
        file["x"] = 1
    block = (tmp_path / "x.h5").read_bytes()[:48]
    assert lookup3(block[:44]) == int.from_bytes(block[44:48], "little")
    assert lookup3(b"Four score and seven years ago") == 0x17770551  # the author's own test vector


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"not HDF5" * 10)
    with pytest.raises(FileProblem, match="not an HDF5 file"):
        reopenable(str(tmp_path / "x.h5"))


def test_chunks_of_about_a_mebibyte() -> None:
    assert frames_per_chunk_auto(256, 256, 2) == 8
    assert frames_per_chunk_auto(4000, 4000, 4) == 1
    assert frames_per_chunk_auto(256, 256, 2, period_s=1.0) == 1
    assert frames_per_chunk_auto(256, 256, 2, period_s=0.1) == 5


def test_memory_does_not_grow(tmp_path: Path) -> None:
    channel = make_channel(height=128, width=128, frames_per_chunk=8)
    writer = FrameWriter(channel, str(tmp_path), 0, 0)
    block = make_block(channel, range(64))
    reset_peak()  # what other tests have needed would hide it
    peaks = []
    for _ in range(2):
        for _ in range(60):
            writer.commit(writer.stage(block))
        peaks.append(status("VmHWM"))
    writer.close()
    assert peaks[1] - peaks[0] < 20 << 20  # 120 MB went through
