"""Groups that are there at the same time are written together: every frame is in its place all the same."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima2cli.detectors.emulator_faults import Dropped, Failed, Faults
from lima2cli.geometry import Rect, Rule
from lima2cli.job.run import run_plan
from lima2cli.ranks import loop
from lima2cli.ranks.detector import _runs
from lima2cli.ranks.loop import Rank
from lima2cli.runs.saved_plan import Origin
from lima2cli.transport.inline import InlinePort
from tests.compiling import compiled, plan_of
from tests.running import TRANSPORTS, counter, mpi, run, truth

PIPELINE = """
lima2: 1
name: k
detector:
  remu:
    image: {width: 16, height: 12}
    modules: {columns: MODULES, rows: 1, width: WIDTH, height: 12}
    datasets: {D: {dtype: uint16}}
    scene: {counter: {}}
acquisition: {frames: FRAMES}
receivers: RECEIVERS
flows:
  F: {dataset: D, slices: {start: START, step: STEP}, rules: {blocks_per_group: BLOCKS}, buffers: {frames: DEPTH}}
nodes: {save: {input: F, io_hdf5: {compression: none}}}
"""

TWO = {"blocks": 1, "start": 0, "step": 1, "modules": 2}
"""Two modules, every frame, a group each."""


def filled(text: str = PIPELINE, **values: int) -> str:
    text = text.replace("WIDTH", str(16 // values["modules"]))
    for name, value in values.items():
        text = text.replace(name.upper(), str(value))
    return text


def pixels(numbers: np.ndarray) -> np.ndarray:
    return (7919 * numbers[:, np.newaxis].astype(np.int64) + np.arange(16 * 12)) % 65536


def check(folder: Path, transport: str, **values: int) -> None:
    ran = run(filled(**values), folder, transport)
    assert ran.code == 0, ran.output
    truth(ran)
    frames, numbers, status = ran.saved("save")
    assert not status.any()
    np.testing.assert_array_equal(numbers, np.arange(values["start"], values["frames"], values["step"]))
    np.testing.assert_array_equal(frames.reshape(-1, 16 * 12), pixels(numbers))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "values",
    [
        {"frames": 997, "receivers": 1, "blocks": 1, "depth": 64, "start": 0, "step": 1, "modules": 1},
        {"frames": 997, "receivers": 3, "blocks": 1, "depth": 50, "start": 5, "step": 2, "modules": 2},
        {"frames": 1000, "receivers": 2, "blocks": 3, "depth": 20, "start": 1, "step": 3, "modules": 4},
    ],
)
def test_frames_are_in_their_places(tmp_path: Path, transport: str, values: dict[str, int]) -> None:
    check(tmp_path, transport, **values)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    frames=st.integers(1, 300),
    receivers=st.integers(1, 3),
    blocks=st.integers(1, 5),
    depth=st.integers(5, 40),
    start=st.integers(0, 4),
    step=st.integers(1, 4),
    modules=st.sampled_from([1, 2, 4]),
)
def test_frames_are_in_their_places_whatever_the_rule(
    tmp_path_factory: pytest.TempPathFactory, frames: int, **values: int
) -> None:
    frames += values["start"]
    check(tmp_path_factory.mktemp("joined"), "inline", frames=frames + 1, **values)


@pytest.mark.parametrize("transport", ["inline", mpi()])
def test_a_flow_that_does_not_wait_says_what_was_destroyed(tmp_path: Path, transport: str) -> None:
    """The source runs ahead of a receiver that saves: frames are lost, and each that is saved is whole."""
    text = PIPELINE.replace("buffers:", "overrun: continue, buffers:").replace(
        "frames: FRAMES", "frames: 20000, rate: 1 MHz"
    )
    text = filled(text, receivers=2, depth=32, **TWO)
    ran = run(text, tmp_path, transport)
    assert ran.code == 0, ran.output
    summary = truth(ran)
    frames, numbers, status = ran.saved("save")
    saved = status == 0
    assert saved.sum() == summary["channels"]["save"]["saved"] > 0
    np.testing.assert_array_equal(frames[saved].reshape(-1, 16 * 12), pixels(numbers)[saved])


def test_words_are_stored_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[int] = []
    plain = InlinePort.store_words

    def counted(port: InlinePort, rank: int, word: int, values: np.ndarray, step: int = 1) -> None:
        stored.append(len(values))
        plain(port, rank, word, values, step)

    monkeypatch.setattr(InlinePort, "store_words", counted)
    monkeypatch.chdir(tmp_path)
    text = filled(frames=200, receivers=1, depth=64, **TWO)
    _, summary, code = run_plan(
        plan_of(text, tmp_path), Origin(text, "k.yaml", tmp_path), lambda event: None, transport="inline"
    )
    assert (code, summary.flows["F"].received) == (0, 200)
    assert max(stored) > 10


@given(
    start=st.integers(0, 9),
    step=st.integers(1, 9),
    blocks=st.integers(1, 6),
    buffers=st.integers(1, 5),
    group=st.integers(0, 99),
    groups=st.integers(1, 9),
)
def test_runs_are_the_frames_of_the_groups(
    start: int, step: int, blocks: int, buffers: int, group: int, groups: int
) -> None:
    rule = Rule(start, step, None, blocks=blocks, buffers=buffers, slots=99, stride=1)
    found = [number for run in _runs(rule, group, groups) for number in run]
    wanted = [
        rule.frame(g * blocks + b) for g in range(group, group + groups * buffers, buffers) for b in range(blocks)
    ]
    assert found == wanted


FAULTY = PIPELINE.replace(
    "scene: {counter: {}}", "scene: {counter: {}}\n    faults: {seed: SEED, failed: {rate: 0.1}, dropped: {rate: 0.02}}"
).replace("frames: FRAMES", "frames: FRAMES, allow_lost: 100 %")


def check_faulty(folder: Path, transport: str, *, seed: int, **values: int) -> None:
    """Frames that modules failed to give are missing, and no others; those that are saved are whole."""
    ran = run(filled(FAULTY, seed=seed, **values), folder, transport)
    assert ran.code == 0, ran.output
    summary = truth(ran)
    faults = Faults(seed=seed, failed=Failed(rate=0.1), dropped=Dropped(rate=0.02))
    wanted = np.arange(values["start"], values["frames"], values["step"])
    lost = np.zeros(len(wanted), bool)
    for module in range(values["modules"]):
        missing = faults.missing(module, wanted)
        lost |= False if missing is None else missing
    flow = summary["flows"]["F"]
    assert (flow["received"], flow["missing"]) == (np.count_nonzero(~lost), np.count_nonzero(lost))
    assert [n for first, last, step in flow["missing_frames"] for n in range(first, last + 1, step)] == [*wanted[lost]]
    if lost.all():
        return
    frames, numbers, status = ran.saved("save")
    seen = dict(zip(numbers[status == 0].tolist(), frames[status == 0].reshape(-1, 16 * 12), strict=True))
    assert list(seen) == wanted[~lost].tolist()
    np.testing.assert_array_equal(np.stack(list(seen.values())), pixels(wanted[~lost]))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("modules", [1, 4])
def test_what_modules_failed_to_give_is_missing(tmp_path: Path, transport: str, modules: int) -> None:
    check_faulty(
        tmp_path, transport, seed=3, frames=1500, receivers=2, blocks=2, depth=40, start=1, step=2, modules=modules
    )


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 99),
    frames=st.integers(1, 300),
    receivers=st.integers(1, 3),
    blocks=st.integers(1, 5),
    depth=st.integers(5, 40),
    start=st.integers(0, 4),
    step=st.integers(1, 4),
    modules=st.sampled_from([1, 2, 4]),
)
def test_what_modules_failed_to_give_is_missing_whatever_the_rule(
    tmp_path_factory: pytest.TempPathFactory, frames: int, **values: int
) -> None:
    frames += values["start"]
    check_faulty(tmp_path_factory.mktemp("faulty"), "inline", frames=frames + 1, **values)


@dataclass(frozen=True)
class OneFlow:
    """A flow of random slices, groups, events and buffers."""

    start: int
    step: int
    count: int | None
    blocks: int
    period: int
    depth: int
    at: tuple[int, ...]
    shares: bool

    def numbers(self, frames: int) -> range:
        """Return its frames."""
        return range(self.start, frames, self.step)[: self.count]

    def text(self, name: str, dataset: str) -> str:
        """Return its line."""
        places = ", ".join(f"receiver{place}.host" for place in self.at)
        count = "" if self.count is None else f", count: {self.count}"
        split = ", dispatch: modules" if self.shares else ""
        return (
            f"  {name}: {{dataset: {dataset}, slices: {{start: {self.start}, step: {self.step}{count}}}{split}, "
            f"rules: {{blocks_per_group: {self.blocks}}}, events: {{group: {self.period}, end: true}}, "
            f"buffers: {{frames: {self.depth * self.blocks}, at: [{places}]}}}}\n"
        )


@st.composite
def flows_to_join(draw: st.DrawFn) -> list[OneFlow]:
    """Two to four flows, as a rule with the same frames at the same receivers: else they can't be joined."""
    at = draw(st.sampled_from(((0,), (0, 0), (0, 1), (0, 1), (0, 1, 0, 1))))
    span, start = draw(st.sampled_from((1, 2, 6, 12))), draw(st.sampled_from((0, 0, 3)))
    made = []
    for _ in range(draw(st.integers(2, 4))):
        step = draw(st.sampled_from([step for step in (1, 1, 2, 3) if span % step == 0]))
        made.append(
            OneFlow(
                start=start if len(at) > 1 else draw(st.sampled_from((0, 0, 5))),
                step=step,
                count=draw(st.none() | st.integers(1, 60)),
                blocks=span // step if len(set(at)) > 1 else draw(st.sampled_from((1, 1, 2, 4))),
                period=draw(st.sampled_from((1, 1, 2, 3))),
                depth=draw(st.integers(1, 24)),
                at=at if len(set(at)) > 1 else draw(st.sampled_from(((0,), (0, 0)))),
                shares=at == (0, 1) and draw(st.booleans()),
            )
        )
    return made


