from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.rank_list import RankList, RankListConfig, grouped_divergence

Wave = Callable[..., tuple[Tensor, Tensor]]
RowsSide = Callable[..., Signals]


def divergence(s: Tensor, t: Tensor, temperature: float) -> float:
    p, q = (s / temperature).softmax(0), (t / temperature).softmax(0)
    return float(temperature**2 * (q * (q / p).log()).sum())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_groups_agree_with_one_softmax_each(wave: Wave, temperature: float) -> None:
    """Groups of 4, 1, 0 and 5 values, mixed; one of them with logits that would overflow without care."""
    s, t = wave(10)
    s = s + 800.0
    group = torch.tensor([0, 3, 0, 1, 3, 0, 3, 3, 0, 3])
    value = grouped_divergence(s, t, group, 4, temperature)
    for index in (0, 3):
        assert float(value[index]) == pytest.approx(
            divergence(s[group == index], t[group == index], temperature), rel=1e-9
        )
    assert value[1:3].tolist() == [0.0, 0.0]


def test_gradient_of_a_group_is_p_minus_q(wave: Wave) -> None:
    s, t = wave(5)
    s.requires_grad_()
    group = torch.zeros(5, dtype=torch.int64)
    (gradient,) = torch.autograd.grad(grouped_divergence(s, t, group, 1, 2.0).sum(), s)
    expected = 2.0 * ((s / 2).softmax(0) - (t / 2).softmax(0)).detach()
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def boxes(*spans: tuple[float, float]) -> Targets:
    """Objects of image 0 over spans of the line of points 4, 12, 20, ..."""
    return Targets(
        torch.zeros(len(spans), dtype=torch.int64),
        torch.zeros(len(spans), dtype=torch.int64),
        torch.tensor([[left, 0.0, right, 8.0] for left, right in spans]),
    )


def test_mean_over_objects_that_hold_a_point(wave: Wave, row_spec: DetectorSpec, rows_side: RowsSide) -> None:
    """Points 0 to 3 lie in the large box, 1 and 2 belong to a smaller one inside; the last box holds none."""
    s, t = wave(6, 3)
    value = RankList(RankListConfig(), row_spec, row_spec)(
        rows_side(s), rows_side(t), boxes((0, 32), (8, 24), (45, 47))
    )
    best = s.amax(-1), t.amax(-1)
    large = divergence(best[0][[0, 3]], best[1][[0, 3]], 1.0)
    small = divergence(best[0][1:3], best[1][1:3], 1.0)
    assert float(value) == pytest.approx((large + small) / 2, rel=1e-9)


def test_invariant_to_the_level_of_the_scores(wave: Wave, row_spec: DetectorSpec, rows_side: RowsSide) -> None:
    s, _ = wave(6, 3)
    loss = RankList(RankListConfig(temperature=2.0), row_spec, row_spec)
    assert float(loss(rows_side(s), rows_side(s - 5.0), boxes((0, 48)))) == pytest.approx(0.0, abs=1e-12)


def boxes_of_teacher(spans: Targets, scores: list[float], ignore: list[bool]) -> PseudoLabels:
    return PseudoLabels(
        spans.image_index, spans.boxes_xyxy, torch.ones(len(spans), 3), torch.tensor(scores), torch.tensor(ignore)
    )


@pytest.fixture
def teacher_spec(row_spec: DetectorSpec) -> DetectorSpec:
    """A teacher that also provides final boxes; the student does not."""
    return replace(row_spec, provides=row_spec.provides | {"detections"})


def test_without_ground_truth_the_teachers_boxes_are_the_objects(
    wave: Wave, row_spec: DetectorSpec, teacher_spec: DetectorSpec, rows_side: RowsSide, no_targets: Targets
) -> None:
    """Of three boxes the second is below the threshold and the third is ignored."""
    s, t = wave(6, 3)
    student, teacher = rows_side(s), rows_side(t)
    final = boxes_of_teacher(boxes((0, 24), (24, 40), (40, 48)), [0.9, 0.4, 0.9], [False, False, True])
    loss = RankList(RankListConfig(), row_spec, teacher_spec)
    expected = loss(student, replace(teacher, pseudo_labels=final), boxes((0, 24)))
    assert float(expected) > 0
    value = loss(student, replace(teacher, pseudo_labels=final), no_targets)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)


def test_a_labelled_image_has_its_ground_truth_alone(
    wave: Wave, row_spec: DetectorSpec, teacher_spec: DetectorSpec, rows_side: RowsSide
) -> None:
    s, t = wave(6, 3)
    student, teacher, labelled = rows_side(s), rows_side(t), boxes((24, 48))
    final = boxes_of_teacher(boxes((0, 24)), [0.9], [False])
    values = [
        float(RankList(RankListConfig(), row_spec, spec)(student, replace(teacher, pseudo_labels=final), labelled))
        for spec in (teacher_spec, row_spec)
    ]
    assert values[0] == values[1] > 0


def test_a_teacher_without_final_boxes_gives_no_objects_to_an_unlabelled_image(
    wave: Wave, row_spec: DetectorSpec, rows_side: RowsSide, no_targets: Targets
) -> None:
    s, t = wave(6, 3)
    value = RankList(RankListConfig(), row_spec, row_spec)(rows_side(s.requires_grad_()), rows_side(t), no_targets)
    assert float(value.detach()) == 0.0
    assert value.requires_grad


def test_final_boxes_that_the_teacher_provides_must_be_computed(
    wave: Wave, row_spec: DetectorSpec, teacher_spec: DetectorSpec, rows_side: RowsSide
) -> None:
    s, t = wave(6, 3)
    with pytest.raises(RequestError, match="the signal 'detections' of the teacher was not computed"):
        RankList(RankListConfig(), row_spec, teacher_spec)(rows_side(s), rows_side(t), boxes((0, 48)))


def test_the_first_object_of_a_batch_counts_where_a_class_is_missing(
    wave: Wave, row_spec: DetectorSpec, rows_side: RowsSide
) -> None:
    """Object 0 holds points 0 to 2, a bus points 3 and 4; the teacher never learned "bus", column 1."""
    s, t = wave(6, 3)
    teacher_spec = replace(row_spec, missing_classes=frozenset({"bus"}))
    objects = replace(boxes((0, 24), (24, 40)), labels=torch.tensor([0, 1]))
    value = RankList(RankListConfig(), row_spec, teacher_spec)(rows_side(s), rows_side(t), objects)
    known = s[:3, [0, 2]].amax(-1), t[:3, [0, 2]].amax(-1)
    assert float(value) == pytest.approx(divergence(*known, 1.0), rel=1e-9)
    assert float(value) > 0
