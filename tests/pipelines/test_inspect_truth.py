"""`inspect` and `recover` tell, from the files alone, what the summary of the run tells: for every kind of pipeline."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lima2cli.files.rows import INCOMPLETE, LOST, SAVED
from tests.running import Live, Ran, lima2, needs_mpi, run, truth

FLOW = ("expected", "received", "lost", "dropped", "missing", "missing_frames")
CHANNEL = ("expected", "saved", "vetoed", "dropped", "lost", "unmatched", "dataset", "files", "bytes")
TABLE = ("rows", "unmatched", "file")

HEAD = """
lima2: 1
detector:
  remu:
    image: {width: 16, height: 12}
    datasets: {A: {dtype: uint16}, B: {dtype: uint16}}
    modules: {columns: 2, rows: 1, width: 8, height: 12}
    scene: {counter: {}}
    faults: {seed: 3, dropped: {rate: 0.1}, failed: {rate: 0.1}}
acquisition: {frames: 60}
receivers: 2
"""
ONESHOT = "rules: {cycle: oneshot}, events: {group: 1, end: true}, buffers: {frames: 20}"
ALL = "rois: {all: {rect: {x: 0, y: 0, width: 16, height: 12}}}"
HALF = "rois: {all: {rect: {x: 0, y: 0, width: 8, height: 12}}}"

SMALL = {
    "saved": "nodes: {save: {input: A, io_hdf5: {frames_per_file: 7}}, log: {input: A, checkpoint: {}}}",
    "only_tables": f"nodes: {{log: {{input: A, checkpoint: {{every: 10}}}}, c: {{input: A, roi_counters: {{{ALL}}}}}}}",
    "one_table_of_few": "nodes: {log: {input: A, checkpoint: {every: 10}}}",
    "summed": """
flows: {F: {dataset: A, rules: {blocks_per_group: 4}}}
nodes: {sum: {input: F, accumulate: {frames: 4}}, save: {input: sum, io_hdf5: {}}}""",
    "summed_unevenly_and_saved": f"""
receivers: 1
nodes:
  sum: {{input: A, accumulate: {{frames: 7}}}}
  save: {{input: sum, io_hdf5: {{}}}}
  c: {{input: sum, roi_counters: {{{ALL}}}}}
  raw: {{input: A, io_hdf5: {{}}}}""",
    "summed_whole": """
receivers: 1
nodes: {sum: {input: A, accumulate: {frames: 0}}, save: {input: sum, io_hdf5: {}}}""",
    "joined": """
flows: {F: {dataset: A, rules: {blocks_per_group: 2}}, G: {dataset: B, slices: {start: 0, step: 2}}}
nodes:
  j: {inputs: {a: F, b: G}, expression: {expr: a - b, dtype: int32}}
  save: {input: j, io_hdf5: {}}
  log: {input: j, checkpoint: {}}""",
    "filtered": f"""
nodes:
  c: {{input: A, roi_counters: {{{ALL}}}}}
  f: {{input: A, filter: {{keep: c.all_max > 40000, every: 9}}}}
  save: {{input: f, io_hdf5: {{}}}}
  sparse: {{input: f, sparsify: {{above: 40000}}}}
  peaks: {{input: sparse, io_hdf5: {{}}}}""",
    "only_filtered": """
nodes:
  log: {input: A, checkpoint: {}}
  f: {input: A, filter: {keep: log.latency < -1, every: 9}}
  save: {input: f, io_hdf5: {}}""",
    "parts": f"""
flows: {{F: {{dataset: A, dispatch: modules}}}}
nodes:
  c: {{input: F, roi_counters: {{{HALF}}}}}
  raw: {{input: F, io_hdf5: {{layout: virtual}}}}
  f: {{input: F, filter: {{keep: c.all_max > 40000}}}}
  some: {{input: f, io_hdf5: {{layout: virtual}}}}
  full: {{input: F, reconstruction: {{strategy: gather}}}}
  save: {{input: full, io_hdf5: {{}}}}""",
    "common": "nodes: {save: {input: A, io_hdf5: {layout: common}}}",
    "common_sums": """
flows: {F: {dataset: A, rules: {blocks_per_group: 5}}}
nodes: {sum: {input: F, accumulate: {frames: 5}}, save: {input: sum, io_hdf5: {layout: common}}}""",
    "full_oneshot": f"""
