"""A teacher whose grid is another than the student's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import GridPredictions, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import validate
from kd_vision.losses import LOSSES, load_loss
from kd_vision.losses.box_ld import BoxLD, BoxLDConfig
from kd_vision.losses.class_bce import ClassBCE, ClassBCEConfig
from kd_vision.losses.grid import GridLoss
from kd_vision.losses.grid_resample import Resampler

GRID_LOSSES = [name for name in sorted(LOSSES) if issubclass(load_loss(name), GridLoss)]


def grid(size: int, *strides: float, anchors: int = 1) -> GridPredictions:
    """A grid whose logits are the number of the row, and whose boxes are around its point."""
    points, owners = [], []
    for stride in strides:
        axis = (torch.arange(int(size / stride)) + 0.5) * stride
        rows, columns = torch.meshgrid(axis, axis, indexing="ij")
        level = torch.stack([columns.flatten(), rows.flatten()], dim=-1).repeat_interleave(anchors, dim=0)
        points.append(level)
        owners.append(torch.full((len(level),), float(stride)))
    xy, stride_of = torch.cat(points), torch.cat(owners)
    number = torch.arange(len(xy), dtype=torch.float64)[None, :, None]
    return GridPredictions(number, torch.cat([xy - 1, xy + 1], dim=-1)[None].double(), xy, stride_of)


@pytest.mark.parametrize(
    ("teacher_grid", "student_grid"),
    [((8, 16, 32), (8, 16, 32)), ((8, 16, 32, 64), (4, 8)), ((8, 16), (16, 64)), ((7.0, 12.0, 30.0), (8, 16))],
)
def test_agrees_with_trying_all(teacher_grid: tuple[float, ...], student_grid: tuple[float, ...]) -> None:
    teacher, student = grid(192, *teacher_grid), grid(192, *student_grid)
    resampled = Resampler((1,) * len(teacher_grid), same_stride=False)(teacher, student)
    for index in range(0, len(student.points_xy), 7):
        wanted = student.strides[index]
        level = min(teacher_grid, key=lambda stride: (abs(float((torch.tensor(stride) / wanted).log2())), stride))
        gaps = (teacher.points_xy - student.points_xy[index]).norm(dim=-1)
        gaps = gaps.masked_fill(teacher.strides != level, float("inf"))
        taken = int(resampled.logits[0, index])
        assert float(teacher.strides[taken]) == pytest.approx(level)
        assert float(gaps[taken]) == pytest.approx(float(gaps.min()), abs=1e-4)
        assert torch.equal(resampled.boxes_xyxy[0, index], teacher.boxes_xyxy[0, taken])
    assert torch.equal(resampled.points_xy, student.points_xy)
    assert torch.equal(resampled.strides, student.strides)


def test_the_best_anchor_of_each_point_is_taken() -> None:
    """Three anchors at each point: in image 0 the second is best everywhere, in image 1 the last."""
    teacher = grid(32, 8, 16, anchors=3)
    row = torch.arange(len(teacher.points_xy))
    first = torch.where(row % 3 == 1, 5.0, 0.0)
    second = torch.where((row % 3 == 2) & (teacher.strides == 16), 5.0, 0.0)
    logits = torch.stack([first, second])[..., None].double() + 1e-3 * row[:, None]
    teacher = replace(teacher, logits=logits, boxes_xyxy=teacher.boxes_xyxy.expand(2, -1, -1))
    resampled = Resampler((3, 3), same_stride=False)(teacher, grid(32, 8, 16))
    points = torch.arange(20)
    assert resampled.logits[0, :, 0].tolist() == pytest.approx((5 + 1e-3 * (3 * points + 1)).tolist())
    fine = points < 16  # all alike but for the row's number, so the last is best
    assert resampled.logits[1, fine, 0].tolist() == pytest.approx((1e-3 * (3 * points[fine] + 2)).tolist())
    assert resampled.logits[1, ~fine, 0].tolist() == pytest.approx((5 + 1e-3 * (3 * points[~fine] + 2)).tolist())


def test_levels_with_and_without_anchors_together() -> None:
    teacher = grid(32, 8, 16)
    coarse = grid(32, 16, anchors=2)
    mixed = GridPredictions(
        torch.cat([teacher.logits[:, :16], -torch.arange(8.0).double()[None, :, None]], dim=1),
        torch.cat([teacher.boxes_xyxy[:, :16], coarse.boxes_xyxy], dim=1),
        torch.cat([teacher.points_xy[:16], coarse.points_xy]),
        torch.cat([teacher.strides[:16], coarse.strides]),
    )
    resampled = Resampler((1, 2), same_stride=False)(mixed, grid(32, 8, 16))
    assert resampled.logits[0, :, 0].tolist() == [*range(16), 0, -2, -4, -6]


def test_the_lookup_follows_the_image() -> None:
    """The same resampler at two image sizes, also at two of as many points, gives what a fresh one gives."""
    kept = Resampler((1,), same_stride=False)
    for teacher, student in ((grid(64, 16), grid(64, 8)), (grid(96, 16), grid(96, 8)), (grid(64, 16), grid(64, 8))):
        fresh = Resampler((1,), same_stride=False)(teacher, student)
        assert torch.equal(kept(teacher, student).logits, fresh.logits)
    base = replace(grid(32, 8), points_xy=grid(32, 8).points_xy * torch.tensor([2.0, 1.0]))
    turned = replace(base, points_xy=base.points_xy.flip(1))
    for student in (base, turned):
        teacher = replace(grid(32, 8), points_xy=student.points_xy.flip(0))
        assert kept(teacher, student).logits[0, :, 0].tolist() == [*range(15, -1, -1)]


def test_a_grid_that_is_not_what_the_specification_says_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        Resampler((1, 1), same_stride=False)(grid(32, 8), grid(32, 8))
    assert caught.value.problems == ("the teacher's grid has 1 strides where its specification names 2 levels",)


def test_a_grid_with_holes_is_refused() -> None:
    whole = grid(32, 8)
    holed = GridPredictions(whole.logits[:, 1:], whole.boxes_xyxy[:, 1:], whole.points_xy[1:], whole.strides[1:])
    with pytest.raises(RequestError, match="15 points in 4 columns and 4 rows; its points must form a lattice"):
        Resampler((1,), same_stride=False)(holed, grid(32, 16))


def test_a_teacher_at_twice_the_image_size_is_read_at_its_next_level(
    specs: tuple[DetectorSpec, DetectorSpec], make_side: Callable[..., Signals], no_targets: Targets
) -> None:
    """In the student's frame its strides are 4 and 8: the second belongs to the student's P3 with the same bins."""
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    large = _teacher_of_double_size(specs[1], make_side)
    assert large.grid is not None
    assert teacher.grid is not None
    assert student.grid is not None
    p3 = replace(specs[0], level_channels={"P3": 3}, level_strides={"P3": 8})
    fine = student.grid.strides == 8
    small = Signals(grid=_at(student.grid, fine))
    loss = BoxLD(BoxLDConfig(), p3, replace(specs[1], level_strides={"P2": 8, "P4": 16}))
    coarse = _at(large.grid, large.grid.strides == 8)
    expected = BoxLD(BoxLDConfig(), p3, replace(p3, name="large"))(
        small, Signals(grid=replace(coarse, points_xy=small.grid.points_xy)), no_targets
    )
    assert float(loss(small, large, no_targets)) == pytest.approx(float(expected), rel=1e-12)


def _teacher_of_double_size(spec: DetectorSpec, make_side: Callable[..., Signals]) -> Signals:
    """Output of `FrozenTeacher` for a teacher whose input is 128 px where the student's is 64."""
    whole = grid(128, 8, 16)
    count = len(whole.points_xy)
    source = torch.Generator().manual_seed(7)
    logits = torch.randn(2, count, 3, generator=source, dtype=torch.float64)
    bins = torch.randn(2, count, 4, 5, generator=source, dtype=torch.float64)
    boxes = whole.boxes_xyxy.expand(2, -1, -1)
    return Signals(grid=GridPredictions(logits, boxes / 2, whole.points_xy / 2, whole.strides / 2, bins))


