"""Collectives of receivers that hold parts of frames: whoever comes first, and whatever is lost."""

import subprocess
import sys
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lima2cli.graph.collectives import UNDER_WAY, Reduction
from lima2cli.graph.protocol import END, Arrival
from lima2cli.job.launch import find_mpiexec
from lima2cli.nodes.base import Partial
from lima2cli.transport.inline import CollectiveTable, InlineCollectiveGroup
from tests import ROOT
from tests.mpi.meeting_checks import Case, members, play
from tests.running import needs_mpi


@pytest.mark.parametrize("kind", ["gather", "reduce"])
@given(st.integers(1, 4), st.integers(0, 3 * UNDER_WAY), st.integers(1, 3), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_inline(kind: str, size: int, groups: int, last_blocks: int, seed: int) -> None:
    case, table = Case(seed, size, groups, last_blocks), CollectiveTable(tuple(range(10, 10 + size)))
    own = members(case, list(range(size)), lambda rank: InlineCollectiveGroup(table, 10 + rank), kind)
    play(own, Random(seed + 1))
    assert [text for member in own for text in member.wrong()] == []


@pytest.mark.mpi
@needs_mpi
def test_mpi() -> None:
    command = [str(find_mpiexec()), "-n", "3", sys.executable, "-m", "mpi4py", "-m", "tests.mpi.meeting_checks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "all is well\n", done.stdout + done.stderr


def test_a_merge_that_fails_ends_nothing_else() -> None:
    """It is told once for each group; the others go on with theirs, and the end comes."""
    table = CollectiveTable((0, 1))

    def fail(one: Partial, other: Partial) -> Partial:
        raise ArithmeticError("no sum")

    good = Reduction("node", InlineCollectiveGroup(table, 0), lambda one, other: one)
    bad = Reduction("node", InlineCollectiveGroup(table, 1), fail)
    for node in (good, bad):
        for number in range(3):
            node.push(Arrival("f", number, rows={"frame_number": np.array([number], np.uint64)}))
        node.push(Arrival("f", END))
    seen: list[list[int]] = [[], []]
    failed = 0
    for _ in range(20):
        for lasts, node in zip(seen, (good, bad), strict=True):
            try:
                result = node.poll()
            except ArithmeticError:
                failed += 1
                continue
            if result is not None:
                lasts.append(result.last)
    assert seen == [[0, 1, 2, END], [0, 1, 2, END]]
    assert failed == 3
    assert good.idle
    assert bad.idle