flows: {{F: {{dataset: A, {ONESHOT}}}, G: {{dataset: B, {ONESHOT}}}}}
nodes:
  save: {{input: F, io_hdf5: {{}}}}
  sum: {{input: G, accumulate: {{frames: 1}}}}
  log: {{input: sum, checkpoint: {{every: 3}}}}""",
    "unread": """
flows: {F: {dataset: A}, G: {dataset: B, slices: {step: 3}}}
nodes: {save: {input: F, io_hdf5: {}}}""",
    "dropped_by_a_function": """
nodes:
  p: {input: A, python: {function: user.py:threes, on_error: drop}}
  j: {inputs: {a: p, b: A}, expression: {expr: a + b, dtype: uint32}}
  save: {input: p, io_hdf5: {}}
  both: {input: j, io_hdf5: {}}
  c: {input: j, checkpoint: {}}""",
}

FUNCTION = """
def threes(frames, numbers):
    if (numbers % 10 == 3).any():
        raise ValueError("no threes")
    return frames
"""

OVERRUN = """
lima2: 1
detector: {remu: {image: {width: 64, height: 64}, datasets: {A: {dtype: uint16}}, scene: {gradient: {}}}}
acquisition: {frames: 400, rate: 4 kHz}
flows: {F: {dataset: A, overrun: continue, buffers: {frames: 4}, dispatch: frames}}
nodes:
  slow: {input: F, python: {function: user.py:slow}}
  save: {input: slow, io_hdf5: {}}
  sum: {input: slow, accumulate: {frames: 3}}
  sums: {input: sum, io_hdf5: {}}
"""

SLOW = """
import time

def slow(frames, numbers):
    time.sleep(0.002)
    return frames
