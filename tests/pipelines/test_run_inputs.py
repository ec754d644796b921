"""Runs of inputs that are incomplete, or that several files hold: what is told before, during and after."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.compiling import compiled, plan_of
from tests.files.test_inputs_masters import DETECTOR, FRAMES, MASK, dectris, nexus
from tests.running import TRANSPORTS, Ran, lima2, run, truth

PIPELINE = """
lima2: 1
detector: {{replay: {{file: {file}{more}}}}}
nodes:
  save: {{input: data, io_hdf5: {{}}}}
  mean: {{input: data, accumulate: {{frames: 0, operation: mean}}}}
  saved: {{input: mean, io_hdf5: {{}}}}
"""


def incomplete(tmp_path: Path) -> str:
    """Chunks of the frames 2 and 7 were never written."""
    with h5py.File(tmp_path / "holes.h5", "w") as file:
        data = file.create_dataset("data", FRAMES.shape, "u2", chunks=(1, 4, 6), fillvalue=65535)
        for number in {*range(10)} - {2, 7}:
            data[number] = FRAMES[number]
    return "holes.h5"


def refused(text: str, tmp_path: Path, rule: str) -> str:
    """Return the answer of `validate` and `run` to a file that they refuse; it is the same."""
    (tmp_path / "refused.yaml").write_text(text)
    done = [lima2(*words, "refused.yaml", cwd=tmp_path) for words in (["validate"], ["run", "--progress", "none"])]
    assert [it.returncode for it in done] == [1, 1]
    said = [it.stdout + it.stderr for it in done]
    assert f"error[{rule}]" in said[0]
    assert f"[{rule}]" in said[1]
    assert not (tmp_path / "runs").exists()
    return said[0]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_frames_that_were_never_written(tmp_path: Path, transport: str) -> None:
    file = incomplete(tmp_path)
    said = refused(PIPELINE.format(file=file, more=""), tmp_path, "file-incomplete")
    assert "holes.h5 lacks 2 of 10 frames (2, 7): chunks of them were never written" in said
    assert "`incomplete: skip` counts such frames as missing" in said
    ran = run(PIPELINE.format(file=file, more=", incomplete: skip"), tmp_path, transport)
    skipped(ran, [2, 7])
    text = PIPELINE.format(file=file, more=", incomplete: skip")
    for limit, code in ((1, 11), (2, 0)):
        ran = run(text + f"acquisition: {{allow_lost: {limit}}}\n", tmp_path, transport)
        assert ran.code == code


def skipped(ran: Ran, lacking: list[int], true: np.ndarray = FRAMES, masked: np.ndarray | None = None) -> None:
    """The frames are missing, in all accounts, and have no part in the mean, which is NaN where pixels are masked."""
    flow = truth(ran)["flows"]["data"]
    assert (flow["expected"], flow["received"], flow["missing"]) == (len(true), len(true) - len(lacking), len(lacking))
    assert ran.code == 0  # as was asked
    there = [number for number in range(len(true)) if number not in lacking]
    frames, _, status = ran.saved("save")
    np.testing.assert_array_equal(frames[status == 0], true[there])
    np.testing.assert_array_equal(np.flatnonzero(status == 3), [k for k in lacking if k < len(status)])
    mean = true[there].mean(axis=0)
    if masked is not None:
        mean[masked != 0] = np.nan
    np.testing.assert_allclose(ran.saved("saved")[0][0], mean, rtol=1e-6)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_lima2s_own_master_with_frames_that_a_module_failed_to_give(tmp_path: Path, transport: str) -> None:
    first = """
lima2: 1
detector:
  remu:
    image: {width: 8, height: 8}
    datasets: {data: {dtype: uint16}}
    modules: {columns: 1, rows: 2, width: 8, height: 3, gap: {x: 0, y: 2}}
    gap_value: 65535
    scene: {noise: {mean: 10}}
    faults: {seed: 2, failed: {rate: 0.4, module: 1}}