joined = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=3)
"""Number of the one flow, and how many flows after it the other is."""


class Stuck(Exception):
    """Nothing goes on any more."""


def in_any_order(seed: int) -> Callable[[Sequence[Rank]], None]:
    """Return turns for ranks in an order at random, some many times before others; as slow as any may be."""

    def turns(ranks: Sequence[Rank]) -> None:
        chosen, limit = random.Random(seed), time.monotonic() + 30
        while not all(rank.done for rank in ranks):
            rank = chosen.choice(ranks)
            for _ in range(chosen.choice((1, 1, 3, 50))):
                if rank.done or not rank.step():
                    break
            if time.monotonic() > limit:
                raise Stuck

    return turns


def joining(some: list[OneFlow], joins: list[tuple[int, int]], frames: int) -> tuple[str, dict[str, tuple[int, int]]]:
    """Return a pipeline of flows F0, F1…, each of a dataset of its own, and its joins: two flows each, by name.

    Parts of frames are put together before they are joined with whole ones.
    """
    pairs = dict.fromkeys((a % len(some), (a + further) % len(some)) for a, further in joins)
    named = {f"j{index}": (a, b) for index, (a, b) in enumerate(pairs) if a != b}
    nodes = "".join(
        f"  w{index}: {{input: F{index}, reconstruction: {{}}}}\n" for index, flow in enumerate(some) if flow.shares
    )
    for name, (a, b) in named.items():
        parts = some[a].shares and some[b].shares
        one, other = (f"w{i}" if some[i].shares and not parts else f"F{i}" for i in (a, b))
        nodes += (
            f"  {name}: {{inputs: {{a: {one}, b: {other}}}, expression: {{expr: a + 2 * b, dtype: float64}}}}\n"
            f"  c{name}: {{input: {name}, roi_counters: {{rois: {{all: {{x: 0, y: 0, width: 8, height: 4}}}}, "
            "statistics: [sum]}}\n"
        )
    datasets = ", ".join(f"D{index}: {{dtype: uint16}}" for index in range(len(some)))
    lines = "".join(flow.text(f"F{index}", f"D{index}") for index, flow in enumerate(some))
    head = (
        "remu: {image: {width: 8, height: 4}, modules: {columns: 1, rows: 2, width: 8, height: 2}, scene: {counter: {}}"
    )
    text = f"lima2: 1\nname: k\ndetector: {{{head}, datasets: {{{datasets}}}}}}}\nacquisition: {{frames: {frames}}}\n"
    return f"{text}receivers: 2\nflows:\n{lines}nodes:\n{nodes}", named


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(some=flows_to_join(), joins=joined, seed=st.integers(0, 2**32), frames=st.integers(1, 99))
def test_joins_of_flows_that_are_written_together_end(
    tmp_path_factory: pytest.TempPathFactory,
    some: list[OneFlow],
    joins: list[tuple[int, int]],
    seed: int,
    frames: int,
) -> None:
    """Run what is accepted, whichever rank is slow: it ends, and makes all pairs that are due, of the right frames."""
    text, pairs = joining(some, joins, frames)
    plan = compiled(text)[0] if pairs else None
    if plan is None:
        return
    folder = tmp_path_factory.mktemp("order")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_take_turns", in_any_order(seed))
        patch.chdir(folder)
        directory, summary, code = run_plan(
            plan, Origin(text, "k.yaml", folder), lambda event: None, transport="inline"
        )
    assert (code, summary.state) == (0, "complete"), (text, summary.reason)
    for name, (a, b) in pairs.items():
        numbers = sorted(set(some[a].numbers(frames)) & set(some[b].numbers(frames)))
        with h5py.File(folder / directory / summary.tables[f"c{name}"].file) as file:
            rows = {key: column[()] for key, column in file["entry_0000/measurement"].items()}
        assert rows["frame_number"].tolist() == numbers
        one, other = (counter(np.array(numbers), Rect(0, 0, 8, 4), 8, dataset=i).sum((1, 2)) for i in (a, b))
        np.testing.assert_array_equal(rows["all_sum"], one + 2.0 * other)
