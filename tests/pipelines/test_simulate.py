"""Simulations: the measures, the verdict, the search for a rate, REMU as a stand-in, and the command."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.accounting.summary import (
    DetectorFigures,
    FirstLost,
    FlowReport,
    FlowSummary,
    KernelCost,
    PaceFigures,
    RankUsage,
    Rates,
    ReceiverFigures,
    Resources,
    Summary,
    WorkerSummary,
)
from lima2cli.check import Checked, check_text, compile_again
from lima2cli.detectors.jungfrau_packets import Charge, codes
from lima2cli.detectors.remu import Remu
from lima2cli.detectors.scenes import Gradient
from lima2cli.frames import DatasetInfo
from lima2cli.inputs.stacks import FileStore
from lima2cli.messages import Histogram, Pace, bin_of, bins_of, bounds, merged
from lima2cli.plan.ir import Plan
from lima2cli.simulate.simulation import (
    MOST_PROBES,
    Probe,
    Simulation,
    enough_frames,
    max_rate,
    next_rate,
    simulated,
    whole_groups,
)
from lima2cli.simulate.verdict import judge, warnings
from tests.running import EXAMPLES, lima2, needs_mpi

NUMBERS = st.integers(0, 2**52)


@given(NUMBERS)
def test_every_number_has_one_narrow_bin(number: int) -> None:
    first, beyond = bounds(bin_of(number))
    assert first <= number < beyond
    assert beyond - first <= max(1, number / 16)
    assert bin_of(beyond) == bin_of(number) + 1


@given(st.lists(st.integers(-5, 2**52), min_size=1, max_size=50))
def test_bins_of_many_are_those_of_each(numbers: list[int]) -> None:
    assert bins_of(np.array(numbers, np.int64)).tolist() == [bin_of(number) for number in numbers]


@given(st.lists(NUMBERS, min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]), st.integers(0, 200))
def test_quantiles_of_merged_histograms_are_those_of_all_numbers(numbers: list[int], share: float, cut: int) -> None:
    one, other = Histogram(), Histogram()
    for number in numbers[:cut]:
        one.add(number)
    other.add_all(np.array(numbers[cut:], np.int64))
    whole = merged([one, other])
    assert len(whole) == len(numbers)
    assert whole.largest == max(numbers)
    exact = float(np.quantile(numbers, share, method="inverted_cdf"))
    found = whole.quantile(share)
    assert found is not None
    assert abs(found * 1e9 - exact) <= exact / 32 + 1


def test_no_numbers_have_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None


def test_the_pace_leaves_the_first_batch_out_and_counts_what_never_came() -> None:
    pace = Pace()
    assert pace.hz(0) is None
    for number, when in ((9, 5.0), (19, 5.1), (49, 5.4)):  # 20 to 39 never came
        numbers = np.arange(number - 9, number + 1, dtype=np.uint64)
        pace.note(int(when * 1e9), numbers, np.array([when * 1e9 - 1000], np.uint64))
    assert pace.hz(0) == pytest.approx(100)
    assert pace.hz(20) == pytest.approx(50)  # where they were lost
    assert pace.frames == 30
    assert len(pace.latency) == 3


def made_up(**changes: Any) -> Summary:
    """The summary of a run that kept up with 1 kHz for 5 s; ``changes`` by the names of its figures."""
    figures: dict[str, Any] = {
        "asked": 1000.0, "hz": 1000.0, "sent": 1000.0, "lost": 0, "first": None, "state": "complete", "overrun": False,
        "busy": 1.0, "stage": 0.6, "commit": 0.1, "flush": 0.0, "behind": 0.0, "hold": 0.256, "missing": 0,
        "worker": None, "paced_s": 5.0,
    }  # fmt: skip
    it = {**figures, **changes}
    came = 5000 - it["lost"]
    kernels = (
        KernelCost(("dark", "counters"), 5000, it["stage"], it["commit"]),
        KernelCost(("save",), 5000, 0.05, 0.05),
    )
    first = None if it["first"] is None else FirstLost(it["first"], "r0")
    report = FlowReport(None, "ok", {"r0": came}, {}, {}, first)
    resources = Resources(
        ranks=tuple(RankUsage(rank, role, 1.0, 1 << 20) for rank, role in enumerate("abc")),
        peak_fill={},
        put_s={},
        receivers={"r0": ReceiverFigures(2, it["busy"], 1.0, came, kernels)},
        latency={},
        paces={"data": {"r0": PaceFigures(came, it["hz"], it["paced_s"])}},
        hold_s={"data": it["hold"]},
        detectors={"1": DetectorFigures(0.5, it["flush"], 1.0, it["behind"])},
    )
    return Summary(
        state=it["state"],
        reason="a node failed",
        overrun=it["overrun"],
        file=None,
        frames=5000,
        flows={"data": FlowSummary(5000, came, it["lost"], 0, it["missing"], (), 0.0, report)},
        channels={},
        tables={},
        seconds=5.0,
        rates=Rates(it["asked"], it["sent"], {}),
        resources=resources,
        workers=() if it["worker"] is None else (WorkerSummary(3, "w", 1, 5000, 0, it["worker"]),),
    )


def test_it_keeps_up_where_results_come_as_fast_as_frames() -> None:
    found = judge(made_up())
    assert found.kept_up is True
    assert (found.asked_hz, found.sustained_hz, found.capacity_hz) == (1000, 1000, 5000)
    assert found.bottleneck is not None
    assert found.bottleneck.nodes == ("dark", "counters")
    assert found.bottleneck.share == pytest.approx(0.14)
    assert found.bottleneck.frame_s == pytest.approx(0.7 / 5000)


def test_lost_frames_are_a_no_with_the_first_of_them_and_when() -> None:
    found = judge(made_up(lost=4000, first=10, hz=200.0, busy=4.9, stage=4.5))
    assert found.kept_up is False
    assert found.first_lost is not None
    assert (found.first_lost.frame, found.first_lost.receiver) == (10, "r0")
    assert found.first_lost.time_s == pytest.approx(0.266)  # when another took its place
    assert found.sustained_hz == 200
    assert found.lost == 4000
    assert "larger buffers" not in found.reason


def test_a_pause_that_the_buffers_do_not_bridge_is_told_as_such() -> None:
    assert "larger buffers would help" in judge(made_up(lost=20, first=10)).reason


def test_results_that_come_ever_later_are_a_no_before_anything_is_lost() -> None:
    found = judge(made_up(hz=950.0))
    assert found.kept_up is False
    assert found.behind is not None
    assert found.behind.lasts_s == pytest.approx(0.256 * 1000 / 50)  # depth / (rate in - rate out)


@pytest.mark.parametrize(("hz", "kept_up"), [(1000.0, True), (300.0, False)])
def test_without_a_rate_what_was_sent_counts(hz: float, kept_up: bool) -> None:
    found = judge(made_up(hz=hz, hold=None, behind=None, asked=None))
    assert (found.kept_up, found.sustained_hz) == (kept_up, hz)
    assert found.behind is None or found.behind.lasts_s is None


def test_a_hiccup_at_the_end_is_none() -> None:
    assert judge(made_up(hz=985.0, paced_s=1.0)).kept_up is True  # 15 ms late


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sent": 800.0, "hz": 800.0}, "emulator could not send faster"),
        ({"flush": 1.0}, "blocked in transfers"),
        ({"lost": 20, "first": 10, "behind": 0.5}, "burst"),
        ({"state": "stopped"}, "stopped"),
        ({"state": "failed"}, "a node failed"),
    ],
)
def test_what_the_emulator_could_not_show_is_unknown(changes: Mapping[str, Any], word: str) -> None:
    found = judge(made_up(**changes))
    assert found.kept_up is None
    assert word in found.reason


def test_a_late_emulator_does_not_excuse_receivers_that_are_too_slow() -> None:
    assert judge(made_up(sent=800.0, hz=200.0, lost=3000, first=10, behind=0.5, busy=4.9)).kept_up is False


def test_the_bottleneck_may_be_receiving_or_a_worker() -> None:
    receiving = judge(made_up(busy=4.0)).bottleneck
    assert receiving is not None
    assert receiving.nodes == ()
    worker = judge(made_up(worker=4.8)).bottleneck
    assert worker is not None
    assert (worker.nodes, worker.place) == (("w",), "worker 3")
    slow = judge(made_up(worker=4.8, lost=4000, first=10, hz=200.0))
    assert slow.capacity_hz == pytest.approx(1000 / 4.8)
    assert "larger buffers" not in slow.reason


def test_figures_of_a_small_machine_are_warned_of() -> None:
    assert not warnings(made_up(), cores=3)
    assert "3 ranks share 2 cores" in warnings(made_up(), cores=2)[0]
    assert "one process" in warnings(made_up(), cores=2, inline=True)[0]
    assert "late by up to 200 ms" in warnings(made_up(behind=0.2), cores=8)[0]
    assert "7 frames were missing" in warnings(made_up(missing=7), cores=8)[0]


def search(capacity: float, first: float, most: float = float("inf"), fails: int = 0) -> list[Probe]:
    """Return the rates tried of a pipeline that can do so much, by an emulator that sends ``most``.

    fails  first answers that are wrong
    """
    probes: list[Probe] = []
    while (hz := next_rate(probes, first)) is not None:
        kept = hz <= capacity and len(probes) >= fails
        probes.append(Probe(hz, None if hz > most else kept, min(hz, capacity), capacity))
    return probes


@settings(deadline=None)
@given(st.floats(0.5, 1e5), st.floats(0.5, 1e5))
def test_the_highest_rate_is_found_within_a_few_probes(capacity: float, first: float) -> None:
    probes = search(capacity, first)
    found = max_rate(probes)
    assert found.bounded
    assert found.hz is not None
    assert 0.94 * capacity <= found.hz <= capacity
    assert len(probes) < MOST_PROBES


def test_the_emulators_limit_is_not_the_pipelines() -> None:
    found = max_rate(search(5000.0, 100.0, most=1000.0))
    assert not found.bounded
    assert found.hz is not None
    assert 900 < found.hz <= 1000


def test_a_rate_that_fails_once_although_receivers_have_time_is_tried_again() -> None:
    probes = search(200.0, 100.0, fails=1)
    assert [probe.hz for probe in probes[:2]] == [100, 100]
    found = max_rate(probes).hz
    assert found is not None
    assert 0.94 * 200 <= found <= 200


PIPELINE = """
lima2: 1
detector: {{remu: {{image: {{width: 32, height: 32}}, datasets: {{data: {{dtype: uint16}}}}}}}}
acquisition: {{frames: {frames}, rate: 1 kHz}}
receivers: 2
flows:
  data:
    dataset: data
    slices: {{start: {start}, step: {step}}}
    rules: {{blocks_per_group: {blocks}}}
    events: {{group: {group}, end: {end}}}
