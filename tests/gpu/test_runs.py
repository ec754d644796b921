"""Runs whose flows come to the memory of a device save what runs in host memory save; pocl is the device."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.geometry import Rect
from lima2cli.inputs.stacks import FileStore
from lima2cli.job.run import run_plan
from lima2cli.plan.ir import Plan
from lima2cli.plan.lowering import device_bytes, mark_lowered
from lima2cli.runs.saved_plan import Origin
from tests.compiling import compiled, figures, plan_of
from tests.golden.test_examples import ALL, ELSEWHERE
from tests.running import EXAMPLES, TRANSPORTS, counter, lima2, run, truth

pytest.importorskip("pyopencl")

from lima2cli.gpu.devices import open_device

pytestmark = pytest.mark.interchange

TEXT = """
lima2: 1
detector:
  remu:
    image: {width: 96, height: 64}
    datasets: {D: {dtype: uint16}}
    scene: {rings: {seed: 3}}
acquisition: {frames: 60}
receivers: {r: {memspaces: {m: MEMSPACE}}, s: {memspaces: {m: MEMSPACE}}}
flows: {raw: {dataset: D, rules: {blocks_per_group: 10}, buffers: {at: [r.m, s.m]}}}
nodes:
  dark: {input: raw, background_sub: {image: dark.npy}}
  flat: {input: dark, flatfield: {image: flat.npy}}
  good: {input: flat, mask: {image: bad.npy}}
  counters:
    input: good
    roi_counters:
      rois: {spot: {x: 3, y: 2, width: 50, height: 30}, ring: {ring: {x: 40, y: 30, r1: 5, r2: 25}}}
      statistics: [sum, avg, std, min, max, valid, com_x]
  lines: {input: good, roi_profiles: {direction: vertical, rois: {line: {x: 5, y: 10, width: 20, height: 40}}}}
  direct: {input: raw, roi_counters: {rois: {all: {x: 0, y: 0, width: 96, height: 64}}}}
  saved: {input: good, io_hdf5: {}}
  binned: {input: good, roi_flip_rot: {binning: 2, rotation: 90}}
  summed: {input: good, accumulate: {frames: 10}}
  images: {input: binned, io_hdf5: {}}
  sums: {input: summed, io_hdf5: {}}
"""

DEVICE, HOST = "{gpu: {device: pocl}}", "{host: {}}"


@pytest.fixture(autouse=True)
def _pocl() -> None:
    from lima2cli.errors import EnvironmentUnfit

    try:
        open_device("pocl")
    except EnvironmentUnfit as error:
        pytest.skip(str(error))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory with calibrations."""
    random = np.random.default_rng(1)
    np.save(tmp_path / "dark.npy", random.uniform(90, 110, (64, 96)).astype(np.float32))
    np.save(tmp_path / "flat.npy", random.uniform(0.9, 1.1, (64, 96)).astype(np.float32))
    np.save(tmp_path / "bad.npy", (random.uniform(size=(64, 96)) < 0.05).astype(np.uint8))
    return tmp_path


def check_same(one: Path, other: Path) -> int:
    """Check that two runs have saved the same numbers; return how many arrays.

    Sums are the same but for the order of their terms.
    """
    found = 0
    for path in sorted(one.glob("*.h5")):
        with h5py.File(path) as file, h5py.File(other / path.name) as twin:
            for name, values in arrays(file).items():
                expected = arrays(twin)[name]
                assert values.shape == expected.shape, (path.name, name)
                close = values.dtype.kind == "f" and values.ndim < 3
                np.testing.assert_allclose(values, expected, 1e-6 if close else 0, 1e-6 if close else 0, err_msg=name)
                found += 1
    return found


APART = ("checksum", "time", "date", "duration", "latency", "received", "plan", "version", "host", "seconds")


def arrays(file: h5py.File) -> dict[str, NDArray[Any]]:
    """Numbers in a file that are not of this very run."""
    found: dict[str, NDArray[Any]] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and not any(word in name for word in APART):
            found[name] = item[()]

    file.visititems(take)
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_on_a_device_saves_what_one_on_the_host_does(base: Path, transport: str) -> None:
    ran = run(TEXT.replace("MEMSPACE", DEVICE), base, transport)
    assert ran.code == 0, ran.output
    assert "warning" not in ran.output
    on_host = run(TEXT.replace("MEMSPACE", HOST), base, "inline")
    truth(ran)
    assert check_same(ran.directory, on_host.directory) > 40


