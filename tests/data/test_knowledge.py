"""Boxes that a teacher gave beforehand, on their way through the augmentation beside the ground truth."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections
from kd_vision.data.dataset import load_split, load_unlabelled
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.loader import LoaderConfig, TrainStream
from kd_vision.data.records import DetectionData, ImageRecord, without_labels
from kd_vision.data.transforms import AugmentConfig, HsvGains

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


def taught(data: DetectionData) -> DetectionData:
    return replace(data, images=tuple(replace(image, knowledge=told(image)) for image in data.images))


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
        assert batch.knowledge is not None
        torch.testing.assert_close(batch.knowledge.boxes_xyxy, batch.targets.boxes_xyxy, rtol=0, atol=0)
        torch.testing.assert_close(batch.knowledge.image_index, batch.targets.image_index, rtol=0, atol=0)
        torch.testing.assert_close(batch.knowledge.labels, batch.targets.labels, rtol=0, atol=0)
        torch.testing.assert_close(batch.knowledge.class_probs.amax(dim=1), batch.knowledge.scores, rtol=0, atol=0)
        assert not batch.knowledge.ignore.any()
        seen += len(batch.knowledge)
    assert seen > 50


def test_unlabelled_images_bring_what_was_said_of_them(both: tuple[DetectionData, DetectionData]) -> None:
    labelled, free = both
    for batch in stream(taught(labelled), without_labels(taught(free))).batches():
        assert batch.knowledge is not None
        assert set(batch.targets.image_index.tolist()) <= {0, 1, 2, 3}
        of_free = batch.knowledge.take(batch.knowledge.image_index >= 4)
        assert len(of_free) > 0
    # Where the unlabelled images are the labelled ones, their boxes are what the truth would have been.
    named = stream(taught(free), None).batch_at(0)
    missing_classes = stream(without_labels(taught(free)), None).batch_at(0)
    assert missing_classes.knowledge is not None
    torch.testing.assert_close(missing_classes.knowledge.boxes_xyxy, named.targets.boxes_xyxy, rtol=0, atol=0)
    assert len(missing_classes.targets) == 0


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
    data = replace(data, images=(replace(data.images[0], knowledge=said),))
    batch = TrainStream(data, None, STILL, LoaderConfig(64, 1), epochs=20).batch_at(0)
    assert batch.targets.boxes_xyxy.tolist() == [[16, 16, 48, 48]]
    assert batch.knowledge is not None
    # The second lies outside the image; the fourth is cut to it.
    assert batch.knowledge.boxes_xyxy.tolist() == [[0, 0, 10, 10], [20, 20, 50, 60], [0, 50, 8, 64]]
    np.testing.assert_allclose(batch.knowledge.scores, [0.9, 0.7, 0.6])
    np.testing.assert_allclose(batch.knowledge.class_probs, said.class_probs[[0, 2, 3]])  # type: ignore[index]
    assert batch.knowledge.ignore.tolist() == [False, True, False]


def digest(batches: list[ImageBatch], images: bool) -> str:
    found = hashlib.sha256()
    for batch in batches:
        parts = [batch.targets.image_index, batch.targets.labels, batch.targets.boxes_xyxy]
        if images:
            parts += [batch.images, *([batch.teacher_images] if batch.teacher_images is not None else [])]
        for part in parts:
            found.update(part.numpy().tobytes())
    return found.hexdigest()


def test_knowledge_changes_no_draw(both: tuple[DetectionData, DetectionData]) -> None:
    noisy = WILD.model_copy(update={"student_noise": True})
    labelled, free = both
    bare = list(stream(labelled, free, noisy).batches())
    rich = list(stream(taught(labelled), taught(free), noisy).batches())
    assert bare[0].knowledge is None
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
    message = rf"^{free.images[0].path}: a teacher was asked about 12 of 20 images, and not about this one; label all"
    with pytest.raises(RequestError, match=message):
        stream(taught(labelled), free)


def test_the_students_view_is_the_teachers_shrunken(both: tuple[DetectionData, DetectionData]) -> None:
    data = taught(both[0])
    wide = TrainStream(data, None, WILD, LoaderConfig(128, 4, seed=3), epochs=2)
    split = TrainStream(data, None, WILD, LoaderConfig(64, 4, seed=3, teacher_size=128), epochs=2)
    for large, small in zip(wide.batches(), split.batches(), strict=True):
        assert small.teacher_images is not None
        assert small.knowledge is not None
        assert large.knowledge is not None
        assert torch.equal(small.teacher_images, large.images)
        for seen, whole in ((small.targets, large.targets), (small.knowledge, large.knowledge)):
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
        RequestError, match="teacher_size: 32 is smaller than image_size 64; the teacher's view must be"
    ):
        LoaderConfig(64, 4, teacher_size=32)


@pytest.mark.stress
def test_carrying_boxes_takes_little_time(make_data: Make) -> None:
    data = make_data([(256, 256)] * 32)
    boxes = np.random.default_rng(0).uniform(0, 120, (20, 2)).astype(np.float32)
    said = Detections(np.concatenate([boxes, boxes + 40], axis=1), np.full(20, 0.5, np.float32), np.zeros(20, np.int64))
    rich = replace(data, images=tuple(replace(image, knowledge=said) for image in data.images))
    streams = [TrainStream(one, None, AugmentConfig(), LoaderConfig(256, 16), epochs=50) for one in (data, rich)]
    spent = [0.0, 0.0]
    for step in range(100):
        for which, one in enumerate(streams):
            start = time.process_time()
            one.batch_at(step)
            spent[which] += time.process_time() - start
    assert spent[1] < 1.1 * spent[0]
