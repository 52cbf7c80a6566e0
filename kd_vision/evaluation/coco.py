"""COCO evaluation of detections in memory or on disk, with pycocotools or faster-coco-eval.

Both backends get the same annotations and results; neither prints.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.predictions import Detections
from kd_vision.data.coco_results import to_coco_results
from kd_vision.data.formats.coco import to_coco
from kd_vision.evaluation.metrics import ClassMetrics, Metrics, fraction_or_none

if TYPE_CHECKING:
    from kd_vision.data.records import DetectionData

Backend = Literal["pycocotools", "faster"]

__all__ = [
    "Backend",
    "ClassMetrics",
    "Metrics",
    "evaluate_detections",
    "load_backend",
    "prepare_cocoeval",
]

# Positions in COCOeval's arrays.
_IOU_50 = 0
_ALL_AREAS = 0
_MAX_100_BOXES = -1


def evaluate_detections(
    data: DetectionData,
    detections: Mapping[int, Detections],
    backend: Backend = "pycocotools",
) -> Metrics:
    """Compute the twelve COCO numbers and those of each class.

    Equal to calling ``COCOeval(..., "bbox")`` by hand on ``to_coco(data)`` and
    ``to_coco_results(data, detections)``. An image without an entry counts as one without boxes.

    Args:
        data: ground truth.
        detections: boxes by image id, in pixels of the original image.
        backend: "pycocotools", or "faster" for faster-coco-eval.

    Raises:
        RequestError: a detection is not finite, or names an image or label that the data does not
            have; an image has no labels; the backend is unknown or not installed.
    """
    return metrics_of(data, run_cocoeval(data, detections, backend))


def run_cocoeval(data: DetectionData, detections: Mapping[int, Detections], backend: Backend) -> Any:
    """Return a COCOeval object that has matched, accumulated and summarised.

    Raises:
        RequestError: see `evaluate_detections`.
    """
    evaluation = prepare_cocoeval(data, detections, backend)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def prepare_cocoeval(data: DetectionData, detections: Mapping[int, Detections], backend: Backend) -> Any:
    """Return a COCOeval object that holds ground truth and detections and has not run yet.

    Annotations and results have the ids 1, 2, ... in the order of `data` and `detections`.

    Raises:
        RequestError: see `evaluate_detections`.
    """
    unlabelled = sum(not image.labelled for image in data.images)
    if unlabelled:
        raise RequestError(f"'{data.name}': {unlabelled} images have no labels; evaluate on a labelled split")
    coco, evaluator = load_backend(backend)
    results = to_coco_results(data, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = _index(coco, to_coco(data))
        return evaluator(ground_truth, _load_results(coco, ground_truth, results), "bbox")


def load_backend(backend: str) -> tuple[Any, Any]:
    """Return the classes (COCO, COCOeval) of a backend.

    Raises:
        RequestError: the backend is unknown, or not installed.
    """
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    if backend == "faster":
        try:
            import faster_coco_eval as faster
        except ImportError:
            raise RequestError(
                "evaluation backend 'faster': the package faster-coco-eval is not installed; "
                "`pip install faster-coco-eval`, or use the backend 'pycocotools'"
            ) from None
        return faster.COCO, faster.COCOeval_faster
    raise RequestError(f"evaluation backend '{backend}' is unknown{suggest(backend, get_args(Backend))}")


def _index(coco: Any, content: Mapping[str, Any]) -> Any:
    indexed = coco()
    indexed.dataset = content
    indexed.createIndex()
    return indexed


def _load_results(coco: Any, ground_truth: Any, results: list[dict[str, Any]]) -> Any:
    if results:
        return ground_truth.loadRes(results)
    # loadRes reads the first result to tell boxes from masks, and fails without one.
    return _index(coco, {**ground_truth.dataset, "annotations": []})


def metrics_of(data: DetectionData, evaluation: Any) -> Metrics:
    """Return the numbers of a COCOeval object that has run."""
    numbers = [fraction_or_none(value) for value in evaluation.stats[:12]]
    return Metrics(
        ap=numbers[0],
        ap50=numbers[1],
        ap75=numbers[2],
        ap_small=numbers[3],
        ap_medium=numbers[4],
        ap_large=numbers[5],
        ar1=numbers[6],
        ar10=numbers[7],
        ar100=numbers[8],
        ar_small=numbers[9],
        ar_medium=numbers[10],
        ar_large=numbers[11],
        per_class=_per_class(data, evaluation),
        n_images=len(evaluation.params.imgIds),
    )


def _per_class(data: DetectionData, evaluation: Any) -> dict[str, ClassMetrics]:
    box_counts = Counter(
        annotation["category_id"]
        for annotation in evaluation.cocoGt.dataset["annotations"]
        if not annotation.get("iscrowd", 0)
    )
    # (IoU thresholds, recall thresholds, categories, areas, box limits)
    precision = np.asarray(evaluation.eval["precision"])
    columns = {int(category): column for column, category in enumerate(evaluation.params.catIds)}
    per_class = {}
    for name, category in zip(data.classes, data.category_ids, strict=True):
        of_class = precision[:, :, columns[category], _ALL_AREAS, _MAX_100_BOXES]
        per_class[name] = ClassMetrics(
            ap=_mean_defined(of_class), ap50=_mean_defined(of_class[_IOU_50]), boxes=box_counts[category]
        )
    return per_class


def _mean_defined(values: np.ndarray[Any, Any]) -> float | None:
    """Return the mean without the -1 that COCOeval writes for a class without ground truth."""
    defined = values[values > -1]
    return fraction_or_none(float(defined.mean())) if defined.size else None
