"""Trains a student, with or without a teacher."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig, changed_keys
from kd_vision.core.errors import GateError, RequestError
from kd_vision.core.files import read_json, write_json, write_text
from kd_vision.core.fingerprint import fingerprint
from kd_vision.core.progress import ProgressFactory, log_progress, no_progress
from kd_vision.core.run_directory import RunDirectory
from kd_vision.core.strict_yaml import dump_yaml
from kd_vision.data.dataset import DetectionData
from kd_vision.data.loader import TrainStream
from kd_vision.detectors.base import Detector
from kd_vision.engine.checkpoint import read_checkpoint
from kd_vision.engine.loggers import build_loggers, log_hyperparameters, log_result
from kd_vision.engine.optimizer import build_optimizer
from kd_vision.engine.step import TrainingStep
from kd_vision.engine.trainer import FitResult, Trainer, build_fabric, seed_everything
from kd_vision.evaluation.coco import load_backend
from kd_vision.evaluation.match_table import evaluate_with_matches
from kd_vision.evaluation.metrics import Metrics
from kd_vision.pipeline.adapter_init import fit_adapters
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.coverage import measure_term_coverage, refuse_low_coverage
from kd_vision.pipeline.data import RunData, build_stream, hashes_of, output_directory
from kd_vision.pipeline.environment import describe_environment
from kd_vision.pipeline.evaluate import measure, predict_split
from kd_vision.pipeline.inherit import start_as_copy
from kd_vision.pipeline.models import load_model
from kd_vision.pipeline.parts import RunParts
from kd_vision.pipeline.preflight import refuse_dead_steps
from kd_vision.pipeline.teacher_gate import measure_teachers, refuse_weak_teacher
from kd_vision.pipeline.teachers import teacher_hash, teacher_input_size
from kd_vision.report.write import write_run_report


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Result of training.

    Attributes:
        directory: the run directory.
        student: file of the student, in the format of its family.
        metrics: COCO numbers of this file on the final split.
        split: name of the final split.
        fit: steps, seconds and speed.
    """

    directory: Path
    student: Path
    metrics: Metrics
    split: str
    fit: FitResult


def train(
    config: RunConfig | Path | str,
    out: Path | str | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    progress: ProgressFactory = log_progress,
    title: str = "train",
    sample_size: int | None = None,
    data: RunData | None = None,
) -> TrainResult:
    """Train the student of a config, with distillation where the config has a teacher.

    Args:
        config: a config, or the path of one.
        out: run directory; None: ``runs/<config name>``.
        resume: continue from the last checkpoint of the run directory.
        overrides: ``key=value`` strings, where `config` is a path.
        progress: receives the progress.
        title: of the progress.
        sample_size: side of the samples, from which the student's images are shrunk; None: the largest image size
            of the teachers. A benchmark gives its baseline that of the distilled run, so that both are trained on
            the same pixels.
        data: of the run, if already read.

    Raises:
        RequestError: the request is wrong.
        TrainingError: training cannot go on.
    """
    if not isinstance(config, RunConfig):
        config = load_config(Path(config), overrides)
    directory = RunDirectory(output_directory(None if out is None else Path(out), config))
    _refuse_overwrite(directory, config, resume)
    return _train(config, directory, data or RunData(config.data), resume, progress, title, sample_size)


