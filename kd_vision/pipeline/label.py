"""Stores a teacher's predictions on images: `kd-vision label`."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig, TeacherConfig
from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import KDVisionError, RequestError, suggest
from kd_vision.core.label_map import LabelMap, build_label_map
from kd_vision.core.predictions import Detections
from kd_vision.core.progress import Progress, ProgressFactory, log_progress
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.dataset import DetectionData, ImageRecord, records_of, without_labels
from kd_vision.data.loader import eval_batches
from kd_vision.detectors.base import PredictOptions, Predictor
from kd_vision.evaluation.runner import predict_batch
from kd_vision.knowledge.dataset import PseudoLabelThresholds, WrittenDataset, refuse_dataset, write_dataset
from kd_vision.knowledge.manifest import Option, TeacherNote
from kd_vision.knowledge.store import Store, read_store
from kd_vision.knowledge.writer import SHARD_SIZE, StoreWriter, refuse_full_disk
from kd_vision.pipeline.data import UNLABELLED, RunData, worker_count
from kd_vision.pipeline.models import best_device, wrong_device
from kd_vision.pipeline.teachers import teacher_fingerprint
from kd_vision.runtime.images import list_images
from kd_vision.teachers.build import build_teacher
from kd_vision.teachers.ensemble import EnsembleConfig
from kd_vision.teachers.options import DEFAULT_TEACHER_POSTPROCESS

MAX_BOXES = 100
"""Stored boxes per image; less than an online teacher's limit, whose images may be mosaics of several."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """Settings of labelling.

    Attributes:
        score: boxes below are not stored.
        nms_iou: overlap above which the weaker box of a class is dropped (heads that need NMS).
        max_boxes: stored boxes per image, best first.
        top_k: stored classes per box, likeliest first.
        batch_size: images per forward pass.
        shard_size: images per file of the store; a killed process loses at most one file.
        workers: processes that load images; `auto`: number of cores minus one, at most 8.
        device: of a torch teacher; None: a GPU where there is one.
    """

    score: float = DEFAULT_TEACHER_POSTPROCESS.score_threshold
    nms_iou: float = DEFAULT_TEACHER_POSTPROCESS.nms_iou
    max_boxes: int = MAX_BOXES
    top_k: int = 5
    batch_size: int = 16
    shard_size: int = SHARD_SIZE
    workers: int | str = "auto"
    device: str | None = None

    def problems(self) -> list[str]:
        """Return one line for every mistake."""
        errors = []
        if not 0.0 < self.score < 1.0:
            errors.append(f"--score: {self.score:g} is not a threshold; give more than 0 and less than 1")
        for name in ("max_boxes", "top_k", "batch_size", "shard_size"):
            if getattr(self, name) < 1:
                errors.append(f"--{name.replace('_', '-')}: {getattr(self, name)} is too few; give 1 or more")
        return errors + wrong_device(self.device)

    def predict_options(self) -> PredictOptions:
        """Return the thresholds of the teacher's post-processing."""
        return PredictOptions(self.score, self.nms_iou, self.max_boxes)


@dataclass(frozen=True, slots=True)
class LabelResult:
    """Result of labelling.

    Attributes:
        store: the finished store.
        data: the labelled images.
        made: number of images labelled by this call, without those of an earlier one.
        seconds: time of labelling.
        boxes: number of boxes in the store by class.
        bytes: size of the store on disk.
        dataset: the data set written from the store; None without a request.
    """

    store: Store
    data: DetectionData
    made: int
    seconds: float
    boxes: dict[str, int]
    bytes: int
    dataset: WrittenDataset | None = None


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """Request to write the store as a data set too.

    Attributes:
        out: folder of the data set.
        thresholds: which boxes become labels.
    """

    out: Path
    thresholds: PseudoLabelThresholds = PseudoLabelThresholds()


