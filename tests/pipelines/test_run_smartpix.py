"""The deck's four data flows, taken from a SmartPix instead of REMU."""

import re
from pathlib import Path

import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.running import EXAMPLES, counter, covered, mpi, run, truth

SIZE = 2 * 512 + 4
MODULES = [Rect(x, y, 512, 512) for y in (0, 516) for x in (0, 516)]
SMARTPIX = """detector:
  smartpix:
    thresholds: [6 keV, 9 keV]
    depth: 12
    scene: {counter: {}}
"""


@pytest.mark.parametrize("transport", [mpi()])
def test_the_maze_of_a_smartpix(transport: str, tmp_path: Path) -> None:
    """Eight channels do for the four flows; frames, shares and events are the deck's, pixels those of the scene."""
    text = (EXAMPLES / "maze.yaml").read_text()
    text = re.sub(r"detector:\n.*?\n(?=\S)", SMARTPIX + "\n", text, flags=re.DOTALL)
    text = text.replace("period: 1 ms", "period: 2 ms").replace("beam_center: {x: 250, y: 250}", "title: smartpix")
    text = re.sub(r", title: maze", "", text)
    ran = run(
        text, tmp_path, transport, "--set", "receivers.receiver0.memspaces.dataMSpace.host.size=64 MiB", name="maze"
    )
    assert ran.code == 0, ran.output
    summary = truth(ran)
    flows = summary["flows"]
    assert {name: flow["received"] for name, flow in flows.items()} == {
        "FullDet1": 12, "FullDet2": 22, "GhostRoom": 22, "LeftCorridor": 114,
    }  # fmt: skip
    assert flows["LeftCorridor"]["receivers"] == {"receiver0": 58, "receiver1": 56}
    assert flows["LeftCorridor"]["group_events"] == {"receiver0": 14, "receiver1": 14}
    whole = Rect(0, 0, SIZE, SIZE)
    for node, dataset, step, source in (
        ("full1", 0, 10, whole),
        ("full2", 1, 5, whole),
        ("room", 0, 5, Rect(190, 190, 125, 78)),
    ):
        frames, numbers, status = ran.saved(node)
        assert numbers.tolist() == list(range(0, 114, step))[: len(numbers)]
        assert not status.any()
        scene = counter(numbers, source, SIZE, dataset=dataset, bits=12)
        np.testing.assert_array_equal(frames, np.where(covered(MODULES, source), scene, 0))
