"""kd_vision: distil object detectors.

The public names are imported when first used, so that `import kd_vision` loads neither torch nor ultralytics:

    import kd_vision
    result = kd_vision.train("configs/bccd_yolov8s_to_yolov8n.yaml", out="runs/distilled")
    kd_vision.evaluate(result.student, "datasets/bccd.yaml", split="test").metrics.ap
    kd_vision.export_model(result.student, "student.onnx", data="datasets/bccd.yaml")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kd_vision.core.lazy import load_attribute
from kd_vision.core.version import __version__

if TYPE_CHECKING:
    from kd_vision.config.load import load_config
    from kd_vision.pipeline.benchmark import benchmark
    from kd_vision.pipeline.check import check
    from kd_vision.pipeline.evaluate import evaluate
    from kd_vision.pipeline.export import run_export as export_model
    from kd_vision.pipeline.predict import run_predict as predict
    from kd_vision.pipeline.train import train

__all__ = ["__version__", "benchmark", "check", "evaluate", "export_model", "load_config", "predict", "train"]

_HOMES = {
    "benchmark": "kd_vision.pipeline.benchmark:benchmark",
    "check": "kd_vision.pipeline.check:check",
    "evaluate": "kd_vision.pipeline.evaluate:evaluate",
    "export_model": "kd_vision.pipeline.export:run_export",
    "load_config": "kd_vision.config.load:load_config",
    "predict": "kd_vision.pipeline.predict:run_predict",
    "train": "kd_vision.pipeline.train:train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kd_vision' has no attribute '{name}'")
    return load_attribute(_HOMES[name])


def __dir__() -> list[str]:
    return sorted(__all__)
