"""The teacher classifies and refines the boxes that the student proposes.

Shapes: B images, A rows of the student's head, N boxes proposed per image, K classes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.predictions import RawPredictions, RoIPredictions, Signal, Signals
from kd_vision.losses.assignment import ROWS_PER_BOX
from kd_vision.losses.base import DistillationLoss, Gain, LossConfig, computed
from kd_vision.losses.box_iou import Kind, iou_distance
from kd_vision.losses.divergence import (
    background_log_probs,
    binary_divergence_to,
    categorical_divergence,
    with_background,
)
from kd_vision.losses.grid import full_precision, known_mask

_LEAST_SIDE = 1.0
"""Pixels; refined boxes with a shorter side are no targets of the box term."""


class RegionFeedbackConfig(LossConfig):
    """Settings of `RegionFeedback`.

    Attributes:
        boxes: N, proposals of the student per image.
        random_share: this share of them is drawn at random from all rows, so that background is sampled too;
            the others are the rows of the highest score, without NMS.
        class_gain: of the class term; 0.5 as in dense YOLO heads.
        box_gain: of the overlap term; 7.5 as in dense YOLO heads.
        kind: which overlap.
    """

    boxes: int = Field(default=64, ge=1)
    random_share: float = Field(default=0.0, ge=0.0, le=1.0)
    class_gain: Gain = 0.5
    box_gain: Gain = 7.5
    kind: Kind = "giou"

    @model_validator(mode="after")
    def _some_gain(self) -> RegionFeedbackConfig:
        if self.class_gain == self.box_gain == 0.0:
            raise ValueError("class_gain and box_gain are both 0: nothing would be taught")
        return self


class RegionFeedback(DistillationLoss[RegionFeedbackConfig]):
    """The student learns the teacher's classes and refinements of its own proposals.

    For the N rows r of each image with the student's highest scores, with the teacher's probabilities q_r and refined
    boxes b'_r of their (detached) boxes, and u_r = max_c q_r:

    L = class_gain * L_c + box_gain * L_b
    L_c = sum_{r,K} (BCE(s, q) - H(q)) / max(sum u, 1) for sigmoid heads;
    L_c = sum_r KL([1 - sum q, q] || softmax([s_0, s])) / max(sum u, n / 4, 1) for softmax heads with a background
    s_0, n the rows that take part (see `SoftBoxes`);
    L_b = sum_r u_r (1 - GIoU(b_r, b'_r)) / max(sum u, 1).

    Corrects the student's false positives and badly placed boxes. Objects without a proposal get no target, so
    another term should stand beside. Boxes refined to less than a pixel are left out of L_b. Rows inside ground truth
    of classes that the teacher never learned, and these classes' columns, take no part (softmax heads: their
    probability counts as background).

    Shapes: rows (B, A, ...) to a scalar. Reduction: sum over the teacher's count of objects among the boxes, so
    the value does not depend on the batch size. Unit: nats and 1 - GIoU.

    Raises:
        RequestError: a signal was not computed.

    Source: the teacher's region head on the student's proposals as in Chen et al., NeurIPS 2017, section 3.1,
    there for two-stage pairs; here for any student and any teacher. Refined boxes as targets are ours.
    """

    Config: ClassVar[type[LossConfig]] = RegionFeedbackConfig
    requires: ClassVar[frozenset[Signal]] = frozenset({"regions"})

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        config = self.config
        rows = computed(student.raw_predictions, "regions", "student")()
        refine = computed(teacher.refine_regions, "regions", "teacher")
        image, row = self._proposals(rows)
        boxes = full_precision(rows.boxes_at(image, row))
        with torch.no_grad():
            refined: RoIPredictions = refine(boxes.detach())
            class_targets = refined.class_probs.to(boxes.dtype)
            class_targets = class_targets if self.known is None else class_targets * self.known
            mask = known_mask(rows.centres_xy, targets, self.missing_labels, len(rows.logits))[image, row]
            box_targets = refined.boxes_xyxy.to(boxes.dtype)
            confidence = class_targets.amax(dim=-1) * mask
            # The gradient of the overlap with a box of no extent is unbounded; such a box has a class target only.
            sides = (box_targets[..., 2:] - box_targets[..., :2]).amin(dim=-1)
            box_weight = confidence * (sides >= _LEAST_SIDE)
        logits = full_precision(rows.logits[image, row])
        background = None if rows.background is None else full_precision(rows.background[image, row])
        classes = (mask * self._class_divergence(logits, background, class_targets)).sum()
        distance = (box_weight * iou_distance(boxes, box_targets, config.kind)).sum()
        count = confidence.sum().clamp(min=1.0)
        class_count = count if background is None else torch.maximum(count, mask.sum() / ROWS_PER_BOX)
        return config.class_gain * classes / class_count + config.box_gain * distance / count

    @torch.no_grad()
    def _proposals(self, rows: RawPredictions) -> tuple[Tensor, Tensor]:
        """Return image (B, 1) and row (B, N) of the student's proposals."""
        logits, config = full_precision(rows.logits), self.config
        if rows.background is None:
            score = logits.amax(dim=-1)
        else:
            score = background_log_probs(logits, full_precision(rows.background))[..., 1:].amax(dim=-1)
        count = min(config.boxes, score.shape[1])
        drawn = round(count * config.random_share)
        chosen = score.topk(count - drawn, dim=1).indices
        if drawn:
            lots = torch.rand_like(score).scatter_(1, chosen, -1.0)
            chosen = torch.cat([chosen, lots.topk(drawn, dim=1).indices], dim=1)
        return torch.arange(len(score), device=score.device)[:, None], chosen

    def _class_divergence(self, logits: Tensor, background: Tensor | None, class_targets: Tensor) -> Tensor:
        """Return (B, N): KL from the student's classes to the teacher's."""
        if background is None:
            divergence = binary_divergence_to(logits, class_targets)
            return (divergence if self.known is None else divergence * self.known).sum(dim=-1)
        return categorical_divergence(
            background_log_probs(logits, background, self.known), with_background(class_targets)
        )
