"""Chooses the images on which two detectors differ most, and draws what was found.

The measure counts mistakes as a user would: a detection with a score of 0.25 or more is right if it
overlaps a ground-truth box of its class by IoU 0.5 or more that no stronger detection has taken,
else false; a ground-truth box that none takes is missed. ``mistakes = false + missed``. Detections
mostly inside a crowd region count for nothing. The difference of an image is
``mistakes(before) - mistakes(after)``: positive where `after` is better. Images are chosen by its
size, whichever way it points, so that losses are shown like gains.

Shapes: M detections, N ground-truth boxes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv
from pycocotools import mask as coco_mask

from kd_vision.core.files import write_bytes
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.report.benchmark_data import Corners, Example, FoundBox, TruthBox
from kd_vision.runtime.images import read_image

SCORE_THRESHOLD = 0.25
MATCH_IOU = 0.5
RIGHT_COLOUR = "#0072b2"
FALSE_COLOUR = "#d55e00"
MISSED_COLOUR = "#e61bb0"
TRUTH_COLOUR = "#009e73"

_STORED_SIDE = 1280
_PANEL_SIDE = 640
_MOST_NAMED = 12

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """Ground truth of one image: boxes_xyxy (N, 4), labels (N,), crowd (N,)."""

    boxes_xyxy: Boxes
    labels: npt.NDArray[np.int64]
    crowd: Flags


@dataclass(frozen=True)
class MatchCounts:
    """How the detections of one image fare.

    Attributes:
        tp: (M,) took a ground-truth box.
        fp: (M,) strong enough to be shown, and took none.
        fn: (N,) ground-truth boxes that nothing took.
    """

    tp: Flags
    fp: Flags
    fn: Flags

    @property
    def mistakes(self) -> int:
        """False boxes and missed ones."""
        return int(self.fp.sum()) + int(self.fn.sum())

    def __str__(self) -> str:
        return f"{self.tp.sum()} right, {self.fp.sum()} false, {self.fn.sum()} missed"


@dataclass(frozen=True)
class Pick:
    """An image and by how many mistakes two detectors differ on it (see the module's measure)."""

    image_id: int
    difference: int


def judge(truth: Truth, found: Detections, threshold: float = SCORE_THRESHOLD) -> MatchCounts:
    """Match detections to ground truth, strongest first.

    Args:
        truth: boxes in the frame of `found`.
        found: detections of the same image.
        threshold: weaker detections are neither right nor false.
    """
    overlap = _overlaps(found.boxes_xyxy, truth)
    right = np.zeros(len(found), np.bool_)
    ignored = found.scores < threshold
    free = ~truth.crowd
    for index in np.argsort(-found.scores, kind="stable"):
        if ignored[index]:
            continue
        same = overlap[index] * (truth.labels == found.labels[index])
        candidates = np.where(free, same, 0.0)
        if candidates.size and candidates.max() >= MATCH_IOU:
            free[candidates.argmax()] = False
            right[index] = True
        elif (same[truth.crowd] >= MATCH_IOU).any():
            ignored[index] = True
    return MatchCounts(right, ~right & ~ignored, free)


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
    picks = []
    for image in data.images:
        truth = truth_of(image)
        mistakes = [judge(truth, found.get(image.image_id, Detections.empty())).mistakes for found in (before, after)]
        picks.append(Pick(image.image_id, mistakes[0] - mistakes[1]))
    differing = [pick for pick in picks if pick.difference]
    return sorted(differing, key=lambda pick: (-abs(pick.difference), pick.image_id))[:count]


def write_examples(
    directory: Path,
    data: DetectionData,
    picks: Sequence[Pick],
    arms: Mapping[str, Mapping[int, Detections]],
) -> tuple[Example, ...]:
    """Store the chosen images as JPEG under ``directory/examples`` with their boxes as values.

    Images larger than 1280 pixels are stored smaller; boxes are in pixels of the stored image.

    Args:
        directory: of the benchmark.
        data: ground truth and image files.
        picks: from `pick_examples`.
        arms: detections by image id, for each arm name; only scores of 0.25 or more are kept.

    Raises:
        RequestError: an image cannot be read.
    """
    folder = directory / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    images = {image.image_id: image for image in data.images}
    examples = []
    for pick in picks:
        image = images[pick.image_id]
        pixels, scale = _shrink(read_image(image.path, 3), _STORED_SIDE)
        path = folder / f"{pick.image_id}.jpg"
        write_bytes(path, encode_jpeg(pixels, 90))
        found = {
            name: _found_boxes(detections.get(pick.image_id, Detections.empty()), scale)
            for name, detections in arms.items()
        }
        examples.append(
            Example(
                image=path.relative_to(directory).as_posix(),
                file_name=image.file_name or image.path.name,
                ground_truth=_truth_boxes(truth_of(image), scale),
                detections=found,
                difference=pick.difference,
            )
        )
    return tuple(examples)


def draw_panel(
    image: Pixels,
    truth: Truth,
    found: Detections | None,
    classes: Sequence[str],
    threshold: float = SCORE_THRESHOLD,
) -> Pixels:
    """Draw one side of the comparison.

    Right boxes are blue, false ones orange and thicker; of a missed box the corners are drawn in
    magenta. Class and score stand beside false boxes, and beside all where there are twelve or fewer.

    Args:
        image: (H, W, 3) RGB.
        truth: ground truth in its pixels.
        found: detections in its pixels; None draws the ground truth, in green.
        classes: names in label order.
        threshold: weaker detections are not drawn.

    Returns:
        (h, w, 3) RGB, at most 640 pixels on the longer side.
    """
    canvas, scale = _shrink(image, _PANEL_SIDE)
    canvas = canvas.copy()
    boxes = (truth.boxes_xyxy * scale).astype(np.float32)
    if found is None:
        real = ~truth.crowd
        names = [classes[label] for label in truth.labels[real]]
        return _draw_boxes(canvas, boxes[real], names, TRUTH_COLOUR, 2)
    judgement = judge(truth, found, threshold)
    canvas = _draw_missed(canvas, boxes[judgement.fn])
    return _draw_found(canvas, found, judgement, scale, classes)


def example_truth(example: Example) -> Truth:
    """Return the ground truth of a stored example as arrays."""
    boxes = example.ground_truth
    return Truth(
        np.array([box.box_xyxy for box in boxes], np.float32).reshape(-1, 4),
        np.array([box.label for box in boxes], np.int64),
        np.array([box.crowd for box in boxes], np.bool_),
    )


def example_detections(boxes: Sequence[FoundBox]) -> Detections:
    """Return the stored detections of one arm as arrays."""
    return Detections(
        np.array([box.box_xyxy for box in boxes], np.float32).reshape(-1, 4),
        np.array([box.score for box in boxes], np.float32),
        np.array([box.label for box in boxes], np.int64),
    )


def truth_of(image: ImageRecord) -> Truth:
    """Return the ground truth of an image, in original pixels."""
    return Truth(image.boxes_xyxy, image.labels, image.crowd)


def encode_jpeg(image: Pixels, quality: int) -> bytes:
    """Return (H, W, 3) RGB pixels as the bytes of a JPEG file."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(encoded.tobytes())


def _overlaps(boxes: Boxes, truth: Truth) -> npt.NDArray[np.float64]:
    """(M, N) IoU; over the detection's own area where the ground truth is a crowd."""
    if not len(boxes) or not len(truth.labels):
        return np.zeros((len(boxes), len(truth.labels)))
    crowd = [int(flag) for flag in truth.crowd]
    found = coco_mask.iou(_to_xywh(boxes), _to_xywh(truth.boxes_xyxy), crowd)
    return np.asarray(found, np.float64)


def _to_xywh(boxes: Boxes) -> npt.NDArray[np.float64]:
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _shrink(image: Pixels, side: int) -> tuple[Pixels, float]:
    """Return the image with its longer side at most `side`, and the scale of its boxes."""
    scale = min(1.0, side / max(image.shape[:2]))
    if scale == 1.0:
        return image, 1.0
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def _draw_found(
    canvas: Pixels, found: Detections, judgement: MatchCounts, scale: float, classes: Sequence[str]
) -> Pixels:
    names = [f"{classes[label]} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)]
    boxes = (found.boxes_xyxy * scale).astype(np.float32)
    quote_some = int((judgement.tp | judgement.fp).sum()) <= _MOST_NAMED
    for flags, colour, thickness, named in (
        (judgement.tp, RIGHT_COLOUR, 2, quote_some),
        (judgement.fp, FALSE_COLOUR, 3, True),
    ):
        own = [names[index] for index in np.flatnonzero(flags)] if named else []
        canvas = _draw_boxes(canvas, boxes[flags], own, colour, thickness)
    return canvas


def _draw_boxes(canvas: Pixels, boxes: Boxes, names: list[str], colour: str, thickness: int) -> Pixels:
    if not len(boxes):
        return canvas
    given = sv.Detections(xyxy=boxes, class_id=np.zeros(len(boxes), int))
    bgr = _swapped(colour)
    canvas = sv.BoxAnnotator(color=bgr, thickness=thickness).annotate(canvas, given)
    if names and len(names) <= _MOST_NAMED:
        labels = sv.LabelAnnotator(color=bgr, text_scale=0.4, text_padding=2, smart_position=True)
        canvas = labels.annotate(canvas, given, labels=names)
    return np.asarray(canvas, np.uint8)


def _draw_missed(canvas: Pixels, boxes: Boxes) -> Pixels:
    if not len(boxes):
        return canvas
    missed = sv.Detections(xyxy=boxes, class_id=np.zeros(len(boxes), int))
    shortest = float((boxes[:, 2:] - boxes[:, :2]).min())
    corner = int(np.clip(shortest / 3, 3, 14))
    drawn = sv.BoxCornerAnnotator(color=_swapped(MISSED_COLOUR), thickness=3, corner_length=corner)
    return np.asarray(drawn.annotate(canvas, missed), np.uint8)


def _swapped(colour: str) -> Any:
    """Return a colour for an RGB canvas; supervision draws for BGR."""
    given = sv.Color.from_hex(colour)
    return sv.Color(r=given.b, g=given.g, b=given.r)


def _found_boxes(found: Detections, scale: float) -> tuple[FoundBox, ...]:
    return tuple(
        FoundBox(box_xyxy=_corners(box, scale), score=float(score), label=int(label))
        for box, score, label in zip(found.boxes_xyxy, found.scores, found.labels, strict=True)
        if score >= SCORE_THRESHOLD
    )


def _truth_boxes(truth: Truth, scale: float) -> tuple[TruthBox, ...]:
    return tuple(
        TruthBox(box_xyxy=_corners(box, scale), label=int(label), crowd=bool(crowd))
        for box, label, crowd in zip(truth.boxes_xyxy, truth.labels, truth.crowd, strict=True)
    )


def _corners(box: Any, scale: float) -> Corners:
    left, top, right, bottom = (round(float(side) * scale, 2) for side in box)
    return left, top, right, bottom
