"""What one-stage and two-stage models share: normalisation, labels, levels, anchors, files.

Shapes: B images, A rows of a head, K classes, M boxes, C channels, H W input pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from kd_vision.core.batch import Targets
from kd_vision.core.files import atomic_write
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import Detector, channels_last
from kd_vision.detectors.torchvision.models import Architecture


class TorchvisionDetector(Detector):
    """A detection model of the torchvision family.

    The family's own transform is passed by: images come square and in their final size, so that only its mean and
    its deviation are used.

    Args:
        net: the family's own model.
        arch: what it is made of.
    """

    net: Any
    _mean: Tensor
    _deviation: Tensor

    def __init__(self, net: Any, arch: Architecture) -> None:
        super().__init__()
        self.net = channels_last(net)
        self.arch = arch
        for name, values in (("_mean", self.net.transform.image_mean), ("_deviation", self.net.transform.image_std)):
            self.register_buffer(name, torch.tensor(values).reshape(3, 1, 1), persistent=False)
        self.spec = self._describe()
        self._anchor_cache: dict[tuple[Any, ...], Tensor] = {}

    @abstractmethod
    def _describe(self) -> DetectorSpec:
        """Return the facts about `net`."""

    @property
    @abstractmethod
    def _generator(self) -> Any:
        """What makes the anchors."""

    def architecture(self) -> dict[str, Any]:
        """See `Detector.architecture`."""
        return self.arch.to_mapping()

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write a plain state dict of the family's model, with what it is made of beside it."""
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.net.state_dict().items()}
        note = {**metadata, "family": "torchvision", **self.arch.to_mapping()}
        with atomic_write(path) as part:
            torch.save({"state_dict": state, "kd_vision": note}, part)

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the pyramid of (B, 3, H, W) images in [0, 1], by level, fine to coarse."""
        maps = self.net.backbone((images - self._mean) / self._deviation)
        return dict(zip(self.spec.level_strides, maps.values(), strict=True))

    @torch.no_grad()
    def _anchors(self, images: Tensor, maps: dict[str, Tensor]) -> Tensor:
        """Return the anchors of an image as (A, 4) corners in input pixels, in 32 bits whatever the maps are in."""
        # Sizes as plain numbers: a tracer then takes the anchors for constants.
        sizes = [tuple(int(side) for side in each.shape[-2:]) for each in maps.values()]
        height, width = (int(side) for side in images.shape[-2:])
        key = (images.device, height, width, *sizes)
        if key not in self._anchor_cache:
            blank = torch.zeros(1, 1, 1, 1, device=images.device)
            shown = ImageList(blank.expand(1, 1, height, width), [(height, width)])
            found = self._generator(shown, [blank.expand(1, 1, *size) for size in sizes])[0]
            self._anchor_cache = {key: found}
        return self._anchor_cache[key]


def family_targets(targets: Targets, images: Tensor) -> list[dict[str, Tensor]]:
    """Return ground truth as the family's losses read it: a table per image, labels from 1 on.

    Boxes without width or height are left out, as their logarithm is infinite.

    Args:
        targets: of the whole batch.
        images: (B',) positions of the images that are wanted.
    """
    sides = targets.boxes_xyxy[:, 2:] - targets.boxes_xyxy[:, :2]
    solid = (sides > 0).all(dim=1)
    found = []
    for image in images.tolist():
        own = (targets.image_index == image) & solid
        found.append({"boxes": targets.boxes_xyxy[own].float(), "labels": targets.labels[own] + 1})
    return found


def labelled_images(labelled: Tensor | None, images: int, device: torch.device) -> Tensor:
    """Return the positions of the images that take part in the task losses.

    Args:
        labelled: (B,) bool; None: all.
        images: B.
        device: of the result.
    """
    return torch.arange(images, device=device) if labelled is None else labelled.to(device).nonzero()[:, 0]


def decode_deltas(deltas: Tensor, reference: Tensor, coder: Any) -> Tensor:
    """Turn a head's offsets into corners.

    x = d_x / w_x * width + centre, width' = exp(min(d_w / w_w, clip)) * width; y and height likewise.

    Args:
        deltas: (..., 4).
        reference: anchors or proposals as corners, (..., 4), of a shape that broadcasts.
        coder: of the family; says the weights and the clip.
    """
    low, high = reference[..., :2], reference[..., 2:]
    size, centre = high - low, (low + high) / 2
    weights = deltas.new_tensor(coder.weights)
    scaled = deltas / weights
    middle = scaled[..., :2] * size + centre
    reach = scaled[..., 2:].clamp(max=coder.bbox_xform_clip).exp() * size / 2
    return torch.cat((middle - reach, middle + reach), dim=-1)


def clipped(boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    """Cut (..., 4) boxes off at the border of the image."""
    limit = boxes_xyxy.new_tensor([width, height, width, height])
    return torch.minimum(boxes_xyxy.clamp(min=0.0), limit)


def dense_layout(boxes_xyxy: Tensor, scores: Tensor) -> Tensor:
    """Return (B, 4 + K, A): centre, width, height, then scores; of (B, A, 4) corners and (B, A, K)."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat(((low + high) / 2, high - low, scores), dim=-1).transpose(1, 2)
