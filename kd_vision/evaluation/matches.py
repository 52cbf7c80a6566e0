"""The matches that COCOeval makes between detections and ground truth at IoU 0.5.

They are those behind AP50, so that a picture of true and false positives cannot disagree with the numbers: within
a class, detections match in falling order of score; a detection that matches only a crowd region is ignored, and so
are those after the 100 with the highest scores of its class and image.

Shapes: M detections, N ground-truth boxes of one image.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kd_vision.core.predictions import IGNORED, UNMATCHED, Detections
from kd_vision.evaluation.coco import prepare_cocoeval

if TYPE_CHECKING:
    from kd_vision.data.records import DetectionData

Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

MATCH_IOU = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class ImageMatches:
    """True positives, false positives and false negatives of one image.

    Attributes:
        matched_idx: (M,) ground-truth box that each detection matches; `UNMATCHED`: a false positive; `IGNORED`: not
            counted (in a crowd region, below the score threshold, or beyond 100 of its class).
        crowd: (N,) ground-truth boxes that are crowd regions and never count as missed.
    """

    matched_idx: Indices
    crowd: Flags

    @property
    def tp(self) -> Flags:
        """(M,) true positives."""
        return self.matched_idx >= 0

    @property
    def fp(self) -> Flags:
        """(M,) false positives."""
        return np.equal(self.matched_idx, UNMATCHED)

    @property
    def fn(self) -> Flags:
        """(N,) false negatives: boxes that no detection matches."""
        missed = ~self.crowd
        missed[self.matched_idx[self.tp]] = False
        return missed

    @property
    def mistakes(self) -> int:
        """Number of false positives and false negatives."""
        return int(self.fp.sum()) + int(self.fn.sum())

    def __str__(self) -> str:
        return f"{self.tp.sum()} TP, {self.fp.sum()} FP, {self.fn.sum()} FN"


def match_detections(
    data: DetectionData, detections: Mapping[int, Detections], score_threshold: float = 0.0
) -> dict[int, ImageMatches]:
    """Match detections to ground truth with pycocotools.

    Args:
        data: ground truth.
        detections: boxes by image id, in pixels of the original image; an image without an entry has none.
        score_threshold: detections below are ignored. They change no other match, as detections match in falling
            order of score.

    Returns:
        An entry for every image of `data`.

    Raises:
        RequestError: see `evaluate_detections`.
    """
    kept = {image_id: np.flatnonzero(one.scores >= score_threshold) for image_id, one in detections.items()}
    confident = {image_id: one.take(kept[image_id]) for image_id, one in detections.items()}
    matched_of_kept = _matched_idx(data, confident)
    matches = {}
    for image in data.images:
        matched_idx = np.full(len(detections.get(image.image_id, ())), IGNORED, np.int64)
        if image.image_id in kept:
            matched_idx[kept[image.image_id]] = matched_of_kept[image.image_id]
        matches[image.image_id] = ImageMatches(matched_idx, image.crowd)
    return matches


def _matched_idx(data: DetectionData, detections: Mapping[int, Detections]) -> dict[int, Indices]:
    """Run COCOeval and return `ImageMatches.matched_idx` by image id."""
    # Annotations and results are numbered from 1 over all images: this is the id of an image's first one.
    first_box = dict(zip([image.image_id for image in data.images], _starts([len(i.labels) for i in data.images])))
    first_result = _starts([len(one) for one in detections.values()])
    matched_idx = np.full(sum(map(len, detections.values())), IGNORED, np.int64)
    for entry in _evaluated_images(data, detections):
        box_id = entry["dtMatches"][0].astype(np.int64)  # 0: no match
        counted = np.where(box_id == 0, UNMATCHED, box_id - first_box[entry["image_id"]])
        results = np.asarray(entry["dtIds"], np.int64) - 1
        matched_idx[results] = np.where(entry["dtIgnore"][0], IGNORED, counted)
    return dict(zip(detections, np.split(matched_idx, [start - 1 for start in first_result[1:]])))


def _evaluated_images(data: DetectionData, detections: Mapping[int, Detections]) -> list[dict[str, Any]]:
    """Return COCOeval's own record of each class and image with boxes, at `MATCH_IOU` and for all sizes."""
    evaluation = prepare_cocoeval(data, detections, "pycocotools")
    parameters = evaluation.params
    parameters.iouThrs = np.array([MATCH_IOU])
    parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], parameters.areaRngLbl[:1]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return [entry for entry in evaluation.evalImgs if entry is not None]


def _starts(counts: list[int]) -> list[int]:
    """Return the number of the first member of each group where all are numbered from 1."""
    return list(accumulate(counts[:-1], initial=1))
