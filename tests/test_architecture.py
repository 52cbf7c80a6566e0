"""The promises of "Where do I add ..." in docs/ARCHITECTURE.md: a toy entry for each row, by one file and one line.

Each test writes the file into a folder of its own, adds the line to the table, and then uses the entry as a user would.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper, numpy_helper
from ultralytics.utils import checks

import kd_vision.cli
from kd_vision.cli import main as cli
from kd_vision.config import load as config_load
from kd_vision.core.files import read_json
from kd_vision.core.run_directory import RunDirectory
from kd_vision.core.strict_yaml import load_mapping
from kd_vision.data.check import check_data
from kd_vision.data.convert import convert
from kd_vision.data.dataset import load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.formats import FORMATS, FormatEntry
from kd_vision.data.records import DetectionData
from kd_vision.detectors import FAMILIES, FamilyEntry
from kd_vision.detectors.ultralytics import config as ultralytics_config
from kd_vision.engine.loggers import LOGGERS, LoggerEntry
from kd_vision.engine.trainer import Trainer
from kd_vision.export import EXPORTERS, ExporterEntry, PrecisionEntry
from kd_vision.losses import LOSSES, LossEntry
from kd_vision.pipeline.evaluate import evaluate
from kd_vision.pipeline.models import load_model
from kd_vision.pipeline.train import train
from kd_vision.runtime.detector import OnnxDetector
from kd_vision.runtime.output_formats import OUTPUT_FORMATS, OutputFormatEntry
from kd_vision.teachers import TEACHERS, TeacherEntry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
STEPS = 2
Write = Callable[..., Path]
AddFile = Callable[[str, str], Path]
AddLine = Callable[[Any, Any], None]


@pytest.fixture
def add_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AddFile]:
    """Return a function that writes a file, by name and text; its modules can be imported during the test."""
    folder = tmp_path / "toys"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)

    def add(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(dedent(text))
        return path

    yield add
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def add_line(monkeypatch: pytest.MonkeyPatch) -> AddLine:
    """Return a function that adds the line `toy` to a table."""
    return lambda table, entry: monkeypatch.setitem(table, "toy", entry)


@pytest.fixture
def write(tmp_path: Path, squares: Path) -> Write:
    """Return a function that writes a config of two steps on the squares; keywords are its top level."""

    def write_config(**settings: Any) -> Path:
        training = {"epochs": 1, "batch_size": 6, "workers": 0, "validate_every": 0, "keep": "last", "log_every": 1,
                    "loggers": []}  # fmt: skip
        content = {
            "data": str(squares),
            "image_size": 64,
            "student": {"model": "yolov8n"},
            "augment": {"close_mosaic": 0},
            **settings,
            "train": training | settings.get("train", {}),
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write_config


def taught_by(distill: Any, **teacher: Any) -> dict[str, Any]:
    return {"teacher": teacher, "distill": distill, "allow_weak_teacher": True}


def steps_of(run: Path) -> list[dict[str, float]]:
    """Return the logged numbers of the steps of a run, having checked that the terms add up to the loss."""
    rows = [row for row in RunDirectory(run).read_log() if row["split"] == "train"]
    assert [row["step"] for row in rows] == [1, STEPS]
    for row in rows:
        parts = [value for key, value in row.items() if key.startswith("loss/task/")]
        terms = [key.removeprefix("loss/kd/") for key in row if key.startswith("loss/kd/")]
        parts += [row[f"weight/{name}"] * row[f"loss/kd/{name}"] for name in terms]
        assert row["loss/total"] == pytest.approx(sum(parts), rel=1e-5)
    return rows


def assert_term_is_alive(run: Path, name: str) -> None:
    assert all(row[f"loss/kd/{name}"] > 0 for row in steps_of(run))


def test_a_loss(add_file: AddFile, add_line: AddLine, write: Write, teacher_file: Path, tmp_path: Path) -> None:
    add_file(
        "toy_loss.py",
        """
        from kd_vision.losses.base import DistillationLoss, LossConfig

        class ToyConfig(LossConfig):
            power: float = 2.0

        class ToyLoss(DistillationLoss[ToyConfig]):
            Config = ToyConfig
            requires = frozenset({"grid"})

            def forward(self, student, teacher, targets):
                difference = student.grid.logits.sigmoid() - teacher.grid.logits.sigmoid()
                return difference.abs().pow(self.config.power).mean()
        """,
    )
    add_line(LOSSES, LossEntry("toy_loss:ToyLoss", "for tests"))
    terms = [{"loss": "toy", "weight": 3.0}, {"loss": "toy", "name": "first_power", "power": 1.0}]
    result = train(write(**taught_by(terms, weights=str(teacher_file))), tmp_path / "run")
    first = steps_of(result.directory)[0]
    assert 0 < first["loss/kd/toy"] < first["loss/kd/first_power"] < 1  # of numbers below 1 the square is smaller
    assert first["weight/toy"] == 3.0


class Killed(Exception):
    """The run was killed."""


FAMILY_CONFIG = """
from pathlib import Path
from typing import Literal

