"""Boxes that a teacher gave beforehand, on their way through the augmentation beside the ground truth."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_vision.core.batch import ImageBatch, PseudoLabels
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections, class_probabilities
from kd_vision.data.augment_config import AugmentConfig, HsvGains
from kd_vision.data.box_table import tabulate
from kd_vision.data.dataset import load_split, load_unlabelled
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.loader import LoaderConfig, TrainStream
from kd_vision.data.pseudo_labels import PseudoLabelTable
from kd_vision.data.records import DetectionData, ImageRecord, without_labels

Make = Callable[[list[tuple[int, int]]], DetectionData]
WILD = AugmentConfig(mixup=0.5, vertical_flip=0.5, degrade=0.3, close_mosaic=1)
STILL = AugmentConfig(
    mosaic=0, scale=0, translate=0, horizontal_flip=0, degrade=0, hsv=HsvGains(hue=0, saturation=0, value=0)
)


def told(image: ImageRecord) -> Detections:
    """The ground truth without crowds, as a teacher would say it."""
    labels = image.labels[~image.crowd]
    scores = np.linspace(0.9, 0.5, len(labels), dtype=np.float32)
    probs = np.full((len(labels), 2), 0.1, np.float32)
    probs[np.arange(len(labels)), labels] = scores
    return Detections(image.boxes_xyxy[~image.crowd], scores, labels, probs)


def taught(data: DetectionData, name: str = "teacher") -> DetectionData:
    table = PseudoLabelTable.of((told(image) for image in data.images), 2)
    return replace(data, pseudo_labels={**data.pseudo_labels, name: table})


def boxes_of(batch: ImageBatch, name: str = "teacher") -> PseudoLabels:
    return batch.pseudo_labels[name]


@pytest.fixture
def both(squares: Path) -> tuple[DetectionData, DetectionData]:
    """Labelled and unlabelled images; what the teacher says of the latter is the truth too."""
    descriptor = load_descriptor(squares)
    free = load_unlabelled(descriptor)
    images = [
        replace(image, boxes_xyxy=np.array([[8, 8, 30, 40], [20, 30, 60, 64]], np.float32), labels=np.array([1, 0]),
                crowd=np.array([False, False]), areas=np.ones(2))
        for image in free.images
    ]  # fmt: skip
    return load_split(descriptor, "train"), replace(free, images=tuple(images))


def stream(main: DetectionData, extra: DetectionData | None, augment: AugmentConfig = WILD, **more: int) -> TrainStream:
    config = LoaderConfig(64, 4, seed=3, unlabelled_ratio=0.5 if extra else 0.0, cache="none", **more)
    return TrainStream(main, extra, augment, config, epochs=2)


def test_truth_told_by_a_teacher_goes_the_way_of_the_truth(both: tuple[DetectionData, DetectionData]) -> None:
    """Whatever mosaic, crop, flips and mixup do to a box, they do to the same box told by a teacher."""
    seen = 0
    for batch in stream(taught(both[0]), None).batches():
        boxes = boxes_of(batch)
        torch.testing.assert_close(boxes.boxes_xyxy, batch.targets.boxes_xyxy, rtol=0, atol=0)
        torch.testing.assert_close(boxes.image_index, batch.targets.image_index, rtol=0, atol=0)
        torch.testing.assert_close(boxes.labels, batch.targets.labels, rtol=0, atol=0)
        torch.testing.assert_close(boxes.class_probs.amax(dim=1), boxes.scores, rtol=0, atol=0)
        assert not boxes.ignore.any()
        seen += len(boxes)
    assert seen > 50


def test_unlabelled_images_bring_what_was_said_of_them(both: tuple[DetectionData, DetectionData]) -> None:
    labelled, free = both
    for batch in stream(taught(labelled), without_labels(taught(free))).batches():
        boxes = boxes_of(batch)
        assert set(batch.targets.image_index.tolist()) <= {0, 1, 2, 3}
        of_free = boxes.take(boxes.image_index >= 4)
        assert len(of_free) > 0
    # Where the unlabelled images are the labelled ones, their boxes are what the truth would have been.
    named = stream(taught(free), None).batch_at(0)
    unnamed = stream(without_labels(taught(free)), None).batch_at(0)
    torch.testing.assert_close(boxes_of(unnamed).boxes_xyxy, named.targets.boxes_xyxy, rtol=0, atol=0)
    assert len(unnamed.targets) == 0


def test_every_box_keeps_its_own_score_probabilities_and_mark(make_data: Make) -> None:
    data = make_data([(64, 64)])
    boxes = np.array([[0, 0, 10, 10], [70, 0, 90, 20], [20, 20, 50, 60], [-20, 50, 8, 80]], np.float32)
    said = Detections(
        boxes,
        np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        np.array([1, 0, 0, 1]),
        np.array([[0.1, 0.9], [0.8, 0], [0.7, 0.2], [0.3, 0.6]], np.float32),
        np.array([False, False, True, False]),
    )
    data = replace(data, pseudo_labels={"teacher": PseudoLabelTable.of([said], 2)})
    batch = TrainStream(data, None, STILL, LoaderConfig(64, 1), epochs=20).batch_at(0)
    assert batch.targets.boxes_xyxy.tolist() == [[16, 16, 48, 48]]
    taught_boxes = boxes_of(batch)
    # The second lies outside the image; the fourth is cut to it.
    assert taught_boxes.boxes_xyxy.tolist() == [[0, 0, 10, 10], [20, 20, 50, 60], [0, 50, 8, 64]]
    np.testing.assert_allclose(taught_boxes.scores, [0.9, 0.7, 0.6])
    np.testing.assert_allclose(taught_boxes.class_probs, said.class_probs[[0, 2, 3]])  # type: ignore[index]
    assert taught_boxes.ignore.tolist() == [False, True, False]


def test_every_teacher_keeps_its_own_boxes_through_the_augmentation(both: tuple[DetectionData, DetectionData]) -> None:
    """A second teacher that says the truth changes no box of the first, and one that sees nothing has none."""
    first = taught(both[0], "first")
    blind = {"blind": PseudoLabelTable.of([Detections.empty()] * len(first), 2)}
    several = taught(replace(first, pseudo_labels={**first.pseudo_labels, **blind}), "last")
    alone = stream(taught(both[0]), None)
    for step, batch in enumerate(stream(several, None).batches()):
        expected = boxes_of(alone.batch_at(step))
        assert list(batch.pseudo_labels) == ["first", "blind", "last"]
        assert len(boxes_of(batch, "blind")) == 0
        for name in ("first", "last"):
            for part in ("image_index", "boxes_xyxy", "class_probs", "scores", "ignore"):
                assert torch.equal(getattr(boxes_of(batch, name), part), getattr(expected, part))


def digest(batches: list[ImageBatch], images: bool) -> str:
    found = hashlib.sha256()
    for batch in batches:
        parts = [batch.targets.image_index, batch.targets.labels, batch.targets.boxes_xyxy]
        if images:
            parts += [batch.images, *([batch.teacher_images] if batch.teacher_images is not None else [])]
        for part in parts:
            found.update(part.numpy().tobytes())
    return found.hexdigest()


def test_pseudo_labels_change_no_draw(both: tuple[DetectionData, DetectionData]) -> None:
    noisy = WILD.model_copy(update={"student_noise": True})
    labelled, free = both
    bare = list(stream(labelled, free, noisy).batches())
    rich = list(stream(taught(labelled), taught(free), noisy).batches())
    assert bare[0].pseudo_labels == {}
    assert digest(bare, images=True) == digest(rich, images=True)


def test_boxes_of_a_seed_are_those_of_the_first_release(squares: Path) -> None:
    """Recorded before boxes of teachers took this way; pixels may differ between builds of OpenCV, boxes not."""
    descriptor = load_descriptor(squares)
    labelled, free = load_split(descriptor, "train"), load_unlabelled(descriptor)
    noisy = AugmentConfig(mixup=0.5, vertical_flip=0.5, degrade=0.3, student_noise=True, close_mosaic=1)
    made = [
        digest(list(stream(labelled, free, augment).batches()), images=False) for augment in (AugmentConfig(), noisy)
    ]
    assert made == [
        "d244e5661cac0b9d75cb9094a8bba8bd65cd2422aa96f559ab67639399863127",
        "32cde27fc0c07fa593aff5db46499f252974e09d94a581b3c7bd2a4d82f1a2c2",
    ]


def test_a_teacher_asked_about_some_images_only_is_refused(both: tuple[DetectionData, DetectionData]) -> None:
    labelled, free = both
    message = rf"^'teacher' has pseudo labels of 12 images and none of the 8 of '{free.name}'; label all of them$"
    with pytest.raises(RequestError, match=message):
        stream(taught(labelled), free)
    message = rf"^'teacher' has pseudo labels of 8 images and none of the 12 of '{labelled.name}'; label all of them$"
    with pytest.raises(RequestError, match=message):
        stream(labelled, taught(free))
    with pytest.raises(ValueError, match="'teacher' has pseudo labels of 12 images, 'train' has 11"):
        replace(taught(labelled), images=labelled.images[1:])


def test_the_students_view_is_the_teachers_shrunken(both: tuple[DetectionData, DetectionData]) -> None:
    data = taught(both[0])
    wide = TrainStream(data, None, WILD, LoaderConfig(128, 4, seed=3), epochs=2)
    split = TrainStream(data, None, WILD, LoaderConfig(64, 4, seed=3, teacher_size=128), epochs=2)
    for large, small in zip(wide.batches(), split.batches(), strict=True):
        assert small.teacher_images is not None
        assert torch.equal(small.teacher_images, large.images)
        for seen, whole in ((small.targets, large.targets), (boxes_of(small), boxes_of(large))):
            solid = (whole.boxes_xyxy[:, 2:] - whole.boxes_xyxy[:, :2]).amin(dim=1) > 4  # 2 pixels of the student's
            torch.testing.assert_close(seen.boxes_xyxy, whole.boxes_xyxy[solid] / 2)
        # Half the size by INTER_AREA: the mean of four pixels, rounded.
        mean = large.images.float().unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
        assert (small.images.float() - mean).abs().max() <= 0.5


def test_noise_is_the_students_alone_in_a_shrunken_view_too(both: tuple[DetectionData, DetectionData]) -> None:
    noisy = WILD.model_copy(update={"student_noise": True})
    config = LoaderConfig(48, 4, seed=3, teacher_size=64)
    clean = TrainStream(both[0], None, WILD, config, epochs=2).batch_at(0)
    rough = TrainStream(both[0], None, noisy, config, epochs=2).batch_at(0)
    assert clean.teacher_images is not None
    assert rough.teacher_images is not None
    assert torch.equal(clean.teacher_images, rough.teacher_images)
    assert (clean.images.float() - rough.images.float()).abs().mean() > 3
    shrunk = cv2.resize(rough.teacher_images[0].permute(1, 2, 0).numpy(), (48, 48), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(clean.images[0].permute(1, 2, 0).numpy(), shrunk)


def test_equal_sizes_are_one_view_and_a_smaller_one_is_refused(both: tuple[DetectionData, DetectionData]) -> None:
    plain = TrainStream(both[0], None, WILD, LoaderConfig(64, 4, seed=3), epochs=2).batch_at(0)
    equal = TrainStream(both[0], None, WILD, LoaderConfig(64, 4, seed=3, teacher_size=64), epochs=2).batch_at(0)
    assert equal.teacher_images is None
    assert torch.equal(plain.images, equal.images)
    with pytest.raises(
        RequestError, match="teacher_size: 32 is smaller than image_size 64; it must be at least as large"
    ):
        LoaderConfig(64, 4, teacher_size=32)


CLASSES = 4


def sparse(seed: int, count: int, kind: str) -> Detections:
    """Boxes with few classes each: of any float32, of half precision as stores keep them, or with scores alone."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 90, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 9, (count, 2))], axis=1).astype(np.float32)
    probs = rng.uniform(0.01, 1, (count, CLASSES)) * (rng.random((count, CLASSES)) < 0.5)
    probs[np.arange(count), rng.integers(0, CLASSES, count)] = 0.99
    probs = probs.astype(np.float16 if kind == "half" else np.float32).astype(np.float32)
    labels, scores = probs.argmax(axis=1), probs.max(axis=1, initial=0)
    ignore = rng.random(count) < 0.3 if seed % 2 else None
    return Detections(boxes, scores, labels, None if kind == "bare" else probs, ignore)


