"""Built-in nodes and detectors keep what is asked of those of other packages."""

import os
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest

from lima2cli.declare import Table, Text, param
from lima2cli.detectors.base import AcqParams, Operations, XferParams, detector_kinds
from lima2cli.frames import Experiment, FrameSpec, TableSpec
from lima2cli.geometry import Rect
from lima2cli.inputs.stacks import FileStore
from lima2cli.nodes.accumulate import Accumulate
from lima2cli.nodes.base import Inputs, Map
from lima2cli.nodes.python import Python
from lima2cli.nodes.registry import node_kinds
from lima2cli.testing import DetectorTests, NodeTests, frame_spec
from tests.node_inputs import MemoryFiles, node, read

HOLES = np.zeros((12, 10), bool)
HOLES[2:4, 5:] = True
SPECS = (
    frame_spec("uint16", 12, 10),
    frame_spec("int8", 12, 10, mask=HOLES),
    frame_spec("float32", 12, 10, mask=HOLES, saturation=9000.0),
)
IMAGES = MemoryFiles(
    dark=np.linspace(0, 20, 120).reshape(12, 10),
    flat=np.concatenate([[0.0, np.nan], np.linspace(0.5, 1.5, 118)]).reshape(12, 10),
    bad=HOLES.T.reshape(12, 10),
    pedestals=np.linspace(90, 110, 360).reshape(3, 12, 10),
    weights=np.random.default_rng(8).normal(size=(5, 12, 10)),
    gains=np.concatenate([[0.0], np.linspace(40, -0.5, 359)]).reshape(3, 12, 10),
)
RECT = {"rect": {"x": 1, "y": 2, "width": 7, "height": 5}}
ARC = {"arc": {"x": 4, "y": 5, "r1": 1, "r2": 6, "a1": 0, "a2": 200}}
POLYGON = {"polygon": {"points": [[-3, 2], [9, 0], [8, 12], [4.5, 3]]}}

COUNTED = ["avg", "std", "min", "max", "sum", "valid", {"above": 90.5}, "com_x", "com_y"]


class WithImages(NodeTests):
    specs = SPECS

    @pytest.fixture
    def files(self) -> MemoryFiles:
        return IMAGES


class TestBackgroundSub(WithImages):
    node = node("background_sub", image="dark")


class TestBackgroundSubKeep(WithImages):
    node = node("background_sub", image="dark", dtype="keep")


class TestFlatfield(WithImages):
    node = node("flatfield", image="flat", background=0.1)


class TestMask(WithImages):
    node = node("mask", image="bad", fill=7)


class TestMaskOfNothing(WithImages):
    node = node("mask", image=0)


class TestGain(WithImages):
    node = node("gain", pedestal="pedestals", gain="gains", photon_energy="9 keV")
    specs = (frame_spec("uint16", 12, 10), frame_spec("uint16", 12, 10, mask=HOLES, saturation=60000.0))


class TestRoiCounters(NodeTests):
    node = node("roi_counters", rois={"door": RECT, "ring": ARC, "star": POLYGON}, statistics=COUNTED)
    specs = SPECS


class TestRoiProfiles(NodeTests):
    node = node("roi_profiles", rois={"door": RECT}, statistics=COUNTED[:-2])
    specs = SPECS


class TestVerticalRoiProfiles(NodeTests):
    node = node("roi_profiles", rois={"door": RECT, "gate": RECT}, direction="vertical")
    specs = SPECS


class TestCheckpoint(NodeTests):
    node = node("checkpoint")
    specs = SPECS[:1]


class TestCheckpointOfSome(NodeTests):
    node = node("checkpoint", every=4)
    specs = SPECS[:1]


PARTS = [
    replace(spec, view=spec.view.cut(part), mask=None if spec.mask is None else spec.mask[part.y : part.bottom],
            whole=spec.view)
    for spec in SPECS[1:]
    for part in (Rect(0, 0, 10, 5), Rect(0, 5, 10, 7))
]  # fmt: skip


class TestRoiCountersOfParts(NodeTests):
    node = node("roi_counters", rois={"door": RECT, "ring": ARC, "star": POLYGON}, statistics=COUNTED)
    specs = PARTS


class TestRoiProfilesOfParts(NodeTests):
    node = node("roi_profiles", rois={"door": RECT}, direction="vertical")
    specs = PARTS


class TestHistogram(NodeTests):
    node = node("histogram", bins=30, range=(-5.5, 9000))
    specs = SPECS


class TestHistogramOfParts(NodeTests):
    node = node("histogram", bins=30, range=(-5.5, 100))
    specs = PARTS


class TestProject(WithImages):
    node = node("project", masks="weights")


class TestProjectOfParts(WithImages):
    node = node("project", masks="dark", dtype="float32")
    specs = PARTS


AZIMUTHAL = [
    replace(spec, experiment=Experiment(12400.0, 0.002, (4.0, 5.5), (1e-4, 1e-4), (10, 12)))
    for spec in (*SPECS, *PARTS)
]


