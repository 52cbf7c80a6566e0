from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import IGNORED, UNMATCHED, AssignResult, RawPredictions, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.family import build
from kd_vision.losses.soft_boxes import SoftBoxes, SoftBoxesConfig

FAR = -300.0


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pseudo_labels(scores: list[float], probs: list[list[float]], boxes: list[list[float]]) -> PseudoLabels:
    """Boxes in image 0."""
    count = len(scores)
    return PseudoLabels(
        torch.zeros(count, dtype=torch.int64),
        torch.tensor(boxes).reshape(count, 4),
        torch.tensor(probs).reshape(count, -1),
        torch.tensor(scores),
        torch.zeros(count, dtype=torch.bool),
    )


def rows(logits: Tensor, **others: Tensor | None) -> RawPredictions:
    """Rows of one image, 8 px apart on a line, with boxes of 8 x 8 around their centres."""
    centres = torch.stack([8.0 * torch.arange(len(logits)) + 4.0, torch.full((len(logits),), 4.0)], dim=-1)
    boxes = torch.cat([centres - 4, centres + 4], dim=-1).double()
    return replace(RawPredictions(logits[None], boxes[None], centres[None]), **others)


def student_with(*stages: AssignResult) -> Signals:
    return Signals(assign=lambda pseudo_labels: stages)


def kl(q: float, p: float) -> float:
    """KL of Bernoulli distributions."""
    parts = ((a, b) for a, b in ((q, p), (1 - q, 1 - p)) if a > 0)
    return sum(a * math.log(a / b) for a, b in parts)


@pytest.fixture
def pair(row_spec: DetectorSpec) -> tuple[DetectorSpec, DetectorSpec]:
    spec = replace(row_spec, provides=frozenset({"detections"}))
    return spec, spec


@pytest.mark.parametrize("model", ["yolov8n", "yolo26n"])
def test_hard_targets_of_score_one_are_the_detectors_own_loss_less_entropies(model: str) -> None:
    torch.manual_seed(0)
    detector = build(UltralyticsConfig(model=model), ("a", "b", "c"), "student").train()
    truth = Targets(
        torch.tensor([0, 0, 1]),
        torch.tensor([0, 2, 1]),
        torch.tensor([[5.0, 6, 40, 50], [30, 30, 60, 62], [10, 20, 62, 60]]),
    )
    labels = PseudoLabels(
        truth.image_index,
        truth.boxes_xyxy,
        functional.one_hot(truth.labels, 3).float(),
        torch.ones(3),
        torch.zeros(3) > 0,
    )
    out = detector(torch.rand(2, 3, 64, 64), truth, None, frozenset({"detections"}))
    value = SoftBoxes(SoftBoxesConfig(targets="hard"), detector.spec, detector.spec)(
        out.signals(), Signals(pseudo_labels=labels), truth
    )
    assert out.assign is not None
    constant = 0.0
    for stage in out.assign(labels):
        fits, matched = stage.quality[stage.matched_idx >= 0], stage.matched_idx[stage.matched_idx >= 0]
        entropy = (torch.special.entr(fits) + torch.special.entr(1 - fits)).sum()
        two_bins = torch.zeros_like(fits)
        if stage.raw_predictions.box_bins is not None:
            centres = stage.raw_predictions.centres_xy.expand(2, -1, -1)[stage.matched_idx >= 0]
            stride = stage.raw_predictions.strides.expand(2, -1)[stage.matched_idx >= 0]
            box = truth.boxes_xyxy[matched]
            sides = torch.cat([centres - box[:, :2], box[:, 2:] - centres], dim=1) / stride[:, None]
            right = sides.clamp(0, 14.99) % 1
            two_bins = (torch.special.entr(right) + torch.special.entr(1 - right)).mean(dim=1)
        constant += stage.weight * float((0.5 * entropy + 1.5 * (fits * two_bins).sum()) / fits.sum().clamp(min=1))
    task = {name: float(term.detach()) for name, term in out.task_losses.items()}
    expected = task["box"] + task["cls"] + task.get("dfl", 0.0)
    assert float(value.detach()) + constant == pytest.approx(expected, rel=1e-5)
    assert constant > 0.5