image_lists = st.lists(
    st.builds(sparse, st.integers(0, 99), st.integers(0, 5), st.sampled_from(["float", "half", "bare"])), max_size=6
)


def assert_same(one: Detections, other: Detections) -> None:
    np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(class_probabilities(one, CLASSES), class_probabilities(other, CLASSES))
    np.testing.assert_array_equal(marks(one), marks(other))


def marks(detections: Detections) -> np.ndarray:
    return np.zeros(len(detections), np.bool_) if detections.ignore is None else detections.ignore


@given(image_lists)
def test_a_table_gives_back_what_was_put_in(images: list[Detections]) -> None:
    table = PseudoLabelTable.of(iter(images), CLASSES)
    assert (len(table), table.boxes) == (len(images), sum(map(len, images)))
    for index, image in enumerate(images):
        assert_same(table.detections(index), image)


@given(image_lists, st.data())
def test_a_part_of_a_table_is_the_table_of_a_part(images: list[Detections], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(images) - 1), max_size=5)) if images else []
    part = PseudoLabelTable.of(images, CLASSES).subset(chosen)
    assert len(part) == len(chosen)
    for place, index in enumerate(chosen):
        assert_same(part.detections(place), images[index])


@given(st.lists(image_lists, min_size=1, max_size=3))
def test_joined_tables_are_the_table_of_all(parts: list[list[Detections]]) -> None:
    joined = PseudoLabelTable.concatenate([PseudoLabelTable.of(images, CLASSES) for images in parts])
    whole = PseudoLabelTable.of(chain.from_iterable(parts), CLASSES)
    assert len(joined) == len(whole)
    for index in range(len(whole)):
        assert_same(joined.detections(index), whole.detections(index))


