"""Rates that are predicted from saved figures of a machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lima2cli.plan.prediction import NEEDED, Limits, Prediction, predict, prediction_figures
from tests.compiling import plan_of
from tests.running import lima2

GB = 1e9

REACHED = {
    "sum": 8.0, "statistics": 2.0, "correct": 1.0, "make": 1.6, "regions": 12.0, "save bslz4": 1.25,
    "save float32": 0.5, "save none": 3.0, "transfer 64": 4.0, "transfer 256": 8.0,
    "transfer 1024": 8.0, "transfer 2048": 8.0, "rectangle 1024": 5.0,
}  # fmt: skip
"""GB/s of raw frames that lima2 reaches: a millisecond for 2 MiB is about 2.1."""

BARE = REACHED | {
    "save bslz4": 1.6,
    "save float32": 0.8,
    "save none": 4.0,
    "rectangle 1024": 10.0,
    "transfer 1024": 10.0,
}

RECORD: dict[str, Any] = {
    "version": 1,
    "machine": {"processor": "a processor", "cores": 4},
    "cases": [
        {"name": name, "lima2_bytes_per_s": rate * GB, "limit_bytes_per_s": BARE[name] * GB}
        for name, rate in REACHED.items()
    ],
}

MEGA = 1024 * 1024


def pipeline(nodes: str, side: int = 1024, more: str = "", modules: str = "") -> str:
    return (
        f"lima2: 1\nname: k\ndetector: {{remu: {{image: {{width: {side}, height: {side}}}, "
        f"datasets: {{D: {{dtype: uint16}}}}{modules}}}}}\nacquisition: {{frames: 100}}\n{more}nodes:\n{nodes}"
    )


def predicted(text: str, base: Path = Path(), cores: int = 16) -> Prediction:
    return predict(plan_of(text, base), Limits.of(RECORD), cores)


def stages(found: Prediction, receiver: str = "receiver0") -> dict[str, float]:
    return {stage.name: stage.frame_s for stage in found.receivers[receiver].stages}


WHOLE = "{rois: {all: {x: 0, y: 0, width: 1024, height: 1024}}STATISTICS}"


@pytest.mark.parametrize(("statistics", "case"), [("", "statistics"), (", statistics: [avg, sum]", "sum")])
def test_counters(statistics: str, case: str) -> None:
    found = predicted(pipeline(f"  c: {{input: D, roi_counters: {WHOLE.replace('STATISTICS', statistics)}}}\n"))
    assert stages(found) == pytest.approx({"transfer": 2 * MEGA / (8 * GB), "kernels": 2 * MEGA / (REACHED[case] * GB)})
    slow = found.bottleneck
    assert slow is not None
    assert (slow.name, slow.nodes) == (("kernels", ("c",)) if case == "statistics" else ("transfer", ()))
    assert found.hz == pytest.approx(min(8, REACHED[case]) * GB / (2 * MEGA))


def test_saving_adds_to_kernels_of_the_same_receiver() -> None:
    nodes = f"  c: {{input: D, roi_counters: {WHOLE.replace('STATISTICS', '')}}}\n  save: {{input: D, io_hdf5: {{}}}}\n"
    found = predicted(pipeline(nodes))
    kernels, compression = 2 * MEGA / (2 * GB), 2 * MEGA / (1.25 * GB)
    assert stages(found) == pytest.approx(
        {"transfer": 2 * MEGA / (8 * GB), "kernels": kernels, "compression": compression}
    )
    assert found.hz == pytest.approx(1 / (kernels + compression))
    assert found.bottleneck is not None
    assert (found.bottleneck.name, found.bottleneck.nodes) == ("compression", ("save",))


def test_threads_share_the_codec_and_the_kernels() -> None:
    found = predicted(pipeline("  save: {input: D, io_hdf5: {}}\n", more="receivers: {r: {threads: 4}}\n"))
    codec, whole = 2 * MEGA / (1.6 * GB), 2 * MEGA / (1.25 * GB)
    assert stages(found, "r")["compression"] == pytest.approx(codec / 4 + whole - codec)


def corrected(base: Path, side: int) -> str:
    for name in ("dark", "flat"):
        np.save(base / f"{name}.npy", np.full((side, side), 2, np.float32))
    return (
        "  dark: {input: D, background_sub: {image: dark.npy}}\n  flat: {input: dark, flatfield: {image: flat.npy}}\n"
    )


def test_corrected_frames_that_are_saved(tmp_path: Path) -> None:
    nodes = corrected(tmp_path, 2048) + "  save: {input: flat, io_hdf5: {}}\n"
    found = predicted(pipeline(nodes, 2048), tmp_path)
    assert stages(found) == pytest.approx(
        {"transfer": 8 * MEGA / (8 * GB), "kernels": 8 * MEGA / (1.6 * GB), "compression": 16 * MEGA / (0.5 * GB)}
    )


@pytest.mark.parametrize(("side", "case"), [(1024, "correct"), (256, "regions")])
def test_corrections_that_only_counters_read(tmp_path: Path, side: int, case: str) -> None:
    """Predict the work of a region from its own pixels alone; the case `regions` is of a twelfth of a frame."""
    rois = f"{{rois: {{all: {{x: 0, y: 0, width: {side}, height: {side}}}}}}}"
    found = predicted(pipeline(corrected(tmp_path, 1024) + f"  c: {{input: flat, roi_counters: {rois}}}\n"), tmp_path)
    pixel_s = 2 / (1 * GB) if case == "correct" else 12 * 2 / (12 * GB)
    assert stages(found)["kernels"] == pytest.approx(side * side * pixel_s, rel=0.05)


def test_receivers_share_frames_and_the_disk() -> None:
    save = "  save: {input: D, io_hdf5: {compression: none}}\n"
    found = predicted(pipeline(save, more="receivers: 3\n"))
    each = 2 * MEGA / (3 * GB) / 3
    assert [stages(found, f"receiver{n}")["saving"] for n in range(3)] == pytest.approx([each] * 3)
    assert next((stage.name, stage.frame_s) for stage in found.shared) == ("disk", pytest.approx(2 * MEGA / (4 * GB)))
    assert found.bottleneck is not None
    assert found.bottleneck.name == "disk"
    assert found.hz == pytest.approx(4 * GB / (2 * MEGA))


def test_few_cores_are_shared_by_all_ranks() -> None:
    save = "  save: {input: D, io_hdf5: {}}\n"
    found = predicted(pipeline(save, more="receivers: 4\n"), cores=1)
    assert found.bottleneck is not None
    assert (found.bottleneck.name, found.bottleneck.place) == ("processors", "1 cores")
    assert found.hz == pytest.approx(1 / (2 * MEGA / (8 * GB) + 2 * MEGA / (1.25 * GB)))


def test_narrow_modules_and_steps() -> None:
    """Rows of half the width cost what the rectangles say; of every second frame half is moved."""
    text = pipeline(
        "  times: {input: F, checkpoint: {}}\n",
        more="flows: {F: {dataset: D, slices: {step: 2}, overrun: continue}}\n",
        modules=", modules: {columns: 2, rows: 1, width: 512, height: 1024}",
    )
    found = predicted(text)
    rate = np.interp(np.log(MEGA), np.log([2 * 256**2, 2 * MEGA]), [8.0, 8.0]) * GB
    transfers = [stage for stage in found.receivers["receiver0"].stages if stage.name == "transfer"]
    ranks = len({stage.place for stage in transfers})
    assert ranks == 1
    moved = transfers[0].frame_s * 2
    assert moved in (pytest.approx(MEGA / (0.5 * rate)), pytest.approx(2 * MEGA / (0.5 * rate)))
    assert stages(found)["copying"] == pytest.approx(2 * MEGA / (10 * GB) / 2)
    assert found.left_out == ()


def test_what_was_not_measured_is_named() -> None:
    nodes = (
        "  h: {input: D, histogram: {bins: 10, range: [0, 100]}}\n  save: {input: D, io_hdf5: {compression: gzip}}\n"
    )
    found = predicted(pipeline(nodes))
    assert found.left_out == ("h", "save")
    record = RECORD | {"cases": [case for case in RECORD["cases"] if not case["name"].startswith("transfer")]}
    found = predict(plan_of(pipeline(nodes)), Limits.of(record), 4)
    assert found.left_out == ("h", "save", "transfer")
    assert (found.bottleneck, prediction_figures(found)["hz"]) == (None, None)


def test_what_devices_compute_is_named_and_left_out(tmp_path: Path) -> None:
    """It is no work of the CPU; what the device gives is saved by the CPU, as ever."""
    nodes = (
        "  dark: {input: D, background_sub: {image: 1}}\n"
        "  counts: {input: dark, roi_counters: {rois: {all: {x: 0, y: 0, width: 9, height: 9}}}}\n"
        "  save: {input: dark, io_hdf5: {}}\n"
    )
    text = pipeline(
        nodes, more="receivers: {r: {memspaces: {m: MEMSPACE}}}\nflows: {D: {dataset: D, buffers: {at: [r.m]}}}\n"
    )
    host = predicted(text.replace("MEMSPACE", "{host: {}}"))
    found = predicted(text.replace("MEMSPACE", "{gpu: {device: 0}}"))
    assert (host.on_devices, found.on_devices, found.left_out) == ((), ("dark", "counts"), ())
    assert prediction_figures(found)["on_devices"] == ["dark", "counts"]
    names = {stage.name for stage in host.receivers["r"].stages}
    assert {stage.name for stage in found.receivers["r"].stages} == names - {"kernels"} < names
    (tmp_path / "k.yaml").write_text(text.replace("MEMSPACE", "{gpu: {device: 0}}"))
    (tmp_path / "limits.json").write_text(json.dumps(RECORD))
    shown = lima2("plan", "k.yaml", "--limits", "limits.json", cwd=tmp_path).stdout
    assert "  without dark, counts, on devices\n" in shown
    assert "  at most " in shown


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cases": None}, "it has no `cases`"),
        ({"version": 2}, "its version is 2, and 1 is read"),
        ({"cases": [{"name": "sum"}]}, "one of its cases is none: KeyError"),
        (
            {"cases": [{"name": "sum", "lima2_bytes_per_s": 0, "limit_bytes_per_s": 1}]},
            "the rates of `sum` are not above 0",
        ),
        (
            {"cases": [{"name": "transfer x", "lima2_bytes_per_s": 1, "limit_bytes_per_s": 1}]},
            "`transfer x` does not name a side in pixels",
        ),
        ({"cases": []}, f"it lacks {', '.join(NEEDED)}: measure again"),
    ],
)
def test_files_that_hold_no_limits(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match="^" + why.split(":")[0]):
        Limits.of(RECORD | change)
    (tmp_path / "k.yaml").write_text(pipeline("  times: {input: D, checkpoint: {}}\n"))
    (tmp_path / "limits.json").write_text(json.dumps(RECORD | change))
    for command in ("plan", "simulate"):
        done = lima2(command, "k.yaml", "--limits", "limits.json", cwd=tmp_path)
        assert done.returncode == 2
        assert "limits.json has no limits (lima2 doctor --bench -o limits.json): " in done.stdout + done.stderr
        assert why.split(":")[0] in done.stdout + done.stderr


def test_what_users_see(tmp_path: Path) -> None:
    nodes = "  save: {input: D, io_hdf5: {}}\n  h: {input: D, histogram: {bins: 10, range: [0, 100]}}\n"
    (tmp_path / "k.yaml").write_text(pipeline(nodes))
    (tmp_path / "limits.json").write_text(json.dumps(RECORD))
    shown = lima2("plan", "k.yaml", "--limits", "limits.json", cwd=tmp_path)
    assert shown.returncode == 0
    text = shown.stdout[shown.stdout.index("predicted") :]
    assert text.startswith("predicted from limits.json (a processor, 4 cores)\n  receiver0 ")
    assert "  at most 596 Hz, limited by compression of save (receiver0)\n  without h, not measured\n" in text
    assert max(map(len, text.splitlines())) <= 80
    saved = lima2("plan", "k.yaml", "--limits", "limits.json", "--format", "json", "-o", "plan.json", cwd=tmp_path)
    assert saved.returncode == 0
    contents = json.loads((tmp_path / "plan.json").read_text())
    assert contents["predicted"]["hz"] == pytest.approx(1.25 * GB / (2 * MEGA))
    assert lima2("plan", "k.yaml", "--diff", "plan.json", cwd=tmp_path).stdout == "the same plan as plan.json\n"
    refused = lima2("plan", "k.yaml", "--limits", "limits.json", "--format", "c", cwd=tmp_path)
    assert refused.returncode == 2
    assert lima2("plan", "k.yaml", "--limits", "no.json", cwd=tmp_path).returncode == 2


def test_a_simulation_compares(tmp_path: Path) -> None:
    text = pipeline("  times: {input: D, checkpoint: {}}\n", 64)
    (tmp_path / "k.yaml").write_text(text)
    (tmp_path / "limits.json").write_text(json.dumps(RECORD))
    options = ("--limits", "limits.json", "--frames", "100", "--rate", "1 kHz", "--transport", "inline")
    shown = lima2("simulate", "k.yaml", *options, "--progress", "none", cwd=tmp_path)
    assert "  predicted     488 kHz, limited by " in shown.stdout
    assert "; measured " in shown.stdout
    told = lima2("simulate", "k.yaml", *options, "--format", "json", cwd=tmp_path)
    predicted = json.loads(told.stdout)["predicted"]
    assert predicted["hz"] == pytest.approx(4 * GB / 8192)
    assert predicted["measured_hz"] > 0
