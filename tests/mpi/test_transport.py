"""Both transports keep what `lima2cli.transport.base` promises."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lima2cli.job.launch import find_mpiexec
from lima2cli.transport.inline import InlineMemory, InlinePort
from tests import ROOT
from tests.mpi.transport_checks import check_inline, memory
from tests.running import needs_mpi


def test_inline(tmp_path: Path) -> None:
    assert check_inline(tmp_path) == []


@pytest.mark.mpi
@needs_mpi
def test_mpi(tmp_path: Path) -> None:
    """The mapped region is an emulated window: it needs the owner's progress thread."""
    mpiexec = find_mpiexec()
    assert mpiexec is not None
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py", "-m", "tests.mpi.transport_checks", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout == "all is well\n", done.stdout + done.stderr


def test_nothing_is_written_beyond_a_region(tmp_path: Path) -> None:
    port = InlinePort(0, InlineMemory(memory(tmp_path)))
    channel = port.put_channel(0, 3, 5, 64, 256)
    frames = np.zeros((2, 3, 5), np.uint8)
    for offset in (-1, 4 * 256 + 40 - (256 + 2 * 64 + 5) + 1):
        with pytest.raises(IndexError):
            channel.put(frames, offset)
    channel.put(frames, 4 * 256 + 40 - (256 + 2 * 64 + 5))
