"""From a teacher's classes to a student's: what is mapped, what is silent, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kd_vision.core.errors import RequestError
from kd_vision.core.label_map import build_label_map
from kd_vision.core.predictions import BatchDetections, Detections

TEACHER = ("person", "bicycle", "car", "motorcycle", "bus", "dog")
STUDENT = ("bike", "bus", "car", "tram")
GIVEN = {"bicycle": "bike", "motorcycle": "bike", "person": "ignore", "*": "drop"}


def test_equal_names_need_no_word_and_the_rest_has_its_own() -> None:
    found = build_label_map(TEACHER, STUDENT, GIVEN, "teacher.labels")
    assert found.sources == ((1, 3), (4,), (2,), ())
    assert found.ignored == {0}
    assert found.missing_classes == {"tram"}
    assert found.merges
    assert not found.is_identity


def test_probabilities_of_a_merged_class_are_its_likeliest_source_and_a_silent_class_has_none() -> None:
    found = build_label_map(TEACHER, STUDENT, GIVEN, "teacher.labels")
    probs = torch.tensor([[0.9, 0.2, 0.1, 0.6, 0.3, 0.8]])
    assert torch.equal(found.probabilities(probs), torch.tensor([[0.6, 0.3, 0.1, 0.0]]))
    assert torch.equal(found.logits(probs), torch.tensor([[0.6, 0.3, 0.1, -20.0]]))


def test_boxes_are_renamed_dropped_or_marked() -> None:
    found = build_label_map(TEACHER, STUDENT, GIVEN, "teacher.labels")
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
    labels = np.array([3, 5, 0, 4])  # motorcycle, dog, person, bus
    one = Detections(boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32), labels)
    mapped = found.detections(BatchDetections.of([one, Detections.empty(), one.take(labels == 0)]))
    assert mapped.images == 3
    assert mapped.image_index.tolist() == [0, 0, 0, 2]
    assert mapped.ignore is not None
    assert mapped.class_probs is not None
    assert mapped.ignore.tolist() == [False, True, False, True]
    assert mapped.labels[[0, 2]].tolist() == [0, 1]
    assert mapped.boxes_xyxy.tolist() == boxes[[0, 2, 3, 2]].tolist()
    assert mapped.class_probs[0].tolist() == pytest.approx([0.9, 0, 0, 0])


def test_marks_of_the_teacher_itself_stay_also_on_boxes_of_dropped_classes() -> None:
    found = build_label_map(TEACHER, STUDENT, GIVEN, "teacher.labels")
    labels = np.array([5, 2])  # dog, which is dropped, and car
    marked = Detections(np.zeros((2, 4), np.float32), np.float32([0.9, 0.8]), labels, None, np.array([True, False]))
    mapped = found.detections(BatchDetections.of([marked]))
    assert mapped.ignore is not None
    assert mapped.ignore.tolist() == [True, False]
    assert mapped.labels.tolist()[1] == 2


def test_no_boxes_are_mapped_to_no_boxes() -> None:
    mapped = build_label_map(TEACHER, STUDENT, GIVEN, "t").detections(BatchDetections.of([Detections.empty()]))
    assert (len(mapped.scores), mapped.images) == (0, 1)
    assert mapped.class_probs is not None
    assert mapped.class_probs.shape == (0, 4)


def test_the_same_classes_in_another_order_need_no_map_and_equal_ones_change_nothing() -> None:
    assert build_label_map(("a", "b"), ("b", "a"), None, "t").sources == ((1,), (0,))
    assert build_label_map(("a", "b"), ("a", "b"), None, "t").is_identity


@pytest.mark.parametrize(
    ("teacher", "student", "given", "text"),
    [
        (("tvmonitor", "dog"), ("tv",), None,
         "t: the teacher's classes are not the data's: it has no 'tv', and it also has 'tvmonitor', 'dog'; map them "
         'with labels, e.g. labels: {tvmonitor: tv, "*": drop}'),
        (("truck",), ("truck",), {"trukc": "drop"}, "t.trukc: the teacher has no such class; did you mean 'truck'?"),
        (("car", "bus"), ("car",), {"bus": "cer"}, "t.bus: 'cer' is no class of the data; did you mean 'car'?"),
        (("car", "bus"), ("car",), {}, "t: the teacher's 'bus' is neither a class of the data nor mapped; add e.g. "
         'labels: {"*": drop}'),
        (("bus",), ("car",), {"bus": "drop"}, "t: no class of the teacher is mapped to one of the data's ('car')"),
        (("bus",), ("car",), {"*": "car"}, "t.'*': must be drop or ignore, given 'car'"),
        (("bus",), ("drop",), {"bus": "drop"}, "t: the data's class 'drop' has the name of an instruction; rename it"),
    ],
)  # fmt: skip
def test_what_is_refused(
    teacher: tuple[str, ...], student: tuple[str, ...], given: dict[str, str] | None, text: str
) -> None:
    with pytest.raises(RequestError) as caught:
        build_label_map(teacher, student, given, "t")
    assert text in str(caught.value)
