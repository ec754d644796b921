"""roi_profiles against roi_counters' oracle, line by line."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import silx.io
from hypothesis import given, settings
from hypothesis import strategies as st
from silx.io import nxdata

from lima2cli.errors import NodeMisuse
from lima2cli.files.tables import TableWriter, merge_tables
from lima2cli.frames import Array, FrameSpec
from lima2cli.geometry import Rect
from lima2cli.nodes.base import Inputs
from tests.artefacts_samples import make_rule, make_table
from tests.compiling import compiled
from tests.node_inputs import DTYPES, MemoryFiles, block, node, padded, pixels, spec_of, splits
from tests.nodes.test_nodes_roi_counters import ALL, oracle
from tests.running import EXAMPLES, counter, lima2, mpi, run

NONE = MemoryFiles()


@pytest.fixture(autouse=True)
def _no_numpy_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def profiles(spec: FrameSpec, frames: Array, **parameters: Any) -> dict[str, Array]:
    """The rows of one block, checked against what was inferred."""
    use = node("roi_profiles", **parameters)
    table = use.infer(Inputs.of(spec, NONE))
    rows = dict(use.finish(use.bind(Inputs.of(spec, NONE)).step(block(frames), 0)))
    assert rows.pop("frame_number").tolist() == list(range(len(frames)))
    assert {name: str(values.dtype) for name, values in rows.items()} == dict(table.columns)
    assert {name: values.shape for name, values in rows.items()} == {
        name: (len(frames), length) for name, length in table.lengths.items()
    }
    return rows


@dataclass(frozen=True)
class Expected:
    """Rows of a ROI by the oracle, and the largest value of its pixels."""

    rows: dict[str, Array]
    scale: float

    @classmethod
    def of(cls, lines: list[list[Array]], saturation: float = np.inf) -> "Expected":
        """From the pixels of each line of each frame that count."""
        found = [[oracle(line, saturation) for line in frame] for frame in lines]
        rows = {name: np.array([[line[name] for line in frame] for frame in found]) for name in ALL}
        scales = (np.nanmax(np.abs(line.astype(np.float64)), initial=1.0) for frame in lines for line in frame)
        return cls(rows, float(max(scales)))


def check(rows: dict[str, Array], roi: str, expected: Expected) -> None:
    """Compare rows with those that are expected."""
    scale = expected.scale
    for name, wanted in expected.rows.items():
        if name in ("min", "max", "saturated"):
            np.testing.assert_array_equal(rows[f"{roi}_{name}"], wanted, err_msg=name)
        elif name == "sum":
            np.testing.assert_allclose(rows[f"{roi}_sum"], wanted, rtol=1e-12, atol=1e-12 * scale * 500)
        else:
            np.testing.assert_allclose(
                rows[f"{roi}_{name}"], wanted.astype(np.float64), rtol=3e-7, atol=1e-7 * scale, err_msg=name
            )


def lines_of(frame: Array, direction: str, good: Array | None = None) -> list[Array]:
    good = np.ones(frame.shape, bool) if good is None else good
    turned = (frame.T, good.T) if direction == "horizontal" else (frame, good)
    return [line[some] for line, some in zip(*turned, strict=True)]


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 13, 17), (1, 700, 211), (2, 2, 3000)])
def test_lines(dtype: str, shape: tuple[int, int, int], direction: str) -> None:
    frames = pixels(dtype, shape)
    height, width = shape[1:]
    level = float(np.quantile(frames.astype(np.float64), 0.9))
    rois = {
        "all": {"rect": {"x": 0, "y": 0, "width": width, "height": height}},
        "part": {"rect": {"x": 2, "y": 1, "width": width - 3, "height": height - 1}},
        "last": {"rect": {"x": width - 1, "y": height - 1, "width": 1, "height": 1}},
    }
    spec = spec_of(dtype, height, width, saturation=level)
    expected = {
        "all": Expected.of([lines_of(frame, direction) for frame in frames], level),
        "part": Expected.of([lines_of(frame[1:, 2 : width - 1], direction) for frame in frames], level),
        "last": Expected.of([lines_of(frame[-1:, -1:], direction) for frame in frames], level),
    }
    for layout in (frames, padded(frames)):
        rows = profiles(spec, layout, rois=rois, statistics=ALL, direction=direction)
        for roi, wanted in expected.items():
            check(rows, roi, wanted)


def test_the_picture_of_the_manual() -> None:
    frames = np.array([[[1, 2, 0], [4, 0, 1], [0, 0, 1]]], np.uint16)
    rois = {"r": {"rect": {"x": 0, "y": 0, "width": 3, "height": 3}}}
    spec = spec_of("uint16", 3, 3)
    assert profiles(spec, frames, rois=rois)["r_sum"].tolist() == [[5, 2, 2]]
    assert profiles(spec, frames, rois=rois, direction="vertical")["r_sum"].tolist() == [[3, 5, 1]]


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
@pytest.mark.parametrize("dtype", ["uint16", "int64", "float32", "float64"])
def test_masked_and_nan_pixels_do_not_count(dtype: str, direction: str) -> None:
    frames = pixels(dtype, (3, 90, 110)).copy()
    mask = np.random.default_rng(4).uniform(size=(90, 110)) < 0.3
    mask[10], mask[:, 20] = True, True  # lines of which nothing counts
    if frames.dtype.kind == "f":
        frames[1, 5:9, 7:50] = np.nan
        frames[2] = np.nan
    part = (slice(4, 84), slice(3, 103))
    rois = {"r": {"rect": {"x": 3, "y": 4, "width": 100, "height": 80}}}
    spec = spec_of(dtype, 90, 110, mask=mask, saturation=1e3)
    expected = Expected.of([lines_of(frame[part], direction, ~mask[part]) for frame in frames], 1e3)
    for layout in (frames, padded(frames)):
        rows = profiles(spec, layout, rois=rois, statistics=ALL, direction=direction)
        check(rows, "r", expected)


@pytest.mark.parametrize("dtype", ["uint64", "int64", "uint32"])
def test_nothing_overflows(dtype: str) -> None:
    frames = np.full((2, 600, 300), np.iinfo(dtype).max, dtype)
    rois = {"r": {"rect": {"x": 0, "y": 0, "width": 300, "height": 600}}}
    rows = profiles(spec_of(dtype, 600, 300), frames, rois=rois, statistics=["sum", "max", "std"])
    np.testing.assert_allclose(rows["r_sum"], 600.0 * float(np.iinfo(dtype).max), rtol=1e-15)
    assert (rows["r_max"] == np.iinfo(dtype).max).all()
    assert not rows["r_std"].any()


@settings(max_examples=30)
@given(
    cuts=st.lists(st.integers(1, 8), max_size=4),
    dtype=st.sampled_from(["uint8", "int32", "float32"]),
    direction=st.sampled_from(["horizontal", "vertical"]),
    masked=st.booleans(),
)
def test_rows_do_not_depend_on_blocks(cuts: list[int], dtype: str, direction: str, masked: bool) -> None:
    frames = pixels(dtype, (9, 40, 33))
    mask = np.random.default_rng(2).uniform(size=(40, 33)) < 0.1 if masked else None
    spec = spec_of(dtype, 40, 33, mask=mask)
    use = node("roi_profiles", rois={"r": {"rect": {"x": 1, "y": 2, "width": 30, "height": 35}}}, direction=direction)
    whole = use.finish(use.bind(Inputs.of(spec, NONE)).step(block(frames), 0))
    reducer = use.bind(Inputs.of(spec, NONE))
    parts = [reducer.step(block(frames[part], part.start), 0) for part in splits(9, cuts)]
    joined = use.finish({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    for name in whole:
        np.testing.assert_array_equal(joined[name], whole[name])


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_parts_of_frames_merge_to_whole_ones(direction: str) -> None:
    """Receivers that hold the upper and the lower part; what the other has is masked."""
    frames = pixels("int16", (4, 20, 16))
    spec = spec_of("int16", 20, 16)
    use = node("roi_profiles", rois={"r": {"rect": {"x": 1, "y": 2, "width": 12, "height": 15}}}, direction=direction)
    upper = np.zeros((20, 16), bool)
    upper[:9] = True
    partials = [use.bind(Inputs.of(spec.masked(mask), NONE)).step(block(frames), 0) for mask in (upper, ~upper)]
    whole, merged = use.finish(use.bind(Inputs.of(spec, NONE)).step(block(frames), 0)), use.finish(use.merge(*partials))
    for name in whole:
        np.testing.assert_allclose(merged[name], whole[name], rtol=1e-6)


def test_detector_coordinates_of_turned_frames() -> None:
    """A ROI of the detector, in frames turned by 90 degrees: directions are those of the frames."""
    image = pixels("uint16", (1, 10, 14))
    spec = spec_of("uint16", 10, 14)
    turn = node("roi_flip_rot", rotation=90)
    rois = {"r": {"rect": {"x": 2, "y": 3, "width": 5, "height": 4}}}
    turned = turn.bind(Inputs.of(spec, NONE))(image)
    rows = profiles(turn.infer(Inputs.of(spec, NONE)), turned, rois=rois, coordinates="detector", statistics=["sum"])
    expected = np.rot90(image[0, 3:7, 2:7], -1).sum(axis=0)
    assert rows["r_sum"].tolist() == [expected.tolist()]


def test_only_rectangles() -> None:
    found = compiled("""
