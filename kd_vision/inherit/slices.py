"""Copies slices of a teacher's weights into a student."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_vision.inherit.channels import NO_CHANNEL, Ids
from kd_vision.inherit.matching import Matching

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a student took over.

    Attributes:
        values: numbers of its weights that are the teacher's.
        total: numbers of all its weights.
        fresh: names of its tensors of which nothing is the teacher's.
        partial: names of its tensors of which a part is the teacher's.
    """

    values: int
    total: int
    fresh: tuple[str, ...]
    partial: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the student's weights that are the teacher's."""
        return self.values / self.total if self.total else 0.0


@torch.no_grad()
def copy_slices(student: nn.Module, teacher: nn.Module, matching: Matching) -> Inherited:
    """Copy to each tensor of the student the slice of the teacher's tensor that its channels continue.

    What has no counterpart keeps the student's fresh values, except that an input position without one gets no weight.

    Args:
        student: receives the weights.
        teacher: gives them.
        matching: of the channels.
    """
    values = total = 0
    fresh: list[str] = []
    partial: list[str] = []
    for name, mine, theirs, rows, columns in _tensors(student, teacher, matching):
        count = 0 if theirs is None else _copy(mine, theirs, rows, columns)
        if name.rsplit(".", 1)[-1] != _COUNTER:
            values, total = values + count, total + mine.numel()
            if count < mine.numel():
                (partial if count else fresh).append(name)
    return Inherited(values, total, tuple(fresh), tuple(partial))


def _tensors(
    student: nn.Module, teacher: nn.Module, matching: Matching
) -> Iterator[tuple[str, Tensor, Tensor | None, Ids | None, Ids | None]]:
    """Yield each tensor of the student: its name, it, the teacher's, and the teacher's rows and columns for it."""
    theirs_by_name = dict(teacher.named_modules())
    for name, module in student.named_modules():
        twin = theirs_by_name.get(matching.layers.get(name, name))
        known = name in matching.student.layers and matching.layers.get(name) in matching.teacher.layers
        rows = matching.outputs(name) if known else None
        columns = matching.inputs(name) if known else None
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for key, mine in tensors:
            other = getattr(twin, key, None) if type(twin) is type(module) else None
            yield f"{name}.{key}", mine, other if isinstance(other, Tensor) else None, rows, columns


def _copy(mine: Tensor, theirs: Tensor, rows: Ids | None, columns: Ids | None) -> int:
    """Copy one slice in place; return how many of its numbers are the teacher's."""
    if rows is None or mine.ndim == 0:
        if mine.shape != theirs.shape:
            return 0
        mine.copy_(theirs)
        return mine.numel()
    if mine.shape[2:] != theirs.shape[2:] or mine.ndim != theirs.ndim:
        return 0
    kept_rows = torch.as_tensor(rows != NO_CHANNEL)
    picked = theirs.to(mine)[torch.as_tensor(rows[rows != NO_CHANNEL])]
    if mine.ndim == 1:
        mine[kept_rows] = picked
        return int(kept_rows.sum())
    per_group = len(columns) if columns is not None else 0
    if mine.shape[1] != per_group:  # depthwise, or grouped
        if mine.shape[1] != theirs.shape[1]:
            return 0
        mine[kept_rows] = picked
        return picked.numel()
    assert columns is not None
    if theirs.shape[1] == 3 and mine.shape[1] == 1 and columns[0] != NO_CHANNEL:
        mine[kept_rows] = picked.sum(dim=1, keepdim=True)  # gray is one number for all three colours
        return int(kept_rows.sum()) * mine[0].numel()
    known = columns != NO_CHANNEL
    block = torch.zeros((len(picked), *mine.shape[1:])).to(mine)
    block[:, torch.as_tensor(known)] = picked[:, torch.as_tensor(columns[known])]
    mine[kept_rows] = block
    return len(picked) * int(known.sum()) * (mine[0, 0].numel())
