from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.box_bounded import BoxBounded, BoxBoundedConfig, Form, bounded_error
from kd_vision.losses.box_iou import iou_distance


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "margin", "expected"),
    [
        ("hinge", 0.0, [0.0, 0.0, 0.1, 0.5]),
        ("step", 0.0, [0.0, 0.0, 0.5, 0.9]),
        ("hinge", 0.2, [0.0, 0.2, 0.3, 0.7]),
        ("step", 0.2, [0.0, 0.4, 0.5, 0.9]),
        ("hinge", -0.2, [0.0, 0.0, 0.0, 0.3]),
        ("step", -0.2, [0.0, 0.0, 0.0, 0.9]),
    ],
)
def test_both_sides_of_the_bound(form: Form, margin: float, expected: list[float]) -> None:
    """The teacher errs by .4; the student by .1, .4 (as the teacher), .5 and .9."""
    value = bounded_error(numbers(0.1, 0.4, 0.5, 0.9), numbers(0.4, 0.4, 0.4, 0.4), margin, form)
    assert value.tolist() == pytest.approx(expected, abs=1e-12)


def test_step_jumps_at_the_bound_and_hinge_does_not() -> None:
    below, above = numbers(0.3 - 1e-9), numbers(0.3 + 1e-9)
    jumps: dict[Form, float] = {"step": 0.3, "hinge": 0.0}
    for form, jump in jumps.items():
        at = [float(bounded_error(e, numbers(0.4), 0.1, form)) for e in (below, above)]
        assert at[1] - at[0] == pytest.approx(jump, abs=1e-8)


def test_gradient_is_that_of_the_error_beyond_the_bound() -> None:
    student = numbers(0.1, 0.9).requires_grad_()
    forms: tuple[Form, ...] = ("hinge", "step")
    for form in forms:
        (gradient,) = torch.autograd.grad(bounded_error(student, numbers(0.4, 0.4), 0.0, form).sum(), student)
        assert gradient.tolist() == [0.0, 1.0]


@pytest.fixture
def scene(rows_side: Callable[..., Signals]) -> tuple[Signals, Signals, Targets, Tensor]:
    """Points at x = 4, 12, 20, 28; a car covers the first three, where the teacher scores .8, .5, .01."""
    logits = torch.full((4, 3), -300.0, dtype=torch.float64)
    logits[:, 0] = torch.logit(numbers(0.8, 0.5, 0.01, 0.9))
    truth = torch.tensor([[0.0, 0.0, 24.0, 8.0]])
    worse, better = numbers(0, 0, 12, 8), numbers(0, 0, 20, 8)
    student_boxes = torch.stack([worse, better, worse, worse]).requires_grad_()
    teacher_boxes = torch.stack([better, worse, better, better])
    targets = Targets(torch.tensor([0]), torch.tensor([0]), truth)
    return rows_side(logits, student_boxes), rows_side(logits, teacher_boxes), targets, student_boxes


@pytest.mark.parametrize(("form", "expected"), [("hinge", 8 / 24), ("step", 12 / 24)])
def test_only_points_where_the_student_is_worse_pay(
    form: Form, expected: float, scene: tuple[Signals, Signals, Targets, Tensor], row_spec: DetectorSpec
) -> None:
    """IoU errors are 12/24 (worse) and 4/24 (better); point 0 alone pays, its weight .8 of .8 + .5."""
    student, teacher, targets, student_boxes = scene
    loss = BoxBounded(BoxBoundedConfig(kind="iou", form=form), row_spec, row_spec)
    value = loss(student, teacher, targets)
    assert float(value.detach()) == pytest.approx(0.8 * expected / 1.3, abs=1e-9)
    (gradient,) = torch.autograd.grad(value, student_boxes)
    assert float(gradient[0, 2]) < 0, "the right side must grow toward ground truth"
    assert float(gradient[1:].abs().max()) == 0.0


def test_pulls_to_ground_truth_not_to_the_teacher(
    scene: tuple[Signals, Signals, Targets, Tensor], row_spec: DetectorSpec
) -> None:
    student, teacher, targets, student_boxes = scene
    loss = BoxBounded(BoxBoundedConfig(margin=0.1), row_spec, row_spec)
    (gradient,) = torch.autograd.grad(loss(student, teacher, targets), student_boxes)
    truth = targets.boxes_xyxy.double()
    leaf = student_boxes[:1].detach().requires_grad_()
    (toward_truth,) = torch.autograd.grad(iou_distance(leaf, truth, "giou").sum(), leaf)
    torch.testing.assert_close(gradient[0], 0.8 / 1.3 * toward_truth[0])


def test_zero_without_ground_truth_or_as_good_as_the_teacher(
    scene: tuple[Signals, Signals, Targets, Tensor], row_spec: DetectorSpec, no_targets: Targets
) -> None:
    student, teacher, targets, student_boxes = scene
    loss = BoxBounded(BoxBoundedConfig(), row_spec, row_spec)
    assert BoxBounded.can_be_zero
    unlabelled = loss(student, teacher, no_targets)
    (gradient,) = torch.autograd.grad(unlabelled, student_boxes)
    assert float(unlabelled.detach()) == 0.0
    assert float(gradient.abs().max()) == 0.0
    assert float(loss(teacher, teacher, targets)) == 0.0
