"""Systematic errors are named with their size; weak but honest teachers are left alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.pipeline.teacher_sanity import systematic_errors

CLASSES = ("red", "green", "blue")
FREQUENCY = (0.8, 0.1, 0.1)
Spoil = Callable[[Detections, np.random.Generator], Detections]


def data(images: int = 30, boxes: int = 8) -> DetectionData:
    """Images of 200 px with boxes of 15 to 40 px, some of which touch; two classes are rare."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(1, images + 1):
        size = rng.uniform(15, 40, (boxes, 2))
        corner = rng.uniform(0, 160, (boxes, 2))
        corners = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
        labels = rng.choice(3, boxes, p=FREQUENCY)
        crowd = np.zeros(boxes, np.bool_)
        records.append(ImageRecord(number, Path("x.png"), 200, 200, corners, labels, crowd, size.prod(axis=1)))
    return DetectionData("val", CLASSES, (1, 2, 3), tuple(records))


def said(truth: DetectionData, spoil: Spoil, jitter: float = 1.5) -> dict[int, Detections]:
    """What a teacher says that finds most boxes, is off by a pixel or two, and sees as many that are not there."""
    rng = np.random.default_rng(1)
    found = {}
    for image in truth.images:
        kept = rng.random(len(image.labels)) < 0.9
        boxes = image.boxes_xyxy[kept] + rng.normal(0, jitter, (int(kept.sum()), 4))
        spoiled = spoil(
            Detections(boxes.astype(np.float32), np.full(len(boxes), 0.8, np.float32), image.labels[kept]), rng
        )
        corner = rng.uniform(0, 150, (8, 2))
        noise = np.concatenate([corner, corner + rng.uniform(10, 50, (8, 2))], axis=1).astype(np.float32)
        found[image.image_id] = Detections(
            np.concatenate([spoiled.boxes_xyxy, noise]),
            np.concatenate([spoiled.scores, rng.uniform(0, 0.4, 8).astype(np.float32)]),
            np.concatenate([spoiled.labels, rng.choice(3, 8)]),
        )
    return found


def relabelled(order: tuple[int, int, int]) -> Spoil:
    return lambda one, rng: replace(one, labels=np.array(order)[one.labels])


def moved(right: float, down: float, wide: float = 1.0, high: float = 1.0) -> Spoil:
    def move(one: Detections, rng: np.random.Generator) -> Detections:
        centre = (one.boxes_xyxy[:, :2] + one.boxes_xyxy[:, 2:]) / 2 + [right, down]
        half = (one.boxes_xyxy[:, 2:] - one.boxes_xyxy[:, :2]) / 2 * [wide, high]
        return replace(one, boxes_xyxy=np.concatenate([centre - half, centre + half], axis=1).astype(np.float32))

    return move


def drawn_anew(one: Detections, rng: np.random.Generator) -> Detections:
    return replace(one, labels=rng.choice(3, len(one)))


def one_for_all(one: Detections, rng: np.random.Generator) -> Detections:
    return replace(one, labels=np.zeros(len(one), np.int64))


def half_wrong(one: Detections, rng: np.random.Generator) -> Detections:
    """The rare classes are taken for the frequent one, or each other, as often as not."""
    return replace(one, labels=np.where(rng.random(len(one)) < 0.45, rng.choice(3, len(one), p=FREQUENCY), one.labels))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (relabelled((1, 0, 2)), r"^classes look permuted: \d+ % of its boxes on 'red' are 'green', \d+ % of its"),
        (relabelled((1, 2, 0)), r"^classes look permuted: .*'red' are 'green'.*'green' are 'blue'.*'blue' are 'red'$"),
        (relabelled((0, 2, 1)), r"^classes look permuted: \d+ % of its boxes on 'green' are 'blue'"),
        (drawn_anew, r"^classes look shuffled: \d+ % of its boxes have their label's class, \d+ % by chance$"),
        (moved(14, 0), r"^boxes look shifted by \+1[345] px across and [+-][012] px down \(medians\): \d+ % of"),
        (moved(-9, -12), r"^boxes look shifted by -\d+ px across and -1\d px down"),
        (moved(0, 0, 2.0, 2.0), r"^boxes look (2|1.9|2.1) times as wide and (2|1.9|2.1) times as high as the labels"),
        (moved(0, 0, 0.5, 1.0), r"^boxes look 0.5\d? times as wide and 1 times as high as the labels"),
    ],
)  # fmt: skip
def test_a_systematic_error_is_named(spoil: Spoil, message: str) -> None:
    truth = data()
    text = systematic_errors(truth, said(truth, spoil))
    assert re.search(message, text), text


@pytest.mark.parametrize("spoil", [relabelled((0, 1, 2)), one_for_all, half_wrong, moved(3, -3), moved(0, 0, 1.2, 1.2)])
def test_a_weak_or_imprecise_teacher_is_no_systematic_error(spoil: Spoil) -> None:
    truth = data()
    assert systematic_errors(truth, said(truth, spoil, jitter=2.5)) == ""


def test_noise_and_silence_are_no_systematic_error() -> None:
    truth = data()

    def lost(one: Detections, rng: np.random.Generator) -> Detections:
        return one.take(np.zeros(0, np.int64))

    assert systematic_errors(truth, said(truth, lost)) == ""
    assert systematic_errors(truth, {}) == ""
    assert systematic_errors(truth, {image.image_id: Detections.empty() for image in truth.images}) == ""


def test_a_handful_of_boxes_shows_nothing() -> None:
    truth = data(images=1, boxes=4)
    assert systematic_errors(truth, said(truth, relabelled((1, 2, 0)))) == ""


def test_what_is_said_of_a_class_that_was_never_learned_is_no_error() -> None:
    truth = data()
    found = said(truth, relabelled((0, 2, 2)))  # green was never learned, and is blue to the teacher
    assert systematic_errors(truth, found, frozenset({"green"})) == ""
    swapped = said(truth, relabelled((2, 2, 0)))
    assert systematic_errors(truth, swapped, frozenset({"green"})).startswith("classes look permuted: ")
