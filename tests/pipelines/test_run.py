"""Pipelines run as users run them, and every pixel of what they saved, by frame number."""

from pathlib import Path

import numpy as np
import pytest

from lima2cli.geometry import Rect
from tests.running import EXAMPLES, TRANSPORTS, counter, covered, mpi, program, run

MAZE_MODULES = [Rect(x, y, 240, 240) for y in (0, 260) for x in (0, 260)]
MAZE_FLOWS = {
    "full1": (Rect(0, 0, 500, 500), 0, np.arange(0, 120, 10)),
    "full2": (Rect(0, 0, 500, 500), 1, np.arange(0, 110, 5)),
    "room": (Rect(190, 190, 125, 78), 0, np.arange(0, 110, 5)),
    "corridor": (Rect(35, 204, 89, 50), 0, np.arange(114)),
}


def maze_with_counter(gap_value: int) -> str:
    """The deck's example, its scene replaced by the one that every pixel can be told of; corridor saved raw."""
    text = (EXAMPLES / "maze.yaml").read_text()
    text = text.replace("scene: {rings: {seed: 1}}", "scene: {counter: {}}")
    text = text.replace("gap_value: 0", f"gap_value: {gap_value}")
    text = text.replace("corridor: {input: good,", "corridor: {input: LeftCorridor,")
    assert "counter: {}" in text
    return text


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_maze_pixel_for_pixel(transport: str, tmp_path: Path) -> None:
    ran = run(maze_with_counter(4711), tmp_path, transport, name="maze", by=program)
    assert ran.code == 0, ran.output
    assert "receiver2 is idle" in ran.output
    for node, (source, dataset, numbers) in MAZE_FLOWS.items():
        frames, found, status = ran.saved(node)
        assert found.tolist() == numbers.tolist()
        assert not status.any()
        expected = counter(found, source, 500, dataset=dataset)
        expected[:, ~covered(MAZE_MODULES, source)] = 4711
        np.testing.assert_array_equal(frames, expected)
    summary = ran.summary
    assert summary["state"] == "complete"
    assert {name: flow["received"] for name, flow in summary["flows"].items()} == {
        "FullDet1": 12,
        "FullDet2": 22,
        "GhostRoom": 22,
        "LeftCorridor": 114,
    }
    events = {name: (flow["group_events"], flow["end_events"]) for name, flow in summary["flows"].items()}
    assert events == {
        "FullDet1": ({"receiver0": 12}, {"receiver0": 0}),
        "FullDet2": ({"receiver0": 11, "receiver1": 11}, {"receiver0": 0, "receiver1": 0}),
        "GhostRoom": ({"receiver0": 0, "receiver1": 0}, {"receiver0": 1, "receiver1": 1}),
        "LeftCorridor": ({"receiver0": 14, "receiver1": 14}, {"receiver0": 1, "receiver1": 1}),
    }
    assert {name: channel["saved"] for name, channel in summary["channels"].items()} == {
        "corridor": 114,
        "full1": 12,
        "full2": 22,
        "room": 22,
    }


SHAPES = {
    "one frame a group": "rules: {}",
    "groups of three, last partial": "rules: {blocks_per_group: 3}\n    events: {group: 1, end: true}",
    "an event every second group": "rules: {blocks_per_group: 2}\n    events: {group: 2, end: true}",
    "rows and blocks aligned, header": "alignment: {block: 512, row: 64, header: 24, footer: 8}",
    "free slots at the start": "rules: {start_slot: 2}",
    "overwrite": "rules: {blocks_per_group: 2, placement: overwrite}",
}


