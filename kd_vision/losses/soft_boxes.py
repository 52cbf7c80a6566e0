"""Any teacher that gives final boxes teaches any student, through the student's own label assignment.

Shapes: B images, A rows of a stage of the student's head, K classes, M boxes of the teacher, P assigned rows,
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
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.assignment import ROWS_PER_BOX, assign_student, known_mask, pseudo_labels_of, split_by_score
from kd_vision.losses.base import DistillationLoss, LossConfig
from kd_vision.losses.box_iou import Kind, iou_distance
from kd_vision.losses.divergence import background_log_chances, categorical_divergence, with_background
from kd_vision.losses.grid import BalancedConfig, balanced, full_precision, images_with_targets, rows_in_boxes

_BELOW_LAST_BIN = 0.01
"""Farther boxes are taken as this much before the last bin, as in ultralytics."""


class SoftBoxesConfig(BalancedConfig):
    """Settings of `SoftBoxes`. The gains are those that dense YOLO heads give their own terms.

    Attributes:
        class_gain: of the class term.
        box_gain: of the overlap term.
        bins_gain: of the term on box bins, for heads that have them.
        score_threshold: boxes of at least this score are objects.
        ignore_threshold: boxes from here up to `score_threshold` may be objects: background inside them teaches
            nothing. Boxes below are taken as not said.
        targets: `soft`: the teacher's class probabilities; `hard`: 1 for the likeliest class.
        box_weight: `score`: boxes count by the teacher's confidence; `one`: all alike.
        kind: which overlap.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"accept": "score_threshold", "doubt": "ignore_threshold"}

    class_gain: float = Field(default=0.5, ge=0.0, allow_inf_nan=False)
    box_gain: float = Field(default=7.5, ge=0.0, allow_inf_nan=False)
    bins_gain: float = Field(default=1.5, ge=0.0, allow_inf_nan=False)
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
    """What one stage of the head is to learn.

    Attributes:
        image: (P,) image of each row that has a box.
        row: (P,) position of that row.
        class_targets: (P, K) class targets; K is 1 for a stage that tells objects only.
        boxes_xyxy: (P, 4) the teacher's boxes.
        weight: (P,) how much each box counts.
        mask: (B, A) bool, rows that take part in the class term.
        row_weight: (P,) how much the class of each box counts; None: all 1.
        class_weight: (K,) the same by class; None: all 1.
        known: (K,) bool, classes the teacher knows; None: all.
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


class SoftBoxes(DistillationLoss):
    """The student learns the teacher's boxes as it learns ground truth, with soft classes and an ignore band.

    The teacher's boxes of score >= score_threshold are handed to the student's own assigner, which pairs rows r with
    boxes m(r) and says how well they fit, a_r. With targets t_r = a_r * q_m(r) (or a_r * one-hot), 0 for
    background:

    L = sum_stages w_stage * (class_gain * L_c + box_gain * L_b + bins_gain * L_d)
    L_c = sum_{r,K} [BCE(s, t) - H(t)] / max(sum t, 1) for sigmoid heads;
    L_c = sum_r KL([1 - sum t, t] || softmax([s_0, s])) / max(rows with a box, n / 4, 1) for softmax heads with a
    background s_0, n the rows that take part;
    L_b = sum_r v_r (1 - CIoU(b_r, b_m)) / max(sum v, 1) with v_r = score_m * a_r (or a_r);
    L_d = sum_r v_r mean_{4 sides} KL(two bins around the teacher's distance || softmax(bins)) / max(sum v, 1).

    Softmax heads, and stages that tell objects only (L_c as for sigmoid heads, also over at least n / 4), look at
    few rows of background: three for each with a box is what SSD mines and the least that Faster R-CNN samples, so
    that the value stays near that of the head's own loss.

    Background rows whose centre lies in a box between the thresholds or in a box to be ignored take no part; nor does
    any row inside ground truth of a class the teacher never learned, nor any column of such a class (softmax heads:
    its probability counts as background). With `balance`, class columns and boxes are weighed as in `class_weights`.

    Shapes: rows (B, A, ...) of each stage to a scalar. Reduction: sums over the teacher's count of objects, so
    the value does not depend on the batch size. Unit: nats and 1 - CIoU. Rightly 0 where nothing takes part.

    Raises:
        RequestError: a channel was not computed.

    Source: pseudo labels with an ignore band as in Efficient Teacher (Xu et al., 2023), soft instead of hard.
    With hard targets and scores of 1 it is the v8 detection loss of ultralytics (Task-aligned assignment of
    Feng et al., ICCV 2021; distribution focal loss of Li et al., NeurIPS 2020) less the entropies
    class_gain * sum H(t) / sum t and bins_gain * sum v mean H(two bins) / sum v, which have no gradient.
    """

    Config: ClassVar[type[LossConfig]] = SoftBoxesConfig
    requires: ClassVar[frozenset[Signal]] = frozenset({"detections"})
    can_be_zero = True

    def __init__(self, config: SoftBoxesConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._settings = config

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        accepted, doubtful = split_by_score(
            pseudo_labels_of(teacher), self._settings.score_threshold, self._settings.ignore_threshold
        )
        stages = [
            stage.weight * self._stage(stage, accepted, doubtful, targets)
            for stage in assign_student(student, accepted)
        ]
        return torch.stack(stages).sum()

    def _stage(self, stage: AssignResult, accepted: PseudoLabels, doubtful: PseudoLabels, targets: Targets) -> Tensor:
        settings = self._settings
        stage_targets = self._stage_targets(stage, accepted, doubtful, targets)
        softmax = stage.raw_predictions.background is not None
        classes = (
            _softmax_term(stage.raw_predictions, stage_targets)
            if softmax
            else _sigmoid_term(stage.raw_predictions, stage_targets, stage.class_agnostic)
        )
        total = settings.class_gain * classes
        # An empty sum keeps the rows in the graph, so that the gradient is 0 rather than missing.
        rows = full_precision(stage.raw_predictions.boxes_at(stage_targets.image, stage_targets.row))
        count = stage_targets.weight.sum().clamp(min=1.0)
        weight = (
            stage_targets.weight
            if stage_targets.row_weight is None
            else stage_targets.weight * stage_targets.row_weight
        )
        distance = iou_distance(rows, stage_targets.boxes_xyxy, settings.kind)
        total = total + settings.box_gain * (weight * distance).sum() / count
        if stage.raw_predictions.box_bins is None or stage.raw_predictions.strides is None:
            return total
        divergence = _bins_divergence(
            stage.raw_predictions.box_bins,
            stage.raw_predictions.strides,
            stage.raw_predictions.centres_xy,
            stage_targets,
        )
        return total + settings.bins_gain * (weight * divergence).sum() / count

    @torch.no_grad()
    def _stage_targets(
        self, stage: AssignResult, accepted: PseudoLabels, doubtful: PseudoLabels, targets: Targets
    ) -> StageTargets:
        settings, dtype = self._settings, full_precision(stage.raw_predictions.logits[:0]).dtype
        mask = self._mask(stage, doubtful, targets)
        image, row = ((stage.matched_idx >= 0) & mask).nonzero(as_tuple=True)
        own = stage.matched_idx[image, row]
        quality = stage.quality[image, row].to(dtype)
        scores = accepted.scores.to(dtype)[own]
        probs, labels = accepted.class_probs.to(dtype), accepted.labels[own]
        if settings.targets == "hard":
            probs = functional.one_hot(accepted.labels, probs.shape[-1]).to(dtype)
            class_targets = torch.ones_like(scores)[:, None] if stage.class_agnostic else probs[own]
        else:
            class_targets = scores[:, None] if stage.class_agnostic else probs[own]
        known = None if stage.class_agnostic else self.known
        class_targets = class_targets * (quality[:, None] if known is None else quality[:, None] * known)
        class_targets = class_targets.clamp(
            0.0, 1.0
        )  # whoever claims more, or less than nothing, would have no entropy
        weights = None
        if settings.balance and not stage.class_agnostic:
            weights = balanced(class_targets.sum(dim=0), settings.balance, known)
        return StageTargets(
            image,
            row,
            class_targets,
            accepted.boxes_xyxy.to(dtype)[own],
            quality * scores if settings.box_weight == "score" else quality,
            mask,
            None if weights is None else weights[labels],
            weights,
            known,
        )

    def _mask(self, stage: AssignResult, doubtful: PseudoLabels, targets: Targets) -> Tensor:
        """Return (B, A) bool: the row takes part in the class term."""
        background = stage.matched_idx == UNMATCHED
        images, centres = len(stage.matched_idx), stage.raw_predictions.centres_xy
        if len(doubtful):
            background &= ~rows_in_boxes(centres, doubtful.image_index, doubtful.boxes_xyxy, images)
        mask = (stage.matched_idx >= 0) | background
        if self.missing_labels:
            mask &= known_mask(centres, targets, self.missing_labels, images)
            if stage.class_agnostic:
                # Nothing tells an unlabelled object of an unknown class from background.
                mask &= images_with_targets(targets, images)[:, None] | (stage.matched_idx >= 0)
        return mask


def _picked(values: Tensor, stage_targets: StageTargets) -> Tensor:
    return full_precision(values[stage_targets.image, stage_targets.row])


def _sigmoid_term(rows: RawPredictions, stage_targets: StageTargets, class_agnostic: bool) -> Tensor:
    logits = full_precision(rows.logits)
    class_targets = torch.zeros_like(logits)
    class_targets[stage_targets.image, stage_targets.row] = stage_targets.class_targets
    weight = stage_targets.mask[..., None].to(logits.dtype)
    entropy: Tensor = torch.special.entr(stage_targets.class_targets) + torch.special.entr(
        1.0 - stage_targets.class_targets
    )
    for columns in (stage_targets.class_weight, stage_targets.known):
        if columns is not None:
            weight, entropy = weight * columns, entropy * columns
    loss = functional.binary_cross_entropy_with_logits(logits, class_targets, weight, reduction="sum")
    count = stage_targets.class_targets.sum().clamp(min=1.0)
    if class_agnostic:
        count = torch.maximum(count, stage_targets.mask.sum() / ROWS_PER_BOX)
    return (loss - entropy.sum()) / count


def _softmax_term(rows: RawPredictions, stage_targets: StageTargets) -> Tensor:
    assert rows.background is not None
    chances = background_log_chances(full_precision(rows.logits), full_precision(rows.background), stage_targets.known)
    loss = categorical_divergence(
        chances[stage_targets.image, stage_targets.row], with_background(stage_targets.class_targets)
    )
    if stage_targets.row_weight is not None:
        loss = loss * stage_targets.row_weight
    empty = stage_targets.mask.clone()
    empty[stage_targets.image, stage_targets.row] = False
    count = (stage_targets.mask.sum() / ROWS_PER_BOX).clamp(min=max(len(stage_targets.row), 1))
    return (loss.sum() - (chances[..., 0] * empty).sum()) / count


def _bins_divergence(bins: Tensor, strides: Tensor, centres_xy: Tensor, stage_targets: StageTargets) -> Tensor:
    """Return (P,): KL of the two bins around each of the teacher's distances to the student's, mean of sides."""
    chances = _picked(bins, stage_targets).log_softmax(dim=-1)
    centres = centres_xy.expand(len(bins), -1, -1)[stage_targets.image, stage_targets.row].to(chances.dtype)
    sides = torch.cat([centres - stage_targets.boxes_xyxy[:, :2], stage_targets.boxes_xyxy[:, 2:] - centres], dim=-1)
    last = chances.shape[-1] - 1
    distance = (sides / strides.to(chances.dtype)[stage_targets.row, None]).clamp(0.0, last - _BELOW_LAST_BIN)
    low = distance.long()
    share = torch.stack([low + 1 - distance, distance - low], dim=-1)
    said = chances.gather(-1, torch.stack([low, low + 1], dim=-1))
    return categorical_divergence(said, share).mean(dim=-1)
