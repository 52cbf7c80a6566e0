"""Several teachers in one run, in turn, and the student as its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kd_vision.config.load import load_config
from kd_vision.core.errors import RequestError
from kd_vision.core.progress import no_progress
from kd_vision.core.run_directory import RunDirectory
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.label import LabelOptions, label
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


def stored(config: Path, out: Path) -> Path:
    """Store what the teacher of a config predicts on the training images."""
    label(config, out, splits=["train"], options=LabelOptions(batch_size=4, workers=0), progress=no_progress)
    return out


def exchange(config: Path, teacher: str, distill: str = "[{loss: soft_boxes}]", name: str = "exchanged.yaml") -> Path:
    """Write the config with other teachers and terms."""
    kept = [line for line in config.read_text().splitlines() if not line.startswith(("teacher:", "distill:"))]
    path = config.with_name(name)
    path.write_text("\n".join([*kept, teacher, f"distill: {distill}"]) + "\n")
    return path


def test_two_stores_teach_each_through_its_own_term(
    write_config: Write, tmp_path: Path, awake_file: Callable[[str], Path]
) -> None:
    config = write_config()
    one = stored(config, tmp_path / "one")
    other = stored(exchange(config, f"teacher: {{weights: {awake_file('yolov8s')}}}", "boxes"), tmp_path / "two")
    both = exchange(
        config,
        f"teacher: [{{family: store, store: {one}, name: first}}, {{family: store, store: {other}, name: second}}]",
        "[{loss: soft_boxes, name: a, teacher: first}, {loss: soft_boxes, name: b, teacher: second}]",
    )
    train(both, tmp_path / "run", progress=no_progress)
    found = rows(tmp_path / "run")
    assert len(found) == 6
    assert all(row["loss/kd/a"] > 0 and row["loss/kd/b"] > 0 for row in found)
    assert all(row["loss/kd/a"] != row["loss/kd/b"] for row in found)
    assert set(json.loads((tmp_path / "run" / "teacher.json").read_text())) == {"first", "second"}
    shares = next(row for row in found if "share/a" in row)
    assert min(shares["share/a"], shares["share/b"]) > 0
    # A term beside another is the term alone: at the first step, from the same weights.
    alone = exchange(config, f"teacher: {{family: store, store: {one}, name: first}}", "[{loss: soft_boxes, name: a}]")
    train(alone, tmp_path / "alone", progress=no_progress)
    assert rows(tmp_path / "alone")[0]["loss/kd/a"] == found[0]["loss/kd/a"]


def test_a_results_file_teaches_beside_a_store_and_a_live_teacher(
    write_config: Write, tmp_path: Path, squares: Path, teacher_file: Path
) -> None:
    config = write_config()
    store = stored(config, tmp_path / "store")
    truth = json.loads((squares.parent / "annotations" / "train.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{**{key: one[key] for key in keys}, "score": 0.8} for one in truth]))
    mixed = exchange(
        config,
        f"teacher: [{{weights: {teacher_file}, name: live}}, {{family: predictions, weights: {results}, name: file}}]\n"
        f"knowledge: {store}",
        "[{loss: class_qfl, name: grid, teacher: live}, {loss: soft_boxes, teacher: file, name: of_file},"
        " {loss: soft_boxes, teacher: knowledge, name: of_store}]",
    )
    train(mixed, tmp_path / "run", progress=no_progress)
    found = rows(tmp_path / "run")
    assert all(row[f"loss/kd/{name}"] > 0 for row in found for name in ("grid", "of_file", "of_store"))
    measured = json.loads((tmp_path / "run" / "teacher.json").read_text())
    assert measured["file"]["AP"] == pytest.approx(1)  # it holds the truth
    assert measured["live"]["split"] == "val"


def test_a_store_in_short_and_in_full_gives_the_same_weights(write_config: Write, tmp_path: Path) -> None:
    config = write_config()
    store = stored(config, tmp_path / "store")
    short = exchange(config, f"knowledge: {store}", name="short.yaml")
    full = exchange(config, f"teacher: {{family: store, store: {store}}}", name="full.yaml")
    one, other = (train(path, tmp_path / path.stem, progress=no_progress) for path in (short, full))
    kept = [torch.load(run.directory / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)]
    for name, value in kept[0]["average"].items():
        assert torch.equal(value, kept[1]["average"][name])
    losses = [[row["loss/kd/soft_boxes"] for row in rows(run.directory)] for run in (one, other)]
    assert losses[0] == losses[1]


def test_the_short_form_refuses_a_store_of_another_teacher_and_the_full_form_does_not(
    write_config: Write, tmp_path: Path, awake_file: Callable[[str], Path]
) -> None:
    config = write_config()
    store = stored(config, tmp_path / "store")
    live = f"{{weights: {awake_file('yolov8s')}, name: live}}"
    short = exchange(config, f"teacher: {live}\nknowledge: {store}")
    with pytest.raises(RequestError, match=r"live: .*store was labelled by another teacher"):
        train(short, tmp_path / "a", progress=no_progress)
    full = exchange(config, f"teacher: [{live}, {{family: store, store: {store}, name: kept}}]")
    parts = build_parts(load_config(full), RunData(load_config(full).data))
    assert (list(parts.online), list(parts.offline)) == (["live"], ["kept"])


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
    with pytest.raises(RequestError, match=r"is 0, and at 50 % of training no term of 'distill' is active"):
        train(gap, tmp_path / "a", overrides=bare)
    auto = write_config(distill="[{loss: class_bce, weight: auto}]")
    with pytest.raises(RequestError, match="without labels there is no gradient to scale class_bce by"):
        train(auto, tmp_path / "b", overrides=bare)
