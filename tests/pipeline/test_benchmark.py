"""Before and after at a tiny size: twins are twins, a stopped benchmark goes on, the files say it all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from kd_vision.config.load import load_config
from kd_vision.core.errors import GateError, RequestError
from kd_vision.core.run_directory import RunDirectory
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.family import build
from kd_vision.pipeline.arms import control_config
from kd_vision.pipeline.assemble import gflops
from kd_vision.pipeline.benchmark import benchmark as benchmark_with_control
from kd_vision.pipeline.build import build_student
from kd_vision.pipeline.data import RunData, build_stream
from kd_vision.pipeline.train import train

benchmark = partial(benchmark_with_control, control=False)


def test_a_benchmark_has_arms_seeds_pages_and_goes_on_where_it_was(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config(train="validate_every: 1")
    out = tmp_path / "bench"
    result = benchmark(config, [0, 1], out, overrides=["train.epochs=1"], with_latency=False)
    assert [arm.name for arm in result.data.arms] == ["teacher", "plain", "distilled"]
    assert [run.seed for run in result.data.arms[1].runs] == [0, 1]
    assert all(len(run.curve) == 1 for run in result.data.arms[2].runs)
    assert result.report_html.is_file()
    assert result.report_md.is_file()
    written = json.loads((out / "benchmark.json").read_text())
    assert written["steps"] == 3
    assert written["arms"][1]["runs"][0]["metrics"]["AP"] == result.data.arms[1].runs[0].metrics.ap
    before = (out / "plain" / "seed0" / "metrics.jsonl").stat().st_mtime_ns
    again = benchmark(config, [0, 1], out, overrides=["train.epochs=1"], with_latency=False)
    assert (out / "plain" / "seed0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert again.data.arms[2].runs[1].metrics == result.data.arms[2].runs[1].metrics
    with pytest.raises(RequestError, match=r"holds a run of another config: train.epochs was 1, is 2"):
        benchmark(config, [0], out, overrides=["train.epochs=2"], with_latency=False)


def test_all_arms_share_splits_that_are_parsed_once(
    write_config: Callable[..., Path], tmp_path: Path, split_reads: list[str]
) -> None:
    overrides = ["train.epochs=1"]
    benchmark(write_config(), [0], tmp_path / "bench", overrides=overrides, with_latency=False, control=True)
    assert sorted(split_reads) == ["train", "val"]


def test_twins_start_from_the_same_weights_and_see_the_same_labelled_images(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "bench"
    benchmark(write_config(), [0], out, overrides=["train.epochs=1"], with_latency=False)
    plain = next(RunDirectory(out / "plain" / "seed0").read_log())
    distilled = next(RunDirectory(out / "distilled" / "seed0").read_log())
    for name in ("box", "cls", "dfl"):
        assert distilled[f"loss/task/{name}"] == plain[f"loss/task/{name}"]
    assert "loss/kd/class_qfl" in distilled
    assert "loss/kd/class_qfl" not in plain


def test_unlabelled_images_come_beside_the_same_labelled_ones(write_config: Callable[..., Path]) -> None:
    config = load_config(write_config(train="unlabelled_ratio: 1"))
    labelled, unlabelled = RunData(config.data).training(config)
    assert unlabelled is not None
    with_both = build_stream(config, labelled, unlabelled, 3).batch_at(1)
    fewer = replace(config, train=config.train.model_copy(update={"unlabelled_ratio": 0}))
    alone = build_stream(fewer, labelled, None, 3)
    assert with_both.labelled.tolist() == [True] * 4 + [False] * 4
    assert torch.equal(with_both.images[:4], alone.batch_at(1).images)
    assert torch.equal(with_both.targets.boxes_xyxy, alone.batch_at(1).targets.boxes_xyxy)


def test_a_benchmark_needs_a_teacher_and_different_seeds(write_config: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="teacher: is missing; a benchmark compares training with and without it"):
        benchmark(write_config(teacher=False), [0], tmp_path)
    for seeds in ([0, 0], [-1]):
        with pytest.raises(RequestError, match="give different seeds from 0 up"):
            benchmark(write_config(), seeds, tmp_path)
    with pytest.raises(RequestError, match=r"teacher\.name: 'plain' is the name of a student here; give another"):
        benchmark(write_config(), [0], tmp_path, overrides=["teacher.name=plain"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


def test_operations_are_those_of_the_published_model() -> None:
    detector = build(UltralyticsConfig(model="yolov8n"), tuple(map(str, range(80))), "student")
    assert gflops(detector, 640) == pytest.approx(8.7, abs=0.3)  # 8.7 published for 640 px and 80 classes


def test_the_student_is_built_for_the_classes_of_the_data(write_config: Callable[..., Path]) -> None:
    detector = build_student(load_config(write_config()), ("a", "b", "c"))
    assert detector.spec.classes == ("a", "b", "c")


def test_finished_runs_on_other_labels_do_not_count(
    write_config: Callable[..., Path], tmp_path: Path, squares: Path
) -> None:
    out, data = tmp_path / "bench", tmp_path / "data"
    shutil.copytree(squares.parent, data)
    changes = [f"data={data / squares.name}", "train.epochs=1"]
    benchmark(write_config(), [0], out, overrides=changes, with_latency=False)
    labels = json.loads((data / "annotations" / "train.json").read_text())
    labels["annotations"][0]["bbox"][2] -= 1
    (data / "annotations" / "train.json").write_text(json.dumps(labels))
    with pytest.raises(RequestError, match="holds a run of another config: the training data have changed"):
        benchmark(write_config(), [0], out, overrides=changes, with_latency=False)


def test_a_teacher_of_other_classes_and_an_ensemble_with_weights_are_reported(
    write_config: Callable[..., Path], tmp_path: Path, teacher_file: Path, awake_file: Callable[..., Path]
) -> None:
    """The first teaches features alone, so it has no arm; the second has members' weights and no file."""
    member = {"weights": str(teacher_file)}
    teachers = [
        {"name": "maps", "weights": str(awake_file("yolov8n", ("a", "b", "c")))},
        {"name": "both", "family": "ensemble", "members": [member, member], "weights": [2, 1]},
    ]
    terms = [{"loss": "feature_pkd", "teacher": "maps"}, {"loss": "soft_boxes", "teacher": "both"}]
    config = write_config(teacher=False, train="epochs: 1")
    asked = {"teacher": teachers, "distill": terms, "allow_weak_teacher": True}
    config.write_text(config.read_text() + "".join(f"{key}: {json.dumps(value)}\n" for key, value in asked.items()))
    result = benchmark(config, [0], tmp_path / "bench", with_latency=False)
    assert [arm.name for arm in result.data.arms] == ["both", "plain", "distilled"]
    assert result.data.arms[0].file_bytes is None


