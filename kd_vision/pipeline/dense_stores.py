"""Stores of dense labels in a run: which stream they were made for, and what their teacher scored."""

from __future__ import annotations

from collections.abc import Sequence

from kd_vision.config.schema import RunConfig, TeacherConfig
from kd_vision.core.errors import RequestError
from kd_vision.data.loader import LoaderConfig
from kd_vision.data.records import DetectionData
from kd_vision.evaluation.metrics import Metrics
from kd_vision.knowledge.config import DenseLabelsConfig
from kd_vision.knowledge.dense_manifest import StreamNote, dense_folder, open_dense_manifest
from kd_vision.knowledge.dense_store import DenseReplay, DenseStore
from kd_vision.pipeline.environment import versions

_STREAM_KEYS = ("batch_size", "epochs", "seed", "label_fraction", "unlabelled_ratio")
_PIXEL_PACKAGES = ("numpy", "opencv-python", "albumentations")


def stream_note(
    config: RunConfig, parts: Sequence[DetectionData | None], loader: LoaderConfig, devices: int
) -> StreamNote:
    """Return what decides the pixels of a run's batches.

    Args:
        config: the run.
        parts: labelled and unlabelled images.
        loader: settings of the stream.
        devices: number of processes.
    """
    return StreamNote(
        data=tuple(data.content_hash() for data in parts if data is not None),
        image_size=loader.image_size,
        sample_size=loader.sample_size,
        channels=loader.channels,
        devices=devices,
        train={key: getattr(config.train, key) for key in _STREAM_KEYS},
        augment=config.augment.model_dump(mode="json"),
    )


def pixel_versions() -> dict[str, str]:
    """Return the versions of the packages that read and augment images."""
    installed = versions()
    return {name: installed[name] for name in _PIXEL_PACKAGES if name in installed}


def open_replay(
    config: RunConfig, parts: Sequence[DetectionData | None], loader: LoaderConfig, devices: int
) -> DenseReplay | None:
    """Open the stores of dense labels of a run; None: it has none.

    See `stream_note` for the arguments.

    Raises:
        RequestError: a store was made for another stream, is unfinished or damaged.
    """
    dense = {t.name: t.config for t in config.teachers if isinstance(t.config, DenseLabelsConfig)}
    if not dense:
        return None
    stream = stream_note(config, parts, loader, devices)
    stores = {}
    for name, settings in dense.items():
        _refuse_other_stream(config, settings, stream)
        stores[name] = DenseStore(dense_folder(settings.store, config.train.seed))
    used = {term.teacher for term in config.terms}
    looking = any(teacher.name in used for teacher in config.teachers if not teacher.entry.offline)
    return DenseReplay(stores, looking, pixel_versions())


def recorded_metrics(config: RunConfig, teacher: TeacherConfig, truth: DetectionData) -> Metrics | None:
    """Return the metrics of a teacher with dense labels, as measured when it was run; None: not on this split."""
    assert isinstance(teacher.config, DenseLabelsConfig)
    _, manifest = open_dense_manifest(teacher.config, config.train.seed)
    measured = manifest.measured
    if measured is None or measured.content_hash != truth.content_hash() or measured.labels != teacher.options.labels:
        return None
    return Metrics.from_json(measured.metrics, str(teacher.config.store))


def _refuse_other_stream(config: RunConfig, settings: DenseLabelsConfig, stream: StreamNote) -> None:
    folder, manifest = open_dense_manifest(settings, config.train.seed)
    differences = manifest.stream.differences(stream)
    if differences:
        with_teacher = any(teacher.is_online for teacher in config.teachers)
        source = config.source if with_teacher else "CONFIG_WITH_THE_TEACHER"
        raise RequestError(
            f"{config.source}: {folder} was made for other training batches: {'; '.join(differences)}; train as it "
            f"was made, or make a store that fits: `kd-vision label {source} --dense --out ANOTHER_STORE`"
        )
