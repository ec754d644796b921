"""Scenes of REMU: the formulas, and that a frame is the same whatever part of it is asked for, and when."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.detectors import scenes, sources
from lima2cli.detectors.experiments import Center, Peaks, Powder, Rings, Speckle
from lima2cli.detectors.scenes import CounterScene, Frames, Gradient, Noise, largest, period
from lima2cli.detectors.sources import Counter, Pool, leading
from lima2cli.errors import FileProblem, NodeMisuse, StateError
from lima2cli.frames import DTYPES, DatasetInfo
from lima2cli.geometry import Rect
from lima2cli.inputs.stacks import FileStore

NO_FILES = FileStore(Path())
IMAGE = Rect(0, 0, 90, 150)  # several bands
MODULES = [Rect(0, 0, 40, 70), Rect(50, 3, 40, 100), Rect(0, 71, 13, 1), Rect(20, 128, 70, 22)]
RINGS = Rings(powder=Powder(material="LaB6", distance=0.01, photon_energy=15e3, center=Center(x=-20, y=70)))
DTYPE = st.sampled_from([dtype for dtype in DTYPES if dtype.startswith("uint")])


def dataset(dtype: str = "uint16", bits: int | None = None, index: int = 0) -> DatasetInfo:
    return DatasetInfo("a", index, dtype, bits or 8 * np.dtype(dtype).itemsize)


@st.composite
def rects(draw: st.DrawFn, image: Rect) -> Rect:
    x, y = draw(st.integers(0, image.width - 1)), draw(st.integers(0, image.height - 1))
    return Rect(x, y, draw(st.integers(1, image.width - x)), draw(st.integers(1, image.height - y)))


@given(data=st.data(), dtype=DTYPE, frame=st.integers(0, 2**62), step=st.integers(1, 2**40), index=st.integers(0, 50))
def test_counter_is_its_formula(data: st.DataObject, dtype: str, frame: int, step: int, index: int) -> None:
    bits = data.draw(st.integers(1, 8 * np.dtype(dtype).itemsize))
    image = Rect(0, 0, data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50)))
    module = data.draw(rects(image))
    numbers = range(frame, frame + 3 * step, step)
    frames = Counter(dataset(dtype, bits, index), image, module).get(numbers)
    assert frames.shape == (3, module.height, module.width)
    assert frames.dtype == dtype
    for shown, f in zip(frames.tolist(), numbers, strict=True):
        assert shown == [
            [(7919 * f + 104729 * index + y * image.width + x) % 2**bits for x in range(module.x, module.right)]
            for y in range(module.y, module.bottom)
        ]


def test_counter_gives_as_many_frames_as_it_has_memory_for() -> None:
    image = Rect(0, 0, 1024, 1024)
    counter = Counter(dataset(), image, image)
    frames = counter.get(range(100))
    assert frames.nbytes == sources.BLOCK_BYTES
    assert frames[3, 0, 0] == 7919 * 3
    assert counter.get(range(100))[0].base is frames.base


@given(first=st.integers(0, 2**62), step=st.integers(1, 100), count=st.integers(1, 40), cycle=st.integers(1, 30))
def test_leading_places_are_those_of_the_numbers(first: int, step: int, count: int, cycle: int) -> None:
    numbers = range(first, first + count * step, step)
    for asked in (numbers, list(numbers), np.array(numbers, np.uint64)):
        places = leading(asked, cycle)
        assert 1 <= len(places) <= count
        assert list(places) == [number % cycle for number in numbers[: len(places)]]
        whole = len(places) == count
        assert whole or step % cycle == 0 or numbers[len(places)] % cycle < places[-1]


@pytest.mark.parametrize(
    ("scene", "dtype", "bits"),
    [
        (Rings(), "uint16", None),
        (Rings(seed=0, intensity=1e6), "uint16", 12),
        (Rings(), "int8", None),
        (Gradient(), "uint8", None),
        (Gradient(), "int32", 7),
        (Gradient(), "float32", None),
        (Gradient(), "uint64", None),
        (Noise(), "float64", None),
        (Noise(seed=3, mean=1e9), "uint8", 4),
        (CounterScene(), "uint32", 20),
        (Peaks(hit_rate=1, peaks=9, background=100), "uint8", None),
        (Peaks(hit_rate=1, width=0.5), "float32", None),
        (Speckle(mean=1e4), "uint16", 12),
        (replace(RINGS, pixel_m=(75e-6, 50e-6)), "uint32", None),
    ],
)
def test_modules_show_parts_of_one_image(scene: scenes.Scene, dtype: str, bits: int | None) -> None:
    data = dataset(dtype, bits, 1)
    (whole,) = scene.sources(data, IMAGE, [IMAGE], NO_FILES)
    parts = scene.sources(data, IMAGE, MODULES, NO_FILES) + scene.sources(data, IMAGE, MODULES[:1], NO_FILES)
    for number in (0, 1, 17, 2**40 + 5):
        frame = whole.get(range(number, number + 1))[0].copy()
        assert frame.dtype == dtype
        assert 0 <= frame.min() <= frame.max() <= largest(data)
        for part, module in zip(parts, [*MODULES, MODULES[0]], strict=True):
            np.testing.assert_array_equal(part.get(range(number, number + 1))[0], frame[module.within(IMAGE)])


@pytest.mark.parametrize("scene", [Rings, Noise])
def test_random_scenes_depend_on_seed_dataset_and_frame(scene: type[Rings] | type[Noise]) -> None:
    def frames(seed: int, index: int) -> np.ndarray:
        (source,) = scene(seed=seed).sources(dataset(index=index), IMAGE, [IMAGE], NO_FILES)
        return source.get(range(2))

    first = frames(1, 0)
    np.testing.assert_array_equal(first, frames(1, 0))
    for other in (frames(2, 0), frames(1, 1)):
        assert (first != other).mean() > 0.5
    assert (first[0] != first[1]).mean() > 0.5
    assert (first[0, :64] != first[0, 64:128]).mean() > 0.5  # bands differ too


def test_noise_is_poisson() -> None:
    image = Rect(0, 0, 200, 200)
    (source,) = Noise(mean=10).sources(dataset(), image, [image], NO_FILES)
    frames = source.get(range(16)).astype(float)
    assert abs(frames.mean() - 10) < 0.3
    assert abs(frames.var() - 10) < 0.9
    pairs = np.corrcoef(frames.reshape(16, -1)) - np.eye(16)
    assert abs(pairs).max() < 0.03


def test_rings_are_brighter_than_what_lies_between() -> None:
    image = Rect(0, 0, 400, 400)
    (source,) = Rings(intensity=1000, background=5).sources(dataset(), image, [image], NO_FILES)
    mean = source.get(range(16)).mean(axis=0)
    y, x = np.indices(mean.shape) - 199.5
    radius = np.hypot(x, y) / np.hypot(200, 200)

    def on_ring(n: int) -> float:
        expected = np.tan(2 * np.arcsin(np.sin(np.pi / 8) * np.sqrt(n / 36)))
        return float(mean[abs(radius - expected) < 0.001].mean())

    assert on_ring(1) == pytest.approx(1005, rel=0.05)
    assert on_ring(6) > 3 * on_ring(7)  # 7 is no sum of three squares
    assert mean[radius < 0.05].mean() == pytest.approx(5, rel=0.1)


@given(frame=st.integers(0, 2**62), index=st.integers(0, 9), bits=st.integers(1, 16))
@settings(max_examples=30)
def test_gradient_is_its_formula(frame: int, index: int, bits: int) -> None:
    data, module = dataset("uint16", bits, index), Rect(3, 60, 10, 10)
    (source,) = Gradient().sources(data, IMAGE, [module], NO_FILES)
    y, x = np.indices((10, 10))
    expected = (x + 3 + y + 60 + 16 * (frame % period(data, IMAGE)) + 257 * index) % 2**bits
    np.testing.assert_array_equal(source.get([frame])[0], expected)


def test_rendered_frames_are_not_copied() -> None:
    (source,) = Gradient().sources(dataset(), IMAGE, [MODULES[0]], NO_FILES)
    assert isinstance(source, Pool)
    frames = source.get(range(18, 50, 3))  # 2, 5, ... 14 of 16
    assert len(frames) == 5
    assert np.shares_memory(frames, source.frames)
    np.testing.assert_array_equal(frames, source.frames[2::3])
    assert not frames.flags.writeable
    assert frames[0].flags.c_contiguous
    assert len(source.get(range(0, 320, 16))) == 1  # always the same frame


def test_pools_are_bounded() -> None:
    assert period(dataset(), Rect(0, 0, 100, 100)) == 16
    assert period(dataset(), Rect(0, 0, 2048, 2048)) == 8
    assert period(dataset("uint32"), Rect(0, 0, 8192, 8192)) == 2


def test_largest_values() -> None:
    found = {dtype: largest(dataset(dtype)) for dtype in DTYPES}
    assert found["uint8"] == 255
    assert found["int16"] == 2**15 - 1
    assert found["float32"] == 2**24
    assert found["float64"] == 2**53
    assert found["uint64"] == 2**63 - 1
    assert largest(dataset("uint16", 12)) == 4095


STACK = np.arange(7 * 150 * 90, dtype=np.uint16).reshape(7, 150, 90)


@pytest.fixture
def store(tmp_path: Path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["data"] = STACK
    with FileStore(tmp_path) as files:
        yield files


@pytest.mark.parametrize("pool_bytes", [0, 64 << 20])
def test_frames_scene_plays_a_file(store: FileStore, monkeypatch: pytest.MonkeyPatch, pool_bytes: int) -> None:
    monkeypatch.setattr(scenes, "POOL_BYTES", pool_bytes)
    scene = Frames(file="s.h5")
    assert scene.check(dataset(), IMAGE, store) is None
    for source, module in zip(scene.sources(dataset(), IMAGE, MODULES, store), MODULES, strict=True):
        for numbers in (range(7), range(5, 12), range(3, 1000, 70), range(2**62, 2**62 + 9, 3)):
            frames = source.get(numbers)
            assert 1 <= len(frames) <= len(numbers)
            expected = STACK[[number % 7 for number in numbers[: len(frames)]]]
            np.testing.assert_array_equal(frames, expected[:, *module.within(IMAGE)])


def test_frames_scene_without_loop_ends(store: FileStore) -> None:
    scene = Frames(file="s.h5", loop=False)
    assert scene.check(dataset(), IMAGE, store) == 7
    (source,) = scene.sources(dataset(), IMAGE, MODULES[:1], store)
    assert len(source.get(range(5, 9))) == 2
    with pytest.raises(StateError, match="frame 7 was asked for, and 7 are recorded"):
        source.get(range(7, 8))


def test_frames_scene_widens_and_cuts(store: FileStore) -> None:
    for loop in (True, False):
        (source,) = Frames(file="s.h5", loop=loop).sources(dataset("int32", 8), IMAGE, [IMAGE], store)
        frames = source.get(range(7))
        assert frames.dtype == np.int32
        np.testing.assert_array_equal(frames, np.minimum(STACK, 255))


@pytest.mark.parametrize(
    ("scene", "data", "image", "rule", "key", "words"),
    [
        (CounterScene(), dataset("int32"), IMAGE, "scene-dtype", (), "dataset a is int32"),
        (CounterScene(), dataset("float32"), IMAGE, "scene-dtype", (), "unsigned"),
        (
            Frames(file="s.h5"),
            dataset(),
            Rect(0, 0, 9, 9),
            "file-shape",
            ("file",),
            "90 x 150 pixels, and the image 9 x 9",
        ),
        (Frames(file="s.h5"), dataset("uint8"), IMAGE, "file-dtype", ("file",), "holds uint16"),
    ],
)
def test_scenes_that_do_not_fit(store: FileStore, scene, data, image, rule, key, words) -> None:
    with pytest.raises(NodeMisuse) as caught:
        scene.check(data, image, store)
    assert (caught.value.rule, caught.value.key) == (rule, key)
    assert words in caught.value.message


def test_scenes_of_missing_files(store: FileStore) -> None:
    with pytest.raises(FileProblem, match=r"did you mean s.h5\?"):
        Frames(file="t.h5").check(dataset(), IMAGE, store)
