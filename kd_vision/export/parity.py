"""Parity gate: an exported file must detect the same boxes as the model it was made from.

The gate compares final detections, which is what a user gets, and not tensors: it detects a swapped class,
a shift by a pixel or a wrong letterbox, whatever the graph looks like inside.

Shapes: M boxes of one image, B images, C channels, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from kd_vision.core.batch import ImageBatch, Letterbox
from kd_vision.core.boxes import box_iou, greedy_match
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.data.records import DetectionData
from kd_vision.detectors.base import Predictor
from kd_vision.evaluation.coco import evaluate_detections

SYNTHETIC_SOURCE = "seeded noise and drawn shapes; no data was given, so AP is not compared"
_SAME_CORNERS = 0.05  # pixels
_NOISE = 12.0  # standard deviation, of 255


class ParityLimits(StrictModel):
    """Limits of the parity gate; the defaults are those of a faithful 32-bit export.

    Two float programs differ by 1e-6 in a score and 1e-4 pixels in a box. Where two boxes tie at a
    threshold of NMS, each program may still keep another one: therefore shares and percentiles are
    limited, and the largest single difference is only reported.

    Attributes:
        match_iou: least IoU of two boxes of one class that are matched.
        score_floor: boxes below may be partners of others, but do not count as unmatched.
        confident_score: boxes with at least this score are confident.
        matched_share: least share of counted boxes, of both sides, that have a partner.
        confident_matched_share: the same of confident boxes.
        score_p99: largest allowed difference of score, 99th percentile over pairs.
        pixels_p99: largest allowed difference of a coordinate in pixels of the original image, 99th percentile.
        ap: largest allowed difference of AP, as a fraction.
    """

    match_iou: float = Field(default=0.5, gt=0.0, le=1.0)
    score_floor: float = Field(default=0.002, ge=0.0)
    confident_score: float = Field(default=0.25, ge=0.0)
    matched_share: float = Field(default=0.995, ge=0.0, le=1.0)
    confident_matched_share: float = Field(default=0.999, ge=0.0, le=1.0)
    score_p99: float = Field(default=5e-4, ge=0.0)
    pixels_p99: float = Field(default=0.25, ge=0.0)
    ap: float = Field(default=0.002, ge=0.0)


class ParityReport(StrictModel):
    """Result of the parity gate; recorded in the file that passed.

    Attributes:
        passed: no limit is broken.
        reasons: one line for every broken limit.
        source: what the compared images are.
        images: number of images.
        reference_boxes: counted boxes of the model.
        exported_boxes: counted boxes of the file.
        matched_share: share of the counted boxes of both sides that have a partner on the other side.
        confident_boxes: confident boxes of both sides.
        unmatched_confident: confident boxes without a partner.
        score_p99: difference of score between matched boxes, 99th percentile.
        score_max: the same, largest.
        pixels_p99: difference of a coordinate between matched boxes in original pixels, 99th percentile.
        pixels_max: the same, largest.
        ap_reference: AP of the model on the split; None without data.
        ap_exported: AP of the file.
    """

    passed: bool
    reasons: tuple[str, ...]
    source: str
    images: int
    reference_boxes: int
    exported_boxes: int
    matched_share: float
    confident_boxes: int
    unmatched_confident: int
    score_p99: float
    score_max: float
    pixels_p99: float
    pixels_max: float
    ap_reference: float | None = None
    ap_exported: float | None = None


FP32_LIMITS = ParityLimits()


@dataclass(frozen=True, slots=True)
class ParityInputs:
    """Images on which the gate compares a model with its exported file.

    Attributes:
        batches: images with letterboxes; both sides predict on each.
        source: what the images are, for the report.
        data: ground truth of the same images, to compare AP; None: AP is not compared.
        limits: what the file must keep to; None: the limits of the precision it is exported in.
    """

    batches: Iterable[ImageBatch]
    source: str
    data: DetectionData | None = None
    limits: ParityLimits | None = None


@dataclass(frozen=True, slots=True)
class _CountedBoxes:
    """Boxes of one side with a score of at least `score_floor`: (M,) score, (M,) has a partner."""

    scores: npt.NDArray[np.float32]
    matched: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One image: counted boxes of both sides, and the (P,) differences of all matched pairs."""

    reference: _CountedBoxes
    exported: _CountedBoxes
    score_differences: npt.NDArray[np.float32]
    pixel_differences: npt.NDArray[np.float32]


