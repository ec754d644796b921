"""Draw the pictures of recipes from the files of their runs, and others: python docs/pictures/draw.py [NAME...].

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
    shell(script, folder)
    directory = (folder / "runs" / "latest").resolve()
    figure, axes = panels(2)
    image(axes[0], frames(directory, "raw")[0], "raw: gain bits, and charge")
    image(axes[1], frames(directory, "save")[0], "photons, mean of 50 frames", vmax=60)
    return figure


def powder(folder: Path) -> Any:
    """A frame, the corrected mean, and the profile with the rings of CeO2."""
    pipeline, script = blocks("powder")
    (folder / "powder.yaml").write_text(pipeline.replace("  save:", "  raw: {input: data, io_hdf5: {}}\n  save:"))
    shell(script, folder)
    directory = (folder / "runs" / "latest").resolve()
    figure, axes = panels(3)
    image(axes[0], frames(directory, "raw")[0], "a frame", vmax=120)
    image(axes[1], np.mean(frames(directory, "save"), axis=0), "corrected, mean", vmax=80)
    (path,) = directory.glob("*_profile.h5")
    with h5py.File(path) as file:
        q = file["entry_0000/axes/q"][()]
    single, mean = table(directory, "profile", "intensity")[0], table(directory, "profile", "intensity").mean(axis=0)
    for n in (3, 4, 8, 11, 12, 16, 19, 20, 24, 27):  # reflections of a face-centred cube
        axes[2].axvline(2 * np.pi / (0.5411651 / n**0.5), color="0.8", lw=1)
    curve(axes[2], q, single, "profile: one frame, and the mean", "q, 1/nm", color="C1", lw=0.5)
    axes[2].plot(q, mean, color="C0", lw=1)
    return figure


def crystallography(folder: Path) -> Any:
    """A hit with its peaks, and counts of all frames."""
    directory = example("crystallography", folder)
    count = table(directory, "peaks", "count")
    hit = int(np.flatnonzero(count >= 15)[0])
    x, y = (table(directory, "peaks", name)[hit] for name in "xy")
    text = (EXAMPLES / "crystallography.yaml").read_text(encoding="utf-8")
    text = text.replace("sparsify: {above: 4}", "checkpoint: {}").replace("save: {input: spots", "save: {input: hits")
    (folder / "all.yaml").write_text(text)
    run("run", "all.yaml", "--progress", "none", cwd=folder)
    whole = (folder / "runs" / "latest").resolve()
    numbers = frames(whole, "save", "frame_number")[()].tolist()
    figure, axes = panels(2)
    image(axes[0], frames(whole, "save")[numbers.index(hit)], f"frame {hit}, and its peaks", cmap="gray_r", vmax=20)
    axes[0].scatter(x, y, s=40, facecolors="none", edgecolors="C3", lw=1)
    curve(axes[1], np.arange(len(count)), count, "peaks of each frame", "frame", marker=".", ms=3, lw=0)
    axes[1].axhline(15, color="C3", lw=0.8)
    return figure


def virtual_detectors(folder: Path) -> Any:
    """Bright field, dark field, deflection."""
    make, pipeline, read = blocks("virtual-detectors")
    (folder / "stem.yaml").write_text(pipeline)
    subprocess.run([sys.executable, "-c", make], cwd=folder, check=True)
    run("run", "stem.yaml", "--progress", "none", cwd=folder)
    names: dict[str, Any] = {}
    exec(compile(read.replace("runs/latest", str(folder / "runs" / "latest")), "read", "exec"), names)
    figure, axes = panels(3)
    image(axes[0], names["bright"], "bright field", cmap="gray")
    image(axes[1], names["dark"], "dark field", cmap="gray")
    across, down = names["deflection"]
    image(axes[2], np.hypot(across, down), "deflection, pixels", cmap="magma")
    at = np.arange(1, 32, 3)
    axes[2].quiver(*np.meshgrid(at, at), across[np.ix_(at, at)], -down[np.ix_(at, at)], color="w")
    return figure


def shell(script: str, folder: Path) -> None:
    """Run the commands of a page."""
    script = script.replace("lima2 ", f"{sys.executable} -m lima2cli ")
    subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True)


def tables(page: str) -> list[list[list[str]]]:
    """Return the tables of a page, as rows of cells; the row below the head is left out."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[[cell.strip() for cell in line[1:-1].split("|")] for line in one.splitlines()] for one in found]
    return [[head, *others] for head, _, *others in rows]


def scaling(folder: Path) -> Any:
    """Curves of the tables of `docs/explanation/scaling.md`, which are those of the benchmark."""
    (head, *varied), (receivers, spent), *_ = tables("explanation/scaling.md")
    figure, axes = panels(2)
    for name, *cells in varied:
        points = []
        for size, cell in zip(head[1:], cells, strict=True):
            if numbers := re.findall(r"\d+", cell):
                points.append((int(numbers[-1] if size == "most" else size), int(numbers[0])))
        axes[0].loglog(*zip(*points, strict=True), "o-", ms=3, lw=1, label=name)
    axes[0].legend(fontsize=7)
    curve(axes[1], [int(it) for it in receivers[1:]], [float(it) for it in spent[1:]],
          "a run: CPU s of a rank", "receivers, on two cores", marker="o", ms=3)  # fmt: skip
    axes[1].set_xscale("log", base=2)
    axes[1].set_ylim(0)
    axes[0].set_title("compile: CPU ms", fontsize=9)
    axes[0].set_xlabel("number", fontsize=8)
    axes[0].tick_params(labelsize=7)
    return figure


RECIPES: dict[str, Callable[[Path], Any]] = {
    it.__name__: it
    for it in (
        powder, tomography, crystallography, xpcs, jungfrau, dual_threshold, virtual_detectors, slow_viewer, scaling,
    )
}  # fmt: skip


def main() -> None:
    """Draw all pictures, or those that are named."""
    for name in sys.argv[1:] or RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            figure = RECIPES[name](Path(folder))
        path = HERE / ("" if name == "scaling" else "recipes") / f"{name}.png"
        figure.savefig(path, dpi=100)
        Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
        print(path.relative_to(ROOT), f"{path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
