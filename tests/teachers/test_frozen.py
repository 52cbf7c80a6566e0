"""A frozen teacher answers in the student's classes and in the student's pixels, whatever it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import ImageBatch, Letterbox, PseudoLabels
from kd_vision.core.label_map import build_label_map
from kd_vision.core.predictions import Detections, PredictOptions, Signal
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.family import build
from kd_vision.teachers.base import BlackBoxDetector
from kd_vision.teachers.frozen import FrozenTeacher

ALL: frozenset[Signal] = frozenset({"features", "grid", "regions", "detections"})
BOXES: frozenset[Signal] = frozenset({"detections"})


class Corner(BlackBoxDetector):
    """Sees one car in the upper left quarter of whatever it is shown, a bicycle and a motorcycle beside it."""

    def __init__(self) -> None:
        self.spec = DetectorSpec(
            "fake", "corner", ("car", "bicycle", "motorcycle", "dog"), {}, {}, frozenset({"detections"})
        )
        self.shown: list[int] = []

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        side = float(images.shape[-1])
        self.shown.append(int(side))
        boxes = np.array([[0, 0, side / 2, side / 2], [side / 2, 0, side, side / 2], [side / 2, 0, side, side / 2]])
        one = Detections(boxes.astype(np.float32), np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 2]))
        return [one] * len(images)


def labels(given: dict[str, str] | None = None):  # type: ignore[no-untyped-def]
    given = given or {"bicycle": "bike", "motorcycle": "bike", "*": "drop"}
    return build_label_map(Corner().spec.classes, ("bike", "car", "bus"), given, "teacher.labels")


def batch_of(images: Tensor, teacher_images: Tensor | None = None) -> ImageBatch:
    letterbox = Letterbox(int(images.shape[-2]), int(images.shape[-1]), 1, 1, 0, 0)
    batch = ImageBatch.of_images(images, range(len(images)), [letterbox] * len(images))
    return replace(batch, teacher_images=teacher_images)


def taught(teacher: FrozenTeacher, images: Tensor, teacher_images: Tensor | None = None) -> PseudoLabels:
    pseudo_labels = teacher.signals(batch_of(images, teacher_images), BOXES).pseudo_labels
    assert pseudo_labels is not None
    return pseudo_labels


def test_boxes_come_in_the_students_classes_and_twice_seen_objects_once() -> None:
    teacher = FrozenTeacher(Corner(), labels())
    soft = taught(teacher, torch.zeros(2, 3, 64, 64))
    assert soft.image_index.tolist() == [0, 0, 1, 1]
    assert soft.labels.tolist() == [1, 0, 1, 0]
    assert soft.scores.tolist() == pytest.approx([0.9, 0.8, 0.9, 0.8])  # the motorcycle is the same bike again
    assert soft.class_probs[0].tolist() == pytest.approx([0.0, 0.9, 0.0])
    assert teacher.spec.classes == ("bike", "car", "bus")
    assert teacher.spec.missing_classes == {"bus"}


def test_ignored_boxes_stay_for_the_student_and_claim_nothing_in_a_measurement() -> None:
    teacher = FrozenTeacher(Corner(), labels({"bicycle": "ignore", "motorcycle": "bike", "*": "drop"}))
    soft = taught(teacher, torch.zeros(1, 3, 64, 64))
    assert soft.ignore.tolist() == [False, True, False]
    (found,) = teacher.predict(batch_of(torch.zeros(1, 3, 64, 64)))
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_a_teacher_of_another_size_answers_in_the_students_pixels() -> None:
    source = Corner()
    teacher = FrozenTeacher(source, labels(), image_size=128)
    soft = taught(teacher, torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 96, 96))
    assert source.shown == [128]
    assert soft.boxes_xyxy[0].tolist() == [0.0, 0.0, 32.0, 32.0]


def test_a_detectors_grid_and_grades_follow_the_frame_and_the_map() -> None:
    torch.manual_seed(0)
    detector = build(UltralyticsConfig(model="yolov8n"), ("blue", "red"), "teacher")
    images = torch.rand(1, 3, 128, 128)
    plain = FrozenTeacher(detector).signals(batch_of(images), ALL)
    swap = build_label_map(("blue", "red"), ("red", "blue"), None, "t")
    half = torch.zeros(1, 3, 64, 64)
    small = FrozenTeacher(detector, swap, image_size=128).signals(batch_of(half, images), ALL)
    one, other = plain.grids["one_to_many"], small.grids["one_to_many"]
    assert torch.equal(one.logits[..., [1, 0]], other.logits)
    assert torch.equal(one.boxes_xyxy / 2, other.boxes_xyxy)
    assert torch.equal(one.points_xy / 2, other.points_xy)
    assert other.strides.unique().tolist() == [4.0, 8.0, 16.0]
    boxes = one.boxes_xyxy[:, :5]
    assert plain.refine_regions is not None
    assert small.refine_regions is not None
    graded, mapped = plain.refine_regions(boxes), small.refine_regions(boxes / 2)
    assert torch.equal(graded.class_probs[..., [1, 0]], mapped.class_probs)
    assert torch.allclose(graded.boxes_xyxy / 2, mapped.boxes_xyxy)
    assert not any(p.requires_grad for p in detector.parameters())


class Hesitant(Corner):
    """Says of one row that it is a car (.5) or a bicycle (.4), of others 250 sure dogs in a line."""

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        left = np.concatenate([[0, 0], 20 + 4 * np.arange(250)])
        boxes = np.stack([left, 0 * left, left + 3, 0 * left + 3], axis=1).astype(np.float32)
        probs = np.zeros((252, 4), np.float32)
        probs[:2, :2] = [0.5, 0.4]
        probs[2:, 3] = 0.3
        labels = np.array([0, 1] + [3] * 250)
        one = Detections(boxes, probs[np.arange(252), labels], labels, probs)
        return [one.take(np.arange(min(252, options.max_detections)))] * len(images)


@pytest.mark.parametrize("given", [None, {"bicycle": "bike", "motorcycle": "drop", "dog": "bus"}])
def test_a_row_with_two_opinions_is_taught_once_and_no_box_of_a_crowded_image_is_lost(
    given: dict[str, str] | None,
) -> None:
    teacher = FrozenTeacher(Hesitant(), None if given is None else labels(given))
    soft = taught(teacher, torch.zeros(1, 3, 1024, 1024))
    assert len(soft) == 251
    assert soft.scores[:2].tolist() == pytest.approx([0.5, 0.3])


def test_the_second_opinion_speaks_where_the_first_is_dropped() -> None:
    teacher = FrozenTeacher(Hesitant(), labels({"car": "drop", "bicycle": "car", "motorcycle": "bike", "dog": "drop"}))
    soft = taught(teacher, torch.zeros(1, 3, 64, 64))
    assert soft.scores.tolist() == pytest.approx([0.4])


def test_the_spec_names_the_classes_whose_boxes_teach_nothing() -> None:
    assert FrozenTeacher(Corner(), labels()).spec.ignored == frozenset()
    marked = FrozenTeacher(Corner(), labels({"bicycle": "ignore", "motorcycle": "bike", "*": "ignore"}))
    assert marked.spec.ignored == {"bicycle", "dog"}


class Careless(Corner):
    """Says a box, one without width, one off the image, one that sticks out of it."""

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        boxes = np.array([[0, 0, 9, 9], [5, 5, 5, 20], [70, 0, 90, 20], [60, 60, 80, 80]], np.float32)
        return [Detections(boxes, np.full(4, 0.5, np.float32), np.zeros(4, np.int64))]


def test_boxes_without_area_on_the_image_are_never_taught() -> None:
    """Overlapping nothing, they would be paired with every anchor by matchers that give each box its best ones."""
    soft = taught(FrozenTeacher(Careless()), torch.zeros(1, 3, 64, 64))
    assert soft.boxes_xyxy.tolist() == [[0, 0, 9, 9], [60, 60, 80, 80]]


class Sparse(Corner):
    """Finds a car, not without doubt, on images with a bright pixel and nothing on others."""

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        probs = np.array([[0.6, 0.3, 0.0, 0.0]], np.float32)
        car = Detections(np.array([[0, 0, 9, 9]], np.float32), probs[:, 0].copy(), np.zeros(1, np.int64), probs)
        return [car if float(image.amax()) > 0 else Detections.empty() for image in images]


@pytest.mark.parametrize("given", [None, {"car": "car", "bicycle": "bike", "*": "drop"}])
def test_probabilities_of_an_image_do_not_depend_on_what_its_neighbours_show(given: dict[str, str] | None) -> None:
    teacher = FrozenTeacher(Sparse(), None if given is None else labels(given))
    images = torch.zeros(3, 3, 64, 64)
    images[1] = 1.0
    together, alone = taught(teacher, images), taught(teacher, images[1:2])
    assert together.image_index.tolist() == [1]
    assert torch.equal(together.class_probs, alone.class_probs)
    expected = [0.6, 0.3, 0, 0] if given is None else [0.3, 0.6, 0]
    assert together.class_probs.tolist() == [pytest.approx(expected)]


def test_without_a_view_of_its_own_the_teacher_sees_the_students_images() -> None:
    source = Corner()
    boxes = taught(FrozenTeacher(source), torch.zeros(1, 3, 96, 96))
    assert source.shown == [96]
    assert boxes.boxes_xyxy[0].tolist() == [0, 0, 48, 48]


def test_only_what_is_wanted_is_given() -> None:
    detector = build(UltralyticsConfig(model="yolov8n"), ("blue", "red"), "teacher")
    teacher, batch = FrozenTeacher(detector), batch_of(torch.rand(1, 3, 64, 64))
    features = teacher.signals(batch, frozenset({"features"}))
    assert features.features
    assert not features.grids
    assert features.pseudo_labels is None
    assert features.refine_regions is None
    boxes = teacher.signals(batch, BOXES)
    assert boxes.pseudo_labels is not None
    assert not boxes.features
    assert boxes.assign is None  # a student's business


def test_the_least_score_is_that_of_the_options_or_of_the_source() -> None:
    source = Corner()
    assert FrozenTeacher(source, options=PredictOptions(score_threshold=0.2)).score_threshold == 0.2
    source.score_floor = 0.4
    assert FrozenTeacher(source, options=PredictOptions(score_threshold=0.2)).score_threshold == 0.4


def test_a_larger_view_changes_no_box_of_a_measurement() -> None:
    source = Corner()
    teacher = FrozenTeacher(source, labels(), image_size=128)
    (found,) = teacher.detect(torch.zeros(1, 3, 64, 64))
    assert source.shown == [128]
    assert found.boxes_xyxy.tolist() == [[0, 0, 32, 32], [32, 0, 64, 32]]
