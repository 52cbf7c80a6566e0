"""A small pair of detectors, random outputs of both, and the waves behind the reference values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import AssignResult, GridPredictions, RawPredictions, RoIPredictions, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.grid import full_precision, smallest_box

Scene = tuple[Signals, Signals, Targets]
SIZE, CLASSES, BINS = 64, 3, 5


@dataclass(frozen=True)
class SmallestBoxAssigner:
    """Label assignment of a head: a point is matched with the smallest box that holds it."""

    grid: GridPredictions

    def __call__(self, pseudo_labels: PseudoLabels) -> tuple[AssignResult, ...]:
        grid = self.grid
        boxes = Targets(pseudo_labels.image_index, pseudo_labels.labels, pseudo_labels.boxes_xyxy)
        index = smallest_box(grid.points_xy, boxes, len(grid.logits))
        quality = (1.0 - 0.02 * (torch.arange(index.shape[1]) % 30)).expand_as(index)
        return (AssignResult(raw_predictions_of(grid), index, quality),)


@dataclass(frozen=True)
class BestOverlapRefiner:
    """Region predictions of a detector: for each box those of the grid row that overlaps it most."""

    grid: GridPredictions

    def __call__(self, boxes_xyxy: Tensor) -> RoIPredictions:
        grid = self.grid
        overlap = torch.stack([box_iou(a, b) for a, b in zip(boxes_xyxy, grid.boxes_xyxy.to(boxes_xyxy), strict=True)])
        row = overlap.argmax(dim=-1)
        image = torch.arange(len(row))[:, None]
        return RoIPredictions(full_precision(grid.logits)[image, row].sigmoid(), grid.boxes_xyxy[image, row])


def raw_predictions_of(grid: GridPredictions) -> RawPredictions:
    """The rows of a sigmoid head."""
    return RawPredictions(grid.logits, grid.boxes_xyxy, grid.points_xy[None], None, grid.box_bins, grid.strides)


@pytest.fixture
def wave() -> Callable[..., tuple[Tensor, Tensor]]:
    """S = 1.5 sin(.37 k + .10) and T = 1.2 cos(.23 k - .40) in float64, k row-major."""

    def make(*shape: int) -> tuple[Tensor, Tensor]:
        k = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        return (1.5 * torch.sin(0.37 * k + 0.10)).view(shape), (1.2 * torch.cos(0.23 * k - 0.40)).view(shape)

    return make


@pytest.fixture
def specs() -> tuple[DetectorSpec, DetectorSpec]:
    """Student and teacher: P3 differs in width, P4 does not."""
    student = DetectorSpec(
        family="test",
        name="small",
        classes=("car", "bus", "person"),
        level_channels={"P3": 3, "P4": 6},
        level_strides={"P3": 8, "P4": 16},
        provides=frozenset({"features", "grid", "regions", "detections"}),
        box_bins=BINS,
    )
    return student, replace(student, name="large", level_channels={"P3": 5, "P4": 6})


@pytest.fixture
def make_side() -> Callable[..., Signals]:
    """Random outputs of the detector of `spec`, seeded."""

    def make(spec: DetectorSpec, seed: int, images: int = 2, dtype: torch.dtype = torch.float64) -> Signals:
        source = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64)

        features = {
            level: normal(images, width, SIZE // spec.level_strides[level], SIZE // spec.level_strides[level])
            for level, width in spec.level_channels.items()
        }
        points, strides = _points(tuple(spec.level_strides.values()))
        count = len(points)
        near = points - 4 - 8 * torch.rand(images, count, 2, generator=source, dtype=torch.float64)
        far = points + 4 + 8 * torch.rand(images, count, 2, generator=source, dtype=torch.float64)
        grid = GridPredictions(
            logits=(normal(images, count, len(spec.classes)) - 1.0).to(dtype),
            boxes_xyxy=torch.cat([near, far], dim=-1).to(dtype),
            points_xy=points.float(),
            strides=strides,
            box_bins=None if spec.box_bins is None else normal(images, count, 4, spec.box_bins).to(dtype),
        )
        maps_by_level = {level: maps.to(dtype) for level, maps in features.items()}
        return Signals(
            maps_by_level,
            grid,
            four_boxes(images),
            SmallestBoxAssigner(grid),
            partial(raw_predictions_of, grid),
            BestOverlapRefiner(grid),
        )

    return make


def four_boxes(images: int = 2) -> PseudoLabels:
    """Four boxes in each image: three objects, two of them of one class, and one of low score."""
    boxes = [[6.0, 4.0, 44.0, 40.0], [30.0, 30.0, 62.0, 60.0], [2.0, 40.0, 26.0, 62.0], [44.0, 2.0, 62.0, 26.0]]
    probs = [[0.9, 0.1, 0.0], [0.05, 0.05, 0.7], [0.6, 0.2, 0.1], [0.1, 0.3, 0.1]]
    return PseudoLabels(
        torch.arange(images).repeat_interleave(4),
        torch.tensor(boxes).repeat(images, 1),
        torch.tensor(probs).repeat(images, 1),
        torch.tensor([0.9, 0.7, 0.6, 0.3]).repeat(images),
        torch.zeros(4 * images, dtype=torch.bool),
    )


@pytest.fixture
def targets() -> Targets:
    """Two overlapping boxes in image 0, one in image 1."""
    return Targets(
        torch.tensor([0, 0, 1]),
        torch.tensor([0, 2, 1]),
        torch.tensor([[4.0, 4.0, 60.0, 44.0], [10.0, 10.0, 30.0, 30.0], [20.0, 8.0, 50.0, 40.0]]),
    )


@pytest.fixture
def no_targets() -> Targets:
    """A batch without ground truth."""
    return Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))


@pytest.fixture
def rows_side() -> Callable[..., Signals]:
    """A grid of one image from logits (A, K): points 8 px apart on a line, boxes and bins as given."""

    def make(logits: Tensor, boxes: Tensor | None = None, bins: Tensor | None = None) -> Signals:
        count = len(logits)
        points = torch.stack([8.0 * torch.arange(count) + 4.0, torch.full((count,), 4.0)], dim=-1)
        around = torch.cat([points - 4, points + 4], dim=-1).to(logits.dtype)
        return Signals(
            grid=GridPredictions(
                logits[None],
                (around if boxes is None else boxes)[None],
                points,
                torch.full((count,), 8.0),
                None if bins is None else bins[None],
            )
        )

    return make


@pytest.fixture
def row_spec() -> DetectorSpec:
    """The detector whose outputs `rows_side` makes."""
    return DetectorSpec(
        family="test",
        name="row",
        classes=("car", "bus", "person"),
        level_channels={"P3": 4},
        level_strides={"P3": 8},
        provides=frozenset({"features", "grid"}),
        box_bins=BINS,
    )


def _points(strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    points, owners = [], []
    for stride in strides:
        axis = (torch.arange(SIZE // stride, dtype=torch.float64) + 0.5) * stride
        rows, columns = torch.meshgrid(axis, axis, indexing="ij")
        points.append(torch.stack([columns.flatten(), rows.flatten()], dim=-1))
        owners.append(torch.full((len(axis) ** 2,), float(stride)))
    return torch.cat(points), torch.cat(owners)