"""


def _told(told: dict[str, Any], *, known: bool = False) -> dict[str, Any]:
    """Return the part of an accounting that is compared; ``known``: without what is not known."""
    return {
        f"{kind} {name} {key}": item[key]
        for kind, keys in (("flows", FLOW), ("channels", CHANNEL), ("tables", TABLE))
        for name, item in told[kind].items()
        for key in keys
        if key in item and not (known and item[key] is None)
    }


def _inspect(ran: Ran, *options: str) -> dict[str, Any]:
    done = lima2("inspect", "--format", "json", *options, str(ran.directory), cwd=ran.directory)
    found: dict[str, Any] = json.loads(done.stdout)
    assert "--verify" not in options or done.returncode == 0, found["problems"]
    return found


def check_accounting(ran: Ran) -> None:
    """The files tell the same as the summary; without masters, or without anything that the end made, nothing else."""
    summary = ran.summary
    want = _told(summary)
    found = _inspect(ran, "--verify")
    assert _told(found) == want
    assert found["problems"] == found["warnings"] == []
    # masters are gone, the run's account is in other files
    common = {name for name, item in summary["channels"].items() if item["files"] and "_master" in item["files"][0]}
    for path in ran.directory.glob("*_master.h5"):
        if not any(path.name.endswith(f"_{name}_master.h5") for name in common):
            path.unlink()
    found = _inspect(ran)
    assert found["flows"] == {name: {key: item[key] for key in FLOW} for name, item in summary["flows"].items()}
    _agrees(found, summary, but=("dataset",))
    done = lima2("recover", str(ran.directory), cwd=ran.directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _told(ran.summary) == want
    found = _inspect(ran, "--verify")
    _agrees(found, summary)
    assert {name: item["dataset"] for name, item in found["channels"].items()} == {
        name: item["dataset"] for name, item in summary["channels"].items()
    }


def _break(ran: Ran) -> None:
    """Leave what there is where all ranks and the launcher were killed at the end: no file tells of flows."""
    for path in ran.directory.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            record = file["entry_0000"].get("channel")
            role = None if record is None else record.attrs["role"]
            if "flows" in file["entry_0000"]:
                del file["entry_0000/flows"]
        if role is None or (role == "master" and any(ran.directory.glob(path.name.replace("master", "*_0*")))):
            path.unlink()
    (ran.directory / "summary.json").unlink()


def _check_killed(ran: Ran, summary: dict[str, Any]) -> None:
    """All is known from the ledgers, but what only the control rank knew."""
    _break(ran)
    done = lima2("recover", str(ran.directory), cwd=ran.directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _told(ran.summary) == _told(summary)
    assert ran.summary["frames"] == summary["frames"]
    _agrees(_inspect(ran, "--verify"), summary)


def _check_without_ledgers(ran: Ran, summary: dict[str, Any]) -> None:
    """Nobody tells what is in no file."""
    _break(ran)
    for path in ran.directory.glob("*.ledger"):
        path.unlink()
    done = lima2("recover", str(ran.directory), cwd=ran.directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(".ledger can't be read (No such file" in text for text in ran.summary["warnings"])
    found = _inspect(ran, "--verify")
    told = _told(ran.summary)
    assert {key: told[key] for key in _told(found)} == _told(found)
    assert all(told[f"flows {name} received"] is None for name in summary["flows"].keys() - found["flows"].keys())
    for name, flow in found["flows"].items():
        want = summary["flows"][name]
        assert flow["expected"] == want["expected"]
        assert flow["received"] in (None, want["received"])
        assert flow["missing_frames"] in (None, want["missing_frames"])
    for name, channel in found["channels"].items():
        want = summary["channels"][name]
        same = ("expected", "saved", "files", "bytes", "dataset")
        assert {key: channel[key] for key in same} == {key: want[key] for key in same}
        assert channel["vetoed"] in (None, want["vetoed"])
        assert channel["lost"] is None or channel["lost"] + channel["dropped"] == want["lost"] + want["dropped"]


def _agrees(found: dict[str, Any], summary: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    """An inspection tells what the summary does, or that it is unknown."""
    want = _told(summary)
    differs = {key: (value, want[key]) for key, value in _told(found, known=True).items() if value != want[key]}
    assert {key: pair for key, pair in differs.items() if not key.endswith(but or "\0")} == {}
    unknown = [key for key, value in _told(found).items() if value is None and not key.endswith(but or "\0")]
    assert all(any(key.split()[1] == it.split(":")[0] for it in found["warnings"]) for key in unknown)


@pytest.mark.parametrize("name", SMALL)
def test_small_pipelines_of_a_detector_that_fails(name: str, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(FUNCTION)
    head = HEAD.replace("receivers: 2\n", "") if "receivers" in SMALL[name] else HEAD
    ran = run(head + SMALL[name], tmp_path, "inline", name=name)
    assert ran.code in (0, 11), ran.output
    summary = ran.summary
    assert all(flow["received"] < flow["expected"] for flow in summary["flows"].values())
    check_accounting(ran)
    _check_killed(ran, summary)
    _check_without_ledgers(ran, summary)


def test_frames_lost_by_an_overrun(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(SLOW)
    ran = run(OVERRUN, tmp_path, "inline", name="overrun")
    assert ran.code in (0, 11), ran.output
    assert ran.summary["flows"]["F"]["lost"] > 0
    check_accounting(ran)


def _cut(ledger: Path, share: float) -> None:
    """Cut a ledger somewhere, in a line."""
    text = ledger.read_bytes()
    ledger.write_bytes(text[: int(share * text.rindex(b"\n"))])


@pytest.mark.parametrize("share", [0, 0.5, 0.8])
def test_a_receiver_that_is_killed_after_losses(share: float, tmp_path: Path) -> None:
    """Frames lost before the last line of its ledger are lost; those saved after it were received."""
    (tmp_path / "user.py").write_text(SLOW)
    ran = run(OVERRUN.replace("frames: 400", "frames: 8000"), tmp_path, "inline", name="overrun")
    want = ran.summary["flows"]["F"]
    assert want["lost"] > 100
    _break(ran)
    _cut(ran.directory / "overrun_0.ledger", share)
    assert lima2("recover", str(ran.directory), cwd=ran.directory).returncode == 0
    summary = truth(ran)
    flow = summary["flows"]["F"]
    assert (flow["expected"], flow["received"]) == (8000, want["received"])
    assert flow["missing_frames"] == want["missing_frames"]
    assert (flow["lost"] > 0, flow["missing"] > 0) == (share > 0, True)
    assert flow["lost"] + flow["missing"] == want["lost"]
    _, numbers, status = ran.saved("save")
    absent = status[status != SAVED]
    assert (np.count_nonzero(absent == LOST), np.count_nonzero(absent == INCOMPLETE)) == (flow["lost"], flow["missing"])
    assert absent[0] == (LOST if share else INCOMPLETE)
    assert len(numbers) == 8000
    before = (ran.directory / "summary.json").read_bytes()
    assert "nothing to recover" in lima2("recover", str(ran.directory), cwd=ran.directory).stdout
    (ran.directory / "overrun_save_master.h5").unlink()
    assert lima2("recover", str(ran.directory), cwd=ran.directory).returncode == 0
    assert (ran.directory / "summary.json").read_bytes() == before


def test_the_part_of_a_frame_that_is_most_behind_decides(tmp_path: Path) -> None:
    """A receiver whose ledger ends early, then one that has left nothing at all."""
    ran = run(HEAD + SMALL["parts"], tmp_path, "inline", name="parts")
    want = ran.summary["flows"]["F"]
    for files, received in (((), want["received"]), (("parts_c.h5", "parts_*_0_00000.h5"), None)):
        _break(ran)
        (ran.directory / "parts_0.ledger").write_bytes(b"")
        for pattern in files:
            for path in ran.directory.glob(pattern):
                path.unlink()
        assert lima2("recover", str(ran.directory), cwd=ran.directory).returncode == 0
        flow, saved = ran.summary["flows"]["F"], ran.summary["channels"]["save"]["saved"]
        assert flow["received"] == (saved if received is None else received)
        assert (flow["expected"], flow["missing"]) == (60, 60 - flow["received"])
    assert 0 < saved < want["received"]


def test_a_damaged_ledger_is_told(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(SLOW)
    ran = run(OVERRUN.replace("frames: 400", "frames: 6000"), tmp_path, "inline", name="overrun")
    want = ran.summary["flows"]["F"]
    _break(ran)
    ledger = ran.directory / "overrun_0.ledger"
    first, *rest = ledger.read_bytes().splitlines(keepends=True)
    assert len(rest) >= 2
    ledger.write_bytes(first + rest[0].replace(b":", b";", 1) + b"".join(rest[1:]))
    done = lima2("recover", str(ran.directory), cwd=ran.directory)
    assert done.returncode == 0
    (warning,) = [text for text in ran.summary["warnings"] if "ledger" in text]
    assert warning == "overrun_0.ledger is damaged from line 2 on: not all reasons why frames are not saved are known"
    assert warning in done.stdout
    assert ran.summary["channels"]["save"]["saved"] == want["received"]
    assert ran.summary["flows"]["F"]["received"] is None  # no file has all frames that were received
    assert _inspect(ran, "--verify")["problems"] == []


@pytest.mark.mpi
@pytest.mark.launch
@needs_mpi
def test_an_endless_run_whose_receiver_is_killed_ends_with_the_last_frame_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(SLOW)
    live = Live(OVERRUN.replace("frames: 400", "frames: 0"), tmp_path, "mpi")
    live.wait_for_frames(4)
    lost = json.loads(live.seen[-1])["flows"]["F"]["lost"]
    assert lost > 0
    live.ranks[-1].kill()
    ran = live.end()
    assert ran.code == 10
    flow = truth(ran)["flows"]["F"]
    assert flow["lost"] >= lost
    assert flow["missing"] < flow["expected"] / 2
    assert (ran.summary["frames"], flow["expected"]) == (None, 1 + max(ran.saved("save")[1].max(), 0))


def test_a_channel_of_which_nothing_was_saved_lacks_no_checksums(tmp_path: Path) -> None:
    text = """
