"""Adapters start fitted, and fitting moves nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch

from kd_vision.config.load import load_config
from kd_vision.engine.step import TrainingStep, terms
from kd_vision.pipeline.adapter_init import fit_adapters
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.data import RunData, build_stream


def test_ridge_start_lowers_the_term_and_leaves_student_and_teacher_alone(
    write_config: Callable[..., Path], tmp_path: Path, awake_file: Callable[[str], Path]
) -> None:
    wide = awake_file("yolov8s")
    config = load_config(write_config(distill="[{loss: feature_mse}]"), [f"teacher.weights={wide}"])
    data = RunData(config.data)
    labelled, _ = data.training(config)
    parts = build_parts(config, data)
    student, distiller = parts.student, parts.distiller
    run = TrainingStep(student, distiller, parts.teachers).train()
    stream = build_stream(config, labelled, None, 3)
    batches = [stream.batch_at(step).as_float() for step in range(4)]

    def value(which: TrainingStep) -> float:
        return sum(float(terms(which, batch).distillation["feature_mse"]) * len(batch) for batch in batches)

    at_random = value(TrainingStep(copy.deepcopy(student), distiller, parts.teachers).train())
    before = copy.deepcopy(student.state_dict())
    fit_adapters(run, stream, torch.device("cpu"))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert value(run) < 0.9 * at_random  # regression minimises just this sum, over these batches
