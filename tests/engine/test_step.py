"""What must hold of every step: a frozen teacher, living terms, nothing silent."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import ImageBatch, Targets
from kd_vision.core.errors import TrainingError
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.detectors.ultralytics.family import build
from kd_vision.engine.step import StepTerms, TermGuard, TrainingStep, gradient_norms, terms
from kd_vision.losses import load_loss
from kd_vision.losses.distiller import Distiller
from kd_vision.teachers.frozen import FrozenTeacher

CLASSES = ("red", "blue")


def detector(name: str = "yolov8n", seed: int = 0) -> UltralyticsDetector:
    torch.manual_seed(seed)
    found = build(UltralyticsConfig(model=name), CLASSES, "student").train()
    for branch in (found.head.cv3, getattr(found.head, "one2one_cv3", None) or ()):
        for level in branch:
            level[-1].bias.data.fill_(-1.0)  # a head that is not silent, as a trained one
    norms = [m for m in found.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # one pass sets the statistics, as training would
    with torch.no_grad():
        found(batch().images)
    return found


def batch(labelled: tuple[bool, ...] = (True, True)) -> ImageBatch:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[5.0, 5.0, 30.0, 30.0], [20.0, 8.0, 60.0, 40.0]])
    index = torch.tensor([0, 1])
    keep = torch.tensor([labelled[i] for i in index.tolist()])
    targets = Targets(index[keep], torch.tensor([0, 1])[keep], boxes[keep])
    return ImageBatch(images, targets, torch.tensor(labelled))


def distiller(student: UltralyticsDetector, teacher: UltralyticsDetector, **weights: object) -> Distiller:
    losses = {}
    for name, weight in weights.items():
        kind = load_loss(name)
        losses[name] = kind(kind.Config(weight=weight), student.spec, teacher.spec)
    return Distiller(losses)


def step(student: UltralyticsDetector, teacher: UltralyticsDetector, **weights: object) -> TrainingStep:
    found = distiller(student, teacher, **weights)
    return TrainingStep(student, found, FrozenTeacher(teacher)).train()


def test_the_teacher_changes_in_no_bit_and_is_in_no_optimiser_state_or_mode() -> None:
    student, teacher = detector(), detector(seed=1)
    run = step(student, teacher, class_qfl=1.0, feature_pkd=1.0)
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
    for _ in range(2):
        found = terms(run, batch())
        found.total({"class_qfl": 1.0, "feature_pkd": 1.0}).backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    ours = {id(p) for p in run.parameters()}
    assert not any(id(p) in ours for p in teacher.parameters())
    run.train()
    norms = [m for m in teacher.net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)


def test_weight_zero_gives_the_plain_gradient_bit_for_bit() -> None:
    plain, distilled = detector(), detector()
    terms(TrainingStep(plain, None, None).train(), batch()).total({}).backward()
    terms(step(distilled, detector(seed=1), class_qfl=1.0), batch()).total({"class_qfl": 0.0}).backward()
    for one, other in zip(plain.parameters(), distilled.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_an_unlabelled_image_gives_no_task_loss_but_teaches() -> None:
    student, teacher = detector(), detector(seed=1)
    both = terms(step(student, teacher, class_qfl=1.0), batch((True, False)))
    assert both.task["box"] > 0
    none = terms(step(student, teacher, class_qfl=1.0), batch((False, False)))
    assert dict(none.task) == {}
    assert none.distillation["class_qfl"] > 0


def test_task_losses_of_a_batch_with_unlabelled_images_are_those_of_its_labelled_ones() -> None:
    student = detector().eval()  # eval: batch statistics would tie the images together
    alone = ImageBatch(batch().images[:1], batch((True, False)).targets, torch.tensor([True]))
    one = terms(TrainingStep(student, None, None).eval(), alone)
    mixed = terms(TrainingStep(student, None, None).eval(), batch((True, False)))
    for name, value in one.task.items():
        torch.testing.assert_close(mixed.task[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_every_term_reaches_the_neck_also_under_a_head_that_detaches_one_branch(family: str) -> None:
    run = step(detector(family), detector(family, seed=1), class_qfl=1.0, box_iou=1.0)
    norms = gradient_norms(terms(run, batch(), with_features=True))
    assert set(norms) == {"task", "class_qfl", "box_iou"}
    assert all(value > 0 for value in norms.values())


def test_gradient_norm_is_that_of_autograd_on_the_maps() -> None:
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    found = StepTerms({"box": (3 * a).sum()}, {"kd": (a**2).sum()}, {"P3": a})
    assert gradient_norms(found) == pytest.approx({"task": 18**0.5, "kd": 20**0.5})


def test_a_term_without_gradient_is_named() -> None:
    a = torch.ones(1, requires_grad=True)
    with pytest.raises(TrainingError, match="'kd' has no gradient"):
        gradient_norms(StepTerms({"box": a.sum()}, {"kd": torch.ones(())}, {"P3": a}))


def said(**values: float) -> Mapping[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_a_zero_term_and_a_term_that_is_not_finite_stop_the_run_by_name() -> None:
    student = detector()
    guard = TermGuard(distiller(student, student, class_qfl=1.0))
    assert guard.check(StepTerms(said(box=1.0), said(class_qfl=0.5), {}), 3) == {
        "task/box": 1.0,
        "kd/class_qfl": 0.5,
    }
    with pytest.raises(TrainingError, match="step 4: the distillation term 'class_qfl' is exactly zero"):
        guard.check(StepTerms(said(box=1.0), said(class_qfl=0.0), {}), 4)
    with pytest.raises(TrainingError, match="step 5: the term 'task/box' is nan"):
        guard.check(StepTerms(said(box=float("nan")), said(class_qfl=0.5), {}), 5)


def test_a_student_taught_by_itself_is_found_out() -> None:
    student = detector().eval()
    run = step(student, copy.deepcopy(student), class_bce=1.0).eval()
    found = terms(run, batch())
    with pytest.raises(TrainingError, match="'class_bce' is exactly zero, so it has no effect"):
        TermGuard(run.distiller).check(found, 0)


def test_a_bound_that_holds_may_be_zero_for_a_while_but_not_for_ever() -> None:
    student = detector()
    guard = TermGuard(distiller(student, student, box_bounded=1.0))
    quiet = StepTerms(said(box=1.0), said(box_bounded=0.0), {})
    for number in range(49):
        guard.check(quiet, number)
    with pytest.raises(TrainingError, match="'box_bounded' is exactly zero"):
        guard.check(quiet, 49)


def test_auto_weight_makes_the_share_that_was_asked_for() -> None:
    student, teacher = detector(), detector(seed=1)
    run = step(student, teacher, class_qfl="auto")
    assert run.distiller is not None
    assert run.distiller.awaits_calibration() == ("class_qfl",)
    assert run.distiller.weights(0.5) == {"class_qfl": 0.0}
    norms = gradient_norms(terms(run, batch(), with_features=True))
    run.distiller.calibrate("class_qfl", norms["class_qfl"], norms["task"])
    weight = run.distiller.weights(0.5)["class_qfl"]
    assert weight * norms["class_qfl"] == pytest.approx(0.5 * norms["task"])
    assert run.distiller.awaits_calibration() == ()


def test_moving_along_the_term_brings_the_student_to_the_teacher() -> None:
    student, teacher = detector().eval(), detector(seed=1).eval()
    run = step(student, teacher, class_bce=1.0, box_iou=1.0).eval()
    optimizer = torch.optim.SGD(run.parameters(), lr=0.001)
    values = []
    for _ in range(4):
        found = terms(run, batch((False, False)))
        total = found.total({"class_bce": 1.0, "box_iou": 1.0})
        values.append(float(total.detach()))
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(run.parameters(), 1.0)
        optimizer.step()
    assert values[-1] < values[0]


def test_the_student_is_asked_for_what_open_terms_need() -> None:
    student = detector()
    asked = distiller(student, detector(seed=1), class_qfl=1.0, feature_mse=1.0)
    assert asked.requires() == {"grid", "features"}
    assert asked.requires(frozenset({"class_qfl"})) == {"grid"}
    assert asked.requires(frozenset()) == frozenset()
