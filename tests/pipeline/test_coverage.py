"""The coverage gate in check and in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kd_vision.config.load import load_config
from kd_vision.core.errors import GateError
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.engine.step import TrainingStep
from kd_vision.losses import grid_resample
from kd_vision.losses.grid_coverage import CONFIDENT, Coverage
from kd_vision.losses.grid_resample import LevelLink
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.check import check, exit_code
from kd_vision.pipeline.coverage import TermCoverage, measure_term_coverage, refuse_low_coverage
from kd_vision.pipeline.data import RunData, build_stream
from kd_vision.pipeline.models import load_model
from kd_vision.pipeline.train import train


def with_silent_levels(teacher_file: Path, path: Path, levels: slice) -> Path:
    """The teacher without any score on some levels of its head."""
    detector = load_model(teacher_file, 64).predictor
    assert isinstance(detector, UltralyticsDetector)
    for level in detector.head.cv3[levels]:
        level[-1].weight.data.zero_()
        level[-1].bias.data.fill_(-20.0)
    detector.save(path, {})
    return path


@pytest.fixture
def larger_view(write_config: Callable[..., Path], teacher_file: Path, tmp_path: Path) -> list[str]:
    """Overrides of a run whose teacher sees 128 px where the student sees 64, and all of it on its finest level."""
    write_config()
    fine = with_silent_levels(teacher_file, tmp_path / "fine.pt", slice(1, None))
    return [f"teacher.weights={fine}", "teacher.image_size=128", "train.epochs=1"]


@pytest.fixture
def only_nearest_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resampler as it was: each level of the student takes the teacher's of the nearest stride, and no other."""

    def nearest(teacher: list[float], student: list[float]) -> list[LevelLink]:
        return [
            LevelLink(index, min(range(len(teacher)), key=lambda at: abs(teacher[at] / stride - 1)))
            for index, stride in enumerate(student)
        ]

    monkeypatch.setattr(grid_resample, "link_levels", nearest)


def test_a_larger_view_passes_and_the_check_says_what_is_shown(larger_view: list[str], tmp_path: Path) -> None:
    findings = check(load_config(tmp_path / "config.yaml", larger_view))
    found = [finding for finding in findings if finding.topic == "coverage"]
    assert [finding.state for finding in found] == ["ok", "ok"]
    assert [finding.text.split(":")[0] for finding in found] == ["class_qfl", "box_iou"]
    assert all("boxes that 'teacher' scores 0.3 or more (" in finding.text for finding in found)


def test_targets_that_lose_the_finest_level_are_refused_by_check_and_by_train(
    larger_view: list[str], tmp_path: Path, only_nearest_levels: None
) -> None:
    path = tmp_path / "config.yaml"
    findings = check(load_config(path, larger_view))
    assert exit_code(findings) == 3
    gates = [finding.text for finding in findings if finding.state == "gate"]
    assert len(gates) == 2
    with pytest.raises(GateError) as caught:
        train(path, tmp_path / "run", overrides=larger_view)
    assert str(caught.value) == gates[0]
    assert gates[0].startswith(f"{path}: distill.0 (class_qfl): the targets show ")
    assert gates[0].endswith(
        "%), fewer than 95 %: the student would learn the others as background; bring teacher.image_size nearer to "
        "image_size, or use soft_boxes instead"
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_refusal_in_full_and_what_is_not_refused(write_config: Callable[..., Path]) -> None:
    path = write_config()
    config = load_config(path)
    assert CONFIDENT == 0.3
    with pytest.raises(GateError) as caught:
        refuse_low_coverage(config, TermCoverage("box_iou", "teacher", Coverage(22, 305)))
    assert str(caught.value) == (
        f"{path}: distill.1 (box_iou): the targets show 22 of the 305 boxes that 'teacher' scores 0.3 or more (7.2 %), "
        f"fewer than 95 %: the student would learn the others as background; bring teacher.image_size nearer to "
        f"image_size, or use soft_boxes instead"
    )
    for counts, chosen in ((Coverage(95, 100), False), (Coverage(0, 19), False), (Coverage(0, 100), True)):
        refuse_low_coverage(config, TermCoverage("box_iou", "teacher", counts, chosen))


def test_too_few_boxes_are_said_to_be_too_few(
    write_config: Callable[..., Path], teacher_file: Path, tmp_path: Path
) -> None:
    path = write_config()
    silent = with_silent_levels(teacher_file, tmp_path / "silent.pt", slice(None))
    found = [
        finding for finding in check(load_config(path, [f"teacher.weights={silent}"])) if finding.topic == "coverage"
    ]
    assert [finding.state for finding in found] == ["warning", "warning"]
    assert found[0].text == (
        "class_qfl: the targets show 0 of the 0 boxes that 'teacher' scores 0.3 or more: too few to judge"
    )


def test_measuring_changes_nothing_of_the_student(larger_view: list[str], tmp_path: Path) -> None:
    """The student's running statistics are those that it started with."""
    config = load_config(tmp_path / "config.yaml", larger_view)
    data = RunData(config.data)
    parts = build_parts(config, data)
    stream = build_stream(config, *data.training(config), parts.channels, teacher_size=128)
    run = TrainingStep(parts.student, parts.distiller, parts.teachers).train()
    before = {name: value.clone() for name, value in run.state_dict().items()}
    measured = measure_term_coverage(run, stream, torch.device("cpu"))
    assert [coverage.term for coverage in measured] == ["class_qfl", "box_iou"]
    assert run.student.training
    assert all(torch.equal(value, before[name]) for name, value in run.state_dict().items())
