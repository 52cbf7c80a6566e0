"""The arms of a benchmark: one config each."""

from __future__ import annotations

from dataclasses import replace

from kd_vision.config.schema import RunConfig, TeacherConfig, TermConfig
from kd_vision.losses import load_loss
from kd_vision.teachers.ground_truth import GroundTruthConfig
from kd_vision.teachers.options import TeacherOptions

PLAIN, DISTILLED, CONTROL = "plain", "distilled", "control"
ARMS = (PLAIN, DISTILLED, CONTROL)
"""Folders of the runs: the baseline, the distilled student, and the control."""


def arm_config(config: RunConfig, name: str, seed: int) -> RunConfig:
    config = replace(config, train=config.train.model_copy(update={"seed": seed}))
    if name == CONTROL:
        return control_config(config)
    return config if name == DISTILLED else _baseline(config)


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
