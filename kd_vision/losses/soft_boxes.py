"""Pseudo-label distillation: final boxes of any teacher, through the student's own label assignment.

Shapes: B images, A rows of a stage of the student's head, K classes, M boxes of the teacher, P matched rows,
R bins per box side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import UNMATCHED, AssignResult, RawPredictions, Signal, Signals
from kd_vision.losses.assignment import ROWS_PER_BOX, assign_student, pseudo_labels_of, split_by_score
from kd_vision.losses.base import DistillationLoss, Gain, LossConfig
from kd_vision.losses.box_iou import Kind, iou_distance
from kd_vision.losses.divergence import background_log_probs, categorical_divergence, with_background
from kd_vision.losses.grid import (
    BalancedConfig,
    balanced,
    full_precision,
    images_with_targets,
    known_mask,
    rows_in_boxes,
)

_BELOW_LAST_BIN = 0.01
"""Distances beyond are clamped to this much before the last bin, as in ultralytics."""


class SoftBoxesConfig(BalancedConfig):
    """Settings of `SoftBoxes`. The gains are those that dense YOLO heads give their own terms.

    Attributes:
        class_gain: of the class term.
        box_gain: of the overlap term.
        bins_gain: of the term on box bins, for heads that have them.
        score_threshold: boxes of at least this score are objects.
        ignore_threshold: boxes from here up to `score_threshold` may be objects: background rows inside them take no
            part. Boxes below have no effect.
        targets: `soft`: the teacher's class probabilities; `hard`: 1 for the likeliest class.
        box_weight: `score`: boxes are weighted by the teacher's score; `one`: all alike.
        kind: which overlap.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"accept": "score_threshold", "doubt": "ignore_threshold"}

    class_gain: Gain = 0.5
    box_gain: Gain = 7.5
    bins_gain: Gain = 1.5
    score_threshold: float = Field(default=0.5, gt=0.0, le=1.0)
    ignore_threshold: float = Field(default=0.1, ge=0.0, le=1.0)
    targets: Literal["soft", "hard"] = "soft"
    box_weight: Literal["score", "one"] = "score"
    kind: Kind = "ciou"

    @model_validator(mode="after")
    def _sensible(self) -> SoftBoxesConfig:
        if self.ignore_threshold > self.score_threshold:
            raise ValueError(
                f"ignore_threshold must not be above score_threshold; given {self.ignore_threshold} and "
                f"{self.score_threshold}"
            )
        if self.class_gain == self.box_gain == self.bins_gain == 0.0:
            raise ValueError("class_gain, box_gain and bins_gain are all 0: nothing would be taught")
        return self


@dataclass(frozen=True, slots=True)
class StageTargets:
    """Training targets of one stage of the head.

    Attributes:
        image: (P,) image of each row that is matched with a box.
        row: (P,) position of that row.
        class_targets: (P, K) class targets; K is 1 for a class-agnostic stage.
        boxes_xyxy: (P, 4) the teacher's boxes.
        weight: (P,) weight of each row in the box terms, v_r.
        mask: (B, A) bool, rows that take part in the class term.
        row_weight: (P,) factor of each row by its class, see `BalancedConfig`; None: all 1.
        class_weight: (K,) the same by class; None: all 1.
        known: (K,) bool, classes that the teacher learned; None: all.
    """

    image: Tensor
    row: Tensor
    class_targets: Tensor
    boxes_xyxy: Tensor
    weight: Tensor
    mask: Tensor
    row_weight: Tensor | None
    class_weight: Tensor | None
    known: Tensor | None

    def at(self, values: Tensor) -> Tensor:
        """Return the entries of (B, A, ...) `values` at the matched rows, (P, ...)."""
        return values[self.image, self.row]


