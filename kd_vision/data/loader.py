"""Batches for training and evaluation.

Every training batch is a function of (seed, step), whatever the number of workers and the step at which a run starts,
so that a resumed run gets the same batches as an uninterrupted one.

Shapes: B images, C channels, H W pixels, M boxes, S the side of the network's input.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Union

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.data.augment_config import AugmentConfig
from kd_vision.data.box_table import BoxTable, PlacedBoxes, tabulate
from kd_vision.data.pseudo_labels import PseudoLabelTable
from kd_vision.data.records import DetectionData, ImageRecord, without_labels
from kd_vision.data.transforms import Augmenter, Sample
from kd_vision.runtime.images import read_image
from kd_vision.runtime.letterbox import letterbox_image, resize

_CACHE_SHARE = 0.25
_PREFETCH = 4
# Keys that keep the random streams of order and of augmentation apart.
_ORDER, _SAMPLE = 0, 1

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LoaderConfig:
    """Settings of the loader.

    Attributes:
        image_size: side S of the network's input.
        batch_size: labelled images per batch and process.
        workers: processes that prepare batches; 0: in the caller's process.
        seed: of order and augmentation.
        channels: 1, 3 or 4.
        unlabelled_ratio: unlabelled images per labelled one; `round(ratio * batch_size)` follow the labelled ones
            in every batch.
        cache: `ram` keeps decoded images, resized to S, in memory; `auto` does so where they fit into a quarter of
            the free memory. The batches are the same either way.
        teacher_size: side of the teacher's images, at least S: the student's are shrunk copies of them. Boxes are
            in pixels of the student's. None: S.

    Raises:
        RequestError: the teacher's images are smaller than the student's.
    """

    image_size: int
    batch_size: int
    workers: int = 0
    seed: int = 0
    channels: int = 3
    unlabelled_ratio: float = 0.0
    cache: Literal["auto", "ram", "none"] = "auto"
    teacher_size: int | None = None

    def __post_init__(self) -> None:
        if self.teacher_size is not None and self.teacher_size < self.image_size:
            raise RequestError(
                f"teacher_size: {self.teacher_size} is smaller than image_size {self.image_size}; it must be at least "
                f"as large"
            )

    @property
    def sample_size(self) -> int:
        """Side of the square samples: that of the teacher's images, else of the student's."""
        return self.teacher_size or self.image_size


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """One image of a batch before collation."""

    record: ImageRecord
    sample: Sample
    teacher_image: Pixels | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error of a worker process, returned because torch adds a traceback to the text of raised ones."""

    problems: tuple[str, ...]