lima2: 1
detector: {remu: {image: {width: 16, height: 12}, datasets: {D: {dtype: uint16}}}}
acquisition: {frames: 1}
nodes: {p: {input: D, roi_profiles: {rois: {r: {arc: {x: 1, y: 1, r1: 0, r2: 3, a1: 0, a2: 360}}}}}}
""")[1]
    assert [item.at for item in found if item.severity == "error"] == [
        ("nodes", "p", "roi_profiles", "rois", "r", "arc")
    ]


def test_saturation_must_be_known() -> None:
    use = node("roi_profiles", rois={"r": {"rect": {"x": 0, "y": 0, "width": 1, "height": 1}}}, statistics=ALL)
    with pytest.raises(NodeMisuse) as misfit:
        use.infer(Inputs.of(spec_of("uint16", 2, 2), NONE))
    assert misfit.value.rule == "saturation-unknown"


# The table


@pytest.mark.parametrize("receivers", [1, 3])
@pytest.mark.parametrize("length", [1, 7, 3000])
def test_vectors_of_several_receivers_become_one_table(tmp_path: Path, receivers: int, length: int) -> None:
    table = make_table(
        columns={"a_max": "uint16", "a_sum": "float64"},
        lengths={"a_max": length, "a_sum": length},
        default="a_sum",
        rule=make_rule(buffers=receivers),
        selected=701,
        receivers=tuple(range(receivers)),
    )
    columns = np.arange(length)
    for receiver in range(receivers):
        writer = TableWriter(table, str(tmp_path), receiver)
        own = np.arange(receiver, 701, receivers, dtype=np.uint64)
        for numbers in np.array_split(own[own != 13], 9):  # a frame is lost
            sums = numbers[:, None] * 1000.0 + columns
            writer.append(numbers, {"a_sum": sums, "a_max": (sums % 65536).astype(np.uint16)})
            writer.flush()
        writer.close()
    with h5py.File(merge_tables(table, str(tmp_path))) as file:
        measurement = file["entry_0000/measurement"]
        numbers = measurement["frame_number"][()]
        assert numbers.tolist() == [n for n in range(701) if n != 13]
        np.testing.assert_array_equal(measurement["a_sum"][()], numbers[:, None] * 1000.0 + columns)
        np.testing.assert_array_equal(measurement["a_max"][()], (numbers[:, None] * 1000 + columns) % 65536)


@pytest.mark.parametrize(("receivers", "transport"), [(1, "inline"), (3, "inline"), mpi(3)])
def test_profiles_of_a_run(receivers: int, transport: str, tmp_path: Path) -> None:
    ran = run(
        f"""
