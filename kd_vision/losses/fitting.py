"""Which losses fit a pair of detectors."""

from __future__ import annotations

from kd_vision.core.spec import DetectorSpec
from kd_vision.losses import LOSSES, load_loss


def fitting_losses(student: DetectorSpec, teacher: DetectorSpec) -> list[str]:
    """Names of the losses that work on a pair with their default settings."""
    kinds = {name: load_loss(name) for name in LOSSES}
    return [name for name, kind in kinds.items() if not kind.incompatibilities(kind.Config(), student, teacher)]