def test_soft_targets_by_hand(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Row 0 has the box, fits it by .8 and is shifted by half its width; rows 1 and 2 are background, 3 is left out."""
    logits = numbers([0.0, FAR, FAR], [FAR, 0.0, FAR], [FAR, FAR, FAR], [9.0, 9.0, 9.0])
    labels = pseudo_labels([0.9], [[0.9, 0.3, 0.0]], [[4.0, 0.0, 12.0, 8.0]])
    stage = AssignResult(
        rows(logits), torch.tensor([[0, UNMATCHED, UNMATCHED, IGNORED]]), torch.tensor([[0.8, 0.0, 0.0, 0.0]])
    )
    loss = SoftBoxes(SoftBoxesConfig(class_gain=1.0, box_gain=10.0, kind="iou"), *pair)
    value = float(loss(student_with(stage), Signals(pseudo_labels=labels), no_targets))
    # Class 1 of row 0: s = -300 costs q * 300 less its entropy.
    entropy = -0.24 * math.log(0.24) - 0.76 * math.log(0.76)
    classes = kl(0.72, 0.5) + 0.24 * 300 - entropy + math.log(2)  # the last: background at p = 1/2
    # Sum of targets .96 counts as 1; box weight .9 * .8, IoU 1/3.
    assert value == pytest.approx(classes + 10.0 * 0.72 * 2 / 3, rel=1e-6)


def test_box_weight_one_and_the_normaliser(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Four rows have one box; two of them miss it by half: their shares are 1/2 by either weight, .8 and .4 here."""
    logits = torch.full((4, 3), FAR, dtype=torch.float64)
    labels = pseudo_labels([0.5], [[0.5, 0.0, 0.0]], [[0.0, 0.0, 8.0, 8.0]])
    boxes = numbers([0, 0, 8, 8], [0, 0, 8, 8], [4, 0, 12, 8], [4, 0, 12, 8])[None]
    stage = AssignResult(rows(logits, boxes_xyxy=boxes), torch.zeros(1, 4, dtype=torch.int64), torch.full((1, 4), 0.8))
    for weight, expected in (("score", 2 * 0.4 * 2 / 3 / 1.6), ("one", 2 * 0.8 * 2 / 3 / 3.2)):
        config = SoftBoxesConfig(class_gain=0.0, box_gain=1.0, kind="iou", box_weight=weight)
        value = SoftBoxes(config, *pair)(student_with(stage), Signals(pseudo_labels=labels), no_targets)
        assert float(value) == pytest.approx(expected, rel=1e-6)


def test_bins_learn_the_two_nearest(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Distances 1.25, 0 (outside), 2.5 and 9 (clamped to 3.99) in strides of 8; zero where the bins say just that."""
    class_targets = numbers([0, 0.75, 0.25, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0.01, 0.99])
    labels = pseudo_labels([1.0], [[1.0, 0.0, 0.0]], [[-6.0, 9.0, 24.0, 76.0]])
    stage_of = lambda bins: AssignResult(  # noqa: E731
        rows(torch.full((1, 3), FAR, dtype=torch.float64), box_bins=bins[None, None], strides=torch.tensor([8.0])),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.full((1, 1), 0.5),
    )
    loss = SoftBoxes(SoftBoxesConfig(class_gain=0.0, box_gain=0.0, bins_gain=2.0), *pair)
    perfect = loss(
        student_with(stage_of(class_targets.clamp(min=1e-300).log())), Signals(pseudo_labels=labels), no_targets
    )
    assert float(perfect) == pytest.approx(0.0, abs=1e-6)
    even = loss(student_with(stage_of(torch.zeros_like(class_targets))), Signals(pseudo_labels=labels), no_targets)
    divergence = sum(math.log(5) + sum(q * math.log(q) for q in side if q > 0) for side in class_targets.tolist()) / 4
    assert float(even) == pytest.approx(2.0 * 0.5 * divergence, rel=1e-6)


def test_softmax_head_by_hand(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Uniform over four outcomes; targets .2 background, .6 and .2 of classes; one background row costs log 4."""
    labels = pseudo_labels([0.6], [[0.6, 0.2, 0.0]], [[0.0, 0.0, 8.0, 8.0]])
    head = rows(torch.zeros(3, 3, dtype=torch.float64), background=torch.zeros(1, 3, dtype=torch.float64))
    stage = AssignResult(head, torch.tensor([[0, UNMATCHED, IGNORED]]), torch.ones(1, 3))
    loss = SoftBoxes(SoftBoxesConfig(class_gain=1.0, box_gain=0.0), *pair)
    expected = math.log(4) + 0.2 * math.log(0.2) + 0.6 * math.log(0.6) + 0.2 * math.log(0.2)
    value = loss(student_with(stage), Signals(pseudo_labels=labels), no_targets)
    assert float(value) == pytest.approx(expected + math.log(4), rel=1e-6)
    exact = replace(head, logits=numbers([[0.6, 0.2, 1e-300]]).log(), background=numbers([0.2]).log())
    alone = AssignResult(
        replace(exact, boxes_xyxy=head.boxes_xyxy[:, :1], centres_xy=head.centres_xy[:, :1]),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.ones(1, 1),
    )
    assert float(loss(student_with(alone), Signals(pseudo_labels=labels), no_targets)) == pytest.approx(0.0, abs=1e-6)


def test_much_background_is_a_mean_where_rows_are_sampled(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    """One row with a box and 11 of background, each uniform over four outcomes, divided by 12 / 4."""
    labels = pseudo_labels([1.0], [[1.0, 0.0, 0.0]], [[0.0, 0.0, 8.0, 8.0]])
    head = rows(torch.zeros(12, 3, dtype=torch.float64), background=torch.zeros(1, 12, dtype=torch.float64))
    stage = AssignResult(head, torch.tensor([[0] + [UNMATCHED] * 11]), torch.ones(1, 12))
    loss = SoftBoxes(SoftBoxesConfig(class_gain=1.0, box_gain=0.0), *pair)
    value = loss(student_with(stage), Signals(pseudo_labels=labels), no_targets)
    assert float(value) == pytest.approx(4 * math.log(4), rel=1e-6)
    objects = replace(stage, raw_predictions=rows(torch.zeros(12, 1, dtype=torch.float64)), class_agnostic=True)
    value = loss(student_with(objects), Signals(pseudo_labels=labels), no_targets)
    assert float(value) == pytest.approx(4 * math.log(2), rel=1e-6)


def test_an_unlearned_class_counts_as_background_in_a_softmax_head(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    """A background row that predicts a class which the teacher never learned has no loss and no gradient."""
    logits = numbers([FAR, 9.0, FAR], [9.0, FAR, FAR]).requires_grad_()
    head = rows(logits, background=numbers([0.0, 0.0]))
    stage = AssignResult(head, torch.full((1, 2), UNMATCHED), torch.zeros(1, 2))
    unlearned = replace(pair[1], missing_classes=frozenset({"bus"}))
    empty = pseudo_labels([0.9], [[0.9, 0.0, 0.0]], [[0.0, 0, 8, 8]]).take(torch.tensor([False]))
    value = SoftBoxes(SoftBoxesConfig(class_gain=1.0), pair[0], unlearned)(
        student_with(stage), Signals(pseudo_labels=empty), no_targets
    )
    assert float(value.detach()) == pytest.approx(math.log1p(math.exp(9.0)), rel=1e-9)  # the second row alone
    (gradient,) = torch.autograd.grad(value, logits)
    assert float(gradient[0].abs().max()) < 1e-100
    assert float(gradient[1, 0]) > 0.99


def test_ignored_regions_are_not_background(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Score .05 has no effect, .3 is in the ignore band, .9 is marked ignored: rows 0 and 3 alone cost log 2 each."""
    logits = torch.zeros(4, 1, dtype=torch.float64).requires_grad_()
    labels = pseudo_labels(
        [0.05, 0.3, 0.9], [[0.05], [0.3], [0.9]], [[0.0, 0, 8, 8], [8.0, 0, 16, 8], [16.0, 0, 24, 8]]
    )
    labels = replace(labels, ignore=torch.tensor([False, False, True]))
    stage = AssignResult(rows(logits), torch.full((1, 4), UNMATCHED), torch.zeros(1, 4))
    given: list[PseudoLabels] = []

    def assign(boxes: PseudoLabels) -> tuple[AssignResult, ...]:
        given.append(boxes)
        return (stage,)

    spec = replace(pair[0], classes=("car",))
    loss = SoftBoxes(SoftBoxesConfig(class_gain=1.0), spec, spec)
    value = loss(Signals(assign=assign), Signals(pseudo_labels=labels), no_targets)
    assert float(value.detach()) == pytest.approx(2 * math.log(2), rel=1e-9)
    assert len(given[0]) == 0
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.flatten().tolist() == [0.5, 0.0, 0.0, 0.5]


def test_a_matched_row_learns_its_box_inside_an_ignored_region(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    logits = torch.zeros(1, 1, dtype=torch.float64).requires_grad_()
    labels = pseudo_labels([0.8, 0.3], [[0.8], [0.3]], [[0.0, 0, 8, 8], [0.0, 0, 9, 8]])
    stage = AssignResult(rows(logits), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    spec = replace(pair[0], classes=("car",))
    value = SoftBoxes(SoftBoxesConfig(class_gain=1.0), spec, spec)(
        student_with(stage), Signals(pseudo_labels=labels), no_targets
    )
    (gradient,) = torch.autograd.grad(value, logits)
    assert float(gradient) == pytest.approx(0.5 - 0.8, rel=1e-6)


def test_stages_are_weighted_and_a_class_agnostic_one_learns_the_score(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    labels = pseudo_labels([0.6], [[0.1, 0.6, 0.0]], [[0.0, 0.0, 8.0, 8.0]])
    zero, one = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
    objects = AssignResult(
        rows(torch.zeros(1, 1, dtype=torch.float64)), zero, one, "proposals", 0.25, class_agnostic=True
    )
    classes = AssignResult(rows(torch.zeros(1, 3, dtype=torch.float64)), zero, one, "boxes", 0.75)
    loss = SoftBoxes(SoftBoxesConfig(class_gain=1.0, box_gain=0.0), *pair)
    value = loss(student_with(objects, classes), Signals(pseudo_labels=labels), no_targets)
    expected = 0.25 * kl(0.6, 0.5) + 0.75 * (kl(0.1, 0.5) + kl(0.6, 0.5) + kl(0.0, 0.5))
    assert float(value) == pytest.approx(expected, rel=1e-6)
    hard = SoftBoxes(SoftBoxesConfig(class_gain=1.0, box_gain=0.0, targets="hard"), *pair)
    value = hard(student_with(objects, classes), Signals(pseudo_labels=labels), no_targets)
    assert float(value) == pytest.approx(math.log(2) * (0.25 + 0.75 * 3), rel=1e-6)


def test_balance_lifts_the_rare_class(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Nine rows of one class and one of another: with balance 1 both classes count 5, their rows 5/9 and 5."""
    logits = torch.zeros(10, 2, dtype=torch.float64).requires_grad_()
    labels = pseudo_labels([1.0, 1.0], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0, 8, 8], [0.0, 0, 8, 8]])
    index = torch.tensor([[0] * 9 + [1]])
    spec = replace(pair[0], classes=("car", "bus"))
    stage = AssignResult(rows(logits), index, torch.ones(1, 10))
    loss = SoftBoxes(SoftBoxesConfig(class_gain=1.0, box_gain=0.0, balance=1.0), spec, spec)
    (gradient,) = torch.autograd.grad(loss(student_with(stage), Signals(pseudo_labels=labels), no_targets), logits)
    assert float(gradient[0, 0]) == pytest.approx(-0.5 * (5 / 9) / 10)
    assert float(gradient[9, 1]) == pytest.approx(-0.5 * 5 / 10)


def test_the_optimum_is_the_teachers_probabilities_times_the_quality(
    specs: tuple[DetectorSpec, DetectorSpec], make_side: Callable[..., Signals], no_targets: Targets
) -> None:
    """By LBFGS on the logits of the matched rows."""
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    assert student.grid is not None
    assert student.assign is not None
    assert teacher.pseudo_labels is not None
    logits = student.grid.logits.requires_grad_()
    loss = SoftBoxes(SoftBoxesConfig(class_gain=1.0, box_gain=0.0, bins_gain=0.0), *specs)
    optimizer = torch.optim.LBFGS([logits], lr=1.0, max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(student, teacher, no_targets)
        value.backward()
        return value

    optimizer.step(closure)
    objects = teacher.pseudo_labels.take(teacher.pseudo_labels.scores >= 0.5)
    (stage,) = student.assign(objects)
    has = stage.matched_idx >= 0
    expected = objects.class_probs[stage.matched_idx[has]] * stage.quality[has][:, None]
    torch.testing.assert_close(logits[has].sigmoid().detach(), expected.double(), atol=0.02, rtol=0)


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ignore_threshold must not be above score_threshold; given 0\.6 and 0\.5"):
        SoftBoxesConfig(ignore_threshold=0.6)
    with pytest.raises(ValueError, match="are all 0: nothing would be taught"):
        SoftBoxesConfig(class_gain=0, box_gain=0, bins_gain=0)


def test_signals_that_were_not_computed_are_named(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    loss = SoftBoxes(SoftBoxesConfig(), *pair)
    with pytest.raises(RequestError, match="'detections' of the teacher was not computed"):
        loss(Signals(), Signals(), no_targets)
    with pytest.raises(RequestError, match="'detections' of the student was not computed"):
        loss(Signals(), Signals(pseudo_labels=pseudo_labels([0.5], [[0.5]], [[0.0, 0, 1, 1]])), no_targets)


def test_probabilities_slightly_beyond_0_and_1_count_as_these(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    """An entropy outside [0, 1] would be -inf, and the loss with it."""
    logits = numbers([0.0, 0.0, 0.0])
    stage = AssignResult(rows(logits), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    box = [[0.0, 0.0, 8.0, 8.0]]
    loss = SoftBoxes(SoftBoxesConfig(class_gain=1.0), *pair)
    beyond, within = (
        float(loss(student_with(stage), Signals(pseudo_labels=pseudo_labels([1.0], [probs], box)), no_targets))
        for probs in ([1.005, -0.005, 0.3], [1.0, 0.0, 0.3])
    )
    assert beyond == pytest.approx(within, abs=1e-9)
    assert math.isfinite(within)