_PairOfAP = tuple[float | None, float | None]


def check_parity(
    reference: Predictor,
    exported: Predictor,
    inputs: ParityInputs,
    options: PredictOptions = PredictOptions(),
) -> ParityReport:
    """Compare the final detections of a model and of its exported file on the same images.

    Args:
        reference: the model.
        exported: the file.
        inputs: images, ground truth where there is some, and limits; without limits `FP32_LIMITS` hold.
        options: thresholds for both sides.
    """
    limits = inputs.limits or FP32_LIMITS
    comparisons: list[_Comparison] = []
    by_image: tuple[dict[int, Detections], dict[int, Detections]] = ({}, {})
    for batch in inputs.batches:
        expected, actual = reference.predict(batch, options), exported.predict(batch, options)
        comparisons += [_compare(one, other, limits) for one, other in zip(expected, actual, strict=True)]
        if inputs.data is not None:
            by_image[0].update(zip(batch.image_ids, expected, strict=True))
            by_image[1].update(zip(batch.image_ids, actual, strict=True))
    ap: _PairOfAP = (None, None)
    if inputs.data is not None:
        ap = evaluate_detections(inputs.data, by_image[0]).ap, evaluate_detections(inputs.data, by_image[1]).ap
    return _judge(comparisons, inputs, ap, limits)


def synthetic_inputs(
    spec: DetectorSpec, image_size: int, images: int = 8, limits: ParityLimits | None = None
) -> ParityInputs:
    """Make images for a gate without data: seeded noise, and shapes drawn on a smooth background.

    Args:
        spec: its `input_channels` are those of the images.
        image_size: height and width.
        images: how many.
        limits: see `ParityInputs`.
    """
    generator = np.random.default_rng(20240229)
    batches = [_drawn_batch(generator, spec.input_channels, image_size, index) for index in range(images)]
    return ParityInputs(batches, SYNTHETIC_SOURCE, None, limits)


def match_boxes(reference: Detections, exported: Detections, least_iou: float) -> npt.NDArray[np.int64]:
    """Pair boxes of the same class, the most similar first.

    Similarity is IoU minus the difference of score: of several boxes at one place, those of equal score
    are paired. Boxes without area (cut off at the border of the image, or with crossed sides from an
    untrained head) have no IoU; two of them with the same corners count as IoU 1.

    Returns:
        (P, 2) index into `reference`, index into `exported`; each box at most once.
    """
    corners = np.abs(reference.boxes_xyxy[:, None] - exported.boxes_xyxy[None]).max(axis=-1)
    iou = np.where(corners < _SAME_CORNERS, 1.0, box_iou(reference.boxes_xyxy, exported.boxes_xyxy))
    allowed = (iou >= least_iou) & (reference.labels[:, None] == exported.labels[None])
    return greedy_match(iou - np.abs(reference.scores[:, None] - exported.scores[None]), allowed)


def _compare(reference: Detections, exported: Detections, limits: ParityLimits) -> _Comparison:
    pairs = match_boxes(reference, exported, limits.match_iou)
    boxes = np.abs(reference.boxes_xyxy[pairs[:, 0]] - exported.boxes_xyxy[pairs[:, 1]])
    return _Comparison(
        _counted(reference, pairs[:, 0], limits.score_floor),
        _counted(exported, pairs[:, 1], limits.score_floor),
        np.abs(reference.scores[pairs[:, 0]] - exported.scores[pairs[:, 1]]),
        boxes.max(axis=1, initial=0.0),
    )


def _counted(detections: Detections, matched: npt.NDArray[np.int64], score_floor: float) -> _CountedBoxes:
    has_partner = np.zeros(len(detections), np.bool_)
    has_partner[matched] = True
    counted = detections.scores >= score_floor
    return _CountedBoxes(detections.scores[counted], has_partner[counted])


