"""Runs a model on images or a video: writes the boxes to a file, and copies with the boxes drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_json
from kd_vision.core.predictions import Detections
from kd_vision.core.progress import Progress, ProgressFactory, log_progress
from kd_vision.data.coco_results import result_entry
from kd_vision.detectors.base import PredictOptions, Predictor
from kd_vision.evaluation.runner import predict_batch
from kd_vision.pipeline.models import chosen_device, load_model
from kd_vision.report.drawing import draw_detections
from kd_vision.runtime.letterbox import letterbox_image
from kd_vision.runtime.media import Frame, FrameWriter, Source, open_source

_BATCH = 4


@dataclass(frozen=True, slots=True)
class PredictResult:
    """Result of a prediction.

    Attributes:
        predictions: the JSON file with the boxes.
        copies: annotated images, or the annotated video.
        frames: number of images or frames.
        boxes: number of boxes by class name.
    """

    predictions: Path
    copies: tuple[Path, ...]
    frames: int
    boxes: dict[str, int]


def run_predict(
    model: Path | str,
    source: Path | str,
    out: Path | str = Path("predictions"),
    score: float = 0.25,
    draw: bool = True,
    image_size: int | None = None,
    trust: bool = False,
    progress: ProgressFactory = log_progress,
    device: str | None = None,
) -> PredictResult:
    """Find boxes on an image, a folder of images or a video.

    ``predictions.json`` in `out` is a COCO results list. Image ids count frames from 1 and category ids labels from
    1; each entry also has `file_name`, `category` and, of a video, `frame` (from 0).

    Args:
        model: run directory, ``.ckpt``, ``.pt`` or ``.onnx``.
        source: image, folder or video.
        out: folder of the results.
        score: boxes below are left out.
        draw: write annotated copies too.
        image_size: input side; None: as trained or exported.
        trust: allow a pickle outside the allow-list.
        progress: receives the progress.
        device: of a torch model; None: a GPU where there is one.

    Raises:
        RequestError: model or source is missing or of an unknown kind, an image cannot be read.
    """
    out = Path(out)
    _refuse_wrong_request(out, score)
    loaded = load_model(Path(model), image_size, trust, chosen_device(device))
    spec = loaded.predictor.spec
    media = open_source(Path(source), spec.input_channels)
    with ExitStack() as stack:
        writer = stack.enter_context(FrameWriter(media, out)) if draw else None
        bar = stack.enter_context(progress(f"predict {media.path.name}"))
        predictions = predict_frames(loaded.predictor, media.frames(), loaded.image_size, score)
        frames, entries = _record(predictions, media, spec.classes, writer, bar)
    path = out / "predictions.json"
    write_json(path, entries)
    counts = Counter(str(entry["category"]) for entry in entries)
    copies = tuple(writer.written) if writer is not None else ()
    return PredictResult(path, copies, frames, {name: counts[name] for name in spec.classes})


def _refuse_wrong_request(out: Path, score: float) -> None:
    errors = []
    if not 0.0 <= score < 1.0:
        errors.append(f"--score: {score:g} is not a score; give 0 or more, and less than 1")
    if out.exists() and not out.is_dir():
        errors.append(f"--out: {out} is a file; give a folder")
    if errors:
        raise RequestError(*errors)


def _record(
    predictions: Iterable[tuple[Frame, Detections]],
    source: Source,
    classes: Sequence[str],
    writer: FrameWriter | None,
    bar: Progress,
) -> tuple[int, list[dict[str, Any]]]:
    """Draw each prediction; return the number of frames and the entries of the JSON."""
    entries: list[dict[str, Any]] = []
    count = 0
    for count, (frame, detections) in enumerate(predictions, start=1):
        entries += _entries(frame, detections, classes, source)
        if writer is not None:
            writer.write(frame, draw_detections(frame.pixels, detections, classes))
        bar.step(count, max(source.count, count))
    return count, entries


def predict_frames(
    predictor: Predictor, frames: Iterable[Frame], image_size: int, score: float
) -> Iterator[tuple[Frame, Detections]]:
    """Yield each frame with its boxes, in pixels of the frame, in order.

    Args:
        predictor: returns boxes.
        frames: of any size.
        image_size: input side S.
        score: boxes below are left out.
    """
    options = PredictOptions(score_threshold=score)
    remaining = iter(frames)
    while chunk := list(islice(remaining, _BATCH)):
        yield from zip(chunk, predict_batch(predictor, frame_batch(chunk, image_size), options), strict=True)


def frame_batch(frames: Sequence[Frame], image_size: int) -> ImageBatch:
    """Letterbox frames into one batch without targets, as evaluation does.

    Args:
        frames: of any size.
        image_size: input side S.

    Returns:
        (B, C, S, S) uint8 with a letterbox per image; image ids are frame indices plus one.
    """
    boxed = [letterbox_image(frame.pixels, image_size) for frame in frames]
    images = torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image, _ in boxed]))
    ids = [frame.index + 1 for frame in frames]
    return ImageBatch.of_images(images, ids, [letterbox for _, letterbox in boxed])


def _entries(frame: Frame, detections: Detections, classes: Sequence[str], source: Source) -> Iterator[dict[str, Any]]:
    origin: dict[str, Any] = {"file_name": frame.name}
    if source.is_video:
        origin["frame"] = frame.index
    arrays = (detections.boxes_xyxy, detections.scores, detections.labels)
    for box, score, label in zip(*(array.tolist() for array in arrays), strict=True):
        yield {**result_entry(frame.index + 1, label + 1, box, score), "category": classes[label], **origin}
