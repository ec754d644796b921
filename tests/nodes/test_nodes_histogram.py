"""Histograms of frames against np.histogram, and against exact numbers."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.drive import open_run
from lima2cli.errors import NodeMisuse
from lima2cli.frames import Array, FrameSpec, Invalid
from lima2cli.geometry import Rect
from lima2cli.nodes import histogram
from lima2cli.nodes.base import Inputs
from tests.node_inputs import DTYPES, TWO_MODULES, MemoryFiles, block, node, padded, pixels, spec_of
from tests.running import TRANSPORTS, run, truth

NONE = MemoryFiles()


@pytest.fixture(autouse=True)
def _no_numpy_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rows_of(spec: FrameSpec, frames: Array, **parameters: Any) -> dict[str, Array]:
    use = node("histogram", **parameters)
    return dict(use.finish(use.bind(Inputs.of(spec, NONE)).step(block(frames), 0)))


def check(rows: dict[str, Array], frames: list[Array], low: float, high: float, bins: int) -> None:
    """Compare rows with the pixels (1-D) of frames that count, bin by bin, in exact numbers."""
    for i, values in enumerate(frames):
        inside = values[(values >= low) & (values < high)]
        places = [
            math.floor((Fraction(value) - Fraction(low)) * bins / (Fraction(high) - Fraction(low)))
            for value in inside.tolist()
        ]
        np.testing.assert_array_equal(rows["counts"][i], np.bincount(np.array(places, int), minlength=bins))
        assert rows["below"][i] == (values < low).sum()
        assert rows["above"][i] == (values >= high).sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("low", "high", "bins"), [(0, 100, 100), (-20, 100, 7), (3, 4, 9), (-1e4, 60000, 1000), (-9, -3, 2), (1e5, 3e5, 8)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_whole_limits(dtype: str, low: float, high: float, bins: int, masked: bool) -> None:
    """Limits and pixels are integers: exact, on the edges, too."""
    frames = pixels(dtype, (3, 40, 31)).copy()
    frames[1] = np.rint(frames[1] / (frames[1].max() // 100 or 1)) if frames.dtype.kind == "f" else frames[1] % 110
    frames[2] = np.arange(40 * 31).reshape(40, 31) % 111
    if frames.dtype.kind == "f":
        frames[0] = np.rint(frames[0])
    spec, good = spec_of(dtype, 40, 31), np.ones(frames.shape, bool)
    if masked:
        mask = np.random.default_rng(1).uniform(size=(40, 31)) < 0.2
        spec = replace(spec, mask=mask, invalid=Invalid((5.0, 70.0)))
        good = ~mask & (frames != 5) & (frames != 70)
        if frames.dtype.kind == "f":
            frames[0, 3:7] = np.nan
            good &= ~np.isnan(frames)
    for layout in (frames, padded(frames)):
        rows = rows_of(spec, layout, range=[low, high], bins=bins)
        check(rows, [frame[there] for frame, there in zip(frames, good, strict=True)], low, high, bins)
        total = rows["counts"].sum(axis=1) + rows["below"] + rows["above"]
        np.testing.assert_array_equal(total, good.sum(axis=(1, 2)))


@settings(max_examples=80)
@given(
    dtype=st.sampled_from(DTYPES),
    low=st.integers(-300, 300),
    width=st.integers(1, 700),
    bins=st.integers(1, 900),
    seed=st.integers(0, 9),
)
def test_integers(dtype: str, low: int, width: int, bins: int, seed: int) -> None:
    limits = np.iinfo(dtype) if np.dtype(dtype).kind != "f" else np.iinfo("int16")
    random = np.random.default_rng(seed)
    frames = random.integers(max(limits.min, -400), min(limits.max, 1100), (2, 9, 11), endpoint=True).astype(dtype)
    rows = rows_of(spec_of(dtype, 9, 11), frames, range=[low, low + width], bins=bins)
    check(rows, list(frames.reshape(2, -1)), low, low + width, bins)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_as_numpy_has_them(dtype: str) -> None:
    frames = np.random.default_rng(5).normal(0.5, 0.4, (2, 300, 211)).astype(dtype)
    frames[0, 0, :4] = np.nan, np.inf, -np.inf, 0.9
    rows = rows_of(spec_of(dtype, 300, 211), frames, range=[0, 0.9], bins=49)
    for i, frame in enumerate(frames.astype(np.float64)):
        expected, edges = np.histogram(frame[frame < 0.9], 49, (0, 0.9))
        np.testing.assert_array_equal(rows["counts"][i], expected)
        assert rows["below"][i] == (frame < 0).sum()
        assert rows["above"][i] == (frame >= 0.9).sum()
    table = node("histogram", range=[0, 0.9], bins=49).infer(Inputs.of(spec_of(dtype, 300, 211), NONE))
    (axis,) = table.axes
    np.testing.assert_array_equal(axis.edges, edges)
    np.testing.assert_allclose(axis.values, (edges[1:] + edges[:-1]) / 2)


@pytest.mark.parametrize(("dtype", "first"), [("uint8", 0), ("int8", -128)])
def test_a_bin_for_each_value_of_8_bits(dtype: str, first: int) -> None:
    frames = pixels(dtype, (2, 30, 40))
    rows = rows_of(spec_of(dtype, 30, 40), frames)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(rows["counts"][i], np.bincount(frame.ravel().astype(int) - first, minlength=256))
    assert not rows["below"].any()
    assert not rows["above"].any()


def test_many_small_frames_are_counted_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = pixels("uint16", (50, 3, 4))
    whole = rows_of(spec_of("uint16", 3, 4), frames, range=[0, 65536], bins=1000)
    monkeypatch.setattr(histogram, "ROOM", 7 * 1003)
    for name, values in rows_of(spec_of("uint16", 3, 4), frames, range=[0, 65536], bins=1000).items():
        np.testing.assert_array_equal(values, whole[name])
    check(whole, list(frames.reshape(50, -1)), 0, 65536, 1000)


@settings(max_examples=30)
@given(dtype=st.sampled_from(["uint16", "int8", "uint32", "float32"]), cut=st.integers(1, 11), across=st.booleans())
def test_parts_merge_to_the_whole(dtype: str, cut: int, across: bool) -> None:
    frames = pixels(dtype, (3, 12, 17)).copy()
    if dtype == "float32":
        frames[1, :5] = np.nan
    spec = spec_of(dtype, 12, 17, mask=np.random.default_rng(3).random((12, 17)) < 0.1)
    use = node("histogram", range=[-50, 9000], bins=33)
    areas = (
        [Rect(0, 0, cut, 12), Rect(cut, 0, 17 - cut, 12)]
        if across
        else [Rect(0, 0, 17, cut), Rect(0, cut, 17, 12 - cut)]
    )
    found = []
    for area in areas:
        shown = area.within(Rect(0, 0, 0, 0))
        part = replace(spec, view=spec.view.cut(area), mask=spec.mask[shown], whole=spec.view)
        assert use.infer(Inputs.of(part, NONE)) == use.infer(Inputs.of(spec, NONE))
        found.append(use.bind(Inputs.of(part, NONE)).step(block(frames[:, *shown]), 0))
    whole = use.finish(use.bind(Inputs.of(spec, NONE)).step(block(frames), 0))
    for name, values in use.finish(use.merge(*found)).items():
        assert values.dtype == whole[name].dtype
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.parametrize(
    ("dtype", "parameters", "rule", "key"),
    [
        ("uint16", {}, "histogram-range", ()),
        ("float32", {}, "histogram-range", ()),
        ("uint8", {"range": [5, 5]}, "histogram-range", ("range",)),
        ("uint8", {"range": [5, 4]}, "histogram-range", ("range",)),
        ("uint16", {"range": [0, 9], "bins": 1025}, "histogram-bins", ("bins",)),
    ],
)
def test_what_is_refused(dtype: str, parameters: dict[str, Any], rule: str, key: tuple[str, ...]) -> None:
    with pytest.raises(NodeMisuse) as refused:
        node("histogram", **parameters).infer(Inputs.of(spec_of(dtype, 9, 9), NONE))
    assert (refused.value.rule, refused.value.key) == (rule, key)


PIPELINE = (
    TWO_MODULES
    + """\
  raw: {input: data, histogram: {bins: 32, range: [0, 64000]}}
  half: {input: data, background_sub: {image: 20}}
  float: {input: half, histogram: {bins: 20, range: [100, 20100]}}
