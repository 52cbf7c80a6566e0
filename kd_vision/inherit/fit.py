"""Fits the layers of a student to its teacher's maps in closed form, without labels and without training steps.

Shapes: B images, C channels, H W pixels of a map, R sampled positions, D weights of an output channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kd_vision.core.progress import Progress
from kd_vision.detectors.base import Detector
from kd_vision.inherit.channels import NO_CHANNEL, map_size
from kd_vision.inherit.matching import Matching
from kd_vision.inherit.observe import observe

_RIDGE = 1e-2
_ROWS_PER_WEIGHT = 8
_LEAST_ROWS = 8192
_AT_OBJECTS = 0.5
"""Share of the positions that lie where the teacher finds objects: background would outweigh small ones."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """One convolution to fit.

    Attributes:
        conv: of the student.
        norm: the normalisation after it; None: it has a bias, or nothing.
        source: name of the teacher's convolution.
        source_norm: the teacher's normalisation after it.
        rows: the teacher's output channels for those of the student.
        count: positions to sample at most.
    """

    conv: nn.Conv2d
    norm: nn.Module | None
    source: str
    source_norm: nn.Module | None
    rows: Tensor
    count: int


@torch.no_grad()
def fit_to_teacher(
    student: Detector,
    teacher: Detector,
    matching: Matching,
    images: Tensor,
    seen: Tensor,
    scores: Tensor,
    report: Progress | None = None,
) -> int:
    """Fit every convolution whose channels continue the teacher's, in the order of the forward pass.

    Each is solved by ridge regression from the student's own input patches, that is behind layers that are fitted
    already, to the teacher's output before its normalisation; the ridge pulls towards the weights that are there. The
    student runs once: each layer is solved when its input arrives. Then BatchNorm is made consistent: the student's
    own statistics are written in, and scale and shift are changed so that the function is the same in evaluation and
    in training mode.

    Args:
        student: has the slices already; changed in place.
        teacher: in evaluation mode.
        matching: of the channels.
        images: (B, C, H, W) in [0, 1], as the student sees them.
        seen: the same images as the teacher sees them, where it has another number of channels.
        scores: (B, 1, H / 4, W / 4) how sure the teacher is of an object at each place; see `score_map`.
        report: receives a step for each layer.

    Returns:
        The number of layers that were fitted.
    """
    plans = _plans(student, teacher, matching)
    sampler = _Sampler(scores)
    targets = _teacher_outputs(teacher, plans, seen, sampler)
    student.eval()
    solved: list[str] = []

    def one_more(name: str) -> None:
        solved.append(name)
        if report is not None:
            report.step(len(solved), len(targets), "layers fitted")

    with ExitStack() as stack:
        for name, target in targets.items():
            stack.enter_context(_solved_on_arrival(plans[name], target, sampler, partial(one_more, name)))
        student.raw_outputs(images)
    return len(solved)


def _plans(student: nn.Module, teacher: nn.Module, matching: Matching) -> dict[str, _Plan]:
    mine, theirs = dict(student.named_modules()), dict(teacher.named_modules())
    norms, source_norms = _norms(student, matching.student.layers), _norms(teacher, matching.teacher.layers)
    plans = {}
    for name, layer in matching.student.layers.items():
        conv, source = mine[name], matching.layers.get(name)
        if not isinstance(conv, nn.Conv2d) or source is None or not isinstance(theirs.get(source), nn.Conv2d):
            continue
        rows = matching.outputs(name)
        if (rows == NO_CHANNEL).any() or not conv.weight.requires_grad or layer.outputs is layer.inputs:
            continue
        weights = conv.weight[0].numel()
        if conv.groups not in (1, conv.out_channels):
            continue
        count = max(_LEAST_ROWS, _ROWS_PER_WEIGHT * weights)
        plans[name] = _Plan(conv, norms.get(name), source, source_norms.get(source), torch.as_tensor(rows), count)
    return plans


def _norms(net: nn.Module, layers: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return the normalisation that follows each convolution directly, by the convolution's name."""
    modules = dict(net.named_modules())
    makers = {
        tuple(layer.outputs.tolist()): name for name, layer in layers.items() if layer.outputs is not layer.inputs
    }
    found: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        maker = makers.get(tuple(layer.inputs.tolist())) if layer.outputs is layer.inputs else None
        if maker is not None and isinstance(modules[maker], nn.Conv2d):
            found.setdefault(maker, modules[name])
    return found


class _Sampler:
    """Chooses positions of a map, the same for teacher and student: half of them where the teacher finds objects.

    Args:
        scores: (B, 1, H, W) how sure the teacher is of an object at each place; see `score_map`.
    """

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores
        self._chosen: dict[tuple[int, int, int], Tensor] = {}

    def positions(self, count: int, height: int, width: int) -> Tensor:
        """Return (R,) positions of a (B, H, W) map, rising; all where there are at most `count`."""
        key = (count, height, width)
        if key not in self._chosen:
            self._chosen[key] = self._sample(*key)
        return self._chosen[key]

    def _sample(self, count: int, height: int, width: int) -> Tensor:
        total = len(self._scores) * height * width
        if total <= count:
            return torch.arange(total)
        scores = functional.interpolate(self._scores, (height, width), mode="area").flatten().double().numpy()
        chance = np.full(len(scores), 1 / len(scores))
        if scores.sum() > 0:
            chance = (1 - _AT_OBJECTS) * chance + _AT_OBJECTS * scores / scores.sum()
        chosen = np.random.default_rng(0).choice(len(scores), count, replace=False, p=chance / chance.sum())
        return torch.as_tensor(np.sort(chosen))