from kd_vision.core.validation import StrictModel

class ToyConfig(StrictModel):
    family: Literal["toy"] = "toy"
    size: Literal["n", "s"] = "n"
    weights: Path | None = None
    trust: bool = False

def head_kind(config):
    return "dense_bins"
"""
FAMILY = """
from dataclasses import replace

import torch

from kd_vision.detectors.checkpoints import NOTE, read_weights, transfer
from kd_vision.detectors.ultralytics import family as ultralytics
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector

class ToyDetector(UltralyticsDetector):
    def __init__(self, net, classes, name):
        super().__init__(net, classes, name)
        self.spec = replace(self.spec, family="toy")

    def save(self, path, metadata):
        note = {**metadata, **self.architecture(), "family": "toy"}
        torch.save({"state_dict": self.net.state_dict(), NOTE: note}, path)

def build(config, classes, where):
    if config.weights is None:
        detector = ultralytics.build(UltralyticsConfig(model=f"yolov8{config.size}"), classes, where)
        return ToyDetector(detector.net, classes, "toy")
    checkpoint = read_weights(config.weights, config.trust, where)
    detector = rebuild(checkpoint.note)
    transfer(checkpoint.state, detector.net, checkpoint.source, whole=True, where=where)
    return detector

def rebuild(architecture):
    return ToyDetector(ultralytics.rebuild(architecture).net, architecture["classes"], architecture["name"])
"""


def test_a_detector_family(
    add_file: AddFile, add_line: AddLine, write: Write, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its detectors train, are killed and resume, are measured from both kinds of file, and teach."""
    add_file("toy_config.py", FAMILY_CONFIG)
    add_file("toy_family.py", FAMILY)
    entry = FamilyEntry(
        module="toy_family",
        config="toy_config:ToyConfig",
        head="toy_config:head_kind",
        package="ultralytics",
        extra="ultralytics",
        weights=frozenset({".pt"}),
        summary="for tests",
    )
    add_line(FAMILIES, entry)
    config = write(student={"family": "toy"}, train={"checkpoint_every": 1})
    step = Trainer._step

    def killed_at_the_second_step(self: Trainer, batch: Any) -> None:
        if self.progress.step == 1:
            raise Killed
        step(self, batch)

    monkeypatch.setattr(Trainer, "_step", killed_at_the_second_step)
    with pytest.raises(Killed):
        train(config, tmp_path / "run")
    monkeypatch.setattr(Trainer, "_step", step)
    result = train(config, tmp_path / "run", resume=True)
    assert len(steps_of(result.directory)) == result.fit.steps == STEPS
    for path in (result.student, RunDirectory(result.directory).last_checkpoint):
        detector = load_model(path).detector
        assert detector is not None
        assert detector.spec.family == "toy"
        assert evaluate(path, squares, image_size=64).metrics.ap == result.metrics.ap

    taught = write(teacher={"family": "toy", "weights": str(result.student)}, allow_weak_teacher=True)
    assert config_load.load_config(taught).recipe == "imitation"  # of two heads with box bins
    assert_term_is_alive(train(taught, tmp_path / "taught").directory, "class_qfl")


