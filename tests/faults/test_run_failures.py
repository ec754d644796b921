"""Runs that are stopped, killed, starved or lied to: files stay readable, the summary tells the truth."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from lima2cli.geometry import Rect
from tests.running import PATIENCE_S, TRANSPORTS, Live, Ran, counter, lima2, mpi, mpiexec, needs_mpi, run, truth

PIPELINE = """
lima2: 1
detector:
  remu:
    image: {width: 64, height: 48}
    datasets: {D: {dtype: uint16}}
    modules: {columns: 2, rows: 1, width: 32, height: 48}
    scene: {counter: {}}
acquisition: ACQUISITION
receivers: 2
flows:
  F: {dataset: D, rules: {blocks_per_group: 3}, buffers: {frames: 30}}
  G: {dataset: D, slices: {start: 2, step: 7}, events: {group: 2, end: true}, buffers: {frames: 30}}
nodes:
  f: {input: F, io_hdf5: {}}
  g: {input: G, io_hdf5: {compression: none, frames_per_file: 50}}
  t: {input: F, checkpoint: {}}
"""

RIGHT = {"f": (0, 1), "g": (2, 7)}
"""First frame and step of each channel."""


def pipeline(acquisition: str) -> str:
    return PIPELINE.replace("ACQUISITION", acquisition)


def check_pixels(ran: Ran, node: str, start: int = 0, step: int = 1) -> np.ndarray:
    """Rows are the selected frames in order, and every saved pixel is right; the status of the rows."""
    frames, numbers, status = ran.saved(node)
    assert numbers.tolist() == list(range(start, start + step * len(numbers), step))
    kept = status == 0
    width, height = frames.shape[2], frames.shape[1]
    np.testing.assert_array_equal(frames[kept], counter(numbers[kept], Rect(0, 0, width, height), width))
    assert ran.summary["channels"][node]["saved"] == kept.sum()
    return status


@pytest.mark.launch
@pytest.mark.parametrize(("acquisition", "transport"), [("{frames: 0, period: 1 ms}", "inline"), mpi("{frames: 0}")])
def test_ctrl_c_ends_a_run_in_order(acquisition: str, transport: str, tmp_path: Path) -> None:
    live = Live(pipeline(acquisition), tmp_path, transport)
    live.wait_for_frames()
    live.process.send_signal(signal.SIGINT)
    ran = live.end()
    assert ran.code == 130, ran.output
    summary = truth(ran)
    assert summary["state"] == "stopped"
    frames = summary["frames"]
    assert frames > 0
    for node, (start, step) in RIGHT.items():
        status = check_pixels(ran, node, start, step)
        assert len(status) == len(range(start, frames, step))
        assert not status.any()
    flow_f, flow_g = summary["flows"]["F"], summary["flows"]["G"]
    groups = frames // 3
    assert flow_f["group_events"] == {"receiver0": -(-groups // 2), "receiver1": groups // 2}
    assert flow_f["end_events"] == flow_g["end_events"] == {"receiver0": 1, "receiver1": 1}
    blocks = flow_g["expected"]
    assert flow_g["group_events"] == {"receiver0": -(-blocks // 2) // 2, "receiver1": blocks // 2 // 2}
    assert live.survivors() == []


def test_sigterm_ends_a_run_in_order(tmp_path: Path) -> None:
    """See `test_a_signal_means_what_it_says` for one by MPI."""
    live = Live(pipeline("{frames: 0, period: 1 ms}"), tmp_path, "inline")
    live.process.send_signal(signal.SIGTERM)
    ran = live.end()
    assert ran.code == 143, ran.output
    assert truth(ran)["state"] == "stopped"


@pytest.mark.launch
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_second_ctrl_c_ends_a_run_at_once(transport: str, tmp_path: Path) -> None:
    """A slow sink keeps the first one from being done with at once."""
    text = pipeline("{frames: 0}").replace("image: {width: 64, height: 48}", "image: {width: 640, height: 480}")
    text = text.replace("width: 32, height: 48", "width: 320, height: 480").replace(
        "io_hdf5: {}", "io_hdf5: {compression: gzip}"
    )
    live = Live(text, tmp_path, transport)
    live.wait_for_frames()
    live.process.send_signal(signal.SIGINT)
    live.process.send_signal(signal.SIGTERM)
    ran = live.end()
    assert ran.code in (130, 143), ran.output
    assert ran.summary["state"] == "stopped"
    truth(ran)
    for node, (start, step) in RIGHT.items():
        check_pixels(ran, node, start, step)
    assert live.survivors() == []


@pytest.mark.launch
@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize(("rank", "role"), [(0, "control"), (1, "detector"), (3, "receiver")])
def test_a_killed_rank_fails_the_run_and_its_files_stay(rank: int, role: str, tmp_path: Path) -> None:
    live = Live(pipeline("{frames: 100000, period: 1 ms}"), tmp_path, "mpi")
    live.wait_until_saved(30)
    live.ranks[rank].kill()
    ran = live.end()
    assert ran.code == 10, ran.output
    summary = truth(ran)
    assert summary["state"] == "failed"
    assert "exit code 9" in summary["reason"]
    assert "BAD TERMINATION" not in ran.output
    for node, (start, step) in RIGHT.items():
        status = check_pixels(ran, node, start, step)
        assert (status == 0).any()  # how many depends on the machine
    assert live.survivors() == []


@pytest.mark.launch
@pytest.mark.mpi
@needs_mpi
def test_ranks_outlive_their_launcher_just_to_end_the_run(tmp_path: Path) -> None:
    live = Live(pipeline("{frames: 0, period: 1 ms}"), tmp_path, "mpi")
    live.wait_for_frames()
    live.process.kill()
    live.process.communicate(timeout=PATIENCE_S)
    assert live.survivors() == []
    ended = Ran(0, "", (tmp_path / "runs" / "latest").resolve()).summary
    assert (ended["state"], "killed" in ended["reason"]) == ("failed", True)  # it was no wish of the user
    recovered = lima2("recover", "runs/latest", cwd=tmp_path)
    assert recovered.returncode == 0, recovered.stderr
    ran = Ran(0, "", (tmp_path / "runs" / "latest").resolve())
    truth(ran)
    for node, (start, step) in RIGHT.items():
        check_pixels(ran, node, start, step)


@pytest.mark.mpi
@pytest.mark.launch
@needs_mpi
def test_nothing_is_left_in_shared_memory(tmp_path: Path) -> None:
    def ours() -> set[str]:
        return {name for name in os.listdir("/dev/shm") if name.startswith(("mpich", "ucx"))}

    before = ours()
    ran = run(pipeline("{frames: 20}"), tmp_path, "mpi")
    assert ran.code == 0, ran.output
    live = Live(pipeline("{frames: 0, period: 1 ms}"), tmp_path, "mpi")
    for rank in live.ranks:
        with suppress(psutil.NoSuchProcess):  # mpiexec has ended it already
            rank.kill()
    assert live.end().code == 10
    for path in ours() - before:
        assert _mapped_by_a_process(path) or not Path("/dev/shm", path).exists(), f"{path} is left"


def _mapped_by_a_process(name: str) -> bool:
    """Other tests may run MPI at the same time."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if name in maps.read_text():
                return True
        except OSError:
            continue
    return False


