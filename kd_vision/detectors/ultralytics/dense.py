"""Dense heads of ultralytics: one prediction per grid point, YOLO v3 to v12 and 26.

Shapes: B images, A grid points, K classes, R bins, M boxes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import (
    ONE_TO_MANY,
    ONE_TO_ONE,
    AssignResult,
    BatchDetections,
    DetectorOutput,
    GridPredictions,
    PredictOptions,
    RawPredictions,
    RoIPredictions,
    Signal,
)
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.dense import refine_by_grid
from kd_vision.detectors.postprocess import nms, top_k
from kd_vision.detectors.ultralytics.assign import assign_aligned
from kd_vision.detectors.ultralytics.common import FamilyDetector, family_targets

_BRANCHES = {"one2many": ONE_TO_MANY, "one2one": ONE_TO_ONE}
_O2M_FIRST, _O2M_LAST = 0.8, 0.1


class UltralyticsDetector(FamilyDetector):
    """A detection model with a dense head; see `FamilyDetector` for the arguments."""

    def __init__(self, net: tasks.DetectionModel, classes: Sequence[str], name: str) -> None:
        super().__init__(net, classes, name)
        self._criterion: v8DetectionLoss | E2ELoss | None = None
        self._grid_cache: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._progress = 0.0
        self.train(net.training)

    def train(self, mode: bool = True) -> UltralyticsDetector:
        """Set the mode; the head itself always returns raw predictions, which the adapter decodes."""
        super().train(mode)
        self.head.training = True  # the flag of this one module: its BatchNorm children keep `mode`
        return self

    def _describe(self, classes: tuple[str, ...], name: str) -> DetectorSpec:
        head = self.head
        strides = [int(s) for s in head.stride]
        levels = [f"P{s.bit_length() - 1}" for s in strides]
        widths = [branch[0].conv.in_channels for branch in head.cv2]
        return DetectorSpec(
            family="ultralytics",
            name=name,
            classes=classes,
            level_channels=dict(zip(levels, widths, strict=True)),
            level_strides=dict(zip(levels, strides, strict=True)),
            provides=frozenset({"features", "grid", "regions", "detections"}),
            input_channels=int(self.net.yaml.get("channels", 3)),
            size_multiple=max(strides),
            box_bins=head.reg_max if head.reg_max > 1 else None,
            end_to_end=getattr(head, "one2one_cv2", None) is not None,
            parameters=sum(p.numel() for p in self.net.parameters()),
        )

    def set_progress(self, done: float) -> None:
        """Shift the loss weights of an end-to-end head from one-to-many to one-to-one, as ultralytics does."""
        self._progress = done

    def forward(
        self,
        images: Tensor,
        targets: Targets | None = None,
        labelled: Tensor | None = None,
        signals: frozenset[Signal] = frozenset(),
    ) -> DetectorOutput:
        """See `Detector.forward`."""
        predictions = self._raw(images)
        losses = {} if targets is None else self._task_losses(predictions, targets, labelled, images)
        features: dict[str, Tensor] = {}
        if "features" in signals:
            maps = predictions["one2many"]["feats"]
            features = dict(zip(self.spec.level_strides, maps, strict=True))
        grids: dict[str, GridPredictions] = {}
        if "grid" in signals:
            grids = {_BRANCHES[key]: self._grid(value) for key, value in predictions.items()}
        with_boxes, with_regions = "detections" in signals, "regions" in signals
        return DetectorOutput(
            task_losses=losses,
            features=features,
            grids=grids,
            branch_weights=self._branch_weights(),
            postprocess=partial(self._postprocess, predictions) if with_boxes else None,
            assign=partial(self._assign, predictions) if with_boxes else None,
            raw_predictions=partial(self._raw_predictions, predictions["one2many"]) if with_regions else None,
            refine_regions=partial(self._refine_regions, predictions) if with_regions else None,
        )

    def raw_outputs(self, images: Tensor) -> Any:
        """See `Detector.raw_outputs`."""
        return self._raw(images)

    def export_module(self, nms_free: bool | None = None) -> nn.Module:
        """See `Detector.export_module`."""
        net = self._frozen_copy()
        head = net.model[-1]
        if self.spec.end_to_end:
            head.end2end = nms_free is not False
        fused: nn.Module = net.fuse(verbose=False)
        head.export, head.format, head.training = True, "onnx", False
        return fused

    @torch.no_grad()
    def _postprocess(self, predictions: Mapping[str, Any], options: PredictOptions) -> BatchDetections:
        """Return the final boxes in input pixels, from the branch that inference uses."""
        grid = self._inference_grid(predictions)
        # Image by image: vectorised functions round the last bit by the position in memory.
        scores = torch.stack([logits.float().sigmoid() for logits in grid.logits])
        if not self.spec.end_to_end:
            return nms(grid.boxes_xyxy, scores, options)
        # As ultralytics: the best points first, then the best pairs of point and class among them.
        count = min(options.max_detections, scores.shape[1])
        best = scores.amax(dim=-1).topk(count, dim=1).indices[..., None]
        return top_k(grid.boxes_xyxy.take_along_dim(best, 1), scores.take_along_dim(best, 1), options, limit=count)

    def _refine_regions(self, predictions: Mapping[str, Any], boxes_xyxy: Tensor) -> RoIPredictions:
        return refine_by_grid(self._inference_grid(predictions), boxes_xyxy)

    def _inference_grid(self, predictions: Mapping[str, Any]) -> GridPredictions:
        return self._grid(predictions["one2one" if self.spec.end_to_end else "one2many"])

    def _assign(self, predictions: Mapping[str, Any], pseudo_labels: PseudoLabels) -> tuple[AssignResult, ...]:
        """Assign boxes to the points of each branch by the assigner of ultralytics' own loss."""
        criterion = self._loss_function()
        branches = {"one2many": criterion}
        if isinstance(criterion, E2ELoss):
            branches = {"one2many": criterion.one2many, "one2one": criterion.one2one}
        weights = self._branch_weights()
        results = []
        for key, loss in branches.items():
            raw = self._raw_predictions(predictions[key])
            index, quality = assign_aligned(loss.assigner, raw, pseudo_labels)
            results.append(AssignResult(raw, index, quality, _BRANCHES[key], weights[_BRANCHES[key]]))
        return tuple(results)

    def _raw(self, images: Tensor) -> dict[str, dict[str, Any]]:
        """Run the net once; return raw head outputs by branch, in the names that ultralytics uses."""
        predictions: dict[str, Any] = self.net(images)
        return predictions if "one2many" in predictions else {"one2many": predictions}

    def _grid(self, raw: Mapping[str, Any]) -> GridPredictions:
        points, strides = self._points(raw["feats"])
        sides = raw["boxes"].permute(0, 2, 1).float()
        boxes = self._decode(sides, points, strides)
        bins = self._bins(sides) if self.head.reg_max > 1 else None
        return GridPredictions(raw["scores"].permute(0, 2, 1), boxes, points, strides, bins)

    def _raw_predictions(self, raw: Mapping[str, Any]) -> RawPredictions:
        """Return raw predictions with boxes without gradient: losses use few of them and decode those with gradient."""
        points, strides = self._points(raw["feats"])
        sides = raw["boxes"].permute(0, 2, 1)
        with torch.no_grad():
            boxes = self._decode(sides.float(), points, strides)
        has_bins = self.head.reg_max > 1
        return RawPredictions(
            raw["scores"].permute(0, 2, 1),
            boxes,
            points[None],
            box_bins=self._bins(sides) if has_bins else None,
            strides=strides if has_bins else None,
            decode=lambda image, row: self._decode(sides[image, row].float(), points[row], strides[row]),
        )

    def _bins(self, sides: Tensor) -> Tensor:
        """Reshape (..., 4 R), whose first axes may be empty, to (..., 4, R)."""
        return sides.reshape(*sides.shape[:-1], 4, self.head.reg_max)

    def _decode(self, sides: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        """Decode the distances of points to their box sides, (..., A, 4) or bins (..., A, 4 R), to boxes."""
        if self.head.reg_max > 1:
            values = torch.arange(self.head.reg_max, dtype=sides.dtype, device=sides.device)
            with torch.autocast(sides.device.type, enabled=False):  # half precision would shift edges by pixels
                sides = self._bins(sides).softmax(-1) @ values
        sides = sides * strides[..., None]
        return torch.cat((points - sides[..., :2], points + sides[..., 2:]), dim=-1)

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
        """Compute ultralytics' own losses, as means over the labelled images."""
        if labelled is not None and not bool(labelled.all()):
            if not bool(labelled.any()):
                return {}
            predictions = {key: _keep_images(value, labelled) for key, value in predictions.items()}
        height, width = images.shape[-2:]
        truth = family_targets(targets, labelled, (height, width))
        index = truth.image_index if labelled is None else (labelled.cumsum(0) - 1)[truth.image_index]
        batch = {"batch_idx": index.float(), "cls": truth.labels.float()[:, None], "bboxes": truth.boxes_cxcywh}
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
        twin = type(self)(copy.deepcopy(self.net, memo), self.spec.classes, self.spec.name)
        twin._progress = self._progress
        return twin


def _keep_images(raw: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    return {
        "boxes": raw["boxes"][keep],
        "scores": raw["scores"][keep],
        "feats": [feature[keep] for feature in raw["feats"]],
    }