def _train(
    config: RunConfig,
    directory: RunDirectory,
    data: RunData,
    resume: bool,
    progress: ProgressFactory,
    title: str,
    sample_size: int | None,
) -> TrainResult:
    """Build the parts of a run, pass its gates and train; see `train`."""
    truth, final = data.split(config.evaluate.split), data.final_split(config)  # refuses a wrong name before training
    load_backend(config.evaluate.backend)
    labelled, unlabelled = data.training(config)
    seed_everything(config.train.seed)
    parts = build_parts(config, data)
    inheritance = None if resume else start_as_copy(parts.student, config, data, progress)
    labelled, unlabelled = parts.with_pseudo_labels(labelled), unlabelled and parts.with_pseudo_labels(unlabelled)
    fabric = build_fabric(config.train, build_loggers(config.train.loggers, directory.root))
    parts.student.to(fabric.device)
    if parts.distiller is not None and not resume:
        _gate_teachers(config, directory, parts, truth, labelled, fabric)
    size = sample_size or teacher_input_size(config, parts.teachers)
    ranks = fabric.global_rank, fabric.world_size
    stream = build_stream(config, labelled, unlabelled, parts.channels, *ranks, teacher_size=size)
    refuse_dead_steps(config, config.train.epochs * stream.steps_per_epoch)
    run = TrainingStep(parts.student, parts.distiller, parts.teachers).to(fabric.device)
    if not resume:
        _gate_coverage(config, run, stream, fabric)
        fit_adapters(run, stream, fabric.device)  # before DDP, which hands the first process's weights to all
    steps = config.train.epochs * stream.steps_per_epoch // config.train.accumulate
    optimizer = build_optimizer([run], config.train, steps, len(data.classes))
    identity = _identity(config, parts.student, hashes_of((labelled, unlabelled)))
    validate = _validator(config, truth)
    with (progress if fabric.is_global_zero else no_progress)(title) as bar:
        trainer = Trainer(fabric, run, stream, optimizer, config.train, directory, identity, validate, bar)
        _follow_average(config, parts, trainer)
        if resume:
            trainer.resume()
        elif fabric.is_global_zero:
            _describe(config, directory, identity | origin_of(config, size))
            if inheritance is not None:
                write_json(directory.root / "inherit.json", inheritance.to_json())
        log_hyperparameters(fabric.loggers, config.to_mapping())
        fit = trainer.fit()
    return _finish(config, directory, trainer, fit, final)


def _follow_average(config: RunConfig, parts: RunParts, trainer: Trainer) -> None:
    """Replace each self-distillation teacher by the trainer's moving average."""
    for teacher in config.teachers:
        if teacher.entry.follows_student:
            parts.online[teacher.name].follow(trainer.average.detector)


def _finish(
    config: RunConfig, directory: RunDirectory, trainer: Trainer, fit: FitResult, truth: DetectionData
) -> TrainResult:
    """Write the student and measure the written file, not the weights in memory."""
    detector = trainer.average.detector
    if config.train.keep == "best" and directory.best_checkpoint.is_file():
        detector.load_state_dict(read_checkpoint(directory.best_checkpoint)["average"])
    if trainer.fabric.is_global_zero:
        detector.save(directory.student, {"run": directory.root.name, "image_size": str(config.image_size)})
        _summary(directory, fit)
        directory.write_csv()
    trainer.fabric.barrier()
    metrics = measure_run(config, directory, truth, str(trainer.fabric.device), trainer.fabric.is_global_zero)
    log_result(trainer.fabric.loggers, metrics.to_json(), fit.steps)
    return TrainResult(directory.root, directory.student, metrics, truth.name, fit)


def measure_run(
    config: RunConfig, directory: RunDirectory, truth: DetectionData, device: str, write: bool = True
) -> Metrics:
    """Measure a run's student on the final split; write ``metrics.json``, its matches and hash, and the report."""
    loaded = load_model(directory.student, config.image_size, device=device)
    detections = predict_split(loaded.predictor, truth, config.image_size, config.evaluate, no_progress)
    metrics, matches = evaluate_with_matches(truth, detections, config.evaluate.backend)
    if write:
        directory.metrics.unlink(missing_ok=True)
        matches.save(directory.matches)
        fit = read_json(directory.fit)
        write_json(directory.fit, fit | {"split": truth.name, "measured_on": truth.content_hash()})
        write_json(directory.metrics, metrics.to_json())  # last: its existence marks a run as finished
        write_run_report(directory.root)
    return metrics


