"""The command `show`: pictures, figures and curves of what a run has saved; commands that take the latest run."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lima2cli.files.picture import shrunk
from tests.running import lima2

PIPELINE = """\
lima2: 1
name: mini
detector:
  remu:
    image: {width: 40, height: 20}
    modules: {columns: 2, rows: 1, width: 16, height: 20, gap: {x: 8, y: 0}}
    scene: {counter: {}}
acquisition: {frames: 6}
nodes:
  save: {input: data, io_hdf5: {}}
  few: {input: data, sparsify: {above: 65000}}
  kept: {input: few, io_hdf5: {}}
  sums: {input: data, roi_counters: {rois: {a: {x: 0, y: 0, width: 4, height: 4}}, statistics: [sum]}}
  rows: {input: data, roi_profiles: {rois: {b: {x: 0, y: 0, width: 9, height: 4}}, statistics: [sum]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("show")
    (folder / "mini.yaml").write_text(PIPELINE)
    done = lima2("run", "mini.yaml", "--transport", "inline", "--progress", "none", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_latest_run_in_the_terminal(folder: Path) -> None:
    done = lima2("show", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["mini_0001  complete", "  data  6 frames received"]
    frame = (7919 * 5 + np.arange(800).reshape(20, 40)) % 65536
    frame = np.delete(frame, np.s_[16:24], axis=1)
    said = f"save  40 x 20 uint16, frame 5  min {frame.min()}  mean {frame.mean():.4g}  max {frame.max()}  160 masked"
    assert f"{said}, 6 frames saved" in lines
    picture = lines[lines.index(f"{said}, 6 frames saved") + 1 :][:17]
    assert all("x" * 8 in line for line in picture)
    assert max(map(len, lines)) <= 80 + len(", 6 frames saved")
    assert any(line.startswith("kept  40 x 20 uint16, frame") for line in lines)
    sums = [int((7919 * f + np.arange(4)[:, None] * 40 + np.arange(4)).sum()) for f in range(6)]
    (row,) = [line.split() for line in lines if line.startswith("    a_sum")]
    assert [float(one) for one in row[1:4]] == pytest.approx([min(sums), np.mean(sums), max(sums)], rel=1e-3)
    assert row[4] == "▁▂▄▅▇█"
    assert any(line.startswith("rows  6 rows, vectors of frame 5") for line in lines)
    assert "\x1b" not in done.stdout


def test_one_node_and_one_frame(folder: Path) -> None:
    lines = lima2("show", "mini_0001", "--node", "save", "--frame", "0", cwd=folder).stdout.splitlines()
    assert lines[0].startswith("save  40 x 20 uint16, frame 0  min 0  ")
    table = lima2("show", "mini_0001", "--node", "sums", "--frame", "2", cwd=folder).stdout.splitlines()
    assert table[0] == "sums  6 rows"
    assert table[1].split() == ["column", "min", "mean", "max", "frame", "2"]
    profile = lima2("show", "--node", "rows", "--frame", "1", cwd=folder).stdout
    assert "vectors of frame 1" in profile


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["nothing"], 2, "there is no run nothing"),
        (["--node", "sav"], 2, "did you mean `save`?"),
        (["--node", "save", "--frame", "9"], 1, "save has no frame 9"),
        (["--node", "sums", "--frame", "9"], 1, "sums has no row of frame 9"),
        (["--node", "save", "--png", "a.jpg"], 2, "ends in .png"),
        (["--png", "none/a.png"], 12, "cannot write none/a.png"),
        (["--frame", "-1"], 2, "Invalid value for '--frame'"),
    ],
)
def test_what_cannot_be_shown(folder: Path, options: list[str], code: int, said: str) -> None:
    done = lima2("show", *options, cwd=folder)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not list(folder.glob("**/.*.part"))


def test_a_picture_replaces_nothing_unless_it_is_forced(folder: Path) -> None:
    from PIL import Image

    done = lima2("show", "--node", "save", "--frame", "0", "--png", "a.png", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a.png: save  40 x 20 uint16, frame 0")
    pixels = np.asarray(Image.open(folder / "a.png"))
    assert pixels.shape == (20, 40, 3)
    assert (pixels[:, 16:24] == (160, 40, 40)).all()
    assert (np.diff(pixels[:, :16, 0].astype(int), axis=0) >= 0).all()
    before = (folder / "a.png").read_bytes()
    refused = lima2("show", "--node", "save", "--png", "a.png", cwd=folder)
    assert (refused.returncode, "--force" in refused.stderr) == (12, True)
    assert (folder / "a.png").read_bytes() == before
    assert lima2("show", "--node", "save", "--png", "a.png", "--force", cwd=folder).returncode == 0


@pytest.mark.parametrize("options", [["--node", "sums"], ["--node", "rows"], ["--node", "rows", "--frame", "2"]])
def test_the_plot_of_a_table(folder: Path, options: list[str]) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    name = f"{'_'.join(options).strip('-')}.png"
    done = lima2("show", *options, "--png", name, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert Image.open(folder / name).size[0] > 100


def test_the_plot_of_a_table_says_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = lima2("show", "--node", "sums", "--png", "plot.png", cwd=folder)
    assert (done.returncode, "pip install 'lima2cli[show]'" in done.stderr) == (12, True)


def test_colours_on_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["lima2cli.cli.show"], "_coloured", lambda: True)
    lines = lima2("show", "--node", "save", cwd=folder).stdout.splitlines()
    assert all(line.endswith("\x1b[0m") for line in lines[1:])
    assert "\x1b[38;2;160;40;40m\x1b[48;2;160;40;40m▀" in lines[1]
    assert lines[1].count("▀") <= 80


def test_means_of_fewer_pixels() -> None:
    pixels = np.arange(24.0).reshape(4, 6)
    measured = np.ones((4, 6), bool)
    measured[:2, :3] = False
    measured[0, 0] = True
    means, there = shrunk(pixels, measured, 2, 2)
    assert means.tolist() == [[0.0, 7.0], [16.0, 19.0]]
    assert there.all()
    assert shrunk(pixels, ~np.ones((4, 6), bool), 1, 1)[1].tolist() == [[False]]


def test_commands_take_the_latest_run(folder: Path) -> None:
    assert lima2("inspect", "--verify", cwd=folder).returncode == 0
    assert lima2("inspect", "mini_0001", cwd=folder).stdout.endswith("runs/mini_0001\n")
    assert "nothing to recover" in lima2("recover", cwd=folder).stdout
    done = lima2("densify", "-o", "dense.h5", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "dense.h5: 6 frames\n"), done.stderr
    assert "gone is not a run directory" in lima2("recover", "gone", cwd=folder).stderr
    for command in (["inspect"], ["densify", "-o", "other.h5"]):
        gone = lima2(*command[:1], "gone", *command[1:], cwd=folder)
        assert (gone.returncode, "no such directory: gone, nor runs/gone" in gone.stderr) == (2, True)
