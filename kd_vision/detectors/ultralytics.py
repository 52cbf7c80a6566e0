"""The ultralytics family (v3 to v12, 26) behind our contract. The only file that imports ultralytics.

Shapes: B images, A grid points, K classes, R bins, M boxes.
"""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn

from kd_vision.core.batch import ImageBatch, Targets
from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.predictions import (
    ONE_TO_MANY,
    ONE_TO_ONE,
    Channel,
    Detections,
    DetectorOutput,
    GridPredictions,
)
from kd_vision.core.run_directory import whole_or_nothing
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.detectors.base import Detector, PredictOptions
from kd_vision.detectors.postprocess import suppress, take_top, to_original

# Before the import: no checks, no downloads, no installs on the user's behalf, nothing sent home.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")

from ultralytics import __version__ as ultralytics_version
from ultralytics.cfg import get_cfg
from ultralytics.nn import tasks
from ultralytics.nn.modules.head import Detect, v10Detect
from ultralytics.utils import SETTINGS
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

SETTINGS._save = lambda: None  # our use of the package must not rewrite the user's settings file
dict.update(SETTINGS, sync=False)

_BRANCHES = {"one2many": ONE_TO_MANY, "one2one": ONE_TO_ONE}
_O2M_FIRST, _O2M_LAST = 0.8, 0.1
_REFUSED = ("weights_only", "unsupported global", "references types outside")