"""
)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dispatch", ["", "dispatch: modules"])
def test_files(tmp_path: Path, transport: str, dispatch: str) -> None:
    """Fused, of parts, of several threads and receivers: all the same numbers, and an axis for the plot."""
    ran = run(PIPELINE.replace("DISPATCH", dispatch), tmp_path, transport)
    number, y, x = np.ogrid[:12, :48, :64]
    raw = (7919 * number + y * 64 + x) % 2**16
    raw = np.concatenate([raw[:, :20], raw[:, 28:]], axis=1)
    for name, values, bins, limits in (("raw", raw, 32, (0, 64000)), ("float", raw - 20.0, 20, (100, 20100))):
        expected = [np.histogram(frame[frame < limits[1]], bins, limits)[0] for frame in values]
        with h5py.File(ran.directory / f"t_{name}.h5") as file:
            rows, plot = file["entry_0000/measurement"], file["entry_0000/plot"]
            np.testing.assert_array_equal(rows["counts"], expected)
            np.testing.assert_array_equal(rows["below"], (values < limits[0]).sum(axis=(1, 2)))
            np.testing.assert_array_equal(rows["above"], (values >= limits[1]).sum(axis=(1, 2)))
            assert (plot.attrs["signal"], list(plot.attrs["axes"])) == ("counts", ["frame_number", "intensity"])
            edges = np.linspace(*limits, bins + 1)
            np.testing.assert_allclose(plot["intensity"], (edges[1:] + edges[:-1]) / 2)
            np.testing.assert_allclose(plot["intensity_edges"], edges)
            assert plot.attrs["intensity_indices"] == 1


def test_more_rows_than_bins_are_all_counted(tmp_path: Path) -> None:
    """The axis is no column: readers of rows, and accounts, count frames."""
    text = PIPELINE.replace("DISPATCH", "").replace("frames: 12", "frames: 41").replace("bins: 32", "bins: 8")
    ran = run(text, tmp_path, "inline")
    summary = truth(ran)
    assert summary["tables"]["raw"]["rows"] == 41
    rows = open_run(ran.directory).rows("raw")
    assert set(rows) == {"frame_number", "counts", "below", "above"}
    assert rows["counts"].shape == (41, 8)
    with h5py.File(ran.directory / "t.h5") as file:
        assert file["entry_0000/raw/plot/intensity"].shape == (8,)
