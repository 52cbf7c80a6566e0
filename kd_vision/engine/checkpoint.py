"""The state of a run on disk: all that an exact resume needs; reading it runs no code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from kd_vision.core.errors import RequestError
from kd_vision.core.files import atomic_write
from kd_vision.engine.ema import WeightAverage
from kd_vision.engine.step import TrainingStep

_FORMAT = 1


@dataclass
class TrainingState:
    """Progress of a run.

    Attributes:
        step: batches done.
        best_ap: best validation AP so far, as a fraction; -1 before the first.
        best_step: step of it.
        stale: validations since then.
        stopped: patience has run out.
        images: images the student was trained on, labelled or not; repetitions count.
        train_seconds: wall time of training without validation.
    """

    step: int = 0
    best_ap: float = -1.0
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    images: int = 0
    train_seconds: float = 0.0


def save_checkpoint(
    path: Path,
    run: TrainingStep,
    average: WeightAverage,
    optimizer: Optimizer,
    progress: TrainingState,
    identity: dict[str, Any],
) -> None:
    """Write a checkpoint whole or not at all. The teacher is not in it.

    Args:
        path: file.
        run: student and distiller.
        average: moving average of the student.
        optimizer: its state.
        progress: of the run.
        identity: values that a resumed run must share (config digest, model, classes).
    """
    content = {
        "format": _FORMAT,
        "identity": identity,
        "progress": vars(progress),
        "student": run.student.state_dict(),
        "distiller": run.distiller.state_dict() if run.distiller else {},
        "average": average.detector.state_dict(),
        "average_updates": average.updates,
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    with atomic_write(path) as part:
        torch.save(content, part)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    Raises:
        RequestError: missing, damaged, or not a checkpoint of kd_vision.
    """
    if not path.is_file():
        raise RequestError(f"{path}: no checkpoint there; give the directory of a run that was started")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated kinds for a damaged file
        raise RequestError(f"{path}: cannot be read as a checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise RequestError(f"{path}: is not a kd_vision checkpoint of format {_FORMAT}")
    return content


def restore(
    content: dict[str, Any],
    path: Path,
    run: TrainingStep,
    average: WeightAverage,
    optimizer: Optimizer,
    identity: dict[str, Any],
) -> TrainingState:
    """Put a checkpoint's state back.

    Raises:
        RequestError: the checkpoint belongs to another run.
    """
    errors = [
        f"{path}: belongs to another run: {key} is {content['identity'].get(key)!r} there, {value!r} here; "
        f"use the same config, or another --out"
        for key, value in identity.items()
        if content["identity"].get(key) != value
    ]
    if errors:
        raise RequestError(*errors)
    run.student.load_state_dict(content["student"])
    if run.distiller:
        run.distiller.load_state_dict(content["distiller"])
    average.detector.load_state_dict(content["average"])
    average.updates = content["average_updates"]
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"])
    if content.get("device_rng") is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["device_rng"])
    return TrainingState(**content["progress"])
