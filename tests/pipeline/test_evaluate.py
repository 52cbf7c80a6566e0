"""One model, four kinds of file, one set of numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_vision.cli.main import main
from kd_vision.core.errors import RequestError
from kd_vision.pipeline.evaluate import evaluate
from kd_vision.pipeline.export import run_export
from kd_vision.pipeline.train import train


@pytest.fixture
def run(write_config: Callable[..., Path], tmp_path: Path, teacher_file: Path) -> Path:
    """A run whose student finds something: it starts as the lively teacher and hardly moves."""
    config = write_config(teacher=False, train="lr: 1e-6")
    text = config.read_text().replace("student: {model: yolov8n}", f"student: {{weights: {teacher_file}}}")
    config.write_text(text)
    return train(config, tmp_path / "run", overrides=["train.epochs=1"]).directory


def test_checkpoint_student_onnx_and_predictions_agree(run: Path, squares: Path, tmp_path: Path) -> None:
    pt = evaluate(run, squares, predictions_out=tmp_path / "boxes.json", json_out=tmp_path / "numbers.json")
    assert sum(len(d) for d in pt.detections.values()) > 0
    assert json.loads((tmp_path / "numbers.json").read_text()) == pt.metrics.to_json()
    checkpoint = evaluate(run / "checkpoints" / "last.ckpt", squares)
    assert checkpoint.metrics == pt.metrics
    from_json = evaluate(tmp_path / "boxes.json", squares)
    assert from_json.metrics == pt.metrics
    run_export(run, tmp_path / "s.onnx", squares, with_latency=False)
    onnx = evaluate(tmp_path / "s.onnx", squares)
    assert onnx.image_size == pt.image_size == 64
    assert onnx.metrics.ap == pytest.approx(pt.metrics.ap, abs=0.01)
    assert onnx.metrics.ar100 == pytest.approx(pt.metrics.ar100, abs=0.02)


def test_the_numbers_are_cocoevals_own_on_the_same_boxes(run: Path, squares: Path, tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    result = evaluate(run, squares, predictions_out=tmp_path / "boxes.json")
    truth = COCO(str(squares.parent / "annotations" / "val.json"))
    by_hand = COCOeval(truth, truth.loadRes(str(tmp_path / "boxes.json")), "bbox")
    by_hand.evaluate()
    by_hand.accumulate()
    by_hand.summarize()
    numbers = result.metrics
    ours = [numbers.ap, numbers.ap50, numbers.ap75, numbers.ap_small, numbers.ap_medium, numbers.ap_large]
    ours += [numbers.ar1, numbers.ar10, numbers.ar100, numbers.ar_small, numbers.ar_medium, numbers.ar_large]
    assert [-1.0 if value is None else value for value in ours] == pytest.approx(list(by_hand.stats))


def test_classes_that_mean_something_else_are_refused(run: Path, squares: Path) -> None:
    swapped = squares.with_name("swapped.yaml")
    swapped.write_text(squares.read_text().replace("[red, blue]", "[blue, red]"))
    with pytest.raises(RequestError, match=r"class 0 is 'red', in the data .* it is 'blue'"):
        evaluate(run, swapped)


def test_the_command_prints_the_numbers(run: Path, squares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--data", str(squares), "--backend", "faster"]) == 0
    text = capsys.readouterr().out
    assert "AP50" in text
    assert "blue" in text


def test_kinds_that_are_no_model_are_refused(tmp_path: Path, squares: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "c.ckpt").write_text("")
    (tmp_path / "empty").mkdir()
    for name, text in {
        "a.txt": "unknown kind of model",
        "b.json": "b.json",
        "c.ckpt": "cannot be read as a checkpoint",
        "empty": "holds neither student.pt nor checkpoints",
    }.items():
        with pytest.raises(RequestError, match=text):
            evaluate(tmp_path / name, squares)


def test_a_teacher_of_a_config_is_measured_at_its_own_size(
    write_config: Callable[..., Path], squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config()
    assert evaluate(config, squares).image_size == 64
    with pytest.raises(RequestError, match="the image_size of a teacher is set in its config"):
        evaluate(config, squares, image_size=96)
    assert main(["predict", str(config), str(squares.parent / "val")]) == 2
    assert "only `kd-vision evaluate` takes it" in capsys.readouterr().err


def test_a_folder_in_the_place_of_a_file_is_one_line(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "numbers.json").mkdir()
    assert main(["evaluate", str(run), "--data", str(squares), "--json", str(tmp_path / "numbers.json")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(": Is a directory")


def test_a_device_that_is_not_here_is_refused_before_anything(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, drawn = tmp_path / "numbers.json", tmp_path / "drawn"
    asked = ["--data", str(squares), "--json", str(numbers)]
    assert main(["evaluate", str(run), *asked, "--device", "gpu"]) == 2
    assert "--device: 'gpu' is no device; possible: cpu, cuda, cuda:1, mps" in capsys.readouterr().err
    pictures = str(squares.parent / "val")
    assert main(["predict", str(run), pictures, "--out", str(drawn), "--device", "cuda:77"]) == 2
    assert "--device: 'cuda:77' is not available (" in capsys.readouterr().err
    assert not numbers.exists()
    assert not drawn.exists()
    assert main(["evaluate", str(run), *asked, "--device", "cpu"]) == 0
    assert json.loads(numbers.read_text())["AP"] >= 0
