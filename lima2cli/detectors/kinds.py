"""The kinds of detector that exist."""

from collections.abc import Mapping

from lima2cli.detectors.base import DetectorConfig
from lima2cli.plugins import Kinds

BUILT_IN: Mapping[str, str] = {
    "remu": "lima2cli.detectors.remu:Remu",
    "replay": "lima2cli.detectors.replay:Replay",
    "smartpix": "lima2cli.detectors.smartpix:SmartPix",
    "rashpa": "lima2cli.detectors.rashpa:Rashpa",
    "jungfrau": "lima2cli.detectors.jungfrau:Jungfrau",
}
"""Where the tables of the built-in detectors are, by kind; one is imported where it is asked for."""

DETECTORS: Kinds[DetectorConfig] = Kinds("detector", "lima2cli.detectors", DetectorConfig, BUILT_IN)
"""All kinds of detector, those of installed packages among them."""


def detector_kinds() -> Mapping[str, type[DetectorConfig]]:
    """Tables of the built-in detectors by kind; all are imported."""
    return DETECTORS.tables()
