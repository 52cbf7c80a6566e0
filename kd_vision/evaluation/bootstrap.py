"""AP of resampled images, and the intervals of paired differences that follow from it.

An image that is drawn w times counts as w images. Between two true positives precision only falls, and among the
copies of one it only rises, so AP depends on the counts after the last copy of each true positive alone: these are
cumulative sums of w, done for many draws at once. With each image once the numbers are those of COCOeval.

Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979).

Shapes: I images, B draws, K classes, R runs; D detections and P true positives of one class.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kd_vision.evaluation.match_table import AREAS, MatchTable
from kd_vision.evaluation.statistics import CONFIDENCE, Interval

Floats = npt.NDArray[np.floating]
Counts = npt.NDArray[np.float32]

DRAWS = 1000
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Columns of `DrawnAP.overall`, in the names of `metrics.json`."""

_RECALLS = np.linspace(0.0, 1.0, 101)  # COCOeval's; 0.07 of it is a rounding error above 7 / 100
_IOU_THRESHOLDS = 10
_IOU_75 = 5
_ROUNDING = 1e-9
_DRAWS_AT_ONCE = 128


@dataclass(frozen=True, slots=True, eq=False)
class DrawnAP:
    """AP of each draw, as fractions; NaN where no box of a class or size was drawn.

    Attributes:
        overall: (B, 6) the numbers of `NUMBERS`.
        per_class: (B, K) AP of each class.
    """

    overall: Floats
    per_class: Floats


def draw_images(images: int, draws: int = DRAWS, seed: int = 0) -> Counts:
    """Draw `images` images with replacement, `draws` times.

    Returns:
        (I, B) how often each image was drawn; the same for the same arguments, so that arms are paired.
    """
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(draws)], axis=1)
    return drawn.astype(np.float32)


def drawn_ap(table: MatchTable, drawn: Counts) -> DrawnAP:
    """Compute AP for each draw of images.

    Args:
        table: matches of one run.
        drawn: (I, B) how often each image counts, e.g. from `draw_images`; all ones give COCOeval's numbers.
    """
    classes = len(table.classes)
    precision = np.full((classes, len(AREAS), _IOU_THRESHOLDS, drawn.shape[1]), np.nan, np.float32)
    starts = range(0, drawn.shape[1], _DRAWS_AT_ONCE)
    parts = [np.ascontiguousarray(drawn[:, start : start + _DRAWS_AT_ONCE]) for start in starts]

    def fill(label: int) -> None:
        rows = _ClassRows.of(table, label)
        for start, part in zip(starts, parts, strict=True):
            precision[label, :, :, start : start + _DRAWS_AT_ONCE] = rows.average_precision(part)

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(fill, range(classes)))
    by_class = precision.mean(axis=2, dtype=np.float64)  # (K, areas, B)
    columns = [by_class[:, 0], precision[:, 0, 0], precision[:, 0, _IOU_75], *(by_class[:, a] for a in (1, 2, 3))]
    return DrawnAP(np.stack([_mean_defined(column) for column in columns], axis=1), by_class[:, 0].T)


def paired_bootstrap(after: Sequence[Floats], before: Sequence[Floats], differences: Sequence[float]) -> Interval:
    """Return the percentile interval of a mean difference over images and seeds.

    The R pairs of runs share the draws of images. Three seeds are too few to be drawn with replacement: the mean of
    three draws of three is between the lowest and the highest one, an interval that misses the truth in a quarter of
    all cases. So for the seeds each draw adds a draw from Student's t distribution of their mean, as `paired_interval`
    has it: without any spread over images the interval is that one, with one seed it is that of the images alone.

    Args:
        after: R arrays (B,), a number of each run for each draw of images.
        before: likewise, runs of the same seeds.
        differences: R differences on the images as they are.

    Raises:
        ValueError: there is no pair, or the numbers of pairs differ.
    """
    from scipy.special import stdtrit

    runs = len(differences)
    if not runs or len(after) != runs or len(before) != runs:
        raise ValueError(f"paired_bootstrap: {len(after)} runs after, {len(before)} before, {runs} differences")
    pairs = [one - other for one, other in zip(after, before, strict=True)]
    means: Floats = np.stack(pairs).mean(axis=0, dtype=np.float64)
    if runs > 1:
        ranks = np.random.default_rng(0).permutation(len(means))  # equally spaced quantiles, in random order
        scores = stdtrit(runs - 1, (ranks + 0.5) / len(means))
        means = means + scores * float(np.std(differences, ddof=1)) / np.sqrt(runs)
    defined = means[~np.isnan(means)]
    mean = float(np.mean(differences))
    if not len(defined):
        return Interval(mean, mean, mean)
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean, float(low), float(high))


