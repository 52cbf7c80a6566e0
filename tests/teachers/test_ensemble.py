"""Several teachers as one: who is asked at which size, in which words, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import ImageBatch, Letterbox, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.label_map import build_label_map
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.teachers.base import BlackBoxDetector
from kd_vision.teachers.build import build_teacher, parse_teacher
from kd_vision.teachers.ensemble import Ensemble, EnsembleConfig, build
from kd_vision.teachers.frozen import FrozenTeacher


class Says(BlackBoxDetector):
    """Always says the same, as shares of the image's side: [x1, y1, x2, y2, score, label]."""

    def __init__(
        self, *rows: list[float], classes: tuple[str, ...] = ("a", "b"), channels: int = 3, multiple: int = 16
    ) -> None:
        self.raw_predictions = np.float32(rows).reshape(-1, 6)
        self.spec = DetectorSpec(
            "fake", "says", classes, {}, {}, frozenset({"detections"}), input_channels=channels, size_multiple=multiple
        )
        self.shown: list[tuple[int, ...]] = []
        self.asked: list[PredictOptions] = []
        self.device = ""

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        self.shown.append(tuple(images.shape))
        self.asked.append(options)
        boxes = self.raw_predictions[:, :4] * images.shape[-1]
        one = Detections(boxes, self.raw_predictions[:, 4], self.raw_predictions[:, 5].astype(np.int64))
        return [one.take(one.scores > options.score_threshold)] * len(images)


LEFT = [0.0, 0.0, 0.5, 0.5]
RIGHT = [0.5, 0.5, 1.0, 1.0]
IMAGES = torch.zeros(2, 3, 64, 64)


def rows(found: Detections) -> list[list[float]]:
    return [
        [*map(float, box), round(float(score), 5), int(label)]
        for box, score, label in zip(found.boxes_xyxy, found.scores, found.labels)
    ]


def test_members_are_fused_in_pixels_of_the_images_whatever_their_own_size() -> None:
    first, second = Says([*LEFT, 0.8, 0], [*RIGHT, 0.6, 1]), Says([*LEFT, 0.4, 0])
    ensemble = Ensemble([FrozenTeacher(first), FrozenTeacher(second, image_size=32)])
    for found in ensemble.detect(IMAGES):
        assert rows(found) == [[0, 0, 32, 32, 0.6, 0], [32, 32, 64, 64, 0.3, 1]]
    assert first.shown == [(2, 3, 64, 64)]
    assert second.shown == [(2, 3, 32, 32)]


def test_weights_and_class_weights_count() -> None:
    first, second = Says([*LEFT, 0.8, 0], [*RIGHT, 0.6, 1]), Says([*LEFT, 0.4, 0], [*RIGHT, 0.2, 1])
    members = [FrozenTeacher(first), FrozenTeacher(second)]
    assert [row[4] for row in rows(Ensemble(members, weights=[3, 1]).detect(IMAGES)[0])] == [0.7, 0.5]
    by_class = Ensemble(members, class_weights=[[1, 0], [1, 1]])
    assert [row[4] for row in rows(by_class.detect(IMAGES)[0])] == [0.6, 0.2]


def test_a_class_a_member_never_learned_is_left_to_the_others() -> None:
    first = FrozenTeacher(Says([*LEFT, 0.9, 0], [*RIGHT, 0.6, 1]))
    knows_a = build_label_map(("cat",), ("a", "b"), {"cat": "a"}, "labels")
    second = FrozenTeacher(Says([*LEFT, 0.4, 0], classes=("cat",)), knows_a)
    ensemble = Ensemble([first, second])
    assert rows(ensemble.detect(IMAGES)[0]) == [[0, 0, 32, 32, 0.65, 0], [32, 32, 64, 64, 0.6, 1]]
    assert ensemble.spec.missing_classes == frozenset()
    assert Ensemble([second]).spec.missing_classes == {"b"}
    doubled = Ensemble([first, second], class_weights=[[1, 2], [2, 2]])
    assert rows(doubled.detect(IMAGES)[0])[0] == [32, 32, 64, 64, 0.6, 1]


def test_each_member_speaks_by_its_own_map() -> None:
    """The second knows 'b' as two classes, and says one object twice: merged before the fusion."""
    first = FrozenTeacher(Says([*RIGHT, 0.6, 1]))
    merges = build_label_map(("bus", "truck", "sky"), ("a", "b"), {"bus": "b", "truck": "b", "sky": "ignore"}, "labels")
    said = Says([*RIGHT, 0.9, 0], [*RIGHT, 0.5, 1], [*LEFT, 0.7, 2], classes=("bus", "truck", "sky"))
    found = Ensemble([first, FrozenTeacher(said, merges)]).detect(IMAGES)[0]
    assert found.ignore is not None
    assert rows(found.take(~found.ignore)) == [[32, 32, 64, 64, 0.75, 1]]
    assert found.take(found.ignore).boxes_xyxy.tolist() == [[0, 0, 32, 32]]


