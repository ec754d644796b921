"""The function of python.yaml."""

import numpy as np
from numpy.typing import NDArray


def root(frames: NDArray[np.uint16], numbers: NDArray[np.uint64], scale: float) -> NDArray[np.float32]:
    """Square roots of pixels, (n, height, width), so that weak ones are seen beside strong ones."""
    return np.float32(scale) * np.sqrt(frames, dtype=np.float32)