class SoftBoxes(DistillationLoss[SoftBoxesConfig]):
    """The detection loss on the teacher's boxes instead of ground truth, with soft classes and an ignore band.

    The student's own assigner matches the teacher's boxes of score >= score_threshold: rows r with boxes m(r), in
    quality a_r. With targets t_r = a_r * q_m(r) (or a_r * one-hot), 0 for background:

    L = sum_stages w_stage * (class_gain * L_c + box_gain * L_b + bins_gain * L_d)
    L_c = sum_{r,K} [BCE(s, t) - H(t)] / max(sum t, 1) for sigmoid heads;
    L_c = sum_r KL([1 - sum t, t] || softmax([s_0, s])) / max(matched rows, n / 4, 1) for softmax heads with a
    background s_0, n the rows that take part;
    L_b = sum_r v_r (1 - CIoU(b_r, b_m)) / max(sum v, 1) with v_r = score_m * a_r (or a_r);
    L_d = sum_r v_r mean_{4 sides} KL(two bins around the teacher's distance || softmax(bins)) / max(sum v, 1).

    Softmax heads, and class-agnostic stages (L_c as for sigmoid heads, also over at least n / 4), sample few rows of
    background: SSD mines three for each matched row, Faster R-CNN samples at least as many. Dividing by n / 4 keeps
    the value near that of the head's own loss.

    Background rows whose centre lies in a box between the thresholds or in an ignored box take no part; nor does any
    row inside ground truth of a class that the teacher never learned, nor any column of such a class (softmax heads:
    its probability counts as background). With `balance`, classes and boxes are weighted as in `class_weights`.

    Shapes: rows (B, A, ...) of each stage to a scalar. Reduction: sums over the teacher's count of objects, so
    the value does not depend on the batch size. Unit: nats and 1 - CIoU. Legitimately 0 where nothing takes part.

    Raises:
        RequestError: a signal was not computed.

    Source: pseudo labels with an ignore band as in Efficient Teacher (Xu et al., 2023), soft instead of hard.
    With hard targets and scores of 1 it is the v8 detection loss of ultralytics (Task-aligned assignment of
    Feng et al., ICCV 2021; distribution focal loss of Li et al., NeurIPS 2020) less the entropies
    class_gain * sum H(t) / sum t and bins_gain * sum v mean H(two bins) / sum v, which have no gradient.
    """

    Config: ClassVar[type[LossConfig]] = SoftBoxesConfig
    requires: ClassVar[frozenset[Signal]] = frozenset({"detections"})
    honours_ignored: ClassVar[bool] = True
    can_be_zero = True

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        objects, ignored = split_by_score(
            pseudo_labels_of(teacher), self.config.score_threshold, self.config.ignore_threshold
        )
        return torch.stack(
            [
                stage.weight * self._stage_loss(stage, self._stage_targets(stage, objects, ignored, targets))
                for stage in assign_student(student, objects)
            ]
        ).sum()

    def _stage_loss(self, stage: AssignResult, stage_targets: StageTargets) -> Tensor:
        config, predictions = self.config, stage.raw_predictions
        classes = (
            _sigmoid_term(predictions, stage_targets, stage.class_agnostic)
            if predictions.background is None
            else _softmax_term(predictions, predictions.background, stage_targets)
        )
        # An empty sum keeps the rows in the graph, so that the gradient is 0 rather than missing.
        boxes = full_precision(predictions.boxes_at(stage_targets.image, stage_targets.row))
        count = stage_targets.weight.sum().clamp(min=1.0)
        balance = stage_targets.row_weight
        weight = stage_targets.weight if balance is None else stage_targets.weight * balance
        distance = iou_distance(boxes, stage_targets.boxes_xyxy, config.kind)
        total = config.class_gain * classes + config.box_gain * (weight * distance).sum() / count
        if predictions.box_bins is None or predictions.strides is None:
            return total
        divergence = _bins_divergence(predictions.box_bins, predictions.strides, predictions.centres_xy, stage_targets)
        return total + config.bins_gain * (weight * divergence).sum() / count

    @torch.no_grad()
    def _stage_targets(
        self, stage: AssignResult, objects: PseudoLabels, ignored: PseudoLabels, targets: Targets
    ) -> StageTargets:
        config, dtype = self.config, full_precision(stage.raw_predictions.logits[:0]).dtype
        mask = self._mask(stage, ignored, targets)
        image, row = ((stage.matched_idx >= 0) & mask).nonzero(as_tuple=True)
        box = stage.matched_idx[image, row]
        quality = stage.quality[image, row].to(dtype)
        scores, probs = objects.scores.to(dtype)[box], objects.class_probs.to(dtype)
        if config.targets == "hard":
            probs = functional.one_hot(objects.labels, probs.shape[-1]).to(dtype)
        known = None if stage.class_agnostic else self.known
        if not stage.class_agnostic:
            class_targets = probs[box]
        else:
            class_targets = (torch.ones_like(scores) if config.targets == "hard" else scores)[:, None]
        class_targets = class_targets * (quality[:, None] if known is None else quality[:, None] * known)
        class_targets = class_targets.clamp(0.0, 1.0)  # the entropy is defined on [0, 1] alone
        weights = None
        if config.balance and not stage.class_agnostic:
            weights = balanced(class_targets.sum(dim=0), config.balance, known)
        return StageTargets(
            image,
            row,
            class_targets,
            objects.boxes_xyxy.to(dtype)[box],
            quality * scores if config.box_weight == "score" else quality,
            mask,
            None if weights is None else weights[objects.labels[box]],
            weights,
            known,
        )

    def _mask(self, stage: AssignResult, ignored: PseudoLabels, targets: Targets) -> Tensor:
        """Return (B, A) bool: the row takes part in the class term."""
        matched, background = stage.matched_idx >= 0, stage.matched_idx == UNMATCHED
        images, centres = len(stage.matched_idx), stage.raw_predictions.centres_xy
        if len(ignored):
            background &= ~rows_in_boxes(centres, ignored.image_index, ignored.boxes_xyxy, images)
        mask = matched | background
        if self.missing_labels:
            mask &= known_mask(centres, targets, self.missing_labels, images)
            if stage.class_agnostic:
                # On an unlabelled image an object of an unknown class cannot be told from background.
                mask &= images_with_targets(targets, images)[:, None] | matched
        return mask


