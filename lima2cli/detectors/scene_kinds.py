"""The kinds of scene that exist."""

from collections.abc import Mapping

from lima2cli.detectors.photons import Poisson
from lima2cli.detectors.scenes import CounterScene, Frames, Gradient, Noise, Rings, Scene

SCENES: Mapping[str, type[Scene]] = {it.kind: it for it in (Rings, Gradient, Noise, Poisson, CounterScene, Frames)}
"""Tables of scenes by kind."""
