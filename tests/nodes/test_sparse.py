"""Sparse frames: chosen by the node, saved by receivers, put together by the master."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import silx.io
from hypothesis import given, settings
from hypothesis import strategies as st
from silx.io import nxdata

from lima2cli.errors import NodeMisuse
from lima2cli.files import master as sparse_master
from lima2cli.files.appending import level, reopenable
from lima2cli.files.channel import Channel
from lima2cli.files.compression import COMPRESSIONS
from lima2cli.files.master import saved_frames, write_master
from lima2cli.files.sparse_writer import CHUNK, SparseWriter
from lima2cli.frames import Array, Block, FrameSpec, SparseBlock, SparsePixels, SparseSpec
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Inputs
from lima2cli.view import View
from tests.artefacts_samples import START_NS, detector_group, make_channel
from tests.compiling import compiled
from tests.node_inputs import DTYPES, MemoryFiles, node, padded, pixels, spec_of, splits
from tests.running import EXAMPLES, Ran, counter, inspect_run, lima2, mpi, run

assert hdf5plugin  # registers the filters for h5py

NONE = MemoryFiles()


# The node


def picked(spec: FrameSpec, frames: Array, above: float) -> SparsePixels:
    use = node("sparsify", above=above)
    after = use.infer(Inputs.of(spec, NONE))
    assert isinstance(after, SparseSpec)
    assert after.dtype == spec.dtype
    out = use.bind(Inputs.of(spec, NONE))(frames)
    assert isinstance(out, SparsePixels)
    assert out.frames.dtype == frames.dtype
    return out


def check(out: SparsePixels, spec: FrameSpec, frames: Array, above: float) -> None:
    """Pixel by pixel, in Python."""
    width = spec.detector[0]
    places = spec.view.apply(np.arange(width * spec.detector[1]).reshape(spec.detector[::-1]), "sum")
    for i, frame in enumerate(frames):
        wanted = [
            (int(places[y, x]), frame[y, x].item())
            for y, x in np.ndindex(frame.shape)
            if frame[y, x].item() > above and (spec.mask is None or not spec.mask[y, x])
        ]
        own = slice(int(out.frame_ptr[i]), int(out.frame_ptr[i + 1]))
        assert list(zip(out.index[own].tolist(), out.frames[own].tolist(), strict=True)) == wanted
    assert out.frame_ptr[0] == 0
    assert out.frame_ptr[-1] == len(out.index) == len(out.frames)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 7, 9), (1, 1, 1), (2, 30, 11)])
def test_pixels_above(dtype: str, shape: tuple[int, int, int]) -> None:
    frames = pixels(dtype, shape)
    spec = spec_of(dtype, *shape[1:])
    middle = float(np.median(frames.astype(np.float64)))
    exact = frames.ravel()[frames.size // 2].item()
    for above in (middle, exact, 0, 0.5, -1, -1e30, 1e30, 2**63, 2**64):
        for layout in (frames, padded(frames)):
            check(picked(spec, layout, above), spec, frames, float(above) if frames.dtype.kind == "f" else above)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_large_frames(dtype: str) -> None:
    frames = pixels(dtype, (2, 700, 500))
    out = picked(spec_of(dtype, 700, 500), frames, 9000.0)
    assert out.index.tolist() == (np.flatnonzero(frames > 9000) % 350_000).tolist()
    np.testing.assert_array_equal(out.frames, frames[frames > 9000])


@pytest.mark.parametrize("above", [-1e30, 0.0, 50.0])
def test_masked_and_nan_pixels_are_left_out(above: float) -> None:
    frames = pixels("float32", (3, 8, 10)).copy()
    frames[0, 2:4], frames[1] = np.nan, np.nan
    mask = np.random.default_rng(3).uniform(size=(8, 10)) < 0.3
    spec = spec_of("float32", 8, 10, mask=mask)
    check(picked(spec, frames, above), spec, frames, above)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_indices_are_those_of_the_detector(mirrored: bool, rotation: int) -> None:
    view = View(Rect(3, 2, 8, 5), mirrored=mirrored, rotation=rotation)
    spec = FrameSpec("uint16", view, (20, 13))
    image = np.arange(20 * 13, dtype=np.uint16).reshape(13, 20)
    out = picked(spec, view.apply(image, "sum")[None], 60)
    assert out.index.tolist() == out.frames.tolist()  # a pixel's value is its place
    assert sorted(out.index.tolist()) == [v for v in image[2:7, 3:11].ravel().tolist() if v > 60]


def test_binned_pixels_are_refused() -> None:
    spec = FrameSpec("uint16", View(Rect(0, 0, 8, 8)).bin(2, 2), (8, 8))
    with pytest.raises(NodeMisuse, match="binned"):
        node("sparsify", above=1).infer(Inputs.of(spec, NONE))


def test_too_large_detectors_are_refused() -> None:
    spec = FrameSpec("uint16", View(Rect(0, 0, 8, 8)), (2**17, 2**16))
    with pytest.raises(NodeMisuse, match="uint32"):
        node("sparsify", above=1).infer(Inputs.of(spec, NONE))


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(1, 8), max_size=4), dtype=st.sampled_from(["uint8", "float64"]))
def test_pixels_do_not_depend_on_blocks(cuts: list[int], dtype: str) -> None:
    frames = pixels(dtype, (9, 12, 7))
    spec = spec_of(dtype, 12, 7)
    use = node("sparsify", above=100).bind(Inputs.of(spec, NONE))
    whole = use(frames)
    parts = [use(frames[part]) for part in splits(9, cuts)]
    assert np.concatenate([part.index for part in parts]).tolist() == whole.index.tolist()
    assert np.concatenate([part.frames for part in parts]).tolist() == whole.frames.tolist()
    assert np.concatenate([np.diff(p.frame_ptr) for p in parts]).tolist() == np.diff(whole.frame_ptr).tolist()


@pytest.mark.parametrize(
    "kind", ["roi_counters: {rois: {r: {rect: {x: 0, y: 0, width: 2, height: 2}}}}", "checkpoint: {}"]
)
def test_other_nodes_take_dense_frames(kind: str) -> None:
    found = compiled(f"""
