"""Evaluates any model on a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kd_vision.config.schema import EvaluateConfig
from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_json
from kd_vision.core.predictions import Detections
from kd_vision.core.progress import ProgressFactory, log_progress, no_progress
from kd_vision.data.coco_results import to_coco_results
from kd_vision.data.dataset import DetectionData, load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.loader import eval_batches
from kd_vision.detectors.base import PredictOptions, Predictor
from kd_vision.evaluation.coco import evaluate_detections, load_backend
from kd_vision.evaluation.metrics import Metrics
from kd_vision.evaluation.runner import predict_all
from kd_vision.pipeline.models import chosen_device, load_model


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        metrics: the COCO numbers.
        detections: boxes by image id, in pixels of the original image.
        data: the split.
        image_size: input side.
    """

    metrics: Metrics
    detections: dict[int, Detections]
    data: DetectionData
    image_size: int


def evaluate(
    model: Path | str,
    data: Path | str,
    split: str = "val",
    image_size: int | None = None,
    json_out: Path | None = None,
    predictions_out: Path | None = None,
    options: EvaluateConfig = EvaluateConfig(),
    trust: bool = False,
    progress: ProgressFactory = log_progress,
    device: str | None = None,
) -> EvaluationResult:
    """Evaluate a model with the COCO metrics.

    Args:
        model: run directory, ``.ckpt``, ``.pt``, ``.onnx`` or predictions ``.json``.
        data: data descriptor.
        split: name of the split.
        image_size: input side; None: as trained or exported.
        json_out: file for the numbers.
        predictions_out: file for the boxes, in COCO's result format.
        options: backend and batch size.
        trust: allow a pickle outside the allow-list.
        progress: receives the progress.
        device: of a torch model; None: a GPU where there is one.

    Raises:
        RequestError: model, data and split do not fit.
    """
    device = chosen_device(device)
    load_backend(options.backend)
    truth = load_split(load_descriptor(Path(data)), split)
    loaded = load_model(Path(model), image_size, trust, device, truth)
    check_classes(loaded.predictor, truth, str(model))
    detections = predict_split(loaded.predictor, truth, loaded.image_size, options, progress)
    metrics = evaluate_detections(truth, detections, options.backend)
    if json_out is not None:
        write_json(json_out, metrics.to_json())
    if predictions_out is not None:
        write_json(predictions_out, to_coco_results(truth, detections))
    return EvaluationResult(metrics, detections, truth, loaded.image_size)


def predict_split(
    predictor: Predictor,
    truth: DetectionData,
    image_size: int,
    options: EvaluateConfig = EvaluateConfig(),
    progress: ProgressFactory = log_progress,
) -> dict[int, Detections]:
    """Predict every image of a split.

    Raises:
        RequestError: the input side does not fit the model.
    """
    predictor.spec.refuse_wrong_size(image_size, "image size")
    batches = eval_batches(truth, image_size, options.batch_size, predictor.spec.input_channels)
    total = len(truth.images)
    with progress(f"predict {truth.name}") as bar:
        return predict_all(predictor, batches, PredictOptions(), lambda done: bar.step(done, total))


def measure(
    predictor: Predictor,
    truth: DetectionData,
    image_size: int,
    options: EvaluateConfig = EvaluateConfig(),
    progress: ProgressFactory = no_progress,
) -> Metrics:
    """Return the COCO numbers of a predictor on a split."""
    return evaluate_detections(truth, predict_split(predictor, truth, image_size, options, progress), options.backend)


def check_classes(predictor: Predictor, truth: DetectionData, model: str) -> None:
    """Refuse a model whose classes are not those of the data.

    Raises:
        RequestError: naming the first difference.
    """
    classes, wanted = predictor.spec.classes, truth.classes
    if classes == wanted:
        return
    if len(classes) != len(wanted):
        raise RequestError(
            f"{model}: has {len(classes)} classes, the data {truth.name} has {len(wanted)}; evaluate it on "
            f"the data it was trained for, or give the descriptor 'classes:' in the model's order"
        )
    index = next(i for i, (a, b) in enumerate(zip(classes, wanted, strict=True)) if a != b)
    raise RequestError(
        f"{model}: class {index} is '{classes[index]}', in the data {truth.name} it is '{wanted[index]}'; give "
        f"the descriptor 'classes: [{', '.join(classes)}]'"
    )
