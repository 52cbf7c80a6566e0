"""A frozen teacher answers in the student's classes and in the student's pixels, whatever it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import ImageBatch, Letterbox, Targets
from kd_vision.core.label_map import build_label_map
from kd_vision.core.predictions import Detections, PredictOptions, Signal
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import PixelPredictor
from kd_vision.detectors.ultralytics import UltralyticsConfig, build
from kd_vision.teachers.frozen import FrozenTeacher

ALL: frozenset[Signal] = frozenset({"features", "grid", "regions", "detections"})


class Corner:
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

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        return self.detect(batch.as_float().images, options)


def labels(given: dict[str, str] | None = None):  # type: ignore[no-untyped-def]
    given = given or {"bicycle": "bike", "motorcycle": "bike", "*": "drop"}
    return build_label_map(Corner().spec.classes, ("bike", "car", "bus"), given, "teacher.labels")


def test_a_black_box_is_a_pixel_predictor() -> None:
    assert isinstance(Corner(), PixelPredictor)


def test_boxes_come_in_the_students_classes_and_twice_seen_objects_once() -> None:
    teacher = FrozenTeacher(Corner(), labels())
    soft = teacher(torch.zeros(2, 3, 64, 64), frozenset({"detections"})).pseudo_labels
    assert soft is not None
    assert soft.image_index.tolist() == [0, 0, 1, 1]
    assert soft.labels.tolist() == [1, 0, 1, 0]
    assert soft.scores.tolist() == pytest.approx([0.9, 0.8, 0.9, 0.8])  # the motorcycle is the same bike again
    assert soft.class_probs[0].tolist() == pytest.approx([0.0, 0.9, 0.0])
    assert teacher.spec.classes == ("bike", "car", "bus")
    assert teacher.spec.missing_classes == {"bus"}


def test_ignored_boxes_stay_for_the_student_and_claim_nothing_in_a_measurement() -> None:
    teacher = FrozenTeacher(Corner(), labels({"bicycle": "ignore", "motorcycle": "bike", "*": "drop"}))
    soft = teacher(torch.zeros(1, 3, 64, 64), frozenset({"detections"})).pseudo_labels
    assert soft is not None
    assert soft.ignore.tolist() == [False, True, False]
    none = torch.zeros(0, dtype=torch.int64)
    targets = Targets(none, none, torch.zeros(0, 4))
    batch = ImageBatch(torch.zeros(1, 3, 64, 64), targets, torch.tensor([True]), (1,), (Letterbox(64, 64, 1, 1, 0, 0),))
    (found,) = teacher.predict(batch)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_a_teacher_of_another_size_answers_in_the_students_pixels() -> None:
    source = Corner()
    teacher = FrozenTeacher(source, labels(), image_size=128)
    soft = teacher(torch.zeros(1, 3, 96, 96), frozenset({"detections"}), frame=64).pseudo_labels
    assert soft is not None
    assert source.shown == [128]
    assert soft.boxes_xyxy[0].tolist() == [0.0, 0.0, 32.0, 32.0]


def test_a_detectors_grid_and_grades_follow_the_frame_and_the_map() -> None:
    torch.manual_seed(0)
    detector = build(UltralyticsConfig(model="yolov8n"), ("blue", "red"), "teacher")
    images = torch.rand(1, 3, 128, 128)
    plain = FrozenTeacher(detector)(images, ALL)
    swap = build_label_map(("blue", "red"), ("red", "blue"), None, "t")
    small = FrozenTeacher(detector, swap, image_size=128)(images, ALL, frame=64)
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
    soft = teacher(torch.zeros(1, 3, 1024, 1024), frozenset({"detections"})).pseudo_labels
    assert soft is not None
    assert len(soft) == 251
    assert soft.scores[:2].tolist() == pytest.approx([0.5, 0.3])


def test_the_second_opinion_speaks_where_the_first_is_dropped() -> None:
    teacher = FrozenTeacher(Hesitant(), labels({"car": "drop", "bicycle": "car", "motorcycle": "bike", "dog": "drop"}))
    soft = teacher(torch.zeros(1, 3, 64, 64), frozenset({"detections"})).pseudo_labels
    assert soft is not None
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
    soft = FrozenTeacher(Careless())(torch.zeros(1, 3, 64, 64), frozenset({"detections"})).pseudo_labels
    assert soft is not None
    assert soft.boxes_xyxy.tolist() == [[0, 0, 9, 9], [60, 60, 80, 80]]
