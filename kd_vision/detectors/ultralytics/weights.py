"""From a config to a network of the family: model YAMLs, checkpoints, state dicts."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.nn.modules.head import Detect, RTDETRDecoder, v10Detect

from kd_vision.core.errors import RequestError, first_line
from kd_vision.detectors.base import recorded_input_size
from kd_vision.detectors.ultralytics.config import UltralyticsConfig

_REFUSED = ("weights_only", "unsupported global", "references types outside")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network ready for its adapter.

    Attributes:
        net: of the family.
        classes: names in label order.
        name: architecture, for messages and reports.
        size: input side that it was trained at, where a file says so.
    """

    net: tasks.DetectionModel
    classes: tuple[str, ...]
    name: str
    size: int | None = None


def load(config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str) -> Loaded:
    """Make the network that a config asks for; see `build` for the arguments and what is refused."""
    if config.model is None and config.weights is None:
        raise RequestError(f"{where}: give 'model' (e.g. yolo11n), 'weights' (a .pt file), or both")
    if config.weights is None:
        if classes is None:
            raise RequestError(f"{where}: a model without weights knows no classes; give 'weights'")
        net = _from_yaml(str(config.model), len(classes), config.input_channels or 3, where)
        return Loaded(net, classes, Path(str(config.model)).stem)
    found = _read_weights(config.weights, config.trust, where)
    if isinstance(found, tasks.DetectionModel):
        return _from_checkpoint(found, config, classes, where)
    return _from_state_dict(found, config, classes, where)


def construct(layout: str | dict[str, Any], channels: int, classes: int) -> tasks.DetectionModel:
    """Build a network with fresh weights.

    Args:
        layout: file name of a model YAML, or its content; the content is kept by the network.
        channels: of the input.
        classes: K.
    """
    content = tasks.yaml_model_load(layout) if isinstance(layout, str) else layout
    is_detr = content["head"][-1][2] == RTDETRDecoder.__name__
    kind = tasks.RTDETRDetectionModel if is_detr else tasks.DetectionModel
    return kind(content, ch=channels, nc=classes, verbose=False)


def _from_yaml(model: str, classes: int, channels: int, where: str) -> tasks.DetectionModel:
    is_path = model.endswith((".yaml", ".yml"))
    if is_path and not Path(model).is_file() and "/" in model:
        raise RequestError(f"{where}.model: {model} does not exist; give a model YAML or a name like yolo11n")
    net = construct(model if is_path else f"{model}.yaml", channels, classes)
    return _only_detectors(net, model, where)


def _read_weights(path: Path, trust: bool, where: str) -> tasks.DetectionModel | dict[str, Tensor]:
    if not path.is_file():
        raise RequestError(f"{where}.weights: {path} does not exist; give a .pt file")
    if not trust and not tasks._SafeLoad.SUPPORTED:
        raise RequestError(f"{where}.weights: safe loading needs torch 2.6 or later; update torch, or set trust: true")
    if path.suffix in (".onnx", ".json"):
        family = {".onnx": "onnx", ".json": "predictions"}[path.suffix]
        raise RequestError(f"{where}.weights: {path} is no .pt file; as a teacher it is of another family: {family}")
    if not trust and not zipfile.is_zipfile(path):
        raise RequestError(f"{where}.weights: {path} cannot be read as a .pt file (no archive written by torch.save)")
    try:
        content, _ = tasks.torch_safe_load(str(path), safe_only=not trust)
    except Exception as error:  # the family raises many kinds here; the user needs one line
        if any(sign in str(error).lower() for sign in _REFUSED):
            raise RequestError(
                f"{where}.weights: {path} needs classes outside the allow-list; loading it would run its "
                f"code; set trust: true if you know who made it"
            ) from error
        raise RequestError(f"{where}.weights: {path} cannot be read as a .pt file ({first_line(error)})") from error
    if isinstance(content, Mapping):
        for key in ("ema", "model"):
            if isinstance(content.get(key), nn.Module):
                net = _only_detectors(content[key].float(), str(path), where)
                ours = content.get("kd_vision") or {}
                net.yaml.setdefault("yaml_file", f"{ours.get('name', path.stem)}.yaml")
                net.args = {"imgsz": ours.get("image_size") or (content.get("train_args") or {}).get("imgsz")}
                return net
        state = content.get("state_dict", content)
        if state and all(isinstance(value, Tensor) for value in state.values()):
            return dict(state)
    raise RequestError(f"{where}.weights: {path} holds neither a model of this family nor a state dict")


def _from_checkpoint(
    net: tasks.DetectionModel, config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str
) -> Loaded:
    own = tuple(str(net.names[index]) for index in sorted(net.names))
    name = config.model or Path(str(net.yaml.get("yaml_file", config.weights))).stem
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    own_channels = int(net.yaml.get("channels", 3))
    channels = config.input_channels or own_channels
    if (classes is None or classes == own) and config.model is None and channels == own_channels:
        return Loaded(net, own, name, recorded_input_size(net.args["imgsz"]))
    wanted = own if classes is None else classes
    if config.model is not None:
        fresh = _from_yaml(config.model, len(wanted), channels, where)
    else:
        fresh = construct(copy.deepcopy(net.yaml), channels, len(wanted))
    _transfer(net.state_dict(), fresh, config.weights, where, whole=classes is None)
    return Loaded(fresh, wanted, name)


def _from_state_dict(
    state: dict[str, Tensor], config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str
) -> Loaded:
    if config.model is None:
        raise RequestError(
            f"{where}.model: is missing; {config.weights} is a plain state dict, so say which "
            f"architecture it fits, e.g. yolov8n"
        )
    if classes is None:
        raise RequestError(f"{where}: a state dict knows no class names; use a checkpoint with names")
    net = _from_yaml(config.model, len(classes), config.input_channels or 3, where)
    _transfer(state, net, config.weights, where, whole=False)
    return Loaded(net, classes, Path(config.model).stem)


def _transfer(state: Mapping[str, Tensor], net: nn.Module, source: Path | None, where: str, whole: bool) -> None:
    """Copy every tensor that fits by name and shape; refuse a file from which almost nothing fits.

    A teacher must fit as a `whole`: with layers left at random it would teach noise. A student's new head is what
    training is for.
    """
    own = net.state_dict()
    fitting = {k: v.float() for k, v in state.items() if k in own and own[k].shape == v.shape}
    if len(fitting) < (len(own) if whole else len(own) // 2):
        raise RequestError(
            f"{where}.weights: only {len(fitting)} of {len(own)} tensors of {source} fit the model; "
            f"give weights of the same architecture"
        )
    net.load_state_dict(fitting, strict=False)


def _only_detectors(net: Any, name: str, where: str) -> tasks.DetectionModel:
    head = net.model[-1] if hasattr(net, "model") else None
    if type(head) not in (Detect, v10Detect, RTDETRDecoder):
        raise RequestError(
            f"{where}: {name} is not a plain detection model (its head is {type(head).__name__}); use e.g. yolo11n"
        )
    if isinstance(head, Detect) and head.cv2 is None:
        raise RequestError(f"{where}: {name} was fused for inference; give the unfused checkpoint")
    return net