@pytest.mark.parametrize(("receivers", "transport"), [(1, "inline"), (2, "inline"), (3, "inline"), mpi(1), mpi(3)])
def test_small_circular_buffers_lose_nothing(receivers: int, transport: str, tmp_path: Path) -> None:
    """All layouts in one pipeline, 4 groups deep, so that memory is used again and again."""
    flows = "\n".join(
        f"  F{i}:\n    dataset: D\n    source: {{x: 5, y: 3, width: 41, height: 30}}\n"
        f"    slices: {{start: {i}, step: {1 + i % 2}}}\n    {shape}\n    buffers: {{frames: 12}}"
        for i, shape in enumerate(SHAPES.values())
    )
    nodes = "\n".join(f"  save{i}: {{input: F{i}, io_hdf5: {{frames_per_file: 17}}}}" for i in range(len(SHAPES)))
    ran = run(
        f"""
lima2: 1
detector:
  remu:
    image: {{width: 50, height: 40}}
    datasets: {{D: {{dtype: uint16, bits: 12}}}}
    modules: {{columns: 3, rows: 2, width: 14, height: 18, gap: {{x: 4, y: 4}}}}
    gap_value: 9
    scene: {{counter: {{}}}}
acquisition: {{frames: 101}}
receivers: {receivers}
flows:
{flows}
nodes:
{nodes}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    modules = [Rect(18 * i, 22 * j, 14, 18) for j in range(2) for i in range(3)]
    source = Rect(5, 3, 41, 30)
    for i in range(len(SHAPES)):
        frames, numbers, status = ran.saved(f"save{i}")
        assert numbers.tolist() == list(range(i, 101, 1 + i % 2))
        assert not status.any()
        expected = counter(numbers, source, 50, bits=12)
        expected[:, ~covered(modules, source)] = 9
        np.testing.assert_array_equal(frames, expected)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_oneshot_buffer_that_fills_drops_the_rest_and_says_which(transport: str, tmp_path: Path) -> None:
    ran = run(
        """
lima2: 1
detector: {remu: {image: {width: 16, height: 8}, datasets: {D: {dtype: uint8}}, scene: {counter: {}}}}
acquisition: {frames: 50}
flows:
  F:
    dataset: D
    rules: {blocks_per_group: 2, cycle: oneshot}
    buffers: {frames: 9}
nodes: {save: {input: F, io_hdf5: {}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    flow = ran.summary["flows"]["F"]
    assert {key: flow[key] for key in ("expected", "received", "lost", "dropped", "missing")} == {
        "expected": 50,
        "received": 8,
        "lost": 0,
        "dropped": 42,
        "missing": 0,
    }
    assert flow["missing_frames"] == [[8, 49, 1]]
    frames, numbers, status = ran.saved("save")
    assert status.tolist() == [0] * 8 + [2] * 42
    np.testing.assert_array_equal(frames[:8], counter(numbers[:8], Rect(0, 0, 16, 8), 16, bits=8))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_mapped_memspace_keeps_slots_with_their_headers(transport: str, tmp_path: Path) -> None:
    """A memory-mapped file still shows after the run what the modules wrote: headers, pixels, gaps, free bytes."""
    ran = run(
        """
lima2: 1
detector:
  remu:
    image: {width: 20, height: 10}
    datasets: {D: {dtype: uint16}}
    modules: {columns: 2, rows: 1, width: 8, height: 10, gap: {x: 4, y: 0}}
    gap_value: 3
    scene: {counter: {}}
acquisition: {frames: 60, rate: 10 kHz}
receivers: {r: {memspaces: {disk: {file: {path: slots.bin, size: 64 KiB}}}}}
flows:
  F:
    dataset: D
    alignment: {block: 512, row: 128, header: 20, footer: 4}
    slices: {start: 4, step: 2}
    rules: {start_slot: 1}
    buffers: {frames: 6}
nodes: {save: {input: F, io_hdf5: {}}, log: {input: F, checkpoint: {}}}
""",
        tmp_path,
        transport,
    )
    assert ran.code == 0, ran.output
    frames, numbers, _ = ran.saved("save")
    assert numbers.tolist() == list(range(4, 60, 2))
    memory = np.fromfile(tmp_path / "slots.bin", np.uint8)
    assert len(memory) == 65536
    payload, pitch, stride = 64, 48, 576
    slots = memory[: 7 * stride].reshape(7, stride)
    assert not slots[0, 64:].view(np.uint16).any()  # the free slot stays as it was
    for index in range(len(numbers) - 6, len(numbers)):
        slot = slots[1 + index % 6]
        number, time_ns = slot[:16].view("<u8")
        assert number == numbers[index]
        start_ns = int(time_ns) - int(number) * 100_000
        assert abs(start_ns / 1e9 - ran.directory.stat().st_mtime) < 60
        pixels = slot[payload : payload + 10 * pitch].reshape(10, pitch)[:, :40].copy().view(np.uint16)
        np.testing.assert_array_equal(pixels, frames[index])
    expected = counter(numbers, Rect(0, 0, 20, 10), 20)
    expected[:, :, 8:12] = 3
    np.testing.assert_array_equal(frames, expected)
