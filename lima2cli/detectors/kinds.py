"""The kinds of detector that exist."""

from collections.abc import Mapping

from lima2cli.detectors.base import DetectorConfig
from lima2cli.detectors.jungfrau import Jungfrau
from lima2cli.detectors.rashpa import Rashpa
from lima2cli.detectors.remu import Remu
from lima2cli.detectors.replay import Replay
from lima2cli.detectors.smartpix import SmartPix
from lima2cli.plugins import Kinds

BUILT_IN: tuple[type[DetectorConfig], ...] = (Remu, Replay, SmartPix, Rashpa, Jungfrau)

DETECTORS: Kinds[DetectorConfig] = Kinds("detector", "lima2cli.detectors", DetectorConfig, BUILT_IN)
"""All kinds of detector, those of installed packages among them."""


def detector_kinds() -> Mapping[str, type[DetectorConfig]]:
    """Tables of the built-in detectors by kind."""
    return DETECTORS.built_in
