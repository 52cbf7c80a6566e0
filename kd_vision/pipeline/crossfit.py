"""Trains teachers of which each labels the images that it was not trained on: `kd-vision crossfit`.

A teacher says little beyond the labels on the very images that it was fine-tuned on: it has learned their labels by
heart. With K folds there are K teachers, each trained without one fold, and a store in which every image is labelled
by the teacher that has not seen it. The difference of the AP on seen and unseen images is the over-fit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig, changed_keys
from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_json, write_json, write_text
from kd_vision.core.fingerprint import fingerprint
from kd_vision.core.progress import ProgressFactory, log_progress
from kd_vision.core.run_directory import RunDirectory
from kd_vision.core.strict_yaml import dump_yaml
from kd_vision.data.folds import assign_folds
from kd_vision.data.records import DetectionData, split_labelled
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.metrics import Metrics
from kd_vision.knowledge.store import Store
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.evaluate import measure
from kd_vision.pipeline.fold_teachers import fold_name, unlabelled_folders, write_fold_store
from kd_vision.pipeline.label import LabelOptions
from kd_vision.pipeline.models import best_device, load_model
from kd_vision.pipeline.train import train

PLAN, CONFIG, RESULT, STORE, MEASURED = "plan.json", "crossfit.yaml", "crossfit.json", "store", "folds.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoldResult:
    """The teacher that was trained without one fold.

    Attributes:
        name: of the fold and of its folder.
        images: number of its images, which the teacher has not seen.
        seen: metrics on the images that it was trained on.
        unseen: metrics on its fold.
        final: metrics on the final split.
    """

    name: str
    images: int
    seen: Metrics
    unseen: Metrics
    final: Metrics

    @property
    def seen_and_unseen_ap(self) -> tuple[float, float] | None:
        """AP on seen and on unseen images, over the classes that both have; None: they share no class."""
        seen, unseen = self.seen.per_class, self.unseen.per_class
        pairs = [(seen[name].ap, unseen[name].ap) for name in seen]
        both = [(first, second) for first, second in pairs if first is not None and second is not None]
        return (fmean(first for first, _ in both), fmean(second for _, second in both)) if both else None


@dataclass(frozen=True, slots=True)
class CrossfitResult:
    """Result of a cross-fit.

    Attributes:
        directory: holds ``fold1/`` ..., ``store/`` and ``crossfit.json``.
        store: the labels of all images.
        folds: one for each teacher.
        split: name of the final split.
        stored: metrics of the stored boxes on the labelled images, all of them unseen.
        unlabelled: number of images that the ensemble of all teachers labelled.
    """

    directory: Path
    store: Store
    folds: tuple[FoldResult, ...]
    split: str
    stored: Metrics
    unlabelled: int

    @property
    def seen_and_unseen_ap(self) -> tuple[float, float] | None:
        """Means over the folds, see `FoldResult.seen_and_unseen_ap`."""
        pairs = [pair for fold in self.folds if (pair := fold.seen_and_unseen_ap) is not None]
        return (fmean(first for first, _ in pairs), fmean(second for _, second in pairs)) if pairs else None


def crossfit(
    config: RunConfig | Path | str,
    folds: int,
    out: Path | str,
    overrides: Sequence[str] = (),
    group: str | None = None,
    options: LabelOptions | None = None,
    progress: ProgressFactory = log_progress,
) -> CrossfitResult:
    """Train a teacher without each fold, and label each image by the teacher that has not seen it.

    A second call with the same arguments continues an interrupted one; finished folds are not repeated.

    Args:
        config: a config of plain training, or the path of one.
        folds: number of teachers.
        out: directory; new, empty, or of an unfinished call with the same arguments.
        overrides: ``key=value`` strings, where `config` is a path.
        group: images that agree in what this expression matches stay in one fold, see `assign_folds`.
        options: of labelling; None: the defaults, with the workers of the config.
        progress: receives the progress.

    Raises:
        RequestError: the request is wrong, or the directory holds something else.
    """
    if not isinstance(config, RunConfig):
        config = load_config(Path(config), overrides)
    options = options or LabelOptions(workers=config.train.workers)
    _refuse_wrong_request(config, options)
    root, data = Path(out), RunData(config.data)
    labelled, _ = data.training(config)
    fold_of = assign_folds(labelled, folds, config.train.seed, group)
    _refuse_empty_folds(labelled, fold_of)
    others = _unlabelled(config, data)  # before training: a missing folder is told now
    _open(root, config, labelled, fold_of, group)
    results = tuple(_fold(config, root, fold, folds, data, labelled, fold_of, progress) for fold in range(folds))
    store = write_fold_store(config, root, labelled, fold_of, others, options, progress)
    boxes = {image.image_id: store.of(image) for image in labelled.images}
    stored = evaluate_detections(labelled, boxes, config.evaluate.backend)
    count = sum(map(len, others.values()))
    result = CrossfitResult(root, store, results, data.final_split(config).name, stored, count)
    write_json(root / RESULT, _to_json(result))
    return result


def _unlabelled(config: RunConfig, data: RunData) -> dict[str, DetectionData]:
    """Return the images without labels: those beyond `train.label_fraction`, and those of the data's folder."""
    rest = split_labelled(data.split("train"), config.train.label_fraction)[1]
    return unlabelled_folders(rest, data.unlabelled if data.descriptor.unlabelled is not None else None)


