"""From a config to a network with its weights: our files, plain state dicts, what the package hands out."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from kd_vision.core.errors import RequestError, first_line
from kd_vision.detectors.base import recorded_input_size
from kd_vision.detectors.torchvision.config import Parts, TorchvisionConfig, parts_of
from kd_vision.detectors.torchvision.models import Architecture, construct

_EXAMPLE = "retinanet_resnet50_fpn"
_COUNTER = "num_batches_tracked"
_VGG_FIRST_PART = 23
_SSD_ANCHORS = {"ssd": (4, 6, 6, 6, 4, 4), "ssdlite": (6,) * 6}
_ANCHORS = {"retinanet": 9, "fcos": 1, "fasterrcnn": 1}
_REFUSED = ("weights_only", "unsupported global", "weights only")
# Trained before a mistake in the frozen norms was mended, so they must be run with it.
_WITHOUT_EPSILON = ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network ready for its adapter, what it is made of, and the input side that its file was trained at."""

    net: Any
    arch: Architecture
    size: int | None = None


@dataclass(frozen=True, slots=True)
class _File:
    """What a file of weights holds.

    Attributes:
        state: tensors by the family's names.
        arch: what our files say of the model; None: a plain state dict.
        source: for messages.
        size: input side of training, where the file says so.
    """

    state: dict[str, Tensor]
    arch: Architecture | None
    source: str
    size: int | None = None


def load(config: TorchvisionConfig, classes: tuple[str, ...] | None, where: str) -> Loaded:
    """Make the network that a config asks for; see `build` for the arguments and what is refused."""
    loaded = _loaded(config, classes, where)
    if config.proposals is None:
        return loaded
    if loaded.arch.parts.kind != "fasterrcnn":
        raise RequestError(f"{where}.proposals: {loaded.arch.model} has no second stage to look at them; leave it out")
    return replace(loaded, arch=replace(loaded.arch, proposals=config.proposals))


def _loaded(config: TorchvisionConfig, classes: tuple[str, ...] | None, where: str) -> Loaded:
    if config.model is None and config.weights is None:
        raise RequestError(f"{where}: give 'model' (e.g. {_EXAMPLE}), 'weights' (a .pt file), or both")
    if classes is not None and config.class_names is not None:
        raise RequestError(f"{where}.class_names: a student has the classes of the data; leave it out")
    if config.weights is not None:
        return _from_file(_read(config.weights, config.trust, where), config, classes, where)
    model = str(config.model)
    if config.pretrained == "coco":
        return _from_file(_File(_download_coco(model, where), None, "COCO"), config, classes, where)
    if classes is None:
        raise RequestError(f"{where}: a model without weights knows no classes; give 'weights', or pretrained: coco")
    frozen = config.pretrained == "backbone" and parts_of(model).freezes_norms
    arch = Architecture(model, classes, frozen)
    net = construct(arch)
    if config.pretrained == "backbone":
        _fill(net.backbone, _download_backbone(arch.parts, where), f"the ImageNet weights of {model}", where)
    return Loaded(net, arch)


def _from_file(file: _File, config: TorchvisionConfig, classes: tuple[str, ...] | None, where: str) -> Loaded:
    model = _model_of(file, config, where)
    state = file.state
    if file.arch is not None:
        if config.class_names is not None:
            raise RequestError(f"{where}.class_names: {file.source} names its own classes; leave it out")
        own: tuple[str, ...] | None = file.arch.classes
        arch = replace(file.arch, model=model)
    else:
        state, own = _named_classes(state, model, config.class_names, classes is None, file.source, where)
        # A file without the counters of learning norms comes from a model with frozen ones.
        frozen = parts_of(model).freezes_norms and not any(name.endswith(_COUNTER) for name in state)
        exact = config.pretrained == "coco" and model in _WITHOUT_EPSILON
        arch = Architecture(model, own or classes or (), frozen, 0.0 if exact else 1e-5)
    if classes is not None:
        arch = replace(arch, classes=classes)
    net = construct(arch)
    _transfer(state, net, file.source, classes is None, where)
    return Loaded(net, arch, file.size)


def _model_of(file: _File, config: TorchvisionConfig, where: str) -> str:
    if config.model is not None:
        return config.model
    if file.arch is None:
        raise RequestError(
            f"{where}.model: is missing; {file.source} is a plain state dict, so say which model it fits, e.g. "
            f"{_EXAMPLE}"
        )
    return file.arch.model