def label(
    config: Path | str,
    out: Path | str,
    images: Path | str | None = None,
    splits: Sequence[str] = (),
    overrides: Sequence[str] = (),
    teacher: str | None = None,
    options: LabelOptions = LabelOptions(),
    dataset: DatasetRequest | None = None,
    progress: ProgressFactory = log_progress,
) -> LabelResult:
    """Store the predictions of a config's teacher on images, in the teacher's classes.

    A second call with the same arguments continues an interrupted one, and writes damaged shards again.

    Args:
        config: config with the teacher.
        out: folder of the store; new, empty, or with an unfinished store of the same arguments.
        images: folder of the images.
        splits: instead of `images`: splits of the config's data; `unlabelled` for its unlabelled images.
        overrides: of the config, ``key.path=value``.
        teacher: name of the teacher, where the config has several.
        options: of labelling.
        dataset: data set to write from the store; None: none.
        progress: receives the progress.

    Raises:
        RequestError: an argument is wrong, an image cannot be read, or `out` holds other files.
    """
    run, folder = load_config(Path(config), overrides), Path(out)
    chosen = choose_teacher(run, teacher)
    if errors := options.problems():
        raise RequestError(*errors)
    if dataset is not None:
        refuse_dataset(dataset.out, dataset.thresholds, options.score)
    source = RunData(run.data)
    data = _images(source, images, splits)
    needed = refuse_full_disk(folder, len(data))
    _log.info("%d images, about %.1f MB in %s", len(data), needed / 1e6, folder)
    predictor, image_size = _build_teacher(run, chosen, source, options.device)
    classes = predictor.spec.classes
    plan = None if dataset is None else _DatasetPlan.of(run, chosen, source, classes)
    note = TeacherNote(fingerprint=teacher_fingerprint(chosen), description=describe_teacher(chosen, predictor.spec))
    stored = stored_options(options, image_size)
    missing_classes = tuple(sorted(predictor.spec.missing_classes))
    writer = StoreWriter(folder, note, classes, stored, data.images, options.shard_size, missing_classes)
    if writer.kept:
        _log.info("%d of %d shards are finished already", writer.kept, writer.manifest.shard_count)
    start = time.monotonic()
    with progress(f"label {data.name}") as bar:
        made = fill(writer, predictor, image_size, options, bar)
    seconds = time.monotonic() - start
    store = read_store(folder)
    written = None
    if dataset is not None and plan is not None:
        written = plan.write(store, data, dataset)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return LabelResult(store, data, made, seconds, _counted(store), size, written)


@dataclass(frozen=True, slots=True)
class _DatasetPlan:
    """Label map and splits of a data set written from a store; made, and checked, before labelling."""

    labels: LabelMap
    truth: tuple[DetectionData, ...]

    @classmethod
    def of(cls, config: RunConfig, teacher: TeacherConfig, data: RunData, classes: tuple[str, ...]) -> _DatasetPlan:
        truth = tuple(data.split(split) for split in data.descriptor.splits)
        if not truth:
            raise RequestError(f"--as-dataset: {config.data} has no split, which would define the classes; add one")
        where = f"{config.source}: {teacher.name}.labels"
        return cls(build_label_map(classes, truth[0].classes, teacher.options.labels, where), truth)

    def write(self, store: Store, data: DetectionData, request: DatasetRequest) -> WrittenDataset:
        first = self.truth[0]
        named = replace(data, classes=first.classes, category_ids=first.category_ids)
        return write_dataset(store, named, self.labels, self.truth, request.out, request.thresholds)


def fill(
    writer: StoreWriter, predictor: Predictor, image_size: int, options: LabelOptions, bar: Progress | None = None
) -> int:
    """Predict every image that is missing in a store; return the number of these images.

    Images are loaded ahead in other processes and shards written behind in a thread, so that the predictor
    does not wait. Batches do not cross shards: predictions do not depend on where an earlier call stopped.

    Raises:
        RequestError: an image cannot be read; finished shards stay.
        KDVisionError: a shard cannot be written.
    """
    missing = writer.missing
    data = DetectionData("", (), (), tuple(image for shard in missing for image in writer.images(shard)))
    workers = worker_count(options.workers)
    channels = predictor.spec.input_channels
    batches = eval_batches(data, image_size, options.batch_size, channels, workers, writer.manifest.shard_size)
    predictions = _predictions(predictor, batches, options.predict_options(), len(data), bar)
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as thread:
        for shard in missing:
            detections = [next(predictions) for _ in writer.manifest.span(shard)]
            if written is not None:
                written.result()
            written = thread.submit(_write, writer, shard, detections)
        if written is not None:
            written.result()
    return len(data)


def _predictions(
    predictor: Predictor, batches: Iterator[ImageBatch], options: PredictOptions, total: int, bar: Progress | None
) -> Iterator[Detections]:
    done, start = 0, time.monotonic()
    for batch in batches:
        detections = predict_batch(predictor, batch, options)
        done += len(batch)
        if bar is not None:
            speed = done / max(time.monotonic() - start, 1e-9)
            bar.step(done, total, f"{speed:.1f} images/s, {(total - done) / speed:.0f} s left")
        yield from detections


