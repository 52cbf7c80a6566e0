"""Refuses what could not teach, before anything is spent."""

from __future__ import annotations

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import RequestError
from kd_vision.knowledge.store import Store
from kd_vision.losses.distiller import KNOWLEDGE
from kd_vision.pipeline.parts import RunParts


def refuse_low_thresholds(config: RunConfig, parts: RunParts) -> None:
    """A term must not ask for boxes less sure than what its teacher says: their places would become background.

    Raises:
        RequestError: naming the term.
    """
    floors = {name: teacher.options.score_threshold for name, teacher in parts.teachers.items()}
    for asked_of in config.teachers:  # an ensemble never says what it does not hear
        heard_from = getattr(asked_of.source, "min_score", 0.0)
        floors[asked_of.name] = max(floors.get(asked_of.name, 0.0), heard_from)
    if isinstance(parts.knowledge, Store):
        floors[KNOWLEDGE] = float(str(parts.knowledge.manifest.options.get("score_threshold", 0.0)))
    for position, term in enumerate(config.terms):
        key = "ignore_threshold" if hasattr(term.config, "ignore_threshold") else "score_threshold"
        asked, floor = getattr(term.config, key, 1.0), floors.get(term.teacher, 0.0)
        if asked < floor:
            raise RequestError(
                f"{config.source}: distill.{position}.{key}: {asked:g} is below {floor:g}, the least score that "
                f"'{term.teacher}' speaks of; raise it, or label again with --score {asked:g}"
            )


def refuse_dead_steps(config: RunConfig, steps: int) -> None:
    """Refuse a run that would end before its ``auto`` weights are set, or in parts of which nothing teaches.

    Raises:
        RequestError: naming the terms, or the part of training.
    """
    if config.train.label_fraction == 0:
        _refuse_silent_parts(config)
    waiting = [term.name for term in config.terms if term.config.weight == "auto"]
    if waiting and steps <= config.train.calibrate_at:
        raise RequestError(
            f"{config.source}: train.calibrate_at: the run ends after {steps} steps, before the weight of "
            f"{', '.join(waiting)} is set at step {config.train.calibrate_at}; set it lower, or give numbers"
        )


def _refuse_silent_parts(config: RunConfig) -> None:
    """Without labels only the terms teach: none may wait for a task's gradient, and one must always be open."""
    waiting = [term.name for term in config.terms if term.config.weight == "auto"]
    if waiting:
        raise RequestError(
            f"{config.source}: train.label_fraction: without labels there is no gradient to scale {', '.join(waiting)} "
            f"by; give weights as numbers"
        )
    for percent in range(100):
        if not any(term.config.schedule.takes_part(percent / 100) for term in config.terms):
            raise RequestError(
                f"{config.source}: train.label_fraction: is 0, and at {percent} % of training no term of 'distill' is "
                f"open; close the gap between the windows"
            )
