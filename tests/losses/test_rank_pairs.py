from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import UNMATCHED, AssignResult, RawPredictions, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.rank_pairs import RankPairs, RankPairsConfig, ranking_loss


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def boxes_with(scores: list[float], labels: list[int]) -> PseudoLabels:
    """One box in each image."""
    count = len(scores)
    return PseudoLabels(
        torch.arange(count),
        torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(count, 1),
        torch.nn.functional.one_hot(torch.tensor(labels), 2) * torch.tensor(scores)[:, None],
        torch.tensor(scores),
        torch.zeros(count, dtype=torch.bool),
    )


def student_of(logits: Tensor, index: Tensor, background: Tensor | None = None) -> Signals:
    rows = RawPredictions(
        logits, torch.zeros(*logits.shape[:2], 4), torch.full((1, logits.shape[1], 2), 4.0), background
    )
    return Signals(assign=lambda pseudo_labels: (AssignResult(rows, index, torch.ones(index.shape)),))


@pytest.fixture
def pair(row_spec: DetectorSpec) -> tuple[DetectorSpec, DetectorSpec]:
    spec = replace(row_spec, classes=("car", "bus"), provides=frozenset({"detections"}))
    return spec, spec


def test_by_hand() -> None:
    """Differences .5, .4 and .1 of one class, the last within the margin; the fourth box is of another class."""
    s = numbers(1.0, 0.0, 2.0, -7.0)
    value = ranking_loss(s, numbers(0.9, 0.5, 0.4, 0.1), torch.tensor([0, 0, 0, 1]), 0.15, 2.0)
    expected = (0.4 * math.log1p(math.exp(-0.5)) + 0.5 * math.log1p(math.exp(0.5))) / 0.9
    assert float(value) == pytest.approx(expected, rel=1e-12)


def test_gradient_is_large_for_a_wrong_order_and_small_for_a_right_one() -> None:
    s = numbers(-4.0, 4.0).requires_grad_()
    labels, scores = torch.tensor([0, 0]), numbers(0.9, 0.4)
    (wrong,) = torch.autograd.grad(ranking_loss(s, scores, labels, 0.1, 1.0), s)
    assert wrong.tolist() == pytest.approx([-1.0, 1.0], abs=1e-3)
    (right,) = torch.autograd.grad(ranking_loss(s, scores.flip(0), labels, 0.1, 1.0), s)
    assert right.tolist() == pytest.approx([0.0, 0.0], abs=1e-3)


def test_without_a_pair_it_is_zero_with_a_gradient(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    loss = RankPairs(RankPairsConfig(), *pair)
    logits = torch.zeros(2, 1, 2, dtype=torch.float64).requires_grad_()
    other_class, too_near, too_low = ([0.9, 0.5], [0, 1]), ([0.9, 0.85], [0, 0]), ([0.9, 0.2], [0, 0])
    for teacher, second in ((other_class, 1), (too_near, 1), (too_low, UNMATCHED)):
        student = student_of(logits, torch.tensor([[0], [second]]))
        value = loss(student, Signals(pseudo_labels=boxes_with(*teacher)), no_targets)
        (gradient,) = torch.autograd.grad(value, logits)
        assert float(value.detach()) == 0.0
        assert float(gradient.abs().max()) == 0.0


def test_the_best_row_of_a_box_is_compared(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Box 0 has rows of logits 1 and 3 for its class, box 1 one of 2; the best row of image 1 is background."""
    logits = numbers([[1.0, 9.0], [3.0, 9.0]], [[2.0, 9.0], [8.0, 9.0]])
    index = torch.tensor([[0, 0], [1, UNMATCHED]])
    value = RankPairs(RankPairsConfig(), *pair)(
        student_of(logits, index), Signals(pseudo_labels=boxes_with([0.9, 0.4], [0, 0])), no_targets
    )
    assert float(value) == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-9)


def test_a_softmax_head_is_ranked_by_log_odds(pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets) -> None:
    """Probabilities 1/2 and 1/5 have log-odds 0 and -log 4."""
    logits, background = numbers([[0.0, -300.0]], [[0.0, math.log(3.0)]]), numbers([0.0], [0.0])
    value = RankPairs(RankPairsConfig(), *pair)(
        student_of(logits, torch.tensor([[0], [1]]), background),
        Signals(pseudo_labels=boxes_with([0.4, 0.9], [0, 0])),
        no_targets,
    )
    assert float(value) == pytest.approx(math.log1p(4.0), rel=1e-9)


def test_an_unassigned_box_has_no_pair_and_many_boxes_are_thinned(
    pair: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    pseudo_labels: list[PseudoLabels] = []
    logits = torch.zeros(5, 1, 2, dtype=torch.float64)
    rows = RawPredictions(logits, torch.zeros(5, 1, 4), torch.full((1, 1, 2), 4.0))

    def assign(boxes: PseudoLabels) -> tuple[AssignResult, ...]:
        pseudo_labels.append(boxes)
        return (AssignResult(rows, torch.tensor([[0], [UNMATCHED], [UNMATCHED], [UNMATCHED], [2]]), torch.ones(5, 1)),)

    teacher = Signals(pseudo_labels=boxes_with([0.9, 0.8, 0.7, 0.5, 0.3], [0] * 5))
    value = RankPairs(RankPairsConfig(boxes=3), *pair)(Signals(assign=assign), teacher, no_targets)
    assert pseudo_labels[0].image_index.tolist() == [0, 2, 4]
    assert float(value) == pytest.approx(math.log(2.0), rel=1e-9)
