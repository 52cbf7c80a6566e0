"""Systematic errors of a teacher, seen by comparing its boxes with the labels.

AP alone does not tell a weak teacher from a capable one that is wired wrongly: a head whose classes are in another
order, or boxes in the pixels of another frame, still reach a point or two by chance. Two comparisons find them:

- Classes. Boxes are matched to labels by place alone; the table of labelled and said classes is compared with its best
  permutation (linear assignment). A teacher that merely confuses classes, or says the most frequent one everywhere,
  gains nothing from a permutation; one whose classes are in another order does. Classes that agree with the labels no
  more often than by chance (Cohen's kappa) are shuffled without any order.
- Boxes. The most frequent offset between boxes and labels, and the median ratio of their sizes there, are undone in all
  boxes. Where that lets the teacher find many more labels, its boxes are systematically shifted or scaled.

Shapes: M boxes, N labels of one image, K classes, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter
from scipy.optimize import linear_sum_assignment

from kd_vision.core.boxes import box_iou, cxcywh_to_xyxy, greedy_match
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData

Floats = npt.NDArray[np.float64]

MATCH_IOU = 0.5
_BOXES_PER_LABEL = 2
"""The best boxes of the split that are compared, per label: less certain ones lie on labels by chance."""
_FEWEST = 5
"""Matched labels of a class, or of all, below which nothing is said."""
_CLASS_GAIN, _DEVIATIONS = 0.3, 3.0
"""Least rise of the mean agreement over the exchanged classes, and its least size in standard deviations."""
_FREQUENT = 0.1
"""Part of the frequency of a class in the fit of a permutation."""
_FEWEST_FOR_CHANCE, _KAPPA, _ONE_CLASS = 30, 0.1, 0.9
"""Matched boxes from which agreement is compared with chance, Cohen's kappa below which it is chance, and the share of
boxes of one class from which a teacher says one class only, which is weak and not shuffled."""
_SHIFT, _RATIO = 0.1, 1.2
"""Offset in box sizes, and ratio of sides, from which they are named."""
_NEAR, _BINS = 1.5, 20
"""Largest offset of centres that is looked at, in sizes of the labelled box; bins of a side of its histogram."""
_AT_PEAK = 0.25
"""Offsets this close to the most frequent one count as that one."""
_RECALL_GAIN = 0.2
"""Least rise of the share of found labels when offset and ratio are undone."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """The confident boxes of an image, best first, and its labels without crowd regions."""

    boxes: Floats
    said: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    truth: Floats
    labels: npt.NDArray[np.int64]


def systematic_errors(
    truth: DetectionData, detections: Mapping[int, Detections], missing_classes: frozenset[str] = frozenset()
) -> str:
    """Return what is systematically wrong with a teacher's boxes; empty: nothing is.

    Args:
        truth: the labels.
        detections: the teacher's boxes by image id, in pixels of the image, in the classes of `truth`.
        missing_classes: those that the teacher never learned; what it says of them is no error.
    """
    pairs = list(_confident(truth, detections))
    found = (class_errors(pairs, truth.classes, missing_classes), shifted_boxes(pairs))
    return "; ".join(text for text in found if text)


def _confident(truth: DetectionData, detections: Mapping[int, Detections]) -> Iterator[_Pair]:
    """Yield the images that have labels, each with those of its boxes that are among the best of the split."""
    labels = sum(int((~image.crowd).sum()) for image in truth.images)
    scores = np.concatenate([one.scores for one in detections.values()] or [np.zeros(0, np.float32)])
    limit = np.sort(scores)[-min(len(scores), _BOXES_PER_LABEL * labels)] if len(scores) and labels else 0.0
    for image in truth.images:
        kept = ~image.crowd
        boxes = detections.get(image.image_id, Detections.empty())
        boxes = boxes.take(boxes.scores >= limit)
        if kept.any():
            corners = boxes.boxes_xyxy.astype(np.float64), image.boxes_xyxy[kept].astype(np.float64)
            yield _Pair(corners[0], boxes.labels, boxes.scores, corners[1], image.labels[kept])


def class_errors(pairs: Sequence[_Pair], classes: tuple[str, ...], missing_classes: frozenset[str]) -> str:
    """Return a line that says how classes are exchanged or shuffled; empty where they are not."""
    counts = np.zeros((len(classes), len(classes)))
    for pair in pairs:
        iou = box_iou(pair.truth, pair.boxes)
        matched = greedy_match(iou.T, iou.T >= MATCH_IOU, pair.scores)
        np.add.at(counts, (pair.labels[matched[:, 1]], pair.said[matched[:, 0]]), 1)
    counts[[label for label, name in enumerate(classes) if name in missing_classes]] = 0
    return _permuted(counts, classes) or _shuffled(counts)


def _permuted(counts: Floats, classes: tuple[str, ...]) -> str:
    """Compare (K, K) counts of labelled and said classes with their best permutation."""
    totals = counts.sum(axis=1)
    shares = np.divide(counts, totals[:, None], out=np.zeros_like(counts), where=totals[:, None] >= _FEWEST)
    # Of permutations that fit about equally well, the one that leaves frequent classes in place.
    fit = shares + _FREQUENT * counts / max(counts.sum(), 1)
    column_of = linear_sum_assignment(fit, maximize=True)[1].tolist()
    examples = []
    for cycle in _cycles(column_of):
        moved = [(row, column_of[row]) for row in cycle if totals[row] >= _FEWEST]
        other, own = sum(counts[r, c] for r, c in moved), sum(counts[r, r] for r, _ in moved)
        gain = sum(shares[r, c] - shares[r, r] for r, c in moved)
        if gain >= _CLASS_GAIN * max(len(moved), 1) and other - own >= _DEVIATIONS * np.sqrt(other + own) > 0:
            worse = [(r, c) for r, c in moved if shares[r, c] > shares[r, r]]
            examples += [
                f"{100 * shares[r, c]:.0f} % of its boxes on '{classes[r]}' are '{classes[c]}'" for r, c in worse
            ]
    more = f" and {len(examples) - 3} more" if len(examples) > 3 else ""
    return f"classes look permuted: {', '.join(examples[:3])}{more}" if examples else ""


def _cycles(column_of: Sequence[int]) -> Iterator[list[int]]:
    """Yield the cycles of a permutation, without its fixed points."""
    left = {row for row, column in enumerate(column_of) if row != column}
    while left:
        cycle = [min(left)]
        while (following := column_of[cycle[-1]]) != cycle[0]:
            cycle.append(following)
        left -= set(cycle)
        yield cycle


def _shuffled(counts: Floats) -> str:
    """Compare the agreement of (K, K) labelled and said classes with that by chance."""
    total = counts.sum()
    if total < _FEWEST_FOR_CHANCE or counts.sum(axis=0).max() >= _ONE_CLASS * total:
        return ""
    agreement = float(np.trace(counts) / total)
    chance = float(counts.sum(axis=0) @ counts.sum(axis=1) / total**2)
    if agreement >= chance + _KAPPA * (1 - chance):
        return ""
    expected = f"{100 * chance:.0f} % by chance"
    return f"classes look shuffled: {100 * agreement:.0f} % of its boxes have their label's class, {expected}"


def shifted_boxes(pairs: Sequence[_Pair]) -> str:
    """Return a line with the offset in pixels, or the ratio of sizes; empty where undoing them finds hardly more."""
    offsets = _most_frequent(np.concatenate([_offsets(pair) for pair in pairs] or [np.zeros((0, 6))]))
    if len(offsets) < _FEWEST:
        return ""
    across, down, width, height, right_px, down_px = np.median(offsets, axis=0).tolist()
    ratio = float(np.exp(width)), float(np.exp(height))
    before, after = _recall(pairs), _recall(pairs, (across, down), ratio)
    if after < before + _RECALL_GAIN:
        return ""
    what = []
    if max(abs(across), abs(down)) > _SHIFT:
        what.append(f"shifted by {right_px:+.0f} px across and {down_px:+.0f} px down")
    if max(abs(width), abs(height)) > np.log(_RATIO):
        what.append(f"{ratio[0]:.2g} times as wide and {ratio[1]:.2g} times as high as the labels")
    if not what:
        return ""
    return (
        f"boxes look {' and '.join(what)} (medians): {100 * before:.0f} % of the labels are found at IoU {MATCH_IOU}, "
        f"{100 * after:.0f} % if that is undone"
    )


def _offsets(pair: _Pair) -> Floats:
    """Return, (P, 6), offset in label sizes, log ratio of sides, and offset in pixels of every label and near box."""
    truth, boxes = _centres(pair.truth), _centres(pair.boxes)
    difference = boxes[None, :, :2] - truth[:, None, :2]  # (N, M, 2)
    relative = difference / truth[:, None, 2:]
    rows, columns = np.nonzero((np.abs(relative) < _NEAR).all(axis=-1))
    ratio = np.log(boxes[columns, 2:] / truth[rows, 2:])
    return np.concatenate([relative[rows, columns], ratio, difference[rows, columns]], axis=1)


def _most_frequent(offsets: Floats) -> Floats:
    """Return those of (P, 6) offsets that are close to the peak of their histogram.

    Neighbours in a dense scene have offsets all around; those of the boxes of the same objects agree.
    """
    edges = np.linspace(-_NEAR, _NEAR, _BINS + 1)
    counts, _, _ = np.histogram2d(offsets[:, 0], offsets[:, 1], bins=(edges, edges))
    peak = np.unravel_index(uniform_filter(counts, 3, mode="constant").argmax(), counts.shape)
    centre = (edges[:-1] + edges[1:])[list(peak)] / 2
    return offsets[(np.abs(offsets[:, :2] - centre) < _AT_PEAK).all(axis=1)]


def _recall(
    pairs: Sequence[_Pair], offset: tuple[float, float] = (0.0, 0.0), ratio: tuple[float, float] = (1.0, 1.0)
) -> float:
    """Return the share of labels, of any class, that a box finds once offset and ratio are undone."""
    found = total = 0
    for pair in pairs:
        boxes = _centres(pair.boxes)
        boxes[:, 2:] /= ratio
        boxes[:, :2] -= np.array(offset) * boxes[:, 2:]  # the size of the label, as the ratio is undone
        iou = box_iou(pair.truth, cxcywh_to_xyxy(boxes))
        found += len(greedy_match(iou, iou >= MATCH_IOU))
        total += len(pair.truth)
    return found / max(total, 1)


def _centres(boxes_xyxy: Floats) -> Floats:
    """Return centre and size of corner boxes, (N, 4)."""
    size = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 1e-3)
    return np.concatenate([boxes_xyxy[:, :2] + size / 2, size], axis=1)
