"""What the arms of a benchmark are, without training one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kd_vision.config.load import load_config
from kd_vision.config.trial import load_trial
from kd_vision.pipeline.arms import default_arms, notes_on, trial_arms
from kd_vision.teachers.ground_truth import GroundTruthConfig


def test_the_default_is_plain_control_and_distilled(write_config: Callable[..., Path]) -> None:
    config = load_config(write_config(train="unlabelled_ratio: 1"))
    plain, control, distilled = default_arms(config)
    assert [arm.name for arm in (plain, control, distilled)] == ["plain", "control", "distilled"]
    assert [arm.role for arm in (plain, control, distilled)] == ["plain", "control", "distilled"]
    assert not plain.config.is_distilled
    assert isinstance(control.config.teachers[0].config, GroundTruthConfig)
    assert distilled.config == config
    assert [arm.config.train.unlabelled_ratio for arm in (plain, control, distilled)] == [0, 0, 1]
    assert distilled.at_seed(7).train.seed == 7
    assert distilled.to_mapping() == {"role": "distilled", "description": "learns by class_qfl x2.0, box_iou x7.5"}
    assert control.description.startswith("no teacher: its own labels through soft_boxes x")
    assert [arm.name for arm in default_arms(config, control=False)] == ["plain", "distilled"]


def test_labels_as_the_only_teacher_need_no_control(write_config: Callable[..., Path]) -> None:
    path = write_config(teacher=False)
    path.write_text(path.read_text() + "teacher: {family: labels}\n")
    assert [arm.name for arm in default_arms(load_config(path))] == ["plain", "distilled"]


def test_a_base_takes_the_teacher_away_and_keeps_the_overrides(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    write_config()
    (tmp_path / "trial.yaml").write_text(
        "config: config.yaml\narms:\n  plain:\n  distilled:\n"
        "  bare: {base: plain, set: [train.lr=0.5]}\n  labels: {base: control, set: [train.lr=0.5]}\n"
    )
    *_, bare, labels = trial_arms(load_trial(tmp_path / "trial.yaml"))
    assert (bare.config.is_distilled, bare.config.train.lr, bare.role) == (False, 0.5, "other")
    assert isinstance(labels.config.teachers[0].config, GroundTruthConfig)
    assert labels.config.train.lr == 0.5


def test_a_random_start_is_noted_where_a_better_one_is_known(
    write_config: Callable[..., Path], teacher_file: Path, tmp_path: Path
) -> None:
    config = load_config(write_config())
    (note,) = notes_on(default_arms(config), config.teachers, {})
    assert note.startswith(
        "the student starts from random weights (plain, control, distilled), while a better start is known: the "
        "teacher 'teacher' is of the student's family, ultralytics, which has pretrained weights."
    )
    started = replace(config, student=config.student.model_copy(update={"weights": teacher_file}))
    assert notes_on(default_arms(started), started.teachers, {}) == []
    foreign = load_config(write_config(distill="[{loss: soft_boxes}]"), ["teacher={family: labels}"])
    assert notes_on(default_arms(foreign), foreign.teachers, {}) == []


def test_the_start_of_the_teacher_is_read_from_its_run(
    write_config: Callable[..., Path], teacher_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "student.pt").write_bytes(teacher_file.read_bytes())
    trained = load_config(write_config(teacher=False), [f"student.weights={teacher_file}"])
    (run / "config.yaml").write_text(json.dumps(trained.to_mapping()))
    config = load_config(write_config(), [f"teacher.weights={run / 'student.pt'}"])
    (note,) = notes_on(default_arms(config), config.teachers, {})
    assert "the teacher 'teacher' itself was trained from teacher.pt" in note


def test_arms_of_unequal_length_are_noted(write_config: Callable[..., Path], teacher_file: Path) -> None:
    config = load_config(write_config(), [f"student.weights={teacher_file}"])
    arms = default_arms(config, control=False)
    assert notes_on(arms, config.teachers, {"plain": 30, "distilled": 6}) == [
        "the arms are trained for different numbers of steps: plain 30, distilled 6"
    ]
