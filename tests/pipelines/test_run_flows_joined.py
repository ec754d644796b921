"""Runs in which several flows, or several receivers, have to come together: nothing hangs, every frame is accounted."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.geometry import Rect
from lima2cli.nodes.expression import Expression
from tests.running import TRANSPORTS, Live, Ran, counter, run, truth

SOURCE = Rect(0, 0, 24, 16)
FRAMES = 57


def head(frames: int = FRAMES, *, datasets: int = 2, more: str = "", receivers: str = "2", **extra: str) -> str:
    """A detector of two modules, one above the other, that counts."""
    names = ", ".join(f"CTR{i + 1}: {{dtype: uint16}}" for i in range(datasets))
    return f"""
lima2: 1
detector:
  remu:
    image: {{width: 24, height: 16}}
    datasets: {{{names}}}
    modules: {{columns: 1, rows: 2, width: 24, height: 8}}
    scene: {{counter: {{}}}}
    {more}
acquisition: {{frames: {frames}{"".join(f", {key}: {value}" for key, value in extra.items())}}}
receivers: {receivers}
"""


def frames_of(numbers: Any, dataset: int = 0) -> NDArray[np.float64]:
    """Frames of a dataset."""
    return counter(np.asarray(numbers, np.uint64), SOURCE, 24, dataset=dataset).astype(np.float64)


def table(ran: Ran, node: str) -> dict[str, NDArray[Any]]:
    """Columns of a table."""
    with h5py.File(ran.directory / ran.summary["tables"][node]["file"]) as file:
        return {name: column[()] for name, column in file["entry_0000/measurement"].items()}


ALL = "roi_counters: {rois: {all: {rect: {x: 0, y: 0, width: 24, height: 16}}}, statistics: [sum, max]}"
TIMES = "rules: {blocks_per_group: 4}, events: {group: 1, end: true}"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_flows_of_other_slices_and_receivers(transport: str, tmp_path: Path) -> None:
    """Fewer groups at one receiver than at the other, and a last group that is not whole."""
    ran = run(
        f"""{head(114, datasets=3)}
flows:
  A: {{dataset: CTR1, {TIMES}, buffers: {{frames: 16, at: [{", ".join(f"receiver{i % 2}.host" for i in range(4))}]}}}}
  B: {{dataset: CTR2, {TIMES}, buffers: {{frames: 16, at: [receiver0.host, receiver1.host]}}}}
  C: {{dataset: CTR3, slices: {{start: 3, step: 8, count: 9}}, buffers: {{frames: 16, at: [receiver0.host]}}}}