def _at(side: GridPredictions, keep: Tensor) -> GridPredictions:
    bins = side.box_bins
    return GridPredictions(
        side.logits[:, keep],
        side.boxes_xyxy[:, keep],
        side.points_xy[keep],
        side.strides[keep],
        None if bins is None else bins[:, keep],
    )


@pytest.mark.parametrize("name", [name for name in GRID_LOSSES if not load_loss(name).needs_box_bins])
def test_a_teacher_with_anchors_counts_as_its_best_anchor(
    name: str, specs: tuple[DetectorSpec, DetectorSpec], make_side: Callable[..., Signals], targets: Targets
) -> None:
    """Each point twice, the second time with lower scores and another box: as if it were not there."""
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    plain = teacher.grid
    assert plain is not None
    assert plain.box_bins is not None

    def twice(first: Tensor, second: Tensor, axis: int) -> Tensor:
        return torch.stack([first, second], dim=axis + 1).flatten(axis, axis + 1)

    double = GridPredictions(
        twice(plain.logits, plain.logits - 1, 1),
        twice(plain.boxes_xyxy, plain.boxes_xyxy + 3, 1),
        twice(plain.points_xy, plain.points_xy, 0),
        twice(plain.strides, plain.strides, 0),
        twice(plain.box_bins, -plain.box_bins, 1),
    )
    kind = load_loss(name)
    config = validate(kind.Config, {}, "test")
    anchored = replace(specs[1], level_anchors={"P3": 2, "P4": 2})
    assert kind.incompatibilities(config, specs[0], anchored) == []
    expected = kind(config, *specs)(student, teacher, targets)
    value = kind(config, specs[0], anchored)(student, replace(teacher, grid=double), targets)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)


