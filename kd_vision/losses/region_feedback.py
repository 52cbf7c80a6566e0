"""The teacher grades the boxes that the student itself proposes.

Shapes: B images, A rows of the student's head, N boxes proposed per image, K classes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kd_vision.core.batch import Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import RawPredictions, RoIPredictions, Signal, Signals
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.assignment import ROWS_PER_BOX, known_mask
from kd_vision.losses.base import DistillationLoss, LossConfig
from kd_vision.losses.box_iou import Kind, iou_distance
from kd_vision.losses.divergence import (
    background_log_chances,
    binary_divergence_to,
    categorical_divergence,
    with_background,
)
from kd_vision.losses.grid import full_precision

_LEAST_SIDE = 1.0
"""Pixels; boxes that the teacher mends to less are not regressed to."""


class RegionFeedbackConfig(LossConfig):
    """Settings of `RegionFeedback`.

    Attributes:
        boxes: N, how many of its boxes the student shows per image.
        random_share: this share of them is drawn at random from all rows, so that background is graded too;
            the others are those the student is surest of, without suppression.
        class_gain: of the class term; 0.5 as in dense YOLO heads.
        box_gain: of the overlap term; 7.5 as in dense YOLO heads.
        kind: which overlap.
    """

    boxes: int = Field(default=64, ge=1)
    random_share: float = Field(default=0.0, ge=0.0, le=1.0)
    class_gain: float = Field(default=0.5, ge=0.0, allow_inf_nan=False)
    box_gain: float = Field(default=7.5, ge=0.0, allow_inf_nan=False)
    kind: Kind = "giou"

    @model_validator(mode="after")
    def _teaches(self) -> RegionFeedbackConfig:
        if self.class_gain == self.box_gain == 0.0:
            raise ValueError("class_gain and box_gain are both 0: nothing would be taught")
        return self


class RegionFeedback(DistillationLoss):
    """The student shows its boxes, the teacher says what it sees there and where the box should be.

    For the N rows r of each image that the student is surest of, with the teacher's probabilities q_r and mended
    boxes b'_r of their (detached) boxes, and u_r = max_c q_r:

    L = class_gain * L_c + box_gain * L_b
    L_c = sum_{r,K} (BCE(s, q) - H(q)) / max(sum u, 1) for sigmoid heads;
    L_c = sum_r KL([1 - sum q, q] || softmax([s_0, s])) / max(sum u, n / 4, 1) for softmax heads with a background
    s_0, n the rows that take part (see `SoftBoxes`);
    L_b = sum_r u_r (1 - GIoU(b_r, b'_r)) / max(sum u, 1).

    What the student invents is graded down, what it places badly is mended; objects that it overlooks altogether
    are not seen, so another term should stand beside. Boxes mended to less than a pixel are left out of L_b.
    Rows inside ground truth of classes the teacher never learned, and these classes' columns, take no part
    (softmax heads: their probability counts as background).

    Shapes: rows (B, A, ...) to a scalar. Reduction: sum over the teacher's count of objects among the boxes, so
    the value does not depend on the batch size. Unit: nats and 1 - GIoU.

    Raises:
        RequestError: a channel was not computed.

    Source: the teacher's region head on the student's proposals as in Chen et al., NeurIPS 2017, section 3.1,
    there for two-stage pairs; here any student proposes and any teacher grades. Mended boxes as targets are ours.
    """

    Config: ClassVar[type[LossConfig]] = RegionFeedbackConfig
    requires: ClassVar[frozenset[Signal]] = frozenset({"regions"})

    def __init__(self, config: RegionFeedbackConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._settings = config

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        if student.raw_predictions is None or teacher.refine_regions is None:
            raise RequestError("the channel 'regions' was not computed; ask the detectors for it")
        rows, settings = student.raw_predictions(), self._settings
        image, row = self._shown(rows)
        boxes = full_precision(rows.boxes_at(image, row))
        with torch.no_grad():
            graded: RoIPredictions = teacher.refine_regions(boxes.detach())
            class_targets = graded.class_probs.to(boxes.dtype)
            class_targets = class_targets if self.known is None else class_targets * self.known
            mask = known_mask(rows.centres_xy, targets, self.missing_labels, len(rows.logits))[image, row]
            mended = graded.boxes_xyxy.to(boxes.dtype)
            sure = class_targets.amax(dim=-1) * mask
            # Of a box of no extent only the class can be graded: overlap has no bounded slope there.
            firm = sure * ((mended[..., 2:] - mended[..., :2]).amin(dim=-1) >= _LEAST_SIDE)
        logits = full_precision(rows.logits[image, row])
        background = None if rows.background is None else full_precision(rows.background[image, row])
        classes = self._class_divergence(logits, background, class_targets)
        distance = iou_distance(boxes, mended, settings.kind)
        count = sure.sum().clamp(min=1.0)
        most = count if background is None else torch.maximum(count, mask.sum() / ROWS_PER_BOX)
        return settings.class_gain * (mask * classes).sum() / most + settings.box_gain * (firm * distance).sum() / count

    @torch.no_grad()
    def _shown(self, rows: RawPredictions) -> tuple[Tensor, Tensor]:
        """Return image (B, 1) and row (B, N) of the boxes that the student shows."""
        logits, settings = full_precision(rows.logits), self._settings
        if rows.background is None:
            key = logits.amax(dim=-1)
        else:
            key = background_log_chances(logits, full_precision(rows.background))[..., 1:].amax(dim=-1)
        count = min(settings.boxes, key.shape[1])
        drawn = round(count * settings.random_share)
        chosen = key.topk(count - drawn, dim=1).indices
        if drawn:
            lots = torch.rand_like(key).scatter_(1, chosen, -1.0)
            chosen = torch.cat([chosen, lots.topk(drawn, dim=1).indices], dim=1)
        return torch.arange(len(key), device=key.device)[:, None], chosen

    def _class_divergence(self, logits: Tensor, background: Tensor | None, class_targets: Tensor) -> Tensor:
        """Return (B, N) how far the student's classes are from the teacher's."""
        if background is None:
            divergence = binary_divergence_to(logits, class_targets)
            return (divergence if self.known is None else divergence * self.known).sum(dim=-1)
        return categorical_divergence(
            background_log_chances(logits, background, self.known), with_background(class_targets)
        )
