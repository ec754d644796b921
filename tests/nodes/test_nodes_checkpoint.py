"""checkpoint: which frames it notes, and when."""

import numpy as np
import pytest

from lima2cli.nodes.base import Inputs
from tests.node_inputs import MemoryFiles, block, node, pixels, spec_of

NONE = MemoryFiles()
SPEC = spec_of("uint16", 2, 2)


def test_columns() -> None:
    table = node("checkpoint").infer(Inputs.of(SPEC, NONE))
    assert dict(table.columns) == dict.fromkeys(("detector_time", "receive_time", "latency"), "float64")
    assert table.default == "latency"
    assert set(table.units.values()) == {"s"}


def test_times_in_seconds_and_the_latency_to_the_nanosecond() -> None:
    use = node("checkpoint")
    given = block(pixels("uint16", (3, 2, 2)), first=7)
    given.times[:] = [1_700_000_000_000_000_000 + k for k in (1, 2, 5)]
    rows = use.finish(use.bind(Inputs.of(SPEC, NONE)).step(given, 1_700_000_000_000_000_003))
    assert rows["frame_number"].tolist() == [7, 8, 9]
    assert rows["frame_number"].dtype == np.uint64
    assert rows["latency"].tolist() == [2e-9, 1e-9, -2e-9]
    assert rows["detector_time"].tolist() == [1.7e9] * 3
    assert rows["receive_time"].tolist() == [1.7e9] * 3
    assert {str(rows[name].dtype) for name in ("detector_time", "receive_time", "latency")} == {"float64"}


@pytest.mark.parametrize(
    ("every", "first", "step", "noted"), [(3, 2, 1, [3, 6, 9]), (4, 10, 10, [20, 40]), (100, 1, 1, []), (1, 5, 2, None)]
)
def test_every_keeps_multiples(every: int, first: int, step: int, noted: list[int] | None) -> None:
    use = node("checkpoint", every=every)
    given = block(pixels("uint16", (8 if step == 1 else 4, 2, 2)), first, step)
    rows = use.finish(use.bind(Inputs.of(SPEC, NONE)).step(given, 10**9))
    expected = given.numbers.tolist() if noted is None else noted
    assert rows["frame_number"].tolist() == expected
    assert {len(values) for values in rows.values()} == {len(expected)}


def test_the_partial_owns_its_arrays() -> None:
    use, given = node("checkpoint"), block(pixels("uint16", (2, 2, 2)))
    partial = use.bind(Inputs.of(SPEC, NONE)).step(given, 5)
    given.numbers[:], given.times[:] = 9, 9
    assert partial["frame_number"].tolist() == [0, 1]
    assert partial["detector_ns"].tolist() == [0, 1_000_000]


def test_a_frame_of_two_parts_is_there_when_the_last_part_is() -> None:
    use, given = node("checkpoint"), block(pixels("uint16", (2, 2, 2)))
    reducer = use.bind(Inputs.of(SPEC, NONE))
    rows = use.finish(use.merge(reducer.step(given, 3_000_000_000), reducer.step(given, 2_000_000_000)))
    assert rows["receive_time"].tolist() == [3.0, 3.0]
