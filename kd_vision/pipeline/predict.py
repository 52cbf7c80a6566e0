"""MODEL on pictures: boxes in a file, and copies with the boxes drawn."""

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
from kd_vision.pipeline.models import chosen_device, load_model
from kd_vision.report.drawing import draw_detections
from kd_vision.runtime.letterbox import letterbox_image
from kd_vision.runtime.media import Frame, FrameWriter, Source, open_source

_BATCH = 4


@dataclass(frozen=True, slots=True)
class PredictResult:
    """What was found.

    Attributes:
        predictions: the JSON file with the boxes.
        copies: annotated images, or the annotated video.
        frames: pictures seen.
        boxes: by class name, how many were found.
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

    ``predictions.json`` in `out` is a COCO results list. Image ids count pictures from 1 and
    category ids labels from 1; `file_name` (and `frame` of a video, from 0) and `category` say
    what they are.

    Args:
        model: run directory, ``.ckpt``, ``.pt`` or ``.onnx``.
        source: image, folder or video.
        out: folder for what is written.
        score: boxes below are left out.
        draw: write annotated copies too.
        image_size: input side; None: as trained or exported.
        trust: allow a pickle outside the allow-list.
        progress: how progress is shown.
        device: where a torch model runs; None: a GPU where there is one.

    Raises:
        RequestError: model or source is missing or of an unknown kind, an image cannot be read.
    """
    out = Path(out)
    _refuse_wrong_request(out, score)
    loaded = load_model(Path(model), image_size, trust, chosen_device(device))
    spec = loaded.predictor.spec
    pictures = open_source(Path(source), spec.input_channels)
    with ExitStack() as stack:
        writer = stack.enter_context(FrameWriter(pictures, out)) if draw else None
        bar = stack.enter_context(progress(f"predict {pictures.path.name}"))
        answers = predict_frames(loaded.predictor, pictures.frames(), loaded.image_size, score)
        seen, entries = _record(answers, pictures, spec.classes, writer, bar)
    path = out / "predictions.json"
    write_json(path, entries)
    counts = Counter(str(entry["category"]) for entry in entries)
    copies = tuple(writer.written) if writer is not None else ()
    return PredictResult(path, copies, seen, {name: counts[name] for name in spec.classes})


def _refuse_wrong_request(out: Path, score: float) -> None:
    problems = []
    if not 0.0 <= score < 1.0:
        problems.append(f"--score: {score:g} is not a score; give 0 or more, and less than 1")
    if out.exists() and not out.is_dir():
        problems.append(f"--out: {out} is a file; give a folder")
    if problems:
        raise RequestError(*problems)


def _record(
    answers: Iterable[tuple[Frame, Detections]],
    source: Source,
    classes: Sequence[str],
    writer: FrameWriter | None,
    bar: Progress,
) -> tuple[int, list[dict[str, Any]]]:
    """Draw the answers as they come; return the number of frames and the entries of the JSON."""
    entries: list[dict[str, Any]] = []
    seen = 0
    for frame, found in answers:
        seen += 1
        entries += _entries(frame, found, classes, source)
        if writer is not None:
            writer.write(frame, draw_detections(frame.pixels, found, classes))
        bar.step(seen, max(source.count, seen))
    return seen, entries


def predict_frames(
    predictor: Predictor, frames: Iterable[Frame], image_size: int, score: float
) -> Iterator[tuple[Frame, Detections]]:
    """Yield each frame with its boxes, in pixels of the frame, in order.

    Args:
        predictor: gives boxes.
        frames: pictures of any size.
        image_size: input side S.
        score: boxes below are left out.
    """
    options = PredictOptions(score_threshold=score)
    waiting = iter(frames)
    while chunk := list(islice(waiting, _BATCH)):
        batch = frame_batch(chunk, image_size)
        with torch.no_grad():
            answers = predictor.predict(batch, options)
        yield from zip(chunk, answers, strict=True)


def frame_batch(frames: Sequence[Frame], image_size: int) -> ImageBatch:
    """Letterbox frames into one batch without targets, as evaluation does.

    Args:
        frames: pictures of any size.
        image_size: input side S.

    Returns:
        (B, C, S, S) uint8 with a letterbox per image; image ids are frame indices plus one.
    """
    boxed = [letterbox_image(frame.pixels, image_size) for frame in frames]
    images = torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image, _ in boxed]))
    ids = [frame.index + 1 for frame in frames]
    return ImageBatch.of_images(images, ids, [letterbox for _, letterbox in boxed])


def _entries(frame: Frame, found: Detections, classes: Sequence[str], source: Source) -> Iterator[dict[str, Any]]:
    where: dict[str, Any] = {"file_name": frame.name}
    if source.is_video:
        where["frame"] = frame.index
    rows = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    for box, score, label in rows:
        yield {**result_entry(frame.index + 1, label + 1, box, score), "category": classes[label], **where}