def _teacher_outputs(
    teacher: Detector, plans: Mapping[str, _Plan], images: Tensor, sampler: _Sampler
) -> dict[str, Tensor]:
    """Return (R, C_out) outputs of the teacher's convolutions at the sampled positions, by the student's names."""
    rows: dict[str, list[Tensor]] = {name: [] for name in plans}

    def record(name: str, first: int, inputs: Tensor, output: Tensor) -> None:
        size, plan = output.shape[-2] * output.shape[-1], plans[name]
        chosen = sampler.positions(plan.count, *output.shape[-2:])
        inside = chosen[(chosen >= first * size) & (chosen < (first + len(output)) * size)] - first * size
        flat = output[:, plan.rows].permute(0, 2, 3, 1).reshape(-1, len(plan.rows))
        rows[name].append(flat[inside].float())

    batches = observe(teacher, images, {plan.source: partial(record, name) for name, plan in plans.items()})
    # A layer that runs on several levels (the shared head of RetinaNet) has no single map to be fitted on.
    return {name: torch.cat(parts) for name, parts in rows.items() if len(parts) == batches}


@contextmanager
def _solved_on_arrival(plan: _Plan, target: Tensor, sampler: _Sampler, solved: Callable[[], None]) -> Iterator[None]:
    """Solve a convolution when its input arrives."""
    conv = plan.conv

    def forward(x: Tensor) -> Tensor:
        size = map_size(conv, x)
        positions = sampler.positions(plan.count, *size)
        if len(positions) != len(target):  # a map of another size than the teacher's
            unfitted: Tensor = conv._conv_forward(x, conv.weight, conv.bias)
            return unfitted
        intercept = _solve(conv, _patches(conv, x, positions, size), target, centred=_centred(plan))
        out = functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        _make_consistent(plan, out, intercept)
        solved()
        return out if conv.bias is None else out + conv.bias[:, None, None]

    conv.__dict__["forward"] = forward
    yield
    conv.__dict__.pop("forward", None)


def _centred(plan: _Plan) -> bool:
    """Whether an intercept has a place to go: the convolution's bias, or the normalisation's shift."""
    return plan.conv.bias is not None or isinstance(plan.norm, nn.BatchNorm2d) or hasattr(plan.norm, "running_mean")


def _patches(conv: nn.Conv2d, x: Tensor, positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (R, C_in, k, k) input patches at output positions, in float64."""
    height, width = size
    pad = [int(side) for side in conv.padding]
    padded = functional.pad(x, (pad[1], pad[1], pad[0], pad[0]))
    image, place = positions // (height * width), positions % (height * width)
    top, left = (place // width) * conv.stride[0], (place % width) * conv.stride[1]
    down = torch.arange(conv.kernel_size[0]) * conv.dilation[0]
    right = torch.arange(conv.kernel_size[1]) * conv.dilation[1]
    rows, columns = top[:, None, None] + down[:, None], left[:, None, None] + right
    picked = padded.permute(0, 2, 3, 1)[image[:, None, None], rows, columns]
    patches: Tensor = picked.permute(0, 3, 1, 2).double()
    return patches


def _solve(conv: nn.Conv2d, patches: Tensor, target: Tensor, centred: bool) -> Tensor:
    """Write the ridge solution into `conv`; return (C_out,) the intercept, in float64."""
    groups = conv.groups
    x = patches.reshape(len(patches), groups, -1).transpose(0, 1)  # (G, R, D)
    y = target.double().reshape(len(target), groups, -1).transpose(0, 1)  # (G, R, C_out / G)
    before = conv.weight.double().reshape(groups, conv.out_channels // groups, -1)  # (G, C_out / G, D)
    mean_x = x.mean(dim=1, keepdim=True) if centred else torch.zeros_like(x[:, :1])
    mean_y = y.mean(dim=1, keepdim=True) if centred else torch.zeros_like(y[:, :1])
    x, y = x - mean_x, y - mean_y
    gram = x.transpose(1, 2) @ x
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] + 1e-9
    gram = gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype)
    residual = y - x @ before.transpose(1, 2)
    weight = before + torch.linalg.solve(gram, x.transpose(1, 2) @ residual).transpose(1, 2)
    conv.weight.copy_(weight.reshape(conv.weight.shape))
    intercept: Tensor = (mean_y - mean_x @ weight.transpose(1, 2)).squeeze(1).reshape(-1)
    if conv.bias is not None:
        conv.bias.copy_(intercept)
        return torch.zeros_like(intercept)
    return intercept


def _make_consistent(plan: _Plan, out: Tensor, intercept: Tensor) -> None:
    """Write the statistics of `out` into the normalisation, and keep the teacher's function of `out` + intercept."""
    norm, source = plan.norm, plan.source_norm
    if norm is None or source is None or not hasattr(norm, "running_mean"):
        return
    theirs: Any = source
    mine: Any = norm
    rows = plan.rows
    scale = theirs.weight[rows].double() / (theirs.running_var[rows].double() + theirs.eps).sqrt()
    if not isinstance(norm, nn.BatchNorm2d):  # frozen statistics: only the shift
        mine.bias.add_((scale * intercept).to(mine.bias))
        return
    mean = out.mean(dim=(0, 2, 3), dtype=torch.float64)
    variance = out.double().var(dim=(0, 2, 3), unbiased=False)
    shift = theirs.bias[rows].double() + scale * (mean + intercept - theirs.running_mean[rows].double())
    mine.running_mean.copy_(mean)
    mine.running_var.copy_(variance)
    mine.weight.copy_(scale * (variance + mine.eps).sqrt())
    mine.bias.copy_(shift)
