"""A teacher whose grid is another than the student's."""

from __future__ import annotations

import math
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


def naive_links(teacher: list[float], student: list[float]) -> set[tuple[float, float, bool]]:
    """Strides (student, teacher, borrowed) of linked levels, written from the text of `link_levels`."""

    def nearest(stride: float, others: list[float]) -> float:
        return min(others, key=lambda other: (round(abs(math.log2(other / stride)), 6), other))

    links = {(nearest(stride, student), stride, False) for stride in teacher}
    owned = {own for own, _, _ in links}
    at_finest = [stride for own, stride, _ in links if own == student[0]]
    shifted = len(at_finest) > 1 and min(at_finest) < student[0]
    for stride in student:
        finer = [other for other in teacher if other < stride and (stride, other, False) not in links]
        if stride not in owned:
            links.add((stride, nearest(stride, teacher), nearest(stride, teacher) < stride))
        elif shifted and stride != student[0] and finer:
            links.add((stride, max(finer), True))
    return links


def near(points: Tensor, others: Tensor) -> list[int]:
    """For each point the first of the nearest others; (columns, rows) are looked for one after the other."""
    choices = []
    columns, rows = (sorted(set(axis.tolist())) for axis in others.unbind(dim=-1))
    for point in points:
        x = min(columns, key=lambda value: (abs(value - float(point[0])), value))
        y = min(rows, key=lambda value: (abs(value - float(point[1])), value))
        choices.append(int(((others[:, 0] == x) & (others[:, 1] == y)).nonzero()[0]))
    return choices


def naive(teacher: GridPredictions, student: GridPredictions) -> list[list[int]]:
    """The row that each point learns, by image: a loop over images, points and rows."""
    links = naive_links(*(sorted(set(grid.strides.tolist())) for grid in (teacher, student)))
    cells: list[set[tuple[int, bool]]] = [set() for _ in student.points_xy]
    for mine, other, borrowed in links:
        points, rows = ((grid.strides == s).nonzero()[:, 0] for grid, s in ((student, mine), (teacher, other)))
        forth = near(student.points_xy[points], teacher.points_xy[rows])
        back = near(teacher.points_xy[rows], student.points_xy[points])
        for point, place in enumerate(forth):
            same_place = (teacher.points_xy[rows] == teacher.points_xy[rows[place]]).all(dim=-1)
            cells[int(points[point])] |= {(row, borrowed) for row in rows[same_place].tolist()}
        for row, place in enumerate(back):
            cells[int(points[place])].add((int(rows[row]), borrowed))
    return [
        [chosen(cell, image, teacher, student.points_xy[point]) for point, cell in enumerate(cells)]
        for image in range(len(teacher.logits))
    ]


def chosen(cell: set[tuple[int, bool]], image: int, teacher: GridPredictions, point: Tensor) -> int:
    def score(row: int) -> float:
        return float(teacher.logits[image, row].max())

    def holds(row: int) -> bool:
        x1, y1, x2, y2 = teacher.boxes_xyxy[image, row].tolist()
        x, y = point.tolist()
        return bool(x1 < x < x2 and y1 < y < y2)

    held = [row for row, borrowed in cell if not borrowed or holds(row)]
    return max(held, key=score) if held else min((row for row, _ in cell), key=score)


def numbered(grid: GridPredictions, seed: int, images: int = 2) -> GridPredictions:
    """The grid with two classes of random scores, all different, and boxes of all sizes near their points."""
    source = torch.Generator().manual_seed(seed)
    count = len(grid.points_xy)
    logits = torch.randperm(images * count * 2, generator=source).view(images, count, 2) / 10.0
    centre = grid.points_xy + grid.strides[:, None] * (torch.rand(images, count, 2, generator=source) - 0.5)
    half = 24 * torch.rand(images, count, 2, generator=source)
    return replace(grid, logits=logits, boxes_xyxy=torch.cat([centre - half, centre + half], dim=-1))


