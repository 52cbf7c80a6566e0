"""Which model of the family, and which there are."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import field_validator
from ultralytics.nn import tasks

from kd_vision.core.errors import suggest
from kd_vision.core.validation import StrictModel


class UltralyticsConfig(StrictModel):
    """Which model of the family.

    Attributes:
        model: architecture to build (``yolo11n``, ``yolov8s-p2``, ``rtdetr-l``) or the path of a model YAML.
        weights: a ``.pt``: a checkpoint of the family, or a plain state dict (then `model` says
            which architecture it fits). Layers that do not fit (another class count) start fresh.
        trust: load a pickle that needs classes outside the allow-list. Loading it runs its code.
        input_channels: 1 grayscale, 3 RGB, 4 RGB and one more; None: those of the weights, else 3.
    """

    family: Literal["ultralytics"] = "ultralytics"
    model: str | None = None
    weights: Path | None = None
    trust: bool = False
    input_channels: Literal[1, 3, 4] | None = None

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"trust"})

    @field_validator("model")
    @classmethod
    def _known(cls, model: str | None) -> str | None:
        if model is None or model.endswith((".yaml", ".yml")):
            return model
        scaled = _scaled_models()
        if model not in scaled:
            raise ValueError(f"unknown model '{model}'{suggest(model, scaled)}")
        return model


def known_models() -> list[str]:
    """Names of the detection architectures of the installed version, without scale letter."""
    folder = Path(tasks.__file__).parents[1] / "cfg" / "models"
    other = ("-cls", "-seg", "-obb", "-pose", "-world", "-depth", "-sem", "yoloe")
    return sorted(p.stem for p in folder.rglob("*.yaml") if not any(o in p.stem for o in other))


def _scaled_models() -> list[str]:
    """Names with a scale letter where the generation has one: yolov8n, yolov8n-p2, yolov9t, rtdetr-l."""
    found = []
    for name in known_models():
        base, dash, variant = name.partition("-")
        # RT-DETR, v3 and some of v9 and v10 have a file for each size.
        if base[-1].isdigit() and base != "yolov3":
            found += [f"{base}{scale}{dash}{variant}" for scale in "nsmlx"]
    return sorted({*found, *known_models()})