def test_members_are_asked_for_all_that_may_support_a_box() -> None:
    first, second = Says([*LEFT, 0.9, 0]), Says([*LEFT, 0.04, 0], [*RIGHT, 0.008, 0])
    ensemble = Ensemble([FrozenTeacher(first), FrozenTeacher(second)])
    options = PredictOptions(score_threshold=0.3, nms_iou=0.6, max_detections=7)
    assert rows(ensemble.detect(IMAGES, options)[0]) == [[0, 0, 32, 32, 0.47, 0]]
    assert second.asked == [PredictOptions(0.01, 0.6, 7)]
    assert ensemble.detect(IMAGES, PredictOptions(score_threshold=0.5))[0].scores.tolist() == []


def test_members_may_take_other_channels() -> None:
    gray, colour = Says([*LEFT, 0.8, 0], channels=1), Says([*LEFT, 0.8, 0])
    ensemble = Ensemble([FrozenTeacher(gray), FrozenTeacher(colour)])
    ensemble.detect(IMAGES)
    assert (gray.shown, colour.shown) == ([(2, 1, 64, 64)], [(2, 3, 64, 64)])
    assert ensemble.spec.input_channels == 3


def test_an_ensemble_is_a_predictor_of_boxes() -> None:
    ensemble = Ensemble([FrozenTeacher(Says([*LEFT, 0.8, 0])), FrozenTeacher(Says([*LEFT, 0.8, 0]), image_size=48)])
    assert isinstance(ensemble, BlackBoxDetector)
    assert (ensemble.spec.family, ensemble.spec.name) == ("ensemble", "says+says")
    free = [FrozenTeacher(Says(multiple=each)) for each in (16, 24)]
    resized = FrozenTeacher(Says(multiple=7), image_size=49)
    assert Ensemble([*free, resized]).spec.size_multiple == 48
    assert Ensemble([resized]).spec.size_multiple == 1
    none = torch.zeros(0, dtype=torch.int64)
    batch = ImageBatch(
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        Targets(none, none, torch.zeros(0, 4)),
        torch.ones(1, dtype=torch.bool),
        (1,),
        (Letterbox(128, 128, 0.5, 0.5, 0, 0),),
    )
    np.testing.assert_allclose(rows(ensemble.predict(batch)[0]), [[0, 0, 64, 64, 0.8, 0]], atol=1e-4)


def test_members_with_other_classes_are_refused() -> None:
    members = [FrozenTeacher(Says()), FrozenTeacher(Says(classes=("b", "a")))]
    with pytest.raises(RequestError) as caught:
        Ensemble(members)
    assert str(caught.value) == (
        "ensemble: member 1 has the classes 'b', 'a', member 0 'a', 'b'; map them to the same classes with labels"
    )


def test_a_config_builds_members_that_answer_in_the_students_words(write_rows: Callable[..., str]) -> None:
    content = {
        "family": "ensemble",
        "members": [
            {"family": "onnx", "weights": write_rows("x.onnx", ["cat"], [0, 0, 16, 16, 0.2, 0]),
             "labels": {"cat": "a"}, "name": "small"},
            {"family": "onnx", "weights": write_rows("y.onnx", ["a", "b"], [0, 0, 16, 16, 0.8, 0])},
        ],
        "class_weights": {1: {"a": 2.0}, "small": {"a": 1.0}},
    }  # fmt: skip
    teacher = build_teacher(*parse_teacher(content, "c.yaml: teacher"), ("b", "a"), "teacher")
    assert teacher.spec.family == "ensemble"
    assert teacher.spec.classes == ("b", "a")
    assert teacher.image_size == 32  # what both files take
    batch = ImageBatch.of_images(torch.zeros(1, 3, 64, 64), [1], [])
    soft = teacher.signals(batch, frozenset({"detections"})).pseudo_labels
    assert soft is not None
    assert soft.boxes_xyxy.tolist() == [[0, 0, 32, 32]]
    assert soft.labels.tolist() == [1]
    np.testing.assert_allclose(soft.scores, [0.6], atol=1e-6)


