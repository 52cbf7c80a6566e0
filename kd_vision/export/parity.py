"""The gate: does the exported file find the same boxes as the model it was made from?

Compared are final detections, which is what a user gets, and not tensors: a swapped class, a shift
by a pixel or a wrong letterbox show here whatever the graph looks like inside.

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

from kd_vision.core.batch import ImageBatch, Letterbox, Targets
from kd_vision.core.boxes import box_iou, greedy_match
from kd_vision.core.predictions import Detections
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.data.records import DetectionData
from kd_vision.detectors.base import PredictOptions, Predictor
from kd_vision.evaluation.coco import evaluate_detections

SYNTHETIC_SOURCE = "seeded noise and drawn shapes; no data was given, so AP is not compared"
Boxes = npt.NDArray[np.float32]
_SAME_CORNERS = 0.05
_GRAIN = 12.0


class ParityLimits(StrictModel):
    """What a faithful 32-bit export keeps to.

    Two float programs differ by 1e-6 in a score and 1e-4 pixels in a box. Where two boxes tie at a
    threshold of NMS, each may still keep another one, so shares and percentiles are limited and
    the single largest difference is only reported.

    Attributes:
        match_iou: boxes of one class count as the same from this overlap on.
        score_floor: boxes below are partners for others, but are not counted as unmatched.
        confident_score: boxes from here on are those a user acts on.
        matched_share: least share of counted boxes, of both sides, that have a partner.
        confident_matched_share: the same of confident boxes.
        score_p99: most difference of score for 99 of 100 pairs.
        pixels_p99: most difference of a coordinate, in pixels of the original image.
        ap: most difference of AP, as a fraction.
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
    """What the gate measured; written into the file that passed.

    Attributes:
        passed: no limit is broken.
        reasons: one line for every broken limit.
        source: which images were compared.
        images: how many.
        reference_boxes: counted boxes of the model.
        exported_boxes: counted boxes of the file.
        matched_share: share of both that have a partner on the other side.
        confident_boxes: of both sides together.
        unmatched_confident: those without a partner.
        score_p99: difference of score that 99 of 100 pairs keep to.
        score_max: largest difference of score.
        pixels_p99: difference of a coordinate that 99 of 100 pairs keep to, original pixels.
        pixels_max: largest difference of a coordinate.
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


@dataclass(frozen=True, slots=True)
class ParityInputs:
    """What the gate looks at.

    Attributes:
        batches: images with letterboxes; each is shown to both sides.
        source: what they are, for the proof.
        data: ground truth of the same images, to compare AP; None: AP is not compared.
        limits: what the file must keep to.
    """

    batches: Iterable[ImageBatch]
    source: str
    data: DetectionData | None = None
    limits: ParityLimits = ParityLimits()


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One image: scores of the counted boxes with and without partner, differences of the pairs."""

    reference_scores: Boxes
    exported_scores: Boxes
    reference_matched: npt.NDArray[np.bool_]
    exported_matched: npt.NDArray[np.bool_]
    score_differences: Boxes
    pixel_differences: Boxes


def check_parity(
    reference: Predictor,
    exported: Predictor,
    inputs: ParityInputs,
    options: PredictOptions = PredictOptions(),
) -> ParityReport:
    """Show the same images to both sides and compare what they find.

    Args:
        reference: the model.
        exported: the file.
        inputs: images, and ground truth where there is some.
        options: thresholds for both sides.
    """
    comparisons: list[_Comparison] = []
    found: tuple[dict[int, Detections], dict[int, Detections]] = ({}, {})
    for batch in inputs.batches:
        expected, actual = reference.predict(batch, options), exported.predict(batch, options)
        comparisons += [_compare(a, b, inputs.limits) for a, b in zip(expected, actual, strict=True)]
        if inputs.data is not None:
            found[0].update(zip(batch.image_ids, expected, strict=True))
            found[1].update(zip(batch.image_ids, actual, strict=True))
    aps: tuple[float | None, float | None] = (None, None)
    if inputs.data is not None:
        aps = (
            evaluate_detections(inputs.data, found[0]).ap,
            evaluate_detections(inputs.data, found[1]).ap,
        )
    return _judge(comparisons, inputs, aps)


def synthetic_inputs(
    spec: DetectorSpec, image_size: int, images: int = 8, limits: ParityLimits = ParityLimits()
) -> ParityInputs:
    """Make images for a gate without data: seeded noise, and shapes drawn on smooth ground.

    Args:
        spec: says how many channels.
        image_size: height and width.
        images: how many.
        limits: what the file must keep to.
    """
    generator = np.random.default_rng(20240229)
    batches = [_drawn_batch(generator, spec.input_channels, image_size, index) for index in range(images)]
    return ParityInputs(batches, SYNTHETIC_SOURCE, None, limits)


def match_boxes(reference: Detections, exported: Detections, least_iou: float) -> npt.NDArray[np.int64]:
    """Pair boxes of the same class, the most alike first.

    Alike is IoU minus the difference of score: among boxes on the same spot the score tells which
    is which.

    Returns:
        (P, 2) index into `reference`, index into `exported`; each box at most once.
    """
    iou = _iou(reference.boxes_xyxy, exported.boxes_xyxy)
    allowed = (iou >= least_iou) & (reference.labels[:, None] == exported.labels[None, :])
    return greedy_match(iou - np.abs(reference.scores[:, None] - exported.scores[None, :]), allowed)


