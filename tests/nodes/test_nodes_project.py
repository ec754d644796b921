"""Sums under mask images against numpy's, exactly where weights are whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec, Invalid
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Inputs
from lima2cli.view import View
from tests.geometry_chains import CHAINS, Chain
from tests.node_inputs import DTYPES, TWO_MODULES, MemoryFiles, block, node, padded, pixels, spec_of
from tests.nodes.test_nodes_roi_flip_rot import shown
from tests.running import TRANSPORTS, run


def sums_of(spec: FrameSpec, frames: Array, masks: Array, **parameters: Any) -> Array:
    inputs, use = Inputs.of(spec, MemoryFiles(masks=masks)), node("project", masks="masks", **parameters)
    table = use.infer(inputs)
    rows = use.finish(use.bind(inputs).step(block(frames), 0))
    assert rows["frame_number"].tolist() == list(range(len(frames)))
    assert rows["sums"].dtype == table.columns["sums"]
    assert rows["sums"].shape == (len(frames), table.lengths["sums"])
    return np.asarray(rows["sums"])


def whole_weights(count: int, height: int, width: int, seed: int = 1) -> Array:
    """Weights from -9 to 9 in a part of the image."""
    masks = np.zeros((count, height, width))
    inside = masks[:, height // 7 : -(height // 5) or None, width // 6 : -(width // 9) or None]
    inside[...] = np.random.default_rng(seed).integers(-9, 10, inside.shape)
    return masks


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype not in ("uint64", "int64")])
@pytest.mark.parametrize(
    ("shape", "count"), [((3, 13, 17), 1), ((2, 300, 211), 5), ((20, 60, 61), 3), ((1, 90, 97), 200)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_whole_numbers(dtype: str, shape: tuple[int, int, int], count: int, masked: bool) -> None:
    frames, masks = pixels(dtype, shape).copy(), whole_weights(count, *shape[1:])
    if frames.dtype.kind == "f":
        frames = np.rint(frames)
    spec, good = spec_of(dtype, *shape[1:]), np.ones(shape, bool)
    if masked:
        mask = np.random.default_rng(1).uniform(size=shape[1:]) < 0.2
        value = frames[0, 5, 8].item()
        spec, good = replace(spec, mask=mask, invalid=Invalid((value,))), ~mask & (frames != value)
        if frames.dtype.kind == "f":
            frames[0, 3:7] = np.nan
            frames[:, mask] = np.inf
            good &= ~np.isnan(frames)
    counted = np.where(good, frames, 0).astype(np.int64)
    expected = np.einsum("nhw,mhw->nm", counted, masks.astype(np.int64))
    for layout in (frames, padded(frames)):
        np.testing.assert_array_equal(sums_of(spec, layout, masks), expected)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize(("work", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_real_weights(dtype: str, work: str, tolerance: float) -> None:
    frames, masks = pixels(dtype, (3, 300, 211)), np.random.default_rng(4).normal(size=(4, 300, 211))
    found = sums_of(spec_of(dtype, 300, 211), frames, masks, dtype=work)
    wide = frames.astype(np.longdouble)
    expected = np.array([[(frame * mask).sum() for mask in masks] for frame in wide])
    scale = np.array([[np.abs(frame * mask).sum() for mask in masks] for frame in wide])
    assert (np.abs(found - expected) < tolerance * scale).all()


@pytest.mark.parametrize("count", [1, 7])
def test_a_frame_does_not_depend_on_its_neighbours(count: int) -> None:
    """To the last bit, so that blocks may be of any size."""
    frames, masks = pixels("float64", (9, 70, 83)), np.random.default_rng(4).normal(size=(count, 70, 83))
    spec = spec_of("float64", 70, 83)
    whole = sums_of(spec, frames, masks)
    for i in range(9):
        np.testing.assert_array_equal(sums_of(spec, frames[i : i + 1], masks), whole[i : i + 1])
    np.testing.assert_array_equal(sums_of(spec, padded(frames[2:7]), masks), whole[2:7])


def test_a_single_mask_and_one_of_nothing() -> None:
    frames, spec = pixels("uint16", (2, 12, 17)), spec_of("uint16", 12, 17)
    np.testing.assert_array_equal(sums_of(spec, frames, np.ones((12, 17), bool)), frames.sum(axis=(1, 2))[:, None])
    np.testing.assert_array_equal(sums_of(spec, frames, np.zeros((3, 12, 17))), np.zeros((2, 3)))


@given(CHAINS)
def test_masks_of_the_detector_go_the_way_of_the_frames(chain: Chain) -> None:
    spec = replace(shown(chain), dtype="float64", mask=None)
    masks = np.random.default_rng(2).normal(size=(3, chain.height, chain.width))
    frames = pixels("float64", (2, *spec.shape))
    weights = np.stack([chain.oracle(mask, np.mean) for mask in masks])
    np.testing.assert_allclose(sums_of(spec, frames, masks), np.einsum("nhw,mhw->nm", frames, weights), rtol=1e-9)


@settings(max_examples=30)
@given(dtype=st.sampled_from(["uint16", "int8", "float32"]), cut=st.integers(1, 11), turned=st.booleans())
def test_parts_merge_to_the_whole(dtype: str, cut: int, turned: bool) -> None:
    view = View(Rect(3, 2, 12, 17), rotation=90) if turned else View(Rect(3, 2, 17, 12))
    frames = np.rint(pixels(dtype, (3, 12, 17))).copy()
    if dtype == "float32":
        frames[1, :5] = np.nan
    mask = np.random.default_rng(3).random((12, 17)) < 0.1
    spec = FrameSpec(dtype, view, (30, 30), mask)
    files = MemoryFiles(masks=whole_weights(4, 12, 17), detector=whole_weights(4, 30, 30))
    areas = [Rect(0, 0, cut, 12), Rect(cut, 0, 17 - cut, 12)]
    for masks in ("detector",) if turned else ("masks", "detector"):
        use, found = node("project", masks=masks), []
        for area in areas:
            part = area.within(Rect(0, 0, 0, 0))
            own = Inputs.of(replace(spec, view=view.cut(area), mask=mask[part], whole=view), files)
            assert use.infer(own) == use.infer(Inputs.of(spec, files))
            found.append(use.bind(own).step(block(frames[:, *part]), 0))
        whole = use.finish(use.bind(Inputs.of(spec, files)).step(block(frames), 0))
        assert whole["sums"].any()
        np.testing.assert_array_equal(use.finish(use.merge(*found))["sums"], whole["sums"])


def test_threads_share_their_weights() -> None:
    inputs, use = (
        Inputs.of(spec_of("uint16", 12, 17), MemoryFiles(masks=whole_weights(4, 12, 17))),
        node("project", masks="masks"),
    )
    assert use.bind(inputs).weights is use.bind(inputs).weights


@pytest.mark.parametrize(
    ("masks", "rule"),
    [
        (np.ones((2, 5, 5)), "calibration-shape"),
        (np.ones((2, 9, 9), complex), "calibration-dtype"),
        (np.full((9, 9), np.nan), "calibration-value"),
        (np.ones((1025, 9, 9), np.uint8), "project-masks"),
    ],
)
def test_what_is_refused(masks: Array, rule: str) -> None:
    with pytest.raises(NodeMisuse) as refused:
        node("project", masks="m").infer(Inputs.of(spec_of("uint16", 9, 9), MemoryFiles(m=masks)))
    assert (refused.value.rule, refused.value.key) == (rule, ("masks",))


PIPELINE = (
    TWO_MODULES
    + """\
  raw: {input: data, project: {masks: "m.h5::/masks"}}
  half: {input: data, background_sub: {image: 20}}
  float: {input: half, project: {masks: "m.h5::/masks"}}
"""
)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dispatch", ["", "dispatch: modules"])
def test_files(tmp_path: Path, transport: str, dispatch: str) -> None:
    """Fused, of parts, of several threads and receivers: all the same numbers."""
    masks = whole_weights(4, 48, 64)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["masks"] = masks
    ran = run(PIPELINE.replace("DISPATCH", dispatch), tmp_path, transport)
    number, y, x = np.ogrid[:12, :48, :64]
    raw = (7919 * number + y * 64 + x) % 2**16
    masks[:, 20:28] = 0
    for name, frames in (("raw", raw), ("float", raw - 20)):
        with h5py.File(ran.directory / f"t_{name}.h5") as file:
            found = file["entry_0000/measurement/sums"][()]
            np.testing.assert_array_equal(found, np.einsum("nhw,mhw->nm", frames, masks.astype(int)))