def test_without_a_student_members_answer_in_the_words_of_the_first(write_rows: Callable[..., str]) -> None:
    x = write_rows("x.onnx", ["a", "b"], [0, 0, 16, 16, 0.8, 0])
    y = write_rows("y.onnx", ["b", "a"], [0, 0, 16, 16, 0.4, 1])
    config = EnsembleConfig(members=({"family": "onnx", "weights": x}, {"family": "onnx", "weights": y}))
    found = build(config, None, "teacher").detect(torch.zeros(1, 3, 32, 32))[0]
    assert rows(found) == [[0, 0, 16, 16, 0.6, 0]]


def test_wrong_ensembles_are_refused(write_rows: Callable[..., str]) -> None:
    x = write_rows("x.onnx", ["a", "b"], [0, 0, 16, 16, 0.8, 0])
    y = write_rows("y.onnx", ["cat"], [0, 0, 16, 16, 0.8, 0])

    def refused(*members: dict[str, Any], **settings: Any) -> tuple[str, ...]:
        config = EnsembleConfig(members=tuple({"family": "onnx", **member} for member in members), **settings)
        with pytest.raises(RequestError) as caught:
            build(config, ("a", "b"), "teacher")
        return caught.value.problems

    assert refused(
        {"weights": x, "name": "big"},
        {"weights": x, "name": "big"},
        weights=[1.0],
        class_weights={"bog": {}, "1": {"c": 1.0, "a": -1.0}},
    ) == (
        "teacher.weights: 1 numbers for 2 members; give one each",
        "teacher.members: two have the same name, or one has a number as its name; rename it",
        "teacher.class_weights.bog: there is no such member; did you mean 'big'?",
        "teacher.class_weights.1.c: no such class; possible: a, b",
        "teacher.class_weights.1.a: must be a number from 0 up; given -1.0",
    )
    (line,) = refused({"weights": x}, {"weights": y})
    assert line.startswith("teacher.members.1.labels: ")
    (line,) = refused({"weights": "/no.onnx"})
    assert line == "teacher.members.0: /no.onnx: does not exist; give an .onnx file"
    with pytest.raises(ValueError, match=r"expected numbers from 0 up, one of them above; given \[0.0, 0.0\]"):
        EnsembleConfig(members=({}, {}), weights=(0.0, 0.0))


def test_a_config_comes_back_from_plain_values() -> None:
    given = {"members": [{"weights": "/a.pt", "image_size": 640}], "class_weights": {0: {"a": 0.5}}, "weights": [2]}
    config = EnsembleConfig.model_validate(given)
    assert EnsembleConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.class_weights == {"0": {"a": 0.5}}


def build_pair(teacher_file: Path, sizes: tuple[int | None, int | None], given: int | None, **asked: Any) -> Any:
    """An ensemble of two YOLOs of these sizes, for images of side `given`."""
    members = [{"weights": str(teacher_file), **({"image_size": size} if size else {})} for size in sizes]
    source = parse_teacher({"family": "ensemble", "members": members, **asked}, "c.yaml: teacher")
    return build_teacher(*source, ("red", "blue"), "teacher", given)


@pytest.mark.parametrize(
    ("sizes", "given", "view", "shown"),
    [
        ((64, 128), 96, 128, [64, 128]),
        ((64, 128), None, 128, [64, 128]),
        ((None, 128), 96, 128, [96, 128]),  # who names no size is shown that of the student
        ((None, 64), 96, 96, [96, 64]),
        ((None, 64), None, 64, [None, 64]),
        ((None, None), 96, 96, [None, None]),
    ],
)
def test_the_view_is_as_large_as_the_largest_member_wants(
    teacher_file: Path, sizes: tuple[int | None, int | None], given: int | None, view: int | None, shown: list[int]
) -> None:
    teacher = build_pair(teacher_file, sizes, given)
    assert teacher.image_size == view
    assert [member.image_size for member in teacher.source.members] == shown
    twice = build_pair(teacher_file, sizes, given, tta={"flip": False})
    assert twice.image_size == view
    assert build_pair(teacher_file, sizes, given, image_size=160).image_size == 160


def test_tiles_of_an_ensemble_are_cut_from_the_image_as_it_is(teacher_file: Path) -> None:
    assert build_pair(teacher_file, (64, 128), 256, tiles={"size": 96}).image_size == 256


def test_a_size_that_a_member_cannot_take_is_refused(teacher_file: Path) -> None:
    with pytest.raises(RequestError) as caught:
        build_pair(teacher_file, (None, 128), 100)
    assert str(caught.value) == (
        "teacher: members without image_size would get images of 100x100 pixels, but take multiples of 32; give them "
        "image_size: 96"
    )
