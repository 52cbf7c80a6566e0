"""From the classes a teacher answers with to those a student learns.

Shapes: M boxes, Kt classes of the teacher, K classes of the student.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kd_vision.core.errors import RequestError, quote_some, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from kd_vision.core.predictions import BatchDetections

DROP, IGNORE, REST = "drop", "ignore", "*"
_MISSING_LOGIT = -20.0


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Which classes of a teacher stand for which class of the student.

    Attributes:
        teacher: the teacher's classes, in its order.
        student: the student's, in label order.
        sources: for each class of the student the positions of the teacher's classes it is made of; empty:
            the teacher never learned it.
        ignored: positions of teacher classes whose boxes teach nothing, neither object nor background.
    """

    teacher: tuple[str, ...]
    student: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]
    ignored: frozenset[int] = frozenset()

    @property
    def missing_classes(self) -> frozenset[str]:
        """Classes of the student that the teacher never learned."""
        return frozenset(name for name, found in zip(self.student, self.sources, strict=True) if not found)

    @property
    def is_identity(self) -> bool:
        """True where nothing changes."""
        return self.teacher == self.student and all(found == (k,) for k, found in enumerate(self.sources))

    @property
    def merges(self) -> bool:
        """True where several classes of the teacher become one, so that one object may get two boxes."""
        return any(len(found) > 1 for found in self.sources)

    def logits(self, logits: Tensor) -> Tensor:
        """Map (..., Kt) to (..., K): the largest of a class's sources; a silent class gets a logit of -20."""
        import torch

        columns = [
            logits[..., list(found)].amax(dim=-1) if found else torch.full_like(logits[..., 0], _MISSING_LOGIT)
            for found in self.sources
        ]
        return torch.stack(columns, dim=-1)

    def probabilities(self, probs: Tensor) -> Tensor:
        """Map (..., Kt) probabilities to (..., K): the largest of a class's sources; 0 for a silent class."""
        import torch

        columns = [
            probs[..., list(found)].amax(dim=-1) if found else torch.zeros_like(probs[..., 0]) for found in self.sources
        ]
        return torch.stack(columns, dim=-1)

    def detections(self, detections: BatchDetections) -> BatchDetections:
        """Map the boxes of a batch; a box belongs to the student's class that its own class stands for.

        Boxes of dropped classes go; boxes of ignored classes stay, marked.
        """
        import torch

        labels = detections.labels
        target = labels.new_full((len(self.teacher),), -1)
        for label, sources in enumerate(self.sources):
            target[list(sources)] = label
        ignore = torch.isin(labels, labels.new_tensor(sorted(self.ignored)))
        if detections.ignore is not None:
            ignore |= detections.ignore
        mapped = replace(
            detections,
            labels=target[labels].clamp(min=0),
            class_probs=self.probabilities(detections.probabilities(len(self.teacher))),
            ignore=ignore,
        )
        return mapped.take((target[labels] >= 0) | ignore)


def stringify_keys(labels: Any) -> Any:
    """Return the `labels:` of a config with words as keys: YAML reads a class named 1, or `no`, as something else."""
    return {str(key): goal for key, goal in labels.items()} if isinstance(labels, Mapping) else labels


def build_label_map(
    teacher: tuple[str, ...], student: tuple[str, ...], given: Mapping[str, str] | None, where: str
) -> LabelMap:
    """Build a map; names that both sides have need not be mentioned.

    Args:
        teacher: its classes.
        student: the data's classes.
        given: teacher name to student name, ``drop`` or ``ignore``; ``"*"`` speaks for the teacher's classes
            that are not mentioned. None: both sides must have the same names.
        where: key of the config, for messages.

    Raises:
        RequestError: a name is unknown on either side, a class of the teacher is left without a word, or no
            class of the student is learned from anything; every mistake at once.
    """
    if given is None and set(teacher) != set(student):
        raise RequestError(_do_not_fit(teacher, student, where))
    wrong = _mistakes(teacher, student, given or {}, where)
    if wrong:
        raise RequestError(*wrong)
    said = dict(given or {})
    rest = said.pop(REST, None)
    target = {name: said.get(name, name if name in student else rest) for name in teacher}
    lost = [name for name, goal in target.items() if goal is None]
    if lost:
        raise RequestError(
            f"{where}: the teacher's {quote_some(lost)} {'is' if len(lost) == 1 else 'are'} neither a class of the "
            f"data nor mapped; add e.g. {_example(lost, student)}"
        )
    sources = tuple(tuple(i for i, name in enumerate(teacher) if target[name] == goal) for goal in student)
    if not any(sources):
        raise RequestError(f"{where}: no class of the teacher is mapped to one of the data's ({quote_some(student)})")
    ignored = frozenset(i for i, name in enumerate(teacher) if target[name] == IGNORE)
    return LabelMap(teacher, student, sources, ignored)


def _do_not_fit(teacher: tuple[str, ...], student: tuple[str, ...], where: str) -> str:
    lacks = [name for name in student if name not in teacher]
    extra = [name for name in teacher if name not in student]
    said = f"it lacks {quote_some(lacks)}" if lacks else ""
    said += (" and has " if said else "it has ") + f"{quote_some(extra)} beside" if extra else ""
    return (
        f"{where}: the teacher's classes are not the data's: {said}; say what stands for what, e.g. "
        f"{_example(extra, lacks)}"
    )


def _mistakes(teacher: tuple[str, ...], student: tuple[str, ...], given: Mapping[str, str], where: str) -> list[str]:
    goals = (*student, DROP, IGNORE)
    found = [f"{where}: the data's class '{name}' has the name of an instruction; rename it in the data"
             for name in (DROP, IGNORE) if name in student]  # fmt: skip
    for name, goal in given.items():
        if name == REST:
            if goal not in (DROP, IGNORE):
                found.append(f"{where}.'*': must be {DROP} or {IGNORE}, given '{goal}'")
            continue
        if name not in teacher:
            found.append(f"{where}.{name}: the teacher has no such class{suggest(name, teacher)}")
        if goal not in goals:
            found.append(f"{where}.{name}: '{goal}' is no class of the data{suggest(goal, goals)}")
    return found


def _example(teacher_names: list[str], student_names: tuple[str, ...] | list[str]) -> str:
    """A `labels:` line built from near misses: ``labels: {tvmonitor: tv, "*": drop}``."""
    pairs = {near: name for name in student_names if (near := _near(name, teacher_names))}
    parts = [f"{near}: {name}" for near, name in pairs.items()]
    return f'labels: {{{", ".join([*parts, f""" "{REST}": {DROP}""".strip()])}}}'


def _near(name: str, among: list[str]) -> str | None:
    import difflib

    contained = [other for other in among if name.lower() in other.lower() or other.lower() in name.lower()]
    close = difflib.get_close_matches(name, among, n=1, cutoff=0.6)
    near = contained or close
    return near[0] if near else None