@dataclass(frozen=True, slots=True, eq=False)
class _ClassRows:
    """The detections of one class, best first, and the images of its boxes by area."""

    table: MatchTable
    box_images: tuple[npt.NDArray[np.int32], ...]

    @staticmethod
    def of(table: MatchTable, label: int) -> _ClassRows:
        first, last = np.searchsorted(table.label, [label, label + 1])
        own = slice(int(first), int(last))
        boxes = table.box_label == label
        rows = MatchTable(
            table.classes,
            table.image_ids,
            *(getattr(table, name)[own] for name in ("image", "label", "score", "matched", "ignored")),
            *(getattr(table, name)[boxes] for name in ("box_image", "box_label", "box_ignored")),
        )
        return _ClassRows(rows, tuple(rows.box_image[~rows.box_ignored[:, area]] for area in range(len(AREAS))))

    def average_precision(self, drawn: Counts) -> Floats:
        """Return AP as (areas, IoU thresholds, B); NaN without a box."""
        result = np.full((len(AREAS), _IOU_THRESHOLDS, drawn.shape[1]), np.nan, np.float32)
        for area, box_images in enumerate(self.box_images):
            if len(box_images):
                boxes = drawn[box_images].sum(axis=0)
                result[area] = self._of_area(area, drawn, _thresholds_reached(boxes))
                result[area][:, boxes == 0] = np.nan
        return result

    def _of_area(self, area: int, drawn: Counts, reached: npt.NDArray[np.int16]) -> Floats:
        thresholds = range(_IOU_THRESHOLDS)
        right = np.stack([self.table.true_positives(area, threshold) for threshold in thresholds])
        counted = np.stack([self.table.counted(area, threshold) for threshold in thresholds])
        always = counted.all(axis=0)
        rows = np.flatnonzero(right.any(axis=0))
        weights = drawn[self.table.image[rows]]
        total_always = self._counts_up_to(rows, np.flatnonzero(always), drawn)
        result = np.zeros((_IOU_THRESHOLDS, drawn.shape[1]), np.float32)
        for threshold in thresholds:
            chosen = right[threshold, rows]
            if not chosen.any():
                continue
            total, sometimes = total_always[chosen], np.flatnonzero(counted[threshold] & ~always)
            if len(sometimes):
                total += self._counts_up_to(rows[chosen], sometimes, drawn)
            result[threshold] = _interpolated(np.cumsum(weights[chosen], axis=0), total, reached)
        return result

    def _counts_up_to(self, rows: npt.NDArray[np.intp], counted: npt.NDArray[np.intp], drawn: Counts) -> Counts:
        """Return (P, B): how many of the detections `counted` there are up to each of the P detections `rows`."""
        from scipy.sparse import csr_matrix

        bounds = np.searchsorted(counted, rows, side="right")
        images = self.table.image[counted[: bounds[-1]]] if len(bounds) else np.zeros(0, np.int32)
        shape = (len(rows), len(drawn))
        between = csr_matrix((np.ones(len(images), np.float32), images, np.concatenate([[0], bounds])), shape=shape)
        sums: Counts = np.cumsum(between @ drawn, axis=0)
        return sums


def _interpolated(found: Counts, total: Counts, reached: npt.NDArray[np.int16]) -> Floats:
    """Return the mean precision over the 101 recall thresholds.

    Args:
        found: (P, B) true positives up to each one.
        total: (P, B) detections that count up to each one.
        reached: from `_thresholds_reached`.
    """
    precision = found / np.maximum(total, 1.0)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    thresholds = np.take_along_axis(reached, found.astype(np.intp), axis=0)
    new = np.diff(thresholds, axis=0, prepend=np.zeros((1, thresholds.shape[1]), np.int16))
    sums: Floats = np.einsum("pb,pb->b", best, new.astype(np.float32))
    sums /= len(_RECALLS)
    return sums


def _thresholds_reached(boxes: Counts) -> npt.NDArray[np.int16]:
    """Return how many recall thresholds are reached with n boxes found, as (boxes + 1, B).

    COCOeval compares ``n / boxes`` with the thresholds in floating point, and so does this.

    Args:
        boxes: (B,) boxes of each draw.
    """
    every = np.maximum(boxes.astype(np.float64), 1.0)
    needed = np.ceil(_RECALLS[:, None] * every - _ROUNDING)  # (101, B)
    needed += needed / every < _RECALLS[:, None]
    most = int(every.max())
    steps = np.zeros((most + 2, len(boxes)), np.int16)
    np.add.at(steps, (np.minimum(needed, most + 1).astype(np.intp), np.arange(len(boxes))), 1)
    return np.cumsum(steps, axis=0, dtype=np.int16)


def _mean_defined(by_class: Floats) -> Floats:
    """Return the (B,) means over the classes, without those that are NaN; NaN where all are."""
    defined = ~np.isnan(by_class)
    count = defined.sum(axis=0)
    total = np.where(defined, by_class, 0.0).sum(axis=0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
