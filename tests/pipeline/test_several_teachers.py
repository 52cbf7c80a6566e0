"""Several teachers in one run, in turn, and the student as its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kd_vision.core.errors import RequestError
from kd_vision.core.run_directory import RunDirectory
from kd_vision.pipeline.train import train

Write = Callable[..., Path]


def rows(directory: Path) -> list[dict[str, float]]:
    return [row for row in RunDirectory(directory).read_log() if row.get("split") == "train"]


def test_teachers_take_turns_and_only_the_open_term_is_computed(
    write_config: Write, tmp_path: Path, awake_file: Callable[[str], Path]
) -> None:
    terms = (
        "[{loss: class_bce, name: weak, teacher: first, schedule: {kind: window, stop: 0.5}},"
        " {loss: class_bce, name: strong, teacher: second, schedule: {kind: window, start: 0.5}}]"
    )
    config = write_config(distill=terms)
    line = next(text for text in config.read_text().splitlines() if text.startswith("teacher:"))
    one, two = line.removeprefix("teacher: ")[:-1], f"{{weights: {awake_file('yolov8s')}"
    both = f"teacher: [{one}, name: first}}, {two}, name: second}}]"
    config.write_text(config.read_text().replace(line, both))
    train(config, tmp_path / "run")
    found = rows(tmp_path / "run")
    assert ["loss/kd/weak" in row for row in found] == [True, True, True, False, False, False]
    assert ["loss/kd/strong" in row for row in found] == [False, False, False, True, True, True]
    assert (tmp_path / "run" / "teacher.json").read_text().count('"split": "val"') == 2


def test_the_student_teaches_itself_by_its_moving_average(write_config: Write, tmp_path: Path) -> None:
    config = write_config(distill="[{loss: class_bce}]")
    line = next(text for text in config.read_text().splitlines() if text.startswith("teacher:"))
    config.write_text(config.read_text().replace(line, "teacher: {family: self}"))
    train(config, tmp_path / "run", overrides=["augment.student_noise=true"])
    values = [row["loss/kd/class_bce"] for row in rows(tmp_path / "run")]
    assert len(values) == 6
    assert min(values) > 0


def test_without_labels_a_gap_between_windows_and_an_auto_weight_are_refused(
    write_config: Write, tmp_path: Path
) -> None:
    bare = ["train.label_fraction=0", "train.unlabelled_ratio=1"]
    gap = write_config(distill="[{loss: class_bce, schedule: {kind: window, stop: 0.5}}]")
    with pytest.raises(RequestError, match=r"is 0, and at 50 % of training no term of 'distill' is open"):
        train(gap, tmp_path / "a", overrides=bare)
    auto = write_config(distill="[{loss: class_bce, weight: auto}]")
    with pytest.raises(RequestError, match="without labels there is no gradient to scale class_bce by"):
        train(auto, tmp_path / "b", overrides=bare)
