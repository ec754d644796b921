"""Node gain against its formula, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.errors import NodeMisuse
from lima2cli.nodes.base import Inputs
from lima2cli.nodes.gain import Gain
from tests.node_inputs import MemoryFiles, spec_of


def images(seed: int, height: int, width: int) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    random = np.random.default_rng(seed)
    gain = np.array([40.0, -1.4, -0.1])[:, None, None] * random.uniform(0.9, 1.1, (3, height, width))
    return {"pedestal.npy": random.uniform(500, 15000, (3, height, width)), "gain.npy": gain}


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 4), st.integers(0, 2**31), st.booleans(), st.booleans())
def test_gain_is_its_formula(height: int, width: int, n: int, seed: int, photons: bool, narrow: bool) -> None:
    files = images(seed, height, width)
    if narrow:  # pedestals that float32 holds
        files["pedestal.npy"] = files["pedestal.npy"].astype(np.float32)
    raw = np.random.default_rng(seed + 1).integers(0, 2**16, (n, height, width), np.uint16)
    raw[0, 0, 0] = 0x8000
    node = Gain(pedestal="pedestal.npy", gain="gain.npy", photon_energy=8000.0 if photons else None)
    spec = spec_of(raw.dtype.name, height, width)
    got = node.bind(Inputs.of(spec, MemoryFiles(files)))(raw)
    bits, adu = raw >> 14, (raw & 0x3FFF).astype(np.float64)
    expected = np.full(raw.shape, np.nan)
    for value, stage in ((0, 0), (1, 1), (3, 2)):
        charge = (adu - files["pedestal.npy"][stage]) / files["gain.npy"][stage] / (8.0 if photons else 1.0)
        expected = np.where(bits == value, charge, expected)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_pixels_that_have_no_gain() -> None:
    files = images(1, 3, 4)
    files["gain.npy"][0, 1, 2] = 0
    files["gain.npy"][2, 0, 0] = np.nan
    node, spec = Gain(pedestal="pedestal.npy", gain="gain.npy"), spec_of("uint16", 3, 4)
    after = node.infer(Inputs.of(spec, MemoryFiles(files)))
    assert after.dtype == "float32"
    assert after.mask is not None
    assert np.argwhere(after.mask).tolist() == [[1, 2]]
    raw = np.full((1, 3, 4), 0xC000 | 5000, np.uint16)
    raw[0, 1, 2] = 5000
    got = node.bind(Inputs.of(spec, MemoryFiles(files)))(raw)
    assert np.argwhere(np.isnan(got)).tolist() == [[0, 0, 0], [0, 1, 2]]


def test_one_number_for_all_pixels_of_a_stage() -> None:
    spec, raw = spec_of("uint16", 3, 4), np.full((1, 3, 4), 0x4000 | 13600, np.uint16)
    node = Gain(pedestal=(3000, 15000, 15000), gain=(40, -1.4, -0.1))
    np.testing.assert_allclose(node.bind(Inputs.of(spec, MemoryFiles({})))(raw), 1000, rtol=1e-6)
    with pytest.raises(NodeMisuse, match="2 numbers, 3 are needed"):
        Gain(pedestal=(1, 2), gain=(1, 2, 3)).infer(Inputs.of(spec, MemoryFiles({})))


def test_what_does_not_fit() -> None:
    files = images(1, 3, 4) | {"two.npy": np.zeros((2, 3, 4))}
    with pytest.raises(NodeMisuse, match="uint16"):
        Gain(pedestal="pedestal.npy", gain="gain.npy").infer(Inputs.of(spec_of("int32", 3, 4), MemoryFiles(files)))
    with pytest.raises(NodeMisuse, match="holds 2 images, 3 are needed"):
        Gain(pedestal="two.npy", gain="gain.npy").infer(Inputs.of(spec_of("uint16", 3, 4), MemoryFiles(files)))
