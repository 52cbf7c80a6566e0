"""Compares teacher, baseline and distilled student over several seeds."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig, TeacherConfig, TermConfig, changed_keys
from kd_vision.core.errors import GateError, RequestError
from kd_vision.core.files import read_json
from kd_vision.core.latency import Latency
from kd_vision.core.predictions import Detections
from kd_vision.core.progress import ProgressFactory, log_progress
from kd_vision.core.run_directory import RunDirectory
from kd_vision.data.records import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.metrics import Metrics
from kd_vision.losses import load_loss
from kd_vision.pipeline.data import RunData, output_directory
from kd_vision.pipeline.environment import hardware, versions
from kd_vision.pipeline.evaluate import predict_split
from kd_vision.pipeline.export import run_export
from kd_vision.pipeline.models import best_device, load_model
from kd_vision.pipeline.teachers import build_online_teachers, teacher_hash, teacher_input_size
from kd_vision.pipeline.train import measure_run, origin_of, train
from kd_vision.report.benchmark_data import (
    Arm,
    ArmRun,
    BenchmarkData,
    CurvePoint,
    DataFacts,
    Role,
    write_benchmark,
)
from kd_vision.report.examples import pick_examples, write_examples
from kd_vision.report.write import write_benchmark_report
from kd_vision.teachers.build import kind_of
from kd_vision.teachers.frozen import FrozenTeacher
from kd_vision.teachers.ground_truth import GroundTruthConfig
from kd_vision.teachers.options import TeacherOptions

_EXAMPLES = 6
_PLAIN, _DISTILLED, _CONTROL = "plain", "distilled", "control"
_ARMS = (_PLAIN, _DISTILLED, _CONTROL)
"""Folders of the runs: the baseline, the distilled student, and the control."""


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Result of a benchmark.

    Attributes:
        directory: of its files.
        data: every number, as in ``benchmark.json``.
        report_html, report_md: the reports.
    """

    directory: Path
    data: BenchmarkData
    report_html: Path
    report_md: Path


def benchmark(
    config: RunConfig | Path | str,
    seeds: Sequence[int] = (0,),
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    progress: ProgressFactory = log_progress,
    with_latency: bool = True,
    control: bool = False,
) -> BenchmarkResult:
    """Train the baseline and the distilled student for every seed; measure both and the teacher.

    The runs of a seed share initial weights, data order, augmentation and number of steps; the distilled student gets
    unlabelled images in addition to the same labelled batches. Finished runs are not repeated, so that a benchmark
    that was stopped continues.

    Args:
        config: a config with a teacher, or the path of one.
        seeds: one pair of runs each.
        out: directory; None: ``runs/<config name>-benchmark``.
        overrides: ``key=value`` strings, where `config` is a path.
        progress: receives the progress.
        with_latency: export each arm and measure its latency.
        control: also train a control with the ground truth as teacher: see `control_config`.

    Raises:
        RequestError: the config has no teacher, or the directory holds other runs.
    """
    if not isinstance(config, RunConfig):
        config = load_config(Path(config), overrides)
    _refuse_wrong_request(config, seeds)
    root = Path(out) if out is not None else output_directory(None, config).with_name(f"{config.source.stem}-benchmark")
    data = RunData(config.data)
    size = teacher_input_size(config, build_online_teachers(config, data.classes))
    for seed in seeds:
        for name in _ARMS if control else (_PLAIN, _DISTILLED):
            _run_arm(_arm_config(config, name, seed), root / name / f"seed{seed}", name, data, size, progress)
    return assemble(config, seeds, root, data, progress, with_latency, control)


