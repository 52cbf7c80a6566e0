"""Training end to end at a tiny size: what it writes, exact resume, gates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kd_vision
from kd_vision.config.load import load_config
from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import GateError, RequestError, TrainingError
from kd_vision.core.predictions import Signal
from kd_vision.core.run_directory import RunDirectory
from kd_vision.engine.trainer import Trainer
from kd_vision.evaluation.metrics import Metrics
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.data import RunData, build_stream
from kd_vision.pipeline.models import load_model
from kd_vision.pipeline.teacher_gate import TeacherScore, measure_teachers, refuse_weak_teacher
from kd_vision.pipeline.teachers import build_online_teachers
from kd_vision.pipeline.train import train


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    detector = load_model(path).detector
    assert detector is not None
    return detector.state_dict()


def test_a_distilled_run_writes_everything_it_promises(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(train="validate_every: 1, keep: best, unlabelled_ratio: 0.5, accumulate: 2, probe_every: 2")
    result = train(config, tmp_path / "run", overrides=["train.epochs=3"])
    names = {str(p.relative_to(result.directory)) for p in result.directory.rglob("*") if p.is_file()}
    expected = {"config.yaml", "environment.json", "metrics.jsonl", "metrics.json", "student.pt", "report.md"}
    expected |= {
        "report.html",
        "teacher.json",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "metrics.csv",
    }
    assert expected <= names
    assert any("tfevents" in name for name in names)
    rows = list(RunDirectory(result.directory).read_log())
    shares = [row["share/class_qfl"] for row in rows if "share/class_qfl" in row]
    assert shares
    assert all(share > 0 for share in shares)
    steps = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in steps] == list(range(1, 10))
    assert all(row["loss/kd/box_iou"] > 0 for row in steps)
    total = steps[-1]
    parts = sum(value for key, value in total.items() if key.startswith("loss/task/"))
    parts += sum(total[f"weight/{name}"] * total[f"loss/kd/{name}"] for name in ("class_qfl", "box_iou"))
    assert total["loss/total"] == pytest.approx(parts, rel=1e-5)
    assert json.loads((result.directory / "metrics.json").read_text())["AP"] == result.metrics.ap
    environment = json.loads((result.directory / "environment.json").read_text())
    assert environment["seed"] == 0
    assert "torch" in environment["versions"]


def test_a_run_parses_every_split_once(
    write_config: Callable[..., Path], tmp_path: Path, split_reads: list[str]
) -> None:
    train(write_config(train="validate_every: 1, epochs: 1"), tmp_path / "run")
    assert sorted(split_reads) == ["train", "val"]


def test_the_student_file_holds_the_student_and_nothing_else(write_config: Callable[..., Path], tmp_path: Path) -> None:
    from ultralytics import YOLO

    result = train(write_config(distill="[{loss: class_qfl}, {loss: feature_mse}]"), tmp_path / "run")
    content = torch.load(result.student, weights_only=False)
    assert set(content) == {"model", "ema", "epoch", "date", "version", "license", "train_args", "kd_vision"}
    names = [name for name, _ in content["model"].named_modules()]
    assert not any("adapter" in name or "teacher" in name or "distill" in name for name in names)
    checkpoint = torch.load(result.directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["distiller"]  # adapters live in the checkpoint only
    ours = weights_of(result.student)
    theirs = YOLO(result.student).model.state_dict()
    assert all(torch.equal(ours[f"net.{name}"], value) for name, value in theirs.items())
    assert all(torch.equal(checkpoint["average"][name], value) for name, value in ours.items())


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("killed_at", [1, 5])
def test_a_killed_run_resumes_to_the_very_same_weights(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    path = write_config(
        distill="[{loss: class_qfl, weight: auto}, {loss: feature_mse}]",
        train="calibrate_at: 2, checkpoint_every: 2, unlabelled_ratio: 0.5, accumulate: 2",
    )
    config = load_config(path, ["train.epochs=3"])
    whole = train(config, tmp_path / "whole")
    step = Trainer._step

    def killed(self: Trainer, batch: object) -> None:
        if self.progress.step == killed_at:
            raise Killed
        step(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(Killed):
        train(config, tmp_path / "broken")
    monkeypatch.setattr(Trainer, "_step", step)
    resumed = train(config, tmp_path / "broken", resume=True)
    one, other = weights_of(whole.student), weights_of(resumed.student)
    assert all(torch.equal(one[name], other[name]) for name in one)

    def terms(directory: Path) -> list[tuple[int, float]]:
        return [(row["step"], row["loss/total"]) for row in RunDirectory(directory).read_log()]

    assert terms(whole.directory) == terms(resumed.directory)


def test_a_run_is_not_overwritten_and_a_foreign_checkpoint_is_refused(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(teacher=False)
    train(config, tmp_path / "run", overrides=["train.epochs=1"])
    with pytest.raises(RequestError, match="holds a run already; add --resume"):
        train(config, tmp_path / "run")
    with pytest.raises(RequestError, match=r"is a run of another config: train\.epochs was 1, is 2"):
        train(config, tmp_path / "run", resume=True, overrides=["train.epochs=2"])
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # to save room; it is a finished run all the same
    with pytest.raises(RequestError, match="holds a run already"):
        train(config, tmp_path / "run")
    for name in ("metrics.json", "student.pt"):
        (tmp_path / "run" / name).unlink()
    train(config, tmp_path / "run", overrides=["train.epochs=1"])  # killed before its first checkpoint: anew
    steps = [row["step"] for row in RunDirectory(tmp_path / "run").read_log() if "loss/total" in row]
    assert steps == [1, 2, 3]


def test_a_teacher_no_better_than_its_student_ends_the_work(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config()
    with pytest.raises(GateError, match=r"AP \d+\.\d on 'val' is not better than the untrained student's"):
        train(config, tmp_path / "run", overrides=["allow_weak_teacher=false"])
    assert not (tmp_path / "run" / "student.pt").exists()
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_gate_compares_with_the_student_before_training(write_config: Callable[..., Path]) -> None:
    config = load_config(write_config(), ["allow_weak_teacher=false"])
    good, bad = scores(0.4), scores(0.1)
    refuse_weak_teacher(config, TeacherScore("teacher", "val", good, bad))
    lucky = scores(0.0001)
    for teacher, student in ((bad, good), (good, good), (scores(0.0), scores(None)), (lucky, scores(0.0))):
        with pytest.raises(GateError, match="give a teacher trained for this data"):
            refuse_weak_teacher(config, TeacherScore("teacher", "val", teacher, student))
    with pytest.raises(GateError, match=r"teacher: 'val' holds no box to measure a teacher by; give another evaluate"):
        refuse_weak_teacher(config, TeacherScore("teacher", "val", scores(None), scores(None)))


def test_the_gate_moves_no_bit_of_the_student(write_config: Callable[..., Path]) -> None:
    config = load_config(write_config())
    data = RunData(config.data)
    parts = build_parts(config, data)
    student = parts.student.train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    (score,) = measure_teachers(config, parts, data.split("train"), data.split("train"))
    assert score.teacher is not None
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.training


def scores(ap: float | None) -> Metrics:
    numbers = dict.fromkeys([name for name in Metrics.model_fields if name not in ("per_class", "n_images")], ap)
    return Metrics(**numbers, per_class={}, n_images=1)  # type: ignore[arg-type]


def test_classes_that_do_not_fit_are_named(write_config: Callable[..., Path], tmp_path: Path, squares: Path) -> None:
    renamed = squares.with_name("renamed.yaml")
    text = squares.read_text().replace("classes: [red, blue]", "classes: [red]\nsubset: true")
    renamed.write_text(text)
    with pytest.raises(
        RequestError,
        match=r"teacher\.labels: the teacher's classes are not the data's: it also has 'blue'; map them with",
    ):
        train(write_config(), tmp_path / "run", overrides=[f"data={renamed}"])


def test_a_teacher_with_its_classes_in_another_order_answers_in_the_students(
    write_config: Callable[..., Path], squares: Path
) -> None:
    config = load_config(write_config())
    batch = ImageBatch.of_images(torch.rand(1, 3, 64, 64), [1], [])
    orders = (("red", "blue"), ("blue", "red"))
    straight, swapped = (build_online_teachers(config, order)["teacher"] for order in orders)
    signals: frozenset[Signal] = frozenset({"grid"})
    one = straight.signals(batch, signals).grids["one_to_many"].logits
    other = swapped.signals(batch, signals).grids["one_to_many"].logits
    assert torch.equal(one[..., [1, 0]], other)


def test_losses_that_do_not_fit_are_all_named_with_those_that_do(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(distill="[{loss: box_ld}, {loss: feature_pkd, levels: [P9]}]")
    with pytest.raises(RequestError) as caught:
        train(config, tmp_path / "run", overrides=["student.model=yolo26n"])
    lines = caught.value.problems
    assert "distill.0 (box_ld): needs the same number of box bins; teacher 16, student none" in lines[0]
    assert any("distill.1 (feature_pkd): level 'P9' is not among the teacher's" in line for line in lines)
    assert "losses that fit yolov8n as teacher of yolo26n: " in lines[-1]
    assert "box_iou" in lines[-1]


def test_an_image_size_off_the_stride_is_refused(write_config: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"image_size: 70 is not a multiple of 32, which yolov8n needs; use 64"):
        train(write_config(), tmp_path / "run", overrides=["image_size=70"])


def test_unlabelled_images_without_a_teacher_are_refused(write_config: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unlabelled images have no effect without a teacher"):
        train(write_config(teacher=False, train="unlabelled_ratio: 1"), tmp_path / "run")


def test_a_loss_that_blows_up_stops_the_run_by_name(write_config: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the term 'task/\w+' is (nan|inf)"):
        train(write_config(teacher=False, train="lr: 1e+30, warmup_epochs: 0"), tmp_path / "run")


def test_early_stopping_and_the_best_weights(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(teacher=False, train="lr: 1e-9, patience: 2")
    result = kd_vision.train(config, tmp_path / "run", overrides=["train.epochs=9", "train.validate_every=1"])
    assert result.fit.stopped_early
    assert result.fit.steps == 9  # three validations of three steps: the first is the best, two more are stale


@pytest.mark.parametrize("channels", [1, 4])
def test_one_and_four_input_channels_train(tmp_path: Path, channels: int) -> None:
    import cv2
    import numpy as np

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for index in range(4):
        shape = (64, 64) if channels == 1 else (64, 64, 4)
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 255, shape, dtype=np.uint8))
        images.append({"id": index, "file_name": f"{index}.png", "width": 64, "height": 64})
        boxes.append(
            {
                "id": index,
                "image_id": index,
                "category_id": 1,
                "bbox": [8, 8, 30, 30],
                "area": 900,
                "iscrowd": 0,
            }
        )
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "a.json").write_text(json.dumps(coco))
    split = "{images: images, annotations: a.json}"
    (tmp_path / "d.yaml").write_text(
        f"format: coco\nroot: .\nsplits: {{train: {split}, val: {split}}}\nclasses: [thing]\n"
    )
    (tmp_path / "c.yaml").write_text(
        f"data: d.yaml\nimage_size: 64\nstudent: {{model: yolo11n, input_channels: {channels}}}\n"
        "train: {epochs: 1, batch_size: 2, workers: 0, validate_every: 0, keep: last}\n"
    )
    result = train(tmp_path / "c.yaml", tmp_path / "run")
    assert load_model(result.student).predictor.spec.input_channels == channels


def test_mixed_precision_trains_with_every_term_alive(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(distill="[{loss: class_qfl}, {loss: box_ld}, {loss: feature_pkd}]")
    result = train(config, tmp_path / "run", overrides=["train.precision=bf16-mixed", "train.epochs=1"])
    rows = [row for row in RunDirectory(result.directory).read_log() if "share/box_ld" in row]
    assert rows
    assert all(row[f"share/{name}"] > 0 for row in rows for name in ("class_qfl", "box_ld", "feature_pkd"))


def test_boxes_reach_the_losses_unrounded_in_mixed_precision(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd_vision.detectors.ultralytics.dense import UltralyticsDetector

    seen: list[torch.Tensor] = []
    forward = UltralyticsDetector.forward

    def spy(self: UltralyticsDetector, images: torch.Tensor, targets: Any = None, *rest: Any, **named: Any) -> Any:
        if targets is not None:
            seen.append(targets.boxes_xyxy)
        return forward(self, images, targets, *rest, **named)

    monkeypatch.setattr(UltralyticsDetector, "forward", spy)
    path = write_config()
    train(path, tmp_path / "run", overrides=["train.precision=bf16-mixed", "train.epochs=1"])
    config = load_config(path)
    labelled, _ = RunData(config.data).training(config)
    first = build_stream(config, labelled, None, 3).batch_at(0).targets.boxes_xyxy
    assert torch.equal(seen[0], first)


def test_auto_weights_that_would_never_be_set_are_refused(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(distill="[{loss: class_qfl, weight: auto}]")
    with pytest.raises(RequestError, match="ends after 6 steps, before the weight of class_qfl is set at step 20"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_colour_teacher_teaches_a_gray_student(write_config: Callable[..., Path], tmp_path: Path) -> None:
    overrides = ["student.input_channels=1", "train.epochs=1"]
    result = train(write_config(), tmp_path / "run", overrides=overrides)
    assert load_model(result.student).predictor.spec.input_channels == 1


def test_a_teacher_of_other_classes_teaches_features_alone(
    write_config: Callable[..., Path], tmp_path: Path, squares: Path
) -> None:
    renamed = squares.with_name("one_class.yaml")
    renamed.write_text(squares.read_text().replace("classes: [red, blue]", "classes: [red]\nsubset: true"))
    features = write_config(distill="[{loss: feature_pkd}]")
    assert train(features, tmp_path / "a", overrides=[f"data={renamed}", "train.epochs=1"]).fit.steps == 3
    with pytest.raises(RequestError, match="it also has 'blue'; map them with labels"):
        train(features, tmp_path / "b", overrides=[f"data={renamed}", "allow_weak_teacher=false"])


@pytest.mark.parametrize(
    ("teacher", "student"), [("yolov8n", "yolo11n"), ("yolo26n", "yolo26n"), ("yolov8n", "yolo26n")]
)
def test_pairs_of_generations_train_with_living_terms(
    write_config: Callable[..., Path], tmp_path: Path, awake_file: Callable[[str], Path], teacher: str, student: str
) -> None:
    config = write_config(distill="[{loss: class_qfl}, {loss: box_iou}, {loss: feature_pkd}]")
    changes = [f"teacher.weights={awake_file(teacher)}", f"student.model={student}", "train.epochs=1"]
    result = train(config, tmp_path / "run", overrides=changes)
    row = next(row for row in RunDirectory(result.directory).read_log() if "share/box_iou" in row)
    assert all(row[f"share/{name}"] > 0 for name in ("class_qfl", "box_iou", "feature_pkd"))


def test_a_run_that_stopped_early_does_not_go_on(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(teacher=False, train="lr: 1e-9, patience: 1, epochs: 5, validate_every: 1")
    first = train(config, tmp_path / "run")
    again = train(config, tmp_path / "run", resume=True)
    assert first.fit.stopped_early
    assert again.fit.steps == first.fit.steps
    assert again.metrics == first.metrics


def test_the_best_weights_are_kept_when_asked(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(teacher=False, train="lr: 1e-9, epochs: 2, validate_every: 1, keep: best")
    result = train(config, tmp_path / "run")
    best = torch.load(result.directory / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["progress"]["best_step"] == 3  # hardly moving, the first validation stays the best
    kept = weights_of(result.student)
    assert all(torch.equal(best["average"][name], value) for name, value in kept.items())


def test_schedules_shape_the_logged_weights(write_config: Callable[..., Path], tmp_path: Path) -> None:
    terms = "[{loss: class_qfl, weight: 2, schedule: {kind: warm_up, fraction: 0.5}}, {loss: box_iou, weight: 1, "
    terms += "schedule: {kind: cosine, final: 0.2}}]"
    result = train(write_config(distill=terms), tmp_path / "run")
    rows = [row for row in RunDirectory(result.directory).read_log() if row["split"] == "train"]
    assert [row["weight/class_qfl"] for row in rows] == pytest.approx([0, 0.8, 1.6, 2, 2, 2])
    assert rows[0]["weight/box_iou"] == pytest.approx(1.0)
    assert rows[-1]["weight/box_iou"] == pytest.approx(0.2)


@pytest.mark.stress
def test_two_processes_train_the_same_student(write_config: Callable[..., Path], tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "kd_vision", "train", str(write_config()), "--out", str(tmp_path / "run")]
    command += ["--set", "train.devices=2", "train.accelerator=cpu", "train.batch_size=2", "train.validate_every=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "student.pt").is_file()
    rows = [row for row in RunDirectory(tmp_path / "run").read_log() if row["split"] == "val"]
    assert len(rows) == 2


def test_a_break_waits_until_no_gathered_gradient_would_be_lost(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked at the first batch of three that make an update; taken after the third."""
    config = load_config(write_config(train="accumulate: 3"))
    whole = train(config, tmp_path / "whole")
    step = Trainer._step

    def broken(self: Trainer, batch: object) -> None:
        self._interrupted = self._interrupted or self.progress.step == 0
        step(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", broken)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "broken")
    monkeypatch.setattr(Trainer, "_step", step)
    assert [row["step"] for row in RunDirectory(tmp_path / "broken").read_log()] == [1, 2, 3]
    resumed = train(config, tmp_path / "broken", resume=True)
    one, other = weights_of(whole.student), weights_of(resumed.student)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_run_may_be_faster_and_say_more(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(teacher=False)
    train(config, tmp_path / "run", overrides=["train.epochs=1"])
    changes = ["train.epochs=1", "train.workers=1", "train.cache=none", "train.log_every=5", "train.checkpoint_every=2"]
    assert train(config, tmp_path / "run", resume=True, overrides=changes).fit.steps == 3


def test_a_run_killed_before_its_last_file_is_not_taken_for_finished(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: RunDirectory) -> None:
        raise Killed

    monkeypatch.setattr(RunDirectory, "write_csv", killed)
    with pytest.raises(Killed):
        train(write_config(teacher=False), tmp_path / "run", overrides=["train.epochs=1"])
    assert (tmp_path / "run" / "fit.json").is_file()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_student_knows_the_size_it_was_trained_at_wherever_it_lies(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    from ultralytics import YOLO

    result = train(write_config(teacher=False), tmp_path / "run", overrides=["train.epochs=1"])
    alone = tmp_path / "elsewhere.pt"
    alone.write_bytes(result.student.read_bytes())
    (tmp_path / "config.yaml").write_text("somebody: else\n")
    assert load_model(alone).image_size == 64
    assert YOLO(alone).overrides["imgsz"] == 64
    assert load_model(alone, 96).image_size == 96
    for size in (0, -64, 100):
        with pytest.raises(RequestError, match=f"--image-size: {size} is not a multiple of 32, which yolov8n needs"):
            load_model(alone, size)


def test_a_share_of_unlabelled_images_that_rounds_to_none_is_refused(write_config: Callable[..., Path]) -> None:
    config = load_config(write_config(train="unlabelled_ratio: 0.1"))
    with pytest.raises(RequestError, match=r"train\.unlabelled_ratio: 0\.1 of a batch of 4 is no whole image"):
        build_stream(config, *RunData(config.data).training(config), 3)


def test_what_an_ensemble_never_says_cannot_be_asked_for(
    write_config: Callable[..., Path], tmp_path: Path, teacher_file: Path
) -> None:
    member = {"weights": str(teacher_file)}
    teacher = {"name": "both", "family": "ensemble", "members": [member, member], "min_score": 0.4}
    config = write_config(teacher=False)
    distill = [{"loss": "soft_boxes", "ignore_threshold": 0.1, "score_threshold": 0.5}]
    config.write_text(config.read_text() + f"teacher: {json.dumps(teacher)}\ndistill: {json.dumps(distill)}\n")
    with pytest.raises(
        RequestError, match=r"distill.0.ignore_threshold: 0.1 is below 0.4, the score threshold of 'both'"
    ):
        train(config, tmp_path / "run")


def test_splits_with_nothing_to_learn_from_are_refused(
    write_config: Callable[..., Path], tmp_path: Path, squares: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(squares.parent, data)
    labels = json.loads((data / "annotations" / "train.json").read_text())
    for emptied, message in (
        ({"annotations": []}, f"{data / squares.name}: split 'train' holds no box to learn from"),
        ({"annotations": [], "images": []}, f"{data / squares.name}: split 'train' holds no images"),
    ):
        (data / "annotations" / "train.json").write_text(json.dumps(labels | emptied))
        with pytest.raises(RequestError) as caught:
            train(write_config(teacher=False), tmp_path / "run", overrides=[f"data={data / squares.name}"])
        assert str(caught.value).startswith(message)


def test_a_file_of_another_family_is_told_its_family(write_config: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(b"")
    config = write_config(teacher=False)
    config.write_text(config.read_text() + f"teacher: {{weights: {tmp_path / 't.onnx'}}}\n")
    with pytest.raises(RequestError, match=r"t.onnx is not a .pt file; use it as a teacher with 'family: onnx'"):
        train(config, tmp_path / "run")
