"""What both kinds of head share: saving a checkpoint that ultralytics opens, and targets as its losses read them.

Shapes: B images, M boxes.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics import __version__ as ultralytics_version
from ultralytics.cfg import get_cfg
from ultralytics.nn import tasks

from kd_vision.core.batch import Targets
from kd_vision.core.files import atomic_write
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import Detector, channels_last, contiguous, freeze
from kd_vision.detectors.boxes import normalized_cxcywh
from kd_vision.detectors.checkpoints import NOTE


class FamilyDetector(Detector):
    """A detection model of the ultralytics package.

    Args:
        net: the package's own model.
        classes: names in label order.
        name: architecture name for messages and reports.
    """

    def __init__(self, net: tasks.DetectionModel, classes: Sequence[str], name: str) -> None:
        super().__init__()
        self.net = channels_last(net)
        self.net.names = dict(enumerate(classes))
        self.net.args = get_cfg()
        self.spec = self._describe(tuple(classes), name)

    @property
    def head(self) -> Any:
        """The detection head."""
        return self.net.model[-1]

    def named_stages(self) -> list[tuple[str, str]]:
        """See `Detector.named_stages`: the layers of the model YAML, and the head's branches level by level."""
        last = len(self.net.model) - 1
        stages = [(f"net.model.{index}", type(layer).__name__) for index, layer in enumerate(self.net.model[:-1])]
        strides = list(self.spec.level_strides.values())
        for name, part in self.head.named_children():
            if isinstance(part, nn.ModuleList) and len(part) == len(strides):
                stages += [(f"net.model.{last}.{name}.{i}", f"{name}/{stride}") for i, stride in enumerate(strides)]
            else:
                stages.append((f"net.model.{last}.{name}", name))
        return stages

    @abstractmethod
    def _describe(self, classes: tuple[str, ...], name: str) -> DetectorSpec:
        """Return the facts about `net`."""

    def fuse(self) -> None:
        """Fold BatchNorm into the convolutions and let activations overwrite their input, as ultralytics does."""
        # A copy: ultralytics shares one activation among all its models, and a student's gradient needs its input.
        self.net = copy.deepcopy(self.net)
        # Ultralytics would remove the one-to-many branch of an end-to-end head, which losses read.
        self.head.fuse = lambda: None
        self.net.fuse(verbose=False)
        del self.head.fuse
        for module in self.net.modules():
            if hasattr(module, "inplace"):
                module.inplace = True
        channels_last(self.net)

    def architecture(self) -> dict[str, Any]:
        """See `Detector.architecture`."""
        return {"yaml": copy.deepcopy(self.net.yaml), "classes": list(self.spec.classes), "name": self.spec.name}

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write a checkpoint that `ultralytics.YOLO(path)` opens; it holds the detector alone."""
        net = self._frozen_copy()
        net.args = {**vars(net.args), "model": self.spec.name, "task": "detect"}
        if "image_size" in metadata:  # YOLO(path) reads it as imgsz
            net.args["imgsz"] = int(metadata["image_size"])
        content = {
            "model": net,
            "ema": None,
            "epoch": -1,
            "date": datetime.now(timezone.utc).isoformat(),
            "version": ultralytics_version,
            "license": "AGPL-3.0 (https://ultralytics.com/license)",
            "train_args": dict(net.args),
            NOTE: {"name": self.spec.name, **metadata},
        }
        with atomic_write(path) as part:
            torch.save(content, part)

    def _frozen_copy(self) -> tasks.DetectionModel:
        """Return the network on the CPU in evaluation mode, without gradients."""
        net = contiguous(copy.deepcopy(self.net)).float().cpu()
        freeze(net)
        return net


@dataclass(frozen=True, slots=True)
class FamilyTargets:
    """Ground truth as the losses of ultralytics read it: sorted by image, which they rely on.

    Attributes:
        image_index: (M,) int64.
        labels: (M,) int64.
        boxes_cxcywh: (M, 4) as shares of width and height.
    """

    image_index: Tensor
    labels: Tensor
    boxes_cxcywh: Tensor


def family_targets(targets: Targets, labelled: Tensor | None, size: tuple[int, int]) -> FamilyTargets:
    """Return the boxes of the labelled images.

    Args:
        targets: ground truth in pixels.
        labelled: (B,) bool; None: all are.
        size: height and width of the input.
    """
    index = targets.image_index
    order = index.argsort(stable=True)
    if labelled is not None:
        order = order[labelled[index[order]]]
    return FamilyTargets(index[order], targets.labels[order], normalized_cxcywh(targets.boxes_xyxy[order], size))