class _Pool:
    """Labelled or unlabelled images with their boxes, the longer side resized to that of a sample."""

    def __init__(self, data: DetectionData, placed: PlacedBoxes, size: int, channels: int) -> None:
        self.data = data
        self._size = size
        self._channels = channels
        self._cache: list[Pixels] | None = None
        before = np.array([(image.width, image.height) for image in data.images], np.float64)
        after = np.array([_resized(image, size) for image in data.images], np.float64)
        self._boxes = placed.resized(after / before, after)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all images in memory."""
        sides = (_resized(image, self._size) for image in self.data.images)
        return sum(width * height for width, height in sides) * self._channels

    def fill_cache(self) -> None:
        """Decode every image, in threads, as decoding releases the GIL."""
        with ThreadPoolExecutor() as threads:
            self._cache = list(threads.map(self._read, range(len(self))))

    def load(self, index: int) -> Sample:
        """Return image `index` with its boxes."""
        image = self._read(index) if self._cache is None else self._cache[index]
        return Sample(image, *self._boxes.of(index))

    def _read(self, index: int) -> Pixels:
        record = self.data.images[index]
        return resize(_read_record(record, self._channels), *_resized(record, self._size))


class TrainStream:
    """Training batches of all epochs, from one loader with persistent workers."""

    def __init__(
        self,
        labelled: DetectionData,
        unlabelled: DetectionData | None,
        augment: AugmentConfig,
        config: LoaderConfig,
        epochs: int,
        rank: int = 0,
        world_size: int = 1,
        add_labels: Callable[[int, ImageBatch], ImageBatch] | None = None,
    ) -> None:
        """Prepare the images.

        Args:
            labelled: images with ground truth; may be empty where there are unlabelled ones, which then fill the
                batches.
            unlabelled: images without ground truth; any boxes they have are not used.
            augment: settings of augmentation.
            config: settings of the loader.
            epochs: of the whole run.
            rank: of this process.
            world_size: number of processes; each gets its share of every step.
            add_labels: returns the batch of a step with a teacher's stored dense labels; runs in the loader's
                processes. None: there are none.

        Raises:
            RequestError: there are no images, an image cannot be read, or a teacher has pseudo labels for only some
                of the images.
        """
        extra = None if unlabelled is None or len(unlabelled) == 0 else without_labels(unlabelled)
        if len(labelled) == 0 and extra is None:
            raise RequestError(f"split '{labelled.name}' holds no images; there is nothing to train on")
        self._config = config
        self._augment = augment
        self._epochs = epochs
        self._rank, self._world = rank, world_size
        self._add_labels = add_labels
        self._augmenter = Augmenter(augment, config.image_size, config.channels, config.teacher_size)
        main = labelled if extra is None or len(labelled) else extra
        if main is extra or config.unlabelled_ratio == 0:
            extra = None
        parts = (main,) if extra is None else (main, extra)
        images = [image for part in parts for image in part.images]
        self._table, placed = tabulate(images, _joined_pseudo_labels(parts))
        self._main = _Pool(main, placed.span(0, len(main)), config.sample_size, config.channels)
        self._extra: _Pool | None = None
        if extra is not None:
            self._extra = _Pool(extra, placed.span(len(main), len(images)), config.sample_size, config.channels)
        self._extra_count = round(config.unlabelled_ratio * config.batch_size) if self._extra else 0
        if self._extra and not self._extra_count:
            raise RequestError(
                f"train.unlabelled_ratio: {config.unlabelled_ratio:g} of a batch of {config.batch_size} is no whole "
                f"image; give {1 / config.batch_size:g} or more, or 0"
            )
        self.steps_per_epoch = math.ceil(len(main) / (config.batch_size * world_size))
        self._fill_caches()

    @property
    def total_steps(self) -> int:
        """Batches of all epochs."""
        return self._epochs * self.steps_per_epoch

    @property
    def total_images(self) -> int:
        """Images of all epochs, on this process."""
        share = math.ceil(len(self._main) / self._world)
        return self._epochs * share + self.total_steps * self._extra_count

    def batches(self, start_step: int = 0) -> Iterator[ImageBatch]:
        """Yield the batches from `start_step` to the end of the last epoch.

        Raises:
            RequestError: an image cannot be read.
        """
        return self.batches_of(range(start_step, self.total_steps))

    def batches_of(self, steps: Sequence[int]) -> Iterator[ImageBatch]:
        """Yield the batches of some steps.

        Raises:
            RequestError: an image cannot be read, or is another than the one that has stored dense labels.
        """
        return _run(_Steps(self.batch_at, steps), min(self._config.workers, len(steps)))

    def batch_at(self, step: int) -> ImageBatch:
        """Return the batch of one step, images uint8 (B, C, S, S)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        use_mosaic = self._uses_mosaic(epoch)
        made = [
            self._sample(self._main, 0, epoch, position, index, use_mosaic)
            for position, index in self._main_share(epoch, step_in_epoch)
        ]
        if self._extra is not None:
            made += [
                self._sample(self._extra, 1, turn, position, index, use_mosaic)
                for turn, position, index in self._extra_share(self._extra, step)
            ]
        batch = _collate(made, self._config.channels, self._table)
        return batch if self._add_labels is None else self._add_labels(step, batch)

    def _uses_mosaic(self, epoch: int) -> bool:
        last = self._epochs - self._augment.close_mosaic
        return last < 0 or epoch < last

    def _main_share(self, epoch: int, step_in_epoch: int) -> list[tuple[int, int]]:
        """Return (position, index) of this process' images of a step."""
        count = len(self._main)
        order = _order(self._config.seed, 0, epoch, count)
        at = step_in_epoch * self._config.batch_size * self._world
        whole = min(self._config.batch_size * self._world, count - at)
        # Every process must get the same number of images: the last step is filled up from the epoch's start.
        whole = math.ceil(whole / self._world) * self._world
        return [(place, int(order[place % count])) for place in range(at + self._rank, at + whole, self._world)]

    def _extra_share(self, pool: _Pool, step: int) -> list[tuple[int, int, int]]:
        """Return (turn, position, index) of this process' unlabelled images of a step."""
        first = (step * self._world + self._rank) * self._extra_count
        share = []
        for place in range(first, first + self._extra_count):
            turn, position = divmod(place, len(pool))
            order = _order(self._config.seed, 1, turn, len(pool))
            share.append((turn, position, int(order[position])))
        return share

    def _sample(self, pool: _Pool, kind: int, turn: int, position: int, index: int, use_mosaic: bool) -> _Made:
        rng = np.random.default_rng([self._config.seed, _SAMPLE, kind, turn, position])
        made = self._augmenter(pool.load, index, len(pool), rng, use_mosaic)
        return _Made(pool.data.images[index], made.sample, made.teacher_image)

    def _fill_caches(self) -> None:
        pools = [pool for pool in (self._main, self._extra) if pool is not None]
        needed = sum(pool.cache_bytes for pool in pools)
        wanted = self._config.cache == "ram"
        if wanted or (self._config.cache == "auto" and needed <= _CACHE_SHARE * free_memory()):
            for pool in pools:
                pool.fill_cache()


