"""The coverage gate: refuses a grid loss whose targets do not show what the teacher sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kd_vision.config.schema import RunConfig
from kd_vision.core.batch import ImageBatch, to_channels
from kd_vision.core.errors import GateError
from kd_vision.core.predictions import Signal, Signals
from kd_vision.data.loader import TrainStream
from kd_vision.engine.step import TrainingStep
from kd_vision.losses.grid import GridLoss
from kd_vision.losses.grid_coverage import CONFIDENT, Coverage

_LEAST_SHARE = 0.95
_ENOUGH_BOXES = 50
"""No further batch is read once a term has seen as many."""
_FEWEST_BOXES = 20
"""Fewer tell nothing: one box would be a step of 5 %."""
_BATCHES = 4
_SIGNALS: frozenset[Signal] = frozenset({"grid", "detections"})


@dataclass(frozen=True, slots=True)
class TermCoverage:
    """Coverage of one term.

    Attributes:
        term: its name.
        teacher: name of its teacher.
        counts: over the first batches of training.
        chosen_levels: the term's `levels` select what is taught, so that a low share is intended.
    """

    term: str
    teacher: str
    counts: Coverage
    chosen_levels: bool = False

    @property
    def is_measured(self) -> bool:
        """Whether there were boxes enough to judge."""
        return self.counts.boxes >= _FEWEST_BOXES

    def __str__(self) -> str:
        counts = self.counts
        text = f"the targets show {counts.shown} of the {counts.boxes} boxes that '{self.teacher}' scores {CONFIDENT:g}"
        return f"{text} or more" + (f" ({100 * counts.share:.1f} %)" if counts.boxes else "")


def measure_term_coverage(run: TrainingStep, stream: TrainStream, device: torch.device) -> list[TermCoverage]:
    """Measure every grid loss on the first batches of training, at most four, until it has seen 50 boxes.

    Args:
        run: the training step, on `device`; its weights and statistics stay as they are.
        stream: training batches; reading some of them does not change its state.
        device: of student and teachers.
    """
    if run.distiller is None:
        return []
    teacher_of = {name: run.distiller.teacher_of(name) for name in run.distiller.terms()}
    losses = {
        name: loss
        for name, loss in run.distiller.terms().items()
        if isinstance(loss, GridLoss) and "detections" in run.teachers[teacher_of[name]].spec.provides
    }
    counts = dict.fromkeys(losses, Coverage())
    for step in range(min(_BATCHES, stream.total_steps)):
        waiting = [name for name in losses if counts[name].boxes < _ENOUGH_BOXES]
        if not waiting:
            break
        batch = stream.batch_at(step).to(device).as_float()
        student, teachers = _sides(run, batch, {teacher_of[name] for name in waiting})
        for name in waiting:
            counts[name] += losses[name].coverage(student, teachers[teacher_of[name]], batch.targets)
    return [TermCoverage(name, teacher_of[name], counts[name], bool(losses[name].config.levels)) for name in losses]


@torch.no_grad()
def _sides(run: TrainingStep, batch: ImageBatch, asked: set[str]) -> tuple[Signals, dict[str, Signals]]:
    """Return the grids of the student, and grids and final boxes of the teachers by name; one-to-many branches.

    The student runs in evaluation mode, so that its running statistics do not change.
    """
    student, was_training = run.student, run.student.training
    images = to_channels(batch.images, student.spec.input_channels)
    output = student.eval()(images, signals=frozenset({"grid"}))
    student.train(was_training)
    return output.signals(), {name: run.teachers[name].signals(batch, _SIGNALS).signals() for name in asked}


def refuse_low_coverage(config: RunConfig, coverage: TermCoverage) -> None:
    """Refuse a term whose targets show too few of its teacher's boxes.

    Raises:
        GateError: naming the term, the numbers and the cure.
    """
    if not coverage.is_measured or coverage.chosen_levels or coverage.counts.share >= _LEAST_SHARE:
        return
    position, term = next((at, term) for at, term in enumerate(config.terms) if term.name == coverage.term)
    raise GateError(
        f"{config.source}: distill.{position} ({term.loss}): {coverage}, fewer than {100 * _LEAST_SHARE:g} %: the "
        f"student would learn the others as background; bring teacher.image_size nearer to image_size, or use "
        f"soft_boxes instead"
    )