@given(image_lists, st.integers(0, 99))
def test_a_batch_has_the_dense_probabilities_of_its_boxes(images: list[Detections], seed: int) -> None:
    """Any boxes in any order, some of them twice, as a mosaic takes them."""
    table = PseudoLabelTable.of(images, CLASSES)
    rows = np.random.default_rng(seed).integers(0, max(table.boxes, 1), 7 if table.boxes else 0)
    dense = np.concatenate([np.zeros((0, CLASSES), np.float32), *(class_probabilities(i, CLASSES) for i in images)])
    np.testing.assert_array_equal(table.class_probs(rows), dense[rows])


@given(image_lists.filter(len))
def test_the_places_of_a_table_lead_to_the_boxes_of_each_image_and_teacher(images: list[Detections]) -> None:
    nothing = np.zeros(0)
    truth = np.float32([[1, 2, 3, 4]])
    records = [
        ImageRecord(n, Path(f"{n}.png"), 100, 100, truth, np.array([n % CLASSES]), np.array([False]), nothing)
        for n in range(len(images))
    ]
    tables = {name: PseudoLabelTable.of(images, CLASSES) for name in ("first", "second")}
    table, placed = tabulate(records, tables)
    for index, image in enumerate(images):
        boxes, rows = placed.of(index)
        targets, taught_boxes = table.to_targets(np.full(len(rows), index), boxes, rows)
        assert targets.boxes_xyxy.tolist() == truth.tolist()
        assert targets.labels.tolist() == [index % CLASSES]
        for name in tables:
            np.testing.assert_array_equal(taught_boxes[name].boxes_xyxy, image.boxes_xyxy)
            np.testing.assert_array_equal(taught_boxes[name].scores, image.scores)
            np.testing.assert_array_equal(taught_boxes[name].class_probs, class_probabilities(image, CLASSES))
            np.testing.assert_array_equal(taught_boxes[name].ignore, marks(image))


