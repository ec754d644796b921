"""Pixels that hold no measurement, in runs: what is saved and counted, and what users are told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.detectors.remu import Remu
from lima2cli.frames import DetectorInfo, Files, Invalid
from lima2cli.geometry import Rect
from tests.compiling import compiled, plan_of
from tests.pipelines.test_run_real import STACK, frames_of, stack
from tests.running import TRANSPORTS, Ran, covered, lima2, mpi, run


def detector_group(ran: Ran, node: str) -> Any:
    """Attributes and small datasets beside a channel's frames."""
    with h5py.File(ran.directory / ran.summary["channels"][node]["dataset"].split("::")[0]) as file:
        group = file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent
        mask = group["pixel_mask"][()] != 0 if "pixel_mask" in group else None
        return dict(group.attrs), mask, {key: group[key][()] for key in ("underload_value",) if key in group}


def table(ran: Ran, node: str) -> dict[str, NDArray[Any]]:
    with h5py.File(ran.directory / ran.summary["tables"][node]["file"]) as file:
        return {name: column[()] for name, column in file["entry_0000/measurement"].items()}


def strict_json(text: str) -> Any:
    """JSON as others read it: no NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("flow", "transport"), [("", "inline"), ("dispatch: modules,", "inline"), mpi(""), mpi("dispatch: modules,")]
)
def test_pilatus_without_its_invalid_pixels(flow: str, transport: str, data_dir: Path, tmp_path: Path) -> None:
    """Raw pixels -1 and -2 neither count nor are corrected, whoever holds which modules."""
    path = stack(data_dir, "pilatus3_1m_crop_thaumatin_stack.h5")
    ran = run(
        f"""
lima2: 1
detector:
  replay:
    file: "{path}{STACK}"
    modules: {{columns: 2, rows: 5, width: 487, height: 195, gap: {{x: 7, y: 17}}}}
    gap_value: -1
    invalid: [-1, -2]
