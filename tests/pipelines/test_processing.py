"""Processing of the user's own on the receivers, with nodes beside it and without."""

from pathlib import Path

import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.running import TRANSPORTS, Ran, counter, lima2, run, truth

HEAD = """
lima2: 1
detector: {remu: {image: {width: 16, height: 12}, datasets: {D: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 41}
receivers: 2
flows:
  F: {dataset: D, rules: {blocks_per_group: 4}, buffers: {frames: 16}}
"""
SOURCE = Rect(0, 0, 16, 12)
MAIN = """
from pathlib import Path
import numpy as np
from lima2cli.processing import Receiver

def main(receiver: Receiver) -> None:
    assert receiver.count == 2 and receiver.name == f"receiver{receiver.index}"
    spec = receiver.sources["F"]
    kept = [(np.empty((0, *spec.shape), spec.dtype), np.empty(0, np.uint64))]
    for block in receiver.blocks("F"):
        assert block.source == "F" and not block.frames.flags.writeable
        assert block.frames.dtype == spec.dtype and block.frames.shape[1:] == spec.shape
        kept.append((block.frames.copy(), block.numbers.copy()))
    frames, numbers = map(np.concatenate, zip(*kept))
    np.savez(receiver.directory / f"own_{receiver.index}.npz", frames=frames, numbers=numbers, lost=receiver.lost("F"))

def both(receiver):
    seen = {"F": [], "sums": []}
    for block in receiver.blocks("F", "sums"):
        seen[block.source] += block.numbers.tolist()
    assert seen["F"] == seen["sums"]
    (receiver.directory / f"both_{receiver.index}").write_text(str(len(seen["F"])))

def early(receiver):
    for block in receiver.blocks("F"):
        return

def raises(receiver):
    for block in receiver.blocks("F"):
        if 9 in block.numbers:
            raise ValueError("nine")

def unready(receiver):
    raise OSError("no such camera")

def unknown(receiver):
    receiver.blocks("nothing")

def idle(receiver):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(MAIN)
    return tmp_path


def own(folder: Path, name: str, transport: str = "inline", *, text: str = HEAD) -> Ran:
    return run(text, folder, transport, "--receiver", f"own.py:{name}")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_program_gets_the_frames_of_its_receiver(folder: Path, transport: str) -> None:
    ran = own(folder, "main", transport)
    assert ran.code == 0, ran.output
    assert "unused-flow" not in ran.output
    for receiver, count in ((0, 21), (1, 20)):
        kept = np.load(ran.directory / f"own_{receiver}.npz")
        numbers = np.arange(41)[np.arange(41) // 4 % 2 == receiver]
        assert len(numbers) == count
        assert kept["numbers"].tolist() == numbers.tolist()
        np.testing.assert_array_equal(kept["frames"], counter(kept["numbers"], SOURCE, 16))
        assert not len(kept["lost"])
    flow = ran.summary["flows"]["F"]
    assert (flow["expected"], flow["received"]) == (41, 41)


def test_nodes_run_beside_and_their_frames_can_be_had(folder: Path) -> None:
    (folder / "f.py").write_text("def f(frames, numbers):\n    return frames.sum(axis=(1, 2), dtype='i8')[:, None]\n")
    nodes = (
        'nodes:\n  sums: {input: F, python: {function: "f.py:f", output: {dtype: int64, shape: [1]}}}\n'
        "  s: {input: sums, io_hdf5: {}}\n"
    )
    ran = own(folder, "both", text=HEAD + nodes)
    assert ran.code == 0, ran.output
    assert [(ran.directory / f"both_{receiver}").read_text() for receiver in (0, 1)] == ["21", "20"]
    assert truth(ran)["channels"]["s"]["saved"] == 41


def test_what_is_lost_is_told_and_nothing_torn_is_given(folder: Path) -> None:
    text = HEAD.replace("buffers: {frames: 16}", "overrun: continue, buffers: {frames: 8}")
    ran = own(folder, "main", text=text.replace("frames: 41", "frames: 4000, rate: 200 kHz"))
    assert ran.code == 0, ran.output
    every = np.arange(4000)
    for receiver in (0, 1):
        kept = np.load(ran.directory / f"own_{receiver}.npz")
        np.testing.assert_array_equal(kept["frames"], counter(kept["numbers"], SOURCE, 16))
        both = np.sort(np.concatenate([kept["numbers"], kept["lost"]]))
        assert both.tolist() == every[every // 4 % 2 == receiver].tolist()
    assert (
        sum(len(np.load(ran.directory / f"own_{r}.npz")["lost"]) for r in (0, 1)) == ran.summary["flows"]["F"]["lost"]
    )


@pytest.mark.parametrize("name", ["early", "idle"])
def test_a_program_may_end_before_the_run(folder: Path, name: str) -> None:
    ran = own(folder, name)
    assert ran.code == 0, ran.output
    assert ran.summary["flows"]["F"]["received"] == 41


@pytest.mark.parametrize(
    ("name", "why", "received"),
    [
        ("raises", "own.py:31: ValueError: nine", True),
        ("unready", "own.py:34: OSError: no such camera", False),
        ("unknown", "there is no `nothing` to take blocks from; there is F", False),
    ],
)
def test_a_program_that_raises_ends_the_run(folder: Path, name: str, why: str, received: bool) -> None:
    ran = own(folder, name)
    assert ran.code == 10
    assert why in ran.summary["reason"]
    assert bool(ran.summary["flows"]["F"]["received"]) == received
    assert "Traceback" not in ran.output


def test_parts_of_frames_come_as_they_are(folder: Path) -> None:
    text = HEAD.replace("rules: {blocks_per_group: 4}", "dispatch: modules")
    text = text.replace("datasets", "modules: {columns: 2, rows: 1, width: 8, height: 12}, datasets")
    ran = own(folder, "main", text=text)
    assert ran.code == 0, ran.output
    for receiver in (0, 1):
        kept = np.load(ran.directory / f"own_{receiver}.npz")
        np.testing.assert_array_equal(kept["frames"], counter(kept["numbers"], Rect(8 * receiver, 0, 8, 12), 16))


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("own.py", "is a function"),
        ("own.py:nope", "own.py does not define nope"),
        ("none.py:main", "none.py"),
        ("no_such_module:main", "there is no module no_such_module"),
    ],
)
def test_a_program_that_is_not_there_is_told_of(folder: Path, reference: str, why: str) -> None:
    (folder / "p.yaml").write_text(HEAD)
    done = lima2("run", "p.yaml", "--receiver", reference, cwd=folder)
    assert done.returncode == 2
    assert why in done.stderr
    assert not (folder / "runs").exists()
