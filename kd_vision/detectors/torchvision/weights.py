"""From a config to a network with its weights: our files, plain state dicts, the package's own weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torchvision
from torch import Tensor

from kd_vision.core.errors import RequestError, first_line
from kd_vision.detectors.checkpoints import Checkpoint, read_weights, transfer
from kd_vision.detectors.torchvision.config import FAMILY, Parts, TorchvisionConfig, parts_of
from kd_vision.detectors.torchvision.models import Architecture, construct

_EXAMPLE = "retinanet_resnet50_fpn"
_COUNTER = "num_batches_tracked"
_VGG_FIRST_PART = 23
_SSD_ANCHORS = {"ssd": (4, 6, 6, 6, 4, 4), "ssdlite": (6,) * 6}
_ANCHORS = {"retinanet": 9, "fcos": 1, "fasterrcnn": 1}
# Trained before a mistake in the frozen norms was mended, so they must be run with it.
_WITHOUT_EPSILON = ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn")


def load(
    config: TorchvisionConfig, classes: tuple[str, ...] | None, where: str
) -> tuple[Any, Architecture, int | None]:
    """Make the network that a config describes; see `build` for the arguments and what is refused.

    Returns:
        The network, what it is made of, and the input side in pixels that its file was trained at, if it gives one.
    """
    net, arch, trained_size = _load(config, classes, where)
    if config.proposals is None:
        return net, arch, trained_size
    if arch.parts.kind != "fasterrcnn":
        raise RequestError(f"{where}.proposals: {arch.model} has no second stage that takes proposals; leave it out")
    return net, replace(arch, proposals=config.proposals), trained_size


def _load(
    config: TorchvisionConfig, classes: tuple[str, ...] | None, where: str
) -> tuple[Any, Architecture, int | None]:
    if config.model is None and config.weights is None:
        raise RequestError(f"{where}: give 'model' (e.g. {_EXAMPLE}), 'weights' (a .pt file), or both")
    if classes is not None and config.class_names is not None:
        raise RequestError(f"{where}.class_names: a student has the classes of the data; leave it out")
    if config.weights is not None:
        return _from_checkpoint(_read(config, where), config, classes, where)
    model = str(config.model)
    if config.pretrained == "coco":
        return _from_checkpoint(Checkpoint("COCO", _download_coco(model, where)), config, classes, where)
    if classes is None:
        raise RequestError(f"{where}: a model without weights has no class names; give 'weights', or pretrained: coco")
    frozen = config.pretrained == "backbone" and parts_of(model).freezes_norms
    arch = Architecture(model, classes, frozen)
    net = construct(arch)
    if config.pretrained == "backbone":
        _fill(net.backbone, _download_backbone(arch.parts, where), f"the ImageNet weights of {model}", where)
    return net, arch, None


def _read(config: TorchvisionConfig, where: str) -> Checkpoint:
    assert config.weights is not None
    checkpoint = read_weights(config.weights, config.trust, where)
    if not checkpoint.state:
        raise RequestError(f"{where}.weights: {checkpoint.source} holds no state dict of a torchvision model")
    if checkpoint.note and checkpoint.note.get("family") != FAMILY:
        raise RequestError(f"{where}.weights: {checkpoint.source} is of another family; give its 'family' too")
    return checkpoint


def _from_checkpoint(
    checkpoint: Checkpoint, config: TorchvisionConfig, classes: tuple[str, ...] | None, where: str
) -> tuple[Any, Architecture, int | None]:
    model = _model_of(checkpoint, config, where)
    state = checkpoint.state
    if checkpoint.note:
        if config.class_names is not None:
            raise RequestError(f"{where}.class_names: {checkpoint.source} names its own classes; leave it out")
        arch = replace(Architecture.from_mapping(checkpoint.note), model=model)
    else:
        state, names = _named_classes(checkpoint, model, config.class_names, classes is None, where)
        # A file without the counters of learning norms comes from a model with frozen ones.
        frozen = parts_of(model).freezes_norms and not any(name.endswith(_COUNTER) for name in state)
        exact = config.pretrained == "coco" and model in _WITHOUT_EPSILON
        arch = Architecture(model, names or classes or (), frozen, 0.0 if exact else 1e-5)
    if classes is not None:
        arch = replace(arch, classes=classes)
    net = construct(arch)
    transfer(state, net, checkpoint.source, whole=classes is None, where=where)
    return net, arch, checkpoint.trained_size


def _model_of(checkpoint: Checkpoint, config: TorchvisionConfig, where: str) -> str:
    if config.model is not None:
        return config.model
    if not checkpoint.note:
        raise RequestError(
            f"{where}.model: is missing; {checkpoint.source} is a plain state dict, so name the model that it fits, "
            f"e.g. {_EXAMPLE}"
        )
    return str(checkpoint.note["model"])


def _named_classes(
    checkpoint: Checkpoint, model: str, given: tuple[str, ...] | None, needed: bool, where: str
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Find the class names of a plain state dict; the columns of COCO's head without a class are left out.

    Args:
        checkpoint: the file.
        model: its name.
        given: names in the config.
        needed: whether the model keeps its own classes.
        where: key of the config, for messages.
    """
    state, source = checkpoint.state, checkpoint.source
    columns = _columns(state, parts_of(model))
    categories = _coco_categories()
    if given is None and columns == len(categories):
        real = [column for column, name in enumerate(categories) if name != "N/A"]
        names = tuple(categories[column] for column in real if column > 0)
        return _keep_columns(state, parts_of(model), columns, real), names
    if not needed or columns is None:  # a file that does not fit is refused when its tensors are counted
        return state, given
    if given is None:
        raise RequestError(
            f"{where}.class_names: is missing; {source} is a plain state dict, which names none of its {columns - 1} "
            f"classes; list them in label order, without background"
        )
    if len(given) != columns - 1:
        raise RequestError(
            f"{where}.class_names: {len(given)} names, but the head of {source} has {columns - 1} classes and "
            f"background"
        )
    return state, given


