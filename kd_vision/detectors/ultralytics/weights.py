"""From a config to a network of the package: model YAMLs, checkpoints, state dicts."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.nn import tasks
from ultralytics.nn.modules.head import Detect, RTDETRDecoder, v10Detect

from kd_vision.core.errors import RequestError, first_line
from kd_vision.detectors.checkpoints import Checkpoint, read_weights, transfer
from kd_vision.detectors.ultralytics.config import UltralyticsConfig


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network ready for its adapter.

    Attributes:
        net: the package's own model.
        classes: names in label order.
        name: architecture, for messages and reports.
        trained_size: input side in pixels that it was trained at, where a file gives it.
    """

    net: tasks.DetectionModel
    classes: tuple[str, ...]
    name: str
    trained_size: int | None = None


def load(config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str) -> Loaded:
    """Make the network that a config describes; see `build` for the arguments and what is refused."""
    if config.model is None and config.weights is None:
        raise RequestError(f"{where}: give 'model' (e.g. yolo11n), 'weights' (a .pt file), or both")
    if config.weights is None:
        if classes is None:
            raise RequestError(f"{where}: a model without weights has no class names; give 'weights'")
        net = _from_yaml(str(config.model), len(classes), config.input_channels or 3, where)
        return Loaded(net, classes, Path(str(config.model)).stem)
    checkpoint = read_weights(config.weights, config.trust, where, _unpickle)
    if checkpoint.model is not None:
        return _from_model(checkpoint, config, classes, where)
    if checkpoint.state:
        return _from_state_dict(checkpoint, config, classes, where)
    raise RequestError(f"{where}.weights: {config.weights} holds neither a model of ultralytics nor a state dict")


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
    with _without_eval():
        try:
            return kind(content, ch=channels, nc=classes, verbose=False)
        except TypeError as error:  # how ultralytics refuses what is no layer of its own or of torch
            raise RequestError(
                f"model YAML: {first_line(error)}; only layers of ultralytics and torch are built"
            ) from None


@contextmanager
def _without_eval() -> Iterator[None]:
    """Build as ultralytics does from untrusted files: a model YAML, which a ``.pt`` may carry, could run code else."""
    state = tasks._SafeLoad._local
    before = getattr(state, "active", False)
    state.active = True
    try:
        yield
    finally:
        state.active = before


def _from_yaml(model: str, classes: int, channels: int, where: str) -> tasks.DetectionModel:
    is_path = model.endswith((".yaml", ".yml"))
    if is_path and not Path(model).is_file() and "/" in model:
        raise RequestError(f"{where}.model: {model} does not exist; give a model YAML or a name like yolo11n")
    net = construct(model if is_path else f"{model}.yaml", channels, classes)
    return _refuse_other_heads(net, model, where)


def _unpickle(path: Path, trust: bool) -> Any:
    if not trust and not tasks._SafeLoad.SUPPORTED:  # the package would load unsafely instead
        raise RuntimeError("safe loading needs torch 2.6 or later; update torch, or set trust: true")
    if not trust and not zipfile.is_zipfile(path):
        raise ValueError("no archive written by torch.save")
    return tasks.torch_safe_load(str(path), safe_only=not trust)[0]


def _from_model(
    checkpoint: Checkpoint, config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str
) -> Loaded:
    """Use the network of a checkpoint as it is, or its weights in a fresh one where classes or channels differ."""
    net = _refuse_other_heads(checkpoint.model, checkpoint.source, where).float()
    net.yaml.setdefault("yaml_file", f"{checkpoint.note.get('name', Path(checkpoint.source).stem)}.yaml")
    name = config.model or Path(str(net.yaml["yaml_file"])).stem
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    net_classes = tuple(str(net.names[index]) for index in sorted(net.names))
    net_channels = int(net.yaml.get("channels", 3))
    channels = config.input_channels or net_channels
    if classes in (None, net_classes) and config.model is None and channels == net_channels:
        return Loaded(net, net_classes, name, checkpoint.trained_size)
    wanted = net_classes if classes is None else classes
    if config.model is not None:
        fresh = _from_yaml(config.model, len(wanted), channels, where)
    else:
        fresh = construct(copy.deepcopy(net.yaml), channels, len(wanted))
    transfer(net.state_dict(), fresh, checkpoint.source, whole=classes is None, where=where)
    return Loaded(fresh, wanted, name)


def _from_state_dict(
    checkpoint: Checkpoint, config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str
) -> Loaded:
    if config.model is None:
        raise RequestError(
            f"{where}.model: is missing; {checkpoint.source} is a plain state dict, so name the architecture that it "
            f"fits, e.g. yolov8n"
        )
    if classes is None:
        raise RequestError(
            f"{where}.weights: {checkpoint.source} is a plain state dict, which has no class names; use a checkpoint "
            f"with names"
        )
    net = _from_yaml(config.model, len(classes), config.input_channels or 3, where)
    transfer(checkpoint.state, net, checkpoint.source, whole=False, where=where)
    return Loaded(net, classes, Path(config.model).stem)


def _refuse_other_heads(net: Any, name: str, where: str) -> tasks.DetectionModel:
    head = net.model[-1] if hasattr(net, "model") else None
    if type(head) not in (Detect, v10Detect, RTDETRDecoder):
        raise RequestError(
            f"{where}: {name} is not a plain detection model (its head is {type(head).__name__}); use e.g. yolo11n"
        )
    if isinstance(head, Detect) and head.cv2 is None:
        raise RequestError(f"{where}: {name} was fused for inference; give the unfused checkpoint")
    return net