nodes: {{save: {{input: data, checkpoint: {{}}}}}}
"""


def compiled(text: str, base: Path = Path()) -> Checked:
    checked = check_text(text, "p.yaml", base, cores=2, environment={})
    assert checked.plan is not None, list(checked.findings)
    return checked


def planned(checked: Checked, asked: Simulation, base: Path = Path()) -> Plan:
    assert checked.pipeline is not None
    again = compile_again(checked, simulated(checked.pipeline, asked), base, cores=2)
    assert again.plan is not None, list(again.findings)
    return again.plan


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.floats(1, 1e4))
def test_the_number_of_frames_leaves_no_group_that_nobody_tells_of(
    start: int, step: int, blocks: int, group: int, hz: float
) -> None:
    frames = start + 2 * step * blocks * group
    checked = compiled(PIPELINE.format(frames=frames, start=start, step=step, blocks=blocks, group=group, end="false"))
    assert checked.plan is not None
    enough = enough_frames(checked.plan, 1 / hz)
    assert enough >= 5 * hz
    plan = planned(checked, Simulation(1 / hz, enough))  # an error of the compiler otherwise
    rule = plan.gdts[0].rule
    assert enough >= 2 * rule.depth * rule.blocks * rule.buffers * step
    assert whole_groups(plan.gdts, enough) == enough


def test_flows_that_are_told_at_the_end_keep_the_frames_that_their_buffers_are_made_for() -> None:
    checked = compiled(PIPELINE.format(frames=100, start=0, step=1, blocks=1, group=0, end="true"))
    assert checked.plan is not None
    assert enough_frames(checked.plan, 1e-3) == 100


def examples() -> Iterator[str]:
    for path in sorted(EXAMPLES.glob("*.yaml")):
        if "\nlima2:" in (text := path.read_text()) and "detector:" in text:
            yield path.name


@pytest.mark.parametrize("name", list(examples()))
@pytest.mark.parametrize("saves", [True, False])
def test_remu_stands_in_for_the_detector_of_every_example(name: str, saves: bool) -> None:
    checked = compiled((EXAMPLES / name).read_text(), EXAMPLES)
    before = checked.plan
    assert before is not None
    plan = planned(checked, Simulation(1e-3, enough_frames(before, 1e-3), saves=saves), EXAMPLES)
    assert isinstance(plan.detector, Remu)
    for key in ("name", "image", "modules", "channels", "gap_value", "pixel_size", "saturation"):
        assert getattr(plan.info, key) == getattr(before.info, key), key
    assert [replace(it, frames=None) for it in before.info.datasets] == list(plan.info.datasets)
    assert not any(gdt.waits for gdt in plan.gdts)
    assert [gdt.parts for gdt in plan.gdts] == [gdt.parts for gdt in before.gdts]
    assert (plan.period_s, plan.repeat) == (1e-3, 1)
    assert plan.output_directory == "runs/{name}_sim_{run:04d}"
    if saves:
        assert set(plan.channels) == set(before.channels)
    else:
        assert not plan.channels
        assert set(plan.tables) == set(before.tables) | set(before.channels)
    with FileStore(EXAMPLES) as files:  # what it says of itself is what the plan was compiled with
        said = plan.detector.described(files)
    assert (said.modules, said.datasets) == (plan.info.sensor.modules, plan.info.sensor.datasets)


def test_a_jungfrau_is_played_with_charge() -> None:
    gain = {"pedestal": (3000.0, 15000.0, 15000.0), "gain": (41.0, -1.44, -0.1), "photon_energy": 12.4e3}
    charge = Charge(scene=Gradient(), gain_mode="dynamic", **gain)  # type: ignore[arg-type]
    checked = compiled((EXAMPLES / "jungfrau.yaml").read_text(), EXAMPLES)
    assert checked.plan is not None
    info = checked.plan.info
    with FileStore(EXAMPLES) as files:
        made = charge.sources(info.datasets[0], info.image, info.modules[:1], files)[0].get(range(2))
        bits = DatasetInfo("adc", 0, "uint16", 10)
        photons = Gradient().sources(bits, info.image, info.modules[:1], files)[0].get(range(2))
    table = codes(gain["pedestal"], gain["gain"], gain["photon_energy"], "dynamic")  # type: ignore[arg-type]
    assert made.dtype == np.uint16
    assert set(np.unique(made)) <= set(table.tolist())
    assert made.shape == photons.shape
    assert len(np.unique(made)) > 100


SLOW = """
lima2: 1
detector: {remu: {image: {width: 32, height: 32}, datasets: {data: {dtype: uint16}}}}
acquisition: {frames: 100000, rate: 1 kHz}
flows: {data: {dataset: data, buffers: {frames: 64}}}
nodes:
  sleepy: {input: data, python: {function: "slow.py:slow"}}
  saved: {input: sleepy, io_hdf5: {}}
