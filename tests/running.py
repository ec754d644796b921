"""Runs of pipelines in tests, and what they should have saved."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lima2cli.geometry import Rect

EXAMPLES = Path(__file__).parent.parent / "examples" / "pipelines"

needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="MPI is not installed")

TRANSPORTS = ["inline", pytest.param("mpi", marks=[pytest.mark.mpi, needs_mpi])]


@dataclass(frozen=True)
class Ran:
    """A finished ``lima2 run``."""

    code: int
    output: str
    directory: Path

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary.json."""
        summary: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return summary

    def saved(self, node: str) -> tuple[NDArray[Any], NDArray[np.uint64], NDArray[np.uint8]]:
        """Frames, numbers and status of a channel, through its master."""
        import h5py
        import hdf5plugin  # noqa: F401

        name, path = self.summary["channels"][node]["dataset"].split("::")
        with h5py.File(self.directory / name) as file:
            detector = file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent
            return file[path][()], detector["frame_number"][()], detector["frame_status"][()]


def lima2(*arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The program, as a user calls it."""
    command = [sys.executable, "-m", "lima2cli", *arguments]
    hidden = ("PMI", "HYDRA", "PYTHONDONTWRITEBYTECODE")  # the last would compile all modules anew in every rank
    env = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=env,
        stdin=subprocess.DEVNULL,
    )


def run(text: str, cwd: Path, transport: str, *arguments: str, name: str = "pipeline") -> Ran:
    """Run a pipeline given as text."""
    (cwd / f"{name}.yaml").write_text(text)
    done = lima2("run", f"{name}.yaml", "--transport", transport, *arguments, cwd=cwd)
    return Ran(done.returncode, done.stdout + done.stderr, (cwd / "runs" / "latest").resolve())


def counter(
    numbers: NDArray[np.uint64], source: Rect, image_width: int, *, dataset: int = 0, bits: int = 16
) -> NDArray[Any]:
    """Scene ``counter`` by its formula, for a part of the image: (n, height, width)."""
    y, x = np.mgrid[source.y : source.bottom, source.x : source.right].astype(np.uint64)
    frames = numbers.astype(np.uint64)[:, None, None] * np.uint64(7919)
    values = frames + np.uint64(104729 * dataset) + y * np.uint64(image_width) + x
    return (values % np.uint64(2**bits)).astype(f"u{max(8, 1 << (bits - 1).bit_length()) // 8}")


def covered(modules: list[Rect], source: Rect) -> NDArray[np.bool_]:
    """Which pixels of a source some module covers."""
    mask = np.zeros((source.height, source.width), bool)
    for module in modules:
        common = module & source
        if common.area:
            mask[common.within(source)] = True
    return mask
