"""io_hdf5: what it decides for the files, and what it refuses."""

from typing import Any

import pytest

from lima2cli.errors import Misfit
from tests.node_inputs import MemoryFiles, node, spec_of

NONE = MemoryFiles()


@pytest.mark.parametrize(
    ("dtype", "shape", "parameters", "chunk"),
    [
        ("uint16", (256, 256), {}, 8),
        ("uint16", (1024, 1024), {}, 1),
        ("float32", (4096, 4096), {}, 1),
        ("uint8", (1, 1), {}, 2**20),
        ("uint16", (256, 256), {"frames_per_file": 5}, 5),
        ("uint16", (256, 256), {"frames_per_file": 50}, 8),
        ("uint16", (256, 256), {"frames_per_chunk": 3}, 3),
    ],
)
def test_chunks(dtype: str, shape: tuple[int, int], parameters: dict[str, Any], chunk: int) -> None:
    use, spec = node("io_hdf5", **parameters), spec_of(dtype, *shape)
    assert use.infer(spec, NONE) is spec
    assert use.channel(spec) == {
        "compression": "bslz4",
        "frames_per_file": parameters.get("frames_per_file", 0),
        "frames_per_chunk": chunk,
    }


@pytest.mark.parametrize("layout", ["common", "virtual"])
def test_layouts_that_are_not_there_yet_are_refused(layout: str) -> None:
    with pytest.raises(Misfit, match=f"layout `{layout}` is not available yet") as refused:
        node("io_hdf5", layout=layout).infer(spec_of("uint16", 2, 2), NONE)
    assert (refused.value.rule, refused.value.key) == ("not-available", ("layout",))


def test_a_chunk_larger_than_a_file_is_refused() -> None:
    with pytest.raises(Misfit) as refused:
        node("io_hdf5", frames_per_file=10, frames_per_chunk=11).infer(spec_of("uint16", 2, 2), NONE)
    assert refused.value.key == ("frames_per_chunk",)
    node("io_hdf5", frames_per_file=10, frames_per_chunk=10).infer(spec_of("uint16", 2, 2), NONE)
