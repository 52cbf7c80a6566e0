"""Runs a predictor over a loader and collects its detections by image id."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from kd_vision.core.batch import ImageBatch
from kd_vision.core.predictions import Detections
from kd_vision.detectors.base import PredictOptions, Predictor


def predict_batch(predictor: Predictor, batch: ImageBatch, options: PredictOptions) -> list[Detections]:
    """Predict a batch without gradients; return one result per image, in the batch's order.

    Raises:
        ValueError: the predictor does not return one result per image.
    """
    # Not inference_mode: heads cache anchors between calls, and training must be able to use them.
    with torch.no_grad():
        results = predictor.predict(batch, options)
    if len(results) != len(batch):
        raise ValueError(f"{predictor.spec.name} returned {len(results)} results for {len(batch)} images")
    return results


def predict_all(
    predictor: Predictor,
    batches: Iterable[ImageBatch],
    options: PredictOptions = PredictOptions(),
    progress: Callable[[int], None] | None = None,
) -> dict[int, Detections]:
    """Predict every image of `batches`, without gradients.

    Args:
        predictor: a model, an ONNX file, a predictions JSON.
        batches: images with their ids and letterboxes.
        options: thresholds; the defaults are those of COCO evaluation.
        progress: called after each batch with the number of images done so far.

    Returns:
        Detections by image id, boxes in pixels of the original image.

    Raises:
        ValueError: a batch has no image ids, an image comes twice, or the predictor does not return
            one result per image.
    """
    detections: dict[int, Detections] = {}
    for batch in batches:
        if len(batch.image_ids) != len(batch):
            raise ValueError(f"a batch of {len(batch)} images has {len(batch.image_ids)} image ids")
        results = predict_batch(predictor, batch, options)
        for image_id, result in zip(batch.image_ids, results, strict=True):
            if image_id in detections:
                raise ValueError(f"image {image_id} comes twice; evaluation needs every image once")
            detections[image_id] = result
        if progress is not None:
            progress(len(detections))
    return detections
