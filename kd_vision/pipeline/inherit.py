"""Starts the student of a run as a small copy of a larger model, and writes such a student to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import RequestError
from kd_vision.core.progress import ProgressFactory, log_progress, no_progress
from kd_vision.data.dataset import DetectionData
from kd_vision.data.loader import eval_batches
from kd_vision.data.records import without_labels
from kd_vision.detectors import open_detector
from kd_vision.detectors.base import Detector
from kd_vision.detectors.inherit_config import InheritConfig
from kd_vision.evaluation.metrics import Metrics
from kd_vision.inherit.start import Inheritance, inherit_weights
from kd_vision.pipeline.build import build_student
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.evaluate import measure

_BATCH = 16


@dataclass(frozen=True, slots=True)
class InheritResult:
    """Result of `inherit`.

    Attributes:
        student: the file.
        inheritance: what the student was given.
        split: name of the validation split.
        metrics: of the student on it, before any training step.
        teacher: of the model that it inherits from.
    """

    student: Path
    inheritance: Inheritance
    split: str
    metrics: Metrics
    teacher: Metrics


def start_as_copy(
    student: Detector, config: RunConfig, data: RunData, progress: ProgressFactory = no_progress
) -> Inheritance | None:
    """Give the student of a run its first weights where its config has ``inherit``.

    Raises:
        RequestError: see `inherit_weights`.
    """
    settings = _settings(config)
    return None if settings is None else _copy(student, _ancestor(config, settings), config, settings, data, progress)


def _settings(config: RunConfig) -> InheritConfig | None:
    settings: InheritConfig | None = getattr(config.student, "inherit", None)
    return settings


def _ancestor(config: RunConfig, settings: InheritConfig) -> Detector:
    """Open the model that the student inherits from."""
    trust = getattr(config.student, "trust", False)
    return open_detector(Path(settings.source), trust, f"{config.source}: student.inherit")


def _copy(
    student: Detector,
    ancestor: Detector,
    config: RunConfig,
    settings: InheritConfig,
    data: RunData,
    progress: ProgressFactory,
) -> Inheritance:
    images = _images(config, data, settings.images, student.spec.input_channels)
    with progress("inherit") as report:
        return inherit_weights(student, ancestor, settings, images, f"{config.source}: student.inherit", report)


def _images(config: RunConfig, data: RunData, count: int, channels: int) -> Tensor:
    """Return (B, C, S, S) training and unlabelled images in [0, 1], spread over the whole set."""
    pools = [without_labels(data.split("train"))]
    if data.descriptor.unlabelled is not None:
        pools.append(without_labels(data.unlabelled))
    share = -(-count // len(pools))
    parts = [
        batch.as_float().images
        for pool in pools
        for batch in eval_batches(_spread(pool, share), config.image_size, _BATCH, channels)
    ]
    return torch.cat(parts)[:count] if parts else torch.zeros(0, channels, config.image_size, config.image_size)


def _spread(data: DetectionData, count: int) -> DetectionData:
    return data.subset(range(0, len(data), max(1, len(data) // count))[:count])


def inherit(
    config: RunConfig | Path | str,
    out: Path | str,
    overrides: Sequence[str] = (),
    progress: ProgressFactory = log_progress,
) -> InheritResult:
    """Write the student of a config as a small copy of the model that it inherits from, before any training.

    Args:
        config: a config whose student has ``inherit``, or the path of one.
        out: the ``.pt`` to write.
        overrides: ``key=value`` strings, where `config` is a path.
        progress: receives the progress of the evaluation.

    Raises:
        RequestError: the request is wrong; see `inherit_weights`.
    """
    if not isinstance(config, RunConfig):
        config = load_config(Path(config), overrides)
    settings = _settings(config)
    if settings is None:
        raise RequestError(
            f"{config.source}: student.inherit: is missing; give the model to inherit from, e.g. "
            f"--set student.inherit.from=teacher"
        )
    path = Path(out)
    if path.suffix != ".pt":
        raise RequestError(f"--out {path}: give a file that ends in .pt")
    data = RunData(config.data)
    truth = data.split(config.evaluate.split)
    torch.manual_seed(config.train.seed)
    student = build_student(config, data.classes)
    ancestor = _ancestor(config, settings)
    inheritance = _copy(student, ancestor, config, settings, data, progress)
    student.save(path, {"image_size": str(config.image_size)})
    measured = [measure(one, truth, config.image_size, config.evaluate, progress) for one in (student, ancestor)]
    return InheritResult(path, inheritance, truth.name, *measured)
