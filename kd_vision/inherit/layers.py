"""Finds the teacher's layer for each layer of a student."""

from __future__ import annotations

from difflib import SequenceMatcher

from kd_vision.detectors.base import Detector
from kd_vision.inherit.channels import ChannelGraph

_Stage = tuple[str, tuple[str, int]]


def match_layers(student: Detector, teacher: Detector, mine: ChannelGraph, theirs: ChannelGraph) -> dict[str, str]:
    """Return the teacher's module for each module of the student that has one, by name.

    Parts are aligned in order by kind and stride, so that a P2 student, whose parts have other numbers, finds its own.

    Args:
        student, teacher: of one family.
        mine, theirs: their channels.
    """
    prefixes = _match_stages(_stages(student, mine), _stages(teacher, theirs))
    there = dict(teacher.named_modules())
    found = {}
    for name, _ in student.named_modules():
        prefix = next((one for one in prefixes if name == one or name.startswith(f"{one}.")), None)
        other = name if not prefixes else None if prefix is None else prefixes[prefix] + name[len(prefix) :]
        if other is not None and other in there:
            found[name] = other
    return found


def _match_stages(mine: list[_Stage], theirs: list[_Stage]) -> dict[str, str]:
    blocks = SequenceMatcher(
        None, [kind for _, kind in mine], [kind for _, kind in theirs], False
    ).get_matching_blocks()
    return {mine[i + k][0]: theirs[j + k][0] for i, j, size in blocks for k in range(size)}


def _stages(detector: Detector, graph: ChannelGraph) -> list[_Stage]:
    """Return the parts of a detector in order, each with its kind and the stride of its map."""
    first = next(iter(graph.layers.values())).side
    stages = []
    for prefix, kind in detector.named_stages():
        sides = [layer.side for name, layer in graph.layers.items() if name.startswith(f"{prefix}.") and layer.side]
        stages.append((prefix, (kind, 2 * first // sides[-1] if sides else 0)))
    return stages
