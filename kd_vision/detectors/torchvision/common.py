"""What one-stage and two-stage models share: normalisation, targets, levels, anchors, saving.

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
from kd_vision.detectors.boxes import centres, xyxy_to_cxcywh
from kd_vision.detectors.checkpoints import NOTE
from kd_vision.detectors.torchvision.config import FAMILY
from kd_vision.detectors.torchvision.models import Architecture


class TorchvisionDetector(Detector):
    """A detection model of torchvision.

    The model's own transform is not run: images come square and in their final size. Only its mean and standard
    deviation are used.

    Args:
        net: the package's own model.
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
        """The anchor generator."""

    def architecture(self) -> dict[str, Any]:
        """See `Detector.architecture`."""
        return self.arch.to_mapping()

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write a plain state dict of torchvision's model, and a note of what it is made of."""
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.net.state_dict().items()}
        note = {**metadata, "family": FAMILY, **self.arch.to_mapping()}
        with atomic_write(path) as part:
            torch.save({"state_dict": state, NOTE: note}, part)

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the feature pyramid of (B, 3, H, W) images in [0, 1], by level, fine to coarse."""
        maps = self.net.backbone((images - self._mean) / self._deviation)
        return dict(zip(self.spec.level_strides, maps.values(), strict=True))

    @torch.no_grad()
    def _anchors(self, images: Tensor, maps: dict[str, Tensor]) -> Tensor:
        """Return the anchors of an image as (A, 4) corners in input pixels, float32 for maps of any precision."""
        # Sizes as plain numbers: the anchors are then constants of a traced graph.
        sizes = [tuple(int(side) for side in each.shape[-2:]) for each in maps.values()]
        height, width = (int(side) for side in images.shape[-2:])
        key = (images.device, height, width, *sizes)
        if key not in self._anchor_cache:
            blank = torch.zeros(1, 1, 1, 1, device=images.device)
            image = ImageList(blank.expand(1, 1, height, width), [(height, width)])
            anchors = self._generator(image, [blank.expand(1, 1, *size) for size in sizes])[0]
            self._anchor_cache = {key: anchors}
        return self._anchor_cache[key]


def family_targets(targets: Targets, images: Tensor) -> list[dict[str, Tensor]]:
    """Return ground truth as torchvision's losses read it: a table per image, labels from 1 on.

    Boxes without width or height are left out, as their logarithm is infinite.

    Args:
        targets: of the whole batch.
        images: (B',) positions of the images to return.
    """
    sides = targets.boxes_xyxy[:, 2:] - targets.boxes_xyxy[:, :2]
    solid = (sides > 0).all(dim=1)
    tables = []
    for image in images.tolist():
        chosen = (targets.image_index == image) & solid
        tables.append({"boxes": targets.boxes_xyxy[chosen].float(), "labels": targets.labels[chosen] + 1})
    return tables


def labelled_images(labelled: Tensor | None, images: int, device: torch.device) -> Tensor:
    """Return the positions of the images that take part in the task losses.

    Args:
        labelled: (B,) bool; None: all.
        images: B.
        device: of the result.
    """
    return torch.arange(images, device=device) if labelled is None else labelled.to(device).nonzero()[:, 0]


def decode_deltas(deltas: Tensor, reference: Tensor, coder: Any) -> Tensor:
    """Decode the offsets of a head to corner boxes.

    x = d_x / w_x * width + centre, width' = exp(min(d_w / w_w, clip)) * width; y and height likewise.

    Args:
        deltas: (..., 4).
        reference: anchors or proposals as corners, (..., 4), of a shape that broadcasts.
        coder: of torchvision; holds the weights and the clip.
    """
    size = reference[..., 2:] - reference[..., :2]
    scaled = deltas / deltas.new_tensor(coder.weights)
    middle = scaled[..., :2] * size + centres(reference)
    reach = scaled[..., 2:].clamp(max=coder.bbox_xform_clip).exp() * size / 2
    return torch.cat((middle - reach, middle + reach), dim=-1)


def clipped(boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    """Clip (..., 4) boxes to the image."""
    limit = boxes_xyxy.new_tensor([width, height, width, height])
    return torch.minimum(boxes_xyxy.clamp(min=0.0), limit)


def dense_layout(boxes_xyxy: Tensor, scores: Tensor) -> Tensor:
    """Return (B, 4 + K, A): centre, width, height, then scores; of (B, A, 4) corners and (B, A, K)."""
    return torch.cat((xyxy_to_cxcywh(boxes_xyxy), scores), dim=-1).transpose(1, 2)
