"""Chooses the images on which two detectors differ most, and stores them with their boxes.

The measure is the number of mistakes, false positives and false negatives, as COCOeval counts them at IoU 0.5 among
detections with a score of 0.25 or more (`kd_vision.evaluation.matches`). The difference of an image is
``mistakes(before) - mistakes(after)``: positive where `after` is better. Images are chosen by its absolute value,
so losses are shown like gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kd_vision.core.boxes import box_area
from kd_vision.core.files import write_bytes
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.evaluation.matches import ImageMatches, match_detections
from kd_vision.report.benchmark_data import Corners, DetectedBox, Example, GroundTruthBox
from kd_vision.report.drawing import encode_jpeg, shrink
from kd_vision.runtime.images import read_image

SCORE_THRESHOLD = 0.25

_STORED_SIDE = 1280
_EXAMPLE_ID = 1


@dataclass(frozen=True)
class Pick:
    """An image, and by how many mistakes two detectors differ on it (see the module's measure)."""

    image_id: int
    difference: int


def pick_examples(
    data: DetectionData, before: Mapping[int, Detections], after: Mapping[int, Detections], count: int
) -> list[Pick]:
    """Choose the images on which `before` and `after` differ most, by the module's measure.

    Args:
        data: ground truth.
        before: detections by image id, original pixels; an image without an entry has none.
        after: likewise.
        count: how many at most; images without any difference are not chosen.

    Returns:
        Largest difference first; at a tie, the lower image id.
    """
    old, new = (match_detections(data, detections, SCORE_THRESHOLD) for detections in (before, after))
    picks = [Pick(image_id, old[image_id].mistakes - new[image_id].mistakes) for image_id in old]
    differing = [pick for pick in picks if pick.difference]
    return sorted(differing, key=lambda pick: (-abs(pick.difference), pick.image_id))[:count]


def write_examples(
    directory: Path,
    data: DetectionData,
    picks: Sequence[Pick],
    arms: Mapping[str, Mapping[int, Detections]],
) -> tuple[Example, ...]:
    """Store the chosen images as JPEG under ``directory/examples``; return them with boxes and matches.

    Images larger than 1280 pixels are stored smaller; boxes are in pixels of the stored image. Matches are made
    before boxes are scaled, so they are those of the evaluation.

    Args:
        directory: of the benchmark.
        data: ground truth and image files.
        picks: from `pick_examples`.
        arms: detections by image id, for each arm name; only scores of 0.25 or more are kept.

    Raises:
        RequestError: an image cannot be read.
    """
    images = {image.image_id: image for image in data.images}
    picked = replace(data, images=tuple(images[pick.image_id] for pick in picks))
    shown = {
        name: {pick.image_id: _confident(detections.get(pick.image_id, Detections.empty())) for pick in picks}
        for name, detections in arms.items()
    }
    matches = {name: match_detections(picked, detections) for name, detections in shown.items()}
    examples = []
    for pick, record in zip(picks, picked.images, strict=True):
        path, scale = _store_image(directory, record)
        detections = {
            name: _detected_boxes(shown[name][pick.image_id], matches[name][pick.image_id], scale) for name in arms
        }
        examples.append(
            Example(
                image=path,
                file_name=record.file_name or record.path.name,
                ground_truth=_ground_truth_boxes(record, scale),
                detections=detections,
                difference=pick.difference,
            )
        )
    return tuple(examples)


def example_record(example: Example, height: int, width: int) -> ImageRecord:
    """Return the ground truth of a stored example, in pixels of the stored image of this size."""
    boxes = np.array([box.box_xyxy for box in example.ground_truth], np.float32).reshape(-1, 4)
    return ImageRecord(
        image_id=_EXAMPLE_ID,
        path=Path(example.image),
        width=width,
        height=height,
        boxes_xyxy=boxes,
        labels=np.array([box.label for box in example.ground_truth], np.int64),
        crowd=np.array([box.crowd for box in example.ground_truth], np.bool_),
        areas=box_area(boxes),
    )


def example_detections(boxes: Sequence[DetectedBox]) -> Detections:
    """Return the stored detections of one arm as arrays."""
    return Detections(
        np.array([box.box_xyxy for box in boxes], np.float32).reshape(-1, 4),
        np.array([box.score for box in boxes], np.float32),
        np.array([box.label for box in boxes], np.int64),
    )


def example_matches(boxes: Sequence[DetectedBox], record: ImageRecord, classes: Sequence[str]) -> ImageMatches:
    """Return the stored matches of one arm's detections.

    Files of earlier versions hold none: their boxes are matched here, in pixels of the stored image.

    Args:
        boxes: detections of the arm.
        record: ground truth of the example.
        classes: names in label order.
    """
    matched_idx = [box.matched_idx for box in boxes]
    if None not in matched_idx:
        return ImageMatches(np.array(matched_idx, np.int64), record.crowd)
    data = DetectionData("example", tuple(classes), tuple(range(1, len(classes) + 1)), (record,))
    return match_detections(data, {_EXAMPLE_ID: example_detections(boxes)}, SCORE_THRESHOLD)[_EXAMPLE_ID]


def _store_image(directory: Path, record: ImageRecord) -> tuple[str, float]:
    """Write the JPEG of an example and return its path relative to `directory`, and the scale of its boxes."""
    pixels, scale = shrink(read_image(record.path, 3), _STORED_SIDE)
    path = directory / "examples" / f"{record.image_id}.jpg"
    write_bytes(path, encode_jpeg(pixels, 90))
    return path.relative_to(directory).as_posix(), scale


def _confident(detections: Detections) -> Detections:
    return detections.take(detections.scores >= SCORE_THRESHOLD)


def _detected_boxes(detections: Detections, matches: ImageMatches, scale: float) -> tuple[DetectedBox, ...]:
    rows = zip(detections.boxes_xyxy, detections.scores, detections.labels, matches.matched_idx, strict=True)
    return tuple(
        DetectedBox(box_xyxy=_corners(box, scale), score=float(score), label=int(label), matched_idx=int(matched_idx))
        for box, score, label, matched_idx in rows
    )


def _ground_truth_boxes(record: ImageRecord, scale: float) -> tuple[GroundTruthBox, ...]:
    return tuple(
        GroundTruthBox(box_xyxy=_corners(box, scale), label=int(label), crowd=bool(crowd))
        for box, label, crowd in zip(record.boxes_xyxy, record.labels, record.crowd, strict=True)
    )


def _corners(box: np.ndarray, scale: float) -> Corners:
    left, top, right, bottom = (round(float(side) * scale, 2) for side in box)
    return left, top, right, bottom