def test_a_table_takes_a_fraction_of_what_dense_boxes_would() -> None:
    """A thousand images of twenty boxes, COCO's 80 classes, five of them stored in half precision."""
    rng = np.random.default_rng(0)
    probs = np.zeros((20, 80), np.float32)
    probs[np.arange(20)[:, None], rng.integers(0, 80, (20, 5))] = rng.random((20, 5)).astype(np.float16)
    boxes = np.tile(np.float32([0, 0, 9, 9]), (20, 1))
    image = Detections(boxes, probs.max(axis=1), probs.argmax(axis=1), probs)
    table = PseudoLabelTable.of([image] * 1000, 80)
    assert table.probs.dtype == np.float16
    assert table.nbytes / 1000 < 20 * 50 + 8  # a dense box takes 341 bytes
    assert probs.nbytes + boxes.nbytes + image.scores.nbytes == 20 * (320 + 16 + 4)


@pytest.mark.stress
def test_carrying_boxes_takes_little_time(make_data: Make) -> None:
    data = make_data([(256, 256)] * 32)
    boxes = np.random.default_rng(0).uniform(0, 120, (20, 2)).astype(np.float32)
    said = Detections(np.concatenate([boxes, boxes + 40], axis=1), np.full(20, 0.5, np.float32), np.zeros(20, np.int64))
    rich = replace(data, pseudo_labels={"teacher": PseudoLabelTable.of([said] * len(data), 1)})
    streams = [TrainStream(one, None, AugmentConfig(), LoaderConfig(256, 16), epochs=50) for one in (data, rich)]
    spent = [0.0, 0.0]
    for step in range(100):
        for which, one in enumerate(streams):
            start = time.process_time()
            one.batch_at(step)
            spent[which] += time.process_time() - start
    assert spent[1] < 1.1 * spent[0]