lima2: 1
detector: {{remu: {{image: {{width: 16, height: 12}}, datasets: {{D: {{dtype: uint16}}}}}}}}
acquisition: {{frames: 1}}
nodes:
  some: {{input: D, sparsify: {{above: 1}}}}
  save: {{input: some, io_hdf5: {{}}}}
  other: {{input: some, {kind}}}
""")[1]
    errors = [(item.rule, item.at) for item in found if item.severity == "error"]
    assert errors == [("edge-mismatch", ("nodes", "other", "input"))]


# Files


def sparse_channel(**fields: Any) -> Channel:
    return replace(make_channel(**fields), sparse=True)


def frame_of(number: int, most: int = 60) -> tuple[list[int], list[int]]:
    """Index and intensity of a frame; some have no pixel."""
    count = number * (7 if most == 60 else 997) % most
    return list(range(number % 5, number % 5 + count)), [(number * 31 + k) % 65536 for k in range(count)]


def sparse_block(numbers: Sequence[int], most: int = 60) -> SparseBlock:
    frames = [frame_of(number, most) for number in numbers]
    lengths = [len(index) for index, _ in frames]
    frame_numbers = np.array(numbers, np.uint64)
    return SparseBlock(
        np.array([v for _, values in frames for v in values], np.uint16),
        frame_numbers,
        np.uint64(START_NS) + frame_numbers * np.uint64(1_000_000),
        index=np.array([i for index, _ in frames for i in index], np.uint32),
        frame_ptr=np.concatenate(([0], np.cumsum(lengths))).astype(np.uint64),
    )


def write(channel: Channel, directory: Path, numbers: Sequence[int], receiver: int = 0, most: int = 60) -> None:
    writer = SparseWriter(channel, str(directory), receiver, START_NS)
    for begin in range(0, len(numbers), 11):
        part = numbers[begin : begin + 11]
        assert writer.commit(writer.stage(sparse_block(part, most))) == len(part)
    writer.close()


def check_rows(detector: Any, numbers: Sequence[int], absent: set[int] = frozenset(), most: int = 60) -> None:  # type: ignore[assignment]
    data = detector["data"]
    ptr, index, intensity = (data[name][()] for name in ("frame_ptr", "index", "intensity"))
    assert (ptr.dtype, index.dtype, intensity.dtype) == (np.uint64, np.uint32, np.uint16)
    assert detector["frame_number"][()].tolist() == list(numbers)
    assert detector["frame_pixels"][()].tolist() == np.diff(ptr).tolist()
    assert (ptr[0], ptr[-1]) == (0, len(index)) == (0, len(intensity))
    assert len(ptr) == len(numbers) + 1
    for row, number in enumerate(numbers):
        own = slice(int(ptr[row]), int(ptr[row + 1]))
        wanted = ([], []) if number in absent else frame_of(number, most)
        assert (index[own].tolist(), intensity[own].tolist()) == wanted


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("per_file", [0, 7])
def test_files_hold_what_was_written(tmp_path: Path, compression: str, per_file: int) -> None:
    channel = sparse_channel(compression=compression, frames_per_file=per_file)
    write(channel, tmp_path, range(100))
    names = sorted(os.listdir(tmp_path))
    assert len(names) == (15 if per_file else 1)
    done = 0
    for name in names:
        with h5py.File(tmp_path / name) as file:
            detector = detector_group(file)
            count = len(detector["frame_number"])
            check_rows(detector, range(done, done + count))
            assert detector["frame_status"][()].tolist() == [0] * count
            np.testing.assert_allclose(detector["frame_time"][()], np.arange(done, done + count) * 1e-3)
            assert dict(detector["data"].attrs)["dtype"] == "uint16"
            assert detector["data"].attrs["shape"].tolist() == [channel.detector.height, channel.detector.width]
            done += count
    assert done == 100


def test_many_pixels(tmp_path: Path) -> None:
    channel = sparse_channel()
    write(channel, tmp_path, range(0, 60), most=CHUNK // 3)
    write_master(channel, str(tmp_path))
    with h5py.File(tmp_path / "maze_save_master.h5") as file:
        assert len(detector_group(file)["data/index"]) > CHUNK
        check_rows(detector_group(file), range(60), most=CHUNK // 3)


@pytest.mark.parametrize(  # any two of the values together
    ("receivers", "per_file", "span"),
    [
        (1, 0, 1),
        (2, 5, 1),
        (3, 0, 1),
        (1, 5, 100),
        (2, 0, 100),
        (3, 5, 100),
        (1, 0, 10**6),
        (2, 5, 10**6),
        (3, 0, 10**6),
    ],
)
def test_masters_are_in_frame_order(
    tmp_path: Path, receivers: int, per_file: int, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_master, "PIXELS", span)
    lost = {3, 4, 17, 40}
    channel = sparse_channel(
        receivers=tuple(range(receivers)), selected=90, start=2, step=3, blocks=2, frames_per_file=per_file
    )
    for receiver in range(receivers):
        rows = [k for k in range(90) if k // 2 % receivers == receiver and k not in lost]
        write(channel, tmp_path, [2 + 3 * k for k in rows], receiver)
    statuses = np.zeros(90, np.uint8)
    statuses[17] = 2
    master = write_master(channel, str(tmp_path), rows=90, statuses=statuses, totals={"expected": 90})
    with h5py.File(master) as file:
        detector = detector_group(file)
        check_rows(detector, range(2, 272, 3), {2 + 3 * k for k in lost})
        status = detector["frame_status"][()]
        assert np.flatnonzero(status).tolist() == sorted(lost)
        assert status[17] == 2
        assert np.flatnonzero(np.isnan(detector["frame_time"][()])).tolist() == sorted(lost)
        assert file["entry_0000/measurement/data"] == detector["data"]
    assert saved_frames(master) == 86
    found = inspect_run(str(tmp_path), verify=True)
    assert found["problems"] == []
    channel_found = found["channels"]["save"]
    assert (channel_found["expected"], channel_found["saved"], channel_found["dropped"]) == (90, 86, 1)


def test_rows_beyond_those_expected_are_shown(tmp_path: Path) -> None:
    channel = sparse_channel(selected=50)
    write(channel, tmp_path, range(50))
    with h5py.File(write_master(channel, str(tmp_path), rows=20)) as file:
        check_rows(detector_group(file), range(50))


@pytest.mark.parametrize("damage", ["pixels", "counts", "gone"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    channel = sparse_channel(selected=50, compression="none")
    write(channel, tmp_path, range(50))
    master = write_master(channel, str(tmp_path), totals={"expected": 50})
    if damage == "gone":
        (tmp_path / "maze_save_0_00000.h5").unlink()
    else:
        with h5py.File(master, "r+") as file:
            if damage == "pixels":
                detector_group(file)["data/index"].resize((100,))
            else:
                detector_group(file)["frame_pixels"][9] = 1
    problems = inspect_run(str(tmp_path), verify=True)["problems"]
    words = {"pixels": "lacks pixels", "counts": "other numbers of pixels", "gone": "marked saved but are in no file"}
    assert any(words[damage] in problem for problem in problems), problems


KILLED = """
    import os, signal, sys
    from tests.nodes.test_sparse import sparse_block, sparse_channel, START_NS
    from lima2cli.files.sparse_writer import SparseWriter
    writer = SparseWriter(sparse_channel(), sys.argv[1], 0, START_NS)
    for first in range(0, 5000, 10):
        writer.commit(writer.stage(sparse_block(range(first, first + 10))))
        if first == 4000:
            writer.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], check=False, timeout=180)
    assert done.returncode == -9
    path = tmp_path / "maze_save_0_00000.h5"
    reopenable(str(path))
    level(str(path))
    with h5py.File(path) as file:
        count = len(detector_group(file)["frame_number"])
        assert count >= 4010
        check_rows(detector_group(file), range(count))
    write_master(sparse_channel(), str(tmp_path))
    with h5py.File(tmp_path / "maze_save_master.h5") as file:
        check_rows(detector_group(file), range(count))