def _compare(reference: Detections, exported: Detections, limits: ParityLimits) -> _Comparison:
    pairs = match_boxes(reference, exported, limits.match_iou)
    has_partner = np.zeros(len(reference), bool), np.zeros(len(exported), bool)
    has_partner[0][pairs[:, 0]] = True
    has_partner[1][pairs[:, 1]] = True
    counted = reference.scores >= limits.score_floor, exported.scores >= limits.score_floor
    scores = np.abs(reference.scores[pairs[:, 0]] - exported.scores[pairs[:, 1]])
    pixels = np.abs(reference.boxes_xyxy[pairs[:, 0]] - exported.boxes_xyxy[pairs[:, 1]]).max(axis=1, initial=0.0)
    return _Comparison(
        reference.scores[counted[0]],
        exported.scores[counted[1]],
        has_partner[0][counted[0]],
        has_partner[1][counted[1]],
        scores,
        pixels,
    )


def _judge(
    comparisons: list[_Comparison], inputs: ParityInputs, aps: tuple[float | None, float | None]
) -> ParityReport:
    scores = _join([each.reference_scores for each in comparisons] + [each.exported_scores for each in comparisons])
    reference, exported = (
        [e.reference_matched for e in comparisons],
        [e.exported_matched for e in comparisons],
    )
    matched: npt.NDArray[np.bool_] = _join(reference + exported) > 0
    confident = scores >= inputs.limits.confident_score
    score_differences = _join([each.score_differences for each in comparisons])
    pixel_differences = _join([each.pixel_differences for each in comparisons])
    parity = ParityReport(
        passed=True,
        reasons=(),
        source=inputs.source,
        images=len(comparisons),
        reference_boxes=sum(len(each.reference_scores) for each in comparisons),
        exported_boxes=sum(len(each.exported_scores) for each in comparisons),
        matched_share=float(matched.mean()) if len(matched) else 0.0,
        confident_boxes=int(confident.sum()),
        unmatched_confident=int((confident & ~matched).sum()),
        score_p99=_p99(score_differences),
        score_max=float(score_differences.max(initial=0.0)),
        pixels_p99=_p99(pixel_differences),
        pixels_max=float(pixel_differences.max(initial=0.0)),
        ap_reference=aps[0],
        ap_exported=aps[1],
    )
    reasons = tuple(_broken(parity, inputs.limits))
    return parity.model_copy(update={"passed": not reasons, "reasons": reasons})


def _broken(parity: ParityReport, limits: ParityLimits) -> Iterator[str]:
    """Say each broken limit: what was measured, and what is allowed."""
    if not parity.reference_boxes and not parity.exported_boxes:
        yield (
            f"neither side found a box with a score of {limits.score_floor:g} or more on {parity.images} "
            f"images, so nothing is proven; give --data with images the model knows"
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
    if parity.ap_reference is not None or parity.ap_exported is not None:
        model, file = parity.ap_reference or 0.0, parity.ap_exported or 0.0
        if abs(model - file) > limits.ap:
            yield f"AP: {file:.4f} of the file, {model:.4f} of the model; at most {limits.ap:g} apart"


def _join(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64)


def _p99(values: npt.NDArray[np.float64]) -> float:
    return float(np.percentile(values, 99)) if len(values) else 0.0


def _iou(first: Boxes, second: Boxes) -> npt.NDArray[np.float64]:
    """Return the (M, N) IoU of corner boxes; boxes without area are the same where their corners are.

    Such boxes are cut off at the border of the image, or have sides crossed by a head that is not trained.
    """
    iou = box_iou(first, second)
    iou[np.abs(first.astype(np.float64)[:, None] - second[None]).max(axis=-1) < _SAME_CORNERS] = 1.0
    return iou


def _drawn_batch(generator: np.random.Generator, channels: int, size: int, index: int) -> ImageBatch:
    """Draw one image: the even ones noise, the odd ones shapes."""
    if index % 2 == 0:
        pixels = generator.integers(0, 256, (size, size, channels), dtype=np.uint8)
    else:
        pixels = _shapes(generator, channels, size)
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    letterbox = Letterbox(size, size, 1.0, 1.0, 0, 0)
    return ImageBatch(images, nothing, torch.zeros(1, dtype=torch.bool), (index + 1,), (letterbox,))


def _shapes(generator: np.random.Generator, channels: int, size: int) -> npt.NDArray[np.uint8]:
    planes = []
    corners = generator.integers(0, size, (12, 2, 2))
    for _ in range(channels):
        ground = generator.integers(0, 256, (4, 4), dtype=np.uint8)
        plane = cv2.resize(ground, (size, size), interpolation=cv2.INTER_LINEAR)
        for number, (low, high) in enumerate(corners.tolist()):
            shade = int(generator.integers(0, 256))
            if number % 2:
                cv2.rectangle(plane, low, high, shade, -1)
            else:
                cv2.circle(plane, low, max(2, abs(high[0] - low[0]) // 4), shade, -1)
        planes.append(plane)
    drawn = np.stack(planes, axis=-1)
    # On flat ground a network answers the same at every point, and NMS is left to decide between equals.
    grain = generator.normal(0.0, _GRAIN, drawn.shape)
    return np.clip(drawn + grain, 0, 255).astype(np.uint8)
