"""Calibration images from frames: the pipelines that take them, and the arithmetic behind these.

Each kind has nodes that reduce all frames of one acquisition to a few images, on one receiver. What is left is done
with these images, once: all arrays are (height, width), those of a pedestal (3, height, width). NaN = not measured.

dark      mean of the frames; data_errors = std / sqrt(frames)
flat      mean of the frames, less a dark, divided by its mean over all pixels; pixels that are not above 0 are NaN
pedestal  of JUNGFRAU frames: mean of the low 14 bits in each gain stage, which the two top bits choose (0, 1, 3)
mask      bits of NeXus: pixels whose mean or standard deviation, over frames of even light, is an outlier
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.dataclass import dataclass
from lima2cli.errors import RunFailed

STAGES = {
    0: ("data < 16384", "data"),
    1: ("(data >= 16384) & (data < 32768)", "(data - 16384)"),
    2: ("data >= 49152", "(data - 49152)"),
}
"""Gain stages of JUNGFRAU: formulae for the pixels that are in it, and for their low 14 bits."""

DEAD, LOW, HIGH, NOISY = 1 << 1, 1 << 2, 1 << 3, 1 << 4
"""Bits of a NeXus pixel_mask: dead, under-responding, over-responding, noisy (NXdetector)."""

GAP = 1
"""Bit of a NeXus pixel_mask: a gap, or any pixel that was masked before."""

RAW = ("data", "data_errors", "std")

MAD = 1.482602218505602
"""Standard deviation of a normal distribution by its median absolute deviation."""


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a calibration: ``data``, and what is known of it, by name.

    counts  names of those that are counts, as the detector gives them;  notes  sentences for users
    """

    data: NDArray[Any]
    more: Mapping[str, NDArray[Any]]
    counts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def nodes_of(kind: str, dark: str | None = None) -> dict[str, Any]:
    """Return the nodes that reduce the frames of a flow ``data``; those that save are named after what they save."""
    if kind != "pedestal":
        chain = {} if dark is None else {"less": {"input": "data", "background_sub": {"image": dark}}}
        source = "data" if dark is None else "less"
        saved = {name: _accumulated(source, name) for name in ("mean", "std")}
        return chain | {key: value for each in saved.values() for key, value in each.items()}
    nodes: dict[str, Any] = {}
    for stage, (chosen, low) in STAGES.items():
        for name, pixels in (("count", "1"), ("sum", low), ("squares", f"{low} * {low}")):
            each = f"{name}{stage}"
            nodes[f"of-{each}"] = {"input": "data", "expression": {"expr": f"where({chosen}, {pixels}, 0)"}}
            nodes |= _accumulated(f"of-{each}", each, "sum")
    return nodes


def _accumulated(source: str, name: str, operation: str | None = None) -> dict[str, Any]:
    total: dict[str, Any] = {"frames": 0, "operation": operation or name}
    total |= {"dtype": "float64"} if operation == "sum" else {}  # where pixels that any frame lacks are NaN
    return {
        f"all-{name}": {"input": source, "accumulate": total},
        name: {"input": f"all-{name}", "io_hdf5": {"compression": "none"}},
    }


def saved_by(kind: str) -> tuple[str, ...]:
    """Return the names of the nodes that save, see `nodes_of`."""
    if kind != "pedestal":
        return ("mean", "std")
    return tuple(f"{name}{stage}" for stage in STAGES for name in ("count", "sum", "squares"))


def overrides_of(kind: str, directory: str, *, dark: str | None, dataset: str | None, frames: int | None) -> list[str]:
    """Return what is set in a user's pipeline (``--set``), so that it takes the frames of a calibration.

    Its detector, acquisition and metadata stay; flows, nodes, receivers and output are others.
    """
    flow = {} if dataset is None else {"dataset": dataset}
    wanted: dict[str, Any] = {
        "receivers": 1,
        "flows": {"data": flow},
        "nodes": nodes_of(kind, dark),
        "output": {"directory": directory},
    }
    return [f"{key}={json.dumps(value)}" for key, value in wanted.items()] + (
        [] if frames is None else [f"acquisition.frames={frames}"]
    )