GRIDS = [
    ((8, 16, 32), (8, 16, 32)),
    ((4, 8, 16), (8, 16, 32)),
    ((4, 8, 16), (4, 8, 16, 32)),
    ((2, 4, 8), (8, 16, 32)),
    ((16, 32, 64), (8, 16, 32)),
    ((8, 16, 32, 64), (4, 8)),
    ((8, 16), (16, 64)),
    ((7.0, 12.0, 30.0), (8, 16)),
    ((6, 12, 24), (8, 16, 32)),
]


@pytest.mark.parametrize(("teacher_strides", "student_strides"), GRIDS)
@pytest.mark.parametrize("anchors", [1, 3])
def test_agrees_with_a_loop_over_all_rows(
    teacher_strides: tuple[float, ...], student_strides: tuple[float, ...], anchors: int
) -> None:
    teacher, student = numbered(grid(96, *teacher_strides, anchors=anchors), 5), grid(96, *student_strides)
    points, resampled = Resampler((anchors,) * len(teacher_strides), same_stride=False)(teacher, student)
    assert torch.equal(points.points_xy, student.points_xy)
    rows = torch.tensor(naive(teacher, student))
    image = torch.arange(2)[:, None]
    assert torch.equal(resampled.logits, teacher.logits[image, rows])
    assert torch.equal(resampled.boxes_xyxy, teacher.boxes_xyxy[image, rows])
    assert torch.equal(resampled.points_xy, student.points_xy)
    assert torch.equal(resampled.strides, student.strides)


@pytest.mark.parametrize(("teacher_strides", "student_strides"), GRIDS)
def test_each_row_is_the_target_of_some_point_where_it_is_the_surest(
    teacher_strides: tuple[float, ...], student_strides: tuple[float, ...]
) -> None:
    """No row of the teacher is lost, whatever level it is of."""
    teacher, student = grid(96, *teacher_strides), grid(96, *student_strides)
    resampler = Resampler((1,) * len(teacher_strides), same_stride=False)
    for row in range(0, len(teacher.points_xy), 5):
        logits = torch.full_like(teacher.logits, -9.0)
        logits[0, row] = 3.0
        _, resampled = resampler(replace(teacher, logits=logits), student)
        assert float(resampled.logits.max()) == 3.0


def test_the_same_grid_is_left_as_it_is() -> None:
    teacher = numbered(grid(96, 8, 16, 32), 3)
    _, resampled = Resampler((1, 1, 1), same_stride=True)(teacher, grid(96, 8, 16, 32))
    assert torch.equal(resampled.logits, teacher.logits)
    assert torch.equal(resampled.boxes_xyxy, teacher.boxes_xyxy)


def test_a_small_object_on_the_finest_level_of_a_larger_view_is_shown() -> None:
    """512 px against 256: the teacher sees it at (42, 42) on stride 4, which no level of the student has."""
    teacher, student = grid(256, 4, 8, 16), grid(256, 8, 16, 32)
    fine = int(((teacher.points_xy == 42) & (teacher.strides == 4)[:, None]).all(dim=-1).nonzero())
    logits = torch.full_like(teacher.logits, -9.0)
    logits[0, fine] = 2.0
    _, resampled = Resampler((1, 1, 1), same_stride=False)(replace(teacher, logits=logits), student)
    shown = (resampled.logits[0, :, 0] == 2.0).nonzero().squeeze(1)
    assert [(student.points_xy[at].tolist(), float(student.strides[at])) for at in shown] == [([44.0, 44.0], 8.0)]
    assert torch.equal(resampled.boxes_xyxy[0, shown[0]], teacher.boxes_xyxy[0, fine])