acquisition: {frames: 20}
output: {directory: first}
nodes: {save: {input: data, io_hdf5: {}}}
"""
    (tmp_path / "first.yaml").write_text(first)
    lima2("run", "first.yaml", "--transport", transport, cwd=tmp_path)
    with h5py.File(tmp_path / "first" / "first_save_master.h5") as file:
        detector = file["entry_0000"][file["entry_0000"].attrs["default"]].parent
        frames, status, mask = detector["data"][()], detector["frame_status"][()], detector["pixel_mask"][()]
    lacking = np.flatnonzero(status).tolist()
    assert lacking
    for file in ("first/first_save_master.h5", "first/first.h5", "first/first.h5::/entry_0000/measurement/data"):
        assert "incomplete" in refused(PIPELINE.format(file=file, more=""), tmp_path, "file-incomplete")
    more = ", incomplete: skip, gap_value: 65535"
    text = PIPELINE.format(file="first/first_save_master.h5", more=more)
    reference = plan_of(text, tmp_path).info.pixel_mask
    assert reference is not None
    assert reference.endswith("pixel_mask")
    assert mask[3:5].all()
    ran = run(text, tmp_path, transport)
    flow = truth(ran)["flows"]["data"]
    assert flow["missing"] == len(lacking)
    saved, _, again = ran.saved("save")
    np.testing.assert_array_equal(saved[again == 0], frames[status == 0])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("cut", [False, True])
def test_a_dectris_master(tmp_path: Path, transport: str, cut: bool) -> None:
    dectris(tmp_path)
    if cut:
        (tmp_path / "s_data_000002.h5").unlink()
        assert "s_data_000002.h5" in refused(PIPELINE.format(file="s_master.h5", more=""), tmp_path, "file-incomplete")
    more = ", incomplete: skip" if cut else ""
    skipped(
        run(PIPELINE.format(file="s_master.h5", more=more), tmp_path, transport),
        [4, 5, 6, 7] if cut else [],
        masked=MASK,
    )


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_frame_that_cannot_be_read_fails_the_run_or_is_missing(tmp_path: Path, transport: str) -> None:
    with h5py.File(tmp_path / "d.h5", "w") as file:
        data = file.create_dataset("data", data=FRAMES, chunks=(1, 4, 6), compression="gzip")
        chunk = data.id.get_chunk_info(3)
    with (tmp_path / "d.h5").open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    ran = run(PIPELINE.format(file="d.h5", more=""), tmp_path, transport)
    assert ran.code == 10
    assert "d.h5::/data cannot be read" in ran.summary["problems"][0]
    ran = run(PIPELINE.format(file="d.h5", more=", incomplete: skip"), tmp_path, transport)
    skipped(ran, [3])
    assert [text for text in ran.summary["warnings"] if text.startswith("frame 3 counts as missing: d.h5::/data")]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_several_modules_and_a_loop_skip_the_same_frames(tmp_path: Path, transport: str) -> None:
    more = ", incomplete: skip, loop: true, modules: {columns: 1, rows: 2, width: 6, height: 2}"
    text = PIPELINE.format(file=incomplete(tmp_path), more=more) + "acquisition: {frames: 25}\n"
    ran = run(text, tmp_path, transport)
    skipped(ran, [2, 7, 12, 17, 22], np.concatenate([FRAMES] * 3)[:25])


@pytest.mark.parametrize("more", ["", ", incomplete: skip"])
def test_nothing_is_left(tmp_path: Path, more: str) -> None:
    with h5py.File(tmp_path / "never.h5", "w") as file:
        file.create_dataset("data", (10, 4, 6), "u2")
    (found,) = compiled(PIPELINE.format(file="never.h5", more=more), tmp_path)[1]
    assert found.rule == "file-incomplete"
    assert ("no frame is left" in found.message) == bool(more)


@pytest.mark.parametrize("loop", ["true", "false"])
def test_the_scene_of_an_emulator_skips_them_too(tmp_path: Path, loop: str) -> None:
    scene = f"{{frames: {{file: {incomplete(tmp_path)}, loop: {loop}, incomplete: skip}}}}"
    text = f"""
lima2: 1
detector: {{remu: {{image: {{width: 6, height: 4}}, datasets: {{data: {{dtype: uint16}}}}, scene: {scene}}}}}
acquisition: {{frames: 10}}
nodes:
  save: {{input: data, io_hdf5: {{}}}}
  mean: {{input: data, accumulate: {{frames: 0, operation: mean}}}}
  saved: {{input: mean, io_hdf5: {{}}}}
"""
    skipped(run(text, tmp_path, "inline"), [2, 7])
    refused_text = text.replace(", incomplete: skip", "")
    assert {item.rule for item in compiled(refused_text, tmp_path)[1] if item.severity == "error"} == {
        "file-incomplete"
    }


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_fewer_frames_than_are_asked_for(tmp_path: Path, transport: str) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    text = PIPELINE.format(file="a.npy", more="") + "acquisition: {frames: 25}\n"
    (tmp_path / "v.yaml").write_text(text)
    done = lima2("validate", "v.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning[frames-beyond]: 25 frames are requested, but only 10 are recorded" in done.stdout + done.stderr
    ran = run(text, tmp_path, transport)
    assert ran.code == 0
    assert "frames-beyond" in ran.output
    assert ran.summary["warnings"] == ["25 frames were asked for, and 10 are recorded"]
    for more, frames in ((", loop: true", 25), ("", 10)):
        text = PIPELINE.format(file="a.npy", more=more) + f"acquisition: {{frames: {frames}}}\n"
        assert not list(compiled(text, tmp_path)[1])


@pytest.mark.parametrize("node", ["background_sub", "flatfield", "mask"])
def test_a_calibration_that_is_incomplete(tmp_path: Path, node: str) -> None:
    np.save(tmp_path / "a.npy", FRAMES)
    with h5py.File(tmp_path / "dark.h5", "w") as file:
        file.create_dataset("data", (3, 4, 6), "u1", chunks=(1, 4, 6))[:2] = 1
    text = f"""