def test_what_is_computed_on_the_device_is_shown(base: Path) -> None:
    plan = plan_of(TEXT.replace("MEMSPACE", DEVICE), base)
    found = {tuple(kernel["nodes"]): kernel.get("device") for kernel in figures(plan)["kernels"]}
    raw, result = 96 * 64 * 2, 96 * 64 * 4
    both = {"receivers": ["r", "s"], "there_bytes": raw}
    assert found["dark", "flat", "good", "counters", "lines"] == {**both, "back_bytes": result}
    assert found["direct",] == {**both, "there_bytes": 0, "back_bytes": 0}, "a flow is copied once"
    assert [nodes for nodes, device in found.items() if device] == [
        ("dark", "flat", "good", "counters", "lines"),
        ("direct",),
    ]
    assert device_bytes(plan, 0) == device_bytes(plan, 1) > 3 * (8 << 20)
    constant = plan_of(TEXT.replace("MEMSPACE", DEVICE).replace("flat.npy", "0.9"), base)
    assert device_bytes(plan, 0) - device_bytes(constant, 0) == result, "the calibration is there, too"
    shown = lima2("plan", "p.yaml", cwd=_written(base, TEXT.replace("MEMSPACE", DEVICE))).stdout
    assert "on the device of r, s: 12 KiB a frame there, 24 KiB back" in shown
    assert "on the device of r, s: the frames are there, sums back" in shown
    assert "gpu pocl" in shown


SECOND = """
  half: {input: good, expression: {expr: "good / 2"}}
  more: {input: half, expression: {expr: "half + 1"}}
  less: {input: half, expression: {expr: "half - 1"}}
  least: {input: less, expression: {expr: "less * 2"}}
  after: {input: more, roi_counters: {rois: {all: {x: 0, y: 0, width: 96, height: 64}}}}
  lesser: {input: least, io_hdf5: {}}
"""
"""Nodes behind frames that are on the device: what `half` gives is read there only."""