FILLS = """
    import resource, sys
    from tests.nodes.test_sparse import START_NS, sparse_block, sparse_channel
    from lima2cli.files.sparse_writer import SparseWriter
    writer = SparseWriter(sparse_channel(compression="none"), sys.argv[1], 0, START_NS)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    try:
        for first in range(0, 10**6, 10):
            writer.commit(writer.stage(sparse_block(range(first, first + 10))))
            if first % 100 == 0:
                writer.flush()
                flushed = first + 10
    except OSError:
        print(flushed)
    try:
        writer.commit(writer.stage(sparse_block(range(5))))
    except OSError:
        print("again")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.close()
    writer.close()
    print("end")
"""


def test_a_disk_that_takes_no_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FILLS), str(tmp_path)]
    done = subprocess.run(command, check=False, timeout=180, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    flushed, *words = done.stdout.split()
    assert words == ["again", "end"]
    assert int(flushed) > 500
    path = tmp_path / "maze_save_0_00000.h5"
    reopenable(str(path))
    level(str(path))
    with h5py.File(path) as file:
        count = len(detector_group(file)["frame_number"])
        assert count >= int(flushed)
        check_rows(detector_group(file), range(count))


def test_uneven_files_are_levelled(tmp_path: Path) -> None:
    """Pixels without a row, rows without a number, and rows whose pixels are gone."""
    write(sparse_channel(), tmp_path, range(50))
    path = tmp_path / "maze_save_0_00000.h5"
    with h5py.File(path, "r+") as file:
        detector = detector_group(file)
        detector["frame_number"].resize((45,))
        detector["data/index"].resize((int(detector["data/frame_ptr"][41]) - 1,))
    level(str(path))
    with h5py.File(path) as file:
        check_rows(detector_group(file), range(40))


def test_dense_frames_are_refused(tmp_path: Path) -> None:
    writer = SparseWriter(sparse_channel(), str(tmp_path), 0, START_NS)
    dense = Block(np.zeros((1, 6, 9), np.uint16), np.zeros(1, np.uint64), np.zeros(1, np.uint64))
    with pytest.raises(TypeError, match="dense"):
        writer.stage(dense)
    writer.close()
    assert not os.listdir(tmp_path)


def test_staged_and_not_committed_leaves_no_trace(tmp_path: Path) -> None:
    writer = SparseWriter(sparse_channel(), str(tmp_path), 0, START_NS)
    writer.stage(sparse_block(range(5)))
    writer.commit(writer.stage(sparse_block(range(5, 9))))
    writer.close()
    with h5py.File(tmp_path / "maze_save_0_00000.h5") as file:
        check_rows(detector_group(file), range(5, 9))


# Runs


def dense(ran: Ran, node: str, height: int, width: int) -> tuple[Array, Array]:
    """Saved sparse frames as images of the whole detector, and their numbers."""
    name, path = ran.summary["channels"][node]["dataset"].split("::")
    with h5py.File(ran.directory / name) as file:
        data = file[path]
        assert data.attrs["shape"].tolist() == [height, width]
        ptr, index, intensity = (data[key][()] for key in ("frame_ptr", "index", "intensity"))
        detector = file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent
        numbers = detector["frame_number"][()]
        assert not detector["frame_status"][()].any()
    images = np.zeros((len(numbers), height * width), intensity.dtype)
    images[np.repeat(np.arange(len(numbers)), np.diff(ptr).astype(np.int64)), index] = intensity
    return images.reshape(-1, height, width), numbers


@pytest.mark.parametrize(("receivers", "transport"), [(1, "inline"), (3, "inline"), mpi(3)])
def test_sparse_frames_of_a_run(receivers: int, transport: str, tmp_path: Path) -> None:
    ran = run(
        f"""
lima2: 1
detector: {{remu: {{image: {{width: 16, height: 12}}, datasets: {{D: {{dtype: uint16}}}}, scene: {{counter: {{}}}}}}}}
acquisition: {{frames: 50}}
receivers: {receivers}
flows:
  F: {{dataset: D, source: {{x: 3, y: 2, width: 9, height: 7}}, slices: {{start: 2, step: 2}}}}
nodes:
  turned: {{input: F, roi_flip_rot: {{flip: vertical, rotation: 90}}}}
  some: {{input: turned, sparsify: {{above: 20000}}}}
  save: {{input: some, io_hdf5: {{frames_per_file: 4}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    images, numbers = dense(ran, "save", 12, 16)
    assert numbers.tolist() == list(range(2, 50, 2))
    whole = np.zeros((24, 12, 16), np.uint16)
    whole[:, 2:9, 3:12] = counter(numbers, Rect(3, 2, 9, 7), 16)
    np.testing.assert_array_equal(images, np.where(whole > 20000, whole, 0))
    channel = ran.summary["channels"]["save"]
    assert (channel["expected"], channel["saved"], channel["lost"]) == (24, 24, 0)
    inspected = lima2("inspect", "--verify", str(ran.directory), cwd=tmp_path)
    assert inspected.returncode == 0, inspected.stdout


def test_the_example_opens_in_silx(tmp_path: Path) -> None:
    ran = run((EXAMPLES / "sparse.yaml").read_text(), tmp_path, "inline", name="sparse")
    assert ran.code == 0, ran.output
    whole, _ = dense(ran, "save", 192, 256)
    corner, _ = dense(ran, "saved", 192, 256)
    assert corner.any()
    expected = np.where(whole > 80, whole, 0)
    expected[:, :96], expected[:, :, :128] = 0, 0
    np.testing.assert_array_equal(corner, expected)
    for name in ("sparse_save_master.h5", "sparse.h5"):
        with silx.io.open(str(ran.directory / name)) as file:
            shown = nxdata.get_default(file)
            assert shown is not None, name
            assert shown.signal[()].tolist() == np.count_nonzero(whole, axis=(1, 2)).tolist()
