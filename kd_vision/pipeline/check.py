"""Checks a run before training: data, models, losses, teachers, gradients, memory and disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import GateError, RequestError, TrainingError
from kd_vision.data.check import check_data
from kd_vision.data.loader import TrainStream
from kd_vision.data.records import DetectionData
from kd_vision.engine.step import TermGuard, TrainingStep, gradient_norms, terms
from kd_vision.evaluation.metrics import Metrics
from kd_vision.losses import load_loss
from kd_vision.losses.distiller import Distiller
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.coverage import measure_term_coverage, refuse_low_coverage
from kd_vision.pipeline.data import RunData, build_stream
from kd_vision.pipeline.inherit import start_as_copy
from kd_vision.pipeline.parts import RunParts
from kd_vision.pipeline.preflight import refuse_dead_steps
from kd_vision.pipeline.teacher_gate import measure_teachers, refuse_weak_teacher
from kd_vision.pipeline.teachers import teacher_input_size

State = Literal["ok", "warning", "error", "gate"]
_PROBE_BATCHES = 2
_MAX_DEFECTS = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check.

    Attributes:
        topic: what was checked.
        state: `error`: the request is wrong (exit 2); `gate`: a gate failed (exit 3).
        text: the result.
    """

    topic: str
    state: State
    text: str


def check(config: RunConfig | Path | str, progress: Callable[[str], None] = lambda topic: None) -> list[Finding]:
    """Check data, models, losses, teachers and gradients; return every result, good and bad.

    Args:
        config: a config, or the path of one.
        progress: called with each topic when its check starts.

    Raises:
        RequestError: the config itself is wrong.
    """
    if not isinstance(config, RunConfig):
        config = load_config(config)
    findings: list[Finding] = []
    progress("data")
    try:
        data = RunData(config.data)
    except RequestError as error:
        return [Finding("data", "error", line) for line in error.problems]
    findings += _data(data)
    progress("models")
    try:
        labelled, unlabelled = data.training(config)
        truth = data.split(config.evaluate.split)
        data.final_split(config)
        parts = build_parts(config, data)
        inheritance = start_as_copy(parts.student, config, data)
        labelled, unlabelled = parts.with_pseudo_labels(labelled), unlabelled and parts.with_pseudo_labels(unlabelled)
        size = teacher_input_size(config, parts.teachers)
        stream = build_stream(_light(config), labelled, unlabelled, parts.channels, teacher_size=size)
        refuse_dead_steps(config, config.train.epochs * stream.steps_per_epoch)
    except RequestError as error:
        return findings + [Finding("models", "error", line) for line in error.problems]
    findings += _pair(parts) + _pair_warnings(config, parts)
    if inheritance is not None:
        findings.append(Finding("inherit", "ok", str(inheritance)))
    if config.is_distilled:
        progress("teacher's mAP")
        findings += _teachers(config, parts, truth, labelled)
        progress("coverage of grid losses")
        findings += _coverage(config, parts, stream)
    progress("gradients on two batches")
    return findings + _liveness(config, parts, stream)


def exit_code(findings: list[Finding]) -> int:
    """Return 0, 2 for a wrong request, or 3 where only a gate failed."""
    states = {finding.state for finding in findings}
    return 2 if "error" in states else 3 if "gate" in states else 0


def _light(config: RunConfig) -> RunConfig:
    """Return the run without worker processes and cache, which two batches do not need."""
    return replace(config, train=config.train.model_copy(update={"workers": 0, "cache": "none"}))


def _data(data: RunData) -> list[Finding]:
    defects = check_data(data.descriptor)
    findings = [Finding("data", defect.level, str(defect)) for defect in defects[:_MAX_DEFECTS]]
    if len(defects) > _MAX_DEFECTS:
        findings.append(Finding("data", "warning", f"{len(defects) - _MAX_DEFECTS} more; see `kd-vision data check`"))
    return findings or [Finding("data", "ok", "no defect")]


def _pair(parts: RunParts) -> list[Finding]:
    spec = parts.student.spec
    findings = [
        Finding("student", "ok", f"{spec.name}, {spec.parameters / 1e6:.2f} M parameters, {len(spec.classes)} classes, "
                f"strides {', '.join(str(s) for s in spec.level_strides.values())}")
    ]  # fmt: skip
    if parts.distiller is None:
        return [*findings, Finding("teacher", "ok", "none: plain training")]
    for name, teacher in parts.specs.items():
        size = f"{teacher.parameters / 1e6:.2f} M parameters" if teacher.parameters else "a black box"
        classes = "same classes" if teacher.classes == spec.classes else "other classes: features only"
        signals = ", ".join(sorted(teacher.provides))
        findings.append(Finding(name, "ok", f"{teacher.name}, {size}, {classes}, provides {signals}"))
        if teacher.missing_classes:
            missing = ", ".join(sorted(teacher.missing_classes))
            findings.append(Finding(name, "warning", f"never learned {missing}: its losses leave these classes out"))
        if 0 < teacher.parameters < spec.parameters:
            findings.append(Finding(name, "warning", "is smaller than the student"))
    return findings