def test_kernels_behind_kernels_read_what_is_on_the_device(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lima2cli.gpu.pipe import Upload

    text = TEXT + SECOND
    plan = plan_of(text.replace("MEMSPACE", DEVICE), base)
    found = {tuple(kernel["nodes"]): kernel.get("device") for kernel in figures(plan)["kernels"]}
    whole = 96 * 64 * 4
    assert found["half",] == {"receivers": ["r", "s"], "there_bytes": 0, "back_bytes": 0}
    assert found["more", "after"] == {"receivers": ["r", "s"], "there_bytes": 0, "back_bytes": 0}
    assert found["less", "least"] == {"receivers": ["r", "s"], "there_bytes": 0, "back_bytes": whole}
    shown = lima2("plan", "p.yaml", cwd=_written(base, text.replace("MEMSPACE", DEVICE))).stdout
    assert "on the device of r, s: the frames are there, its own stay there" in shown
    assert "on the device of r, s: the frames are there, 24 KiB a frame back" in shown
    copies, copied = [0], Upload.copied

    def counted(self: Upload, frames: Any, room: Any) -> Any:
        copies[0] += len(frames)
        return copied(self, frames, room)

    monkeypatch.setattr(Upload, "copied", counted)
    ran = run(text.replace("MEMSPACE", DEVICE), base, "inline")
    assert ran.code == 0, ran.output
    tried = copies[0] - 60
    on_host = run(text.replace("MEMSPACE", HOST), base, "inline")
    truth(ran)
    assert check_same(ran.directory, on_host.directory) > 50
    assert tried == 2 * 5, "frames are copied once; each of five kernels of two receivers was tried with one"


def test_frames_on_a_device_can_be_looked_at(base: Path) -> None:
    import lima2cli as l2

    text = (TEXT + SECOND).replace("MEMSPACE", DEVICE).replace("{rings: {seed: 3}}", "{counter: {}}")
    (base / "p.yaml").write_text(text.replace("frames: 60", "frames: 0, period: 1 ms"))
    images = {name: np.load(base / f"{name}.npy") for name in ("dark", "flat", "bad")}
    with l2.run(base / "p.yaml", transport="inline") as live:
        for node, scale, less, masked in (("good", 1, 0, 0), ("half", 2, 0, np.nan), ("less", 2, 1, np.nan)):
            (frame,) = live.tap(node, count=1)
            raw = counter(np.array([frame.number], np.uint64), Rect(0, 0, 96, 64), 96)[0].astype(np.float32)
            expected = (raw - images["dark"]) / images["flat"] / np.float32(scale) - np.float32(less)
            np.testing.assert_array_equal(frame.pixels, np.where(images["bad"] > 0, np.float32(masked), expected))


def test_parameters_are_changed_between_frames(base: Path) -> None:
    """Also of a kernel that reads what another makes on the device."""
    import lima2cli as l2

    text = (TEXT + SECOND).replace("MEMSPACE", DEVICE)
    (base / "p.yaml").write_text(text.replace("frames: 60", "frames: 0, period: 1 ms"))
    with l2.run(base / "p.yaml", transport="inline") as live:
        progress = live.progress
        next(event for event in progress if event["flows"]["raw"]["received"] > 30)
        changed = {node: live.set(node, "expr", expr) for node, expr in (("half", "good / 4"), ("less", "half - 3"))}
        next(event for event in progress if event["flows"]["raw"]["received"] > max(changed.values()) + 40)
    saved = {}
    for name in ("saved", "lesser"):
        data = live.open(name)
        with data.file:
            numbers = data.parent["frame_number"][()].astype(int)
            saved[name] = dict(zip(numbers.tolist(), data[()], strict=True))
    assert saved["saved"].keys() == saved["lesser"].keys() >= {*range(max(changed.values()) + 1)}
    bad = np.load(base / "bad.npy")
    for number, good in saved["saved"].items():
        half = np.where(bad > 0, np.float32(np.nan), good) / np.float32(2 if number < changed["half"] else 4)
        expected = (half - np.float32(1 if number < changed["less"] else 3)) * 2
        np.testing.assert_array_equal(saved["lesser"][number], expected, str(number))


def _written(base: Path, text: str) -> Path:
    (base / "p.yaml").write_text(text)
    return base


def on_pocl(plan: Plan, base: Path) -> Plan:
    """The plan with all memory of receivers on the device."""
    regions = tuple(region if region.path else replace(region, device="pocl") for region in plan.regions)
    with FileStore(base) as files:
        kernels = mark_lowered(plan.kernels, plan.steps, {gdt.flow for gdt in plan.gdts}, files)
    return replace(plan, regions=regions, kernels=kernels)


SHORT = {"round_robin": 40}
ON_DEVICE = (
    "correct", "counters", "expression", "filter", "gain", "jungfrau", "maze", "poisson", "repeat", "round_robin",
    "smartpix", "xpcs",
)  # fmt: skip
"""Examples with kernels that can be computed on a device."""


def test_examples_with_kernels_for_devices_are_listed() -> None:
    names = set(ALL) - ELSEWHERE
    plans = {name: on_pocl(plan_of((EXAMPLES / f"{name}.yaml").read_text(), EXAMPLES), EXAMPLES) for name in names}
    assert {name for name, plan in plans.items() if any(kernel.lowered for kernel in plan.kernels)} == {*ON_DEVICE}


@pytest.mark.parametrize("name", ["correct", "expression", "filter", "gain", "maze", "repeat", "round_robin"])
def test_examples_save_the_same(name: str, tmp_path: Path) -> None:
    """Nodes as users combine them; of examples with the same kernels one is enough."""
    text = (EXAMPLES / f"{name}.yaml").read_text()
    plan = plan_of(text, EXAMPLES)
    if name in SHORT:
        plan = plan.asked(SHORT[name], plan.period_s)
    directories = []
    for place, one in (("host", plan), ("device", on_pocl(plan, EXAMPLES))):
        one = replace(one, output_directory=str(tmp_path / place / "{run}"))
        origin = Origin(text, f"{name}.yaml", EXAMPLES)
        directory, summary, code = run_plan(one, origin, lambda event: None, transport="inline")
        assert code == 0, summary
        directories.append(directory.resolve())
    assert check_same(directories[1], directories[0]) > 0


def test_without_the_device_the_run_does_not_start(base: Path) -> None:
    text = TEXT.replace("MEMSPACE", "{gpu: {device: no such}}")
    done = lima2("run", "p.yaml", "--transport", "inline", cwd=_written(base, text))
    assert done.returncode == 12
    assert "memspace m of r: device no such of OpenCL was not found" in done.stderr
    assert not (base / "runs").exists()


def test_the_host_stands_in_where_it_may(base: Path) -> None:
    ran = run(TEXT.replace("MEMSPACE", "{gpu: {device: no such, fallback: host}}"), base, "inline")
    assert ran.code == 0
    assert "warning: memspace r.m is in host memory: device no such of OpenCL was not found" in ran.output
    assert len(ran.summary["warnings"]) == 2
    on_host = run(TEXT.replace("MEMSPACE", HOST), base, "inline")
    assert check_same(ran.directory, on_host.directory) > 40


def test_too_little_memory_on_the_device_is_known_before_the_start(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lima2cli.gpu import devices
    from lima2cli.job import resources

    has = open_device("pocl").memory
    monkeypatch.setattr(resources, "device_bytes", lambda plan, region: has * 2 // 3)
    done = lima2("run", "p.yaml", cwd=_written(base, TEXT.replace("MEMSPACE", DEVICE)))
    assert done.returncode == 12
    assert "memspace m of s: device pocl (" in done.stderr, "each has enough, both have not"
    assert devices.check_device("pocl", has)
    monkeypatch.setattr(resources, "device_bytes", lambda plan, region: 1 << 45)
    done = lima2("run", "p.yaml", cwd=_written(base, TEXT.replace("MEMSPACE", DEVICE)))
    assert done.returncode == 12
    assert "memspace m of r: device pocl (" in done.stderr
    assert "of memory, 32 TiB are needed" in done.stderr


@pytest.mark.parametrize("overrun", ["continue", "stop"])
def test_frames_that_may_be_overwritten_are_copied_first(base: Path, overrun: str) -> None:
    text = TEXT.replace("MEMSPACE", DEVICE).replace("buffers:", f"overrun: {overrun}, buffers:")
    ran = run(text.replace("frames: 60", "frames: 60, rate: 500 Hz"), base, "inline")
    truth(ran)
    frames, numbers, status = ran.saved("saved")
    on_host = run(TEXT.replace("MEMSPACE", HOST), base, "inline")
    expected = on_host.saved("saved")[0]
    np.testing.assert_array_equal(frames[status == 0], expected[numbers[status == 0]])
    assert (status == 0).any()


def test_a_device_that_fails_is_a_failure_that_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lima2cli.gpu import pipe

    submit, count = pipe.Pipe.submit, [0]

    def failing(self: pipe.Pipe, load: pipe.Load) -> pipe.Piece:
        count[0] += 1
        if count[0] > 6:
            raise RuntimeError("the device has failed (OpenCL error -5)")
        return submit(self, load)

    monkeypatch.setattr(pipe.Pipe, "submit", failing)
    ran = run(TEXT.replace("MEMSPACE", DEVICE), base, "inline")
    assert ran.code == 10
    assert "the device has failed (OpenCL error -5)" in ran.summary["reason"]
    assert ran.summary["problems"] == [
        f"{node}: the device has failed (OpenCL error -5)" for node in ("good", "direct")
    ]
    truth(ran, problems=True)
    saved = ran.summary["channels"]["saved"]
    assert 0 < saved["saved"] < 60


def test_a_reduction_that_fails_leaves_its_kernel(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads frames that come back; sums of the device, and the frames themselves, go on."""
    from lima2cli.nodes import roi_profiles

    def fail(*_: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(roi_profiles._Profiles, "strip", fail)
    ran = run(TEXT.replace("MEMSPACE", DEVICE), base, "inline")
    assert ran.code == 10
    assert ran.summary["reason"].startswith("lines: ")
    assert ran.summary["channels"]["saved"]["saved"] > 0
    assert ran.summary["tables"]["counters"]["rows"] > 0


def test_memory_is_flat_however_many_groups(tmp_path: Path) -> None:
    """Ten thousand groups, one block each: what the process takes at the end is what it took after the first."""
    import psutil

    text = """
lima2: 1
detector: {remu: {image: {width: 16, height: 16}, datasets: {D: {dtype: uint16}}}}
acquisition: {frames: 10000}
receivers: {r: {memspaces: {m: {gpu: {device: pocl}}}}}
flows: {raw: {dataset: D, buffers: {at: [r.m]}}}
nodes:
  dark: {input: raw, background_sub: {image: 3}}
  counters: {input: dark, roi_counters: {rois: {all: {x: 0, y: 0, width: 16, height: 16}}}}
  saved: {input: dark, io_hdf5: {}}
"""
    taken = []
    for frames in (1000, 10000):
        ran = run(text.replace("10000", str(frames)), tmp_path, "inline")
        assert ran.code == 0, ran.output
        taken.append(psutil.Process().memory_info().rss)
    assert taken[1] - taken[0] < 64 << 20
    assert json.loads((ran.directory / "summary.json").read_text())["channels"]["saved"]["saved"] == 10000


def test_a_device_is_a_number_or_a_name() -> None:
    for device in ("0", "pocl", "NVIDIA H200"):
        plan, _ = compiled(TEXT.replace("MEMSPACE", f"{{gpu: {{device: {device}}}}}").split("nodes:")[0])
        assert plan is not None
        assert plan.regions[0].device == (0 if device == "0" else device)
    _, findings = compiled(TEXT.replace("MEMSPACE", "{gpu: {device: -1}}").split("nodes:")[0])
    assert findings.failed