def _refuse_wrong_request(config: RunConfig, options: LabelOptions) -> None:
    if errors := options.problems():
        raise RequestError(*errors)
    if config.is_distilled:
        raise RequestError(
            f"{config.source}: teacher: has seen the images of every fold, and would tell their labels to the teachers "
            f"trained here; leave teacher, knowledge and distill out"
        )
    if config.train.devices != 1 or config.train.num_nodes != 1:
        raise RequestError(
            f"{config.source}: train.devices: crossfit runs on one device; set devices and num_nodes to 1"
        )


def _refuse_empty_folds(labelled: DetectionData, fold_of: npt.NDArray[np.int64]) -> None:
    """Refuse a fold without which there is no box; say which classes a teacher would not learn."""
    has = np.zeros((int(fold_of.max()) + 1, len(labelled.classes)), np.bool_)
    for fold, image in zip(fold_of.tolist(), labelled.images, strict=True):
        has[fold, image.labels[~image.crowd]] = True
    for fold in range(len(has)):
        others = np.delete(has, fold, axis=0).any(axis=0)
        if not others.any():
            raise RequestError(
                f"--folds: all boxes are in the images of {fold_name(fold)}, and its teacher would have none to learn "
                f"from; label more images, or give another --group"
            )
        for label in np.flatnonzero(has[fold] & ~others).tolist():
            _log.warning(
                "'%s' is only in %s: the teacher that labels these images never saw one",
                labelled.classes[label],
                fold_name(fold),
            )


def _open(
    root: Path, config: RunConfig, labelled: DetectionData, fold_of: npt.NDArray[np.int64], group: str | None
) -> None:
    """Write the plan of a new directory, or compare with that of an earlier call.

    Raises:
        RequestError: the directory holds other files, or folds of other settings, images or weights.
    """
    plan: dict[str, Any] = {
        "folds": int(fold_of.max()) + 1,
        "group": group,
        "data": labelled.content_hash(),
        "student": fingerprint(config.student),
        "images": {
            fold_name(fold): [labelled.images[row].file_name for row in np.flatnonzero(fold_of == fold).tolist()]
            for fold in range(int(fold_of.max()) + 1)
        },
    }
    if (root / PLAN).is_file():
        _refuse_other_plan(root, config, read_json(root / PLAN), plan)
        return
    mine = {name for whole in (PLAN, CONFIG) for name in (whole, f"{whole}.part")}
    if root.exists() and not (root.is_dir() and {path.name for path in root.iterdir()} <= mine):
        raise RequestError(f"{root}: exists and holds no folds of `kd-vision crossfit`; give another --out")
    write_text(root / CONFIG, dump_yaml(config.to_mapping()))
    write_json(root / PLAN, plan)


def _refuse_other_plan(root: Path, config: RunConfig, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = changed_keys(load_config(root / CONFIG, files_exist=False), config)
    changed += [f"--{key} was {before[key]}, is {now[key]}" for key in ("folds", "group") if before[key] != now[key]]
    if before["data"] != now["data"]:
        changed.append("the training data have changed")
    if before["student"] != now["student"]:
        changed.append("the weights that the teachers start from have changed")
    if changed or before != now:
        what = "; ".join(changed) or "images are in other folds"
        raise RequestError(f"{root}: holds the folds of another request: {what}; give another --out")


def _fold(
    config: RunConfig,
    root: Path,
    fold: int,
    folds: int,
    data: RunData,
    labelled: DetectionData,
    fold_of: npt.NDArray[np.int64],
    progress: ProgressFactory,
) -> FoldResult:
    """Train the teacher without one fold, and measure it on seen and unseen images; skip what is done."""
    directory, title = RunDirectory(root / fold_name(fold)), f"fold {fold + 1} of {folds}"
    seen = labelled.subset(np.flatnonzero(fold_of != fold).tolist())
    unseen = labelled.subset(np.flatnonzero(fold_of == fold).tolist())
    if not directory.metrics.is_file():
        resume = directory.last_checkpoint.is_file()
        train(config, directory.root, resume, progress=progress, title=title, data=data.trained_on(seen))
    measured = directory.root / MEASURED
    if not measured.is_file():
        model = load_model(directory.student, config.image_size, device=best_device())
        content = {}
        for key, part in (("seen", seen), ("unseen", unseen)):
            named = replace(part, name=f"{title}, {key} images")
            numbers = measure(model.predictor, named, config.image_size, config.evaluate, progress)
            content[key] = numbers.to_json()
        write_json(measured, content)
    content = read_json(measured)
    before, after = (Metrics.from_json(content[key], str(measured)) for key in ("seen", "unseen"))
    final = Metrics.from_json(read_json(directory.metrics), str(directory.metrics))
    return FoldResult(fold_name(fold), len(unseen), seen=before, unseen=after, final=final)


def _to_json(result: CrossfitResult) -> dict[str, Any]:
    mean = result.seen_and_unseen_ap
    return {
        "folds": [
            {
                "name": fold.name,
                "images": fold.images,
                **_gap(fold.seen_and_unseen_ap),
                "seen": fold.seen.to_json(),
                "unseen": fold.unseen.to_json(),
                "final": fold.final.to_json(),
            }
            for fold in result.folds
        ],
        "mean": _gap(mean),
        "final_split": result.split,
        "store": {"path": STORE, "unlabelled_images": result.unlabelled, "metrics": result.stored.to_json()},
    }


def _gap(pair: tuple[float, float] | None) -> dict[str, float | None]:
    if pair is None:
        return {"ap_seen": None, "ap_unseen": None, "over_fit": None}
    return {"ap_seen": pair[0], "ap_unseen": pair[1], "over_fit": pair[0] - pair[1]}
