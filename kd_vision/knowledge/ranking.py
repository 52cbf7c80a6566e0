"""Acquisition scores: ranks unlabelled images by the predictions of a teacher, and of a student where there is one.

score = mean of the available parts, each in [0, 1]:

    disagreement  1 - 2 sum_pairs min(t, s) / (sum_T t + sum_S s), pairs matched at IoU >= 0.5 within a class;
                  t and s the scores of the teacher's and the student's boxes; needs a student
    uncertainty   mean over the teacher's boxes of -t log2 t - (1 - t) log2 (1 - t): most for scores near 0.5
    rarity        max over the teacher's boxes of t sqrt(f_min / f_c), f_c the sum of scores of class c in the
                  store, f_min that of the rarest class with boxes

An image without boxes of the teacher has uncertainty and rarity 0, without boxes of either disagreement 0.

Shapes: N images, M boxes of one image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kd_vision.core.boxes import box_iou, greedy_match
from kd_vision.core.image_hash import difference_hash, hamming_distances
from kd_vision.core.predictions import Detections

PAIR_IOU = 0.5
NEAR_BITS = 4
_HASH_SIDE = 8

CHOSEN, BEYOND = "chosen", "beyond the budget"


@dataclass(frozen=True, slots=True)
class AcquisitionScore:
    """Value of an image for training.

    Attributes:
        disagreement: None without a student.
        uncertainty, rarity: see the module.
    """

    disagreement: float | None
    uncertainty: float
    rarity: float

    @property
    def score(self) -> float:
        """Mean of the available parts."""
        parts = [self.uncertainty, self.rarity, *([] if self.disagreement is None else [self.disagreement])]
        return sum(parts) / len(parts)


@dataclass(frozen=True, slots=True)
class Ranked:
    """An image in the ranking.

    Attributes:
        index: position among the given images.
        acquisition: its score, and the parts of it.
        reason: `CHOSEN`, or the reason why it was left out.
        like: index of the chosen image of which it is a near duplicate; None: of none, or it was not compared.
    """

    index: int
    acquisition: AcquisitionScore
    reason: str
    like: int | None = None


def acquisition_scores(
    detections: Sequence[Detections], classes: int, disagreements: Sequence[float | None] | None = None
) -> list[AcquisitionScore]:
    """Score images.

    Args:
        detections: the teacher's predictions on each of N images.
        classes: K of the teacher.
        disagreements: `disagreement` on each; None: there is no student.
    """
    weights = class_rarity(detections, classes)
    return [
        AcquisitionScore(
            disagreement,
            uncertainty(one.scores),
            float((one.scores * weights[one.labels]).max()) if len(one) else 0.0,
        )
        for one, disagreement in zip(detections, disagreements or [None] * len(detections), strict=True)
    ]


def disagreement(teacher: Detections, student: Detections) -> float:
    """Return the disagreement of two predictions on an image, see the module; 0 where both have no boxes."""
    total = float(teacher.scores.sum() + student.scores.sum())
    if total == 0:
        return 0.0
    if not len(teacher) or not len(student):
        return 1.0
    iou = box_iou(teacher.boxes_xyxy, student.boxes_xyxy)
    allowed = (iou >= PAIR_IOU) & (teacher.labels[:, None] == student.labels[None])
    pairs = greedy_match(iou, allowed, teacher.scores)
    agreed = sum(float(min(teacher.scores[t], student.scores[s])) for t, s in pairs)
    return 1.0 - 2.0 * agreed / total


def uncertainty(scores: npt.NDArray[np.float32]) -> float:
    """Return the mean binary entropy of (M,) scores in bits; 0 without boxes."""
    if not len(scores):
        return 0.0
    p = scores.astype(np.float64).clip(1e-9, 1 - 1e-9)
    return float((-p * np.log2(p) - (1 - p) * np.log2(1 - p)).mean())


def class_rarity(detections: Sequence[Detections], classes: int) -> npt.NDArray[np.float64]:
    """Return (K,) sqrt(f_min / f_c); 0 for a class without boxes."""
    sums = np.zeros(classes)
    for one in detections:
        sums += np.bincount(one.labels, weights=one.scores, minlength=classes)
    present = sums > 0
    weights = np.zeros(classes)
    if present.any():
        weights[present] = np.sqrt(sums[present].min() / sums[present])
    return weights


def picture_hash(gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the difference hash of (H, W, 1) pixels: 64 bits as (8,) uint8."""
    return np.packbits(difference_hash(gray, _HASH_SIDE))


def choose(
    scores: Sequence[AcquisitionScore], names: Sequence[str], hashes: npt.NDArray[np.uint8], budget: int
) -> list[Ranked]:
    """Choose the best images up to a budget, without near duplicates of chosen ones.

    Args:
        scores: of each of N images.
        names: of the images; the order of equal scores.
        hashes: (N, 8) from `picture_hash`; images that differ in `NEAR_BITS` bits or fewer are near duplicates.
        budget: number of images to choose.

    Returns:
        All images, best first.
    """
    order = sorted(range(len(scores)), key=lambda index: (-scores[index].score, names[index]))
    bits = np.unpackbits(hashes, axis=1).astype(np.bool_)
    chosen_bits = np.zeros((min(budget, len(scores)), bits.shape[1]), np.bool_)
    chosen: list[int] = []
    ranked = []
    for index in order:
        if len(chosen) == budget:
            ranked.append(Ranked(index, scores[index], BEYOND))
            continue
        near = np.flatnonzero(hamming_distances(chosen_bits[: len(chosen)], bits[index : index + 1]) <= NEAR_BITS)
        if len(near):
            like = chosen[int(near[0])]
            ranked.append(Ranked(index, scores[index], f"looks like {names[like]}", like))
            continue
        chosen_bits[len(chosen)] = bits[index]
        chosen.append(index)
        ranked.append(Ranked(index, scores[index], CHOSEN))
    return ranked
