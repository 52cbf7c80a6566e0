"""Which images of a folder are worth a label or a place in training: `kd-vision data select`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kd_vision.core.console import ProgressBar
from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_text
from kd_vision.core.predictions import Detections, PredictOptions, keep_top_class
from kd_vision.data.dataset import DetectionData, records_of
from kd_vision.data.loader import eval_batches
from kd_vision.detectors.base import Predictor
from kd_vision.evaluation.runner import predict_all
from kd_vision.knowledge.ranking import CHOSEN, Ranked, acquisition_scores, choose, disagreement, picture_hash
from kd_vision.knowledge.store import Store, read_store
from kd_vision.pipeline.models import best_device, load_model
from kd_vision.runtime.images import list_images, read_image
from kd_vision.teachers.frozen import DEFAULT_TEACHER_POSTPROCESS
from kd_vision.teachers.offline import attach

_BATCH = 16


@dataclass(frozen=True, slots=True)
class SelectResult:
    """What was chosen.

    Attributes:
        out: the list, one path a line relative to the folder; a descriptor takes it as ``unlabelled: {images:
            FOLDER, list: FILE}``.
        table: CSV of every image with its scores and the reason it was left out.
        chosen: how many.
        alike: left out because they look like a chosen one.
        images: in all.
    """

    out: Path
    table: Path
    chosen: int
    alike: int
    images: int


def select(
    store: Path | str,
    images: Path | str,
    budget: int,
    out: Path | str,
    student: Path | str | None = None,
    image_size: int | None = None,
    trust: bool = False,
    quiet: bool = True,
) -> SelectResult:
    """Rank images by what they would teach, and list the best; see `knowledge.ranking` for the formula.

    Args:
        store: the teacher's word on the images.
        images: their folder.
        budget: how many to choose.
        out: the list; the table goes beside it with the suffix ``.csv``.
        student: model whose answers are compared with the teacher's.
        image_size: the student's input side; None: as trained or exported.
        trust: allow a pickle outside the allow-list.
        quiet: no progress bars.

    Raises:
        RequestError: an image is not in the store or cannot be read, student and teacher share no class, or
            there is nothing to choose.
    """
    folder, target = Path(images), Path(out)
    if budget < 1:
        raise RequestError(f"--budget: {budget} is too few; give 1 or more")
    if target.suffix == ".csv":
        raise RequestError(f"--out: {target} is the name of the table; give one that ends in .txt")
    known = read_store(Path(store))
    paths = list_images(folder)
    if not paths:
        raise RequestError(f"{folder}: holds no images")
    data = attach(DetectionData(folder.name, known.classes, (), records_of(paths, folder)), known)
    said = [_claims(image.knowledge) for image in data.images if image.knowledge is not None]
    differs = None
    if student is not None:
        model = load_model(Path(student), image_size, trust, best_device())
        other_answers = _answers(model.predictor, model.image_size, data, known, quiet)
        comparable = _shared(said, model.predictor.spec.classes, known.classes)
        differs = [disagreement(one, other) for one, other in zip(comparable, other_answers, strict=True)]
    found = acquisition_scores(said, len(known.classes), differs)
    names = [image.file_name for image in data.images]
    ranked = choose(found, names, _hashes(paths, quiet), budget)
    return _written(ranked, names, target)


def _answers(predictor: Predictor, image_size: int, data: DetectionData, store: Store, quiet: bool) -> list[Detections]:
    """Ask the student; answer in the teacher's classes."""
    own = predictor.spec.classes
    target = np.array([store.classes.index(name) if name in store.classes else -1 for name in own])
    if not (target >= 0).any():
        raise RequestError(
            f"--student: {predictor.spec.name} and the teacher of {store.path} share no class name "
            f"({', '.join(own[:5])}; {', '.join(store.classes[:5])})"
        )
    bare = replace(data, images=tuple(replace(image, knowledge=None) for image in data.images))
    batches = eval_batches(bare, image_size, _BATCH, predictor.spec.input_channels)
    with ProgressBar("ask the student", quiet=quiet) as bar:
        found = predict_all(predictor, batches, _as_asked(store), lambda done: bar.step(done, len(data)))
    answers = []
    for image in data.images:
        one = keep_top_class(found[image.image_id])  # as what is stored is read
        one = one.take(target[one.labels] >= 0)
        answers.append(Detections(one.boxes_xyxy, one.scores, target[one.labels]))
    return answers


def _as_asked(store: Store) -> PredictOptions:
    """Return the thresholds that the teacher was asked with."""
    asked, usual = store.manifest.options, DEFAULT_TEACHER_POSTPROCESS
    return PredictOptions(
        float(asked.get("score_threshold") or usual.score_threshold),
        float(asked.get("nms_iou") or usual.nms_iou),
        int(asked.get("max_boxes") or usual.max_detections),
    )


def _claims(said: Detections) -> Detections:
    """Leave out boxes that claim nothing."""
    return said if said.ignore is None else said.take(~said.ignore)


def _shared(said: Sequence[Detections], student: tuple[str, ...], teacher: tuple[str, ...]) -> list[Detections]:
    """Leave out boxes of classes that the student does not know: they say nothing about it."""
    shared = np.array([name in student for name in teacher])
    return [one.take(shared[one.labels]) for one in said]


def _hashes(paths: Sequence[Path], quiet: bool) -> npt.NDArray[np.uint8]:
    found = []
    with ThreadPoolExecutor() as threads, ProgressBar("compare images", quiet=quiet) as bar:
        for bits in threads.map(lambda path: picture_hash(read_image(path, 1)), paths):
            found.append(bits)
            bar.step(len(found), len(paths))
    return np.stack(found)


def _written(ranked: Sequence[Ranked], names: Sequence[str], out: Path) -> SelectResult:
    table = out.with_suffix(".csv")
    chosen = sorted(names[one.index] for one in ranked if one.reason == CHOSEN)
    write_text(out, "".join(f"{name}\n" for name in chosen))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "file", "score", "disagreement", "uncertainty", "rarity", "verdict"])
    for rank, one in enumerate(ranked, start=1):
        differs = "" if one.worth.disagreement is None else f"{one.worth.disagreement:.6f}"
        parts = (f"{one.worth.score:.6f}", differs, f"{one.worth.uncertainty:.6f}", f"{one.worth.rarity:.6f}")
        writer.writerow([rank, names[one.index], *parts, one.reason])
    write_text(table, text.getvalue())
    alike = sum(one.like is not None for one in ranked)
    return SelectResult(out, table, len(chosen), alike, len(ranked))
