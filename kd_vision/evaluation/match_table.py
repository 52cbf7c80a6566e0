"""Every match that COCOeval made on a split, kept so that AP can be computed again for any choice of its images.

Matching is done once, by pycocotools; AP of resampled images needs only what is kept here (`evaluation.bootstrap`).

Shapes: I images, M detections, N ground-truth boxes, A = 4 areas (all, small, medium, large), T = 10 IoU thresholds.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_bytes
from kd_vision.core.predictions import Detections
from kd_vision.evaluation.coco import Backend, evaluate_detections, metrics_of, prepare_cocoeval, run_cocoeval
from kd_vision.evaluation.metrics import Metrics

if TYPE_CHECKING:
    from kd_vision.data.records import DetectionData

Flags = npt.NDArray[np.bool_]

AREAS = ("all", "small", "medium", "large")
_MAX_BOXES = 100
_ARRAYS = ("image_ids", "image", "label", "score", "matched", "ignored", "box_image", "box_label", "box_ignored")


@dataclass(frozen=True, slots=True, eq=False)
class MatchTable:
    """Detections and ground-truth boxes of a split with what COCOeval decided about them.

    Detections are sorted by class, then by falling score, in the order in which COCOeval accumulates them; of each
    image and class the 100 with the highest scores are kept.

    Attributes:
        classes: names in label order.
        image_ids: (I,) int64, ascending.
        image: (M,) int32, position in `image_ids`.
        label: (M,) int32, class.
        score: (M,) float32.
        matched: (M, A) uint16; bit t is set where the detection matches a box at the t-th IoU threshold.
        ignored: (M, A) uint16; bit t is set where it is not counted: it matches a crowd region or a box of another
            area, or matches nothing and is itself of another area.
        box_image: (N,) int32, position in `image_ids`.
        box_label: (N,) int32.
        box_ignored: (N, A) bool, boxes that are crowd regions or of another area.
    """

    classes: tuple[str, ...]
    image_ids: npt.NDArray[np.int64]
    image: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    score: npt.NDArray[np.float32]
    matched: npt.NDArray[np.uint16]
    ignored: npt.NDArray[np.uint16]
    box_image: npt.NDArray[np.int32]
    box_label: npt.NDArray[np.int32]
    box_ignored: Flags

    def true_positives(self, area: int, threshold: int) -> Flags:
        """Return the (M,) detections that count as correct at one area and IoU threshold."""
        return _bit(self.matched[:, area] & ~self.ignored[:, area], threshold)

    def counted(self, area: int, threshold: int) -> Flags:
        """Return the (M,) detections that count, right or wrong."""
        return ~_bit(self.ignored[:, area], threshold)

    def mistakes(self, score_threshold: float) -> npt.NDArray[np.int64]:
        """Return the (I,) false positives and missed boxes of each image at IoU 0.5, all sizes.

        Args:
            score_threshold: detections below are left out. They change no other match, as detections match in falling
                order of score.
        """
        confident = self.score >= score_threshold
        right = confident & self.true_positives(0, 0)
        wrong = confident & self.counted(0, 0) & ~right
        images = len(self.image_ids)
        boxes = np.bincount(self.box_image[~self.box_ignored[:, 0]], minlength=images)
        found, false = (np.bincount(self.image[chosen], minlength=images) for chosen in (right, wrong))
        return np.asarray(boxes - found + false, np.int64)

    def matched_count_threshold(self) -> float:
        """Return the score above which there are as many detections as ground-truth boxes, all sizes.

        Scores of two detectors mean different things: at one fixed score the one with higher scores reports more boxes.
        At as many detections as boxes, a choice that looks at no match, both are asked for the same.
        """
        boxes = int((~self.box_ignored[:, 0]).sum())
        scores = np.sort(self.score[self.counted(0, 0)])[::-1]
        return float(scores[min(boxes, len(scores)) - 1]) if boxes and len(scores) else 1.0

    def box_counts(self) -> dict[str, int]:
        """Return the number of ground-truth boxes that count, by area."""
        return {area: int((~self.box_ignored[:, number]).sum()) for number, area in enumerate(AREAS)}

    def fits(self, data: DetectionData) -> bool:
        """Say whether the images, classes and boxes are those of `data`."""
        images = np.sort(np.array([image.image_id for image in data.images], np.int64))
        labels = np.sort(np.concatenate([image.labels for image in data.images] or [np.zeros(0, np.int64)]))
        return (
            self.classes == data.classes
            and np.array_equal(self.image_ids, images)
            and np.array_equal(np.sort(self.box_label), labels)
        )

    def save(self, path: Path) -> None:
        """Write a compressed ``.npz`` whole or not at all."""
        content = io.BytesIO()
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(content, classes=np.array(self.classes, np.str_), **arrays)
        write_bytes(path, content.getvalue())

    @staticmethod
    def load(path: Path) -> MatchTable:
        """Read what `save` wrote.

        Raises:
            RequestError: the file cannot be read, or is something else.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                classes = tuple(str(name) for name in arrays["classes"])
                return MatchTable(classes, **{name: arrays[name] for name in _ARRAYS})
        except OSError as error:
            raise RequestError(f"{path}: cannot be read ({error.strerror or error})") from None
        except (BadZipFile, EOFError, KeyError, ValueError):
            raise RequestError(f"{path}: is no file of matches; delete it, and it is made again") from None


