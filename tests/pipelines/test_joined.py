"""Groups that are there at the same time are written together: every frame is in its place all the same."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lima2cli.geometry import Rule
from lima2cli.ranks.detector import _runs
from lima2cli.transport.inline import InlinePort
from tests.running import TRANSPORTS, mpi, run, truth

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
    from tests.compiling import plan_of

    stored: list[int] = []
    plain = InlinePort.store_words

    def counted(port: InlinePort, rank: int, word: int, values: np.ndarray, step: int = 1) -> None:
        stored.append(len(values))
        plain(port, rank, word, values, step)

    monkeypatch.setattr(InlinePort, "store_words", counted)
    monkeypatch.chdir(tmp_path)
    from lima2cli.job.run import run_plan
    from lima2cli.runs.saved_plan import Origin

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
