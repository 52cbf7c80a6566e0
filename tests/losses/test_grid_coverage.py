"""What the targets of grid losses show of the teacher's boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import GridPredictions, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses import LOSSES, load_loss
from kd_vision.losses.grid import GridLoss, GridPair
from kd_vision.losses.grid_coverage import Coverage, measure_coverage

GRID_LOSSES = [name for name in sorted(LOSSES) if issubclass(load_loss(name), GridLoss)]
every_grid_loss = pytest.mark.parametrize("name", GRID_LOSSES)


def boxes_of(*rows: tuple[int, float, tuple[float, float, float, float]], image: int = 0) -> PseudoLabels:
    """Boxes of one image: class of three, score, corners."""
    count = len(rows)
    probs = torch.zeros(count, 3)
    for index, (label, score, _) in enumerate(rows):
        probs[index, label] = score
    return PseudoLabels(
        torch.full((count,), image),
        torch.tensor([row[2] for row in rows]).view(count, 4),
        probs,
        torch.tensor([row[1] for row in rows]),
        torch.zeros(count, dtype=torch.bool),
    )


@pytest.fixture
def grid() -> GridPredictions:
    """Sixteen points of stride 8 on a row of 2 images: scores 0 but for class 1 at x = 20 of image 0, .4."""
    points = torch.stack([8.0 * torch.arange(16) + 4, torch.full((16,), 4.0)], dim=-1)
    logits = torch.full((2, 16, 3), -30.0)
    logits[0, 2, 1] = torch.tensor(0.4).logit()
    return GridPredictions(logits, torch.zeros(2, 16, 4), points, torch.full((16,), 8.0))


@pytest.mark.parametrize(
    ("box", "image", "shown"),
    [
        ((1, 0.79, (17.0, 1.0, 23.0, 7.0)), 0, 1),  # half of .79 is below .4
        ((1, 0.81, (17.0, 1.0, 23.0, 7.0)), 0, 0),
        ((1, 0.50, (24.0, 1.0, 30.0, 7.0)), 0, 1),  # it touches the cell from 16 to 24
        ((1, 0.50, (25.0, 1.0, 30.0, 7.0)), 0, 0),
        ((2, 0.50, (17.0, 1.0, 23.0, 7.0)), 0, 0),
        ((1, 0.50, (17.0, 1.0, 23.0, 7.0)), 1, 0),
    ],
)
def test_a_box_is_shown_by_half_its_score_for_its_class_in_a_cell_that_touches_it(
    box: tuple[int, float, tuple[float, float, float, float]], image: int, shown: int, grid: GridPredictions
) -> None:
    assert measure_coverage(grid, grid.logits.sigmoid(), None, boxes_of(box, image=image)) == Coverage(shown, 1)


def test_weak_and_ignored_boxes_and_those_on_points_that_take_no_part_do_not_count(grid: GridPredictions) -> None:
    spot = (17.0, 1.0, 23.0, 7.0)
    weak, strong = boxes_of((1, 0.29, spot)), boxes_of((1, 0.5, spot), (2, 0.9, (100.0, 1.0, 110.0, 7.0)))
    scores = grid.logits.sigmoid()
    assert measure_coverage(grid, scores, None, weak) == Coverage(0, 0)
    assert Coverage().share == 1.0
    assert measure_coverage(grid, scores, None, strong) == Coverage(1, 2)
    ignored = replace(strong, ignore=torch.tensor([False, True]))
    assert measure_coverage(grid, scores, None, ignored) == Coverage(1, 1)
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[0, 13] = False  # the point at x = 108
    assert measure_coverage(grid, scores, mask, strong) == Coverage(1, 1)


def test_many_boxes_are_counted_in_parts(grid: GridPredictions) -> None:
    spots = [(1, 0.5, (17.0, 1.0, 23.0, 7.0)), (1, 0.5, (49.0, 1.0, 55.0, 7.0))] * 300
    assert measure_coverage(grid, grid.logits.sigmoid(), None, boxes_of(*spots)) == Coverage(300, 600)


def of_rows(side: Signals, every: int = 5) -> Signals:
    """The side with every n-th row of its grid as a final box, as NMS could leave them."""
    grid = side.grid
    assert grid is not None
    scores = grid.logits.sigmoid().float()
    image = torch.arange(len(scores)).repeat_interleave(len(grid.points_xy[::every]))
    probs = scores[:, ::every].flatten(0, 1)
    boxes = grid.boxes_xyxy[:, ::every].flatten(0, 1).float()
    none = torch.zeros(len(image), dtype=torch.bool)
    return replace(side, pseudo_labels=PseudoLabels(image, boxes, probs, probs.amax(dim=-1), none))


def grid_loss(name: str, *pair: DetectorSpec, levels: tuple[str, ...] | None = None) -> GridLoss:
    kind = load_loss(name)
    loss = kind(kind.Config(levels=levels), *pair)
    assert isinstance(loss, GridLoss)
    return loss


@every_grid_loss
def test_the_same_grid_shows_every_box(
    name: str, specs: tuple[DetectorSpec, DetectorSpec], make_side: Callable[..., Signals], targets: Targets
) -> None:
    loss = grid_loss(name, *specs)
    coverage = loss.coverage(make_side(specs[0], 1), of_rows(make_side(specs[1], 2)), targets)
    assert coverage.boxes > 20
    assert coverage.share == 1.0


@every_grid_loss
def test_coverage_is_that_of_the_rows_that_the_loss_compares(
    name: str,
    specs: tuple[DetectorSpec, DetectorSpec],
    make_side: Callable[..., Signals],
    targets: Targets,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The value is computed from `pair`, and so is the coverage: targets that are all background show nothing."""
    loss = grid_loss(name, *specs)
    student, teacher = make_side(specs[0], 1), of_rows(make_side(specs[1], 2))
    calls = []
    pair = loss.pair

    def silent(student: Signals, teacher: Signals, targets: Targets) -> GridPair:
        calls.append(1)
        made = pair(student, teacher, targets)
        return replace(made, teacher_logits=torch.full_like(made.teacher_logits, -50.0))

    monkeypatch.setattr(loss, "pair", silent)
    loss(student, teacher, targets)
    assert calls == [1]
    assert loss.coverage(student, teacher, targets).shown == 0
    with pytest.raises(RequestError, match="the signal 'detections' of the teacher was not computed"):
        loss.coverage(student, replace(teacher, pseudo_labels=None), targets)


