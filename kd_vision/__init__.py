"""kd_vision: distil object detectors."""

__version__ = "0.1.0"