def _class_layers(state: Mapping[str, Tensor], parts: Parts) -> list[str]:
    """Names of the tensors whose first axis runs over the columns of the head, class scores first."""
    if parts.kind == "fasterrcnn":
        names = [f"roi_heads.box_predictor.{layer}" for layer in ("cls_score", "bbox_pred")]
        return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    if parts.kind in ("retinanet", "fcos"):
        return [f"head.classification_head.cls_logits.{kind}" for kind in ("weight", "bias")]
    last = ".1." if parts.kind == "ssdlite" else "."
    prefix = "head.classification_head.module_list."
    return [
        f"{prefix}{level}{last}{kind}" for level in range(len(_SSD_ANCHORS[parts.kind])) for kind in ("weight", "bias")
    ]


def _columns(state: Mapping[str, Tensor], parts: Parts) -> int | None:
    """Classes and background of the head in a file; None: it has no such head."""
    first = state.get(_class_layers(state, parts)[0])
    if first is None:
        return None
    per_place = _SSD_ANCHORS[parts.kind][0] if parts.kind in _SSD_ANCHORS else _ANCHORS[parts.kind]
    return len(first) // per_place


def _keep_columns(state: dict[str, Tensor], parts: Parts, columns: int, kept: list[int]) -> dict[str, Tensor]:
    """Leave out the columns of a head that stand for no class; the probabilities of the others stay as they are.

    In a softmax the columns left out have probabilities near 0, so that their share of the sum is lost without effect.
    """
    slim = dict(state)
    for name in _class_layers(state, parts):
        value = slim[name]
        # Order on the first axis: anchors, then columns, then (boxes per class alone) coordinates.
        coordinates = 4 if ".bbox_pred." in name else 1
        table = value.reshape(-1, columns, coordinates, *value.shape[1:])
        slim[name] = table[:, kept].reshape(-1, *value.shape[1:])
    return slim


def _fill(backbone: Any, state: Mapping[str, Tensor], source: str, where: str) -> None:
    """Copy the layers of a classifier into a backbone; all of them must fit."""
    unused = backbone.load_state_dict(state, strict=False).unexpected_keys
    unused = [name for name in unused if _COUNTER not in name]
    if unused:
        raise RequestError(f"{where}.pretrained: {source} do not fit this version of torchvision ({unused[0]})")


def _download_coco(model: str, where: str) -> dict[str, Tensor]:
    return _download(torchvision.models.get_model_weights(model).COCO_V1, f"the COCO weights of {model}", where)


def _download_backbone(parts: Parts, where: str) -> dict[str, Tensor]:
    """Return the layers of a classifier that are a detector's backbone, by their names in the backbone."""
    published = torchvision.models.get_model_weights(parts.backbone)
    # The VGG backbone of SSD takes colours in another scale than the VGG classifier does.
    weights = published.IMAGENET1K_FEATURES if parts.kind == "ssd" else published.IMAGENET1K_V1
    state = _download(weights, f"the ImageNet weights of {parts.backbone}", where)
    if parts.kind == "ssd":
        return {_vgg_name(name): value for name, value in state.items() if name.startswith("features.")}
    if parts.mobile:
        return {
            name.replace("features.", "body.", 1): value
            for name, value in state.items()
            if name.startswith("features.")
        }
    return {f"body.{name}": value for name, value in state.items() if not name.startswith("fc.")}


def _vgg_name(name: str) -> str:
    _, number, kind = name.split(".")
    layer = int(number)
    return f"features.{layer}.{kind}" if layer < _VGG_FIRST_PART else f"extra.0.{layer - _VGG_FIRST_PART}.{kind}"


def _download(weights: Any, what: str, where: str) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise RequestError(
            f"{where}.pretrained: {what} cannot be downloaded ({first_line(error)}); fetch {weights.url} yourself and "
            f"give the file as 'weights', or use pretrained: none"
        ) from error
    return dict(state)


def _coco_categories() -> list[str]:
    return list(torchvision.models.get_model_weights(_EXAMPLE).COCO_V1.meta["categories"])