def test_a_model_generation_of_ultralytics(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that has one more model YAML: the model is found by its name, and trains."""
    models = ultralytics_config._model_files()
    new = tmp_path / "ultralytics" / "cfg" / "models" / "99" / "yolo99.yaml"
    new.parent.mkdir(parents=True)
    shutil.copy(models["yolo11"], new)
    monkeypatch.setattr(ultralytics_config, "_model_files", lambda: {**models, "yolo99": new})
    monkeypatch.setattr(checks, "ROOT", tmp_path / "ultralytics")  # where the package searches
    result = train(write(student={"model": "yolo99n"}), tmp_path / "run")
    assert len(steps_of(result.directory)) == STEPS
    assert load_model(result.student).predictor.spec.name == "yolo99n"


def test_a_kind_of_teacher_online(add_file: AddFile, add_line: AddLine, write: Write, squares: Path) -> None:
    """A black box that finds one object in each image: it is measured, and teaches."""
    add_file(
        "toy_teacher.py",
        """
        from typing import Literal

        import numpy as np

        from kd_vision.core.predictions import Detections
        from kd_vision.core.spec import DetectorSpec
        from kd_vision.core.validation import StrictModel
        from kd_vision.teachers.base import BlackBoxDetector

        class ToyConfig(StrictModel):
            family: Literal["toy"] = "toy"
            box: tuple[float, float, float, float]

        class ToyTeacher(BlackBoxDetector):
            spec = DetectorSpec("toy", "toy", ("red", "blue"), {}, {}, frozenset({"detections"}))

            def __init__(self, box):
                self.box = box

            def detect(self, images, options):
                one = Detections(np.float32([self.box]), np.float32([0.75]), np.array([1]))
                return [one] * len(images)

        def build(config, classes, where):
            return ToyTeacher(config.box)
        """,
    )
    add_line(TEACHERS, TeacherEntry("toy_teacher:ToyConfig", "toy_teacher:build", "for tests"))
    config = write(**taught_by([{"loss": "soft_boxes"}], family="toy", box=[8, 8, 40, 40]))
    measured = evaluate(config, squares)
    assert [one.boxes_xyxy.tolist() for one in measured.detections.values()] == [[[8, 8, 40, 40]]] * 6
    assert_term_is_alive(train(config, config.parent / "run").directory, "soft_boxes")


def test_a_kind_of_teacher_offline(add_file: AddFile, add_line: AddLine, write: Write, squares: Path) -> None:
    """Boxes by path, those of the ground truth of the training split, so that the AP of the teacher on it is 1."""
    add_file(
        "toy_boxes.py",
        """
        import json
        from pathlib import Path
        from typing import Literal

        import numpy as np

        from kd_vision.core.errors import RequestError
        from kd_vision.core.predictions import Detections
        from kd_vision.core.validation import StrictModel

        class ToyConfig(StrictModel):
            family: Literal["toy"] = "toy"
            weights: Path

        class ToyBoxes:
            missing_classes = ()
            score_threshold = 0.0

            def __init__(self, path, classes):
                self.rows, self.classes = json.loads(path.read_text()), classes

            def of(self, record):
                if str(record.path) not in self.rows:
                    raise RequestError(f"{record.path}: there are no boxes of it")
                rows = np.array(self.rows[str(record.path)], np.float32)
                return Detections(rows[:, :4], np.full(len(rows), 0.9, np.float32), rows[:, 4].astype(np.int64))

        def build(config, train, where):
            return ToyBoxes(config.weights, train.classes)
        """,
    )
    add_line(TEACHERS, TeacherEntry("toy_boxes:ToyConfig", "toy_boxes:build", "for tests", offline=True))
    images = load_split(load_descriptor(squares), "train").images
    rows = {str(one.path): np.column_stack([one.boxes_xyxy, one.labels]).tolist() for one in images}
    file = add_file("boxes.json", json.dumps(rows))
    config = write(**taught_by([{"loss": "soft_boxes"}], family="toy", weights=str(file)))
    run = train(config, config.parent / "run").directory
    assert_term_is_alive(run, "soft_boxes")
    measured = read_json(run / "teacher.json")["teacher"]
    assert (measured["split"], measured["AP"]) == ("train", pytest.approx(1.0))


def constant_graph(path: Path, rows: list[list[float]]) -> None:
    """Write an ONNX file that gives these rows for any image of 64 pixels, and records nothing of itself."""
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 64, 64])
    output = helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, [1, len(rows), len(rows[0])])
    constant = numpy_helper.from_array(np.array([rows], np.float32))
    node = helper.make_node("Constant", [], ["rows"], value=constant)
    graph = helper.make_graph([node], "toy", [images], [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_an_output_format_of_onnx_files(
    add_file: AddFile, add_line: AddLine, write: Write, squares: Path, tmp_path: Path
) -> None:
    """Rows of label, score in percent, top, left, bottom, right."""
    add_file(
        "toy_format.py",
        """
        import numpy as np

        from kd_vision.core.predictions import Detections

        def match_outputs(outputs, classes):
            if [len(each.shape) for each in outputs] != [3]:
                raise ValueError("needs one output of three axes")
            return (0,)

        def decode(outputs, context):
            rows = outputs[0]
            rows = rows[rows[:, 1] / 100 > context.options.score_threshold]
            return Detections(rows[:, [3, 2, 5, 4]], rows[:, 1] / 100, rows[:, 0].astype(np.int64))
        """,
    )
    import toy_format  # type: ignore[import-not-found]

    add_line(OUTPUT_FORMATS, OutputFormatEntry("for tests", toy_format.match_outputs, toy_format.decode))
    file = tmp_path / "toy.onnx"
    constant_graph(file, [[1, 75, 4, 8, 36, 48], [0, 0, 0, 0, 0, 0]])
    detections = OnnxDetector(file, ["red", "blue"], "toy").predict(np.zeros((64, 64, 3), np.uint8))
    assert detections.boxes_xyxy.tolist() == [[8, 4, 48, 36]]
    assert (detections.labels.tolist(), detections.scores.tolist()) == ([1], [0.75])

    teacher = {"family": "onnx", "weights": str(file), "output_format": "toy", "classes": ["red", "blue"]}
    measured = evaluate(write(**taught_by("boxes", **teacher)), squares)
    assert [one.boxes_xyxy.tolist() for one in measured.detections.values()] == [[[8, 4, 48, 36]]] * 6


def contents(data: DetectionData) -> list[tuple[str, list[list[float]], list[int]]]:
    return [(Path(one.file_name).name, one.boxes_xywh.tolist(), one.labels.tolist()) for one in data.images]


def test_an_annotation_format(add_file: AddFile, add_line: AddLine, squares: Path, tmp_path: Path) -> None:
    """A CSV file for each split; COCO is converted to it and back."""
    add_file(
        "toy_csv.py",
        """
        import csv

        from kd_vision.data.formats.writing import safe_name
        from kd_vision.data.records import Defect, RawBox, RawImage, RawSplit

        def read_csv(descriptor, split):
            source = descriptor.splits[split]
            file, folder = descriptor.resolve(source.annotations), descriptor.resolve(source.images)
            images, names, defects = {}, {}, []
            with file.open(newline="") as rows:
                for line, (name, category, *sides) in enumerate(csv.reader(rows), start=1):
                    path = folder / name
                    image = images.setdefault(name, RawImage(len(images) + 1, path, name, None, file, line))
                    try:
                        box = tuple(float(side) for side in sides)
                    except ValueError:
                        defects.append(Defect("malformed", file, line, "needs numbers"))
                        continue
                    names[category] = category
                    image.boxes.append(RawBox(category, box, None, False, line, f"line {line}"))
            return RawSplit(list(images.values()), names, defects)

        def write_csv(parts, out):
            for part in parts:
                with (out / f"{part.name}.csv").open("w", newline="") as file:
                    rows = csv.writer(file)
                    for image in part.images:
                        for box, label in zip(image.boxes_xywh, image.labels):
                            rows.writerow([safe_name(image), part.classes[label], *box])
            return {part.name: f"{part.name}.csv" for part in parts}
        """,
    )
    add_line(FORMATS, FormatEntry(read="toy_csv:read_csv", write="toy_csv:write_csv", needs_annotations="a CSV file"))
    coco = load_descriptor(squares)
    toy = load_descriptor(convert(coco, tmp_path / "toy", to="toy").descriptor)
    back = load_descriptor(convert(toy, tmp_path / "back", to="coco").descriptor)
    assert (toy.format, back.format) == ("toy", "coco")
    for split in coco.splits:
        original, *converted = (contents(load_split(one, split)) for one in (coco, toy, back))
        assert converted == [original, original]
    assert [str(defect) for defect in check_data(toy)] == [str(defect) for defect in check_data(back)] == []

    file = tmp_path / "toy" / "val.csv"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([f"{first}px", *rest]))
    assert [str(one) for one in check_data(toy) if one.kind == "malformed"] == [f"{file}:1: needs numbers"]


def test_an_export_target(
    add_file: AddFile, add_line: AddLine, squares: Path, teacher_file: Path, tmp_path: Path
) -> None:
    """The command writes a file through the parity gate, and the file is measured like any other model."""
    add_file(
        "toy_target.py",
        """
        import torch

        from kd_vision.detectors import family_module

        def write_toy(detector, path, config, provenance, calibration):
            content = {"family": detector.spec.family, "architecture": detector.architecture()}
            torch.save({**content, "state": detector.state_dict(), "provenance": dict(provenance)}, path)
            return "toy"

        def open_toy(path):
            content = torch.load(path, weights_only=True)
            detector = family_module(content["family"], str(path)).rebuild(content["architecture"])
            detector.load_state_dict(content["state"])
            return detector.eval()

        def config_errors(spec, config):
            return ["--batch: a toy takes one image"] if config.batch != 1 else []

        def record_parity(path, parity):
            path.with_suffix(".parity").write_text(parity.model_dump_json())
        """,
    )
    entry = ExporterEntry(
        suffix=".toy",
        exporter="toy_target:write_toy",
        config="kd_vision.export.base:ExportConfig",
        check="toy_target:config_errors",
        opener="toy_target:open_toy",
        recorder="toy_target:record_parity",
        timer=None,
        precisions={"fp32": PrecisionEntry("kd_vision.export.parity:FP32_LIMITS")},
        packages=(),
        extra="",
        summary="for tests",
    )
    add_line(EXPORTERS, entry)
    out = tmp_path / "student.toy"
    command = ["export", str(teacher_file), "--out", str(out), "--data", str(squares), "--image-size", "64"]
    assert cli.main([*command, "--batch", "2"]) == 2
    assert not out.exists()
    assert cli.main(command) == 0
    parity = read_json(out.with_suffix(".parity"))
    assert (parity["images"], parity["reasons"]) == (6, [])
    exported, original = (evaluate(path, squares, image_size=64) for path in (out, teacher_file))
    assert sum(len(one) for one in exported.detections.values()) > 0
    assert exported.metrics == original.metrics


def test_a_logger(add_file: AddFile, add_line: AddLine, write: Write, tmp_path: Path) -> None:
    add_file(
        "toy_logger.py",
        """
        import json

        class ToyLogger:
            def __init__(self, root):
                self.path = root / "toy.jsonl"

            def log_hyperparams(self, params):
                self.log_metrics({"epochs": params["train"]["epochs"]}, 0)

            def log_metrics(self, metrics, step=None):
                with self.path.open("a") as file:
                    file.write(json.dumps({"step": step, **metrics}) + chr(10))

            def finalize(self, status):
                self.log_metrics({"status": status})
        """,
    )
    add_line(LOGGERS, LoggerEntry("toy_logger:ToyLogger", (), "", "for tests"))
    result = train(write(train={"loggers": ["toy"]}), tmp_path / "run")
    rows = [json.loads(line) for line in (result.directory / "toy.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, STEPS, STEPS, None]
    assert rows[0]["epochs"] == 1
    logged = [row["train/loss/total"] for row in rows[1:-2]]
    assert logged == [row["loss/total"] for row in steps_of(result.directory)]
    assert rows[-2]["final/AP"] == result.metrics.ap
    assert rows[-1]["status"] == "success"


def test_a_recipe(write: Write, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = shutil.copytree(config_load.RECIPES, tmp_path / "recipes")
    (recipes / "toy.yaml").write_text("distill:\n  - {loss: feature_mse, weight: 0.5}\n")
    monkeypatch.setattr(config_load, "RECIPES", recipes)
    result = train(write(**taught_by("toy", weights=str(teacher_file))), tmp_path / "run")
    assert_term_is_alive(result.directory, "feature_mse")
    assert [row["weight/feature_mse"] for row in steps_of(result.directory)] == [0.5] * STEPS


def test_a_data_set(squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    descriptor = tmp_path / "my_set.yaml"
    content = load_mapping(squares)
    descriptor.write_text(yaml.safe_dump({**content, "root": str(squares.parent)}))
    assert cli.main(["data", "check", str(descriptor)]) == 0
    annotations = json.loads((squares.parent / "annotations" / "val.json").read_text())
    annotations["annotations"][0]["bbox"][2] = 0
    (tmp_path / "wrong.json").write_text(json.dumps(annotations))
    content["splits"]["val"]["annotations"] = str(tmp_path / "wrong.json")
    descriptor.write_text(yaml.safe_dump({**content, "root": str(squares.parent)}))
    capsys.readouterr()
    assert cli.main(["data", "check", str(descriptor)]) == 2
    assert "1 error, 0 warnings" in capsys.readouterr().out


def test_a_subcommand(add_file: AddFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = add_file(
        "toy.py",
        """
        def add_parser(subparsers):
            parser = subparsers.add_parser("toy", help="greet", description="Greet somebody.")
            parser.add_argument("name")
            parser.set_defaults(run=run)

        def run(options):
            print(f"hello {options.name}")
            return 0
        """,
    )
    monkeypatch.setattr(kd_vision.cli, "__path__", [*kd_vision.cli.__path__, str(file.parent)])
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, "toy"))
    with pytest.raises(SystemExit) as end:
        cli.main(["toy", "--help"])
    assert end.value.code == 0
    assert "Greet somebody." in capsys.readouterr().out
    assert cli.main(["toy", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


TESTS: dict[str, tuple[Callable[..., None], ...]] = {
    "a loss": (test_a_loss,),
    "a detector family": (test_a_detector_family,),
    "a model generation of ultralytics": (test_a_model_generation_of_ultralytics,),
    "a kind of teacher": (test_a_kind_of_teacher_online, test_a_kind_of_teacher_offline),
    "an output format of ONNX files": (test_an_output_format_of_onnx_files,),
    "an annotation format": (test_an_annotation_format,),
    "an export target": (test_an_export_target,),
    "a logger": (test_a_logger,),
    "a recipe": (test_a_recipe,),
    "a data set": (test_a_data_set,),
    "a subcommand": (test_a_subcommand,),
}
"""Tests by the first column of the table."""


def rows_of_the_table() -> list[list[str]]:
    section = PAGE.split("## Where do I add ...")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_every_row_of_the_table_has_a_test() -> None:
    assert [row[0] for row in rows_of_the_table()] == list(TESTS)


@pytest.mark.parametrize("row", rows_of_the_table(), ids=lambda row: row[0])
def test_the_table_names_what_is_there(row: list[str]) -> None:
    """Tables stand in the files that are named, and the folders of a new file and of a new test exist."""
    _, file, line, test = row
    for name, place in re.findall(r"`([A-Z_]+)` in (`[^`]+`|the same file)", f"{line} {test}"):
        path = place.strip("`") if place != "the same file" else file.split("`")[1]
        base = ROOT if path.startswith("tests/") else ROOT / "kd_vision"
        assert re.search(rf"^{name}\b", (base / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    for path in re.findall(r"`((?:tests|datasets)/[^`]*)`", f"{file} {test}"):
        assert (ROOT / path).parent.is_dir()
    if (place := re.match(r"`(\w+/)", file)) is not None:
        assert (ROOT / "kd_vision" / place[1]).is_dir() or (ROOT / place[1]).is_dir()
