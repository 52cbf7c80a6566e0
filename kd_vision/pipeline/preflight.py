"""Refuses settings with which terms would have no effect, before training."""

from __future__ import annotations

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import RequestError
from kd_vision.pipeline.parts import RunParts


def refuse_low_thresholds(config: RunConfig, parts: RunParts) -> None:
    """Refuse a term whose thresholds are below its teacher's: boxes that the teacher drops would become background.

    Raises:
        RequestError: naming the term.
    """
    for position, term in enumerate(config.terms):
        thresholds = ("min_score",) if term.teacher in parts.dense else ("ignore_threshold", "score_threshold")
        keys = [key for key in thresholds if hasattr(term.config, key)]
        teacher = parts.teachers[term.teacher]
        floor = teacher.score_threshold
        lowest = min((float(getattr(term.config, key)) for key in keys), default=1.0)
        if lowest < floor:
            cure = (
                f"label again with {'--dense ' if term.teacher in parts.dense else ''}--score {lowest:g}"
                if term.teacher in {**parts.offline, **parts.dense}
                else "lower the teacher's postprocess.score_threshold"
            )
            raise RequestError(
                f"{config.source}: distill.{position}.{keys[0]}: {lowest:g} is below {floor:g}, the score threshold of "
                f"'{term.teacher}'; raise it, or {cure}"
            )


def refuse_dead_steps(config: RunConfig, steps: int) -> None:
    """Refuse a run that ends before its ``auto`` weights are set, or has steps without any active loss.

    Raises:
        RequestError: naming the terms, or the part of training.
    """
    if config.train.label_fraction == 0:
        _refuse_gaps(config)
    waiting = [term.name for term in config.terms if term.config.weight == "auto"]
    if waiting and steps <= config.train.calibrate_at:
        raise RequestError(
            f"{config.source}: train.calibrate_at: the run ends after {steps} steps, before the weight of "
            f"{', '.join(waiting)} is set at step {config.train.calibrate_at}; set it lower, or give numbers"
        )


def _refuse_gaps(config: RunConfig) -> None:
    """Refuse, without labels, ``auto`` weights, which need a task gradient, and times without an active term."""
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
                f"active; close the gap between the windows"
            )
