"""Ranking distillation between objects: the teacher's order of scores across the batch (RankNet).

Shapes: B images, A rows of a stage of the student's head, K classes, M boxes of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.predictions import AssignResult, Signal, Signals
from kd_vision.losses.assignment import assign_student, pseudo_labels_of, split_by_score
from kd_vision.losses.base import DistillationLoss, LossConfig, Temperature
from kd_vision.losses.grid import full_precision, known_mask


class RankPairsConfig(LossConfig):
    """Settings of `RankPairs`.

    Attributes:
        score_threshold: boxes of at least this score are ranked; lower than for labels, because an order also
            needs the boxes of low score.
        margin: two boxes are a pair if the teacher's scores differ by more than this.
        temperature: T > 1 keeps the gradient up to a wider gap of the student's scores.
        boxes: maximum of boxes ranked per batch; of more, every n-th is taken. The cost is quadratic.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"accept": "score_threshold"}

    score_threshold: float = Field(default=0.25, gt=0.0, lt=1.0)
    margin: float = Field(default=0.1, ge=0.0, lt=1.0)
    temperature: Temperature = 1.0
    boxes: int = Field(default=512, ge=2)


def ranking_loss(student: Tensor, scores: Tensor, labels: Tensor, margin: float, temperature: float) -> Tensor:
    """Return sum_{i,j} d_ij log(1 + exp(-(s_i - s_j)/T)) / sum d_ij; 0 where there is no pair.

    There is no factor T^2. In losses that soften both sides it cancels a gradient that falls with 1/T^2; here only
    the student's side is divided by T and the gradient of a pair, at most d_ij / T, falls with 1/T.

    Args:
        student: s, (M,) log-odds.
        scores: q, (M,) the teacher's.
        labels: (M,); only boxes of one class are compared, because mAP ranks each class alone.
        margin: d_ij = q_i - q_j where that is above the margin, else 0.
        temperature: T.
    """
    difference = scores[:, None] - scores
    weight = difference * ((difference > margin) & (labels[:, None] == labels))
    loss = functional.softplus((student - student[:, None]) / temperature)
    total = weight.sum()
    return (weight * loss).sum() / torch.where(total > 0, total, 1.0)


class RankPairs(DistillationLoss[RankPairsConfig]):
    """Pairwise logistic loss on the order of the teacher's scores of objects of one class, across the batch.

    L = sum_stages w_stage sum_{i,j} d_ij log(1 + exp(-(s_i - s_j)/T)) / sum_{i,j} d_ij over pairs of the teacher's
    boxes of one class with d_ij = q_i - q_j > margin. s_m is the highest log-odds of the class of box m among the
    rows that the student's own assigner matches with it.

    mAP depends on scores through their order alone, and this term compares nothing else. It has no minimum: it widens
    the gap of a pair without limit, so it should stand beside a class term.

    Shapes: rows (B, A, ...) of each stage to a scalar. Reduction: weighted mean over pairs, so the value does not
    depend on the batch size. Unit: nats. Legitimately 0 where there is no pair.

    Raises:
        RequestError: a signal was not computed.

    Source: RankNet (Burges et al., ICML 2005) with the teacher's order; the weighting and the pairs are ours.
    """

    Config: ClassVar[type[LossConfig]] = RankPairsConfig
    requires: ClassVar[frozenset[Signal]] = frozenset({"detections"})
    honours_ignored: ClassVar[bool] = True
    can_be_zero = True

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        config = self.config
        ranked, _ = split_by_score(pseudo_labels_of(teacher), config.score_threshold, config.score_threshold)
        if len(ranked) > config.boxes:
            chosen = torch.linspace(0, len(ranked) - 1, config.boxes, device=ranked.scores.device)
            ranked = ranked.take(chosen.long())
        stages = [stage.weight * self._stage(stage, ranked, targets) for stage in assign_student(student, ranked)]
        return torch.stack(stages).sum()

    def _stage(self, stage: AssignResult, ranked: PseudoLabels, targets: Targets) -> Tensor:
        mask = known_mask(stage.raw_predictions.centres_xy, targets, self.missing_labels, len(stage.matched_idx))
        image, row = ((stage.matched_idx >= 0) & mask).nonzero(as_tuple=True)
        box = stage.matched_idx[image, row]
        label = torch.zeros_like(box) if stage.class_agnostic else ranked.labels[box]
        odds = _log_odds(stage, image, row, label)
        best = odds.new_full((len(ranked),), float("-inf")).scatter_reduce(0, box, odds, "amax")
        matched = best > float("-inf")
        return ranking_loss(
            best[matched],
            ranked.scores[matched].to(best.dtype),
            ranked.labels[matched],
            self.config.margin,
            self.config.temperature,
        )


def _log_odds(stage: AssignResult, image: Tensor, row: Tensor, label: Tensor) -> Tensor:
    """Return (P,) log(p / (1 - p)) of the label at each row."""
    logits = full_precision(stage.raw_predictions.logits[image, row])
    logit = logits.gather(1, label[:, None]).squeeze(1)
    if stage.raw_predictions.background is None:
        return logit
    others = logits.scatter(1, label[:, None], float("-inf"))
    rest = torch.cat([full_precision(stage.raw_predictions.background[image, row])[:, None], others], dim=1)
    return logit - rest.logsumexp(dim=1)