@pytest.mark.parametrize(("half", "levels"), [(4.0, {8.0}), (14.0, {8.0, 16.0})])
def test_a_coarser_level_borrows_only_where_the_box_holds_its_point(half: float, levels: set[float]) -> None:
    """A row at (44, 44) of stride 8 in a larger view: the student's point of stride 16 in its cell is (40, 40)."""
    teacher, student = grid(256, 4, 8, 16), grid(256, 8, 16, 32)
    row = int(((teacher.points_xy == 44) & (teacher.strides == 8)[:, None]).all(dim=-1).nonzero())
    logits, boxes = torch.full_like(teacher.logits, -9.0), teacher.boxes_xyxy.clone()
    logits[0, row], boxes[0, row] = 2.0, torch.tensor([44 - half, 44 - half, 44 + half, 44 + half])
    _, resampled = Resampler((1, 1, 1), same_stride=False)(replace(teacher, logits=logits, boxes_xyxy=boxes), student)
    assert set(student.strides[resampled.logits[0, :, 0] == 2.0].tolist()) == levels


def test_a_coarsest_level_without_counterpart_is_taught_large_objects_and_background() -> None:
    """The student's stride 32 learns rows of stride 16 whose box holds its point (48, 48), else the least sure."""
    teacher, student = grid(256, 4, 8, 16), grid(256, 8, 16, 32)
    cell = ((teacher.points_xy - 48).abs() <= 8).all(dim=-1) & (teacher.strides == 16)
    point = int(((student.points_xy == 48) & (student.strides == 32)[:, None]).all(dim=-1).nonzero())
    assert int(cell.sum()) == 4
    logits, boxes = teacher.logits.clone(), teacher.boxes_xyxy.clone()
    logits[0, cell, 0] = torch.tensor([1.0, -3.0, 2.0, 0.5], dtype=logits.dtype)
    resampler = Resampler((1, 1, 1), same_stride=False)
    assert float(resampler(replace(teacher, logits=logits), student)[1].logits[0, point, 0]) == -3.0
    boxes[0, cell.nonzero()[0]] = torch.tensor([10.0, 10.0, 120.0, 120.0], dtype=boxes.dtype)
    large = replace(teacher, logits=logits, boxes_xyxy=boxes)
    assert float(resampler(large, student)[1].logits[0, point, 0]) == 1.0


def test_levels_that_take_no_part_are_left_out_and_take_no_row_of_others() -> None:
    """Only stride 16: a row of stride 4 belongs to the student's stride 8 and is shown nowhere."""
    teacher, student = grid(256, 4, 8, 16), grid(256, 8, 16, 32)
    logits = torch.where(teacher.strides == 4, 5.0, -5.0)[None, :, None]
    points, resampled = Resampler((1, 1, 1), same_stride=False)(replace(teacher, logits=logits), student, (16,))
    assert set(points.strides.tolist()) == {16.0}
    assert float(resampled.logits.max()) == -5.0


def test_the_best_anchor_of_each_point_is_taken() -> None:
    """Three anchors at each point: in image 0 the second is best everywhere, in image 1 the last."""
    teacher = grid(32, 8, 16, anchors=3)
    row = torch.arange(len(teacher.points_xy))
    first = torch.where(row % 3 == 1, 5.0, 0.0)
    second = torch.where((row % 3 == 2) & (teacher.strides == 16), 5.0, 0.0)
    logits = torch.stack([first, second])[..., None].double() + 1e-3 * row[:, None]
    teacher = replace(teacher, logits=logits, boxes_xyxy=teacher.boxes_xyxy.expand(2, -1, -1))
    _, resampled = Resampler((3, 3), same_stride=False)(teacher, grid(32, 8, 16))
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
    _, resampled = Resampler((1, 2), same_stride=False)(mixed, grid(32, 8, 16))
    assert resampled.logits[0, :, 0].tolist() == [*range(16), 0, -2, -4, -6]