def test_classes_that_the_teacher_never_learned_do_not_count(
    specs: tuple[DetectorSpec, DetectorSpec], make_side: Callable[..., Signals], targets: Targets
) -> None:
    """Boxes of bus, class 1, are left out, and so are others on the bus of image 1."""
    unlearned = replace(specs[1], missing_classes=frozenset({"bus"}))
    student, teacher = make_side(specs[0], 1), of_rows(make_side(specs[1], 2))
    whole = grid_loss("class_bce", *specs).coverage(student, teacher, targets)
    part = grid_loss("class_bce", specs[0], unlearned).coverage(student, teacher, targets)
    assert 0 < part.boxes < whole.boxes
    assert part.share == 1.0


def test_boxes_on_levels_that_a_loss_leaves_out_are_missed(
    specs: tuple[DetectorSpec, DetectorSpec], make_side: Callable[..., Signals], no_targets: Targets
) -> None:
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    assert teacher.grid is not None
    fine = torch.where((teacher.grid.strides == 8)[:, None], teacher.grid.logits, torch.tensor(-50.0).double())
    teacher = of_rows(replace(teacher, grid=replace(teacher.grid, logits=fine)))
    assert grid_loss("class_bce", *specs).coverage(student, teacher, no_targets).share == 1.0
    assert grid_loss("class_bce", *specs, levels=("P4",)).coverage(student, teacher, no_targets).share == 0.0