class UltralyticsConfig(StrictModel):
    """Which model of the family.

    Attributes:
        model: architecture to build (``yolo11n``, ``yolov8s-p2``) or the path of a model YAML.
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

    @field_validator("model")
    @classmethod
    def _known(cls, model: str | None) -> str | None:
        if model is None or model.endswith((".yaml", ".yml")):
            return model
        scaled = _scaled_models()
        if model not in scaled:
            raise ValueError(f"unknown model '{model}'{suggest(model, scaled)}")
        return model


class UltralyticsDetector(Detector):
    """A detection model of the ultralytics family.

    Args:
        net: the family's own model.
        classes: names in label order.
        name: architecture name for messages and reports.
        label_order: for a teacher whose classes are the same in another order: position in the
            net's output of each of `classes`.
    """

    def __init__(
        self,
        net: tasks.DetectionModel,
        classes: Sequence[str],
        name: str,
        label_order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.net.names = dict(enumerate(classes))
        self.net.args = get_cfg()
        self.label_order = None if label_order is None else tuple(label_order)
        self.spec = _spec(net, tuple(classes), name)
        self._criterion: v8DetectionLoss | E2ELoss | None = None
        self._grid_cache: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._progress = 0.0
        self.train(net.training)

    @property
    def head(self) -> Detect:
        """The detection head."""
        return self.net.model[-1]

    def train(self, mode: bool = True) -> UltralyticsDetector:
        """Set the mode; the head itself always answers with raw predictions, which we decode."""
        super().train(mode)
        self.head.training = True  # the flag of this one module: its BatchNorm children keep `mode`
        return self

    def architecture(self) -> dict[str, Any]:
        """See `Detector.architecture`."""
        return {"yaml": copy.deepcopy(self.net.yaml), "classes": list(self.spec.classes), "name": self.spec.name}

    def set_progress(self, done: float) -> None:
        """Move the balance of an end-to-end head from one-to-many to one-to-one, as the family does."""
        self._progress = done

    def reordered(self, classes: tuple[str, ...]) -> UltralyticsDetector:
        """See `Detector.reordered`."""
        order = [self.spec.classes.index(name) for name in classes]
        return UltralyticsDetector(self.net, classes, self.spec.name, order)

    def forward(
        self,
        images: Tensor,
        targets: Targets | None = None,
        labelled: Tensor | None = None,
        channels: frozenset[Channel] = frozenset(),
    ) -> DetectorOutput:
        """See `Detector.forward`."""
        predictions = self._raw(images)
        losses = {} if targets is None else self._task_losses(predictions, targets, labelled, images)
        features: dict[str, Tensor] = {}
        if "features" in channels:
            maps = predictions["one2many"]["feats"]
            features = dict(zip(self.spec.level_strides, maps, strict=True))
        grids: dict[str, GridPredictions] = {}
        if "grid" in channels:
            grids = {_BRANCHES[key]: self._grid(value) for key, value in predictions.items()}
        detections: tuple[Detections, ...] = ()
        if "detections" in channels:
            detections = tuple(self._detections(predictions, PredictOptions()))
        return DetectorOutput(losses, features, grids, self._branch_weights(), detections)

    @torch.no_grad()
    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `Detector.predict`."""
        was_training = self.training
        self.eval()  # a prediction moves no statistics and does not depend on its neighbours in the batch
        images = batch.images.to(next(self.net.parameters()).device)
        predictions = self._raw(replace(batch, images=images, teacher_images=None).as_float().images)
        self.train(was_training)
        found = self._detections(predictions, options)
        return [to_original(one, letterbox) for one, letterbox in zip(found, batch.letterboxes, strict=True)]

    def export_module(self, nms_free: bool | None = None) -> nn.Module:
        """See `Detector.export_module`."""
        net = copy.deepcopy(self.net).float().cpu().eval()
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        head = net.model[-1]
        if self.spec.end_to_end:
            head.end2end = nms_free is not False
        fused: nn.Module = net.fuse(verbose=False)
        head.export, head.format, head.training = True, "onnx", False
        return fused

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write a checkpoint that `ultralytics.YOLO(path)` opens: the bare student, nothing else."""
        net = copy.deepcopy(self.net).float().cpu().eval()
        net.args = {**vars(net.args), "model": self.spec.name, "task": "detect"}
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        content = {
            "model": net,
            "ema": None,
            "epoch": -1,
            "date": datetime.now(timezone.utc).isoformat(),
            "version": ultralytics_version,
            "license": "AGPL-3.0 (https://ultralytics.com/license)",
            "train_args": dict(net.args),
            "kd_vision": {"name": self.spec.name, **metadata},
        }
        with whole_or_nothing(path) as part:
            torch.save(content, part)

    @torch.no_grad()
    def _detections(self, predictions: Mapping[str, Any], options: PredictOptions) -> list[Detections]:
        """Final boxes of each image in input pixels, from the branch that inference uses."""
        nms_free = self.spec.end_to_end
        grid = self._grid(predictions["one2one" if nms_free else "one2many"])
        decide = _best_pairs if nms_free else suppress
        pairs = zip(grid.boxes_xyxy, grid.logits, strict=True)
        return [decide(boxes, logits.float().sigmoid(), options) for boxes, logits in pairs]

    def _raw(self, images: Tensor) -> dict[str, dict[str, Any]]:
        """Run the net once; return raw head outputs by branch, in the family's own names."""
        predictions: dict[str, Any] = self.net(images)
        return predictions if "one2many" in predictions else {"one2many": predictions}

    def _grid(self, raw: Mapping[str, Any]) -> GridPredictions:
        logits = raw["scores"].permute(0, 2, 1)
        if self.label_order is not None:
            logits = logits[..., list(self.label_order)]
        points, strides = self._points(raw["feats"])
        bins_flat = raw["boxes"].permute(0, 2, 1).float()
        batch, count = bins_flat.shape[:2]
        bins = None
        if self.head.reg_max > 1:
            bins = bins_flat.reshape(batch, count, 4, self.head.reg_max)
            values = torch.arange(self.head.reg_max, dtype=torch.float32, device=bins.device)
            distances = bins.softmax(-1) @ values
        else:
            distances = bins_flat
        distances = distances * strides[:, None]
        boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)
        return GridPredictions(logits, boxes, points, strides, bins)

    def _points(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        key = (features[0].device, *(tuple(f.shape[-2:]) for f in features))
        if key not in self._grid_cache:
            points, strides = [], []
            for feature, stride in zip(features, self.spec.level_strides.values(), strict=True):
                height, width = feature.shape[-2:]
                y, x = torch.meshgrid(
                    torch.arange(height, device=feature.device) + 0.5,
                    torch.arange(width, device=feature.device) + 0.5,
                    indexing="ij",
                )
                points.append(torch.stack((x, y), dim=-1).reshape(-1, 2) * stride)
                strides.append(torch.full((height * width,), float(stride), device=feature.device))
            self._grid_cache = {key: (torch.cat(points), torch.cat(strides))}
        return self._grid_cache[key]

    def _task_losses(
        self,
        predictions: Mapping[str, Mapping[str, Any]],
        targets: Targets,
        labelled: Tensor | None,
        images: Tensor,
    ) -> dict[str, Tensor]:
        """The family's own losses, as means over the labelled images."""
        if labelled is not None and not bool(labelled.all()):
            if not bool(labelled.any()):
                return {}
            predictions = {key: _keep_images(value, labelled) for key, value in predictions.items()}
            position = labelled.cumsum(0) - 1
            targets = Targets(position[targets.image_index], targets.labels, targets.boxes_xyxy)
        height, width = images.shape[-2:]
        size = torch.tensor([width, height], device=images.device)
        low, high = targets.boxes_xyxy[:, :2], targets.boxes_xyxy[:, 2:]
        batch = {
            "batch_idx": targets.image_index.float(),
            "cls": targets.labels.float()[:, None],
            "bboxes": torch.cat(((low + high) / 2 / size, (high - low) / size), dim=1),
        }
        criterion = self._loss_function()
        values, _ = criterion(predictions if self.spec.end_to_end else predictions["one2many"], batch)
        names = criterion.one2one.loss_names if isinstance(criterion, E2ELoss) else criterion.loss_names
        count = predictions["one2many"]["scores"].shape[0]
        return {name.removesuffix("_loss"): value / count for name, value in zip(names, values, strict=True)}

    def _loss_function(self) -> v8DetectionLoss | E2ELoss:
        if self._criterion is None:
            self._criterion = E2ELoss(self.net) if self.spec.end_to_end else v8DetectionLoss(self.net)
        if isinstance(self._criterion, E2ELoss):
            weights = self._branch_weights()
            self._criterion.o2m, self._criterion.o2o = weights[ONE_TO_MANY], weights[ONE_TO_ONE]
        return self._criterion

    def _branch_weights(self) -> dict[str, float]:
        if not self.spec.end_to_end:
            return {ONE_TO_MANY: 1.0}
        many = _O2M_LAST + (_O2M_FIRST - _O2M_LAST) * (1.0 - self._progress)
        return {ONE_TO_MANY: many, ONE_TO_ONE: 1.0 - many}

    def __deepcopy__(self, memo: dict[int, Any]) -> UltralyticsDetector:
        """Copy the network; the loss function and the grid cache are rebuilt on demand."""
        twin = UltralyticsDetector(copy.deepcopy(self.net, memo), self.spec.classes, self.spec.name, self.label_order)
        twin._progress = self._progress
        return twin


def build(config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str) -> UltralyticsDetector:
    """Build a detector.

    Args:
        config: which model.
        classes: names the detector must answer with. A model to be trained gets a head for them;
            None: the model's own (a teacher, or a model to evaluate).
        where: config path for messages, e.g. ``student``.

    Raises:
        RequestError: the model is unknown, the file is missing, unreadable, or not a detector.
    """
    if config.model is None and config.weights is None:
        raise RequestError(f"{where}: give 'model' (e.g. yolo11n), 'weights' (a .pt file), or both")
    if config.weights is None:
        if classes is None:
            raise RequestError(f"{where}: a model without weights knows no classes; give 'weights'")
        net = _from_yaml(str(config.model), len(classes), config.input_channels or 3, where)
        return UltralyticsDetector(net, classes, Path(str(config.model)).stem)
    loaded = _read_weights(config.weights, config.trust, where)
    if isinstance(loaded, tasks.DetectionModel):
        return _from_checkpoint(loaded, config, classes, where)
    return _from_state_dict(loaded, config, classes, where)


def rebuild(architecture: Mapping[str, Any]) -> UltralyticsDetector:
    """Build the bare detector that `UltralyticsDetector.architecture` described, with fresh weights."""
    layout, classes = copy.deepcopy(architecture["yaml"]), architecture["classes"]
    net = tasks.DetectionModel(layout, ch=int(layout.get("channels", 3)), nc=len(classes), verbose=False)
    return UltralyticsDetector(net, classes, architecture["name"])


def known_models() -> list[str]:
    """Names of the detection architectures of the installed version, without scale letter."""
    folder = Path(tasks.__file__).parents[1] / "cfg" / "models"
    other = ("-cls", "-seg", "-obb", "-pose", "-world", "-depth", "-sem", "yoloe", "rtdetr", "resnet")
    return sorted(p.stem for p in folder.rglob("*.yaml") if not any(o in p.stem for o in other))


def _scaled_models() -> list[str]:
    """Names with a scale letter where the generation has one: yolov8n, yolov8n-p2, yolov9t, yolov3-tiny."""
    found = []
    for name in known_models():
        base, dash, variant = name.partition("-")
        found += [f"{base}{scale}{dash}{variant}" for scale in "nsmlx"]
    return sorted({*found, *known_models()})


def _from_yaml(model: str, classes: int, channels: int, where: str) -> tasks.DetectionModel:
    is_path = model.endswith((".yaml", ".yml"))
    if is_path and not Path(model).is_file() and "/" in model:
        raise RequestError(f"{where}.model: {model} does not exist; give a model YAML or a name like yolo11n")
    net = tasks.DetectionModel(model if is_path else f"{model}.yaml", ch=channels, nc=classes, verbose=False)
    return _only_detectors(net, model, where)


def _read_weights(path: Path, trust: bool, where: str) -> tasks.DetectionModel | dict[str, Tensor]:
    if not path.is_file():
        raise RequestError(f"{where}.weights: {path} does not exist; give a .pt file")
    if not trust and not tasks._SafeLoad.SUPPORTED:
        raise RequestError(f"{where}.weights: safe loading needs torch 2.6 or later; update torch, or set trust: true")
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
        raise RequestError(f"{where}.weights: {path} cannot be read as a .pt file ({_first_line(error)})") from error
    if isinstance(content, Mapping):
        for key in ("ema", "model"):
            if isinstance(content.get(key), nn.Module):
                net = _only_detectors(content[key].float(), str(path), where)
                ours = content.get("kd_vision") or {}
                net.yaml.setdefault("yaml_file", f"{ours.get('name', path.stem)}.yaml")
                return net
        state = content.get("state_dict", content)
        if state and all(isinstance(value, Tensor) for value in state.values()):
            return dict(state)
    raise RequestError(f"{where}.weights: {path} holds neither a model of this family nor a state dict")


def _from_checkpoint(
    net: tasks.DetectionModel, config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str
) -> UltralyticsDetector:
    own = tuple(str(net.names[index]) for index in sorted(net.names))
    name = config.model or Path(str(net.yaml.get("yaml_file", config.weights))).stem
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    own_channels = int(net.yaml.get("channels", 3))
    channels = config.input_channels or own_channels
    if (classes is None or classes == own) and config.model is None and channels == own_channels:
        return UltralyticsDetector(net, own, name)
    wanted = own if classes is None else classes
    if config.model is not None:
        fresh = _from_yaml(config.model, len(wanted), channels, where)
    else:
        fresh = tasks.DetectionModel(copy.deepcopy(net.yaml), ch=channels, nc=len(wanted), verbose=False)
    _transfer(net.state_dict(), fresh, config.weights, where)
    return UltralyticsDetector(fresh, wanted, name)


def _from_state_dict(
    state: dict[str, Tensor], config: UltralyticsConfig, classes: tuple[str, ...] | None, where: str
) -> UltralyticsDetector:
    if config.model is None:
        raise RequestError(
            f"{where}.model: is missing; {config.weights} is a plain state dict, so say which "
            f"architecture it fits, e.g. yolov8n"
        )
    if classes is None:
        raise RequestError(f"{where}: a state dict knows no class names; use a checkpoint with names")
    net = _from_yaml(config.model, len(classes), config.input_channels or 3, where)
    _transfer(state, net, config.weights, where)
    return UltralyticsDetector(net, classes, Path(config.model).stem)


def _transfer(state: Mapping[str, Tensor], net: nn.Module, source: Path | None, where: str) -> None:
    """Copy every tensor that fits by name and shape; refuse a file from which almost nothing fits."""
    own = net.state_dict()
    fitting = {k: v.float() for k, v in state.items() if k in own and own[k].shape == v.shape}
    # A teacher with layers left at random would teach noise; a student's new head is what training is for.
    if len(fitting) < (len(own) if where == "teacher" else len(own) // 2):
        raise RequestError(
            f"{where}.weights: only {len(fitting)} of {len(own)} tensors of {source} fit the model; "
            f"give weights of the same architecture"
        )
    net.load_state_dict(fitting, strict=False)


def _only_detectors(net: Any, name: str, where: str) -> tasks.DetectionModel:
    head = net.model[-1] if hasattr(net, "model") else None
    if type(head) not in (Detect, v10Detect):
        raise RequestError(
            f"{where}: {name} is not a plain detection model (its head is {type(head).__name__}); use e.g. yolo11n"
        )
    if net.model[-1].cv2 is None:
        raise RequestError(f"{where}: {name} was fused for inference; give the unfused checkpoint")
    return net


def _spec(net: tasks.DetectionModel, classes: tuple[str, ...], name: str) -> DetectorSpec:
    head = net.model[-1]
    strides = [int(s) for s in head.stride]
    levels = [f"P{s.bit_length() - 1}" for s in strides]
    widths = [branch[0].conv.in_channels for branch in head.cv2]
    return DetectorSpec(
        family="ultralytics",
        name=name,
        classes=classes,
        level_channels=dict(zip(levels, widths, strict=True)),
        level_strides=dict(zip(levels, strides, strict=True)),
        provides=frozenset({"features", "grid", "detections"}),
        input_channels=int(net.yaml.get("channels", 3)),
        size_multiple=max(strides),
        box_bins=head.reg_max if head.reg_max > 1 else None,
        end_to_end=getattr(head, "one2one_cv2", None) is not None,
        parameters=sum(p.numel() for p in net.parameters()),
    )


def _keep_images(raw: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    return {
        "boxes": raw["boxes"][keep],
        "scores": raw["scores"][keep],
        "feats": [feature[keep] for feature in raw["feats"]],
    }


def _best_pairs(boxes: Tensor, scores: Tensor, options: PredictOptions) -> Detections:
    """Top point-class pairs of a one-to-one branch; (A, 4) and (A, K)."""
    count = min(options.max_detections, scores.shape[0])
    best_points = scores.amax(dim=-1).topk(count).indices
    flat, index = scores[best_points].flatten().topk(count)
    classes = scores.shape[-1]
    return take_top(boxes[best_points[index // classes]], flat, index % classes, options)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
