"""Which unlabelled images would teach most, by what a teacher (and a student) said of them.

score = mean of the parts that are known, each in [0, 1]:

    disagreement  1 - 2 sum_pairs min(t, s) / (sum_T t + sum_S s), pairs matched at IoU >= 0.5 within a class;
                  t and s the scores of the teacher's and the student's boxes; needs a student
    uncertainty   mean over the teacher's boxes of -t log2 t - (1 - t) log2 (1 - t): most for scores near 0.5
    rarity        max over the teacher's boxes of t sqrt(f_min / f_c), f_c the sum of scores of class c in the
                  store, f_min that of the rarest class seen

An image without boxes has 0 for each part that speaks of boxes it does not have.

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
    """What an image would teach.

    Attributes:
        disagreement: None where no student was asked.
        uncertainty, rarity: see the module.
    """

    disagreement: float | None
    uncertainty: float
    rarity: float

    @property
    def score(self) -> float:
        """Mean of the parts that are known."""
        parts = [self.uncertainty, self.rarity, *([] if self.disagreement is None else [self.disagreement])]
        return sum(parts) / len(parts)


@dataclass(frozen=True, slots=True)
class Ranked:
    """An image in the order of its worth.

    Attributes:
        index: position among the images handed in.
        worth: what it would teach.
        reason: `CHOSEN`, or why it was left out.
        like: index of the chosen image that it looks like; None: it looks like none, or was not compared.
    """

    index: int
    worth: AcquisitionScore
    reason: str
    like: int | None = None


def acquisition_scores(
    said: Sequence[Detections], classes: int, differs: Sequence[float] | None = None
) -> list[AcquisitionScore]:
    """Measure images.

    Args:
        said: what the teacher said of each of N images.
        classes: K of the teacher.
        differs: `disagreement` about each; None: no student was asked.
    """
    weights = class_rarity(said, classes)
    found = []
    for position, one in enumerate(said):
        rare = float((one.scores * weights[one.labels]).max()) if len(one) else 0.0
        found.append(AcquisitionScore(None if differs is None else differs[position], uncertainty(one.scores), rare))
    return found


def disagreement(teacher: Detections, student: Detections) -> float:
    """Return 1 less the overlap of two answers about an image, see the module; 0 where both are silent."""
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
    sure = scores.astype(np.float64).clip(1e-9, 1 - 1e-9)
    return float((-sure * np.log2(sure) - (1 - sure) * np.log2(1 - sure)).mean())


def class_rarity(said: Sequence[Detections], classes: int) -> npt.NDArray[np.float64]:
    """Return (K,) sqrt(f_min / f_c); 0 for a class that was never seen."""
    seen = np.zeros(classes)
    for one in said:
        seen += np.bincount(one.labels, weights=one.scores, minlength=classes)
    there = seen > 0
    weights = np.zeros(classes)
    if there.any():
        weights[there] = np.sqrt(seen[there].min() / seen[there])
    return weights


def picture_hash(gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the difference hash of (H, W, 1) pixels: 64 bits as (8,) uint8."""
    return np.packbits(difference_hash(gray, _HASH_SIDE))


def choose(
    found: Sequence[AcquisitionScore], names: Sequence[str], hashes: npt.NDArray[np.uint8], budget: int
) -> list[Ranked]:
    """Take the best images up to a budget, but none that looks like one already taken.

    Args:
        found: worth of each of N images.
        names: of the images; decide between equals.
        hashes: (N, 8) from `picture_hash`; two images are alike where they differ in `NEAR_BITS` bits or fewer.
        budget: images to take.

    Returns:
        All images, best first.
    """
    order = sorted(range(len(found)), key=lambda index: (-found[index].score, names[index]))
    bits = np.unpackbits(hashes, axis=1).astype(np.bool_)
    taken_bits = np.zeros((min(budget, len(found)), bits.shape[1]), np.bool_)
    taken: list[int] = []
    ranked = []
    for index in order:
        if len(taken) == budget:
            ranked.append(Ranked(index, found[index], BEYOND))
            continue
        near = np.flatnonzero(hamming_distances(taken_bits[: len(taken)], bits[index : index + 1]) <= NEAR_BITS)
        if len(near):
            like = taken[int(near[0])]
            ranked.append(Ranked(index, found[index], f"looks like {names[like]}", like))
            continue
        taken_bits[len(taken)] = bits[index]
        taken.append(index)
        ranked.append(Ranked(index, found[index], CHOSEN))
    return ranked
