from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_vision.cli.main import main
from kd_vision.core.errors import RequestError
from kd_vision.export import EXPORTERS
from kd_vision.export.onnx import HIGHEST_OPSET, LOWEST_OPSET, OnnxExportConfig
from kd_vision.pipeline.evaluate import evaluate
from kd_vision.pipeline.export import ExportResult, provenance, run_export
from kd_vision.teachers.onnx import OnnxPredictor


@pytest.fixture(scope="module")
def exported(student_file: Path, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    out = tmp_path_factory.mktemp("export") / "student.onnx"
    return run_export(student_file, out, squares, options={"batch": "dynamic"})


def test_gate_ran_on_the_validation_split(exported: ExportResult, student_file: Path, squares: Path) -> None:
    parity = exported.parity
    assert (parity.passed, parity.images) == (True, 6)
    assert parity.source == "all 6 images of the split 'val' of squares.yaml"
    assert parity.ap_reference == pytest.approx(evaluate(student_file, squares).metrics.ap, abs=1e-9)
    assert parity.ap_exported == pytest.approx(parity.ap_reference, abs=0.002)


def test_file_scores_what_the_model_scores(exported: ExportResult, squares: Path) -> None:
    assert evaluate(exported.path, squares).metrics.ap == pytest.approx(exported.parity.ap_exported, abs=1e-9)


def test_size_is_that_of_the_training_run(exported: ExportResult) -> None:
    assert exported.image_size == 64
    assert exported.size_bytes == exported.path.stat().st_size
    assert exported.latency is not None
    assert 0 < exported.latency.min_ms <= exported.latency.median_ms


def test_metadata_names_the_run_and_no_path(exported: ExportResult, student_file: Path) -> None:
    metadata = OnnxPredictor(exported.path).metadata
    run = metadata.training_run
    assert (run["model"], run["run"]) == ("student.pt", "lively-run")
    assert run["model_sha256"] == provenance(student_file)["model_sha256"]
    assert str(student_file.parent) not in str(metadata)
    assert json.loads(metadata.parity)["ap_exported"] == exported.parity.ap_exported


def test_command(student_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.onnx"
    arguments = ["export", str(student_file), "--out", str(out), "--nms", "--max-detections", "20"]
    assert main([*arguments, "--opset", "17", "--no-simplify"]) == 0
    output = capsys.readouterr().out
    assert "64 px, output nms" in output
    assert "parity  100.00% of" in output
    assert "no data was given" in output
    assert OnnxPredictor(out).output_format == "nms"


def test_help_names_formats_and_the_defaults_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    config = OnnxExportConfig(image_size=64)
    for option, default in (
        ("--batch N|dynamic images per call", config.batch),
        (f"--opset N ONNX operator set, {LOWEST_OPSET} to {HIGHEST_OPSET}", config.opset),
        ("number type", config.precision),
        ("drop boxes below", config.score_threshold),
        ("overlap that drops a box", config.nms_iou),
        ("rows per image", config.max_detections),
    ):
        assert f"{option} (default: {default})" in output
    for name, entry in EXPORTERS.items():
        assert f"{name} {entry.suffix}, {'/'.join(entry.precisions)}: {entry.summary}" in output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--precision", "int8"], "--precision: int8 is not available in this version; possible: fp32"),
        (
            ["--image-size", "50"],
            "--image-size: 50 is not a multiple of 32, which yolov8n needs; use 64",
        ),
        (
            ["--nms-iou", "0.5", "--max-detections", "9"],
            "--nms-iou, --max-detections: used only with --nms; add --nms, or leave out --nms-iou, --max-detections",
        ),
        (["--batch", "0", "--format", "onnx"], "--batch: 0 images make no batch; give 1 or more, or 'dynamic'"),
    ],
)
def test_command_refuses(
    arguments: list[str], line: str, student_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(student_file), "--out", str(tmp_path / "a.onnx"), *arguments]) == 2
    assert capsys.readouterr().err == f"kd-vision: {line}\n"
    assert list(tmp_path.iterdir()) == []


def test_only_torch_models_can_be_exported(exported: ExportResult, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        run_export(exported.path, tmp_path / "b.onnx")
    assert str(caught.value) == (
        f"{exported.path}: a model of the kind 'onnx' cannot be exported; give a run directory, .ckpt or .pt"
    )


def test_wrong_option_values_are_named(student_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        run_export(student_file, tmp_path / "b.onnx", options={"nms_iou": 2.0, "colour": 1})
    assert [problem.split(":")[1].strip() for problem in caught.value.problems] == ["nms_iou", "colour"]
