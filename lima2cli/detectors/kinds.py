"""The kinds of detector that exist."""

from collections.abc import Mapping
from functools import cache

from lima2cli.detectors.base import DetectorConfig
from lima2cli.detectors.remu import Remu
from lima2cli.detectors.replay import Replay

BUILT_IN: tuple[type[DetectorConfig], ...] = (Remu, Replay)


@cache
def detector_kinds() -> Mapping[str, type[DetectorConfig]]:
    """Tables of all detectors by kind."""
    return {detector.kind: detector for detector in BUILT_IN}
