"""Images and ground truth as the engine hands them to a detector.

Shapes: B images, C channels, H W input pixels, M boxes of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from kd_vision.core.errors import RequestError

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from kd_vision.core.dense_labels import DenseLabels


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an original image was placed on the network's input.

    ``x_input = x_original * scale_x + pad_left`` (and likewise for y). The two scales differ by
    the rounding of the resized size, so the inverse is exact rather than off by part of a pixel.
    """

    original_height: int
    original_width: int
    scale_x: float
    scale_y: float
    pad_left: int
    pad_top: int

    def invert(self, boxes_xyxy: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Map (M, 4) boxes from input pixels to pixels of the original image, clipped to it."""
        offset = np.array([self.pad_left, self.pad_top] * 2, dtype=np.float64)
        scale = np.array([self.scale_x, self.scale_y] * 2, dtype=np.float64)
        boxes = (np.asarray(boxes_xyxy, dtype=np.float64) - offset) / scale
        limit = np.array([self.original_width, self.original_height] * 2, dtype=np.float64)
        return np.clip(boxes, 0.0, limit).astype(np.float32)

    def apply(self, boxes_xyxy: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Map (M, 4) boxes from pixels of the original image to input pixels."""
        offset = np.array([self.pad_left, self.pad_top] * 2, dtype=np.float64)
        scale = np.array([self.scale_x, self.scale_y] * 2, dtype=np.float64)
        boxes = np.asarray(boxes_xyxy, dtype=np.float64) * scale + offset
        return boxes.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Targets:
    """Ground truth of a batch, flat over its images.

    Attributes:
        image_index: (M,) int64, which image of the batch a box belongs to.
        labels: (M,) int64, 0-based contiguous class.
        boxes_xyxy: (M, 4) float32, pixels of the batch tensor.
    """

    image_index: Tensor
    labels: Tensor
    boxes_xyxy: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """Return the same targets on `device`."""
        return Targets(
            self.image_index.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.boxes_xyxy.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return int(self.labels.shape[0])


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """Boxes that a teacher predicts in a batch, flat over its images; K classes.

    Attributes:
        image_index: (M,) int64, which image of the batch a box belongs to.
        boxes_xyxy: (M, 4) float32, pixels of the batch tensor.
        class_probs: (M, K) float32 in [0, 1], probability of each class. They need not sum to 1.
        scores: (M,) float32 in [0, 1], confidence of the box.
        ignore: (M,) bool; True: neither object nor background, the region is left out of training.
    """

    image_index: Tensor
    boxes_xyxy: Tensor
    class_probs: Tensor
    scores: Tensor
    ignore: Tensor

    @property
    def labels(self) -> Tensor:
        """(M,) int64, the likeliest class of each box."""
        return self.class_probs.argmax(dim=-1)

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PseudoLabels:
        """Return the same boxes on `device`."""
        return PseudoLabels(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def take(self, chosen: Tensor) -> PseudoLabels:
        """Return the boxes that `chosen`, (M,) bool or (m,) int64, picks."""
        return PseudoLabels(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def scaled(self, factor: float) -> PseudoLabels:
        """Return the boxes in an image of `factor` times the size."""
        return self if factor == 1.0 else replace(self, boxes_xyxy=self.boxes_xyxy * factor)


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """One batch.

    Attributes:
        images: (B, C, H, W). uint8 0..255 as loaded, float32 in [0, 1] after `as_float`. RGB.
        targets: ground truth; an unlabelled image has none.
        labelled: (B,) bool. False: only distillation terms use this image.
        image_ids: COCO image id of each image.
        letterboxes: how each image was placed on the input (evaluation only; empty in training,
            where augmentation cannot be inverted).
        teacher_images: (B, C, H, W) same geometry as `images` without the student's photometric
            noise, or of a larger size; None where teacher and student get the same pixels.
        pseudo_labels: precomputed boxes of offline teachers by name, augmented with the images, in
            pixels of `images`.
        dense_labels: stored dense predictions by teacher and branch of its head.
    """

    images: Tensor
    targets: Targets
    labelled: Tensor
    image_ids: tuple[int, ...] = ()
    letterboxes: tuple[Letterbox, ...] = ()
    teacher_images: Tensor | None = None
    pseudo_labels: Mapping[str, PseudoLabels] = field(default_factory=dict)
    dense_labels: Mapping[str, Mapping[str, DenseLabels]] = field(default_factory=dict)

    @classmethod
    def of_images(cls, images: Tensor, image_ids: Sequence[int], letterboxes: Sequence[Letterbox]) -> ImageBatch:
        """Return a batch without targets, as prediction needs it."""
        import torch

        none = torch.zeros(0, dtype=torch.int64)
        unlabelled = torch.zeros(len(images), dtype=torch.bool)
        return cls(images, Targets(none, none, torch.zeros(0, 4)), unlabelled, tuple(image_ids), tuple(letterboxes))

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """Return the same batch on `device`."""
        teacher = self.teacher_images
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking),
            labelled=self.labelled.to(device, non_blocking=non_blocking),
            teacher_images=None if teacher is None else teacher.to(device, non_blocking=non_blocking),
            pseudo_labels={name: boxes.to(device, non_blocking) for name, boxes in self.pseudo_labels.items()},
            dense_labels={
                name: {branch: labels.to(device, non_blocking) for branch, labels in branches.items()}
                for name, branches in self.dense_labels.items()
            },
        )

    def as_float(self) -> ImageBatch:
        """Return the batch with images in [0, 1], as every detector expects them."""
        teacher = self.teacher_images
        return replace(
            self,
            images=_unit_range(self.images),
            teacher_images=None if teacher is None else _unit_range(teacher),
        )


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Give (B, C, H, W) images another number of channels, so that two models can share a batch.

    Colour becomes gray by luma (ITU-R BT.601), gray is repeated, a fourth channel is left out.

    Raises:
        RequestError: 4 channels are wanted and the images have fewer.
    """
    given = int(images.shape[1])
    if given == channels:
        return images
    if channels == 4:
        raise RequestError(f"a model with 4 input channels needs images with 4; these have {given}")
    colour = images[:, :3] if given >= 3 else images.repeat(1, 3, 1, 1)
    if channels == 3:
        return colour
    luma = colour.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
    return (colour * luma).sum(dim=1, keepdim=True)


def _unit_range(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float() / 255
