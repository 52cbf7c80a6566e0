"""Maps the classes of a teacher to the classes of a student.

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
    """Which classes of a teacher become which class of the student.

    Attributes:
        teacher: the teacher's classes, in its order.
        student: the student's, in label order.
        sources: for each class of the student the positions of the teacher's classes that become it; empty:
            the teacher never learned the class.
        ignored: positions of teacher classes whose boxes are ignored: neither object nor background.
    """

    teacher: tuple[str, ...]
    student: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]
    ignored: frozenset[int] = frozenset()

    @property
    def missing_classes(self) -> frozenset[str]:
        """Classes of the student that the teacher never learned."""
        return frozenset(name for name, sources in zip(self.student, self.sources, strict=True) if not sources)

    @property
    def is_identity(self) -> bool:
        """True where every class becomes itself."""
        return self.teacher == self.student and all(sources == (k,) for k, sources in enumerate(self.sources))

    @property
    def merges(self) -> bool:
        """True where several classes of the teacher become one, so that one object may get two boxes."""
        return any(len(sources) > 1 for sources in self.sources)

    def logits(self, logits: Tensor) -> Tensor:
        """Map (..., Kt) to (..., K): the largest logit of a class's sources; -20 for a missing class."""
        import torch

        columns = [
            logits[..., list(sources)].amax(dim=-1) if sources else torch.full_like(logits[..., 0], _MISSING_LOGIT)
            for sources in self.sources
        ]
        return torch.stack(columns, dim=-1)

    def probabilities(self, probs: Tensor) -> Tensor:
        """Map (..., Kt) probabilities to (..., K): the largest of a class's sources; 0 for a missing class."""
        import torch

        columns = [
            probs[..., list(sources)].amax(dim=-1) if sources else torch.zeros_like(probs[..., 0])
            for sources in self.sources
        ]
        return torch.stack(columns, dim=-1)

    def detections(self, detections: BatchDetections) -> BatchDetections:
        """Map the boxes of a batch to the student's classes.

        Boxes of dropped classes are removed; boxes of ignored classes are kept and marked.
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
    """Return the `labels:` of a config with strings as keys: YAML reads a class named 1, or `no`, as another type."""
    return {str(key): target for key, target in labels.items()} if isinstance(labels, Mapping) else labels


def build_label_map(
    teacher: tuple[str, ...], student: tuple[str, ...], given: Mapping[str, str] | None, where: str
) -> LabelMap:
    """Build a map; a name that teacher and data share need not be given.

    Args:
        teacher: its classes.
        student: the data's classes.
        given: teacher name to student name, ``drop`` or ``ignore``; ``"*"`` maps all teacher classes that are not
            given and not in the data. None: both sides must have the same names.
        where: key of the config, for messages.

    Raises:
        RequestError: a name is unknown on either side, a class of the teacher is not mapped, or no class of the
            teacher is mapped to one of the student; every mistake at once.
    """
    if given is None and set(teacher) != set(student):
        raise RequestError(_different_classes(teacher, student, where))
    errors = _unknown_names(teacher, student, given or {}, where)
    if errors:
        raise RequestError(*errors)
    targets = dict(given or {})
    rest = targets.pop(REST, None)
    target = {name: targets.get(name, name if name in student else rest) for name in teacher}
    unmapped = [name for name in teacher if target[name] is None]
    if unmapped:
        raise RequestError(
            f"{where}: the teacher's {quote_some(unmapped)} {'is' if len(unmapped) == 1 else 'are'} neither a class "
            f"of the data nor mapped; add e.g. {_example(unmapped, student)}"
        )
    sources = tuple(tuple(i for i, name in enumerate(teacher) if target[name] == label) for label in student)
    if not any(sources):
        raise RequestError(f"{where}: no class of the teacher is mapped to one of the data's ({quote_some(student)})")
    ignored = frozenset(i for i, name in enumerate(teacher) if target[name] == IGNORE)
    return LabelMap(teacher, student, sources, ignored)


def _different_classes(teacher: tuple[str, ...], student: tuple[str, ...], where: str) -> str:
    missing = [name for name in student if name not in teacher]
    extra = [name for name in teacher if name not in student]
    parts = [f"it has no {quote_some(missing)}"] * bool(missing) + [f"it also has {quote_some(extra)}"] * bool(extra)
    return (
        f"{where}: the teacher's classes are not the data's: {', and '.join(parts)}; map them with labels, e.g. "
        f"{_example(extra, missing)}"
    )


def _unknown_names(
    teacher: tuple[str, ...], student: tuple[str, ...], given: Mapping[str, str], where: str
) -> list[str]:
    targets = (*student, DROP, IGNORE)
    errors = [f"{where}: the data's class '{name}' has the name of an instruction; rename it in the data"
              for name in (DROP, IGNORE) if name in student]  # fmt: skip
    for name, target in given.items():
        if name == REST:
            if target not in (DROP, IGNORE):
                errors.append(f"{where}.'*': must be {DROP} or {IGNORE}, given '{target}'")
            continue
        if name not in teacher:
            errors.append(f"{where}.{name}: the teacher has no such class{suggest(name, teacher)}")
        if target not in targets:
            errors.append(f"{where}.{name}: '{target}' is no class of the data{suggest(target, targets)}")
    return errors


def _example(teacher_names: list[str], student_names: tuple[str, ...] | list[str]) -> str:
    """A `labels:` line built from near misses: ``labels: {tvmonitor: tv, "*": drop}``."""
    pairs = {near: name for name in student_names if (near := _near(name, teacher_names))}
    parts = [f"{near}: {name}" for near, name in pairs.items()]
    return f'labels: {{{", ".join([*parts, f""" "{REST}": {DROP}""".strip()])}}}'


def _near(name: str, among: list[str]) -> str | None:
    import difflib

    contained = [other for other in among if name.lower() in other.lower() or other.lower() in name.lower()]
    near = contained or difflib.get_close_matches(name, among, n=1, cutoff=0.6)
    return near[0] if near else None
