"""Stores a teacher's dense predictions on every batch of a training stream: `kd-vision label --dense`.

Source: relabelling of the augmented views themselves, as FKD (Shen and Xing, ECCV 2022) does for classification.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig, TeacherConfig
from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import KDVisionError, RequestError
from kd_vision.core.predictions import ONE_TO_MANY, GridPredictions
from kd_vision.core.progress import Progress, ProgressFactory, log_progress
from kd_vision.data.loader import LoaderConfig, TrainStream
from kd_vision.detectors.base import Detector
from kd_vision.knowledge.config import DENSE_MANIFEST
from kd_vision.knowledge.dense_manifest import FORMAT_VERSION, DenseManifest, MeasuredTeacher
from kd_vision.knowledge.dense_shard import StoredStep
from kd_vision.knowledge.dense_store import SHARD_STEPS, DenseWriter, image_checksum, layout_bytes
from kd_vision.knowledge.manifest import TeacherNote
from kd_vision.pipeline.build import build_student
from kd_vision.pipeline.data import RunData, loader_config
from kd_vision.pipeline.dense_stores import pixel_versions, stream_note
from kd_vision.pipeline.evaluate import measure
from kd_vision.pipeline.label import choose_teacher, describe_teacher
from kd_vision.pipeline.models import best_device, wrong_device
from kd_vision.pipeline.teachers import build_online_teachers, teacher_fingerprint, teacher_input_size
from kd_vision.teachers.dense_labels import GridLayout
from kd_vision.teachers.frozen import FrozenTeacher

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DenseOptions:
    """Settings of dense labelling.

    Attributes:
        score: points whose best class probability is no higher become background.
        max_points: stored points per image, best first.
        workers: processes that make batches; None: those of the config.
        device: of the teacher; None: a GPU where there is one.
    """

    score: float = 0.03
    max_points: int = 1000
    workers: int | str | None = None
    device: str | None = None

    def problems(self) -> list[str]:
        """Return one line for every mistake."""
        errors = []
        if not 0.0 < self.score < 1.0:
            errors.append(f"--score: {self.score:g} is not a threshold; give more than 0 and less than 1")
        if self.max_points < 1:
            errors.append(f"--max-points: {self.max_points} is too few; give 1 or more")
        return errors + wrong_device(self.device)


@dataclass(frozen=True, slots=True)
class DenseResult:
    """A finished store.

    Attributes:
        store: its folder.
        steps: number of steps in it.
        images: number of images in all steps.
        made: number of steps labelled by this call, without those of an earlier one.
        seconds: time of labelling.
        bytes: size of the store on disk.
    """

    store: Path
    steps: int
    images: int
    made: int
    seconds: float
    bytes: int


def label_dense(
    config: Path | str,
    out: Path | str,
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    teacher: str | None = None,
    options: DenseOptions = DenseOptions(),
    progress: ProgressFactory = log_progress,
) -> list[DenseResult]:
    """Store a teacher's dense predictions on the training batches of a config, in the teacher's own classes.

    A second call with the same arguments continues an interrupted one, and writes damaged shards again.

    Args:
        config: config with the teacher; its data, image size, augmentation and settings of training make the batches.
        out: folder of the store; new, empty, or with an unfinished store of the same arguments.
        seeds: make a store ``seed<k>`` in `out` for each; empty: one in `out`, of the config's own seed.
        overrides: of the config, ``key.path=value``.
        teacher: name of the teacher, where the config has several online ones.
        options: of labelling.
        progress: receives the progress.

    Raises:
        RequestError: an argument is wrong, the teacher has no dense predictions, or `out` holds other files.
    """
    run, folder = load_config(Path(config), overrides), Path(out)
    errors = options.problems()
    if len(set(seeds)) != len(seeds) or min(seeds, default=0) < 0:
        errors.append(f"--seeds: give different seeds from 0 up, e.g. 0 1 2; given {' '.join(map(str, seeds))}")
    if seeds and (folder / DENSE_MANIFEST).is_file():
        errors.append(f"--out: {folder} is a store of one seed; give a folder for one store for each seed")
    if errors:
        raise RequestError(*errors)
    maker = _Maker.of(run, choose_teacher(run, teacher, online=True), options)
    results = []
    for seed in seeds or [run.train.seed]:
        seeded = replace(run, train=run.train.model_copy(update={"seed": seed}))
        results.append(maker.make(seeded, folder / f"seed{seed}" if seeds else folder, progress))
    return results


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes stores of several seeds with one teacher.

    Attributes:
        data: of the run.
        note: the teacher, for the manifest.
        teacher: with its own classes.
        channels: of the images.
        sample_size: see `teacher_input_size`.
        measured: its numbers on the validation split.
        options: of labelling.
    """

    data: RunData
    note: TeacherNote
    teacher: FrozenTeacher
    channels: int
    sample_size: int | None
    measured: MeasuredTeacher | None
    options: DenseOptions

    @classmethod
    def of(cls, config: RunConfig, chosen: TeacherConfig, options: DenseOptions) -> _Maker:
        data = RunData(config.data)
        online = build_online_teachers(config, data.classes)
        teacher = online[chosen.name].to(options.device or best_device())
        if "grid" not in teacher.spec.provides or not isinstance(teacher.source, Detector):
            raise RequestError(
                f"{config.source}: {chosen.name}: {teacher.spec.name} has no dense predictions to store; label its "
                f"final boxes: leave out --dense, and give --split train"
            )
        specs = [build_student(config, data.classes).spec, *(one.spec for one in online.values())]
        channels = max(spec.input_channels for spec in specs)
        note = TeacherNote(
            fingerprint=teacher_fingerprint(chosen), description=describe_teacher(chosen, teacher.source.spec)
        )
        own_classes = FrozenTeacher(teacher.source, None, teacher.image_size, teacher.options)
        measured = _measured(config, chosen, teacher, data)
        return cls(data, note, own_classes, channels, teacher_input_size(config, online), measured, options)

    def make(self, config: RunConfig, folder: Path, progress: ProgressFactory) -> DenseResult:
        """Make the store of a run's seed in `folder`."""
        train = config.train
        if self.options.workers is not None:
            config = replace(config, train=train.model_copy(update={"workers": self.options.workers}))
        parts = self.data.training(config)
        loader = loader_config(config, self.channels, self.sample_size)
        stream = TrainStream(*parts, config.augment, loader, train.epochs)
        writer = self._writer(folder, config, loader, stream)
        if writer.kept:
            _log.info("%d of %d steps are labelled already", writer.kept, writer.manifest.steps)
        start = time.monotonic()
        with progress(f"label {config.data.stem}, seed {train.seed}") as bar:
            made = self._fill(writer, stream, bar)
        seconds = time.monotonic() - start
        size = sum(file.stat().st_size for file in folder.iterdir())
        return DenseResult(folder, stream.total_steps, stream.total_images, made, seconds, size)

    def _writer(self, folder: Path, config: RunConfig, loader: LoaderConfig, stream: TrainStream) -> DenseWriter:
        layout = self._layout(self._grids(stream.batch_at(0))[ONE_TO_MANY])
        content = layout_bytes(layout)
        spec = self.teacher.spec
        manifest = DenseManifest(
            format_version=FORMAT_VERSION,
            teacher=self.note,
            spec=replace(spec, name=f"{spec.name} (dense labels)", level_channels={}, provides=frozenset({"grid"}),
                         parameters=0),
            stream=stream_note(config, self.data.training(config), loader, devices=1),
            score_threshold=self.options.score,
            max_points=self.options.max_points,
            versions=pixel_versions(),
            measured=self.measured,
            layout_sha256=hashlib.sha256(content).hexdigest(),
            head_rows=len(layout.strides),
            steps=stream.total_steps,
            shard_steps=SHARD_STEPS,
        )  # fmt: skip
        return DenseWriter(folder, manifest, content)

    def _fill(self, writer: DenseWriter, stream: TrainStream, bar: Progress) -> int:
        """Label the steps that are missing in a store; return their number."""
        missing = writer.missing
        steps = [step for shard in missing for step in writer.manifest.span(shard)]
        labelled = self._labelled(stream.batches_of(steps), len(steps), bar)
        for shard in missing:
            made = [next(labelled) for _ in writer.manifest.span(shard)]
            try:
                writer.write(shard, made)
            except OSError as error:
                raise KDVisionError(
                    f"{writer.folder}: shard {shard} cannot be written ({error.strerror}); fix the cause and run the "
                    f"same command again"
                ) from None
        return len(steps)

    def _labelled(self, batches: Iterator[ImageBatch], total: int, bar: Progress) -> Iterator[StoredStep]:
        start, layout = time.monotonic(), None
        for done, batch in enumerate(batches, start=1):
            grids = self._grids(batch)
            layout = layout or self._layout(grids[ONE_TO_MANY])
            branches = {
                name: layout.sparse(grid, self.options.score, self.options.max_points) for name, grid in grids.items()
            }
            seconds = time.monotonic() - start
            left = (total - done) * seconds / done
            bar.step(done, total, f"{done / max(seconds, 1e-9):.2f} steps/s, {left:.0f} s left")
            yield StoredStep(image_checksum(batch), len(batch), branches)

    def _grids(self, batch: ImageBatch) -> dict[str, GridPredictions]:
        device = next(self.teacher.source.parameters()).device if isinstance(self.teacher.source, Detector) else "cpu"
        return dict(self.teacher.signals(batch.to(device).as_float(), frozenset({"grid"})).grids)

    def _layout(self, grid: GridPredictions) -> GridLayout:
        return GridLayout(grid.points_xy, grid.strides)


def _measured(
    config: RunConfig, chosen: TeacherConfig, teacher: FrozenTeacher, data: RunData
) -> MeasuredTeacher | None:
    truth = data.split(config.evaluate.split)
    if teacher.spec.classes != truth.classes:
        return None
    metrics = measure(teacher, truth, teacher.image_size or config.image_size, config.evaluate)
    labels = chosen.options.labels
    return MeasuredTeacher(
        split=truth.name, content_hash=truth.content_hash(), labels=labels, metrics=metrics.to_json()
    )