def _gate_teachers(
    config: RunConfig,
    directory: RunDirectory,
    parts: RunParts,
    truth: DetectionData,
    labelled: DetectionData,
    fabric: Fabric,
) -> None:
    """Measure teachers and student on the first process; the gate's refusal ends all processes."""
    for teacher in parts.teachers.values():
        teacher.to(fabric.device)
    refusal = ""
    if fabric.is_global_zero:
        try:
            numbers = {}
            for score in measure_teachers(config, parts, truth, labelled):
                refuse_weak_teacher(config, score)
                if score.teacher is not None:
                    numbers[score.name] = {"split": score.split, **score.teacher.to_json()}
            write_json(directory.root / "teacher.json", numbers)
        except GateError as error:
            refusal = str(error)
    refusal = fabric.broadcast(refusal)
    if refusal:
        raise GateError(refusal)


def _gate_coverage(config: RunConfig, run: TrainingStep, stream: TrainStream, fabric: Fabric) -> None:
    """Measure the coverage of grid losses on the first process; the gate's refusal ends all processes."""
    for teacher in run.teachers.values():
        teacher.to(fabric.device)
    refusal = ""
    if fabric.is_global_zero:
        try:
            for coverage in measure_term_coverage(run, stream, fabric.device):
                refuse_low_coverage(config, coverage)
        except GateError as error:
            refusal = str(error)
    refusal = fabric.broadcast(refusal)
    if refusal:
        raise GateError(refusal)


def _summary(directory: RunDirectory, fit: FitResult) -> None:
    content: dict[str, float | None] = {"steps": fit.steps, "seconds": fit.seconds}
    content |= {"images_per_second": fit.images_per_second, "best_val_ap": fit.best_ap}
    write_json(directory.fit, content)


def _validator(config: RunConfig, truth: DetectionData) -> Callable[[Detector], dict[str, float | None]] | None:
    if config.train.validate_every == 0:
        return None

    def validate(detector: Detector) -> dict[str, float | None]:
        numbers = measure(detector, truth, config.image_size, config.evaluate).to_json()
        return {key: value for key, value in numbers.items() if key not in ("per_class", "n_images")}

    return validate


def origin_of(config: RunConfig, sample_size: int | None) -> dict[str, Any]:
    """Return what the arms of a benchmark must share besides their data: initial weights and sample size."""
    return {"student": fingerprint(config.student), "view": sample_size}


def _describe(config: RunConfig, directory: RunDirectory, facts: dict[str, Any]) -> None:
    directory.log.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
    write_text(directory.config, dump_yaml(config.to_mapping()))
    environment: dict[str, Any] = describe_environment()
    hashes = {key: facts[key] for key in ("data", "teacher", "student", "view")}
    write_json(directory.environment, environment | {"seed": config.train.seed, "hashes": hashes})


def _identity(config: RunConfig, student: Detector, data: list[str]) -> dict[str, Any]:
    """Return the values that a resumed run must share."""
    content = json.dumps(config.identity(), sort_keys=True)
    return {
        "config": hashlib.sha256(content.encode()).hexdigest()[:16],
        "data": data,
        "teacher": teacher_hash(config),
        "family": student.spec.family,
        "architecture": student.architecture(),
        "image_size": config.image_size,
    }


def _refuse_overwrite(directory: RunDirectory, config: RunConfig, resume: bool) -> None:
    has_checkpoint = directory.last_checkpoint.is_file()
    if resume and not has_checkpoint:
        raise RequestError(f"{directory.last_checkpoint}: no checkpoint to resume from; start without --resume")
    if not resume and (has_checkpoint or directory.metrics.is_file()):
        raise RequestError(
            f"{directory.root}: holds a run already; add --resume to go on with it, or give another --out"
        )
    if directory.root.exists() and not directory.root.is_dir():
        raise RequestError(f"{directory.root}: is a file; give a directory with --out")
    if resume:
        changed = changed_keys(load_config(directory.config, files_exist=False), config)
        if changed:
            raise RequestError(
                f"{directory.root}: is a run of another config: {'; '.join(changed)}; use the same config, or "
                f"another --out"
            )
