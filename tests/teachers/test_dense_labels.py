"""Dense predictions made sparse and dense again, and what that does to the losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import ImageBatch, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.label_map import build_label_map
from kd_vision.core.predictions import GridPredictions, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses import load_loss
from kd_vision.teachers.dense_labels import DenseLabelsTeacher, GridLayout

CLASSES, BINS, SIZE, IMAGES = 3, 8, 128, 4
SPEC = DetectorSpec("test", "large", ("car", "bus", "person"), {}, {"P3": 8, "P4": 16}, frozenset({"grid"}), box_bins=8)


def layout(*strides: int) -> GridLayout:
    points, owners = [], []
    for stride in strides:
        axis = (torch.arange(SIZE // stride) + 0.5) * stride
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], dim=-1))
        owners.append(torch.full((len(points[-1]),), float(stride)))
    return GridLayout(torch.cat(points), torch.cat(owners))


def predictions(where: GridLayout, seed: int, objects: float) -> GridPredictions:
    """Random predictions, sure of an object at a share of the points and of none at the others."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(where.strides)

    def noise(*shape: int) -> Tensor:
        return torch.randn(IMAGES, rows, *shape, generator=generator)

    peak = torch.where(torch.rand(IMAGES, rows, 1, generator=generator) < objects, 1.0, -6.5)
    logits = peak + 1.2 * noise(CLASSES)
    bins = 2.0 * noise(4, BINS)
    sides = (bins.softmax(-1) @ torch.arange(float(BINS))) * where.strides[:, None]
    boxes = torch.cat([where.points_xy - sides[..., :2], where.points_xy + sides[..., 2:]], dim=-1)
    return GridPredictions(logits, boxes, where.points_xy, where.strides, bins)


def test_stored_rows_are_kept_and_the_others_are_the_mean_of_their_stride() -> None:
    """Two strides of one point each; at the first the images score 0.5 and 0.01, at the second 0.02 and 0.04."""
    where = GridLayout(torch.tensor([[4.0, 4.0], [8.0, 8.0]]), torch.tensor([8.0, 16.0]))
    logits = torch.logit(torch.tensor([[[0.5], [0.02]], [[0.01], [0.04]]]))
    boxes = torch.tensor([[1.0, 2.0, 9.0, 12.0]]).expand(2, 2, 4)
    labels = where.sparse(GridPredictions(logits, boxes, where.points_xy, where.strides), 0.1, 10)
    assert labels.rows.tolist() == [0]
    assert labels.sides.tolist() == [[0.375, 0.25, 0.625, 1.0]]
    assert labels.background_logits.sigmoid().flatten().tolist() == pytest.approx([0.01, 0.03])
    grid = where.dense(labels, 2)
    assert grid.logits.sigmoid().flatten().tolist() == pytest.approx([0.5, 0.03, 0.01, 0.03])
    assert grid.boxes_xyxy[0].tolist() == [[1.0, 2.0, 9.0, 12.0], [0.0, 0.0, 16.0, 16.0]]
    assert grid.box_bins is None


def test_background_bins_are_the_mean_distribution_weighted_by_the_score() -> None:
    where = GridLayout(torch.tensor([[4.0, 4.0]]), torch.tensor([8.0]))
    logits = torch.logit(torch.tensor([[[0.01]], [[0.03]]]))
    bins = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()[:, None, None].expand(2, 1, 4, 2)
    grid = GridPredictions(logits, torch.zeros(2, 1, 4), where.points_xy, where.strides, bins)
    labels = where.sparse(grid, 0.1, 10)
    assert labels.background_bins is not None
    assert labels.background_bins.exp()[0, 0].tolist() == pytest.approx([0.5, 0.5])


def test_the_background_keeps_the_mean_of_the_best_probabilities() -> None:
    """Two images at one point: class means 0.02 and 0.03, means of the best 0.04; the likeliest class is lifted."""
    where = GridLayout(torch.tensor([[4.0, 4.0]]), torch.tensor([8.0]))
    logits = torch.logit(torch.tensor([[[0.03, 0.01]], [[0.01, 0.05]]]))
    labels = where.sparse(GridPredictions(logits, torch.zeros(2, 1, 4), where.points_xy, where.strides), 0.1, 10)
    assert labels.background_logits.sigmoid()[0].tolist() == pytest.approx([0.02, 0.04])


