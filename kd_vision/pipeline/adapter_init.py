"""Initialises linear adapters by ridge regression."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from kd_vision.core.batch import to_channels
from kd_vision.core.predictions import Signals
from kd_vision.data.loader import TrainStream
from kd_vision.detectors.base import Detector
from kd_vision.engine.step import TrainingStep
from kd_vision.losses.features import LinearFeatureLoss

_BATCHES = 4


def fit_adapters(run: TrainingStep, stream: TrainStream, device: torch.device) -> None:
    """Fit every linear adapter of the distiller on the first batches of training.

    Args:
        run: the training step, on `device`.
        stream: training batches; reading some of them does not change its state.
        device: of student and teachers.
    """
    if run.distiller is None:
        return
    for name, loss in run.distiller.terms().items():
        if isinstance(loss, LinearFeatureLoss):
            loss.fit(_pairs(run, run.distiller.teacher_of(name), stream, device))


def _pairs(
    run: TrainingStep, teacher: str, stream: TrainStream, device: torch.device
) -> Iterator[tuple[Signals, Signals]]:
    # A copy in training mode: batch statistics as in training, without an update of the student's running ones.
    student: Detector = copy.deepcopy(run.student).train()
    for step in range(min(_BATCHES, stream.total_steps)):
        batch = stream.batch_at(step).to(device).as_float()
        with torch.no_grad():
            images = to_channels(batch.images, student.spec.input_channels)
            output = student(images, signals=frozenset({"features"}))
            yield output.signals(), run.teacher_signals(batch)[teacher].signals()