def eval_batches(
    data: DetectionData, image_size: int, batch_size: int, channels: int, workers: int = 0, group: int | None = None
) -> Iterator[ImageBatch]:
    """Yield the images of a split in order, letterboxed to a square.

    Targets are in input pixels, without crowd boxes.

    Args:
        data: the split.
        image_size: side S of the square.
        batch_size: images per batch.
        channels: 1, 3 or 4.
        workers: processes that prepare batches.
        group: number of images in a group; no batch has images of two groups. None: all images are one group.

    Raises:
        RequestError: an image cannot be read.
    """
    if not len(data):
        return iter(())
    group = group or len(data)
    spans = [
        range(at, min(at + batch_size, first + group, len(data)))
        for first in range(0, len(data), group)
        for at in range(first, min(first + group, len(data)), batch_size)
    ]
    maker = _EvalMaker(data, image_size, spans, channels)
    steps = range(len(spans))
    return _run(_Steps(maker, steps), min(workers, len(steps)))


def free_memory() -> int:
    """Return the free memory in bytes: of the machine, or of its container if less."""
    limits = [_machine_memory()]
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        limits.append(limit - used)
    except (OSError, ValueError):
        pass  # No container, or one without a limit.
    return max(min(limits), 0)


def _machine_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass  # Not Linux: half of the installed memory is a conservative estimate.
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 0


class _EvalMaker:
    """Makes the evaluation batch of a step."""

    def __init__(self, data: DetectionData, image_size: int, spans: list[range], channels: int) -> None:
        self._data = data
        self._image_size = image_size
        self._spans = spans
        self._channels = channels
        self._table, self._placed = tabulate(data.images, {})

    def __call__(self, step: int) -> ImageBatch:
        span = self._spans[step]
        records = self._data.images[span.start : span.stop]
        made, letterboxes = [], []
        for index, record in zip(span, records, strict=True):
            image, letterbox = letterbox_image(_read_record(record, self._channels), self._image_size)
            boxes, rows = self._placed.of(index)
            made.append(_Made(record, Sample(image, letterbox.apply(boxes), rows)))
            letterboxes.append(letterbox)
        return replace(_collate(made, self._channels, self._table), letterboxes=tuple(letterboxes))


