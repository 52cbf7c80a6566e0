"""Kinds of errors, and how much AP50 each costs.

Every false positive is of one kind, by its largest IoU with a ground-truth box that is no crowd region:

- localisation: from 0.1 up to 0.5 with a box of its own class;
- classification: 0.5 or more with a box of another class;
- duplicate: 0.5 or more with a box of its own class that a better detection matches;
- background: below 0.1 with every box;
- both: the rest (from 0.1 up to 0.5 with a box of another class).

Where a false positive fits several, the first of this list counts. A box that no detection matches and that no
localisation or classification error would have found is missed.

The cost of a kind is by how much AP50 rises where its errors alone are mended: wrong classes and places are put right
(of two detections that then find one box the better one stays), duplicates, background and both are removed, and
missed boxes are no longer asked for. The costs do not add up to the distance from 100.

Source: Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, sections 2 and 3.
Detections in crowd regions are ignored, as by COCOeval.

Shapes: M detections, N ground-truth boxes, of one image or of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from kd_vision.core.boxes import box_iou
from kd_vision.core.predictions import IGNORED, Detections
from kd_vision.evaluation.matches import MATCH_IOU, ImageMatches, match_detections

if TYPE_CHECKING:
    from kd_vision.data.records import DetectionData, ImageRecord

ErrorKind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ERROR_KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)

FOREGROUND_IOU = MATCH_IOU
BACKGROUND_IOU = 0.1

_CORRECT = "correct"
_NO_BOX = -1
_RECALLS = np.linspace(0.0, 1.0, 101)

Indices = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
_Judged = tuple[npt.NDArray[np.float32], Indices, Names, Indices]


@dataclass(frozen=True, slots=True)
class ErrorCosts:
    """What the errors of a detector cost.

    Attributes:
        ap50: AP50 as it is, a fraction; 0 where no box is asked for.
        counts: number of errors by kind.
        costs: by how much AP50 rises where the errors of a kind are mended, a fraction, by kind.
    """

    ap50: float
    counts: Mapping[ErrorKind, int]
    costs: Mapping[ErrorKind, float]


def error_costs(data: DetectionData, detections: Mapping[int, Detections]) -> ErrorCosts:
    """Count the errors of each kind and compute what they cost.

    Args:
        data: ground truth.
        detections: boxes by image id, in pixels of the original image; an image without an entry has none.

    Raises:
        RequestError: see `evaluate_detections`.
    """
    matches = match_detections(data, detections)
    parts, first_box = [], 0
    for image in data.images:
        found = detections.get(image.image_id, Detections.empty())
        parts.append(_judge(image, found, matches[image.image_id], first_box))
        first_box += len(image.labels)
    case = _Case.join(parts, data)
    ap50 = case.ap50()
    missed = case.missed()
    counts: dict[ErrorKind, int] = {kind: int((case.kind == kind).sum()) for kind in ERROR_KINDS}
    counts["missed"] = int(missed.sum())
    mended: dict[ErrorKind, float] = {kind: case.mended(kind).ap50() for kind in ERROR_KINDS if kind != "missed"}
    mended["missed"] = replace(case, asked=case.asked & ~missed).ap50()
    return ErrorCosts(ap50, counts, {kind: mended[kind] - ap50 for kind in ERROR_KINDS})


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """The detections that count, and the boxes that are asked for.

    Attributes:
        score: (M,) of the detections.
        label: (M,) their classes.
        kind: (M,) "correct" or an `ErrorKind`.
        box: (M,) the box that a detection finds, or would find where its class or place were right; -1: none.
        box_label: (N,) classes of all boxes.
        asked: (N,) True for boxes that count.
        classes: number of classes.
    """

    score: npt.NDArray[np.float32]
    label: Indices
    kind: Names
    box: Indices
    box_label: Indices
    asked: npt.NDArray[np.bool_]
    classes: int

    @staticmethod
    def join(parts: Sequence[_Judged], data: DetectionData) -> _Case:
        scores, labels, kinds, boxes = ([part[column] for part in parts] for column in range(4))
        return _Case(
            np.concatenate([np.zeros(0, np.float32), *scores]),
            np.concatenate([np.zeros(0, np.int64), *labels]),
            np.concatenate([np.zeros(0, "<U14"), *kinds]),
            np.concatenate([np.zeros(0, np.int64), *boxes]),
            np.concatenate([np.zeros(0, np.int64), *(image.labels for image in data.images)]),
            np.concatenate([np.zeros(0, np.bool_), *(~image.crowd for image in data.images)]),
            len(data.classes),
        )

    def missed(self) -> npt.NDArray[np.bool_]:
        """Return the (N,) boxes that are asked for and that no detection finds or nearly finds."""
        missed: npt.NDArray[np.bool_] = self.asked.copy()
        near = np.isin(self.kind, (_CORRECT, "localisation", "classification"))
        missed[self.box[near]] = False
        return missed

    def mended(self, kind: ErrorKind) -> _Case:
        """Return the case without the errors of a kind of false positives."""
        wrong = self.kind == kind
        if kind not in ("classification", "localisation"):
            return self._take(~wrong)
        kinds, labels = self.kind.copy(), self.label.copy()
        kinds[wrong], labels[wrong] = _CORRECT, self.box_label[self.box[wrong]]
        mended = replace(self, kind=kinds, label=labels)
        correct = np.flatnonzero(kinds == _CORRECT)
        best_first = correct[np.argsort(-self.score[correct], kind="stable")]
        _, kept = np.unique(self.box[best_first], return_index=True)
        stays = kinds != _CORRECT
        stays[best_first[kept]] = True
        return mended._take(stays)

    def ap50(self) -> float:
        """Return the mean over classes of average precision, as COCOeval interpolates it."""
        order = np.argsort(-self.score, kind="stable")
        labels, correct = self.label[order], self.kind[order] == _CORRECT
        boxes = np.bincount(self.box_label[self.asked], minlength=self.classes)
        values = [_average_precision(correct[labels == label], boxes[label]) for label in np.flatnonzero(boxes)]
        return float(np.mean(values)) if values else 0.0

    def _take(self, chosen: npt.NDArray[np.bool_]) -> _Case:
        columns = {name: getattr(self, name)[chosen] for name in ("score", "label", "kind", "box")}
        return replace(self, **columns)


def _judge(image: ImageRecord, detections: Detections, matches: ImageMatches, first_box: int) -> _Judged:
    """Return score, label, kind and box (counted over all images) of an image's detections that count."""
    counts = matches.matched_idx != IGNORED
    found, matched = detections.take(counts), matches.matched_idx[counts]
    kind = np.full(len(found), "both", dtype="<U14")
    box = np.where(matches.tp[counts], matched, _NO_BOX)
    if len(image.labels):
        iou = np.where(image.crowd, 0.0, box_iou(found.boxes_xyxy, image.boxes_xyxy))
        same_class = found.labels[:, None] == image.labels
        same, other = np.where(same_class, iou, 0.0), np.where(same_class, 0.0, iou)
        near = (same.max(axis=1) >= BACKGROUND_IOU) & (same.max(axis=1) < FOREGROUND_IOU)
        wrong_class = ~near & (other.max(axis=1) >= FOREGROUND_IOU)
        kind[iou.max(axis=1) < BACKGROUND_IOU] = "background"
        kind[same.max(axis=1) >= FOREGROUND_IOU] = "duplicate"
        kind[wrong_class], kind[near] = "classification", "localisation"
        target = np.where(near, same.argmax(axis=1), other.argmax(axis=1))
        box = np.where((box == _NO_BOX) & (near | wrong_class), target, box)
    else:
        kind[:] = "background"
    kind[matches.tp[counts]] = _CORRECT
    return found.scores, found.labels, kind, np.where(box == _NO_BOX, _NO_BOX, box + first_box)


def _average_precision(correct: npt.NDArray[np.bool_], boxes: int) -> float:
    """Return the mean precision over 101 recall thresholds of one class's detections, best first."""
    found = np.cumsum(correct)
    if not len(found) or not found[-1]:
        return 0.0
    precision = found / np.arange(1, len(found) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(found / boxes, _RECALLS, side="left")
    return float(np.append(best, 0.0)[reached].mean())