def _refuse_wrong_request(config: RunConfig, seeds: Sequence[int]) -> None:
    if not config.is_distilled:
        raise RequestError(f"{config.source}: teacher: is missing; a benchmark compares training with and without it")
    if config.train.label_fraction == 0:
        raise RequestError(
            f"{config.source}: train.label_fraction: without labels there is no baseline to compare with; train with "
            f"`kd-vision train` and compare with the teacher: `kd-vision evaluate {config.source} --data {config.data}`"
        )
    taken = [teacher.name for teacher in config.teachers if teacher.name in _ARMS]
    if taken:
        raise RequestError(f"{config.source}: teacher.name: '{taken[0]}' is the name of a student here; give another")
    if config.train.devices != 1 or config.train.num_nodes != 1:
        raise RequestError(
            f"{config.source}: train.devices: a benchmark runs on one device; train the arms on several with "
            f"`kd-vision train`, or set devices and num_nodes to 1"
        )
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise RequestError(f"--seeds: give different seeds from 0 up, e.g. 0 1 2; given {' '.join(map(str, seeds))}")


def assemble(
    config: RunConfig,
    seeds: Sequence[int],
    root: Path,
    data: RunData,
    progress: ProgressFactory = log_progress,
    with_latency: bool = True,
    control: bool = False,
) -> BenchmarkResult:
    """Gather the finished runs of `seeds` in `root` and write ``benchmark.json`` and the reports.

    The runs of an earlier control are left out unless `control` is True.
    """
    truth = data.final_split(config)
    detections: dict[str, dict[int, Detections]] = {}
    arms: list[Arm] = []
    for name, teacher in build_online_teachers(config, truth.classes).items():
        if teacher.spec.classes != truth.classes:  # a teacher of features only; its boxes are of other classes
            continue
        teacher.to(best_device())
        image_size = teacher.image_size or config.image_size
        detections[name] = predict_split(teacher, truth, image_size, config.evaluate, progress)
        metrics = evaluate_detections(truth, detections[name], config.evaluate.backend)
        arms.append(_teacher_arm(name, teacher.to("cpu"), image_size, metrics, _teacher_file(config, name)))
    for name, arm_seeds in _student_arms(root, seeds, control).items():
        arms.append(_student_arm(config, name, arm_seeds, root, with_latency))
        if arm_seeds[0] == seeds[0]:
            detections[name] = _predictions(config, root / name / f"seed{seeds[0]}", truth, progress)
    picks = pick_examples(truth, detections[_PLAIN], detections[_DISTILLED], _EXAMPLES)
    result = BenchmarkData(
        title=_title(arms, _unmeasured(config)),
        data=DataFacts(
            name=_data_name(config.data), split=truth.name, n_images=len(truth.images), classes=truth.classes
        ),
        image_size=config.image_size,
        steps=_steps(root, arms),
        seeds=tuple(seeds),
        arms=tuple(arms),
        examples=write_examples(root, truth, picks, detections),
        examples_seed=seeds[0],
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join(["kd-vision", *sys.argv[1:]]),
        hardware={k: v for k, v in hardware().items() if not isinstance(v, list)},
        versions=versions(),
    )
    write_benchmark(root, result)
    markdown, html = write_benchmark_report(root)
    return BenchmarkResult(root, result, html, markdown)


def _data_name(descriptor: Path) -> str:
    """Return the name of the descriptor, or of its folder where the file is called ``data.yaml``."""
    return descriptor.parent.name if descriptor.stem == "data" else descriptor.stem


def _run_arm(
    config: RunConfig, folder: Path, name: str, data: RunData, size: int | None, progress: ProgressFactory
) -> None:
    directory = RunDirectory(folder)
    resume = directory.last_checkpoint.is_file()
    if directory.metrics.is_file() or resume:
        _refuse_other_run(directory, config, data, size)
    if directory.metrics.is_file():
        _measure_anew(directory, config, data)
        return
    title = f"{name}, seed {config.train.seed}"
    train(config, folder, resume, progress=progress, title=title, sample_size=size, data=data)


def _arm_config(config: RunConfig, name: str, seed: int) -> RunConfig:
    config = replace(config, train=config.train.model_copy(update={"seed": seed}))
    if name == _CONTROL:
        return control_config(config)
    return config if name == _DISTILLED else _baseline(config)


def _baseline(config: RunConfig) -> RunConfig:
    """Return the run without teacher and without unlabelled images."""
    settings = config.train.model_copy(update={"unlabelled_ratio": 0.0})
    return replace(config, teachers=(), terms=(), recipe=None, train=settings)


