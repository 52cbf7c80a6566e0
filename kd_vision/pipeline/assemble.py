"""Gathers the finished runs of a benchmark into its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import GateError
from kd_vision.core.files import read_json
from kd_vision.core.latency import Latency
from kd_vision.core.predictions import Detections
from kd_vision.core.progress import ProgressFactory, log_progress
from kd_vision.core.run_directory import RunDirectory
from kd_vision.data.records import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.metrics import Metrics
from kd_vision.pipeline.arms import ARMS, CONTROL, DISTILLED, PLAIN, control_config
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.environment import hardware, versions
from kd_vision.pipeline.evaluate import predict_split
from kd_vision.pipeline.export import run_export
from kd_vision.pipeline.models import best_device, load_model
from kd_vision.pipeline.teachers import build_online_teachers
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

_EXAMPLES = 6


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
    picks = pick_examples(truth, detections[PLAIN], detections[DISTILLED], _EXAMPLES)
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


def _student_arms(root: Path, seeds: Sequence[int], control: bool) -> dict[str, list[int]]:
    """Return the arms with finished runs and their seeds: baseline, distilled, control, then any other folder."""
    others = sorted(p.name for p in root.iterdir() if p.name not in ARMS)
    names = [PLAIN, DISTILLED, *([CONTROL] if control else []), *others]
    arms = {name: [seed for seed in seeds if (root / name / f"seed{seed}/metrics.json").is_file()] for name in names}
    return {name: finished for name, finished in arms.items() if finished}


def _unmeasured(config: RunConfig) -> str:
    """Return a name for teachers without an arm, for the title."""
    if any(kind_of(teacher.config) in ("store", "dense_labels") for teacher in config.teachers):
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
    roles: Mapping[str, Role] = {PLAIN: "plain", DISTILLED: "distilled", CONTROL: "control"}
    texts = {
        PLAIN: "the same student, seed and steps without a teacher",
        DISTILLED: f"learns by {_terms_of(config)}",
        CONTROL: f"no teacher: its own labels through {_terms_of(control_config(config))}",
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