lima2: 1
detector: {remu: {image: {width: 8, height: 8}, datasets: {A: {dtype: uint16}}}}
acquisition: {frames: 9}
flows: {F: {dataset: A}}
nodes:
  none: {input: F, python: {function: user.py:none, on_error: drop}}
  sum: {input: none, accumulate: {frames: 3}}
  sums: {input: sum, io_hdf5: {}}
"""
    (tmp_path / "user.py").write_text("def none(frames, numbers):\n    raise ValueError('no frame is good')\n")
    ran = run(text, tmp_path, "inline", name="empty")
    channel = ran.summary["channels"]["sums"]
    assert (channel["expected"], channel["saved"]) == (3, 0)
    found = _inspect(ran, "--verify")
    assert found["problems"] == found["warnings"] == []


def test_a_run_that_saves_nothing_lacks_no_files(tmp_path: Path) -> None:
    truth(
        run(HEAD.replace("    faults: {seed: 3, dropped: {rate: 0.1}, failed: {rate: 0.1}}\n", ""), tmp_path, "inline")
    )


def test_files_of_a_node_that_are_gone(tmp_path: Path) -> None:
    ran = run(HEAD + SMALL["saved"], tmp_path, "inline", name="gone")
    for path in ran.directory.glob("gone_save_*.h5"):
        path.unlink()
    found = lima2("inspect", "--verify", "--format", "json", str(ran.directory), cwd=tmp_path)
    assert found.returncode == 10
    assert json.loads(found.stdout)["problems"] == ["gone.h5 links to gone_save_master.h5, which is not there"]
