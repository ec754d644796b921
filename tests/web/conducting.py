"""A conductor as a process, and requests as its clients make them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lima2cli.geometry import Rect
from tests.running import counter
from tests.web.serving import Client, serving

BASE = """
lima2: 1
name: det
detector: {remu: {image: {width: 64, height: 48}, datasets: {raw: {dtype: uint16}}, scene: {counter: {}}}}
acquisition: {frames: 5, rate: 100 Hz}
nodes: {}
"""


@contextmanager
def conducting(folder: Path, base: str = BASE) -> Iterator[Client]:
    """Run ``lima2 serve --conductor`` in a folder, and end it by Ctrl-C."""
    (folder / "base.yaml").write_text(base)
    words = ("--conductor", "base.yaml", "--port", "0", "--transport", "inline")
    with serving(folder, "serve", *words) as client:
        yield client


def request_of(
    acq: Mapping[str, Any], processing: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The parameters of an acquisition; those that are absent have their defaults."""
    own = {"acq": dict(acq)}
    request = {"control": own, "receiver": own, "processing": {"class_name": "LimaProcessingLegacy"}}
    request["processing"] |= dict(processing or {})
    return request | {"masterfile_metadata": dict(metadata or {})}


def roi(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """A rectangle as Lima2 writes it."""
    return {"topleft": {"x": x, "y": y}, "dimensions": {"x": width, "y": height}}


def counter_frames(count: int) -> NDArray[Any]:
    """The frames of the base's detector (count, 48, 64)."""
    return counter(np.arange(count, dtype=np.uint64), Rect(0, 0, 64, 48), 64)
