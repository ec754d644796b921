"""Cutting blocks of frames into pieces that stay in a core's cache from one numpy call to the next."""

TILE_PIXELS = 32768
"""Pixels of a tile: 128 KiB as float32, 256 KiB as float64, beside a cache of 512 KiB or more."""

Tile = tuple[slice, slice]
"""Frames and rows."""


def tile_shape(height: int, width: int) -> tuple[int, int]:
    """(frames, rows) of the largest tile: whole frames where several fit, else whole rows of one frame."""
    if height * width <= TILE_PIXELS:
        return max(1, TILE_PIXELS // (height * width)), height
    return 1, max(1, TILE_PIXELS // width)


def tiles(frames: int, height: int, width: int) -> list[Tile]:
    """The tiles of a block; those of the same rows follow each other, so that a calibration image stays in cache."""
    deep, tall = tile_shape(height, width)
    return [
        (slice(i, min(i + deep, frames)), slice(y, min(y + tall, height)))
        for y in range(0, height, tall)
        for i in range(0, frames, deep)
    ]
