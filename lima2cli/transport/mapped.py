"""Memory-mapped files as memspaces."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def map_file(path: str, size: int) -> NDArray[np.uint8]:
    """A writable map of a file of ``size`` bytes, made where it is not there. Raises OSError."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as handle:
        handle.truncate(max(1, size))
    return np.memmap(file, np.uint8, "r+", shape=(max(1, size),))
