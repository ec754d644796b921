"""Completion in shells: what is offered for a line that is not complete, and the script for each shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lima2cli.cli import completion
from tests.running import EXAMPLES, lima2


def complete(line: str, cwd: Path) -> list[str]:
    """Return what bash is offered at the end of a line; none: it completes names of files."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lima2cli"], cwd=cwd, capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "_LIMA2_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete")
    done = lima2("run", str(EXAMPLES / "counters.yaml"), "--transport", "inline", "--progress", "none", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "runs" / "not_a_run").mkdir()
    return folder


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("lima2 val", ["validate"]),
        ("lima2 explain buffer-too", ["buffer-too-small"]),
        ("lima2 explain acquisition.frames", ["acquisition.frames", "acquisition.frames_per_trigger"]),
        ("lima2 explain nodes.io_hdf5.lay", ["nodes.io_hdf5.layout"]),
        ("lima2 nodes show roi_", ["roi_flip_rot", "roi_counters", "roi_profiles"]),
        ("lima2 detectors show repl", ["replay"]),
        ("lima2 new rem", ["remu/"]),
        ("lima2 new remu/background_sub,io_h", ["remu/background_sub,io_hdf5"]),
        ("lima2 run x.yaml -s acquisition.re", ["acquisition.repeat="]),
        ("lima2 run x.yaml -s metadata.beam", ["metadata.beam_center."]),
        ("lima2 run x.yaml -s nodes.", []),
        ("lima2 plan x.yaml --format sl", ["slurm"]),
        ("lima2 show ", ["latest", "counters_0001"]),
        ("lima2 inspect count", ["counters_0001"]),
        ("lima2 show counters_0001 --node cou", ["counters"]),
        ("lima2 tap late", ["latest"]),
        ("lima2 tap counters_0001 cou", ["counters"]),
        ("lima2 set coun", ["counters"]),
        ("lima2 show gone --node ", []),
        ("lima2 validate ", []),
    ],
)
def test_what_is_offered(folder: Path, line: str, offered: list[str]) -> None:
    assert complete(line, folder) == offered


def test_values_are_not_completed() -> None:
    assert completion.key_paths("acquisition.frames=1") == []
    assert completion.rules_and_keys("no.such.key") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_script_completes_in_bash(folder: Path) -> None:
    """As a user has it: the script, and what Tab offers."""
    program = folder / "lima2"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m lima2cli "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(lima2 --show-completion)"; COMP_WORDS=(lima2 explain buffer-too); COMP_CWORD=2; '
        '_lima2_completion lima2; echo "${COMPREPLY[@]}"; complete -p lima2'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "buffer-too-small", "complete -o default -F _lima2_completion lima2",
    ], done.stderr  # fmt: skip


def test_the_script_is_installed_for_the_shell_of_the_user(folder: Path, tmp_path: Path) -> None:
    """The file that shells read keeps all that the user has in it."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    (tmp_path / ".bashrc").write_text("alias l=ls\n")
    command = f"{sys.executable} -P -m lima2cli --install-completion; exit $?"
    done = subprocess.run(
        ["bash", "--norc", "-c", command], cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    installed = (tmp_path / ".bashrc").read_text()
    assert installed.startswith("alias l=ls\n")
    assert "_lima2_completion" in (tmp_path / ".bash_completions" / "lima2.sh").read_text()