def control_config(config: RunConfig) -> RunConfig:
    """Return the run with the ground truth as its only teacher.

    Its single loss is `soft_boxes`: with the settings of the config's first one where it has any, the sum of the
    weights of several, and the largest `balance` of all losses. Its gain over plain training is the effect of the
    loss alone, without any knowledge beyond the labels.
    """
    soft_boxes = [term.config for term in config.terms if term.loss == "soft_boxes"]
    settings = soft_boxes[0] if soft_boxes else load_loss("soft_boxes").Config()
    weights = [loss.weight for loss in soft_boxes if loss.weight != "auto"]
    changes = {"balance": max((float(getattr(term.config, "balance", 0.0)) for term in config.terms), default=0.0)}
    if soft_boxes and len(weights) == len(soft_boxes):
        changes["weight"] = sum(weights)
    settings = settings.model_copy(update=changes)
    return replace(
        _baseline(config),
        teachers=(TeacherConfig("labels", GroundTruthConfig(), TeacherOptions()),),
        terms=(TermConfig("soft_boxes", "soft_boxes", settings, "labels"),),
    )


def _measure_anew(directory: RunDirectory, config: RunConfig, data: RunData) -> None:
    """Measure a finished run again where the images or labels that it was measured on have changed."""
    truth = data.final_split(config)
    fit = read_json(directory.fit)
    if (fit.get("split"), fit.get("measured_on")) != (truth.name, data.content_hash(truth.name)):
        measure_run(config, directory, truth, best_device())


def _refuse_other_run(directory: RunDirectory, config: RunConfig, data: RunData, size: int | None) -> None:
    """Refuse an existing run of another config or of other files.

    Raises:
        RequestError: naming every difference.
    """
    changed = changed_keys(load_config(directory.config, files_exist=False), config)
    made_with = read_json(directory.environment).get("hashes", {})
    if made_with.get("teacher") and made_with["teacher"] != teacher_hash(config):
        changed.append("the teacher's file has changed")
    if made_with.get("data") and made_with["data"] != data.training_hashes(config):
        changed.append("the training data have changed")
    origin = origin_of(config, size)
    if made_with.get("student", origin["student"]) != origin["student"]:
        changed.append("the weights that the student starts from have changed")
    if made_with.get("view", size) != size:
        was, now = (sample_size or config.image_size for sample_size in (made_with["view"], size))
        changed.append(f"its samples were made at {was} px, now at {now} px")
    if changed:
        raise RequestError(f"{directory.root}: holds a run of another config: {'; '.join(changed)}; give another --out")


def _student_arms(root: Path, seeds: Sequence[int], control: bool) -> dict[str, list[int]]:
    """Return the arms with finished runs and their seeds: baseline, distilled, control, then any other folder."""
    others = sorted(p.name for p in root.iterdir() if p.name not in _ARMS)
    names = [_PLAIN, _DISTILLED, *([_CONTROL] if control else []), *others]
    arms = {name: [seed for seed in seeds if (root / name / f"seed{seed}/metrics.json").is_file()] for name in names}
    return {name: finished for name, finished in arms.items() if finished}


def _unmeasured(config: RunConfig) -> str:
    """Return a name for teachers without an arm, for the title."""
    if any(kind_of(teacher.config) == "store" for teacher in config.teachers):
        return "stored knowledge"
    return " and ".join("itself" if teacher.entry.follows_student else teacher.name for teacher in config.teachers)


def _title(arms: Sequence[Arm], unmeasured: str) -> str:
    """Return the title; `unmeasured` names the teachers where none has an arm."""
    teachers = " and ".join(arm.model for arm in arms if arm.role == "teacher") or unmeasured
    student = next(arm.model for arm in arms if arm.role == "plain")
    return f"{teachers} {'teach' if ' and ' in teachers else 'teaches'} {student}"


def _teacher_file(config: RunConfig, name: str) -> Path | None:
    return next(teacher.weights for teacher in config.teachers if teacher.name == name)