@pytest.mark.skipif(find_spec("pyFAI") is None, reason="pyFAI is not installed")
class TestAzimuthal(NodeTests):
    node = node("azimuthal", bins=7, error_model="poisson", solid_angle=False)
    specs = AZIMUTHAL


@pytest.mark.skipif(find_spec("pyFAI") is None, reason="pyFAI is not installed")
class TestAzimuthalCake(NodeTests):
    node = node("azimuthal", bins={"radial": 4, "azimuthal": 3}, unit="2th_deg")
    specs = AZIMUTHAL


class TestPeaks(NodeTests):
    node = node("peaks", cutoff=1, most=5, connected=1)
    specs = AZIMUTHAL[:3]


class TestPeaksLocal(NodeTests):
    node = node("peaks", cutoff=1.5, most=40, connected=2, background="local")
    specs = SPECS


class TestRoiFlipRot(NodeTests):
    node = node("roi_flip_rot", binning={"x": 2, "y": 3}, flip="horizontal", rotation=90)
    specs = SPECS


class TestAccumulate(NodeTests):
    node = Accumulate(frames=3)
    specs = SPECS


class TestAccumulateAll(NodeTests):
    node = Accumulate(frames=0, operation="max")
    specs = SPECS


class TestAccumulateStd(NodeTests):
    node = Accumulate(frames=4, operation="std")
    specs = SPECS


class TestExpression(NodeTests):
    node = node("expression", expr="where(a > 100, a % b, b) / 2")
    specs = SPECS


class TestExpressionOfOne(NodeTests):
    node = node("expression", expr="1.5 * raw", dtype="uint16")
    specs = SPECS
    inputs = ("raw",)


class TestSparsify(NodeTests):
    node = node("sparsify", above=100.5)
    specs = SPECS


class TestSparsifyAboveBackground(NodeTests):
    node = node("sparsify", above={"sigma": 1})
    specs = AZIMUTHAL[:3]


class TestSparsifyAboveImage(WithImages):
    node = node("sparsify", above="dark")


class TestFilter(NodeTests):
    node = node("filter", keep="counters.door-1_avg > 30 and not log.latency + 3 < counters.n", every=4)
    specs = SPECS
    tables: ClassVar = {
        "counters": TableSpec({"door-1_avg": "float32", "n": "uint16", "line": "float32"}, lengths={"line": 3}),
        "log": TableSpec({"latency": "float64"}),
    }


class TestPython(NodeTests):
    node = Python(function="cut.py:cut", params={"at": 100})
    specs = SPECS

    @pytest.fixture
    def files(self, tmp_path: Path) -> Any:
        (tmp_path / "cut.py").write_text("def cut(frames, numbers, at):\n    return frames.clip(None, at)\n")
        with FileStore(tmp_path) as files:
            yield files


class TestIoStream(NodeTests):
    node = node("io_stream", endpoint=f"tcp://127.0.0.1:{20_000 + os.getpid() % 40_000}", when_slow="drop", patience=0)
    specs = SPECS


class TestMpi(NodeTests):
    node = node("mpi", command=("align",), output={"dtype": "float32", "shape": (2,)})
    specs = SPECS


class TestMpiWithoutReply(NodeTests):
    node = node("mpi", command=("watch",), reply=False)
    specs = SPECS


class TestReconstruction(NodeTests):
    node = node("reconstruction", fill=7)
    specs = SPECS


class TestReconstructionVirtual(NodeTests):
    node = node("reconstruction", strategy="virtual")
    specs = SPECS


class TestIoHdf5(NodeTests):
    node = node("io_hdf5", frames_per_file=3, frames_per_chunk=2)
    specs = SPECS

    def read_back(self, directory: Path) -> np.ndarray[Any, Any]:
        import h5py
        import hdf5plugin  # noqa: F401

        parts = []
        for path in sorted(directory.glob("test_save_0_*.h5")):
            with h5py.File(path) as file:
                parts.append(file["/entry_0000/measurement/data"][()])
        return np.concatenate(parts)


def test_every_built_in_node_is_tested() -> None:
    tested = {item.node.kind for item in globals().values() if isinstance(item, type) and hasattr(item, "node")}
    assert set(node_kinds()) <= tested


def detector(kind: str, **parameters: Any) -> Any:
    return read(Table(detector_kinds()[kind]), parameters)


MODULES = {"columns": 2, "rows": 2, "width": 14, "height": 9, "gap": {"x": 3, "y": 1}}
SMALL = {
    "image": {"width": 40, "height": 22},
    "datasets": {"a": {"dtype": "uint16"}, "b": {"dtype": "uint8", "bits": 7}},
}


class TestRemuCounter(DetectorTests):
    config = detector("remu", **SMALL, modules=MODULES, scene={"counter": {}})
    whole = detector("remu", **SMALL, scene={"counter": {}})


