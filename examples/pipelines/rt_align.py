"""The worker of rt_align.yaml: how far the picture has moved from one frame to the next.

Phase correlation (C. D. Kuglin, D. C. Hines: The phase correlation image alignment method, Proc. IEEE Int. Conf. on
Cybernetics and Society, 163-165, 1975): the normalised cross power spectrum of two pictures of which one is shifted is
that of a delta function, whose peak lies at the shift.
"""

import numpy as np
from numpy.typing import NDArray

from lima2cli.worker import serve


class Shift:
    """Shifts (dy, dx), in pixels, of each frame against the one that came before it; whole numbers."""

    def __init__(self, spec: object) -> None:
        self._before: NDArray[np.complex128] | None = None

    def __call__(self, frames: NDArray[np.uint16], numbers: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Frames (n, height, width) to shifts (n, 2); (0, 0) of the very first frame."""
        shifts = np.zeros((len(frames), 2), np.float32)
        for i, frame in enumerate(frames):
            spectrum = np.fft.rfft2(frame)
            if self._before is not None:
                shifts[i] = peak(spectrum * self._before.conj(), frame.shape)
            self._before = spectrum
        return shifts


def peak(cross: NDArray[np.complex128], shape: tuple[int, ...]) -> tuple[int, int]:
    """Where the phase correlation is largest, (dy, dx), between minus and plus half of the shape."""
    correlation = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-12), shape)
    y, x = np.unravel_index(int(correlation.argmax()), shape)
    height, width = shape
    return int((y + height // 2) % height - height // 2), int((x + width // 2) % width - width // 2)


if __name__ == "__main__":
    serve(Shift)