def _named_classes(
    state: dict[str, Tensor], model: str, given: tuple[str, ...] | None, needed: bool, source: str, where: str
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Find the class names of a plain state dict; COCO's is brought to the classes that exist.

    Args:
        state: the file's.
        model: its name.
        given: names in the config.
        needed: whether the model keeps its own classes.
        source: for messages.
        where: likewise.
    """
    columns = _columns(state, parts_of(model))
    categories = _coco_categories()
    if given is None and columns == len(categories):
        real = [place for place, name in enumerate(categories) if name != "N/A"]
        names = tuple(categories[place] for place in real if place > 0)
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
    """Leave out the columns of a head that stand for no class; its other probabilities stay as they are.

    In a softmax the columns left out had learned to be nothing, and take nothing with them.
    """
    slim = dict(state)
    for name in _class_layers(state, parts):
        value = slim[name]
        # Order on the first axis: anchors, then columns, then (boxes per class alone) coordinates.
        coordinates = 4 if ".bbox_pred." in name else 1
        table = value.reshape(-1, columns, coordinates, *value.shape[1:])
        slim[name] = table[:, kept].reshape(-1, *value.shape[1:])
    return slim


def _transfer(state: Mapping[str, Tensor], net: Any, source: str, whole: bool, where: str) -> None:
    """Copy every tensor that fits by name and shape.

    Args:
        state: where from.
        net: where to.
        source: for messages.
        whole: nothing may be missing: layers left at random would speak noise. A student's new head is what
            training is for, but a file from which almost nothing fits is refused too.
        where: key of the config, for messages.
    """
    own = net.state_dict()
    fitting = {k: v.float() for k, v in state.items() if k not in own or own[k].shape == v.shape}
    # The family renames tensors of its older files on loading; so what is missing tells, not the names in the file.
    missing = [name for name in net.load_state_dict(fitting, strict=False).missing_keys if _COUNTER not in name]
    total = sum(_COUNTER not in name for name in own)
    found = total - len(missing)
    if found < (total if whole else total // 2):
        raise RequestError(
            f"{where}.weights: only {found} of {total} tensors of {source} fit the model; give weights of the same "
            f"architecture"
        )


def _fill(backbone: Any, state: Mapping[str, Tensor], source: str, where: str) -> None:
    """Copy a classifier's layers into a backbone; all of them must find their place."""
    unused = backbone.load_state_dict(state, strict=False).unexpected_keys
    unused = [name for name in unused if _COUNTER not in name]
    if unused:
        raise RequestError(f"{where}.pretrained: {source} do not fit this version of torchvision ({unused[0]})")


def _download_coco(model: str, where: str) -> dict[str, Tensor]:
    return _download(torchvision.models.get_model_weights(model).COCO_V1, f"the COCO weights of {model}", where)


def _download_backbone(parts: Parts, where: str) -> dict[str, Tensor]:
    """Return the layers of a classifier that a detector stands on, by their names in its backbone."""
    known = torchvision.models.get_model_weights(parts.backbone)
    # The VGG that SSD stands on sees colours in another scale than its classifier does.
    weights = known.IMAGENET1K_FEATURES if parts.kind == "ssd" else known.IMAGENET1K_V1
    state = _download(weights, f"the ImageNet weights of {parts.backbone}", where)
    if parts.kind == "ssd":
        return {_vgg_place(name): value for name, value in state.items() if name.startswith("features.")}
    if parts.mobile:
        return {
            name.replace("features.", "body.", 1): value
            for name, value in state.items()
            if name.startswith("features.")
        }
    return {f"body.{name}": value for name, value in state.items() if not name.startswith("fc.")}


def _vgg_place(name: str) -> str:
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


def _read(path: Path, trust: bool, where: str) -> _File:
    if not path.is_file():
        raise RequestError(f"{where}.weights: {path} does not exist; give a .pt file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # the reader raises many kinds; the user needs one line
        if zipfile.is_zipfile(path) and any(sign in str(error).lower() for sign in _REFUSED):
            raise RequestError(
                f"{where}.weights: {path} needs classes outside the allow-list; loading it would run its "
                f"code; set trust: true if you know who made it"
            ) from error
        raise RequestError(f"{where}.weights: {path} cannot be read as a .pt file ({first_line(error)})") from error
    state = _state_in(content)
    if state is None:
        raise RequestError(f"{where}.weights: {path} holds no state dict of a model of this family")
    note = content.get("kd_vision")
    if note is None:
        return _File(state, None, str(path))
    if not isinstance(note, Mapping) or note.get("family") != "torchvision":
        raise RequestError(f"{where}.weights: {path} is of another family; give its 'family' too")
    return _File(state, Architecture.from_mapping(note), str(path), recorded_input_size(note.get("image_size")))


def _state_in(content: Any) -> dict[str, Tensor] | None:
    """Find the tensors: at the top, or where training scripts put them."""
    if not isinstance(content, Mapping):
        return None
    for inner in (content.get("state_dict"), content.get("model"), content):
        if isinstance(inner, Mapping) and inner and all(isinstance(value, Tensor) for value in inner.values()):
            return dict(inner)
    return None