def test_the_control_is_a_twin_taught_by_its_own_labels(write_config: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "bench"
    config = write_config(train="epochs: 1, unlabelled_ratio: 1")
    result = benchmark(config, [0], out, with_latency=False, control=True)
    assert [(arm.name, arm.role) for arm in result.data.arms[1:]] == [
        ("plain", "plain"), ("distilled", "distilled"), ("control", "control"),
    ]  # fmt: skip
    plain = next(RunDirectory(out / "plain" / "seed0").read_log())
    control = next(RunDirectory(out / "control" / "seed0").read_log())
    for name in ("box", "cls", "dfl"):
        assert control[f"loss/task/{name}"] == plain[f"loss/task/{name}"]
    assert control["loss/kd/soft_boxes"] > 0
    assert json.loads((out / "control" / "seed0" / "teacher.json").read_text())["labels"]["AP"] == pytest.approx(1)


def test_the_control_has_the_balance_or_the_settings_of_the_distilled_run(write_config: Callable[..., Path]) -> None:
    dense = load_config(write_config(distill="[{loss: class_qfl, balance: 0.25}, {loss: box_iou, balance: 0.75}]"))
    (term,) = control_config(dense).terms
    assert (term.loss, term.teacher, term.config.weight) == ("soft_boxes", "labels", 1.0)
    assert term.config.model_dump()["balance"] == 0.75
    boxes = load_config(write_config(distill="[{loss: soft_boxes, weight: 0.5, box_gain: 3}]"))
    assert control_config(boxes).terms[0].config == boxes.terms[0].config
    several = (
        "[{loss: soft_boxes, weight: 0.5}, {loss: soft_boxes, name: b, weight: 2}, {loss: class_qfl, balance: 0.5}]"
    )
    (term,) = control_config(load_config(write_config(distill=several))).terms
    assert (term.config.weight, term.config.model_dump()["balance"]) == (2.5, 0.5)


def test_labels_cannot_teach_on_images_without_any(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(teacher=False, train="unlabelled_ratio: 1")
    config.write_text(config.read_text() + "teacher: {family: labels}\n")
    with pytest.raises(RequestError) as caught:
        train(config, tmp_path / "run")
    assert str(caught.value) == (
        f"{config}: teacher: 'labels' has no boxes of unlabelled images; set train.unlabelled_ratio to 0, and "
        f"train.label_fraction above 0"
    )
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_measured_on_the_split_that_is_reported(
    write_config: Callable[..., Path], tmp_path: Path, squares: Path
) -> None:
    out, data = tmp_path / "bench", tmp_path / "data"
    shutil.copytree(squares.parent, data)
    changes = [f"data={data / squares.name}", "train.epochs=1", "evaluate.final_split=null"]
    before = benchmark(write_config(), [0], out, overrides=changes, with_latency=False)
    kept = (out / "plain" / "seed0" / "student.pt").stat().st_mtime_ns
    labels = json.loads((data / "annotations" / "val.json").read_text())
    gone = labels["images"].pop()["id"]
    labels["annotations"] = [one for one in labels["annotations"] if one["image_id"] != gone]
    (data / "annotations" / "val.json").write_text(json.dumps(labels))
    after = benchmark(write_config(), [0, 1], out, overrides=changes, with_latency=False)
    for arm in after.data.arms:
        assert [run.metrics.n_images for run in arm.runs] == [len(labels["images"])] * len(arm.runs)
    assert before.data.arms[1].runs[0].metrics.n_images == len(labels["images"]) + 1
    assert (out / "plain" / "seed0" / "student.pt").stat().st_mtime_ns == kept


def test_twins_of_other_pixels_or_another_start_do_not_count(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """A broken benchmark left the plain twin alone; then the teacher's view, and the starting weights, changed."""
    config = load_config(write_config(train="epochs: 1"))
    directory = RunDirectory(tmp_path / "bench" / "plain" / "seed0")
    benchmark(config, [0], tmp_path / "bench", with_latency=False)
    shutil.rmtree(tmp_path / "bench" / "distilled")
    with pytest.raises(RequestError, match="its samples were made at 64 px, now at 128 px"):
        benchmark(write_config(train="epochs: 1"), [0], tmp_path / "bench", overrides=["teacher.image_size=128"])
    note = json.loads(directory.environment.read_text())
    note["hashes"]["student"] = "another"
    directory.environment.write_text(json.dumps(note))
    directory.metrics.unlink()  # a half-finished one as well
    with pytest.raises(RequestError, match="the weights that the student starts from have changed"):
        benchmark(config, [0], tmp_path / "bench", with_latency=False)


def test_a_control_counts_only_where_it_is_asked_for(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config = write_config(train="epochs: 1")
    benchmark(config, [0], tmp_path / "bench", with_latency=False, control=True)
    other = benchmark(config, [1], tmp_path / "bench", with_latency=False)
    assert [arm.name for arm in other.data.arms] == ["teacher", "plain", "distilled"]
    assert [[run.seed for run in arm.runs] for arm in other.data.arms[1:]] == [[1], [1]]


def test_an_arm_without_latency_says_why(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """One epoch on six images: the student is sure of nothing, and the gate cannot tell its boxes apart."""
    result = benchmark(write_config(teacher=True), [0], tmp_path / "bench", overrides=["train.epochs=1"])
    for arm in result.data.arms[1:]:
        refused = "no latency, as its export failed the parity gate: " in arm.description
        assert refused == (arm.onnx_latency_ms is None)


def test_the_gates_refusal_is_handed_on(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise GateError("parity: not the same boxes\ntrain it first")

    monkeypatch.setattr("kd_vision.pipeline.measurements.run_export", refuse)
    result = benchmark(write_config(), [0], tmp_path / "bench", overrides=["train.epochs=1"])
    plain = next(arm for arm in result.data.arms if arm.name == "plain")
    assert plain.onnx_latency_ms is None
    assert plain.description.endswith("; no latency, as its export failed the parity gate: train it first")
