"""lima2: declarative pipelines for 2D X-ray detectors that are faster than one computer."""

__version__ = "0.1.0"
