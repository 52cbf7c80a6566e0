"""A teacher as a config describes it: what is read, what is refused, and what is built."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.core.lazy import load_attribute
from kd_vision.core.predictions import PredictOptions
from kd_vision.detectors import FAMILIES
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.teachers import TEACHERS, teacher_entry
from kd_vision.teachers.augmented import Augmented, Tiled
from kd_vision.teachers.build import build_teacher, parse_teacher, refuse_idle_tiles
from kd_vision.teachers.frozen import FrozenTeacher
from kd_vision.teachers.onnx import OnnxConfig, OnnxPredictor
from kd_vision.teachers.options import TeacherOptions

WHERE = "c.yaml: teacher"
KINDS = sorted({*FAMILIES, *TEACHERS})


@pytest.fixture
def onnx_file(write_rows: Callable[..., str]) -> Path:
    """Always answers with a car of 0.75 at (8, 9) to (16, 21) and a bird of 0.5 at (0, 0) to (4, 4)."""
    return Path(write_rows("cars.onnx", ["bird", "car"], [8, 9, 16, 21, 0.75, 1], [0, 0, 4, 4, 0.5, 0]))


def refused(content: Any) -> tuple[str, ...]:
    with pytest.raises(RequestError) as caught:
        parse_teacher(content, WHERE)
    return caught.value.problems


def refused_build(content: dict[str, Any], classes: tuple[str, ...] | None) -> str:
    config, options = parse_teacher(content, WHERE)
    with pytest.raises(RequestError) as caught:
        build_teacher(config, options, classes, "teacher")
    return str(caught.value)


def built(content: dict[str, Any], classes: tuple[str, ...] | None = None) -> FrozenTeacher:
    return build_teacher(*parse_teacher(content, WHERE), classes, "teacher")


def test_keys_of_the_family_and_of_the_asking_stand_side_by_side() -> None:
    config, options = parse_teacher(
        {"weights": "/t.pt", "name": "big", "image_size": 640, "labels": {"car": "vehicle", 7: "drop"}, "tta": {}},
        WHERE,
    )
    assert config == UltralyticsConfig(weights=Path("/t.pt"))
    assert options == TeacherOptions(name="big", image_size=640, labels={"car": "vehicle", "7": "drop"}, tta={})
    config, options = parse_teacher(
        {"family": "onnx", "weights": "/t.onnx", "classes": ["a"], "layout": "yolox"}, WHERE
    )
    assert config == OnnxConfig(weights=Path("/t.onnx"), classes=("a",), output_format="yolox")
    assert options == TeacherOptions()


def test_every_mistake_is_told_at_once_with_its_key() -> None:
    assert refused(
        {
            "family": "onnx",
            "lables": {},
            "output_format": "yolo",
            "image_size": 8,
            "tiles": {"overlap": 1.5, "sise": 640},
        }
    ) == (
        "c.yaml: teacher.lables: unknown key; did you mean 'labels'?",
        "c.yaml: teacher.weights: is missing",
        "c.yaml: teacher.output_format: output format 'yolo' is unknown; did you mean 'yolox'?",
        "c.yaml: teacher.image_size: input should be greater than or equal to 32; given 8",
        "c.yaml: teacher.tiles.overlap: input should be less than 1; given 1.5",
        "c.yaml: teacher.tiles.sise: unknown key; did you mean 'size'?",
    )


def test_what_is_no_source_is_refused() -> None:
    assert refused("t.pt") == (
        "c.yaml: teacher: expected keys and values, e.g. {family: ultralytics, weights: teacher.pt}",
    )
    assert refused({"family": "onx"}) == ("c.yaml: teacher.family: unknown family 'onx'; did you mean 'onnx'?",)


def test_mistakes_of_members_name_the_member() -> None:
    members = [{"weights": "/a.pt", "nam": "x"}, {"family": "onnx"}, {"family": "predictions", "weights": "/p.json"}]
    assert refused({"family": "ensemble", "members": members}) == (
        "c.yaml: teacher.members.0.nam: unknown key; did you mean 'name'?",
        "c.yaml: teacher.members.1.weights: is missing",
        "c.yaml: teacher.members.2.family: 'predictions' cannot be a member of an ensemble: it holds boxes by image id "
        "and predicts nothing; give it as another teacher",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_teacher_has_a_key_of_the_options(kind: str) -> None:
    """The keys share one mapping, so a clash would silently go to the options."""
    config = load_attribute(teacher_entry(kind, WHERE).config)
    assert not {*config.model_fields, *config.renamed_keys} & {*TeacherOptions.model_fields}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_table_names_is_there_and_settings_are_read_without_torch(kind: str) -> None:
    entry = teacher_entry(kind, WHERE)
    assert callable(load_attribute(entry.build))
    assert entry.summary
    code = (
        "import sys; from kd_vision.core.lazy import load_attribute\n"
        f"load_attribute({entry.config!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_teacher_that_is_no_model_of_its_own_cannot_be_a_member() -> None:
    for kind in KINDS:
        entry = teacher_entry(kind, WHERE)
        members = [{"family": kind, "weights": "/p", "store": "/s"}]
        if entry.offline or entry.follows_student:
            assert refused({"family": "ensemble", "members": members}) == (
                f"c.yaml: teacher.members.0.family: '{kind}' cannot be a member of an ensemble: {entry.why_no_member}",
            )
        else:
            assert entry.why_no_member == ""


def test_what_counts_as_a_pseudo_label_can_be_set(teacher_file: Path) -> None:
    content = {"weights": str(teacher_file)}
    assert built(content).options == PredictOptions(0.05, 0.6, 300)
    asked = built({**content, "postprocess": {"score_threshold": 0.3, "max_detections": 7}})
    assert asked.options == PredictOptions(0.3, 0.6, 7)
    assert asked.score_threshold == 0.3
    assert refused({**content, "postprocess": {"score": 0.3, "nms_iou": 0}}) == (
        "c.yaml: teacher.postprocess.nms_iou: input should be greater than 0; given 0",
        "c.yaml: teacher.postprocess.score: unknown key; possible: max_detections, nms_iou, score_threshold",
    )


def test_a_torch_model_is_frozen_and_speaks_the_students_words(teacher_file: Path) -> None:
    teacher = built({"weights": str(teacher_file), "labels": {"red": "warm", "*": "drop"}}, ("warm", "cold"))
    assert isinstance(teacher.source, UltralyticsDetector)
    assert not any(p.requires_grad for p in teacher.source.parameters())
    assert teacher.spec.classes == ("warm", "cold")
    assert teacher.spec.missing_classes == {"cold"}
    assert teacher.image_size is None


def test_an_onnx_file_is_shown_its_own_size(onnx_file: Path) -> None:
    teacher = built({"family": "onnx", "weights": str(onnx_file)}, ("car", "bird"))
    assert isinstance(teacher.source, OnnxPredictor)
    assert teacher.image_size == 32
    batch = ImageBatch.of_images(torch.zeros(1, 3, 64, 64), [1], [])
    soft = teacher.signals(batch, frozenset({"detections"})).pseudo_labels
    assert soft is not None
    assert soft.boxes_xyxy.tolist() == [[16, 18, 32, 42], [0, 0, 8, 8]]
    assert soft.labels.tolist() == [0, 1]


def test_tiles_and_looks_are_put_around_the_source(onnx_file: Path) -> None:
    content = {"family": "onnx", "weights": str(onnx_file), "image_size": 64, "tiles": {"overlap": 0.0, "whole": False}}
    teacher = built({**content, "tta": {"flip": False}})
    assert isinstance(teacher.source, Augmented)
    assert isinstance(teacher.source.source, Tiled)
    assert teacher.source.source.tile == 32
    assert teacher.image_size == 64
    found = teacher.source.detect(torch.zeros(1, 3, 64, 64))[0]
    cars = sorted(found.boxes_xyxy[found.labels == 1].tolist())
    assert cars == [[x + 8, y + 9, x + 16, y + 21] for x in (0, 32) for y in (0, 32)]


def test_sizes_that_do_not_fit_are_refused(onnx_file: Path, teacher_file: Path) -> None:
    content = {"family": "onnx", "weights": str(onnx_file), "image_size": 64}
    assert refused_build(content, None) == (
        "teacher.image_size: the file only takes images of 32x32 pixels, given 64; leave it out, or add "
        "tiles: {size: 32}"
    )
    torch_model = {"weights": str(teacher_file), "image_size": 100}
    assert (
        refused_build(torch_model, None)
        == "teacher.image_size: 100 is not a multiple of 32, which yolov8n needs; use 96"
    )
    assert refused_build({**torch_model, "tiles": {}}, None) == (
        "teacher.tiles.size: is missing; give the side of a tile in pixels, e.g. 640"
    )
    assert built({**torch_model, "tiles": {"size": 64}}).image_size == 100


def test_labels_need_something_to_map_to(onnx_file: Path) -> None:
    content = {"family": "onnx", "weights": str(onnx_file), "labels": {"car": "drop"}}
    assert refused_build(content, None) == "teacher.labels: there are no classes to map to; leave it out"
    ensemble = {"family": "ensemble", "members": [content], "labels": {"car": "drop"}}
    assert refused_build(ensemble, ("bird",)) == (
        "teacher.labels: each member of an ensemble has its own label map; give it there"
    )
    assert "teacher.labels.cat: the teacher has no such class" in refused_build(
        {**content, "labels": {"cat": "drop"}}, ("bird", "car")
    )


def test_tiles_that_cut_nothing_are_refused(onnx_file: Path, teacher_file: Path) -> None:
    def text(tile: int, view: int) -> str:
        return (
            f"teacher.tiles.size: a tile of {tile} pixels is not smaller than the image of {view}x{view} pixels; "
            f"give image_size: {2 * tile}, or leave tiles out"
        )

    torch_model = {"weights": str(teacher_file), "tiles": {"size": 64}}
    assert refused_build({**torch_model, "image_size": 64}, None) == text(64, 64)
    file = {"family": "onnx", "weights": str(onnx_file), "tiles": {}}
    assert refused_build({**file, "image_size": 32}, None) == text(32, 32)
    options = TeacherOptions.model_validate({"tiles": {"size": 64}})
    refuse_idle_tiles(options, 96, "teacher")
    with pytest.raises(RequestError) as caught:
        refuse_idle_tiles(options, 48, "teacher")
    assert str(caught.value) == text(64, 48)
    config, asked = parse_teacher(file, WHERE)  # the file's own size is the tile's
    with pytest.raises(RequestError) as caught:
        build_teacher(config, asked, None, "teacher", 32)
    assert str(caught.value) == text(32, 32)
    assert build_teacher(config, asked, None, "teacher", 64).image_size == 64
    larger = TeacherOptions.model_validate({"tiles": {"size": 64}, "tta": {"scales": [1.0, 1.5]}})
    refuse_idle_tiles(larger, 64, "teacher")  # the larger look is cut
    refuse_idle_tiles(TeacherOptions(), 64, "teacher")


def test_looks_at_other_sizes_are_the_members_own_where_they_have_sizes(teacher_file: Path) -> None:
    free = {"weights": str(teacher_file)}
    content = {"family": "ensemble", "members": [{**free, "image_size": 128}, free], "tta": {"scales": [0.5, 1.0]}}
    assert refused_build(content, None) == (
        "teacher.tta.scales: members of the ensemble have their own image_size, to which every scale would be "
        "resized again; give 'tta' to the members"
    )
    assert isinstance(built({**content, "members": [free, free]}).source, Augmented)
    assert isinstance(built({**content, "tta": {"flip": True}}).source, Augmented)
