"""Draws boxes on pictures for people, with supervision.

Shapes: H W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import supervision as sv

from kd_vision.core.predictions import Detections

_SMALLEST_TEXT = 0.35


def draw_detections(
    pixels: npt.NDArray[np.uint8], detections: Detections, classes: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Return a copy with a box, the class and the score of each detection.

    Args:
        pixels: (H, W, C) uint8; 1 gray, 3 RGB, of 4 channels the first three are shown.
        detections: boxes in pixels of this picture.
        classes: names in label order.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = np.ascontiguousarray(_to_rgb(pixels))
    if not len(detections):
        return picture
    found = sv.Detections(
        xyxy=detections.boxes_xyxy, confidence=detections.scores, class_id=detections.labels.astype(int)
    )
    thickness = max(1, round(min(picture.shape[:2]) / 400))
    named = zip(detections.labels, detections.scores, strict=True)
    texts = [f"{classes[label]} {score:.2f}" for label, score in named]
    # The palette is RGB turned to OpenCV's BGR, so the picture is turned too, and back.
    drawn = sv.BoxAnnotator(thickness=thickness).annotate(np.ascontiguousarray(picture[..., ::-1]), found)
    writer = sv.LabelAnnotator(
        text_scale=max(_SMALLEST_TEXT, min(picture.shape[:2]) / 1600),
        text_thickness=1,
        text_padding=2,
        text_color=sv.Color.BLACK,
    )
    drawn = writer.annotate(drawn, found, labels=texts)
    return np.ascontiguousarray(np.asarray(drawn, np.uint8)[..., ::-1])


def _to_rgb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a copy in three channels."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3].copy()
