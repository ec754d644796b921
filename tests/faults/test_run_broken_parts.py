"""Detectors and nodes that fail or fall silent in the middle of a run: the others go on, and the truth is told."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from lima2cli.cli import app
from lima2cli.declare import Integer, param
from lima2cli.detectors.base import AcqParams, XferParams
from lima2cli.detectors.emulated import EmulatedDetector
from lima2cli.detectors.remu import Remu
from lima2cli.frames import Array, DetectorInfo, Files, FrameSpec
from lima2cli.job import launch, run
from lima2cli.nodes.base import Inputs, Map
from tests.running import Ran, truth


class FragileDetector(EmulatedDetector):
    """Fails where its configuration says so."""

    def __init__(self, config: "Fragile", detector: EmulatedDetector, info: DetectorInfo) -> None:
        super().__init__(info, detector._open_sources)
        self._config = config

    def prepare(self, acq_params: AcqParams, xfer_params: XferParams) -> None:
        if self._config.bad_prepare and any(module == 1 for _, module in xfer_params.routes):
            raise RuntimeError("no high voltage")
        super().prepare(acq_params, xfer_params)

    def start(self, start_ns: int) -> None:
        if self._config.bad_start:
            raise RuntimeError("the shutter is stuck")
        super().start(start_ns)

    def get_frames(self, dataset: int, module: int, numbers: Sequence[int]) -> Array:
        if module == 1 and self._config.bad_frame in numbers:
            raise RuntimeError("module 1 has lost its link")
        return super().get_frames(dataset, module, numbers)

    def nb_acq_frames(self) -> int:
        acquired = super().nb_acq_frames()
        return acquired if self._config.silent_after < 0 else min(acquired, self._config.silent_after)


@dataclass(frozen=True, kw_only=True)
class Fragile(Remu):
    kind: ClassVar[str] = "fragile"

    bad_frame: int = param("Module 1 fails here.", Integer(-1), -1)
    silent_after: int = param("No more frames then.", Integer(-1), -1)
    bad_prepare: int = param("Module 1 fails in prepare.", Integer(0), 0)
    bad_start: int = param("It fails in start.", Integer(0), 0)

    def open(self, info: DetectorInfo, files: Files) -> EmulatedDetector:
        return FragileDetector(self, super().open(info, files), info)


@dataclass(frozen=True, kw_only=True)
class Raises(Map):
    kind: ClassVar[str] = "raises"

    at: int = param("Number of the call that fails.", Integer(0))

    def infer(self, inputs: Inputs) -> FrameSpec:
        return inputs.spec

    def bind(self, inputs: Inputs) -> Callable[[Array], Array]:
        calls = 0

        def function(frames: Array) -> Array:
            nonlocal calls
            calls += 1
            if calls > self.at:
                raise ZeroDivisionError("a bug of the user's")
            return frames

        return function


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package had brought these kinds."""
    kinds = {"lima2cli.detectors": ("fragile", "Fragile"), "lima2cli.nodes": ("raises", "Raises")}

    def entry_points(*, group: str) -> EntryPoints:
        name, table = kinds[group]
        return EntryPoints([EntryPoint(name, f"{__name__}:{table}", group)])

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)


DETECTOR = """
lima2: 1
detector:
  fragile:
    image: {width: 32, height: 16}
    datasets: {A: {dtype: uint16}, B: {dtype: uint16}}
    modules: {columns: 2, rows: 1, width: 16, height: 16}
    scene: {counter: {}}
    FAULT
acquisition: {frames: 500, timeout: 1 s}
receivers: 2
"""