class TestRemuNoise(DetectorTests):
    config = detector("remu", **SMALL, modules=MODULES, scene={"noise": {}}, scenes={"b": {"rings": {}}})
    whole = detector("remu", **SMALL, scene={"noise": {}}, scenes={"b": {"rings": {}}})
    period_s = None


class TestRemuWithFaults(DetectorTests):
    config = detector(
        "remu",
        **SMALL,
        modules=MODULES,
        gap_value=9,
        scene={"counter": {}},
        scenes={"b": {"poisson": {}}},
        faults={
            "hot": {}, "dead": {}, "jitter": {"by": 1}, "failed": {"rate": 0.3}, "dropped": {"rate": 0.3},
            "corrupted": {"rate": 0.3}, "late": {"by": "1 ms"}, "died": {"frame": 4},
        },
    )  # fmt: skip

    def test_operations_of_the_detector(self, detector: Any, info: Any) -> None:
        """Faults strike what comes out of them: the same frames are missing."""
        detector.prepare(AcqParams(6, None, operations=Operations(2, (2, 2))), XferParams(((0, 1),)))
        detector.start(time.time_ns())
        self._wait(detector, 6)
        missing = detector.missing(0, 1, range(6))
        np.testing.assert_array_equal(missing, self.config.faults.missing(1, np.arange(6)))
        frames = self._all(detector, (0, 1), range(6))
        assert ((frames == info.gap_value).all(axis=(1, 2)) == missing).all()


class TestSmartPix(DetectorTests):
    config = detector("smartpix", modules={"columns": 1, "rows": 1}, scene={"gradient": {}})
    frames = 4


class WithStack(DetectorTests):
    @pytest.fixture
    def files(self, tmp_path: Path) -> Any:
        np.save(tmp_path / "s.npy", np.arange(9 * 22 * 40, dtype=np.int32).reshape(9, 22, 40))
        with FileStore(tmp_path) as files:
            yield files


class TestReplay(WithStack):
    config = detector("replay", file="s.npy", modules=MODULES)
    whole = detector("replay", file="s.npy")


class TestReplayOfWhatIsIncomplete(DetectorTests):
    config = detector("replay", file="s.h5", modules=MODULES, gap_value=-3, incomplete="skip")
    whole = detector("replay", file="s.h5", gap_value=-3, incomplete="skip")

    @pytest.fixture
    def files(self, tmp_path: Path) -> Any:
        with h5py.File(tmp_path / "s.h5", "w") as file:
            data = file.create_dataset("data", (9, 22, 40), "i4", chunks=(1, 22, 40))
            for number in (0, 1, 3, 4, 8):
                data[number] = np.arange(22 * 40).reshape(22, 40) + number
        with FileStore(tmp_path) as files:
            yield files


class TestReplayLoop(WithStack):
    config = detector("replay", file="s.npy", loop=True)
    frames = 20


# The kit itself: it must find what is wrong


@dataclass(frozen=True, kw_only=True)
class Careless(Map):
    """A node with a mistake."""

    kind: ClassVar[str] = "careless"

    mistake: str = param("Which.", Text())

    def infer(self, inputs: Inputs) -> FrameSpec:
        return replace(inputs.spec, dtype="float64") if self.mistake == "dtype" else inputs.spec

    def bind(self, inputs: Inputs) -> Any:
        def work(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            if self.mistake == "writes":
                frames[...] = 0
            if self.mistake == "blocks":
                return frames - frames[:1]
            if self.mistake == "layout":
                return np.lib.stride_tricks.as_strided(frames, strides=np.empty(frames.shape, frames.dtype).strides)
            return frames

        return work


SPEC = frame_spec("uint16", 12, 10)


@pytest.mark.parametrize(
    ("mistake", "test", "arguments"),
    [
        ("dtype", "test_map_gives_frames_as_inferred", ()),
        ("writes", "test_map_leaves_its_input_alone", ()),
        ("blocks", "test_map_does_not_depend_on_blocks", ((3, 4),)),
        ("layout", "test_map_does_not_depend_on_blocks", ((),)),
    ],
)
def test_mistakes_of_nodes_are_found(mistake: str, test: str, arguments: tuple[Any, ...]) -> None:
    def run(mistake: str) -> None:
        kit = type("Kit", (NodeTests,), {"node": Careless(mistake=mistake), "specs": (SPEC,)})()
        getattr(kit, test)(SPEC, MemoryFiles(), *arguments)

    run("none")
    with pytest.raises(AssertionError):
        run(mistake)


def test_tests_of_other_roles_are_left_out_and_not_lost() -> None:
    assert TestMask.test_table_has_columns_as_inferred is None
    assert TestMask.test_map_gives_frames_as_inferred is not None
    with pytest.raises(TypeError, match="lacks test_sink"):
        type("Wrong", (TestMask,), {"node": node("io_hdf5")})
