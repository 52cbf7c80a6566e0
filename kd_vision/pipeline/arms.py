"""The arms of a benchmark: one config each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig, TeacherConfig, TermConfig
from kd_vision.config.trial import CONTROL as CONTROL
from kd_vision.config.trial import DISTILLED as DISTILLED
from kd_vision.config.trial import PLAIN as PLAIN
from kd_vision.config.trial import ArmRole, Trial
from kd_vision.core.errors import RequestError
from kd_vision.core.validation import StrictModel
from kd_vision.losses import load_loss
from kd_vision.teachers.build import kind_of
from kd_vision.teachers.ground_truth import GroundTruthConfig
from kd_vision.teachers.options import TeacherOptions

ARMS = (PLAIN, CONTROL, DISTILLED)
"""Folders of the runs: the baseline, the control, and the distilled student."""
ARM_FILE = "arm.json"
"""In the folder of an arm: ``{"role": ..., "description": ...}``."""


@dataclass(frozen=True, slots=True)
class StudentArm:
    """An arm that is trained.

    Attributes:
        name: of its folder.
        role: its part in comparisons.
        description: for the report.
        config: with the seed of the config file; see `at_seed`.
    """

    name: str
    role: ArmRole
    description: str
    config: RunConfig

    def at_seed(self, seed: int) -> RunConfig:
        """Return the config of one run."""
        return replace(self.config, train=self.config.train.model_copy(update={"seed": seed}))

    def to_mapping(self) -> dict[str, str]:
        """Return the content of `ARM_FILE`."""
        return {"role": self.role, "description": self.description}


def default_arms(config: RunConfig, control: bool = True) -> tuple[StudentArm, ...]:
    """Return plain, control and distilled; no control where the labels themselves are the only teacher."""
    names: tuple[tuple[str, ArmRole], ...] = ((PLAIN, "plain"), (CONTROL, "control"), (DISTILLED, "distilled"))
    return tuple(
        _arm(name, role, name, "", config)
        for name, role in names
        if name != CONTROL or (control and not has_labels_alone(config))
    )


def has_labels_alone(config: RunConfig) -> bool:
    """Return whether a run has no teacher but its own labels."""
    return all(isinstance(teacher.config, GroundTruthConfig) for teacher in config.teachers)


def trial_arms(trial: Trial) -> tuple[StudentArm, ...]:
    """Return the arms of a trial file."""
    return tuple(_arm(arm.name, arm.role, arm.base, arm.description, arm.config) for arm in trial.arms)


def _arm(name: str, role: ArmRole, base: str, description: str, config: RunConfig) -> StudentArm:
    own = arm_config(config, base, config.train.seed)
    return StudentArm(name, role, description or _description(base, own), own)


def _description(base: str, config: RunConfig) -> str:
    terms = [(term.name, term.config.weight, getattr(term.config, "balance", 0.0)) for term in config.terms]
    text = ", ".join(f"{name} x{weight}" + (f" (balance {b:g})" if b else "") for name, weight, b in terms)
    if base == PLAIN:
        return "the same student, seed and steps without a teacher"
    return f"no teacher: its own labels through {text}" if base == CONTROL else f"learns by {text}"


def arm_config(config: RunConfig, name: str, seed: int) -> RunConfig:
    """Return the config of one run of `plain`, `control` or `distilled`."""
    config = replace(config, train=config.train.model_copy(update={"seed": seed}))
    if name == CONTROL:
        return control_config(config)
    return config if name == DISTILLED else _baseline(config)


def _baseline(config: RunConfig) -> RunConfig:
    """Return the run without teacher, without unlabelled images, and without weights inherited from a teacher."""
    settings = config.train.model_copy(update={"unlabelled_ratio": 0.0})
    student = config.student
    if getattr(student, "inherit", None) is not None:  # it is the teacher's gift, too
        student = student.model_copy(update={"inherit": None})
    return replace(config, student=student, teachers=(), terms=(), recipe=None, train=settings)


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


def notes_on(arms: Sequence[StudentArm], teachers: Sequence[TeacherConfig], steps: Mapping[str, int]) -> list[str]:
    """Return what a reader of the report must know: a better start that was not used, arms of unequal length.

    Args:
        arms: that are trained.
        teachers: of the config that they come from.
        steps: of each arm, by name.
    """
    random = [arm.name for arm in arms if starts_at_random(arm.config.student)]
    student = arms[0].config.student
    better = _better_start(student, teachers)
    notes = []
    if random and better:
        keys = " or ".join(f"student.{key}" for key in ("weights", "inherit") if key in type(student).model_fields)
        notes.append(
            f"the student starts from random weights ({', '.join(random)}), while a better start is known: {better}. "
            f"A user would take that start, and a gain over a random start says little about it; set {keys}"
        )
    if len(set(steps.values())) > 1:
        lengths = ", ".join(f"{name} {count}" for name, count in steps.items())
        notes.append(f"the arms are trained for different numbers of steps: {lengths}")
    return notes


def starts_at_random(student: StrictModel) -> bool:
    """Return whether no layer of the student has learned anything when training starts."""
    given = [getattr(student, key, None) for key in ("weights", "inherit", "pretrained")]
    return all(value in (None, False, "none") for value in given)


def _better_start(student: StrictModel, teachers: Sequence[TeacherConfig]) -> str:
    """Return why pretrained weights for the student are within reach; empty: none are known."""
    for teacher in teachers:
        start = _start_of(teacher)
        if start:
            return f"the teacher '{teacher.name}' itself was trained from {start}"
        if kind_of(teacher.config) == kind_of(student) and not teacher.entry.follows_student:
            family = kind_of(student)
            return f"the teacher '{teacher.name}' is of the student's family, {family}, which has pretrained weights"
    return ""


def _start_of(teacher: TeacherConfig) -> str:
    """Return the pretrained weights that a teacher trained by us started from, as its run directory says."""
    file = teacher.weights.parent / "config.yaml" if teacher.weights else None
    if file is None or not file.is_file():
        return ""
    try:
        student = load_config(file, files_exist=False).student
    except RequestError:  # of another version, or no config of ours
        return ""
    weights, pretrained = getattr(student, "weights", None), getattr(student, "pretrained", "none")
    return weights.name if weights is not None else f"pretrained: {pretrained}" if pretrained != "none" else ""
