"""io_hdf5: what it decides for the files, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lima2cli.errors import NodeMisuse
from lima2cli.files.channel import Channel
from lima2cli.frames import DatasetInfo, DetectorInfo
from lima2cli.geometry import Rule
from lima2cli.nodes.base import Inputs
from tests.node_inputs import MemoryFiles, block, node, pixels, spec_of

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
    assert use.infer(Inputs.of(spec, NONE)) is spec
    assert use.channel(spec, None) == {
        "layout": "files",
        "compression": "bslz4",
        "frames_per_file": parameters.get("frames_per_file", 0),
        "frames_per_chunk": chunk,
        "checksum": True,
        "packed": False,
    }


@pytest.mark.parametrize(
    ("parameters", "key"),
    [({"compression": "gzip"}, "compression"), ({"frames_per_file": 5}, "frames_per_file"),
     ({"frames_per_chunk": 5}, "frames_per_chunk")],
)  # fmt: skip
def test_a_common_file_is_one_plain_dataset(parameters: dict[str, Any], key: str) -> None:
    spec = spec_of("uint16", 2, 2)
    with pytest.raises(NodeMisuse) as refused:
        node("io_hdf5", layout="common", **parameters).infer(Inputs.of(spec, NONE))
    assert (refused.value.rule, refused.value.key) == ("layout-common", (key,))
    for compression in ({}, {"compression": "none"}):
        use = node("io_hdf5", layout="common", **compression)
        assert use.infer(Inputs.of(spec, NONE)) is spec
        assert use.channel(spec, None)["compression"] == "none"


def test_a_chunk_larger_than_a_file_is_refused() -> None:
    with pytest.raises(NodeMisuse) as refused:
        node("io_hdf5", frames_per_file=10, frames_per_chunk=11).infer(Inputs.of(spec_of("uint16", 2, 2), NONE))
    assert refused.value.key == ("frames_per_chunk",)
    node("io_hdf5", frames_per_file=10, frames_per_chunk=10).infer(Inputs.of(spec_of("uint16", 2, 2), NONE))


def test_frames_that_go_in_are_in_the_files(tmp_path: Path) -> None:
    import h5py

    use, spec = node("io_hdf5", frames_per_file=4, frames_per_chunk=3), spec_of("uint16", 6, 5)
    detector = DetectorInfo("remu", "remu", 5, 6, (spec.view.area,), (DatasetInfo("data", 0, "uint16", 16),))
    rule = Rule(0, 1, 7, blocks=1, buffers=1, slots=10, stride=60)
    channel = Channel(
        "maze", "save", "data", "uint16", 6, 5, rule, 7, (0,), spec.view, detector, **use.channel(spec, None)
    )
    frames = pixels("uint16", (7, 6, 5))
    writer = use.open(channel, str(tmp_path), 0, 10**18)
    assert sum(writer.commit(writer.stage(block(frames[k : k + 2], k))) for k in range(0, 7, 2)) == 7
    writer.close()
    saved = []
    for path in sorted(tmp_path.glob("maze_save_0_*.h5")):
        with h5py.File(path) as file:
            saved.append(file["/entry_0000/measurement/data"][()])
    assert [len(part) for part in saved] == [4, 3]
    np.testing.assert_array_equal(np.concatenate(saved), frames)
