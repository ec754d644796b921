"""A device computes what the CPU computes, for any chain and any regions; pocl is the device."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lima2cli.errors import EnvironmentUnfit
from lima2cli.frames import Invalid
from lima2cli.kernels.opencl import SLOTS, chain_source, piece_frames, sums_source
from lima2cli.nodes.base import Inputs, Reduce, RegionReducer
from tests.compiler.test_fuse import MAPS, RULES, calibrations, joined, masked_spec, specked
from tests.node_inputs import DTYPES, block, node, padded

pytest.importorskip("pyopencl")

from lima2cli.gpu.devices import Device, check_device, devices, open_device
from lima2cli.gpu.pipe import Borrower, Piece, Pipe, Upload, spanned

pytestmark = pytest.mark.interchange


@pytest.fixture(scope="module")
def pocl() -> Device:
    """The CPU, as a device."""
    try:
        return open_device("pocl")
    except EnvironmentUnfit as error:
        pytest.skip(str(error))


def waited(piece: Piece) -> Piece:
    """The piece when all its results are there."""
    from time import monotonic, sleep

    end = monotonic() + 60
    while not piece.done:
        assert monotonic() < end
        sleep(0.001)
    assert piece.copied
    return piece


def submitted(pipe: Pipe, frames: NDArray[Any]) -> Piece:
    """A piece of frames, which are copied to the device for it alone."""
    reader = Upload(pipe.device, frames.shape[1:], frames.dtype.name).reader()
    (load,) = reader.take(frames, None)
    piece = pipe.submit(load)
    reader.enqueued(load, piece.work)
    return piece


@settings(max_examples=20)
@given(
    dtype=st.sampled_from(["uint16", *DTYPES]),
    chain=st.lists(MAPS, min_size=1, max_size=5),
    count=st.integers(1, 7),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 9),
    nan=st.booleans(),
    gaps=st.booleans(),
    rule=RULES,
)
def test_any_chain_gives_what_the_cpu_gives(
    pocl: Device,
    dtype: str,
    chain: list[tuple[str, dict[str, Any]]],
    count: int,
    height: int,
    width: int,
    seed: int,
    nan: bool,
    gaps: bool,
    rule: Invalid,
) -> None:
    files, spec = calibrations(height, width, seed), masked_spec(dtype, height, width, rule, seed)
    frames = specked(dtype, (count, height, width), seed, nan)
    recipe, _, expected = joined(chain, spec, files, frames)
    pipe = Pipe(pocl, chain_source(recipe, dtype, width), (), makes=True, shape=(height, width), most=7)
    piece = waited(submitted(pipe, padded(frames) if gaps else frames))
    assert piece.frames.dtype == expected.dtype
    np.testing.assert_array_equal(piece.frames, expected)


@settings(max_examples=12)
@given(
    dtype=st.sampled_from(DTYPES),
    chain=st.lists(MAPS, max_size=3),
    shape=st.sampled_from([(5, 9, 13), (1, 170, 401), (3, 130, 300), (2, 1, 1)]),
    seed=st.integers(0, 9),
    nan=st.booleans(),
    rule=RULES,
)
def test_sums_over_regions_are_those_of_the_cpu(
    pocl: Device,
    dtype: str,
    chain: list[tuple[str, dict[str, Any]]],
    shape: tuple[int, int, int],
    seed: int,
    nan: bool,
    rule: Invalid,
) -> None:
    _, height, width = shape
    files, spec = calibrations(height, width, seed), masked_spec(dtype, height, width, rule, seed)
    frames = specked(dtype, shape, seed, nan)
    recipe, after, whole = joined(chain, spec, files, frames)
    source = chain_source(recipe, dtype, width)
    height, width = after.shape
    rois = {
        "all": {"x": 0, "y": 0, "width": width, "height": height},
        "part": {"x": 0, "y": min(1, height // 2), "width": max(1, width // 2), "height": max(1, height // 2)},
        "arc": {"arc": {"x": width / 2, "y": height / 2, "r1": 0, "r2": height + width, "a1": 10, "a2": 370}},
    }
    statistics = ["sum", "avg", "std", "min", "max", "valid", "com_x", "com_y", {"above": 20}]
    counters: Reduce = node("roi_counters", rois=rois, statistics=statistics)
    reducer = counters.bind(Inputs.of(after, files))
    assert isinstance(reducer, RegionReducer)
    sums = sums_source("sums0", reducer.regions, source)
    pipe = Pipe(pocl, source, (sums,), makes=False, shape=shape[1:], most=7)
    piece = waited(submitted(pipe, frames))
    some = block(frames)
    got = counters.finish(reducer.of_sums(some, pipe.sums(piece, 0)))
    expected = counters.finish(counters.bind(Inputs.of(after, files)).step(block(whole), 0))
    wide = np.abs(whole.astype(np.float64))
    largest = float(np.max(wide, initial=1.0, where=np.isfinite(wide)))
    for name, values in expected.items():
        assert got[name].dtype == values.dtype
        if name.endswith(("_min", "_max", "_valid", "_above", "frame_number")):
            np.testing.assert_array_equal(got[name], values, err_msg=name)
        else:
            scale = 1e-15 * height * width if name.endswith("_sum") else 1e-7
            np.testing.assert_allclose(got[name], values, rtol=1e-6, atol=scale * largest, err_msg=name)


def test_a_ring_of_slots_is_all_the_memory_and_pieces_come_in_order(pocl: Device) -> None:
    recipe, _, _ = joined([("background_sub", {"image": 3})], masked_spec("uint16", 8, 8, Invalid(), 0),
                          calibrations(8, 8, 0), np.zeros((1, 8, 8), np.uint16))  # fmt: skip
    pipe = Pipe(pocl, chain_source(recipe, "uint16", 8), (), makes=True, shape=(8, 8), most=2)
    pieces = [submitted(pipe, np.full((2, 8, 8), number, np.uint16)) for number in range(SLOTS)]
    assert not pipe.free
    for number, piece in enumerate(pieces):
        assert (waited(piece).frames == number - 3).all()
        pipe.give_back(piece.slot)
    assert pipe.free


def minus(pocl: Device, value: int, most: int) -> Pipe:
    """A pipe that subtracts a number from frames of 8 x 8."""
    recipe, _, _ = joined([("background_sub", {"image": value})], masked_spec("uint16", 8, 8, Invalid(), 0),
                          calibrations(8, 8, 0), np.zeros((1, 8, 8), np.uint16))  # fmt: skip
    return Pipe(pocl, chain_source(recipe, "uint16", 8), (), makes=True, shape=(8, 8), most=most)


def test_all_kernels_of_a_flow_read_one_copy(pocl: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its room is free when the last of them has enqueued what it does, or has left; none waits for the others."""
    upload = Upload(pocl, (8, 8), "uint16")
    upload.most = 2
    pipes = [minus(pocl, value, 2) for value in (1, 2, 3)]
    readers = [upload.reader() for _ in pipes]
    copies, copied = list[int](), Upload.copied

    def counted(self: Upload, frames: Any, room: Any) -> Any:
        copies.append(len(frames))
        return copied(self, frames, room)

    monkeypatch.setattr(Upload, "copied", counted)
    blocks = [np.full((3, 8, 8), 10 * number, np.uint16) for number in range(4)]
    taken = [[load for frames in blocks for load in reader.take(frames.copy(), None)] for reader in readers]
    assert taken[0] == taken[1] == taken[2]
    assert [load.count for load in taken[0]] == [2, 1] * 4

    def done(at: int, number: int) -> bool:
        load, pipe = taken[at][number], pipes[at]
        if load.there() is None:
            return False
        piece = pipe.submit(load)
        readers[at].enqueued(load, piece.work)
        assert (waited(piece).frames == 10 * (number // 2) - at - 1).all()
        pipe.give_back(piece.slot)
        return True

    assert [done(0, number) for number in range(SLOTS + 1)] == [True] * SLOTS + [False], "it waits for the others"
    assert [done(1, number) for number in range(SLOTS + 1)] == [True] * SLOTS + [False]
    readers[2].leave()
    assert all(done(at, number) for number in range(SLOTS, 8) for at in (1, 0))
    assert copies == [2, 1] * 4


def test_a_kernel_reads_what_another_has_made_where_it_is(pocl: Device) -> None:
    piece = submitted(minus(pocl, 1, 4), np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8))
    frames = waited(piece).frames
    expected = frames.copy()
    frames[:] = 0  # what came back is not read
    recipe, _, _ = joined([("background_sub", {"image": 5})], masked_spec("float32", 8, 8, Invalid(), 0),
                          calibrations(8, 8, 0), np.zeros((1, 8, 8), np.float32))  # fmt: skip
    second = Pipe(pocl, chain_source(recipe, "float32", 8), (), makes=True, shape=(8, 8), most=4)
    borrower = Borrower()
    for part in (slice(0, 4), slice(1, 3)):
        (load,) = borrower.take(frames[part], piece.made)
        again = waited(second.submit(load))
        np.testing.assert_array_equal(again.frames, expected[part] - 5)
        second.give_back(again.slot)


def test_frames_that_stay_there_can_be_looked_at(pocl: Device) -> None:
    recipe, _, _ = joined([("background_sub", {"image": 3})], masked_spec("uint16", 8, 8, Invalid(), 0),
                          calibrations(8, 8, 0), np.zeros((1, 8, 8), np.uint16))  # fmt: skip
    source = chain_source(recipe, "uint16", 8)
    for back in (True, False):
        pipe = Pipe(pocl, source, (), makes=True, shape=(8, 8), most=3, back=back)
        piece = waited(submitted(pipe, np.arange(3 * 64, dtype=np.uint16).reshape(3, 8, 8)))
        for last in (2, 3):
            frame = piece.made.last(pocl, piece.frames[:last])
            if back:
                assert frame is None
            else:
                np.testing.assert_array_equal(frame, np.arange(64).reshape(8, 8) + 64 * (last - 1) - 3)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_frames_that_lie_apart_are_copied_with_what_lies_between(stride: int) -> None:
    memory = np.arange(10 * 12, dtype=np.uint16).reshape(10, 3, 4)
    frames = memory[:: max(1, stride)][:2] if stride < 5 else memory[:, :, :3]
    data, step = spanned(frames)
    pixels = data.view(np.uint16)
    for number, frame in enumerate(frames):
        flat = pixels[number * step : number * step + frame.size]
        np.testing.assert_array_equal(flat, frame.ravel())


def test_pieces_are_a_few_megabytes() -> None:
    assert [piece_frames(size) for size in (1, 8 << 20, 9 << 20, 1 << 20)] == [8 << 20, 1, 1, 8]


def test_a_cpu_is_used_by_name_only(pocl: Device) -> None:
    assert all("pocl" not in name.lower() for name in devices())
    with pytest.raises(EnvironmentUnfit, match="device 99 of OpenCL was not found"):
        open_device(99)
    with pytest.raises(EnvironmentUnfit, match="no such name of OpenCL was not found"):
        open_device("no such name")
    with pytest.raises(EnvironmentUnfit, match=r"of memory, .* are needed"):
        check_device("pocl", 1 << 60)
    assert check_device("pocl", 1) == pocl.name


def test_errors_of_a_device_name_it_in_a_line(pocl: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyopencl as cl

    with pytest.raises(RuntimeError) as refused:
        pocl.program("__kernel void make() { nonsense; }")
    with pytest.raises(RuntimeError) as full:
        pocl.buffer(1 << 60)
    recipe, _, _ = joined([("background_sub", {"image": 3})], masked_spec("uint16", 8, 8, Invalid(), 0),
                          calibrations(8, 8, 0), np.zeros((1, 8, 8), np.uint16))  # fmt: skip
    pipe = Pipe(pocl, chain_source(recipe, "uint16", 8), (), makes=True, shape=(8, 8), most=2)

    def failing(*arguments: object, **options: object) -> None:
        raise cl.Error("enqueue_write_buffer failed: OUT_OF_RESOURCES")

    monkeypatch.setattr(cl, "enqueue_copy", failing)
    with pytest.raises(RuntimeError) as failed:
        submitted(pipe, np.zeros((1, 8, 8), np.uint16))
    for error, word in ((refused, "error"), (full, "SIZE"), (failed, "OUT_OF_RESOURCES")):
        text = str(error.value)
        assert text.startswith(f"device {pocl.name}: ")
        assert word in text
        assert "\n" not in text