def test_at_most_so_many_points_of_an_image_are_stored_the_best_first() -> None:
    where = layout(8, 16)
    grid = predictions(where, 0, objects=0.5)
    labels = where.sparse(grid, 0.05, 7)
    image = labels.rows // len(where.strides)
    assert torch.bincount(image).tolist() == [7] * IMAGES
    best = grid.logits.sigmoid().amax(-1)
    assert torch.equal(labels.logits.sigmoid().amax(-1)[image == 1].sort().values, best[1].topk(7).values.sort().values)


def term(loss: str, student: GridPredictions, teacher: GridPredictions, **settings: Any) -> tuple[float, Tensor]:
    """Value of a loss, and its gradient at the student's predictions."""
    kind = load_loss(loss)
    leaf = replace(
        student,
        logits=student.logits.clone().requires_grad_(),
        boxes_xyxy=student.boxes_xyxy.clone().requires_grad_(),
        box_bins=None if student.box_bins is None else student.box_bins.clone().requires_grad_(),
    )
    none = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    value = kind(kind.Config(**settings), SPEC, SPEC)(Signals(grid=leaf), Signals(grid=teacher), none)
    leaves = [one for one in (leaf.logits, leaf.boxes_xyxy, leaf.box_bins) if one is not None]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.item(), torch.cat([one.flatten() for one in gradients if one is not None])


def error(loss: str, student: GridPredictions, live: GridPredictions, stored: GridPredictions) -> tuple[float, float]:
    """Relative error of a loss's value, and of its gradient in the L2 norm, from stored predictions."""
    (value, gradient), (other, changed) = term(loss, student, live), term(loss, student, stored)
    return abs(other / value - 1), float((changed - gradient).norm() / gradient.norm())


@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [("class_qfl", 0.01, 0.01), ("class_bce", 0.01, 0.03), ("box_iou", 1e-4, 1e-3), ("box_ld", 0.08, 0.05)],
)
def test_losses_from_stored_points_are_those_of_all_points(loss: str, value: float, gradient: float) -> None:
    """Four in a hundred points see an object; the mean background is nearer to all points than a constant is."""
    where = layout(8, 16)
    live, student = predictions(where, 1, objects=0.04), predictions(where, 2, objects=0.02)
    labels = where.sparse(live, 0.03, 1000)
    assert len(labels.rows) < 0.15 * live.logits[..., 0].numel()
    mean = error(loss, student, live, where.dense(labels, IMAGES))
    assert mean[0] < value
    assert mean[1] < gradient
    for constant in (-1000.0, -4.5):
        flat = replace(labels, background_logits=torch.full_like(labels.background_logits, constant))
        assert mean[1] < error(loss, student, live, where.dense(flat, IMAGES))[1]


def batch(**labels: Any) -> ImageBatch:
    none = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    return ImageBatch(torch.rand(IMAGES, 3, SIZE, SIZE), none, torch.ones(IMAGES, dtype=torch.bool), **labels)


def test_the_teacher_answers_in_the_students_classes_by_branch() -> None:
    where = layout(8, 16)
    live = predictions(where, 1, objects=0.05)
    classes = ("person", "vehicle")
    mapping = build_label_map(SPEC.classes, classes, {"car": "vehicle", "bus": "vehicle"}, "labels")
    teacher = DenseLabelsTeacher("t", SPEC, where, mapping, SIZE, 0.03).to("cpu")
    assert teacher.spec.classes == classes
    labels = where.sparse(live, 0.03, 1000)
    seen = batch(dense_labels={"t": {"one_to_many": labels, "one_to_one": labels}})
    grids = teacher.signals(seen.to("cpu"), frozenset({"grid"})).grids
    assert set(grids) == {"one_to_many", "one_to_one"}
    rows = labels.rows
    mapped = grids["one_to_many"].logits.flatten(0, 1)[rows]
    expected = live.logits.flatten(0, 1)[rows]
    assert torch.allclose(mapped, torch.stack([expected[:, 2], expected[:, :2].amax(-1)], dim=-1))
    assert teacher.signals(seen, frozenset()).grids == {}


def test_a_batch_without_dense_labels_is_refused() -> None:
    teacher = DenseLabelsTeacher("t", SPEC, layout(8, 16), None, SIZE, 0.03)
    with pytest.raises(RequestError, match="'t': the batch has no dense labels; they exist for training batches alone"):
        teacher.signals(batch(), frozenset({"grid"}))