def match_table(data: DetectionData, detections: Mapping[int, Detections]) -> MatchTable:
    """Match detections to ground truth with pycocotools and keep the result.

    Args:
        data: ground truth.
        detections: boxes by image id, in pixels of the original image; an image without an entry has none.

    Raises:
        RequestError: see `evaluate_detections`.
    """
    evaluation = prepare_cocoeval(data, detections, "pycocotools")
    evaluation.params.maxDets = [_MAX_BOXES]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return table_of(data, evaluation)


def evaluate_with_matches(
    data: DetectionData, detections: Mapping[int, Detections], backend: Backend = "pycocotools"
) -> tuple[Metrics, MatchTable]:
    """Return the COCO numbers and the matches behind them; see `evaluate_detections` and `match_table`.

    pycocotools matches once for both; with another backend the matches are made by pycocotools besides.
    """
    if backend != "pycocotools":
        return evaluate_detections(data, detections, backend), match_table(data, detections)
    evaluation = run_cocoeval(data, detections, backend)
    return metrics_of(data, evaluation), table_of(data, evaluation)


def table_of(data: DetectionData, evaluation: Any) -> MatchTable:
    """Return the matches of a pycocotools COCOeval that has run ``evaluate`` on all areas and thresholds."""
    position = {image_id: number for number, image_id in enumerate(evaluation.params.imgIds)}
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    by_area = _entries_by_area(evaluation)
    first = by_area[0]  # the entries of the other areas list the same detections in the same order
    counts = [len(entry["dtIds"]) for entry in first]
    image = np.repeat([position[entry["image_id"]] for entry in first], counts).astype(np.int32)
    label = np.repeat([label_of[entry["category_id"]] for entry in first], counts).astype(np.int32)
    score = _join([np.asarray(entry["dtScores"], np.float64) for entry in first], np.float64)
    matched = np.stack([_bits(entries, "dtMatches") for entries in by_area], axis=1)
    ignored = np.stack([_bits(entries, "dtIgnore") for entries in by_area], axis=1)
    order = np.lexsort((image, -score, label))
    box_image, box_label, box_ignored = _boxes(data, by_area, position)
    return MatchTable(
        data.classes,
        np.array(evaluation.params.imgIds, np.int64),
        image[order],
        label[order],
        score[order].astype(np.float32),
        matched[order],
        ignored[order],
        box_image,
        box_label,
        box_ignored,
    )


def _entries_by_area(evaluation: Any) -> list[list[dict[str, Any]]]:
    """Return COCOeval's records (one for each class and image with boxes), those of each area in one list."""
    images = len(evaluation.params.imgIds)
    blocks = [evaluation.evalImgs[start : start + images] for start in range(0, len(evaluation.evalImgs), images)]
    areas = len(AREAS)
    return [
        [entry for block in blocks[area::areas] for entry in block if entry is not None] for area in range(areas)
    ]  # classes are the outer order, areas the inner one


def _bits(entries: Sequence[Mapping[str, Any]], key: str) -> npt.NDArray[np.uint16]:
    """Return a (M,) number for each detection whose bit t is the flag at the t-th threshold."""
    parts = []
    for entry in entries:
        flags = np.asarray(entry[key]) != 0  # (T, detections); 0: no match
        parts.append((flags.T.astype(np.uint16) << np.arange(len(flags), dtype=np.uint16)).sum(axis=1))
    return _join(parts, np.uint16)


def _boxes(
    data: DetectionData, by_area: Sequence[Sequence[Mapping[str, Any]]], position: Mapping[int, int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Flags]:
    """Return image, label and ignored areas of every ground-truth box, in the order of `data`."""
    counts = [len(image.labels) for image in data.images]
    image = np.repeat([position[one.image_id] for one in data.images], counts).astype(np.int32)
    label = _join([one.labels for one in data.images], np.int32)
    ignored = np.zeros((len(label), len(AREAS)), np.bool_)
    for area, entries in enumerate(by_area):
        ids = _join([np.asarray(entry["gtIds"], np.int64) for entry in entries], np.int64)
        ignored[ids - 1, area] = _join([np.asarray(entry["gtIgnore"]) != 0 for entry in entries], np.bool_)
    return image, label, ignored


def _bit(numbers: npt.NDArray[np.uint16], place: int) -> Flags:
    return np.asarray((numbers >> np.uint16(place)) & np.uint16(1), np.bool_)


def _join(parts: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
