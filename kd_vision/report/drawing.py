"""Draws boxes on images with supervision.

Shapes: H W pixels, C channels, M boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kd_vision.core.predictions import Detections
from kd_vision.data.records import ImageRecord
from kd_vision.evaluation.matches import ImageMatches
from kd_vision.runtime.images import Pixels

TP_COLOUR = "#0072b2"
FP_COLOUR = "#d55e00"
FN_COLOUR = "#e61bb0"
GROUND_TRUTH_COLOUR = "#009e73"

_MIN_TEXT_SCALE = 0.35
_PANEL_SIDE = 640
_MAX_CAPTIONS = 12

Boxes = npt.NDArray[np.float32]


def draw_detections(pixels: Pixels, detections: Detections, classes: Sequence[str]) -> Pixels:
    """Return a copy with a box, the class and the score of each detection, one colour per class.

    Args:
        pixels: (H, W, C) uint8; 1 gray, 3 RGB, of 4 channels the first three are shown.
        detections: boxes in pixels of this image.
        classes: names in label order.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import supervision as sv

    image = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3].copy()
    if not len(detections):
        return image
    boxes = sv.Detections(xyxy=detections.boxes_xyxy, class_id=detections.labels.astype(int))
    shorter = min(image.shape[:2])
    outlines = sv.BoxAnnotator(thickness=max(1, round(shorter / 400)))
    captions = sv.LabelAnnotator(
        text_scale=max(_MIN_TEXT_SCALE, shorter / 1600), text_thickness=1, text_padding=2, text_color=sv.Color.BLACK
    )
    # supervision draws its palette as BGR, so the image is turned to BGR and back.
    drawn = outlines.annotate(np.ascontiguousarray(image[..., ::-1]), boxes)
    drawn = captions.annotate(drawn, boxes, labels=_captions(detections, classes))
    return np.ascontiguousarray(np.asarray(drawn, np.uint8)[..., ::-1])


def draw_ground_truth(image: Pixels, record: ImageRecord, classes: Sequence[str]) -> Pixels:
    """Draw the ground truth without crowd regions, in green.

    Args:
        image: (H, W, 3) RGB.
        record: boxes in its pixels.
        classes: names in label order.

    Returns:
        (h, w, 3) RGB, at most 640 pixels on the longer side.
    """
    canvas, scale = shrink(image, _PANEL_SIDE)
    captions = [classes[label] for label in record.labels[~record.crowd]]
    return _draw_boxes(canvas.copy(), record.boxes_xyxy[~record.crowd] * scale, captions, GROUND_TRUTH_COLOUR, 2)


def draw_matches(
    image: Pixels, record: ImageRecord, detections: Detections, matches: ImageMatches, classes: Sequence[str]
) -> Pixels:
    """Draw true positives in blue, false positives in orange and thicker, the corners of missed boxes in magenta.

    Class and score are written beside false positives, and beside all detections if there are twelve or fewer.

    Args:
        image: (H, W, 3) RGB.
        record: ground truth in its pixels.
        detections: boxes in its pixels; ignored ones are not drawn.
        matches: of `detections` and the ground truth.
        classes: names in label order.

    Returns:
        (h, w, 3) RGB, at most 640 pixels on the longer side.
    """
    canvas, scale = shrink(image, _PANEL_SIDE)
    canvas = _draw_corners(canvas.copy(), record.boxes_xyxy[matches.fn] * scale)
    few = int((matches.tp | matches.fp).sum()) <= _MAX_CAPTIONS
    for counted, colour, thickness, with_captions in (
        (matches.tp, TP_COLOUR, 2, few),
        (matches.fp, FP_COLOUR, 3, True),
    ):
        shown = detections.take(counted)
        captions = _captions(shown, classes) if with_captions else []
        canvas = _draw_boxes(canvas, shown.boxes_xyxy * scale, captions, colour, thickness)
    return canvas


def shrink(image: Pixels, side: int) -> tuple[Pixels, float]:
    """Return the image with its longer side at most `side`, and the scale of its boxes."""
    scale = min(1.0, side / max(image.shape[:2]))
    if scale == 1.0:
        return image, 1.0
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def encode_jpeg(image: Pixels, quality: int) -> bytes:
    """Return (H, W, 3) RGB pixels as the bytes of a JPEG file."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(encoded.tobytes())


def _captions(detections: Detections, classes: Sequence[str]) -> list[str]:
    labelled = zip(detections.labels, detections.scores, strict=True)
    return [f"{classes[label]} {score:.2f}" for label, score in labelled]


def _draw_boxes(canvas: Pixels, boxes: Boxes, captions: list[str], colour: str, thickness: int) -> Pixels:
    import supervision as sv

    if not len(boxes):
        return canvas
    detections = sv.Detections(xyxy=boxes, class_id=np.zeros(len(boxes), int))
    canvas = sv.BoxAnnotator(color=_rgb(colour), thickness=thickness).annotate(canvas, detections)
    if captions and len(captions) <= _MAX_CAPTIONS:
        annotator = sv.LabelAnnotator(color=_rgb(colour), text_scale=0.4, text_padding=2, smart_position=True)
        canvas = annotator.annotate(canvas, detections, labels=captions)
    return np.asarray(canvas, np.uint8)


def _draw_corners(canvas: Pixels, boxes: Boxes) -> Pixels:
    import supervision as sv

    if not len(boxes):
        return canvas
    shortest = float((boxes[:, 2:] - boxes[:, :2]).min())
    length = int(np.clip(shortest / 3, 3, 14))
    annotator = sv.BoxCornerAnnotator(color=_rgb(FN_COLOUR), thickness=3, corner_length=length)
    return np.asarray(annotator.annotate(canvas, sv.Detections(boxes, class_id=np.zeros(len(boxes), int))), np.uint8)


def _rgb(colour: str) -> Any:
    """Return a supervision colour for an RGB canvas; supervision itself draws on BGR."""
    import supervision as sv

    bgr = sv.Color.from_hex(colour)
    return sv.Color(r=bgr.b, g=bgr.g, b=bgr.r)