acquisition: {{frames: 4}}
receivers: {10 if flow else 2}
flows: {{raw: {{dataset: data, {flow} buffers: {{frames: 2}}}}}}
nodes:
  counts: {{input: raw, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 981, height: 1043}}}}}}}}}}
  lines: {{input: raw, roi_profiles: {{rois: {{all: {{rect: {{x: 100, y: 100, width: 700, height: 700}}}}}}}}}}
  dark: {{input: raw, background_sub: {{image: 10}}}}
  flat: {{input: dark, flatfield: {{image: 0.98}}}}
  counts2: {{input: flat, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 981, height: 1043}}}}}}}}}}
  full: {{input: flat, {"reconstruction: {}" if flow else "roi_flip_rot: {}"}}}
  save: {{input: full, io_hdf5: {{compression: none}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    raw = frames_of(path)[:4]
    valid = raw >= 0
    assert (~valid).sum() > (raw == -1).sum() > 0
    good = [frame[frame >= 0].astype(float) for frame in raw]
    found = table(ran, "counts")
    np.testing.assert_allclose(found["all_sum"], [values.sum() for values in good])
    np.testing.assert_allclose(found["all_avg"], [values.mean() for values in good], rtol=1e-6)
    np.testing.assert_allclose(found["all_std"], [values.std() for values in good], rtol=1e-5)
    assert found["all_min"].tolist() == [values.min() for values in good]
    part, there = raw[:, 100:800, 100:800], valid[:, 100:800, 100:800]
    lines = table(ran, "lines")
    np.testing.assert_allclose(lines["all_sum"], np.where(there, part, 0).sum(axis=1))
    np.testing.assert_array_equal(lines["all_min"], np.where(there, part, 2**31 - 1).min(axis=1) * there.any(axis=1))
    corrected = np.where(valid, ((raw.astype(np.float64) - 10) / 0.98), np.nan)
    saved, numbers, _ = ran.saved("save")
    assert numbers.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.isnan(saved), ~valid)
    np.testing.assert_allclose(saved, corrected, rtol=1e-6)
    sums = np.nansum(saved, axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(table(ran, "counts2")["all_sum"], sums)


INT_FRAMES = """
lima2: 1
detector: {{replay: {{file: f.npy{more}}}}}
nodes:
  {nodes}
  raw: {{input: data, io_hdf5: {{}}}}
  counts: {{input: data, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 6, height: 4}}}}}}}}}}
"""


def small_frames(folder: Path) -> NDArray[np.int32]:
    frames = np.arange(-3, 45, dtype=np.int32).reshape(2, 4, 6)
    np.save(folder / "f.npy", frames)
    return frames


@pytest.mark.parametrize(
    ("said", "valid"),
    [
        ("[-1, -2]", lambda raw: (raw != -1) & (raw != -2)),
        ("{below: 0}", lambda raw: raw >= 0),
        ("{above: 30}", lambda raw: raw <= 30),
        ("{below: 0, above: 30}", lambda raw: (raw >= 0) & (raw <= 30)),
    ],
)
def test_invalid_values_as_users_say_them(said: str, valid: Any, tmp_path: Path) -> None:
    frames = small_frames(tmp_path)
    text = INT_FRAMES.format(more=f", invalid: {said}", nodes="")
    ran = run(text, tmp_path, "inline")
    assert ran.code == 0, ran.output
    good = valid(frames)
    np.testing.assert_array_equal(ran.saved("raw")[0], frames)  # saved as they are
    np.testing.assert_allclose(table(ran, "counts")["all_sum"], np.where(good, frames, 0).sum(axis=(1, 2)))
    attributes, mask, fields = detector_group(ran, "raw")
    assert mask is None
    noted = {key: np.asarray(value).tolist() for key, value in attributes.items() if key.startswith("invalid")}
    expected = {
        "[-1, -2]": {"invalid_values": [-1, -2]},
        "{below: 0}": {"invalid_below": 0},
        "{above: 30}": {"invalid_above": 30},
        "{below: 0, above: 30}": {"invalid_below": 0, "invalid_above": 30},
    }
    assert noted == expected[said]
    assert fields == ({"underload_value": 0} if "below" in said else {})


@pytest.mark.parametrize("said", ["[0.5]", "[5000000000]", "{below: 3e9}", "{below: 5, above: 1}"])
def test_invalid_values_that_tell_nothing_apart(said: str, tmp_path: Path) -> None:
    small_frames(tmp_path)
    plan, findings = compiled(INT_FRAMES.format(more=f", invalid: {said}", nodes=""), tmp_path)
    assert plan is None
    assert {(item.rule, item.at) for item in findings} == {("invalid-value", ("detector", "replay", "invalid"))}


PIXEL_MASK = """
lima2: 1
detector:
  remu: {{image: {{width: 64, height: 40}}, datasets: {{data: {{dtype: uint16}}}}, scene: {{counter: {{}}}},
         modules: {{columns: 2, rows: 2, width: 30, height: 18, gap: {{x: 4, y: 4}}}}}}
acquisition: {{frames: 3, {acquisition}}}
receivers: {receivers}
flows: {{F: {{dataset: data, {flow}}}}}
nodes:
  dark: {{input: F, background_sub: {{image: 1}}}}
  {full}
  save: {{input: {saved}, io_hdf5: {{}}}}
  raw: {{input: F, {raw}}}
"""
BAD = np.random.default_rng(3).uniform(size=(40, 64)) < 0.1
IMAGE = Rect(0, 0, 64, 40)
GRID = [Rect(x, y, 30, 18) for y in (0, 22) for x in (0, 34)]


@pytest.fixture
def defective(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """REMU knows of defective pixels."""
    np.save(tmp_path / "bad.npy", BAD.astype(np.uint8))
    describe = Remu.describe

    def described(self: Remu, files: Files) -> DetectorInfo:
        return replace(describe(self, files), pixel_mask="bad.npy")

    monkeypatch.setattr(Remu, "describe", described)
    return tmp_path


@pytest.mark.parametrize(
    ("acquisition", "flow", "shown"),
    [
        ("", "", lambda bad: bad),
        ("", "source: {x: 10, y: 5, width: 40, height: 30}", lambda bad: bad[5:35, 10:50]),
        ("flip: horizontal", "", lambda bad: bad[:, ::-1]),
        ("flip: vertical, roi: {x: 2, y: 3, width: 30, height: 20}", "", lambda bad: bad[3:23, 2:32][::-1]),
        ("binning: {x: 2, y: 2}", "", lambda bad: bad.reshape(20, 2, 32, 2).any(axis=(1, 3))),
        ("", "dispatch: modules", lambda bad: bad),
    ],
)
def test_the_detectors_own_mask_goes_with_the_frames(acquisition: str, flow: str, shown: Any, defective: Path) -> None:
    parts = "dispatch" in flow
    text = PIXEL_MASK.format(
        acquisition=acquisition, flow=flow, receivers=4 if parts else 1, saved="full" if parts else "dark",
        full="full: {input: dark, reconstruction: {}}" if parts else "",
        raw="io_hdf5: {layout: virtual}" if parts else "io_hdf5: {}",
    )  # fmt: skip
    ran = run(text, defective, "inline")
    assert ran.code == 0, ran.output
    masked = shown(BAD | ~covered(GRID, IMAGE))
    for node in ("save", "raw"):
        np.testing.assert_array_equal(detector_group(ran, node)[1], masked)
    saved, _, _ = ran.saved("save")
    assert np.isnan(saved[:, masked]).all()
    assert not np.isnan(saved[:, ~masked]).any()


def test_a_pixel_mask_of_another_shape_is_refused(defective: Path) -> None:
    np.save(defective / "bad.npy", BAD[:-1])
    plan, findings = compiled(
        PIXEL_MASK.format(acquisition="", flow="", receivers=1, saved="dark", full="", raw="io_hdf5: {}"), defective
    )
    assert plan is None
    assert [item.rule for item in findings] == ["calibration-shape"]


def test_own_programs_see_what_nodes_see(defective: Path) -> None:
    """Parts, gap value, defects and invalid values are those of the spec that nodes get."""
    flow = "dispatch: modules"
    text = PIXEL_MASK.format(
        acquisition="", flow=flow, receivers=4, saved="full", full="full: {input: dark, reconstruction: {}}",
        raw="io_hdf5: {layout: virtual}",
    )  # fmt: skip
    plan = plan_of(text, defective)
    (step,) = [step for step in plan.steps if step.name == "dark"]
    specs = [plan.sources[gdt.name] for gdt in plan.gdts]
    assert specs == [passage.before for passage in step.passages]
    assert all(spec.whole is not None for spec in specs)


NAN = """
lima2: 1
detector: {{replay: {{file: f.npy, gap_value: {gap}, modules: [{{x: 0, y: 0, width: 4, height: 2}}]}}}}
nodes:
  save: {{input: data, io_hdf5: {{}}}}
  counts: {{input: data, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 4, height: 4}}}}}}}}}}
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("gap", [".nan", "nan"])
def test_a_gap_value_may_be_nan(gap: str, transport: str, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.ones((2, 4, 4), np.float32))
    ran = run(NAN.format(gap=gap), tmp_path, transport)
    assert ran.code == 0, ran.output
    saved, _, _ = ran.saved("save")
    assert np.isnan(saved[:, 2:]).all()
    assert (saved[:, :2] == 1).all()
    assert table(ran, "counts")["all_sum"].tolist() == [8, 8]
    strict_json((ran.directory / "plan.json").read_text())
    strict_json((ran.directory / "summary.json").read_text())
    if transport == "inline":
        again = lima2("run", str(ran.directory / "plan.json"), "--transport", "inline", cwd=tmp_path)
        assert again.returncode == 0, again.stdout + again.stderr  # the same plan: NaN is what it was
        shown = lima2("detectors", "show", "replay", "--format", "json", cwd=tmp_path)
        strict_json(shown.stdout)


def test_nan_gaps_of_plans_records_and_simulations(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.ones((2, 4, 4), np.float32))
    (tmp_path / "p.yaml").write_text(NAN.format(gap=".nan"))
    made = lima2("plan", "p.yaml", "--format", "json", "-o", "plan.json", cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    contents = strict_json((tmp_path / "plan.json").read_text())
    assert contents["parameters"]["detector"]["replay"]["gap_value"] == "nan"
    diff = lima2("plan", "p.yaml", "--diff", "plan.json", cwd=tmp_path)
    assert "gap_value" not in diff.stdout
    other = NAN.format(gap="0")
    (tmp_path / "p.yaml").write_text(other)
    assert "gap_value" in lima2("plan", "p.yaml", "--diff", "plan.json", cwd=tmp_path).stdout
    (tmp_path / "p.yaml").write_text(NAN.format(gap=".nan"))
    simulated = lima2("simulate", "p.yaml", "--rate", "100", "--frames", "20", "--transport", "inline", cwd=tmp_path)
    assert simulated.returncode in (0, 10), simulated.stdout + simulated.stderr
    assert "internal-error" not in simulated.stdout + simulated.stderr


@pytest.mark.parametrize(
    ("gap", "dtype", "rule"),
    [
        (".nan", "u2", "gap-value"),
        ("70000", "u2", "gap-value"),
        ("1e39", "f4", "out-of-range"),
        (".inf", "f4", "not-finite"),
        ("-.inf", "u2", "not-finite"),
        ("none", "f4", "wrong-type"),
        ("[1]", "f4", "wrong-type"),
        ("true", "f4", "wrong-type"),
    ],
)
def test_gap_values_that_are_none(gap: str, dtype: str, rule: str, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.ones((2, 4, 4), dtype))
    _, findings = compiled(NAN.format(gap=gap), tmp_path)
    (found,) = list(findings)
    assert found.at[:3] == ("detector", "replay", "gap_value")
    assert found.rule == rule or (rule == "wrong-type" and found.message.startswith("expected a number, or nan"))


@pytest.mark.parametrize("key", ["acquisition: {period: .nan}", "metadata: {extra: {a: .nan}}"])
def test_nan_is_allowed_nowhere_else(key: str, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.ones((2, 4, 4), np.float32))
    _, findings = compiled(NAN.format(gap="0") + key, tmp_path)
    assert [item.rule for item in findings] == ["not-finite"]


DARK = """
lima2: 1
name: {name}
detector:
  remu: {{image: {{width: 48, height: 32}}, datasets: {{data: {{dtype: uint16}}}}, scene: {{counter: {{}}}}}}
acquisition: {{frames: 1{acquisition}}}
nodes:
  {nodes}
output: {{directory: {name}}}
"""


@pytest.mark.parametrize(
    ("recorded", "turned"),
    [
        ("flip: horizontal", ""),
        ("flip: both", ""),
        ("rotation: 180", ""),
        ("rotation: 90", ""),
        ("flip: vertical, rotation: 270", "flip: horizontal, rotation: 90"),
        ("flip: horizontal", "flip: horizontal"),
        ("roi: {x: 8, y: 4, width: 32, height: 20}", "roi: {x: 10, y: 6, width: 20, height: 10}, flip: vertical"),
        ("flip: horizontal", "binning: {x: 2, y: 2}"),
    ],
)
def test_a_dark_is_applied_as_it_was_recorded(recorded: str, turned: str, tmp_path: Path) -> None:
    """Frame 0 minus frame 0 is 0, however either was shown."""
    nodes = f"shown: {{input: data, roi_flip_rot: {{{recorded}}}}}\n  save: {{input: shown, io_hdf5: {{}}}}"
    first = lima2_run(DARK.format(name="dark", acquisition="", nodes=nodes), tmp_path, "dark")
    assert first.code == 0, first.output
    shown = f"shown: {{input: data, roi_flip_rot: {{{turned}}}}}\n  " if turned else ""
    nodes = (
        shown + f"sub: {{input: {'shown' if turned else 'data'}, background_sub: {{image: dark/dark_save_master.h5}}}}"
        "\n  out: {input: sub, io_hdf5: {}}"
    )
    second = lima2_run(DARK.format(name="used", acquisition="", nodes=nodes), tmp_path, "used")
    assert second.code == 0, second.output
    assert not second.saved("out")[0].any()


@pytest.mark.parametrize("recorded", ["flip: horizontal", "binning: {x: 2, y: 2}, flip: vertical"])
def test_a_dark_behind_the_detectors_own_flip(recorded: str, tmp_path: Path) -> None:
    save = "save: {input: data, io_hdf5: {}}"
    first = lima2_run(DARK.format(name="dark", acquisition=f", {recorded}", nodes=save), tmp_path, "dark")
    assert first.code == 0, first.output
    nodes = "sub: {input: data, background_sub: {image: dark/dark_save_master.h5}}\n  out: {input: sub, io_hdf5: {}}"
    same = lima2_run(DARK.format(name="same", acquisition=f", {recorded}", nodes=nodes), tmp_path, "same")
    assert same.code == 0, same.output
    assert not same.saved("out")[0].any()
    plain = lima2_run(DARK.format(name="plain", acquisition="", nodes=nodes), tmp_path, "plain")
    if "binning" in recorded:
        assert plain.code == 1
        assert "calibration-view" in plain.output
    else:
        assert plain.code == 0, plain.output
        assert not plain.saved("out")[0].any()


def test_a_replayed_flip_and_its_dark_show_the_same(tmp_path: Path) -> None:
    nodes = "shown: {input: data, roi_flip_rot: {flip: horizontal}}\n  save: {input: shown, io_hdf5: {}}"
    first = lima2_run(DARK.format(name="dark", acquisition="", nodes=nodes), tmp_path, "dark")
    assert first.code == 0, first.output
    text = """
lima2: 1
name: again
detector: {replay: {file: dark/dark_save_master.h5}}
nodes:
  sub: {input: data, background_sub: {image: dark/dark_save_master.h5}}
  out: {input: sub, io_hdf5: {}}
output: {directory: again}
"""
    again = lima2_run(text, tmp_path, "again")
    assert again.code == 0, again.output
    assert not again.saved("out")[0].any()


def lima2_run(text: str, folder: Path, name: str) -> Ran:
    (folder / f"{name}.yaml").write_text(text)
    done = lima2("run", f"{name}.yaml", "--transport", "inline", cwd=folder)
    return Ran(done.returncode, done.stdout + done.stderr, folder / name)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_masked_pixels_of_an_emulated_detector_that_sums(transport: str, tmp_path: Path) -> None:
    """It makes up no value either: bins and exposures with an invalid pixel hold the largest value."""
    frames = np.full((4, 4, 6), 40000, np.uint16)
    frames[1, 0, 0] = frames[2, 3, 5] = 65535
    np.save(tmp_path / "f.npy", frames)
    ran = run(
        """
lima2: 1
detector:
  remu: {image: {width: 6, height: 4}, datasets: {data: {dtype: uint16}}, invalid: [65535],
         scene: {frames: {file: f.npy}}}
acquisition: {frames: 2, binning: {x: 2, y: 2}, accumulate: 2}
nodes:
  save: {input: data, io_hdf5: {}}
  counts: {input: data, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 3, height: 2}}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    saved, _, _ = ran.saved("save")
    expected = np.full((2, 2, 3), 8 * 40000, np.uint32)
    expected[0, 0, 0] = expected[1, 1, 2] = 2**32 - 1
    np.testing.assert_array_equal(saved, expected)
    assert table(ran, "counts")["all_sum"].tolist() == [5 * 320000, 5 * 320000]


def test_counters_of_raw_jungfrau_frames_leave_missing_packets_out() -> None:
    plan = plan_of(
        """
lima2: 1
detector: {jungfrau: {emulate: {}}}
acquisition: {frames: 1}
nodes: {counts: {input: adc, roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 10, height: 10}}}}}}
"""
    )
    (step,) = plan.steps
    assert step.before.invalid == Invalid((0x8000,))