FULL = """
lima2: 1
detector: {remu: {image: {width: 64, height: 64}, datasets: {D: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 20000, period: 1 ms}
receivers: 2
flows:
  F: {dataset: D, buffers: {frames: 60}}
  S: {dataset: D, slices: {step: 50}, buffers: {frames: 20}}
nodes:
  big: {input: F, io_hdf5: {compression: none, frames_per_chunk: 4}}
  after: {input: big, checkpoint: {}}
  small: {input: F, io_hdf5: {frames_per_file: 20}}
  other: {input: S, io_hdf5: {}}
"""


@pytest.mark.launch
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_full_disk_ends_one_channel_and_the_run_but_not_the_others(transport: str, tmp_path: Path) -> None:
    live = Live(FULL, tmp_path, transport)
    live.limit_files(4_000_000)
    ran = live.end()
    assert ran.code == 10, ran.output
    summary = truth(ran, problems=True)
    assert summary["state"] == "failed"
    assert "big" in summary["reason"]
    assert "File too large" in summary["reason"]
    assert "pipeline_big_" in summary["reason"]
    assert '"type": "error"' in ran.output
    frames, channels = summary["frames"], summary["channels"]
    assert 700 < frames < 20000
    assert {name: flow["missing"] + flow["lost"] for name, flow in summary["flows"].items()} == {"F": 0, "S": 0}
    status = check_pixels(ran, "big")
    assert 600 <= (status == 0).sum() < frames
    assert set(status.tolist()) == {0, 1}
    assert channels["big"]["lost"] == frames - channels["big"]["saved"]
    assert not check_pixels(ran, "small").any()
    assert not check_pixels(ran, "other", 0, 50).any()
    assert summary["tables"]["after"]["rows"] == frames


