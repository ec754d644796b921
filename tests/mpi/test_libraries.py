"""MPI libraries other than MPICH, each from its wheel in an environment of its own: transport, maze, doctor."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.running import EXAMPLES, PATIENCE_S, Ran, environment, lima2, needs_mpi

pytestmark = [pytest.mark.mpi, pytest.mark.launch, needs_mpi]

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

MANY = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMPI_MCA_osc": "^ucx"}
"""Settings of Open MPI that lima2 makes itself, for programs that are started here."""


@dataclass(frozen=True)
class Library:
    """An environment with an MPI library: that of the tests, with another one in front of it."""

    name: str
    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def run(self, *words: str, cwd: Path, more: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        variables = environment() | AS_ROOT | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"} | (more or {})
        return subprocess.run(
            words, cwd=cwd, env=variables, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )


@pytest.fixture(scope="module", params=["openmpi", "impi-rt"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    folder = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    made = Library(request.param, folder)
    install = [sys.executable, "-m", "pip", "--python", made.python, "install", "-q", "--only-binary", ":all:"]
    done = subprocess.run([*install, request.param], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"no wheel of {request.param} here: {done.stderr[-200:]}")
    own = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (own / "tests.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{ROOT}\n")
    yield made
    shutil.rmtree(folder)  # some hundred megabytes


def test_it_is_the_library_that_is_used(library: Library, tmp_path: Path) -> None:
    done = library.run(library.python, "-m", "lima2cli", "doctor", cwd=tmp_path)
    assert {"openmpi": "Open MPI v", "impi-rt": "Intel(R) MPI Library"}[library.name] in done.stdout
    assert f"{library.folder}/bin/mpiexec; two ranks took" in done.stdout


def test_the_transport_keeps_its_promises(library: Library, tmp_path: Path) -> None:
    command = ["mpiexec", "-n", "2", library.python, "-m", "mpi4py", "-m", "tests.mpi.transport_checks", str(tmp_path)]
    done = library.run(*command, cwd=ROOT, more=MANY)
    assert done.stdout == "all is well\n", done.stdout + done.stderr


def test_the_maze_is_that_of_one_process(library: Library, tmp_path: Path) -> None:
    maze = str(EXAMPLES / "maze.yaml")
    done = library.run(library.python, "-m", "lima2cli", "run", maze, "--progress", "plain", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = Ran(0, done.stdout, (tmp_path / "runs" / "latest").resolve())
    assert not (ranks.directory / "lima2.log").read_text()
    assert lima2("run", maze, "--transport", "inline", cwd=tmp_path).returncode == 0
    alone = Ran(0, "", (tmp_path / "runs" / "latest").resolve())
    for channel in alone.summary["channels"]:
        for one, other in zip(ranks.saved(channel), alone.saved(channel), strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_open_mpi_asks_of_root_is_said(library: Library, tmp_path: Path) -> None:
    if library.name != "openmpi" or os.geteuid():
        pytest.skip("only Open MPI refuses root")
    maze = str(EXAMPLES / "maze.yaml")
    refused = dict.fromkeys(AS_ROOT, "0")
    done = library.run(library.python, "-m", "lima2cli", "run", maze, "--progress", "plain", cwd=tmp_path, more=refused)
    assert done.returncode == 10
    assert "Open MPI runs as root only with OMPI_ALLOW_RUN_AS_ROOT=1" in done.stdout