def test_grids_that_do_not_correspond_are_refused(specs: tuple[DetectorSpec, DetectorSpec]) -> None:
    student, teacher = specs
    config = ClassBCEConfig()
    anchored = replace(student, level_anchors={"P3": 9, "P4": 9})
    assert ClassBCE.incompatibilities(config, anchored, teacher) == [
        "the student has 9 anchors at a point and the teacher not the same, so the rows of the two grids do not "
        "correspond; use soft_boxes or region_feedback instead"
    ]
    twin = replace(teacher, level_anchors={"P3": 9, "P4": 9})
    assert ClassBCE.incompatibilities(config, anchored, twin) == []
    assert ClassBCE.incompatibilities(config, anchored, replace(twin, family="other"))[0].startswith(
        "the student has 9"
    )
    coarse = replace(teacher, level_strides={"P3": 8, "P4": 32})
    assert ClassBCE.incompatibilities(config, student, coarse) == []
    assert BoxLD.incompatibilities(BoxLDConfig(), student, coarse) == [
        "box bins are in units of the stride, and level 'P4' has stride 32 in the teacher and 16 in the student; "
        "use box_iou instead"
    ]
    assert BoxLD.incompatibilities(BoxLDConfig(levels=("P3",)), student, coarse) == []


def test_resampling_is_warned_of(specs: tuple[DetectorSpec, DetectorSpec]) -> None:
    student, teacher = specs
    assert ClassBCE.pair_warnings(ClassBCEConfig(), student, teacher) == []
    coarse = replace(teacher, level_strides={"P3": 8, "P4": 32}, level_anchors={"P4": 3})
    assert ClassBCE.pair_warnings(ClassBCEConfig(), student, coarse) == [
        "level 'P4' has stride 32 in the teacher and 16 in the student; level 'P4' has anchors per point 3 in the "
        "teacher and 1 in the student: each point of the student learns from the nearest point of the teacher's "
        "level of the nearest stride"
    ]
    other = replace(teacher, level_channels={"C4": 5}, level_strides={"C4": 16})
    assert ClassBCE.incompatibilities(ClassBCEConfig(), student, other) == []
    assert ClassBCE.pair_warnings(ClassBCEConfig(), student, other)[0].startswith("teacher and student share no level")


def test_bins_of_another_stride_are_refused_where_only_the_grids_tell(
    specs: tuple[DetectorSpec, DetectorSpec], make_side: Callable[..., Signals], no_targets: Targets
) -> None:
    student = make_side(specs[0], 1)
    with pytest.raises(RequestError, match="the strides of teacher and student differ"):
        BoxLD(BoxLDConfig(), *specs)(student, _teacher_of_double_size(specs[1], make_side), no_targets)


def test_other_images_or_classes_are_refused(
    row_spec: DetectorSpec, rows_side: Callable[..., Signals], no_targets: Targets
) -> None:
    loss = ClassBCE(ClassBCEConfig(), row_spec, row_spec)
    with pytest.raises(RequestError) as caught:
        loss(rows_side(torch.zeros(4, 3)), rows_side(torch.zeros(4, 2)), no_targets)
    assert caught.value.problems == (
        "ClassBCE: student grid (1, 4, 3) and teacher grid (1, 4, 2) (images, points, classes) differ in images or "
        "classes",
    )
    with pytest.raises(RequestError, match="the signal 'grid' of the student was not computed"):
        loss(Signals(), rows_side(torch.zeros(4, 3)), no_targets)


def test_points_half_a_stride_apart_are_paired_row_by_row_as_nearly_as_by_looking_for_the_nearest() -> None:
    """FCOS puts its points at i * stride, YOLO at (i + 1/2) * stride: all four neighbours are as near."""
    student = grid(64, 8, 16)
    corners = replace(student, points_xy=student.points_xy - student.strides[:, None] / 2)
    resampled = Resampler((1, 1), same_stride=True)(corners, student)
    looked_up = corners.points_xy[resampled.logits[0, :, 0].long()]
    by_row, by_nearest = ((points - student.points_xy).norm(dim=-1) for points in (corners.points_xy, looked_up))
    assert torch.allclose(by_row, by_nearest)
    assert torch.allclose(by_row, student.strides / 2**0.5)


@pytest.mark.parametrize("name", ["class_bce", "box_iou"])
def test_a_student_with_anchors_needs_a_grid_of_the_same_size(
    name: str, specs: tuple[DetectorSpec, DetectorSpec], no_targets: Targets
) -> None:
    """A teacher with a larger input has more points; all anchors of the student would learn its best."""
    spec = replace(specs[0], classes=("car",), level_strides={"P3": 8, "P4": 16}, level_anchors={"P3": 3, "P4": 3})
    loss = load_loss(name)(load_loss(name).Config(), spec, spec)
    student, teacher = Signals(grid=grid(64, 8, 16, anchors=3)), Signals(grid=grid(64, 4, 8, anchors=3))
    assert float(loss(student, student, no_targets)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(RequestError, match=r"the student has 3 anchors at a point, and the teacher's grid is of anoth"):
        loss(student, teacher, no_targets)