def _pair_warnings(config: RunConfig, parts: RunParts) -> list[Finding]:
    """Return the warnings of terms that fit the pair: a resampled grid, a class without a teacher."""
    specs, student = parts.specs, parts.student.spec
    return [
        Finding("losses", "warning", f"{term.name}: {warning}")
        for term in config.terms
        for warning in load_loss(term.loss).pair_warnings(term.config, student, specs[term.teacher])
    ]


def _teachers(config: RunConfig, parts: RunParts, truth: DetectionData, labelled: DetectionData) -> list[Finding]:
    findings = []
    for score in measure_teachers(config, parts, truth, labelled):
        topic = f"{score.name}'s mAP"
        try:
            refuse_weak_teacher(config, score)
        except GateError as error:
            findings.append(Finding(topic, "gate", str(error)))
            continue
        if score.teacher is None or score.student is None:
            findings.append(Finding(topic, "warning", f"cannot be measured on '{score.split}'"))
        else:
            findings.append(Finding(topic, "ok", _compare(score.teacher, score.student, score.split)))
    return findings


def _compare(teacher: Metrics, student: Metrics, split: str) -> str:
    return f"AP {100 * (teacher.ap or 0):.1f} on '{split}'; untrained student {100 * (student.ap or 0):.1f}"


def _coverage(config: RunConfig, parts: RunParts, stream: TrainStream) -> list[Finding]:
    """Measure how many of its teacher's boxes the targets of each grid loss show."""
    findings = []
    run = TrainingStep(parts.student, parts.distiller, parts.teachers)
    try:
        measured = measure_term_coverage(run, stream, torch.device("cpu"))
    except RequestError:
        return []  # of a term that cannot be computed, which the check of gradients reports
    for coverage in measured:
        text = f"{coverage.term}: {coverage}"
        try:
            refuse_low_coverage(config, coverage)
        except GateError as error:
            findings.append(Finding("coverage", "gate", str(error)))
            continue
        state: State = "ok" if coverage.is_measured else "warning"
        findings.append(Finding("coverage", state, text if coverage.is_measured else f"{text}: too few to judge"))
    return findings


def _liveness(config: RunConfig, parts: RunParts, stream: Any) -> list[Finding]:
    """Run two batches; measure every term's gradient at the neck, and the memory of a step."""
    distiller = parts.distiller
    run = TrainingStep(parts.student, distiller, parts.teachers).train()
    guard = TermGuard(distiller)
    norms: list[dict[str, float]] = []
    saved_bytes = 0
    try:
        for step, batch in zip(range(_PROBE_BATCHES), stream.batches(), strict=False):
            with _SavedBytes() as saved:
                step_terms = terms(run, batch.as_float(), with_features=True)
                guard.check(step_terms, step)
            saved_bytes = max(saved_bytes, saved.total)
            norms.append(gradient_norms(step_terms))
            run.zero_grad()
    except (TrainingError, RequestError) as error:
        return [Finding("gradients", "error", str(error))]
    return [*_shares(distiller, norms), *_costs(config, run, saved_bytes)]


def _shares(distiller: Distiller | None, norms: list[dict[str, float]]) -> list[Finding]:
    findings = []
    weights = distiller.weights(0.5) if distiller else {}
    for name, loss in (distiller.terms() if distiller else {}).items():
        if not all(n[name] for n in norms):
            state: State = "warning" if loss.can_be_zero else "error"
            findings.append(Finding("gradients", state, f"{name}: zero at the student's neck on two batches"))
            continue
        shares = [weights[name] * n[name] / n["task"] for n in norms if n.get("task")]
        text = f"{name}: has a gradient"
        if shares and loss.config.weight != "auto":
            text += f", {100 * sum(shares) / len(shares):.0f} % of the task's gradient at weight {weights[name]:g}"
        findings.append(Finding("gradients", "ok", text))
    return findings


def _costs(config: RunConfig, run: TrainingStep, saved_bytes: int) -> list[Finding]:
    trained = sum(p.numel() for p in run.parameters())
    frozen = sum(teacher.spec.parameters for teacher in run.teachers.values())
    # weights, gradients, two moments, moving average of the student; weights of the teachers
    memory = 4 * (5 * trained + frozen) + saved_bytes
    disk = 4 * (5 * trained) * 2 + 4 * trained  # two checkpoints and the student
    return [
        Finding("memory", "ok", f"about {memory / 1e9:.2f} GB on the device at batch {config.train.batch_size}"),
        Finding("disk", "ok", f"about {disk / 1e6:.0f} MB in the run directory"),
    ]


class _SavedBytes:
    """Counts the bytes that autograd saves for the backward pass, each storage once."""

    def __init__(self) -> None:
        self.total = 0
        self._seen: set[int] = set()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> _SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._seen:
            self._seen.add(address)
            self.total += tensor.untyped_storage().nbytes()
        return tensor