def _judge(
    comparisons: Sequence[_Comparison], inputs: ParityInputs, ap: _PairOfAP, limits: ParityLimits
) -> ParityReport:
    reference = [comparison.reference for comparison in comparisons]
    exported = [comparison.exported for comparison in comparisons]
    matched = _join([boxes.matched for boxes in (*reference, *exported)]) > 0
    confident = _join([boxes.scores for boxes in (*reference, *exported)]) >= limits.confident_score
    score_differences = _join([comparison.score_differences for comparison in comparisons])
    pixel_differences = _join([comparison.pixel_differences for comparison in comparisons])
    parity = ParityReport(
        passed=True,
        reasons=(),
        source=inputs.source,
        images=len(comparisons),
        reference_boxes=sum(len(boxes.scores) for boxes in reference),
        exported_boxes=sum(len(boxes.scores) for boxes in exported),
        matched_share=float(matched.mean()) if len(matched) else 0.0,
        confident_boxes=int(confident.sum()),
        unmatched_confident=int((confident & ~matched).sum()),
        score_p99=_p99(score_differences),
        score_max=float(score_differences.max(initial=0.0)),
        pixels_p99=_p99(pixel_differences),
        pixels_max=float(pixel_differences.max(initial=0.0)),
        ap_reference=ap[0],
        ap_exported=ap[1],
    )
    reasons = tuple(_broken_limits(parity, limits))
    return parity.model_copy(update={"passed": not reasons, "reasons": reasons})


def _broken_limits(parity: ParityReport, limits: ParityLimits) -> Iterator[str]:
    """Yield one line per broken limit: what was measured, and what is allowed."""
    if not parity.reference_boxes and not parity.exported_boxes:
        yield (
            f"neither the model nor the file detects a box with a score of {limits.score_floor:g} or more on "
            f"{parity.images} images, so nothing is proven; give --data with images of the model's classes"
        )
        return
    if parity.matched_share < limits.matched_share:
        share = limits.matched_share
        yield f"only {parity.matched_share:.4f} of the boxes have a partner; at least {share:g} must"
    confident = 1.0 - parity.unmatched_confident / max(parity.confident_boxes, 1)
    if confident < limits.confident_matched_share:
        yield (
            f"{parity.unmatched_confident} of {parity.confident_boxes} boxes with a score of "
            f"{limits.confident_score:g} or more have no partner"
        )
    measured = {
        "score difference, 99th percentile": (parity.score_p99, limits.score_p99),
        "coordinate difference in pixels, 99th percentile": (parity.pixels_p99, limits.pixels_p99),
    }
    for name, (value, most) in measured.items():
        if not value <= most:
            yield f"{name}: {value:.3g}; at most {most:g} is allowed"
    # AP is None without data, and on data without ground truth.
    reference, exported = parity.ap_reference or 0.0, parity.ap_exported or 0.0
    if abs(reference - exported) > limits.ap:
        yield f"AP: {exported:.4f} of the file, {reference:.4f} of the model; at most {limits.ap:g} apart"


def _join(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64)


def _p99(values: npt.NDArray[np.float64]) -> float:
    return float(np.percentile(values, 99)) if len(values) else 0.0


def _drawn_batch(generator: np.random.Generator, channels: int, size: int, index: int) -> ImageBatch:
    """Return one image: noise for an even index, shapes for an odd one."""
    if index % 2 == 0:
        pixels = generator.integers(0, 256, (size, size, channels), dtype=np.uint8)
    else:
        pixels = _shapes(generator, channels, size)
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    return ImageBatch.of_images(images, (index + 1,), (Letterbox(size, size, 1.0, 1.0, 0, 0),))


def _shapes(generator: np.random.Generator, channels: int, size: int) -> npt.NDArray[np.uint8]:
    """Draw rectangles and circles on a smooth background, with noise; (size, size, channels)."""
    planes = []
    corners = generator.integers(0, size, (12, 2, 2))
    for _ in range(channels):
        background = generator.integers(0, 256, (4, 4), dtype=np.uint8)
        plane = cv2.resize(background, (size, size), interpolation=cv2.INTER_LINEAR)
        for number, (low, high) in enumerate(corners.tolist()):
            shade = int(generator.integers(0, 256))
            if number % 2:
                cv2.rectangle(plane, low, high, shade, -1)
            else:
                cv2.circle(plane, low, max(2, abs(high[0] - low[0]) // 4), shade, -1)
        planes.append(plane)
    drawn = np.stack(planes, axis=-1)
    # A network gives the same output at every point of a flat area, and NMS would have to choose between ties.
    noise = generator.normal(0.0, _NOISE, drawn.shape)
    return np.clip(drawn + noise, 0, 255).astype(np.uint8)
