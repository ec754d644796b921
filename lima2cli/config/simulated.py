"""Pipeline to Pipeline: the same with REMU in the place of its detector, which plays hardware that never waits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import ClassVar

from lima2cli.config.pipeline import DataFlow, GraphNode, Pipeline
from lima2cli.detectors.base import DetectorConfig, PixelSize
from lima2cli.detectors.faults import Faults
from lima2cli.detectors.modules import Module
from lima2cli.detectors.operations import operate
from lima2cli.detectors.remu import Dataset, ImageSize, Remu
from lima2cli.detectors.scenes import Frames, Scene
from lima2cli.nodes.base import Sink
from lima2cli.nodes.checkpoint import Checkpoint
from lima2cli.spec import DetectorInfo

SUFFIX = "{name}_sim_{run:04d}"
"""Of the run directory of a simulation, which lies beside those of runs: on the same disk."""


ANY_LOST = "100 %"
"""What is lost is the answer of a simulation, not its failure."""


@dataclass(frozen=True)
class Simulation:
    """What is asked of a simulation.

    period_s   from frame to frame, None = as fast as REMU can;  frames  of the acquisition
    faults     of the detector, None for none;  saves  whether frames are written
    directory  of its files; None: beside the runs
    """

    period_s: float | None
    frames: int
    faults: Faults | None = None
    saves: bool = True
    directory: str | None = None


@dataclass(frozen=True, kw_only=True)
class Noted(Checkpoint):
    """In the place of a sink: which frames came, dense or sparse."""

    sparse: ClassVar[bool] = True


def simulated(pipeline: Pipeline, asked: Simulation) -> Pipeline:
    """The pipeline as a simulation runs it. It must be without `POISON`.

    REMU has the sensor of the detector (image, modules, datasets, channels, gap value, names), does what the detector
    is asked to do itself, and sees what `DetectorConfig.scenes_for` says. Frames start by themselves; nothing repeats.
    """
    said = pipeline.acquisition
    acquisition = replace(
        said,
        frames=asked.frames,
        period=asked.period_s,
        rate=None,
        trigger="internal",
        frames_per_trigger=1,
        repeat=1,
        allow_lost=ANY_LOST,
    )
    config, sensor = emulator(pipeline.config, pipeline.detector.sensor, asked.faults)
    return replace(
        pipeline,
        config=config,
        detector=operate(sensor, said.operations),
        acquisition=acquisition,
        flows={name: _unwaiting(flow) for name, flow in pipeline.flows.items()},
        nodes=pipeline.nodes if asked.saves else {name: _unsaved(it) for name, it in pipeline.nodes.items()},
        output=replace(pipeline.output, directory=asked.directory or beside(pipeline.output.directory)),
    )


def emulator(config: DetectorConfig, sensor: DetectorInfo, faults: Faults | None) -> tuple[Remu, DetectorInfo]:
    """REMU that plays a detector whose sensor is described, and the description of that."""
    datasets = tuple(replace(dataset, frames=None) for dataset in sensor.datasets)
    loses = faults is not None and faults.lose_frames
    played = replace(sensor, datasets=datasets, can_wait=False, can_fail=loses, operated=None)
    pixels = sensor.pixel_size
    remu = Remu(
        name=sensor.name,
        pixel_size=None if pixels is None else PixelSize(x=pixels[0], y=pixels[1]),
        saturation=sensor.saturation,
        image=ImageSize(width=sensor.width, height=sensor.height),
        datasets={it.name: Dataset(dtype=it.dtype, bits=it.bits, threshold=it.threshold_ev) for it in datasets},
        modules=tuple(Module(x=m.x, y=m.y, width=m.width, height=m.height) for m in sensor.modules),
        channels=sensor.channels,
        gap_value=sensor.gap_value,
        faults=faults,
        scenes={name: _endless(scene) for name, scene in config.scenes_for(sensor).items()},
    )
    return remu, played


def beside(directory: str) -> str:
    """The directory of a simulation, as a template, from that of runs."""
    return str(PurePath(directory).parent / SUFFIX)


def faults_of(config: DetectorConfig) -> Faults | None:
    """Those that the pipeline gives its detector."""
    faults = getattr(config, "faults", None)
    return faults if isinstance(faults, Faults) else None


def waiting_flows(flows: Mapping[str, DataFlow]) -> list[str]:
    """Names of the flows for which a run would wait."""
    return [name for name, flow in flows.items() if flow.overrun == "wait"]


def _endless(scene: Scene) -> Scene:
    return replace(scene, loop=True) if isinstance(scene, Frames) else scene


def _unwaiting(flow: DataFlow) -> DataFlow:
    return replace(flow, overrun="continue") if flow.overrun == "wait" else flow


def _unsaved(it: GraphNode) -> GraphNode:
    """Frames that would be saved are noted instead, so that all that makes them is still computed."""
    return replace(it, node=Noted()) if isinstance(it.node, Sink) else it