OVERRUN = """
lima2: 1
detector:
  remu:
    image: {width: 96, height: 64}
    datasets: {D: {dtype: uint16}}
    modules: {columns: 2, rows: 1, width: 48, height: 64}
    scene: {counter: {}}
acquisition: {frames: FRAMES}
flows:
  F: {dataset: D, rules: {blocks_per_group: 2}, overrun: POLICY, buffers: {frames: 8}}
nodes:
  save: {input: F, io_hdf5: {compression: gzip}}
  log: {input: F, checkpoint: {}}
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_overrun_that_is_allowed_says_exactly_which_frames_are_lost(transport: str, tmp_path: Path) -> None:
    ran = run(OVERRUN.replace("POLICY", "continue").replace("FRAMES", "3001"), tmp_path, transport)
    assert ran.code == 0, ran.output
    summary = truth(ran)
    flow = summary["flows"]["F"]
    assert summary["state"] == "complete"
    assert flow["expected"] == 3001
    assert flow["missing"] == 0
    assert 0 < flow["lost"] < 3001
    status = check_pixels(ran, "save")  # never torn
    lost = [n for first, last, step in flow["missing_frames"] for n in range(first, last + 1, step)]
    assert np.flatnonzero(status == 1).tolist() == lost
    assert set(status.tolist()) == {0, 1}
    assert summary["tables"]["log"]["rows"] == flow["received"] == summary["channels"]["save"]["saved"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_overrun_that_is_not_allowed_stops_the_run(transport: str, tmp_path: Path) -> None:
    ran = run(OVERRUN.replace("POLICY", "stop").replace("FRAMES", "0"), tmp_path, transport)
    assert ran.code == 11, ran.output
    summary = truth(ran)
    lost = summary["flows"]["F"]["missing_frames"]
    assert summary["state"] == "failed"
    assert summary["reason"].startswith(f"overrun in F, frame {lost[0][0]} is lost")
    check_pixels(ran, "save")


def test_an_overrun_that_is_seen_only_at_the_end_is_no_success(tmp_path: Path) -> None:
    """All frames are served before the receiver has its first turn."""
    text = (
        OVERRUN.replace("POLICY", "stop").replace("FRAMES", "16").replace("blocks_per_group: 2", "blocks_per_group: 1")
    )
    ran = run(text.replace("buffers: {frames: 8}", "buffers: {frames: 4}"), tmp_path, "inline")
    assert ran.code == 11, ran.output
    assert truth(ran)["flows"]["F"]["lost"] > 0


def test_a_calibration_file_that_vanishes_fails_its_node_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there for the compiler only: the run reads it again on the receivers."""
    from lima2cli.cli.reading import check_file
    from lima2cli.job.run import run_plan
    from lima2cli.runs.saved_plan import Origin

    np.save(tmp_path / "dark.npy", np.ones((64, 96), np.float32))
    text = OVERRUN.replace("POLICY", "wait").replace("FRAMES", "100").replace("  log: {input: F, checkpoint: {}}", "")
    text += "  dark: {input: F, background_sub: {image: dark.npy}}\n  less: {input: dark, io_hdf5: {}}\n"
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    plan = check_file(str(file)).plan
    assert plan is not None
    (tmp_path / "dark.npy").unlink()
    monkeypatch.chdir(tmp_path)
    events: list[dict[str, object]] = []
    directory, summary, code = run_plan(plan, Origin.here(text, str(file), ()), events.append, transport="inline")
    assert code == 10
    assert "dark.npy" in (summary.reason or "")
    assert summary.channels["less"].saved == 0
    assert summary.channels["save"].saved == summary.frames
    assert [event["node"] for event in events if event["type"] == "error"] == ["dark"]
    truth(Ran(code, "", directory.resolve()), problems=True)


