"""Cutting blocks of frames into pieces that stay in a core's cache from one numpy call to the next."""

TILE_PIXELS = 131072
"""Pixels of a tile: 512 KiB as float32. What a tile needs stays in the cache of a core, 1 to 2 MiB, or of its
neighbours; a fourth of it fits anywhere, and spends as long between numpy's calls as in them."""

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