@lru_cache(maxsize=4)
def _order(seed: int, kind: int, turn: int, count: int) -> npt.NDArray[np.int64]:
    """Return the order of the images of an epoch, the same in every step."""
    return np.random.default_rng([seed, _ORDER, kind, turn]).permutation(count)


class _Steps(Dataset[Union[ImageBatch, _Failure]]):
    """Batches by step, for torch's loader: item i is the whole batch of the i-th step."""

    def __init__(self, make: Callable[[int], ImageBatch], steps: Sequence[int]) -> None:
        self._make = make
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> ImageBatch | _Failure:
        try:
            return self._make(self._steps[index])
        except RequestError as error:
            return _Failure(error.problems)


def _run(steps: _Steps, workers: int) -> Iterator[ImageBatch]:
    loader = DataLoader(
        steps,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_PREFETCH if workers else None,
        worker_init_fn=_one_thread if workers else None,
        # Forked workers share the cache of images instead of copying it.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    for batch in loader:
        if isinstance(batch, _Failure):
            raise RequestError(*batch.problems)
        yield batch


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)


def _collate(made: list[_Made], channels: int, table: BoxTable) -> ImageBatch:
    views = [one.teacher_image for one in made if one.teacher_image is not None]
    index = np.repeat(np.arange(len(made)), [len(one.sample.rows) for one in made])
    boxes = np.concatenate([one.sample.boxes_xyxy for one in made])
    targets, pseudo_labels = table.to_targets(index, boxes, np.concatenate([one.sample.rows for one in made]))
    return ImageBatch(
        images=_stacked([one.sample.image for one in made], channels),
        targets=targets,
        labelled=torch.tensor([one.record.labelled for one in made], dtype=torch.bool),
        image_ids=tuple(one.record.image_id for one in made),
        teacher_images=_stacked(views, channels) if views else None,
        pseudo_labels=pseudo_labels,
    )


def _stacked(images: list[Pixels], channels: int) -> torch.Tensor:
    """Return (B, C, H, W) uint8 of (H, W, C) images."""
    height, width = images[0].shape[:2]
    batch = np.empty((len(images), channels, height, width), np.uint8)
    for planes, image in zip(batch, images, strict=True):
        for plane, channel in zip(planes, cv2.split(np.ascontiguousarray(image)), strict=True):
            plane[:] = channel
    return torch.from_numpy(batch)


def _read_record(record: ImageRecord, channels: int) -> Pixels:
    image = read_image(record.path, channels)
    height, width = image.shape[:2]
    if (width, height) != (record.width, record.height):
        raise RequestError(
            f"{record.path}: is {width}x{height}, the annotations say {record.width}x{record.height}; "
            "correct them (sizes are meant after EXIF rotation)"
        )
    return image


def _resized(record: ImageRecord, image_size: int) -> tuple[int, int]:
    """Return (width, height) of an image whose longer side becomes S; fractions are rounded up."""
    ratio = image_size / max(record.width, record.height)
    if ratio == 1:
        return record.width, record.height
    width = min(math.ceil(record.width * ratio), image_size)
    return width, min(math.ceil(record.height * ratio), image_size)


def _joined_pseudo_labels(parts: Sequence[DetectionData]) -> dict[str, PseudoLabelTable]:
    """Join the tables of labelled and unlabelled images; a teacher must have both.

    Raises:
        RequestError: a teacher has no pseudo labels of some images, which would be learned as background.
    """
    names = dict.fromkeys(name for part in parts for name in part.pseudo_labels)
    for name in names:
        without = [part for part in parts if name not in part.pseudo_labels]
        if without:
            raise RequestError(
                f"'{name}' has pseudo labels of {sum(map(len, parts)) - len(without[0])} images and none of the "
                f"{len(without[0])} of '{without[0].name}'; label all of them"
            )
    return {name: PseudoLabelTable.concatenate([part.pseudo_labels[name] for part in parts]) for name in names}
