"""Scenes of experiments: frames hold the truth that they promise."""

from dataclasses import replace

import numpy as np
import pytest

from lima2cli.detectors.experiments import MATERIALS, Center, Peaks, Powder, Rings, Speckle, splitmix64
from lima2cli.frames import Array, DatasetInfo
from lima2cli.geometry import Rect
from lima2cli.units import HC
from tests.compiling import compiled
from tests.detectors.test_scenes import NO_FILES, dataset


def frames(scene: Rings | Peaks | Speckle, image: Rect, count: int, data: DatasetInfo | None = None) -> Array:
    (source,) = scene.sources(data or dataset(), image, [image], NO_FILES)
    return np.stack([source.get(range(number, number + 1))[0].copy() for number in range(count)])


def test_splitmix64_is_the_published_one() -> None:
    """The first numbers of the generator of seed 0, as in the reference implementation."""
    states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(it) for it in splitmix64(states).tolist()] == [
        "0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f",
    ]  # fmt: skip


def test_known_spacings() -> None:
    """Strongest lines of the certificates: Si 111 and 220, CeO2 111, LaB6 110 (angstrom)."""
    for material, n, spacing in (("Si", 0, 3.1356), ("Si", 1, 1.9202), ("CeO2", 0, 3.1244), ("LaB6", 1, 2.9393)):
        assert MATERIALS[material][n] * 1e10 == pytest.approx(spacing, abs=2e-4)


@pytest.mark.parametrize("pixel", [(100e-6, 100e-6), (100e-6, 50e-6)])
def test_rings_of_a_powder_are_where_bragg_has_them(pixel: tuple[float, float]) -> None:
    image, center = Rect(0, 0, 300, 280), Center(x=40.5, y=-12)
    powder = Powder(material="Si", distance=0.025, photon_energy=20e3, center=center, width=1)
    mean = frames(Rings(powder=powder, intensity=5000, background=1, pixel_m=pixel), image, 16).mean(axis=0)
    y, x = np.indices(mean.shape)
    radius = np.hypot((x - center.x) * pixel[0], (y - center.y) * pixel[1])
    sums, edges = np.histogram(radius, bins=np.arange(0, 0.03, 50e-6), weights=mean)
    counts, _ = np.histogram(radius, bins=edges)
    profile = sums / np.maximum(counts, 1)
    seen = 0
    for d in MATERIALS["Si"]:
        angle = 2 * np.arcsin(HC * 1e-10 / 20e3 / 2 / d)
        place = int(powder.distance * np.tan(angle) / 50e-6)
        if 20 < place < 500 and np.min(counts[place - 3 : place + 4]) > 10:
            seen += 1
            assert abs(profile[place - 4 : place + 5].argmax() - 4) <= 1
            assert profile[place] > 50 * profile[place - 12 : place + 13].min()
    assert seen >= 5


def test_a_long_wavelength_sees_only_wide_spacings() -> None:
    powder = Powder(material=(2e-10, 1e-10), distance=1, photon_energy=HC / 2.5)
    ((radius, strength),) = powder.rings()
    assert (radius, strength) == (pytest.approx(np.tan(2 * np.arcsin(2.5 / 4))), 1)


def test_hits_have_peaks_and_others_do_not() -> None:
    scene = Peaks(hit_rate=0.3, peaks=12, intensity=2000, background=0, width=1)
    image = Rect(0, 0, 120, 90)
    seen = frames(scene, image, 200)
    hits = scene.hits(np.arange(200, dtype=np.uint64))
    np.testing.assert_array_equal(seen.any(axis=(1, 2)), hits)
    assert 40 < hits.sum() < 80
    for number in np.flatnonzero(hits)[:10].tolist():
        spots = scene.spots(number, image)
        assert len(spots) == 12
        apart = np.abs(spots[:, np.newaxis, :2] - spots[:, :2]).max(axis=2) + 99 * np.eye(12)
        assert apart.min() > 8
        for x, y, mean in spots.tolist():
            about = seen[number, round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5].astype(float)
            rows, columns = np.indices(about.shape) - 4
            assert about.sum() == pytest.approx(mean, abs=5 * mean**0.5)
            assert (about * columns).sum() / about.sum() + round(x) == pytest.approx(x, abs=0.2)
            assert (about * rows).sum() / about.sum() + round(y) == pytest.approx(y, abs=0.2)


def test_hits_stay_those_for_great_numbers_and_rates() -> None:
    numbers = np.arange(2**62, 2**62 + 4000, dtype=np.uint64)
    for rate in (0, 0.01, 0.5, 1):
        assert Peaks(hit_rate=rate).hits(numbers).mean() == pytest.approx(rate, abs=0.03)
    assert (Peaks(seed=2).hits(numbers) != Peaks(seed=3).hits(numbers)).any()


def test_datasets_see_the_same_peaks_on_other_noise() -> None:
    image, scene = Rect(0, 0, 60, 60), Peaks(hit_rate=1, peaks=3)
    one, two = (frames(scene, image, 1, dataset(index=index)) for index in (0, 1))
    dark = replace(scene, hit_rate=0)
    without = (frames(dark, image, 1, dataset(index=index)) for index in (0, 1))
    assert (one != two).mean() > 0.5
    np.testing.assert_array_equal(*(seen - noise for seen, noise in zip((one, two), without, strict=True)))


@pytest.mark.parametrize("decay", [0.05, 0.2])
def test_speckle_decays_as_promised(decay: float) -> None:
    scene = Speckle(decay=decay, mean=20, size=1)
    image = Rect(0, 0, 128, 96)
    seen = frames(scene, image, scene.frames(image)).astype(float)
    assert seen.mean() == pytest.approx(20, rel=0.01)
    delays = np.arange(1, round(1 / decay))
    g2 = [(seen[:-n] * seen[n:]).mean() / (seen[:-n].mean() * seen[n:].mean()) for n in delays]
    slope, _ = np.polyfit(delays, np.log(np.array(g2) - 1), 1)
    assert -slope / 2 == pytest.approx(decay, rel=0.05)
    assert 0.85 < (g2[0] - 1) / np.exp(-2 * decay) < 1.05


SILICON = "{powder: {material: Si, distance: 0.1, photon_energy: 20 keV}}"


@pytest.mark.parametrize(
    ("image", "scene", "rule", "at"),
    [
        (200, f"{{rings: {SILICON}}}", "no-pixel-size", ("rings", "powder")),
        (500, "{speckle: {decay: 0.01}}", "slow-decay", ("speckle", "decay")),
        (20, "{peaks: {width: 3}}", "scene-size", ("peaks", "width")),
    ],
)  # fmt: skip
def test_scenes_that_cannot_be(image: int, scene: str, rule: str, at: tuple[str, ...]) -> None:
    text = f"""
lima2: 1
detector: {{remu: {{image: {{width: {image}, height: {image}}}, scene: {scene}}}}}
nodes: {{save: {{input: data, io_hdf5: {{}}}}}}
"""
    _, findings = compiled(text)
    assert [(it.rule, it.at) for it in findings] == [(rule, ("detector", "remu", "scene", *at))]
