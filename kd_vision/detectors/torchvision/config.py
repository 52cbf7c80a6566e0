"""Settings of a model of torchvision, and the names of the models. No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from kd_vision.core.errors import suggest
from kd_vision.core.validation import StrictModel
from kd_vision.detectors.checkpoints import read_note
from kd_vision.detectors.inherit_config import InheritConfig

if TYPE_CHECKING:
    from kd_vision.detectors import HeadKind

FAMILY: Literal["torchvision"] = "torchvision"
Kind = Literal["retinanet", "fcos", "fasterrcnn", "ssd", "ssdlite"]

RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
MOBILENETS = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")
STOCK = (
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
)
"""Models that the package itself builds and has COCO weights for."""

_HEADS: dict[Kind, HeadKind] = {
    "retinanet": "anchors",
    "ssd": "anchors",
    "ssdlite": "anchors",
    "fcos": "dense",
    "fasterrcnn": "two_stage",
}
_EXAMPLE = "retinanet_resnet50_fpn"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that a model's name gives.

    Attributes:
        kind: of head.
        backbone: name of the classifier whose layers are the backbone.
        improved: the second version of its kind, with norms in the head.
    """

    kind: Kind
    backbone: str
    improved: bool

    @property
    def mobile(self) -> bool:
        """The backbone is a MobileNet."""
        return self.backbone in MOBILENETS

    @property
    def freezes_norms(self) -> bool:
        """The package freezes the norms of a backbone that has learned weights."""
        return not self.improved and self.kind in ("retinanet", "fcos", "fasterrcnn")


def parts_of(model: str) -> Parts:
    """Return the parts of a known name."""
    if model == "ssd300_vgg16":
        return Parts("ssd", "vgg16", False)
    if model == "ssdlite320_mobilenet_v3_large":
        return Parts("ssdlite", "mobilenet_v3_large", False)
    kind, _, rest = model.partition("_")
    backbone = rest.removesuffix("_v2").removesuffix("_fpn").removesuffix("_320")
    kinds: dict[str, Kind] = {"retinanet": "retinanet", "fcos": "fcos", "fasterrcnn": "fasterrcnn"}
    return Parts(kinds[kind], backbone, rest.endswith("_fpn_v2"))


def known_models() -> list[str]:
    """Names of all models: the package's own, and the same heads on its other ResNets and MobileNets."""
    names = set(STOCK)
    names |= {f"{kind}_{name}_fpn" for kind in ("retinanet", "fcos", "fasterrcnn") for name in (*RESNETS, *MOBILENETS)}
    names |= {f"{kind}_{name}_fpn_v2" for kind in ("retinanet", "fasterrcnn") for name in RESNETS}
    return sorted(names)


def head_kind(config: TorchvisionConfig) -> HeadKind:
    """Return the kind of head, from the model's name or the one that our own file of weights holds.

    A file that names no model is given the head of most models; building the model refuses it.
    """
    model = config.model
    if model is None and config.weights is not None:
        model = read_note(config.weights).get("model")
    return _HEADS[parts_of(model).kind] if model in known_models() else "anchors"


class TorchvisionConfig(StrictModel):
    """A model of torchvision.

    Attributes:
        model: name of the package (``retinanet_resnet50_fpn``) or the same with another backbone
            (``fcos_resnet18_fpn``).
        weights: a ``.pt``: a file of ours, or a plain state dict (then `model` names the model it fits).
        pretrained: what to download: ``backbone``: the classifier's ImageNet weights; ``coco``: the whole model.
        class_names: of a plain state dict, in label order without background; needed where the model keeps its
            own classes, except for COCO's 91 columns, whose names are known.
        proposals: regions of an image that the second stage of a two-stage model takes in inference; None: as many as
            in the package (up to 1000). Fewer are faster.
        trust: load a pickle that holds more than tensors and plain values. Loading it runs its code.
        input_channels: 3; the package supports no other.
        inherit: of a student: start as a small copy of a larger model; None: `weights` or `pretrained`, else random.
    """

    family: Literal["torchvision"] = FAMILY
    model: str | None = None
    weights: Path | None = None
    pretrained: Literal["none", "backbone", "coco"] = "none"
    class_names: tuple[str, ...] | None = None
    proposals: int | None = Field(default=None, gt=0)
    trust: bool = False
    input_channels: int | None = None
    inherit: InheritConfig | None = None

    @field_validator("model")
    @classmethod
    def _is_known(cls, model: str | None) -> str | None:
        if model is not None and model not in known_models():
            raise ValueError(f"unknown model '{model}'{suggest(model, known_models())}")
        return model

    @field_validator("input_channels")
    @classmethod
    def _colour(cls, channels: int | None) -> int | None:
        if channels not in (None, 3):
            raise ValueError(f"torchvision's models take 3 channels (RGB), given {channels}; leave it out")
        return channels

    @model_validator(mode="after")
    def _one_source(self) -> TorchvisionConfig:
        if self.pretrained == "none":
            return self
        if self.weights is not None:
            raise ValueError(f"pretrained is {self.pretrained}, but 'weights' are given too; leave one of them out")
        if self.model is None:
            raise ValueError(f"pretrained is {self.pretrained}, but no model is named; give 'model', e.g. {_EXAMPLE}")
        if self.pretrained == "coco" and self.model not in STOCK:
            raise ValueError(
                f"pretrained: coco: there are no COCO weights of {self.model}; possible: {', '.join(STOCK)}"
            )
        if self.pretrained == "backbone" and self.model == "ssdlite320_mobilenet_v3_large":
            raise ValueError(
                "pretrained: backbone: the classifier of ssdlite320_mobilenet_v3_large has a wider end, which does not "
                "fit; use coco or none"
            )
        return self
