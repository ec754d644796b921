"""Several threads of a receiver: what they give is what one gives, bit for bit and in order."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest

from lima2cli.cli.plan_text import show_plan
from lima2cli.frames import Array
from lima2cli.kernels.statistics import RegionSums
from lima2cli.ranks.loop import run_inline
from lima2cli.threads import PART_PIXELS, Team, team
from tests.compiling import compiled, figures, plan_of

PIPELINE = """
lima2: 1
detector:
  remu: {{image: {{width: 256, height: 256}}, datasets: {{D: {{dtype: uint16}}}}, scene: {{noise: {{seed: 3}}}}}}
acquisition: {{frames: 33}}
receivers:
  one: {{memspaces: {{host: {{host: {{}}}}}}, threads: {threads}}}
flows: {{F: {{dataset: D, rules: {{blocks_per_group: 7}}, buffers: {{frames: 14}}}}}}
nodes:
  dark: {{input: F, background_sub: {{image: dark.npy}}}}
  root: {{inputs: {{a: dark}}, expression: {{expr: "where(a > 3, sqrt(a) + a % 7, exp(a / 100))"}}}}
  good: {{input: root, mask: {{image: bad.npy, fill: nan}}}}
  part: {{input: good, roi_flip_rot: {{roi: {{x: 20, y: 3, width: 201, height: 240}}, rotation: 90}}}}
  counters: {{input: part, roi_counters: {{rois: {rois}}}}}
  profiles: {{input: part, roi_profiles: {{rois: {{all: {{rect: {{x: 0, y: 0, width: 200, height: 200}}}}}}}}}}
  saved: {{input: part, io_hdf5: {{frames_per_chunk: 2}}}}
  binned: {{input: F, roi_flip_rot: {{binning: {{x: 2, y: 2}}}}}}
  both: {{inputs: {{a: F, b: dark}}, expression: {{expr: "a*b - cos(b)", dtype: int32}}}}
  joined: {{input: both, io_hdf5: {{frames_per_chunk: 3, frames_per_file: 10, compression: gzip}}}}
  small: {{input: binned, io_hdf5: {{compression: none}}}}
  raw: {{input: F, roi_counters: {{rois: {rois}}}}}
  centres: {{input: part, roi_counters: {{rois: {rois}, statistics: [valid, above: 3, com_x, com_y]}}}}
  raw-centres: {{input: F, roi_counters: {{rois: {rois}, statistics: [valid, above: 3, com_x, com_y]}}}}
  peaks: {{input: F, peaks: {{background: local, cutoff: 2, noise: 0, connected: 1, most: 50}}}}
"""

ROIS = (
    "{all: {rect: {x: 0, y: 0, width: 240, height: 200}}, ring: {arc: {x: 90, y: 90, r1: 20, r2: 80, a1: 0, a2: 200}}}"
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory with the images of `PIPELINE`."""
    random = np.random.default_rng(1)
    np.save(tmp_path / "dark.npy", random.uniform(0, 50, (256, 256)))
    np.save(tmp_path / "bad.npy", (random.uniform(size=(256, 256)) < 0.01).astype(np.uint8))
    return tmp_path


def written(base: Path, threads: int) -> dict[str, Array]:
    """All that a run writes, by file and place in it: stored chunks as they are."""
    plan = plan_of(PIPELINE.format(threads=threads, rois=ROIS), base)
    directory = base / f"by_{threads}"
    directory.mkdir()
    outcome = run_inline(plan, base, str(directory), lambda event: None, lambda: None)
    assert not outcome.failures
    found: dict[str, Array] = {}
    for path in sorted(directory.glob("*.h5")):
        with h5py.File(path) as file:
            detector = file["entry_0000"]

            def keep(name: str, item: Any, file_name: str = path.name) -> None:
                if isinstance(item, h5py.Dataset) and name.rpartition("/")[2] not in TIMES:
                    found[f"{file_name}:{name}"] = item[()]
                    if item.ndim == 3 and item.chunks:
                        for chunk in range(item.id.get_num_chunks()):
                            place = item.id.get_chunk_info(chunk).chunk_offset
                            stored = np.frombuffer(item.id.read_direct_chunk(place)[1], np.uint8)
                            found[f"{file_name}:{name}:{place}"] = stored

            detector.visititems(keep)
    return found


TIMES = ("start_time", "end_time", "frame_time")


def test_all_files_are_the_same(base: Path) -> None:
    one, several = written(base, 1), written(base, 3)
    assert sum(":(" in name for name in one) > 20, "chunks"
    assert one.keys() == several.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(several[name], values, err_msg=name)


def test_what_fails_in_a_thread_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(PIPELINE.format(threads=2, rois=ROIS), base)

    strip = RegionSums.strip

    def fail(*given: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("no")
        strip(*given)

    monkeypatch.setattr(RegionSums, "strip", fail)
    (base / "out").mkdir()
    outcome = run_inline(plan, base, str(base / "out"), lambda event: None, lambda: None)
    assert {failure.node for failure in outcome.failures} == {"counters", "raw", "centres", "raw-centres"}
    assert all("no" in failure.message for failure in outcome.failures)
    assert outcome.receivers[0].saved["saved"] > 0


def test_the_plan_says_how_many(base: Path) -> None:
    plan = plan_of(PIPELINE.format(threads=4, rois=ROIS), base)
    assert plan.threads == (4,)
    assert [rank["threads"] for rank in figures(plan)["ranks"] if rank["role"] == "receiver"] == [4]
    assert "one: F, 4 threads\n" in show_plan(plan)
    assert " threads\n" not in show_plan(plan_of(PIPELINE.format(threads=1, rois=ROIS), base))
    _, findings = compiled(PIPELINE.format(threads=0, rois=ROIS), base)
    assert [item.at for item in findings] == [("receivers", "one", "threads")]


# Teams


def test_results_are_in_the_order_of_the_tasks() -> None:
    second = threading.Event()

    def late() -> int:
        assert second.wait(10)
        return 1

    def early() -> int:
        second.set()
        return 2

    assert Team(2).each([late, early]) == [1, 2]
    assert team(1).each([early, late, early]) == [2, 1, 2]
    assert team(3) is team(3)


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1, 2)])
def test_all_tasks_have_ended_when_one_fails(failing: Sequence[int]) -> None:
    ended = []

    def task(number: int) -> None:
        ended.append(number)
        if number in failing:
            raise ValueError(number)

    with pytest.raises(ValueError, match=str(failing[0])):
        Team(2).each([lambda n=n: task(n) for n in range(3)])  # type: ignore[misc]
    assert sorted(ended) == [0, 1, 2]


PARTS: Mapping[tuple[int, int, int], Sequence[int]] = {
    (2, 10, PART_PIXELS): [5, 5],
    (3, 10, PART_PIXELS): [3, 3, 4],
    (4, 2, PART_PIXELS): [1, 1],
    (4, 1, 100 * PART_PIXELS): [1],
    (4, 10, PART_PIXELS // 5 + 1): [5, 5],
    (4, 10, 10): [10],
    (1, 10, PART_PIXELS): [10],
}


@pytest.mark.parametrize(("size", "frames", "pixels"), PARTS)
def test_parts_are_consecutive_and_worth_a_thread(size: int, frames: int, pixels: int) -> None:
    parts = Team(size).parts(frames, pixels)
    assert [part.stop - part.start for part in parts] == PARTS[size, frames, pixels]
    assert [number for part in parts for number in range(frames)[part]] == list(range(frames))
