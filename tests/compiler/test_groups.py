"""`blocks_per_group: auto`: the fewest blocks that keep group events under 2 kHz, and what groups must fit."""

from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lima2cli.cli.plan_text import show_plan
from tests.compiling import compiled, figures, plan_of
from tests.running import TRANSPORTS, run, truth

HEAD = """
lima2: 1
detector: {remu: {image: {width: 64, height: 64}, datasets: {A: {dtype: uint16}, B: {dtype: uint16}},
  modules: {columns: 2, width: 32, height: 64}, scene: {counter: {}}}}
"""
SAVE = "nodes: {save: {input: F, io_hdf5: {}}}\n"


def blocks(text: str) -> dict[str, int]:
    """Blocks per group of each GDT."""
    return {name: it["blocks_per_group"] for name, it in figures(plan_of(HEAD + text))["gdts"].items()}


def one(flow: str, acquisition: str = "rate: 10 kHz, frames: 1000", receivers: int = 1) -> int:
    nodes = SAVE.replace("{}", "{layout: virtual}") if "modules" in flow else SAVE
    text = f"acquisition: {{{acquisition}}}\nreceivers: {receivers}\nflows: {{F: {{dataset: A{flow}}}}}\n{nodes}"
    return next(iter(blocks(text).values()))


@pytest.mark.parametrize(
    ("flow", "size"),
    [
        ("", 6),
        (", rules: {blocks_per_group: auto}", 6),
        (", rules: {}", 1),
        (", rules: {start_slot: 1}", 1),
        (", rules: {blocks_per_group: 3}", 3),
        (", slices: {step: 3}", 2),
        (", slices: {step: 10}", 1),
        (", events: {group: 2, end: true}", 3),
        (", events: {group: 0, end: true}, buffers: {frames: 1000}", 1),
        (", events: {group: 1, end: false}", 8),
        (", buffers: {frames: 20}", 5),
        (", buffers: {frames: 3}", 1),
        (", events: {group: 4, end: true}, buffers: {frames: 4}", 1),
        (", rules: {blocks_per_group: auto, cycle: oneshot}, buffers: {frames: 1001}", 7),
        (", rules: {blocks_per_group: auto, cycle: oneshot}, buffers: {frames: 997}", 1),
        (", dispatch: modules", 6),
    ],
)
def test_the_size_of_groups(flow: str, size: int) -> None:
    assert one(flow) == size


@pytest.mark.parametrize(
    ("acquisition", "size"),
    [
        ("frames: 1000", 1),
        ("frames: 1000, rate: 1999", 1),
        ("frames: 1000, rate: 2 kHz", 2),
        ("frames: 1000, period: 500 us", 2),
        ("frames: 1000, rate: 10 kHz, trigger: software", 1),
        ("frames: 1000, rate: 10 kHz, trigger: external, frames_per_trigger: 100", 10),
        ("frames: 1000, rate: 10 kHz, trigger: gate, frames_per_trigger: 7", 7),
        ("frames: 0, rate: 1 MHz", 501),
    ],
)
def test_without_a_rate_and_with_triggers(acquisition: str, size: int) -> None:
    assert one("", acquisition) == size


def test_receivers_share_the_events() -> None:
    assert [one("", receivers=n) for n in (1, 2, 3, 6)] == [6, 3, 2, 1]
    assert one(", dispatch: modules", receivers=2) == 6, "each gets all frames"
    nodes = "nodes: {a: {input: F, checkpoint: {}}, b: {input: G, checkpoint: {}}}"
    two = f"flows: {{F: {{dataset: A}}, G: {{dataset: B}}}}\n{nodes}"
    assert blocks(f"acquisition: {{rate: 5 kHz}}\n{two}") == {"F": 6, "G": 6}
    given_g = two.replace("dataset: B", "dataset: B, rules: {blocks_per_group: 5}")
    assert blocks(f"acquisition: {{rate: 5 kHz}}\n{given_g}") == {"F": 6, "G": 5}, "what is given counts"


def test_the_plan_shows_the_number() -> None:
    plan = plan_of(f"{HEAD}acquisition: {{rate: 10 kHz}}\nflows: {{F: {{dataset: A}}}}\n{SAVE}")
    header, row = show_plan(plan).partition("data flows\n")[2].splitlines()[:2]
    assert row[header.index("group") :].split()[0] == "6"


@pytest.mark.parametrize("n", [4, 7, 10])
def test_windows_stay_whole_where_several_receivers_share_a_flow(n: int) -> None:
    nodes = (
        f"nodes: {{sum: {{input: F, accumulate: {{frames: {n}}}}}, twice: {{input: sum, accumulate: {{frames: 2}}}}, "
    )
    nodes += "save: {input: twice, io_hdf5: {}}}"
    text = f"acquisition: {{frames: 1000, rate: RATE}}\nreceivers: N\nflows: {{F: {{dataset: A}}}}\n{nodes}"
    for rate in ("100 Hz", "10 kHz", "100 kHz"):
        alone = blocks(text.replace("RATE", rate).replace("N", "1"))["F"]
        assert alone == {"100 Hz": 1, "10 kHz": 6, "100 kHz": 51}[rate]
        (shared,) = blocks(text.replace("RATE", rate).replace("N", "2")).values()
        assert shared == 2 * n * max(1, ceil({"100 Hz": 0, "10 kHz": 3, "100 kHz": 26}[rate] / (2 * n)))


