"""Classes of faults, each with some members: what a kill leaves of packed frames, texts that run refuses, /dev/shm."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest

from lima2cli.errors import EnvironmentUnfit
from lima2cli.job import resources as environment
from tests.compiling import plan_of
from tests.running import Done, lima2, program, run

SCENE = "image: {width: 16, height: 16}, datasets: {data: {dtype: uint16}}, scene: {counter: {}}"
HEAD = f"lima2: 1\nname: s\ndetector: {{remu: {{MORE{SCENE}}}}}\nacquisition: {{frames: 6}}\n"
SAVE = "nodes: {save: {input: data, io_hdf5: {}}}\n"


@pytest.mark.parametrize(("options", "by"), [
    ("compression: zstd", program), ("compression: lz4", lima2), ("compression: bslz4", lima2),
    ("compression: blosc", lima2), ("compression: gzip", program), ("compression: bslz4, frames_per_chunk: 4", lima2),
    ("layout: common", lima2),
])  # fmt: skip
def test_more_frames_than_numbers_are_recovered_and_twice_is_as_good_as_once(
    options: str, by: Callable[..., Done], tmp_path: Path
) -> None:
    """Once with, once without a filter of hdf5plugin by a program of its own, which has loaded none."""
    directory = run(
        HEAD.replace("MORE", "") + SAVE.replace("io_hdf5: {", f"io_hdf5: {{{options}"), tmp_path, "inline"
    ).directory
    (directory / "summary.json").unlink()
    if "common" not in options:
        (directory / "s_save_master.h5").unlink()
        with h5py.File(directory / "s_save_0_00000.h5", "r+") as file:
            file["entry_0000/instrument/remu/frame_number"].resize((3,))
    first = by("recover", str(directory), cwd=tmp_path)
    again = lima2("recover", str(directory), cwd=tmp_path)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    found = lima2("inspect", str(directory), "--verify", cwd=tmp_path)
    assert found.returncode == 0, found.stdout
    assert "damaged" not in found.stdout


TEXTS = {
    "title-nul": HEAD + 'metadata: {title: "a\\0b"}\n' + SAVE,
    "sample-escape": HEAD + 'metadata: {sample: "a\\eb"}\n' + SAVE,
    "detector-beam": HEAD.replace("MORE", "name: beam, ") + "metadata: {photon_energy: 1 keV}\n" + SAVE,
    "detector-sample": HEAD.replace("MORE", "name: sample, ") + "metadata: {sample: x}\n" + SAVE,
    "instrument-title": HEAD + "metadata: {instrument: title, sample: x}\n" + SAVE,
    "instrument-measurement": HEAD + "metadata: {instrument: measurement}\n" + SAVE,
    "directory": HEAD + 'output: {directory: "{run:{run}}"}\n' + SAVE,
    "directory-index": HEAD + 'output: {directory: "{run[0]}"}\n' + SAVE,
    "memspace-is-folder": HEAD + "receivers: {r0: {memspaces: {h: {file: {path: .}}}}}\n" + SAVE,
    "memspace-is-device": HEAD + "receivers: {r0: {memspaces: {h: {file: {path: /dev/null}}}}}\n" + SAVE,
    "name": HEAD.replace("name: s", f"name: {'n' * 250}") + SAVE,
    "constant": HEAD + 'nodes: {p: {input: data, python: {function: "u.py:K"}}, s: {input: p, io_hdf5: {}}}\n',
    "parameter": HEAD + 'nodes: {p: {input: data, python: {function: "u.py:g"}}, s: {input: p, io_hdf5: {}}}\n',
    "window": HEAD + "nodes: {b: {input: data, accumulate: {frames: 1000000000000000000}}, "
    "s: {input: b, io_hdf5: {}}}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_accepted_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "u.py").write_text("def g(frames, numbers, x): return frames\nK = 5\n")
    (tmp_path / "p.yaml").write_text(TEXTS[name].replace("MORE", ""))
    checked = lima2("validate", "p.yaml", cwd=tmp_path)
    if checked.returncode == 0:
        ran = lima2("run", "p.yaml", "--transport", "inline", "--progress", "none", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
    else:
        assert checked.returncode == 1
        assert "error[" in checked.stdout


@pytest.mark.parametrize(("receivers", "frames"), [(1, 128), (3, 128), (7, 16)])
def test_dev_shm_is_counted_to_the_byte(receivers: int, frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one byte less than windows and MPI take nothing starts."""
    text = HEAD.replace("MORE", "") + f"receivers: {receivers}\nflows: {{f: {{buffers: {{frames: {frames}}}}}}}\n"
    plan = plan_of(text + SAVE.replace("data", "f"))
    needed = sum(region.size for region in plan.regions) + environment.MPI_RANK_BYTES * len(plan.ranks)
    for free in (needed - 1, needed):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if free < needed:
            with pytest.raises(EnvironmentUnfit, match="/dev/shm"):
                environment.check_memory(plan, shared=True)
        else:
            environment.check_memory(plan, shared=True)
        environment.check_memory(plan, shared=False)