"""

FUNCTION = """
import time

def slow(frames, numbers):
    time.sleep(0.005 * len(frames))
    return frames
"""


def answer(cwd: Path, *options: str, text: str = SLOW, transport: str = "inline") -> tuple[int, dict[str, Any]]:
    """``lima2 simulate`` of a pipeline whose python node sleeps 5 ms for each frame: exit code, and the report."""
    (cwd / "slow.py").write_text(FUNCTION)
    (cwd / "slow.yaml").write_text(text)
    done = lima2("simulate", "slow.yaml", "--format", "json", "--transport", transport, *options, cwd=cwd)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("transport", ["inline", pytest.param("mpi", marks=[pytest.mark.mpi, needs_mpi])])
def test_a_node_that_is_too_slow_is_named_with_what_was_lost(tmp_path: Path, transport: str) -> None:
    code, found = answer(tmp_path, "--frames", "500", transport=transport)
    assert code == 11
    assert found["kept_up"] is False
    assert found["bottleneck"]["nodes"] == ["sleepy"]
    assert found["bottleneck"]["frame_s"] >= 0.005
    assert found["first_lost"]["flow"] == "data"
    assert 40 < found["sustained_hz"] <= 200
    flow = found["summary"]["flows"]["data"]
    assert flow["expected"] == 500 == flow["received"] + flow["lost"]
    assert found["first_lost"]["frame"] == flow["missing_frames"][0][0]
    assert found["summary"]["resources"]["peak_fill"]["data"]["receiver0"] == 1
    latency = found["summary"]["resources"]["latency"]["data"]
    assert 0.005 <= latency["p50_s"] <= latency["p99_s"] <= latency["max_s"] * 1.04
    kernels = found["summary"]["resources"]["receivers"]["receiver0"]["kernels"]
    assert [(kernel["nodes"], kernel["frames"]) for kernel in kernels] == [
        (["sleepy"], flow["received"]), (["saved"], flow["received"])
    ]  # fmt: skip
    assert found["directory"] is None
    assert not any((tmp_path / "runs").iterdir())  # no files, and no link to them


def test_the_same_pipeline_keeps_up_with_less(tmp_path: Path) -> None:
    for _ in range(3):  # other programs may hold the machine up
        code, found = answer(tmp_path, "--rate", "0.05x", "--frames", "40")
        if code == 0:
            break
    assert (code, found["kept_up"], found["asked_hz"]) == (0, True, 50)
    assert found["sustained_hz"] == pytest.approx(50, rel=0.05)
    assert found["summary"]["resources"]["peak_fill"]["data"]["receiver0"] < 0.5


def test_faults_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    text = SLOW.replace("sleepy: {input: data, python", "unused: {input: data, python").replace("sleepy", "data")
    seen = []
    for seed in ("5", "5", "6"):
        options = ("--rate", "500Hz", "--frames", "60", "--fault", "dropped:rate=0.2", "--seed", seed, "--no-save")
        _, found = answer(tmp_path, *options, text=text)
        assert not found["summary"]["channels"]
        assert found["summary"]["flows"]["data"]["lost"] == 0
        assert found["summary"]["flows"]["data"]["missing"] > 0
        seen.append(found["summary"]["flows"]["data"]["missing_frames"])
    assert seen[0] == seen[1] != seen[2]


def test_a_flow_that_stops_stops_and_its_files_can_be_kept(tmp_path: Path) -> None:
    text = SLOW.replace("buffers: {frames: 64}", "overrun: stop, buffers: {frames: 16}")
    code, found = answer(tmp_path, "--frames", "2000", "--keep", "--report", "report.json", text=text)
    assert code == 11
    assert "the run stopped" in found["reason"]
    assert found["directory"] == "runs/slow_sim_0001"
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert not (tmp_path / "runs" / "latest").exists()
    assert lima2("inspect", "--verify", found["directory"], cwd=tmp_path).returncode == 0


def test_the_search_lands_near_what_the_node_can_do(tmp_path: Path) -> None:
    code, found = answer(tmp_path, "--find-max-rate", "--rate", "150Hz", "--no-save", "--frames", "60")
    assert code == 0
    assert 60 <= found["max_rate_hz"] <= 230  # 200 on a machine of one's own
    assert found["probes"][0]["hz"] == 150
    assert found["max_rate_hz"] in [probe["hz"] for probe in found["probes"] if probe["kept_up"]]


def test_people_get_the_answer_first(tmp_path: Path) -> None:
    answer(tmp_path, "--frames", "10")
    done = lima2("simulate", "slow.yaml", "--frames", "300", "--transport", "inline", cwd=tmp_path)
    assert done.stdout.startswith("slow.yaml keeps up at 1 kHz: no, frame ")
    assert "bottleneck    sleepy on receiver0: " in done.stdout
    assert "data: `overrun: wait` is simulated as `continue`" in done.stderr


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--rate", "2y"), "a factor such as `2x`"),
        (("--rate", "-1"), "a factor such as `2x`"),
        (("--fault", "droped"), "did you mean `dropped`?"),
        (("--fault", "died:frame=1,module=9"), "there is no module 9"),
        (("--find-max-rate", "-o", "x"), "several runs"),
    ],
)
def test_what_cannot_be_simulated_is_said(tmp_path: Path, options: tuple[str, ...], word: str) -> None:
    (tmp_path / "slow.yaml").write_text(SLOW)
    (tmp_path / "slow.py").write_text(FUNCTION)
    done = lima2("simulate", "slow.yaml", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert word in done.stderr


def test_a_disk_is_not_filled_unasked(tmp_path: Path) -> None:
    text = SLOW.replace("width: 32, height: 32", "width: 11000, height: 11000").replace("frames: 64}", "frames: 1}")
    (tmp_path / "large.yaml").write_text(text.replace("slow.py:slow", "numpy:copy"))
    done = lima2("simulate", "large.yaml", cwd=tmp_path)
    assert done.returncode == 12
    assert "give fewer --frames, or --no-save" in done.stderr
    assert not (tmp_path / "runs").exists()
