"""Gives each channel of a student its channel of the teacher.

Two channels can correspond where the same layers make them and the same layers read them. Of the teacher's channels
that correspond to a group of the student's, the strongest are taken.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kd_vision.inherit.channels import NO_CHANNEL, ChannelGraph, Ids

Strengths = npt.NDArray[np.float64]
Role = tuple[tuple[str, str], ...]
"""Layers that make and read a channel: (``out`` or ``in``, layer)."""


@dataclass(frozen=True, slots=True)
class Matching:
    """Which channel of the teacher each channel of the student continues.

    Attributes:
        student, teacher: the traced networks.
        layers: the teacher's module for a module of the student, by name.
        classes: the teacher's class for a class of the student.
    """

    student: ChannelGraph
    teacher: ChannelGraph
    layers: Mapping[str, str]
    classes: Mapping[int, int]

    def outputs(self, name: str) -> Ids:
        """Return (C_out,) the teacher's output channel for each of the student's; `NO_CHANNEL` where there is none."""
        return self._positions(self.student.outputs(name), self.teacher.outputs(self.layers[name]))

    def inputs(self, name: str) -> Ids:
        """Return (C_in,) the same for the input positions of a layer."""
        return self._positions(self.student.inputs(name), self.teacher.inputs(self.layers[name]))

    def _positions(self, student: Ids, teacher: Ids) -> Ids:
        """Match positions by class; of a class that comes several times, the n-th to the n-th."""
        places: dict[int, list[int]] = defaultdict(list)
        for position, one in enumerate(teacher.tolist()):
            places[one].append(position)
        seen: Counter[int] = Counter()
        found = np.full(len(student), NO_CHANNEL, np.int64)
        for position, one in enumerate(student.tolist()):
            target = self.classes.get(one, NO_CHANNEL)
            options = places.get(target, []) if target != NO_CHANNEL else []
            if seen[one] < len(options):
                found[position] = options[seen[one]]
            seen[one] += 1
        return found


def match_channels(
    student: ChannelGraph,
    teacher: ChannelGraph,
    layers: Mapping[str, str],
    strengths: Strengths,
    fresh_rows: frozenset[int] = frozenset(),
) -> Matching:
    """Match the channels of two networks.

    Args:
        student, teacher: the traced networks.
        layers: the teacher's module for a module of the student, by name; those without a counterpart are left out.
        strengths: (classes of the teacher,) indexed by class.
        fresh_rows: widths of last layers that stay fresh: those of class scores where the class names differ.
    """
    to_student = {name_of_teacher: name for name, name_of_teacher in layers.items()}
    wanted = _groups(student, {name: name for name in layers})
    offered = _groups(teacher, to_student)
    classes: dict[int, int] = {}
    heads: dict[int, int] = {}
    for role, members in wanted.items():
        candidates = offered.get(role) or offered.get(_nearest(role, offered), [])
        is_output = all(kind == "out" for kind, _ in role)
        if is_output and (len(candidates) != len(members) or len(members) in fresh_rows):
            continue  # rows of the last layers are classes or box sides: never chosen by strength
        chosen = _choose(members, candidates, strengths, student, teacher, heads)
        classes |= dict(zip(members, chosen))
    return Matching(student, teacher, layers, classes)


def _groups(graph: ChannelGraph, names: Mapping[str, str]) -> dict[Role, list[int]]:
    """Group the classes of a network by role, in the order of their first channel."""
    roles: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for name, layer in graph.layers.items():
        if name not in names:
            continue
        for one in graph.inputs(name).tolist():
            roles[one].add(("in", names[name]))
        if layer.outputs is not layer.inputs:
            for one in graph.outputs(name).tolist():
                roles[one].add(("out", names[name]))
    roles.pop(NO_CHANNEL, None)
    groups: dict[Role, list[int]] = defaultdict(list)
    for one in sorted(roles):
        groups[tuple(sorted(roles[one]))].append(one)
    return groups


def _nearest(role: Role, offered: Mapping[Role, list[int]]) -> Role:
    """Return the most similar role made by the same layers: one more reader, as of a P2 level, changes no maker."""
    makers = {layer for kind, layer in role if kind == "out"}
    similar = [
        (len(set(role) & set(other)) / len(set(role) | set(other)), other)
        for other in offered
        if makers & {layer for kind, layer in other if kind == "out"}
    ]
    return max(similar, default=(0.0, ()))[1]


def _choose(
    members: list[int],
    candidates: list[int],
    strengths: Strengths,
    student: ChannelGraph,
    teacher: ChannelGraph,
    heads: dict[int, int],
) -> list[int]:
    """Return the teacher's classes for `members`, strongest first chosen, then in the teacher's own order.

    Channels of attention are chosen head by head: whole heads first, then channels within each.
    """
    if len(members) == len(candidates) or members[0] not in student.heads:
        return _strongest(candidates, strengths, len(members))
    wanted, offered = _by_head(members, student), _by_head(candidates, teacher)
    for head in wanted:
        if head not in heads:
            free = [one for one in offered if one not in heads.values()]
            if not free:
                return []
            heads[head] = max(free, key=lambda one: float(strengths[offered[one]].sum()))
    chosen = {
        one: target
        for head, inside in wanted.items()
        for one, target in zip(inside, _strongest(offered.get(heads[head], []), strengths, len(inside)))
    }
    return [chosen[one] for one in members] if len(chosen) == len(members) else []


def _by_head(classes: list[int], graph: ChannelGraph) -> dict[int, list[int]]:
    grouped: dict[int, list[int]] = defaultdict(list)
    for one in classes:
        grouped[graph.heads.get(one, NO_CHANNEL)].append(one)
    return grouped


def _strongest(candidates: list[int], strengths: Strengths, count: int) -> list[int]:
    order = sorted(range(len(candidates)), key=lambda place: -strengths[candidates[place]])
    return [candidates[place] for place in sorted(order[:count])]