def test_the_lookup_follows_the_image() -> None:
    """The same resampler at two image sizes, also at two of as many points, gives what a fresh one gives."""
    kept = Resampler((1,), same_stride=False)
    for teacher, student in ((grid(64, 16), grid(64, 8)), (grid(96, 16), grid(96, 8)), (grid(64, 16), grid(64, 8))):
        _, fresh = Resampler((1,), same_stride=False)(teacher, student)
        assert torch.equal(kept(teacher, student)[1].logits, fresh.logits)
    base = replace(grid(32, 8), points_xy=grid(32, 8).points_xy * torch.tensor([2.0, 1.0]))
    turned = replace(base, points_xy=base.points_xy.flip(1))
    for student in (base, turned):
        teacher = replace(grid(32, 8), points_xy=student.points_xy.flip(0))
        assert kept(teacher, student)[1].logits[0, :, 0].tolist() == [*range(15, -1, -1)]


def test_a_grid_that_is_not_what_the_specification_says_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        Resampler((1, 1), same_stride=False)(grid(32, 8), grid(32, 8))
    assert caught.value.problems == ("the teacher's grid has 1 strides where its specification names 2 levels",)


def test_a_grid_with_holes_is_refused() -> None:
    whole = grid(32, 8)
    holed = GridPredictions(whole.logits[:, 1:], whole.boxes_xyxy[:, 1:], whole.points_xy[1:], whole.strides[1:])
    with pytest.raises(RequestError, match="15 points in 4 columns and 4 rows; its points must form a lattice"):
        Resampler((1,), same_stride=False)(holed, grid(32, 16))


@pytest.mark.parametrize("kind", [BoxLD, ClassBCE])
def test_a_teacher_at_twice_the_image_size_and_a_student_with_one_finer_level_correspond_row_by_row(
    kind: type[GridLoss], specs: tuple[DetectorSpec, DetectorSpec], make_side: Callable[..., Signals], targets: Targets
) -> None:
    """Strides 4 and 8 in the student's pixels, as its P2 and P3; box bins are in units of these. Its P4 has none."""
    levels = {"P2": 4, "P3": 8, "P4": 16}
    wide = replace(specs[0], level_channels={"P2": 2, "P3": 3, "P4": 6}, level_strides=levels)
    student, large = make_side(wide, 1), _teacher_of_double_size(specs[1], make_side)
    assert kind.incompatibilities(kind.Config(), wide, specs[1]) == []
    value = kind(kind.Config(), wide, specs[1])(student, large, targets)
    assert student.grid is not None
    shared = Signals(grid=_at(student.grid, student.grid.strides < 16))
    two = replace(specs[0], level_channels={"P2": 2, "P3": 3}, level_strides={"P2": 4, "P3": 8})
    expected = kind(kind.Config(), two, two)(shared, large, targets)
    if kind is BoxLD:
        assert float(value) == pytest.approx(float(expected), rel=1e-12)
    pair = kind(kind.Config(), wide, specs[1]).pair(student, large, targets)
    count = len(shared.grid.strides) if shared.grid is not None else 0
    assert large.grid is not None
    assert torch.equal(pair.teacher.logits[:, :count], large.grid.logits)
    assert len(pair.teacher.strides) == (count if kind is BoxLD else len(student.grid.strides))


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
        "teacher and 1 in the student: each point of the student learns the surest of the teacher's rows in its cell"
    ]
    other = replace(teacher, level_channels={"C4": 5}, level_strides={"C4": 16})
    assert ClassBCE.incompatibilities(ClassBCEConfig(), student, other) == []
    assert ClassBCE.pair_warnings(ClassBCEConfig(), student, other)[0].startswith("teacher and student share no level")


def test_bins_of_another_stride_are_refused_where_only_the_grids_tell(
    specs: tuple[DetectorSpec, DetectorSpec], make_side: Callable[..., Signals], no_targets: Targets
) -> None:
    student = make_side(specs[0], 1)
    with pytest.raises(RequestError) as caught:
        BoxLD(BoxLDConfig(), *specs)(student, _teacher_of_double_size(specs[1], make_side), no_targets)
    assert caught.value.problems == (
        "box bins are in units of the stride, and the strides of teacher and student differ: 4, 8 in the student's "
        "pixels and 8, 16; give both one image size, or use box_iou instead",
    )


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
    _, resampled = Resampler((1, 1), same_stride=True)(corners, student)
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
