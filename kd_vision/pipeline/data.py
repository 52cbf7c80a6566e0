"""The data of a run: descriptor, splits and hashes, each read once."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import RequestError
from kd_vision.data.dataset import DetectionData, load_split, load_unlabelled
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.loader import LoaderConfig, TrainStream
from kd_vision.data.records import split_labelled
from kd_vision.pipeline.dense_stores import open_replay

UNLABELLED = "unlabelled"


class RunData:
    """A data set; each split is parsed once, on first use.

    Args:
        path: of the data descriptor.

    Raises:
        RequestError: the descriptor is missing or wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = load_descriptor(path)
        self._splits: dict[str, DetectionData] = {}
        self._hashes: dict[str, str] = {}
        self._labelled: DetectionData | None = None

    def trained_on(self, labelled: DetectionData) -> RunData:
        """Return the same data with `labelled` as the training images, and no unlabelled ones."""
        other = copy.copy(self)
        other._labelled = labelled
        return other

    def split(self, name: str) -> DetectionData:
        """Return a split; see `load_split`."""
        if name not in self._splits:
            self._splits[name] = load_split(self.descriptor, name)
        return self._splits[name]

    @cached_property
    def unlabelled(self) -> DetectionData:
        """The images without labels; see `load_unlabelled`."""
        return load_unlabelled(self.descriptor)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order, those of the training split."""
        return self.split("train").classes

    def final_split(self, config: RunConfig) -> DetectionData:
        """Return the split of the final numbers: `final_split`, else `test`, else the validation split."""
        default = "test" if "test" in self.descriptor.splits else config.evaluate.split
        return self.split(config.evaluate.final_split or default)

    def content_hash(self, name: str) -> str:
        """Return the hash of a split, see `DetectionData.content_hash`."""
        if name not in self._hashes:
            self._hashes[name] = self.split(name).content_hash()
        return self._hashes[name]

    def training(self, config: RunConfig) -> tuple[DetectionData, DetectionData | None]:
        """Return the labelled training images, and the unlabelled ones where the config uses them.

        Raises:
            RequestError: there are no images, no boxes, or only unlabelled images without a teacher.
        """
        if self._labelled is not None:
            return self._labelled, None
        labelled, rest = split_labelled(self.split("train"), config.train.label_fraction)
        if not len(labelled) and not len(rest):
            raise RequestError(f"{self.path}: split 'train' holds no images; see `kd-vision data check`")
        if len(labelled) and not any(len(image.labels) for image in labelled.images):
            raise RequestError(
                f"{self.path}: split 'train' holds no box to learn from; see `kd-vision data check`, or set "
                f"train.label_fraction: 0 to learn only from a teacher"
            )
        if config.train.unlabelled_ratio == 0 and len(labelled):
            return labelled, None
        if not config.is_distilled:
            raise RequestError(
                f"{config.source}: train.unlabelled_ratio: unlabelled images have no effect without a teacher; "
                f"add 'teacher:' or 'knowledge:', or set it to 0 (and train.label_fraction above 0)"
            )
        if self.descriptor.unlabelled is None and len(rest):
            return labelled, rest
        return labelled, replace(self.unlabelled, images=rest.images + self.unlabelled.images)

    def training_hashes(self, config: RunConfig) -> list[str]:
        """Return the hashes of the training data, without pseudo labels."""
        return hashes_of(self.training(config))


def hashes_of(parts: Sequence[DetectionData | None]) -> list[str]:
    """Return the hash of each part; see `DetectionData.content_hash`."""
    return [data.content_hash() for data in parts if data is not None]


def build_stream(
    config: RunConfig,
    labelled: DetectionData,
    unlabelled: DetectionData | None,
    channels: int,
    rank: int = 0,
    world_size: int = 1,
    teacher_size: int | None = None,
) -> TrainStream:
    """Build the stream of training batches, with the dense labels of the config's stores of such.

    Raises:
        RequestError: there is nothing to train on, or a store was made for another stream.
    """
    loader = loader_config(config, channels, teacher_size)
    replay = open_replay(config, (labelled, unlabelled), loader, world_size)
    return TrainStream(labelled, unlabelled, config.augment, loader, config.train.epochs, rank, world_size, replay)


def loader_config(config: RunConfig, channels: int, teacher_size: int | None) -> LoaderConfig:
    """Return the settings of the loader of a run's training batches.

    Args:
        config: the run.
        channels: of the images.
        teacher_size: see `LoaderConfig`.
    """
    train = config.train
    return LoaderConfig(
        image_size=config.image_size,
        batch_size=train.batch_size,
        workers=worker_count(train.workers),
        seed=train.seed,
        channels=channels,
        unlabelled_ratio=train.unlabelled_ratio,
        cache=train.cache,
        teacher_size=teacher_size,
    )


def worker_count(workers: int | str) -> int:
    """Return the number of loader processes; for `auto` that of cores minus one, at most 8."""
    if workers != "auto":
        return int(workers)
    return max(1, min(8, (os.cpu_count() or 2) - 1))


def output_directory(out: Path | None, config: RunConfig) -> Path:
    """Return the directory of a run: `out`, else ``runs/<config name>``."""
    return out if out is not None else Path("runs") / config.source.stem