JOIN = """
receivers: 2
flows:
  F: {dataset: A, slices: {step: STEP_F, start: START}}
  G: {dataset: B, slices: {step: STEP_G, start: START}MORE}
nodes:
  j: {inputs: {a: F, b: G}, expression: {expr: a + b}}
  save: {input: j, io_hdf5: {}}
"""


def joined(step_f: int, step_g: int, start: int = 0, more: str = "", rate: str = "20 kHz", frames: int = 0) -> str:
    text = JOIN.replace("STEP_F", str(step_f)).replace("STEP_G", str(step_g)).replace("START", str(start))
    return f"{HEAD}acquisition: {{frames: {frames}, rate: {rate}}}{text.replace('MORE', more)}"


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 9), st.sampled_from([1500, 20_000, 333_333]))
def test_flows_that_are_joined_have_groups_of_one_span(step_f: int, step_g: int, start: int, rate: int) -> None:
    plan, findings = compiled(joined(step_f, step_g, start, rate=str(rate)))
    assert plan is not None, [item.message for item in findings]
    f, g = plan.gdts
    assert f.rule.blocks * f.rule.step == g.rule.blocks * g.rule.step
    events = sum(rate / (it.rule.step * it.rule.blocks * 2) for it in plan.gdts)
    assert events < 2000


@pytest.mark.parametrize(("given_g", "f"), [("4", 8), ("5", 10), ("1", 2)])
def test_a_flow_that_is_joined_with_one_whose_groups_are_given(given_g: str, f: int) -> None:
    plan = plan_of(joined(1, 2, more=f", rules: {{blocks_per_group: {given_g}}}"))
    assert [gdt.rule.blocks for gdt in plan.gdts] == [f, int(given_g)]


@example(296_000, 1, 2, 2, 1, None, False, 446, "")
@given(
    st.integers(1, 400_000), st.integers(1, 5), st.integers(0, 7), st.integers(1, 3), st.integers(1, 4),
    st.sampled_from([None, 1, 5, 16, 100, 1000]), st.booleans(), st.integers(1, 2000),
    st.sampled_from(["", ", dispatch: modules"]),
)  # fmt: skip
def test_what_groups_of_one_block_can_do_auto_can(
    rate: int, step: int, start: int, receivers: int, period: int, size: int | None, end: bool, frames: int, more: str
) -> None:
    assume(not more or receivers < 3)
    buffers = "" if size is None else f", buffers: {{frames: {size}}}"
    flow = (
        f"slices: {{start: {start}, step: {step}}}, events: {{group: {period}, end: {str(end).lower()}}}{buffers}{more}"
    )
    text = f"acquisition: {{frames: {frames}, rate: {rate}}}\nreceivers: {receivers}\n"
    text = f"{HEAD}{text}flows: {{F: {{dataset: A, {flow}RULES}}}}\n{SAVE}"
    text = text.replace("{}}}", "{layout: virtual}}}") if more else text
    single, _ = compiled(text.replace("RULES", ", rules: {}"))
    assume(single is not None)
    plan, findings = compiled(text.replace("RULES", ""))
    assert plan is not None, [item.message for item in findings]
    for gdt in plan.gdts:
        rule, share = gdt.rule, 1 if more else receivers
        events = [rate / (step * n * share * period) for n in (rule.blocks, rule.blocks - 1) if n]
        roomy = end and (rule.blocks + 1) * max(4, period) <= rule.slots
        written = [rule.written(index, gdt.selected or 0) for index in range(rule.buffers)]
        whole = max(written) <= rule.slots  # then nothing has to be written twice
        assert rule.blocks == 1 or rule.blocks * max(4, period) <= rule.slots or whole
        if roomy:
            assert events[0] < 2000
        if end and len(events) > 1:
            assert events[1] >= 2000 * (1 - 1e-9), "the fewest"


RUN = """
acquisition: {frames: 601, rate: 20 kHz}
receivers: 2
flows:
  F: {dataset: A}
  G: {dataset: B, slices: {step: 3}}
nodes:
  sum: {input: F, accumulate: {frames: 4}}
  sums: {input: sum, io_hdf5: {}}
  j: {inputs: {a: F, b: G}, expression: {expr: a + b}}
  save: {input: j, io_hdf5: {}}
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_run_with_groups_that_were_chosen_saves_everything(transport: str, tmp_path: Path) -> None:
    """The last group is partial: the end event tells of it, by default."""
    ran = run(HEAD + RUN, tmp_path, transport)
    summary = truth(ran)
    assert ran.code == 0, ran.output
    assert blocks(RUN) == {"F": 12, "G": 4}
    assert {name: flow["received"] for name, flow in summary["flows"].items()} == {"F": 601, "G": 201}
    assert ran.saved("save")[1].tolist() == list(range(0, 601, 3))
    frames, numbers, status = ran.saved("sums")
    assert numbers[:150].tolist() == list(range(0, 600, 4))
    assert not status[:150].any()
    expected: list[Any] = [sum((7919 * f) % 65536 for f in range(n, n + 4)) for n in range(0, 600, 4)]
    assert frames[:150, 0, 0].tolist() == expected