def _teacher_arm(name: str, teacher: FrozenTeacher, image_size: int, metrics: Metrics, path: Path | None) -> Arm:
    return Arm(
        name=name,
        role="teacher",
        description=f"the teacher, as given, at {image_size} px",
        model=teacher.spec.name,
        parameters=teacher.spec.parameters or None,
        gflops=gflops(teacher.source, image_size) if isinstance(teacher.source, Detector) else None,
        file_bytes=path.stat().st_size if path else None,
        runs=(ArmRun(seed=None, metrics=metrics),),
    )


def _student_arm(config: RunConfig, name: str, seeds: Sequence[int], root: Path, with_latency: bool) -> Arm:
    first = root / name / f"seed{seeds[0]}"
    loaded = load_model(first / "student.pt", config.image_size)
    assert loaded.detector is not None
    roles: Mapping[str, Role] = {_PLAIN: "plain", _DISTILLED: "distilled", _CONTROL: "control"}
    texts = {
        _PLAIN: "the same student, seed and steps without a teacher",
        _DISTILLED: f"learns by {_terms_of(config)}",
        _CONTROL: f"no teacher: its own labels through {_terms_of(control_config(config))}",
    }
    described = first / "description.txt"
    text = described.read_text(encoding="utf-8").strip() if described.is_file() else texts.get(name, name)
    student = first / "student.pt"
    latency = _latency(student, config) if with_latency else None
    if isinstance(latency, GateError):
        text += f"; no latency, as its export failed the parity gate: {str(latency).splitlines()[-1]}"
        latency = None
    return Arm(
        name=name,
        role=roles.get(name, "other"),
        description=text,
        model=loaded.detector.spec.name,
        parameters=loaded.detector.spec.parameters,
        gflops=gflops(loaded.detector, config.image_size),
        file_bytes=student.stat().st_size,
        onnx_latency_ms=latency,
        runs=tuple(_arm_run(root, name, seed) for seed in seeds),
    )


def _terms_of(config: RunConfig) -> str:
    terms = [(term.name, term.config.weight, getattr(term.config, "balance", 0.0)) for term in config.terms]
    return ", ".join(f"{name} x{weight}" + (f" (balance {b:g})" if b else "") for name, weight, b in terms)


def _arm_run(root: Path, name: str, seed: int) -> ArmRun:
    directory = RunDirectory(root / name / f"seed{seed}")
    fit = read_json(directory.fit)
    curve = [row for row in directory.read_log() if row.get("split") == "val"]
    return ArmRun(
        seed=seed,
        metrics=Metrics.from_json(read_json(directory.metrics), str(directory.metrics)),
        seconds=fit["seconds"],
        images_per_second=fit["images_per_second"],
        curve=tuple(CurvePoint(step=row["step"], ap=row["AP"]) for row in curve),
        directory=f"{name}/seed{seed}",
    )


def _steps(root: Path, arms: Sequence[Arm]) -> int | None:
    """Return the number of batches of every run; None where runs differ (early stopping by ``patience``)."""
    runs = [run.directory for arm in arms if arm.role != "teacher" for run in arm.runs]
    counts = {int(read_json(RunDirectory(root / run).fit)["steps"]) for run in runs if run is not None}
    return counts.pop() if len(counts) == 1 else None


def _predictions(
    config: RunConfig, directory: Path, truth: DetectionData, progress: ProgressFactory
) -> dict[int, Detections]:
    loaded = load_model(directory / "student.pt", config.image_size, device=best_device())
    return predict_split(loaded.predictor, truth, config.image_size, config.evaluate, progress)


def _latency(student: Path, config: RunConfig) -> Latency | GateError:
    """Export the student and return the latency of the file, or the error of the parity gate."""
    out = student.with_suffix(".onnx")
    try:
        exported = run_export(student, out, config.data, image_size=config.image_size, split=config.evaluate.split)
    except GateError as refusal:
        return refusal  # e.g. no boxes to compare, of a student without detections; its AP shows it
    assert exported.latency is not None  # one image at a time
    return exported.latency


def gflops(detector: Detector, image_size: int) -> float:
    """Return billions of floating-point operations for one image (a multiply-add is two)."""
    module = detector.export_module()
    image = torch.zeros(1, detector.spec.input_channels, image_size, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(image)
    return float(counter.get_total_flops()) / 1e9