def run_inline(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Ran:
    """In this process, where the kinds above are known."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})  # a rank for each module
    (folder / "pipeline.yaml").write_text(text)
    done = CliRunner().invoke(app, ["run", "pipeline.yaml", *(arguments or ("--transport", "inline"))])
    return Ran(done.exit_code, done.output, (folder / "runs" / "latest").resolve())


def test_a_module_that_fails_leaves_its_frames_missing_and_no_one_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G shares no memory with what goes wrong but is served in turn with it, by groups, through one place."""
    text = (
        DETECTOR.replace("FAULT", "bad_frame: 100")
        + """
flows:
  F: {dataset: A, buffers: {frames: 50}}
  G: {dataset: B, rules: {blocks_per_group: 4, placement: overwrite}, buffers: {frames: 4}}
  L: {dataset: A, source: {x: 0, y: 0, width: 16, height: 16}, buffers: {frames: 4}}
nodes:
  f: {input: F, io_hdf5: {}}
  g: {input: G, io_hdf5: {}}
  l: {input: L, io_hdf5: {}}
"""
    )
    ran = run_inline(text, tmp_path, monkeypatch)
    assert ran.code == 10, ran.output
    assert "module 1 has lost its link" in ran.output
    summary = truth(ran, problems=True)
    assert summary["state"] == "failed"
    frames, flows = summary["frames"], summary["flows"]
    assert frames >= 100
    assert flows["F"]["received"] == 100
    assert flows["F"]["missing_frames"] == ([[100, frames - 1, 1]] if frames > 100 else [])
    assert flows["L"]["received"] == flows["L"]["expected"] == frames
    assert {name: channel["saved"] for name, channel in summary["channels"].items()} == {
        "f": 100,
        "g": flows["G"]["received"],
        "l": frames,
    }


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("bad_prepare: 1", "no high voltage"), ("bad_start: 1", "the shutter is stuck")],
)
def test_a_detector_that_does_not_start_fails_the_run(
    fault: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DETECTOR.replace("FAULT", fault) + "nodes: {f: {input: A, io_hdf5: {}}}\n"
    ran = run_inline(text, tmp_path, monkeypatch)
    assert ran.code == 10, ran.output
    summary = truth(ran, problems=True)
    assert reason in summary["reason"]
    assert summary["frames"] == 0
    assert summary["channels"]["f"]["expected"] == 0


def test_a_detector_that_falls_silent_fails_the_run_after_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DETECTOR.replace("FAULT", "silent_after: 77") + "nodes: {f: {input: A, io_hdf5: {}}}\n"
    ran = run_inline(text, tmp_path, monkeypatch)
    assert ran.code == 10, ran.output
    summary = truth(ran)
    assert summary["reason"] == "no frame for 1 s"
    assert summary["frames"] == summary["channels"]["f"]["saved"] == 77
    assert 1 <= summary["seconds"] < 30


def test_a_node_that_raises_ends_what_reads_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        DETECTOR.replace("FAULT", "bad_frame: -1")
        + """
flows: {F: {dataset: A, buffers: {frames: 12}}}
nodes:
  plain: {input: F, io_hdf5: {}}
  wrong: {input: F, raises: {at: 3}}
  saved: {input: wrong, io_hdf5: {}}
  noted: {input: wrong, checkpoint: {}}
"""
    )
    ran = run_inline(text, tmp_path, monkeypatch)
    assert ran.code == 10, ran.output
    summary = truth(ran, problems=True)
    assert re.fullmatch(
        r"wrong: test_run_broken_parts\.py:\d+: ZeroDivisionError: a bug of the user's", summary["reason"]
    )
    assert "node wrong, frame" in ran.output
    frames, channels = summary["frames"], summary["channels"]
    assert channels["plain"]["saved"] == summary["flows"]["F"]["received"] == frames
    assert 0 < channels["saved"]["saved"] == summary["tables"]["noted"]["rows"] < frames
    status = ran.saved("saved")[2]
    assert set(status.tolist()) == {0, 1}
    assert np.count_nonzero(status) == channels["saved"]["lost"]


def test_without_mpi_runs_are_inline_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    text = DETECTOR.replace("FAULT", "bad_frame: -1") + "nodes: {f: {input: A, io_hdf5: {}}}\n"
    ran = run_inline(text, tmp_path, monkeypatch, "--transport", "auto")
    assert ran.code == 0, ran.output
    assert "no MPI here: all ranks run in this process" in ran.output
    ran = run_inline(text, tmp_path, monkeypatch, "--transport", "mpi")
    assert ran.code == 12
    assert "no MPI here: pip install" in ran.output
    assert ran.directory.name == "pipeline_0001"


def test_shared_memory_that_is_too_small_is_said_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("lima2cli.job.resources.shutil.disk_usage", lambda path: Usage)
    monkeypatch.setattr(run, "find_mpiexec", lambda: "mpiexec")
    text = DETECTOR.replace("FAULT", "bad_frame: -1") + "nodes: {f: {input: A, io_hdf5: {}}}\n"
    ran = run_inline(text, tmp_path, monkeypatch, "--transport", "auto")
    assert ran.code == 12, ran.output
    assert "(memspaces: receiver0.host 512 KiB + receiver1.host 512 KiB; MPI itself: 5 ranks x 5.5 MiB)" in ran.output
    assert "1000 bytes are free" in ran.output
    assert not (tmp_path / "runs").exists()