def _sigmoid_term(predictions: RawPredictions, stage_targets: StageTargets, class_agnostic: bool) -> Tensor:
    logits, positive = full_precision(predictions.logits), stage_targets.class_targets
    class_targets = torch.zeros_like(logits)
    class_targets[stage_targets.image, stage_targets.row] = positive
    weight = stage_targets.mask[..., None].to(logits.dtype)
    entropy: Tensor = torch.special.entr(positive) + torch.special.entr(1.0 - positive)
    for columns in (stage_targets.class_weight, stage_targets.known):
        if columns is not None:
            weight, entropy = weight * columns, entropy * columns
    loss = functional.binary_cross_entropy_with_logits(logits, class_targets, weight, reduction="sum")
    count = positive.sum().clamp(min=1.0)
    if class_agnostic:
        count = torch.maximum(count, stage_targets.mask.sum() / ROWS_PER_BOX)
    return (loss - entropy.sum()) / count


def _softmax_term(predictions: RawPredictions, background: Tensor, stage_targets: StageTargets) -> Tensor:
    log_probs = background_log_probs(
        full_precision(predictions.logits), full_precision(background), stage_targets.known
    )
    loss = categorical_divergence(stage_targets.at(log_probs), with_background(stage_targets.class_targets))
    if stage_targets.row_weight is not None:
        loss = loss * stage_targets.row_weight
    unmatched = stage_targets.mask.clone()
    unmatched[stage_targets.image, stage_targets.row] = False
    count = (stage_targets.mask.sum() / ROWS_PER_BOX).clamp(min=max(len(stage_targets.row), 1))
    return (loss.sum() - (log_probs[..., 0] * unmatched).sum()) / count


def _bins_divergence(bins: Tensor, strides: Tensor, centres_xy: Tensor, stage_targets: StageTargets) -> Tensor:
    """Return (P,): KL from the two bins around each of the teacher's distances to the student's bins, mean of sides."""
    log_probs = full_precision(stage_targets.at(bins)).log_softmax(dim=-1)
    centres = stage_targets.at(centres_xy.expand(len(bins), -1, -1)).to(log_probs.dtype)
    sides = torch.cat([centres - stage_targets.boxes_xyxy[:, :2], stage_targets.boxes_xyxy[:, 2:] - centres], dim=-1)
    last = log_probs.shape[-1] - 1
    distance = (sides / strides.to(log_probs.dtype)[stage_targets.row, None]).clamp(0.0, last - _BELOW_LAST_BIN)
    low = distance.long()
    target = torch.stack([low + 1 - distance, distance - low], dim=-1)
    return categorical_divergence(log_probs.gather(-1, torch.stack([low, low + 1], dim=-1)), target).mean(dim=-1)