lima2: 1
detector: {{replay: {{file: a.npy}}}}
nodes: {{it: {{input: data, {node}: {{image: dark.h5}}}}, save: {{input: it, io_hdf5: {{}}}}}}
"""
    _, findings = compiled(text, tmp_path)
    (found,) = [item for item in findings if item.severity == "error"]
    assert (found.rule, found.at) == ("file-incomplete", ("nodes", "it", node, "image"))
    assert found.message == "dark.h5 lacks 1 of 3 frames (2): chunks of them were never written"


def test_a_truncated_dark_in_edf(tmp_path: Path) -> None:
    from fabio import edfimage

    np.save(tmp_path / "a.npy", FRAMES)
    edfimage.EdfImage(data=FRAMES[0]).write(str(tmp_path / "dark.edf"))
    (tmp_path / "dark.edf").write_bytes((tmp_path / "dark.edf").read_bytes()[:-10])
    text = """
lima2: 1
detector: {replay: {file: a.npy}}
nodes: {it: {input: data, background_sub: {image: dark.edf}}, save: {input: it, io_hdf5: {}}}
"""
    assert {item.rule for item in compiled(text, tmp_path)[1]} == {"file-incomplete"}
    edf = PIPELINE.format(file="dark.edf", more="")
    assert "lacks 1 of 1 frame: the file ends before" in refused(edf, tmp_path, "file-incomplete")


def test_plan_shows_what_was_taken(tmp_path: Path) -> None:
    nexus(tmp_path / "n.h5", FRAMES, pixel_mask=MASK, saturation_value=500, bit_depth_image=16)
    with h5py.File(tmp_path / "n.h5", "a") as file:
        del file["entry/data/data"]
        file.create_dataset("entry/data/data", FRAMES.shape, "u2", chunks=(1, 4, 6))[:9] = FRAMES[:9]
    (tmp_path / "p.yaml").write_text(PIPELINE.format(file="n.h5", more=", incomplete: skip"))
    shown = lima2("plan", "p.yaml", cwd=tmp_path).stdout
    for line in (
        "frames: n.h5::/entry/data/data, 10 of 6 x 4 uint16",
        "missing: it lacks 1 of 10 frames (9): chunks of them were never written",
        f"pixel mask: n.h5::/{DETECTOR}/pixel_mask",
        "invalid values: 65535",
        "saturation: 500",
    ):
        assert f"  {line}\n" in shown
    plan = plan_of(PIPELINE.format(file="n.h5", more=", incomplete: skip, saturation: 300"), tmp_path)
    assert plan.info.saturation == 300
    assert not [line for line in plan.info.taken if line.startswith("saturation")]
    assert plan.info.datasets[0].invalid.values == (65535.0,)


def test_a_pixel_mask_that_does_not_fit_is_a_warning(tmp_path: Path) -> None:
    nexus(tmp_path / "n.h5", FRAMES, pixel_mask=MASK[:2])
    text = PIPELINE.format(file="n.h5", more="")
    assert [(item.rule, item.severity) for item in compiled(text, tmp_path)[1]] == [("input-doubt", "warning")]
    ran = run(text, tmp_path, "inline")
    assert "is not taken" in ran.summary["warnings"][0]


def test_sparse_frames_are_refused_and_nothing_beside_them_is_replayed(tmp_path: Path) -> None:
    """Such files have arrays of two dimensions, too: the layout of the modules."""
    text = """
lima2: 1
name: first
detector: {remu: {image: {width: 8, height: 8}, modules: {columns: 1, rows: 2, width: 8, height: 4}}}
acquisition: {frames: 4}
output: {directory: first}
nodes: {sparse: {input: data, sparsify: {above: 1}}, save: {input: sparse, io_hdf5: {}}}
"""
    assert run(text, tmp_path, "inline").code == 0
    for file in ("first.h5", "first_save_master.h5", "first_save_0_00000.h5"):
        said = refused(PIPELINE.format(file=f"first/{file}", more=""), tmp_path, "dataset-missing")
        assert "has no dataset of images in /; it holds sparse frames, which cannot be replayed" in said
