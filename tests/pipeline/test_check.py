"""`check` finds everything wrong, at once, before anything is spent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_vision.cli.main import main
from kd_vision.config.load import load_config
from kd_vision.pipeline.check import check, exit_code


def test_a_sound_run_passes_with_every_topic_and_nothing_is_written(
    write_config: Callable[..., Path], squares: Path
) -> None:
    path = write_config()
    before = sorted(path.parent.rglob("*"))
    findings = check(load_config(path))
    assert exit_code(findings) == 0
    topics = {finding.topic for finding in findings}
    assert topics == {"data", "student", "teacher", "teacher's mAP", "coverage", "gradients", "memory", "disk"}
    alive = [f.text for f in findings if f.topic == "gradients"]
    assert len(alive) == 2
    assert all("has a gradient" in text and "% of the task's gradient" in text for text in alive)
    assert sorted(path.parent.rglob("*")) == before


def test_a_weak_teacher_is_a_gate_and_exit_3(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(write_config()), "--set", "allow_weak_teacher=false"]) == 3
    text = capsys.readouterr().out
    assert "is not better than the untrained student's" in text.replace("\n", " ")


def test_every_loss_that_does_not_fit_is_named_and_exit_2(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(distill="[{loss: box_ld}, {loss: feature_pkd, levels: [P9]}]")
    assert main(["check", str(path), "--set", "student.model=yolo26n"]) == 2
    text = capsys.readouterr().out
    for part in ("distill.0 (box_ld)", "distill.1 (feature_pkd)", "losses that fit yolov8n as teacher of"):
        assert part in text


def test_defects_of_the_data_are_found(write_config: Callable[..., Path], squares: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    content = json.loads((squares.parent / "annotations" / "train.json").read_text())
    content["annotations"][0]["bbox"] = [3, 3, 0, 9]
    (bad / "train.json").write_text(json.dumps(content))
    descriptor = bad / "bad.yaml"
    text = squares.read_text().replace("root: .", f"root: {squares.parent}")
    descriptor.write_text(text.replace("annotations: annotations/train.json", f"annotations: {bad}/train.json"))
    findings = check(load_config(write_config(), [f"data={descriptor}"]))
    assert exit_code(findings) == 2
    assert any(f.topic == "data" and "train.json" in f.text and f.state == "error" for f in findings)


def test_a_student_with_its_teachers_weights_has_living_terms(
    write_config: Callable[..., Path], teacher_file: Path
) -> None:
    """The student's batch statistics differ from the teacher's running ones, so the term is not zero."""
    path = write_config(distill="[{loss: feature_at}]")
    findings = check(load_config(path, [f"student.weights={teacher_file}"]))
    assert exit_code(findings) == 0
    assert [f.text for f in findings if f.topic == "gradients" and f.text.startswith("feature_at: has a gradient")]


def test_a_student_with_its_teachers_weights_is_refused_by_the_gate(
    write_config: Callable[..., Path], teacher_file: Path
) -> None:
    path = write_config(distill="[{loss: feature_at}]")
    findings = check(load_config(path, [f"student.weights={teacher_file}", "allow_weak_teacher=false"]))
    assert exit_code(findings) == 3
    (gate,) = [finding for finding in findings if finding.state == "gate"]
    assert "is not better than the untrained student's" in gate.text


def test_every_split_is_parsed_once(write_config: Callable[..., Path], split_reads: list[str]) -> None:
    check(load_config(write_config()))
    assert sorted(split_reads) == ["train", "val"]
