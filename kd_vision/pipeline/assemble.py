"""Gathers the finished runs of a benchmark into its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kd_vision.config.schema import RunConfig
from kd_vision.core.files import read_json
from kd_vision.core.predictions import Detections
from kd_vision.core.progress import ProgressFactory, log_progress
from kd_vision.core.run_directory import RunDirectory
from kd_vision.core.validation import StrictModel, validate
from kd_vision.data.records import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.metrics import Metrics
from kd_vision.pipeline.arms import ARMS, CONTROL, DISTILLED, PLAIN, control_config
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.environment import hardware, versions
from kd_vision.pipeline.evaluate import predict_split
from kd_vision.pipeline.measurements import check_budget, predict_run, read_matches, with_errors, with_latencies
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
from kd_vision.report.differences import Differences
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
    teachers = _teachers(config, truth, progress)
    students = _student_arms(root, seeds, control)
    detections = {name: found for name, (_, found) in teachers.items()}
    for name, finished in students.items():
        if finished[0] == seeds[0]:
            detections[name] = predict_run(config, _run_of(root, name, seeds[0]).root, truth, progress)
    arms = [arm for arm, _ in teachers.values()]
    arms += [_student_arm(config, name, finished, root) for name, finished in students.items()]
    arms = with_latencies(config, arms, root) if with_latency else arms
    arms = [with_errors(arm, truth, detections) for arm in arms]
    runs = [(name, seed) for name, finished in students.items() for seed in finished]
    tables = {run: read_matches(config, _run_of(root, *run), truth, progress) for run in runs}
    picks = pick_examples(truth, detections[PLAIN], detections[DISTILLED], _EXAMPLES)
    result = BenchmarkData(
        title=_title(arms, _unmeasured(config)),
        data=_data_facts(config, truth),
        image_size=config.image_size,
        steps=_steps(root, arms),
        seeds=tuple(seeds),
        arms=tuple(arms),
        box_counts=next(iter(tables.values())).box_counts(),
        budget=check_budget(config, root, seeds[0], data, progress),
        examples=write_examples(root, truth, picks, detections),
        examples_seed=seeds[0],
        **_circumstances(),
    )
    return _write(root, result.model_copy(update={"differences": Differences(tables).of_all(result.comparisons())}))


def _circumstances() -> dict[str, Any]:
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["kd-vision", *sys.argv[1:]]),
        "hardware": {name: value for name, value in hardware().items() if not isinstance(value, list)},
        "versions": versions(),
    }


def _write(root: Path, data: BenchmarkData) -> BenchmarkResult:
    write_benchmark(root, data)
    markdown, html = write_benchmark_report(root)
    return BenchmarkResult(root, data, html, markdown)


def _run_of(root: Path, name: str, seed: int) -> RunDirectory:
    """Return the directory of a run of a student in the benchmark directory `root`."""
    return RunDirectory(root / name / f"seed{seed}")


def _teachers(
    config: RunConfig, truth: DetectionData, progress: ProgressFactory
) -> dict[str, tuple[Arm, dict[int, Detections]]]:
    """Return the arm and the detections of every teacher whose classes are those of the data."""
    arms = {}
    for name, teacher in build_online_teachers(config, truth.classes).items():
        if teacher.spec.classes != truth.classes:  # a teacher of features only; its boxes are of other classes
            continue
        teacher.to(best_device())
        image_size = teacher.image_size or config.image_size
        detections = predict_split(teacher, truth, image_size, config.evaluate, progress)
        metrics = evaluate_detections(truth, detections, config.evaluate.backend)
        arms[name] = (
            _teacher_arm(name, teacher.to("cpu"), image_size, metrics, _teacher_file(config, name)),
            detections,
        )
    return arms


def _data_facts(config: RunConfig, truth: DetectionData) -> DataFacts:
    """Return the facts of the split, named after its descriptor, or the folder of a file called ``data.yaml``."""
    name = config.data.parent.name if config.data.stem == "data" else config.data.stem
    return DataFacts(name=name, split=truth.name, n_images=len(truth.images), classes=truth.classes)


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


def _student_arm(config: RunConfig, name: str, seeds: Sequence[int], root: Path) -> Arm:
    student = root / name / f"seed{seeds[0]}" / "student.pt"
    loaded = load_model(student, config.image_size)
    assert loaded.detector is not None
    facts = _arm_facts(config, student.parent)
    return Arm(
        name=name,
        role=facts.role,
        description=facts.description,
        model=loaded.detector.spec.name,
        parameters=loaded.detector.spec.parameters,
        gflops=gflops(loaded.detector, config.image_size),
        file_bytes=student.stat().st_size,
        runs=tuple(_arm_run(root, name, seed) for seed in seeds),
    )


class _ArmFacts(StrictModel):
    """The content of ``arm.json``, which an arm that is trained from a config of its own has in its folder."""

    role: Role
    description: str


def _arm_facts(config: RunConfig, run: Path) -> _ArmFacts:
    """Return role and description of a student from the ``arm.json`` of its folder, or by the folder's name.

    A run that was made by another tool may describe itself in ``description.txt``.

    Raises:
        RequestError: ``arm.json`` is wrong.
    """
    given, described, name = run.parent / "arm.json", run / "description.txt", run.parent.name
    if given.is_file():
        return validate(_ArmFacts, read_json(given), str(given))
    known: Mapping[str, tuple[Role, str]] = {
        PLAIN: ("plain", "the same student, seed and steps without a teacher"),
        DISTILLED: ("distilled", f"learns by {_terms_of(config)}"),
        CONTROL: ("control", f"no teacher: its own labels through {_terms_of(control_config(config))}"),
    }
    role, text = known.get(name, ("other", name))
    if described.is_file():
        text = described.read_text(encoding="utf-8").strip()
    return _ArmFacts(role=role, description=text)


def _terms_of(config: RunConfig) -> str:
    terms = [(term.name, term.config.weight, getattr(term.config, "balance", 0.0)) for term in config.terms]
    return ", ".join(f"{name} x{weight}" + (f" (balance {b:g})" if b else "") for name, weight, b in terms)


def _arm_run(root: Path, name: str, seed: int) -> ArmRun:
    directory = _run_of(root, name, seed)
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


def gflops(detector: Detector, image_size: int) -> float:
    """Return billions of floating-point operations for one image (a multiply-add is two)."""
    module = detector.export_module()
    image = torch.zeros(1, detector.spec.input_channels, image_size, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(image)
    return float(counter.get_total_flops()) / 1e9
