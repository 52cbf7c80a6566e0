"""Settings of a model of the ultralytics package, and its model YAMLs. No torch and no ultralytics is imported here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import yaml
from pydantic import field_validator

from kd_vision.core.errors import suggest
from kd_vision.core.validation import StrictModel
from kd_vision.detectors.checkpoints import Opaque, peek
from kd_vision.detectors.inherit_config import InheritConfig

if TYPE_CHECKING:
    from kd_vision.detectors import HeadKind

_OTHER_TASKS = ("-cls", "-seg", "-obb", "-pose", "-world", "-depth", "-sem", "yoloe")
_DEFAULT_BINS = 16
_SCALED_NAME = re.compile(r"(\d+)[nsmlx](-.+)?$")


class UltralyticsConfig(StrictModel):
    """A model of the ultralytics package.

    Attributes:
        model: architecture to build (``yolo11n``, ``yolov8s-p2``, ``rtdetr-l``) or the path of a model YAML.
        weights: a ``.pt``: a checkpoint of the package, or a plain state dict (then `model` names the
            architecture it fits). Layers that do not fit (another class count) start fresh.
        trust: load a pickle that needs classes outside the allow-list. Loading it runs its code.
        input_channels: 1 grayscale, 3 RGB, 4 RGB and one more; None: those of the weights, else 3.
        inherit: of a student: start as a small copy of a larger model; None: `weights`, else random ones.
    """

    family: Literal["ultralytics"] = "ultralytics"
    model: str | None = None
    weights: Path | None = None
    trust: bool = False
    input_channels: Literal[1, 3, 4] | None = None
    inherit: InheritConfig | None = None

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"trust"})

    @field_validator("model")
    @classmethod
    def _is_known(cls, model: str | None) -> str | None:
        if model is None or model.endswith((".yaml", ".yml")) or not _model_files():
            return model
        scaled = _scaled_models()
        if model not in scaled:
            raise ValueError(f"unknown model '{model}'{suggest(model, scaled)}")
        return model


def known_models() -> list[str]:
    """Names of the detection architectures of the installed version, without scale letter."""
    return sorted(name for name in _model_files() if not any(task in name for task in _OTHER_TASKS))


def head_kind(config: UltralyticsConfig) -> HeadKind:
    """Return the kind of head, from the model YAML or from the one that a checkpoint of the package holds.

    A file that cannot be read is given the usual head of the package; building the model refuses it.
    """
    content = _read_yaml(config.model) if config.model is not None else _yaml_in_checkpoint(config.weights)
    layers = content.get("head")
    head = str(layers[-1][2]) if layers else ""
    if head == "RTDETRDecoder":
        return "queries"
    return "dense_bins" if content.get("reg_max", _DEFAULT_BINS) > 1 else "dense"


@cache
def _model_files() -> Mapping[str, Path]:
    """Model YAMLs of the installed package by name; empty where it is not installed."""
    package = find_spec("ultralytics")
    if package is None or package.origin is None:
        return {}
    folder = Path(package.origin).parent / "cfg" / "models"
    return {file.stem: file for file in folder.rglob("*.yaml")}


def _scaled_models() -> list[str]:
    """Names with a scale letter where the generation has one: yolov8n, yolov8n-p2, yolov9t, rtdetr-l."""
    names = set(known_models())
    for name in known_models():
        base, dash, variant = name.partition("-")
        # RT-DETR, v3 and some of v9 and v10 have a file for each size.
        if base[-1].isdigit() and base != "yolov3":
            names |= {f"{base}{scale}{dash}{variant}" for scale in "nsmlx"}
    return sorted(names)


def _read_yaml(model: str) -> Mapping[str, Any]:
    path: Path | None = Path(model)
    if not model.endswith((".yaml", ".yml")) or not Path(model).is_file():
        name = model.removesuffix(".yaml").removesuffix(".yml")
        path = _model_files().get(name) or _model_files().get(_SCALED_NAME.sub(r"\1\2", name))
    content = {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, Mapping) else {}


def _yaml_in_checkpoint(weights: Path | None) -> Mapping[str, Any]:
    content = {} if weights is None else peek(weights)
    for key in ("ema", "model"):
        if isinstance(model := content.get(key), Opaque):
            described = model.attributes.get("yaml")
            return described if isinstance(described, Mapping) else {}
    return {}
