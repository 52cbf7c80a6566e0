"""What a run is trained and measured on: descriptor, splits, hashes, batches."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import RequestError
from kd_vision.data.dataset import DetectionData, load_split, load_unlabelled
from kd_vision.data.descriptor import DataDescriptor, load_descriptor
from kd_vision.data.loader import LoaderConfig, TrainStream
from kd_vision.data.records import split_labelled


def descriptor_of(config: RunConfig) -> DataDescriptor:
    """Read the data descriptor a config names."""
    return load_descriptor(config.data)


def final_split(config: RunConfig, descriptor: DataDescriptor) -> str:
    """The split that is reported: the one asked for, else `test`, else the validation split."""
    if config.evaluate.final_split is not None:
        return config.evaluate.final_split
    return "test" if "test" in descriptor.splits else config.evaluate.split


def training_data(config: RunConfig) -> tuple[DetectionData, DetectionData | None]:
    """Read the labelled training split, and the unlabelled images where the config uses them."""
    descriptor = descriptor_of(config)
    labelled, rest = split_labelled(load_split(descriptor, "train"), config.train.label_fraction)
    if not len(labelled) and not len(rest):
        raise RequestError(f"{config.data}: split 'train' holds no images; see `kd-vision data check`")
    if len(labelled) and not any(len(image.labels) for image in labelled.images):
        raise RequestError(
            f"{config.data}: split 'train' holds no box to learn from; see `kd-vision data check`, or set "
            f"train.label_fraction: 0 to learn from a teacher alone"
        )
    if config.train.unlabelled_ratio == 0 and len(labelled):
        return labelled, None
    if not config.is_taught:
        raise RequestError(
            f"{config.source}: train.unlabelled_ratio: unlabelled images teach nothing without a teacher; "
            f"add 'teacher:' or 'knowledge:', or set it to 0 (and train.label_fraction above 0)"
        )
    if descriptor.unlabelled is None and len(rest):
        return labelled, rest
    extra = load_unlabelled(descriptor)
    return labelled, replace(extra, images=rest.images + extra.images)


def data_hashes(labelled: DetectionData, unlabelled: DetectionData | None) -> list[str]:
    """Say what is trained on, without what a teacher said of it."""
    return [data.content_hash() for data in (labelled, unlabelled) if data is not None]


def build_stream(
    config: RunConfig,
    labelled: DetectionData,
    unlabelled: DetectionData | None,
    channels: int,
    rank: int = 0,
    world_size: int = 1,
    teacher_size: int | None = None,
) -> TrainStream:
    """Build the stream of training batches."""
    train = config.train
    loader = LoaderConfig(
        image_size=config.image_size,
        batch_size=train.batch_size,
        workers=worker_count(train.workers),
        seed=train.seed,
        channels=channels,
        unlabelled_ratio=train.unlabelled_ratio,
        cache=train.cache,
        teacher_size=teacher_size,
    )
    return TrainStream(labelled, unlabelled, config.augment, loader, train.epochs, rank, world_size)


def worker_count(asked: int | str) -> int:
    """Loader processes: as asked, or cores less one, at most 8."""
    if asked != "auto":
        return int(asked)
    return max(1, min(8, (os.cpu_count() or 2) - 1))


def output_directory(asked: Path | None, config: RunConfig) -> Path:
    """Where a run goes: as asked, or ``runs/<config name>``."""
    return asked if asked is not None else Path("runs") / config.source.stem