Saved = Mapping[str, NDArray[Any]]
"""Images (height, width) by the names of `saved_by`; float pixels that are masked in all frames are NaN."""


def images_of(kind: str, runs: Sequence[tuple[Saved, int]], *, sigma: float) -> Images:
    """Return the images of a calibration from what each run has saved, and how many frames it had.

    Only a pedestal is made of several runs. ``sigma``: outliers of a mask are further away, in standard deviations.

    Raises:
        RunFailed: the frames can't be what they should be.
    """
    if kind == "pedestal":
        return _pedestal([saved for saved, _ in runs])
    ((saved, frames),) = runs
    mean, std = np.asarray(saved["mean"], np.float32), np.asarray(saved["std"], np.float32)
    if kind == "dark":
        return Images(mean, {"data_errors": std / np.float32(frames**0.5), "std": std}, RAW)
    return _flat(mean, std, frames) if kind == "flat" else _mask(mean, std, sigma)


def _flat(mean: NDArray[np.float32], std: NDArray[np.float32], frames: int) -> Images:
    good = mean > 0
    if not good.any():
        raise RunFailed("no pixel of the mean frame is above 0, as in a flat field")
    level = mean[good].mean(dtype=np.float64)
    flat = np.where(good, mean / level, np.nan).astype(np.float32)
    dead = int((~good & np.isfinite(mean)).sum())
    notes = (f"{dead} pixels are not above 0, and masked",) if dead else ()
    return Images(flat, {"data_errors": (std / level / frames**0.5).astype(np.float32)}, (), notes)


def _mask(mean: NDArray[np.float32], std: NDArray[np.float32], sigma: float) -> Images:
    measured = np.isfinite(mean)
    if not measured.any():
        raise RunFailed("no pixel was measured")
    middle, spread = _robust(mean[measured])
    noise, noise_spread = _robust(std[measured])
    bits: NDArray[np.uint32] = np.where(measured, 0, GAP).astype(np.uint32)
    found = {
        "dead": (DEAD, measured & (std == 0) & (noise > 0)),
        "low": (LOW, measured & (mean < middle - sigma * spread)),
        "high": (HIGH, measured & (mean > middle + sigma * spread)),
        "noisy": (NOISY, measured & (std > noise + sigma * noise_spread)),
    }
    for bit, where in found.values():
        bits[where] |= np.uint32(bit)
    counts = ", ".join(f"{int(where.sum())} {name}" for name, (_, where) in found.items())
    bad = int((bits > GAP).sum())
    return Images(
        bits, {"mean": mean, "std": std}, ("mean", "std"), (f"{bad} of {bits.size} pixels are bad: {counts}",)
    )


def _robust(values: NDArray[np.float32]) -> tuple[float, float]:
    """Return median and standard deviation, the latter from the median absolute deviation."""
    middle = float(np.median(values))
    return middle, MAD * float(np.median(np.abs(values - middle)))


def _pedestal(runs: Sequence[Saved]) -> Images:
    """Return pedestals of the three stages: each pixel and stage of all frames, of whichever run, that show it."""

    def stack(name: str) -> NDArray[np.float64]:
        whole: NDArray[np.float64] = np.sum(
            [[np.nan_to_num(saved[f"{name}{stage}"].astype(np.float64)) for stage in STAGES] for saved in runs],
            axis=0,
        )
        return whole

    count = stack("count")
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = stack("sum") / count
        variance = np.maximum(stack("squares") / count - mean**2, 0)
    std = np.sqrt(variance)
    seen = count > 0
    notes = []
    for stage, each in zip(STAGES, seen, strict=True):
        if not each.all():
            others = f"measured by {int(each.sum())} of {each.size} pixels" if each.any() else "not measured"
            notes.append(f"gain stage {stage} is {others}; NaN elsewhere")
    if not seen.any():
        raise RunFailed("no pixel was measured in any gain stage")
    errors = std / np.sqrt(np.where(seen, count, np.nan))
    more = {"data_errors": errors.astype(np.float32), "std": std.astype(np.float32), "frames": count.astype(np.uint32)}
    return Images(mean.astype(np.float32), more, RAW, tuple(notes))
