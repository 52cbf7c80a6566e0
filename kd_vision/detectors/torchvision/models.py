"""From a name to a network of torchvision, with fresh weights; nothing is downloaded here.

The package has no type annotations: its networks are `Any` to the type checker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torchvision
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import (
    _resnet_fpn_extractor,
    mobilenet_backbone,
    resnet_fpn_backbone,
)
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from kd_vision.detectors.torchvision.config import STOCK, Parts, parts_of

_WIDTH = 256
_ALL_LAYERS = {"resnet": 5, "mobilenet": 6}
_MOBILE_ANCHORS = ((32, 64, 128, 256, 512),) * 3
_PYRAMID_ANCHORS = ((32,), (64,), (128,), (256,), (512,))
_OCTAVE_ANCHORS = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for (side,) in _PYRAMID_ANCHORS)
_RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a network is made of: all that is needed to build it again.

    Attributes:
        model: its name.
        classes: names in label order, without background.
        frozen_norms: the norms of the backbone keep their statistics and scales, as in torchvision's models with
            pretrained backbones; they are trained otherwise.
        norm_epsilon: of frozen norms.
        proposals: that the second stage of a two-stage model takes in inference; None: as many as in torchvision.
    """

    model: str
    classes: tuple[str, ...]
    frozen_norms: bool = False
    norm_epsilon: float = 1e-5
    proposals: int | None = None

    @property
    def parts(self) -> Parts:
        """The parts that the name gives."""
        return parts_of(self.model)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values that `from_mapping` reads."""
        return {**asdict(self), "classes": list(self.classes)}

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> Architecture:
        """Read what `to_mapping` wrote, among other keys or alone."""
        proposals = values.get("proposals")
        return Architecture(
            str(values["model"]),
            tuple(str(name) for name in values["classes"]),
            bool(values.get("frozen_norms", False)),
            float(values.get("norm_epsilon", 1e-5)),
            None if proposals is None else int(proposals),
        )


def construct(arch: Architecture) -> Any:
    """Build the network of an architecture. Its column 0 is background, class k is column k + 1."""
    columns = len(arch.classes) + 1
    parts = arch.parts
    if arch.model in STOCK:
        net: Any = torchvision.models.get_model(arch.model, weights=None, weights_backbone=None, num_classes=columns)
    elif parts.kind == "fasterrcnn":
        net = _faster_rcnn(parts, columns)
    elif parts.kind == "fcos":
        net = FCOS(_dense_pyramid(parts), columns)
    else:
        net = _retinanet(parts, columns)
    if arch.frozen_norms:
        _freeze_norms(net.backbone, arch.norm_epsilon)
    return net


def _dense_pyramid(parts: Parts) -> Any:
    """Return a backbone with maps of stride 8 to 128."""
    if parts.mobile:
        return mobilenet_backbone(
            backbone_name=parts.backbone,
            weights=None,
            fpn=True,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=_ALL_LAYERS["mobilenet"],
            returned_layers=[2, 3, 5],
            extra_blocks=LastLevelP6P7(_WIDTH, _WIDTH),
        )
    return resnet_fpn_backbone(
        backbone_name=parts.backbone,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=_ALL_LAYERS["resnet"],
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(_WIDTH, _WIDTH),
    )


def _retinanet(parts: Parts, columns: int) -> Any:
    if not parts.improved:
        return RetinaNet(_dense_pyramid(parts), columns)
    trunk = torchvision.models.get_model(parts.backbone, weights=None)
    deepest = trunk.inplanes
    backbone = _resnet_fpn_extractor(
        trunk, _ALL_LAYERS["resnet"], returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(deepest, _WIDTH)
    )
    anchors = AnchorGenerator(_OCTAVE_ANCHORS, (_RATIOS,) * len(_OCTAVE_ANCHORS))
    head = RetinaNetHead(_WIDTH, anchors.num_anchors_per_location()[0], columns, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    return RetinaNet(backbone, columns, anchor_generator=anchors, head=head)


def _faster_rcnn(parts: Parts, columns: int) -> Any:
    if parts.mobile:
        backbone = mobilenet_backbone(
            backbone_name=parts.backbone,
            weights=None,
            fpn=True,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=_ALL_LAYERS["mobilenet"],
        )
        anchors = AnchorGenerator(_MOBILE_ANCHORS, (_RATIOS,) * len(_MOBILE_ANCHORS))
        return FasterRCNN(backbone, columns, rpn_anchor_generator=anchors, rpn_score_thresh=0.05)
    if not parts.improved:
        backbone = resnet_fpn_backbone(
            backbone_name=parts.backbone,
            weights=None,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=_ALL_LAYERS["resnet"],
        )
        return FasterRCNN(backbone, columns)
    trunk = torchvision.models.get_model(parts.backbone, weights=None)
    backbone = _resnet_fpn_extractor(trunk, _ALL_LAYERS["resnet"], norm_layer=nn.BatchNorm2d)
    anchors = AnchorGenerator(_PYRAMID_ANCHORS, (_RATIOS,) * len(_PYRAMID_ANCHORS))
    return FasterRCNN(
        backbone,
        columns,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(_WIDTH, anchors.num_anchors_per_location()[0], conv_depth=2),
        box_head=FastRCNNConvFCHead((_WIDTH, 7, 7), [_WIDTH] * 4, [1024], norm_layer=nn.BatchNorm2d),
    )


def _freeze_norms(module: nn.Module, epsilon: float) -> None:
    """Replace norms that are trained by frozen ones."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=epsilon)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            _freeze_norms(child, epsilon)