def test_a_recording_that_is_cut_short_fails_the_run(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "frames.h5", "w") as file:
        data = np.random.default_rng(1).integers(0, 60000, (400, 32, 32), np.uint16)
        file.create_dataset("data", data=data, chunks=(1, 32, 32), compression="gzip")
        chunks = sorted((chunk.byte_offset, chunk.size) for chunk in map(file["data"].id.get_chunk_info, range(400)))
    with (tmp_path / "frames.h5").open("r+b") as raw:  # chunks of zeros, as a copy that was broken off has them
        for offset, size in chunks[200:]:
            raw.seek(offset)
            raw.write(bytes(size))
    text = "lima2: 1\ndetector: {replay: {file: frames.h5::/data}}\nnodes: {save: {input: data, io_hdf5: {}}}\n"
    ran = run(text, tmp_path, "inline")
    assert ran.code == 10, ran.output
    summary = truth(ran, problems=True)
    assert "frames.h5::/data cannot be read" in summary["reason"]
    saved = summary["channels"]["save"]["saved"]
    frames, numbers, _ = ran.saved("save")
    np.testing.assert_array_equal(frames[:saved], data[:saved])
    assert numbers[:saved].tolist() == list(range(saved))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_a_machine_cannot_hold_is_not_started(transport: str, tmp_path: Path) -> None:
    text = OVERRUN.replace("POLICY", "wait").replace("FRAMES", "10").replace("frames: 8", "size: 4 TiB")
    ran = run(text, tmp_path, transport)
    assert ran.code == 12, ran.output
    assert "error[environment-unfit]" in ran.output
    assert "4 TiB" in ran.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_directory_that_takes_no_files_is_said_so(transport: str, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    ran = run(OVERRUN.replace("POLICY", "wait").replace("FRAMES", "10"), tmp_path, transport)
    assert ran.code == 12, ran.output
    assert "cannot make the run directory" in ran.output


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize(("ranks", "code"), [(4, 0), (3, 0), (2, 12), (1, 12)])
def test_a_run_joins_the_ranks_that_are_there(ranks: int, code: int, tmp_path: Path) -> None:
    text = OVERRUN.replace("POLICY", "wait").replace("FRAMES", "100")
    (tmp_path / "pipeline.yaml").write_text(text)
    done = mpiexec(ranks, "run", "pipeline.yaml", cwd=tmp_path)
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    if code:
        assert output.count("error[environment-unfit]") == 1
        assert "the plan needs 4" in output
        assert not (tmp_path / "runs").exists()
    else:
        assert output.count("complete") == 1
        truth(Ran(0, output, (tmp_path / "runs" / "latest").resolve()))


@pytest.mark.mpi
@needs_mpi
def test_a_bad_file_ends_all_ranks_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text("lima2: 1\ndetector: {remu: {}}\n")
    done = mpiexec(3, "run", "pipeline.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("`image` is missing") <= 1
