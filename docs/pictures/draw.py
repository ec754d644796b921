"""Draw the pictures of the recipes from the files of their runs: python docs/pictures/draw.py [NAME...].

Each recipe is run as its page says, in a temporary folder. It needs matplotlib, and the extras of some recipes.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "examples" / "pipelines"


def run(*arguments: str, cwd: Path) -> None:
    """Run lima2; what it prints is shown where it fails."""
    subprocess.run([sys.executable, "-m", "lima2cli", *arguments], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def example(name: str, folder: Path) -> Path:
    """Run an example; return its run directory."""
    run("run", str(EXAMPLES / f"{name}.yaml"), "--progress", "none", cwd=folder)
    return (folder / "runs" / "latest").resolve()


def blocks(page: str) -> list[str]:
    """Return the blocks of code of a recipe's page."""
    text = (ROOT / "docs" / "recipes" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```(?:python|yaml|sh)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def frames(directory: Path, channel: str, name: str = "data") -> Any:
    """Return an h5py dataset of a channel, by frame: ``data``, ``frame_number`` or ``frame_status``."""
    (master,) = directory.glob(f"*_{channel}_master.h5")
    file = h5py.File(master)
    return file[f"entry_0000/{file['entry_0000'].attrs['default']}"].parent[name]


def table(directory: Path, node: str, column: str) -> np.ndarray:
    """Return a column of a node's table."""
    (path,) = directory.glob(f"*_{node}.h5")
    with h5py.File(path) as file:
        return file[f"entry_0000/measurement/{column}"][()]


def panels(count: int, **kwargs: Any) -> Any:
    """Return a figure and its axes, side by side."""
    return plt.subplots(1, count, figsize=(3.2 * count, 2.7), layout="constrained", **kwargs)


def image(axes: Any, pixels: np.ndarray, title: str, **kwargs: Any) -> None:
    """Show an image, masked pixels in grey."""
    axes.set_facecolor("0.8")
    axes.imshow(pixels, interpolation="nearest", cmap=kwargs.pop("cmap", "viridis"), **kwargs)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)


def curve(axes: Any, x: Any, y: Any, title: str, across: str, **kwargs: Any) -> None:
    """Show a curve."""
    axes.plot(x, y, **({"lw": 1} | kwargs))
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(across, fontsize=8)
    axes.tick_params(labelsize=7)


def xpcs(folder: Path) -> Any:
    """One frame, intensities, and g2 with the truth."""
    sys.path.insert(0, str(EXAMPLES))
    from xpcs_g2 import frames_of, multi_tau

    directory = example("xpcs", folder)
    dense = frames_of(directory / "xpcs_save_master.h5")
    figure, axes = panels(3)
    image(axes[0], dense[0].reshape(64, 64), "frame 0, photons")
    curve(axes[1], np.arange(500) / 10, table(directory, "intensity", "all_sum")[:500], "photons of a frame", "ms")
    delays, g2 = multi_tau(dense)
    truth = 1 + (g2[0] - 1) * np.exp(-2 * 0.05 * (delays - 1))
    curve(axes[2], delays / 10, truth, "g2: measured, and as emulated", "delay, ms", color="0.6", lw=2)
    axes[2].semilogx(delays / 10, g2, "o", ms=3)
    return figure


def dual_threshold(folder: Path) -> Any:
    """Histograms of both counters and of their difference."""
    text = (EXAMPLES / "dual_threshold.yaml").read_text(encoding="utf-8")
    text += "  low: {input: above6, io_hdf5: {}}\n  high: {input: above10, io_hdf5: {}}\n"
    (folder / "dual_threshold.yaml").write_text(text)
    run("run", "dual_threshold.yaml", "--progress", "none", cwd=folder)
    directory = (folder / "runs" / "latest").resolve()
    figure, axes = panels(1)
    shown = (("low", "above 6 keV", "C0"), ("high", "above 10 keV", "C3"), ("save", "6 to 10 keV", "C2"))
    for channel, label, color in shown:
        counts = np.bincount(np.maximum(frames(directory, channel)[()], 0).ravel(), minlength=25)[:25]
        axes.step(np.arange(25), counts / counts.sum(), where="mid", color=color, label=label)
    axes.legend(fontsize=7)
    axes.set_xlabel("photons of a pixel", fontsize=8)
    axes.tick_params(labelsize=7)
    return figure


def slow_viewer(folder: Path) -> Any:
    """A frame of the viewer, and which it saw."""
    directory = example("slow_viewer", folder)
    seen, status, numbers = (frames(directory, "kept", name) for name in ("data", "frame_status", "frame_number"))
    status, numbers = status[()], numbers[()]
    figure, axes = panels(2)
    last = int(np.flatnonzero(status == 0)[-1])
    image(axes[0], seen[last], f"frame {numbers[last]}, log(1 + counts)")
    axes[1].eventplot([np.arange(2000), numbers[status == 0], numbers[status != 0]], colors=["C0", "C2", "C3"], lw=0.7)
    axes[1].set_yticks([0, 1, 2], ["saved", "seen", "not seen"], fontsize=7)
    axes[1].set_xlabel("frame", fontsize=8)
    axes[1].tick_params(labelsize=7)
    return figure


def tomography(folder: Path) -> Any:
    """A projection, its attenuation, the sinogram."""
    script, pipeline = blocks("tomography")
    (folder / "tomo.yaml").write_text(pipeline)
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    run("run", "tomo.yaml", "--progress", "none", cwd=folder)
    directory = (folder / "runs" / "latest").resolve()
    figure, axes = panels(3)
    with h5py.File(folder / "projections.h5") as file:
        image(axes[0], file["projections"][0], "projection", cmap="gray", aspect="auto")
    image(axes[1], frames(directory, "save")[0], "attenuation", cmap="gray", aspect="auto")
    image(axes[2], table(directory, "sinogram", "row_avg"), "sinogram of row 20", cmap="gray", aspect="auto")
    return figure


def jungfrau(folder: Path) -> Any:
    """Pedestal, raw frame, photons."""
    pedestal, script, photons = blocks("jungfrau")
    (folder / "pedestal.yaml").write_text(pedestal)
    (folder / "photons.yaml").write_text(photons)
    script = script.replace("lima2 ", f"{sys.executable} -m lima2cli ")
    subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True)
    directory = (folder / "runs" / "latest").resolve()
    figure, axes = panels(2)
    image(axes[0], frames(directory, "raw")[0], "raw: gain bits, and charge")
    image(axes[1], frames(directory, "save")[0], "photons, mean of 50 frames", vmax=60)
    return figure


RECIPES: dict[str, Callable[[Path], Any]] = {
    it.__name__: it for it in (xpcs, dual_threshold, slow_viewer, tomography, jungfrau)
}


def main() -> None:
    """Draw all pictures, or those that are named."""
    for name in sys.argv[1:] or RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            figure = RECIPES[name](Path(folder))
        path = HERE / "recipes" / f"{name}.png"
        figure.savefig(path, dpi=100)
        Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
        print(path.relative_to(ROOT), f"{path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
