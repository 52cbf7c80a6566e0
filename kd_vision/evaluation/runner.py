"""Runs a predictor over a loader and gathers what it found, by image id."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from kd_vision.core.batch import ImageBatch
from kd_vision.core.predictions import Detections
from kd_vision.detectors.base import PredictOptions, Predictor


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
        ValueError: a batch has no image ids, an image comes twice, or the predictor does not give
            one answer per image.
    """
    found: dict[int, Detections] = {}
    for batch in batches:
        if len(batch.image_ids) != len(batch):
            raise ValueError(f"a batch of {len(batch)} images has {len(batch.image_ids)} image ids")
        # Not inference_mode: heads keep anchors between calls, which must stay usable in training.
        with torch.no_grad():
            answers = predictor.predict(batch, options)
        if len(answers) != len(batch):
            raise ValueError(f"{predictor.spec.name} gave {len(answers)} answers for {len(batch)} images")
        for image_id, answer in zip(batch.image_ids, answers, strict=True):
            if image_id in found:
                raise ValueError(f"image {image_id} comes twice; evaluation needs every image once")
            found[image_id] = answer
        if progress is not None:
            progress(len(found))
    return found
