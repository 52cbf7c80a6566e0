"""Which teacher can teach which student what: asked of the code, written into the docs.

``tools/write_pairs.py`` writes `docs/pairs.md` from this; a test holds the page true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kd_vision.core.predictions import Signal
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses import LOSSES, load_loss
from kd_vision.losses.fitting import fitting_losses

_CHANNELS: tuple[Signal, ...] = ("features", "grid", "regions", "detections")


def losses_by_channel(student: DetectorSpec, teacher: DetectorSpec) -> dict[Signal, list[str]]:
    """Return the losses that fit a pair with their default settings, by the channel they learn from."""
    found: dict[Signal, list[str]] = {channel: [] for channel in _CHANNELS}
    for name in fitting_losses(student, teacher):
        found[_channel(name)].append(name)
    return found


def pairs_page(students: Mapping[str, DetectorSpec], teachers: Mapping[str, DetectorSpec]) -> str:
    """Return the page: one table of channels for all pairs, then the losses of each kind of pair.

    Args:
        students: by the name a reader knows them under.
        teachers: likewise; black boxes among them.
    """
    head = ["teacher \\ student", *students]
    rows = [head, ["---"] * len(head)]
    kinds: dict[str, list[str]] = {}
    for teacher_name, teacher in teachers.items():
        row = [teacher_name]
        for student_name, student in students.items():
            found = losses_by_channel(student, replace(teacher, classes=student.classes))
            row.append(", ".join(f"{channel} ({len(names)})" for channel, names in found.items() if names) or "none")
            text = "; ".join(f"{channel}: {', '.join(names)}" for channel, names in found.items() if names)
            kinds.setdefault(text, []).append(f"{teacher_name} -> {student_name}")
        rows.append(row)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    lists = "\n\n".join(f"**{', '.join(pairs)}**\n\n{text}" for text, pairs in kinds.items())
    losses = "\n".join(f"- `{name}` ({_channel(name)}): {entry.summary}" for name, entry in LOSSES.items())
    return _PAGE.format(table=table, lists=lists, losses=losses)


def _channel(loss: str) -> Signal:
    """The channel a reader looks for a loss under: the most particular one that it requires."""
    requires = load_loss(loss).requires
    return next(channel for channel in ("regions", "grid", "detections", "features") if channel in requires)


_PAGE = """\
# Who can teach whom

This page is written by `python tools/write_pairs.py` from the code; a test holds it true. A cell names the channels of
knowledge a pair can use, with the number of losses that fit it by their default settings (same classes, after the
label map, given). Every pair can learn from `detections`: the teacher's final boxes and class probabilities through the
student's own rule of training, which is also what stored knowledge (`kd-vision label`), ensembles, tiles and files of
predictions give.

{table}

## Losses that fit

{lists}

## The losses

{losses}
"""