nodes:
  two: {{inputs: {{a: A, b: B}}, expression: {{expr: a + 2 * b, dtype: float64}}}}
  three: {{inputs: {{ab: two, c: C}}, expression: {{expr: ab + 4 * c, dtype: float64}}}}
  save: {{input: two, io_hdf5: {{}}}}
  few: {{input: three, io_hdf5: {{}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    summary = truth(ran)
    saved, numbers, status = ran.saved("save")
    assert numbers.tolist() == list(range(114))
    assert not status.any()
    both = frames_of(numbers) + 2 * frames_of(numbers, 1)
    np.testing.assert_array_equal(saved, both)
    saved, numbers, status = ran.saved("few")
    assert numbers.tolist() == [3 + 8 * k for k in range(9)]
    np.testing.assert_array_equal(saved, both[numbers.astype(int)] + 4 * frames_of(numbers, 2))
    assert [channel["unmatched"] for channel in summary["channels"].values()] == [0, 49]  # at receiver0


def test_a_flow_that_ends_early_holds_up_no_other(tmp_path: Path) -> None:
    """One local buffer has far fewer frames than what the other flow has before and after."""
    ran = run(
        f"""{head(400)}
flows:
  A: {{dataset: CTR1, buffers: {{frames: 8, at: [receiver0.host]}}}}
  B: {{dataset: CTR2, slices: {{start: 100, count: 20}}, buffers: {{frames: 8, at: [receiver0.host]}}}}
nodes:
  j: {{inputs: {{a: A, b: B}}, expression: {{expr: a - b, dtype: float64}}}}
  save: {{input: j, io_hdf5: {{}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    truth(ran)
    saved, numbers, _ = ran.saved("save")
    assert numbers.tolist() == list(range(100, 120))
    np.testing.assert_array_equal(saved, frames_of(numbers) - frames_of(numbers, 1))


def test_windows_of_two_flows(tmp_path: Path) -> None:
    """Windows of one flow come with other blocks than those of the other."""
    rest = "rules: {blocks_per_group: 1}, buffers: {frames: 64, at: [receiver0.host]}"
    ran = run(
        f"""{head(FRAMES)}
flows:
  A: {{dataset: CTR1, {rest}}}
  B: {{dataset: CTR2, {rest}, events: {{group: 3, end: true}}}}
nodes:
  a: {{input: A, accumulate: {{frames: 4}}}}
  b: {{input: B, accumulate: {{frames: 4}}}}
  j: {{inputs: {{a: a, b: b}}, expression: {{expr: a - b, dtype: float64}}}}
  save: {{input: j, io_hdf5: {{}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    truth(ran)
    saved, numbers, status = ran.saved("save")
    assert numbers[status == 0].tolist() == list(range(0, 56, 4))
    whole = (frames_of(range(56)) - frames_of(range(56), 1)).reshape(14, 4, 16, 24).sum(axis=1)
    np.testing.assert_array_equal(saved[status == 0], whole)


def test_filters_before_a_join_and_rows_of_another_flow(tmp_path: Path) -> None:
    """A small flow says which full frames are kept; frames of both are joined where both are."""
    ran = run(
        f"""{head()}
flows:
  A: {{dataset: CTR1, {TIMES}, buffers: {{frames: 32}}}}
  B: {{dataset: CTR2, {TIMES}, buffers: {{frames: 32}}}}
  Spot: {{dataset: CTR1, source: {{x: 2, y: 3, width: 5, height: 9}}, {TIMES}, buffers: {{frames: 32}}}}
nodes:
  spot: {{input: Spot, roi_counters: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 5, height: 9}}}}}}}}}}
  counts: {{input: B, {ALL}}}
  a: {{input: A, filter: {{keep: spot.all_max > 20000}}}}
  b: {{input: B, filter: {{keep: counts.all_max > 30000}}}}
  j: {{inputs: {{a: a, b: b}}, expression: {{expr: a - b, dtype: float64}}}}
  kept: {{input: a, io_hdf5: {{}}}}
  save: {{input: j, io_hdf5: {{}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    summary = truth(ran)
    a, b = frames_of(range(FRAMES)), frames_of(range(FRAMES), 1)
    of_a = a[:, 3:12, 2:7].max(axis=(1, 2)) > 20000
    of_b = b.max(axis=(1, 2)) > 30000
    saved, numbers, _ = ran.saved("kept")
    assert numbers.tolist() == np.flatnonzero(of_a).tolist()
    np.testing.assert_array_equal(saved, a[of_a])
    assert 0 < len(numbers) < FRAMES
    assert summary["channels"]["kept"]["vetoed"] == FRAMES - len(numbers)
    saved, numbers, _ = ran.saved("save")
    assert numbers.tolist() == np.flatnonzero(of_a & of_b).tolist()
    np.testing.assert_array_equal(saved, (a - b)[of_a & of_b])


def test_a_node_that_drops_before_a_join(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "def f(frames, numbers):\n    if (numbers % 10 == 3).any(): raise ValueError('three')\n    return frames\n"
    )
    rest = "rules: {blocks_per_group: 2}, buffers: {frames: 16}"
    ran = run(
        f"""{head()}
flows: {{A: {{dataset: CTR1, {rest}}}, B: {{dataset: CTR2, {rest}}}}}
nodes:
  user: {{input: A, python: {{function: "user.py:f", on_error: drop}}}}
  j: {{inputs: {{a: user, b: B}}, expression: {{expr: a + b, dtype: float64}}}}
  save: {{input: j, io_hdf5: {{}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    summary = truth(ran)
    _, numbers, status = ran.saved("save")
    gone = numbers[status == 1].tolist()
    assert {3, 13, 23, 33, 43, 53} <= set(gone)
    assert len(gone) < FRAMES / 2, "some groups at a time"
    channel = summary["channels"]["save"]
    assert (channel["saved"], channel["lost"], channel["unmatched"]) == (FRAMES - len(gone), len(gone), len(gone))


# Receivers that hold parts of frames

PARTS = "dispatch: modules, rules: {blocks_per_group: 4}, events: {group: 1, end: true}"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_parts_of_two_flows_joined_and_gathered(transport: str, tmp_path: Path) -> None:
    """And windows of what is gathered; several threads; frames that are not common to both."""
    one = "{memspaces: {host: {host: {}}}, threads: 2}"
    ran = run(
        f"""{head(receivers=f"{{receiver0: {one}, receiver1: {one}}}", datasets=3)}
flows:
  A: {{dataset: CTR1, {PARTS}, buffers: {{frames: 16}}}}
  B: {{dataset: CTR2, {PARTS}, slices: {{count: 28}}, buffers: {{frames: 16}}}}
  C: {{dataset: CTR3, {PARTS}, buffers: {{frames: 16}}}}
nodes:
  j: {{inputs: {{a: A, b: B}}, expression: {{expr: a - b, dtype: float64}}}}
  whole: {{input: j, reconstruction: {{}}}}
  counters: {{input: C, {ALL}}}
  chosen: {{input: whole, filter: {{keep: counters.all_max > 20000}}}}
  save: {{input: chosen, io_hdf5: {{}}}}
  c: {{input: C, reconstruction: {{}}}}
  two: {{inputs: {{ab: whole, c: c}}, expression: {{expr: ab + c, dtype: float64}}}}
  sum: {{input: two, accumulate: {{frames: 2}}}}
  sums: {{input: sum, io_hdf5: {{}}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    summary = truth(ran)
    a, b, c = (frames_of(range(28), dataset) for dataset in range(3))
    passed = np.flatnonzero(c.max(axis=(1, 2)) > 20000)
    saved, numbers, _ = ran.saved("save")
    assert 0 < len(passed) < 28
    assert numbers.tolist() == passed.tolist()
    np.testing.assert_array_equal(saved, (a - b)[passed])
    assert table(ran, "counters")["all_sum"].tolist() == frames_of(range(FRAMES), 2).sum(axis=(1, 2)).tolist()
    saved, numbers, status = ran.saved("sums")
    assert not status.any()
    np.testing.assert_array_equal(saved, (a - b + c).reshape(14, 2, 16, 24).sum(axis=1))
    assert summary["channels"]["sums"]["unmatched"] == 2 * (FRAMES - 28), "of A at one join, of C at the other"


def test_frames_that_one_module_does_not_give(tmp_path: Path) -> None:
    """They are lost to all receivers: to whole frames, rows, and what is chosen by rows."""
    ran = run(
        f"""{head(more="faults: {failed: {rate: 0.2}}")}
flows: {{A: {{dataset: CTR1, {PARTS}, buffers: {{frames: 16}}}}}}
nodes:
  counters: {{input: A, {ALL}}}
  whole: {{input: A, reconstruction: {{}}}}
  save: {{input: whole, io_hdf5: {{}}}}
  some: {{input: A, filter: {{keep: counters.all_max > 20000}}}}
  later: {{input: some, reconstruction: {{}}}}
  chosen: {{input: later, io_hdf5: {{}}}}
""",
        tmp_path,
        "inline",
    )
    summary = truth(ran)
    missing = [n for first, last, step in summary["flows"]["A"]["missing_frames"] for n in range(first, last + 1, step)]
    assert 3 < len(missing) < FRAMES / 2
    kept = np.setdiff1d(np.arange(FRAMES), missing)
    saved, numbers, status = ran.saved("save")
    assert numbers[status == 0].tolist() == kept.tolist()
    np.testing.assert_array_equal(saved[status == 0], frames_of(kept))
    columns = table(ran, "counters")
    assert columns["frame_number"].tolist() == kept.tolist()
    assert columns["all_sum"].tolist() == frames_of(kept).sum(axis=(1, 2)).tolist()
    _, numbers, _ = ran.saved("chosen")
    passed = kept[frames_of(kept).max(axis=(1, 2)) > 20000]
    assert numbers.tolist() == passed.tolist()
    channel = summary["channels"]["chosen"]
    assert (channel["saved"], channel["vetoed"]) == (len(passed), len(kept) - len(passed))
    assert channel["lost"] == len(missing)


def test_a_slow_receiver_loses_frames_for_all(tmp_path: Path) -> None:
    """Nobody waits (`overrun: continue`): what one has lost is lost to all, and the rest is whole."""
    (tmp_path / "user.py").write_text(
        "import time\ndef f(frames, numbers):\n"
        "    if (numbers // 4 % 2 == 1).any(): time.sleep(0.04)\n    return frames\n"
    )
    ran = run(
        f"""{head(400, rate="1000")}
flows: {{A: {{dataset: CTR1, {PARTS}, overrun: continue, buffers: {{frames: 24}}}}}}
nodes:
  whole: {{input: A, reconstruction: {{}}}}
  slow: {{input: whole, python: {{function: "user.py:f"}}}}
  save: {{input: slow, io_hdf5: {{}}}}
  counters: {{input: A, {ALL}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    summary = truth(ran)
    flow = summary["flows"]["A"]
    assert 0 < flow["lost"] < 400
    saved, numbers, status = ran.saved("save")
    kept = numbers[status == 0]
    assert len(kept) == flow["received"]
    np.testing.assert_array_equal(saved[status == 0], frames_of(kept))
    assert table(ran, "counters")["frame_number"].tolist() == kept.tolist()


def test_a_join_that_fails_at_one_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames are lost to all from then on; nobody waits for it."""
    real = Expression.bind

    def bind(self: Expression, inputs: Any) -> Any:
        function, below = real(self, inputs), inputs.specs["a"].view.area.y > 0

        def failing(*frames: Any) -> Any:
            if below and (frames[0][:, 0, 0] == 7919 * 21 % 2**16 + 8 * 24).any():
                raise ArithmeticError("frame 21")
            return function(*frames)

        return failing

    monkeypatch.setattr(Expression, "bind", bind)
    ran = run(
        f"""{head(rate="300")}
flows:
  A: {{dataset: CTR1, {PARTS}, buffers: {{frames: 16}}}}
  B: {{dataset: CTR2, {PARTS}, buffers: {{frames: 16}}}}
nodes:
  j: {{inputs: {{a: A, b: B}}, expression: {{expr: 2 * a + b, dtype: float64}}}}
  whole: {{input: j, reconstruction: {{}}}}
  save: {{input: whole, io_hdf5: {{}}}}
  counters: {{input: j, {ALL}}}
  b: {{input: B, {ALL}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 10, ran.output
    assert "frame 21" in ran.output
    summary = truth(ran, problems=True)
    _, numbers, status = ran.saved("save")
    assert numbers[status == 0].tolist() == list(range(20))
    assert table(ran, "counters")["frame_number"].tolist() == list(range(20))
    assert table(ran, "b")["frame_number"].tolist() == list(range(summary["flows"]["B"]["received"]))
    assert summary["flows"]["B"]["received"] >= 24


def test_full_buffers_that_are_gathered(tmp_path: Path) -> None:
    """Frames that found no place at one receiver (oneshot) are dropped for all."""
    ran = run(
        f"""{head(more="")}
flows:
  A: {{dataset: CTR1, dispatch: modules, rules: {{blocks_per_group: 4, cycle: oneshot}}, buffers: {{frames: 22}}}}
nodes:
  whole: {{input: A, reconstruction: {{}}}}
  save: {{input: whole, io_hdf5: {{}}}}
""",
        tmp_path,
        "inline",
    )
    summary = truth(ran)
    assert summary["flows"]["A"]["dropped"] == FRAMES - 20
    saved, numbers, status = ran.saved("save")
    assert numbers[status == 0].tolist() == list(range(20))
    np.testing.assert_array_equal(saved[status == 0], frames_of(range(20)))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_endless_run_with_collectives_is_stopped(transport: str, tmp_path: Path) -> None:
    live = Live(
        f"""{head(0, rate="1000")}
flows:
  A: {{dataset: CTR1, {PARTS}, buffers: {{frames: 16}}}}
  B: {{dataset: CTR2, {TIMES}, buffers: {{frames: 64}}}}
nodes:
  whole: {{input: A, reconstruction: {{}}}}
  j: {{inputs: {{a: whole, b: B}}, expression: {{expr: a + b, dtype: float64}}}}
  save: {{input: j, io_hdf5: {{}}}}
""",
        tmp_path,
        transport,
    )
    live.wait_for_frames()
    live.process.terminate()
    ran = live.end()
    assert ran.code == 143, ran.output
    summary = truth(ran)
    assert summary["state"] == "stopped"
    saved, numbers, status = ran.saved("save")
    assert not status.any()
    assert len(numbers) == summary["flows"]["A"]["expected"] > 10
    np.testing.assert_array_equal(saved, frames_of(numbers) + frames_of(numbers, 1))


def test_sparse_parts(tmp_path: Path) -> None:
    """Receivers save the pixels of their parts; the master shows those of whole frames."""
    ran = run(
        f"""{head()}
flows: {{A: {{dataset: CTR1, {PARTS}, buffers: {{frames: 16}}}}}}
nodes:
  some: {{input: A, sparsify: {{above: 30000}}}}
  save: {{input: some, io_hdf5: {{layout: virtual}}}}
""",
        tmp_path,
        "inline",
    )
    assert ran.code == 0, ran.output
    truth(ran)
    name, path = ran.summary["channels"]["save"]["dataset"].split("::")
    with h5py.File(ran.directory / name) as file:
        ptr, index, values = (file[path][key][()] for key in ("frame_ptr", "index", "intensity"))
    assert len(ptr) == FRAMES + 1
    for frame, pixels in enumerate(frames_of(range(FRAMES)).reshape(FRAMES, -1)):
        mine = slice(int(ptr[frame]), int(ptr[frame + 1]))
        order = np.argsort(index[mine])
        assert index[mine][order].tolist() == np.flatnonzero(pixels > 30000).tolist()
        assert values[mine][order].tolist() == pixels[pixels > 30000].tolist()