def _write(writer: StoreWriter, shard: int, detections: Sequence[Detections]) -> None:
    try:
        writer.write(shard, detections)
    except OSError as error:
        raise KDVisionError(
            f"{writer.folder}: shard {shard} cannot be written ({error.strerror}); fix the cause and run the same "
            f"command again"
        ) from None


def choose_teacher(config: RunConfig, name: str | None, online: bool = False) -> TeacherConfig:
    """Return the config's only teacher, or that of `name`; it must be online.

    Args:
        config: the run.
        name: of the teacher.
        online: teachers that have predicted before are not counted: the config may name the store that is made.

    Raises:
        RequestError: there is none, there are several and no name, or it cannot be run.
    """
    named = {teacher.name: teacher for teacher in config.teachers if not (online and teacher.entry.offline)}
    if not named:
        raise RequestError(f"{config.source}: teacher: is missing; name one there, its predictions are stored")
    if name is None and len(named) > 1:
        raise RequestError(f"{config.source}: has {len(named)} teachers; give --teacher with one of {', '.join(named)}")
    if name is not None and name not in named:
        raise RequestError(f"--teacher: {config.source} has no teacher '{name}'{suggest(name, named)}")
    chosen = named[name] if name is not None else next(iter(named.values()))
    if not chosen.is_online:
        reason = "holds predictions already" if chosen.entry.offline else "is the student itself, which is untrained"
        raise RequestError(f"{config.source}: {chosen.name}: {reason}; name a model")
    return chosen


def _build_teacher(
    config: RunConfig, teacher: TeacherConfig, data: RunData, device: str | None
) -> tuple[Predictor, int]:
    """Build a teacher with its own classes, an ensemble with the data's; return it with its input size."""
    where = f"{config.source}: {teacher.name}"
    # The label maps of an ensemble's members lead to the data's classes, the only ones they have in common.
    classes = data.classes if isinstance(teacher.config, EnsembleConfig) else None
    without_labels_map = teacher.options.model_copy(update={"labels": None})
    built = build_teacher(teacher.config, without_labels_map, classes, where, config.image_size)
    built.to(device or best_device())
    # The source, because the frozen teacher drops ignored boxes, which the store keeps.
    return built.source, built.image_size or config.image_size


def describe_teacher(teacher: TeacherConfig, spec: DetectorSpec) -> str:
    """Return family, architecture and file of a teacher, for people."""
    parts = (spec.family, spec.name, teacher.weights.name if teacher.weights else "")
    return " ".join(dict.fromkeys(part for part in parts if part))


def stored_options(options: LabelOptions, image_size: int) -> dict[str, Option]:
    """Return the settings that the stored predictions depend on, besides the teacher."""
    return {
        "image_size": image_size,
        "score_threshold": options.score,
        "nms_iou": options.nms_iou,
        "max_boxes": options.max_boxes,
        "top_k": options.top_k,
    }


def _images(data: RunData, images: Path | str | None, splits: Sequence[str]) -> DetectionData:
    """Return the images to label, sorted by name."""
    if (images is None) == (not splits):
        raise RequestError("which images? give either --images FOLDER or --split NAME")
    records: list[ImageRecord] = []
    if images is not None:
        folder = Path(images)
        records += records_of(list_images(folder), folder)
        if not records:
            raise RequestError(f"{folder}: holds no images")
    for split in dict.fromkeys(splits):
        records += _of_split(data, split, prefixed=len(set(splits)) > 1)
    name = Path(images).name if images is not None else " and ".join(splits)
    ordered = sorted(records, key=lambda image: image.file_name)
    return DetectionData(name, (), (), tuple(replace(image, image_id=n) for n, image in enumerate(ordered, start=1)))


def _of_split(data: RunData, split: str, prefixed: bool) -> Iterator[ImageRecord]:
    part = data.unlabelled if split == UNLABELLED else data.split(split)
    for image in without_labels(part).images:
        yield replace(image, file_name=f"{split}/{image.file_name}") if prefixed else image


def _counted(store: Store) -> dict[str, int]:
    counts: Counter[int] = Counter()
    for row in range(len(store)):
        counts.update(store.detections(row).labels.tolist())
    return {name: counts[label] for label, name in enumerate(store.classes)}
