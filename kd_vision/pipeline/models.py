"""Opens a model: a checkpoint, a student, an ONNX file, a predictions file, or the teacher of a config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kd_vision.config.load import load_config
from kd_vision.core.errors import RequestError, first_line
from kd_vision.data.dataset import DetectionData
from kd_vision.detectors import family_module, open_detector
from kd_vision.detectors.base import Detector, Predictor
from kd_vision.engine.checkpoint import read_checkpoint
from kd_vision.export import formats_of, open_exported
from kd_vision.pipeline.teachers import build_online_teachers

_DEFAULT_SIZE = 640
_SMALL_SIZE = 32  # for a predictions file, which reads no pixels
_DEVICES = ("cpu", "cuda", "cuda:1", "mps")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An opened model.

    Attributes:
        predictor: returns boxes.
        detector: the same as a torch detector; None for other kinds of models.
        image_size: input side: the requested one, else that of training or export.
        kind: `checkpoint`, `pt`, `onnx`, `predictions` or `teacher`.
        path: the file that was opened.
    """

    predictor: Predictor
    detector: Detector | None
    image_size: int
    kind: str
    path: Path


def best_device() -> str:
    """Return the fastest device of this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wrong_device(name: str | None) -> list[str]:
    """Return the error, one line, where there is no such device; nothing for None, the best one."""
    if name is None:
        return []
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in _DEVICES:
        return [f"--device: '{name}' is no device; possible: {', '.join(_DEVICES)}"]
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        return [f"--device: '{name}' is not available ({first_line(error)}); leave it out, or give cpu"]
    return []


def chosen_device(name: str | None) -> str:
    """Return the given device, else the best one.

    Raises:
        RequestError: there is no such device on this machine.
    """
    if errors := wrong_device(name):
        raise RequestError(*errors)
    return name or best_device()


def load_model(
    path: Path,
    image_size: int | None = None,
    trust: bool = False,
    device: str = "cpu",
    data: DetectionData | None = None,
) -> LoadedModel:
    """Open a model of any kind.

    Args:
        path: a run directory, ``.ckpt``, ``.pt``, ``.onnx``, predictions ``.json``, or a config ``.yaml``: then its
            teacher, with the classes of `data` by the config's label map.
        image_size: input side in pixels; None: as trained or exported, else 640.
        trust: allow a pickle outside the allow-list.
        device: of a torch model.
        data: the data set of a predictions file, or of a teacher.

    Raises:
        RequestError: the file is missing, of an unknown kind, or cannot be read.
    """
    loaded = _opened(_inside_run(path), trust, device, data)
    if image_size is not None and loaded.kind == "teacher":
        raise RequestError(f"{path}: the image_size of a teacher is set in its config; leave --image-size out")
    if image_size is not None:
        loaded = replace(loaded, image_size=image_size)
    key = f"{path}: image size" if image_size is None else "--image-size"
    loaded.predictor.spec.refuse_wrong_size(loaded.image_size, key)
    return loaded


def _opened(path: Path, trust: bool, device: str, data: DetectionData | None) -> LoadedModel:
    if path.suffix == ".ckpt":
        return _load_checkpoint(path, device)
    if path.suffix == ".pt":
        return _load_pt(path, trust, device)
    if formats_of(path):
        return _load_exported(path)
    if path.suffix == ".json":
        return _load_predictions(path, data)
    if path.suffix in (".yaml", ".yml"):
        return _load_teacher(path, device, data)
    raise RequestError(
        f"{path}: unknown kind of model; give a run directory, .ckpt, .pt, .onnx, a predictions .json, or a config "
        f".yaml for its teacher"
    )


def _inside_run(path: Path) -> Path:
    if not path.exists():
        raise RequestError(f"{path}: does not exist; give a run directory, .ckpt, .pt, .onnx or predictions .json")
    if not path.is_dir():
        return path
    for name in ("student.pt", "checkpoints/last.ckpt"):
        if (path / name).is_file():
            return path / name
    raise RequestError(f"{path}: holds neither student.pt nor checkpoints/last.ckpt; give a run directory")


def _load_checkpoint(path: Path, device: str) -> LoadedModel:
    content = read_checkpoint(path)
    identity: dict[str, Any] = content["identity"]
    detector = family_module(identity["family"], "checkpoint").rebuild(identity["architecture"])
    detector.load_state_dict(content["average"])
    detector.to(device).eval()
    return LoadedModel(detector, detector, identity["image_size"], "checkpoint", path)


def _load_pt(path: Path, trust: bool, device: str) -> LoadedModel:
    detector = open_detector(path, trust, str(path))
    detector.to(device).eval()
    return LoadedModel(detector, detector, detector.trained_size or _DEFAULT_SIZE, "pt", path)


def _load_exported(path: Path) -> LoadedModel:
    predictor = open_exported(path)
    size = getattr(predictor, "image_size", None) or _DEFAULT_SIZE
    return LoadedModel(predictor, None, size, formats_of(path)[0], path)


def _load_predictions(path: Path, data: DetectionData | None) -> LoadedModel:
    from kd_vision.teachers.predictions_file import read_predictions

    if data is None:
        raise RequestError(f"{path}: a predictions file needs its data set; only `kd-vision evaluate` takes it")
    return LoadedModel(read_predictions(path, data), None, _SMALL_SIZE, "predictions", path)


def _load_teacher(path: Path, device: str, data: DetectionData | None) -> LoadedModel:
    config = load_config(path)
    if data is None:
        raise RequestError(
            f"{path}: the teacher of a config has the classes of a data set; only `kd-vision evaluate` takes it"
        )
    teachers = list(build_online_teachers(config, data.classes).values())
    if len(teachers) != 1:
        raise RequestError(
            f"{path}: has {len(teachers)} teachers that are run on images, only one can be evaluated; give the file of "
            f"one, or an ensemble"
        )
    teacher = teachers[0].to(device)
    return LoadedModel(teacher, None, teacher.image_size or config.image_size, "teacher", path)