lima2: 1
detector: {{remu: {{image: {{width: 16, height: 12}}, datasets: {{D: {{dtype: uint16}}}}, scene: {{counter: {{}}}}}}}}
acquisition: {{frames: 50}}
receivers: {receivers}
flows: {{F: {{dataset: D, slices: {{start: 2, step: 2}}}}}}
nodes:
  less: {{input: F, background_sub: {{image: 5}}}}
  p: {{input: less, roi_profiles: {{rois: {{r: {{rect: {{x: 2, y: 3, width: 10, height: 5}}}}}}, statistics: [sum]}}}}
  q: {{input: F, roi_profiles: {{rois: {{r: {{rect: {{x: 2, y: 3, width: 10, height: 5}}}}}}, direction: vertical}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    numbers = np.arange(2, 50, 2, dtype=np.uint64)
    frames = counter(numbers, Rect(2, 3, 10, 5), 16).astype(np.float64)
    assert ran.summary["tables"]["p"]["rows"] == 24
    with h5py.File(ran.directory / "pipeline_p.h5") as file:
        np.testing.assert_array_equal(file["entry_0000/measurement/r_sum"][()], (frames - 5).sum(axis=1))
    with h5py.File(ran.directory / "pipeline_q.h5") as file:
        np.testing.assert_array_equal(file["entry_0000/measurement/frame_number"][()], numbers)
        np.testing.assert_array_equal(file["entry_0000/measurement/r_max"][()], frames.max(axis=2))
        np.testing.assert_allclose(file["entry_0000/measurement/r_std"][()], frames.std(axis=2), rtol=1e-6)
    inspected = lima2("inspect", "--verify", str(ran.directory), cwd=tmp_path)
    assert inspected.returncode == 0, inspected.stdout


def test_the_example_opens_in_silx(tmp_path: Path) -> None:
    ran = run((EXAMPLES / "profiles.yaml").read_text(), tmp_path, "inline", name="profiles")
    assert ran.code == 0, ran.output
    for name in ("profiles_across.h5", "profiles.h5"):
        with silx.io.open(str(ran.directory / name)) as file:
            shown = nxdata.get_default(file)
            assert shown is not None, name
            assert shown.signal.shape == (100, 256)
            assert shown.axes[0][()].tolist() == list(range(100))
    with h5py.File(ran.directory / "profiles_down.h5") as file:
        assert file["entry_0000/measurement/stripe_avg"].shape == (100, 192)
