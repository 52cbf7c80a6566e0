"""Which of two objects is the surer: the student learns the teacher's order across the batch.

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
from kd_vision.core.spec import DetectorSpec
from kd_vision.losses.assignment import assign_student, known_mask, pseudo_labels_of, split_by_score
from kd_vision.losses.base import DistillationLoss, LossConfig
from kd_vision.losses.grid import full_precision


class RankPairsConfig(LossConfig):
    """Settings of `RankPairs`.

    Attributes:
        score_threshold: boxes of at least this score are ranked. Lower than for labels: an order needs the unsure too.
        margin: two boxes are a pair if the teacher's scores differ by more than this.
        temperature: T > 1 asks for a wider gap between the student's scores.
        boxes: most boxes of a batch that are ranked; of more, every n-th. Work grows with the square.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"accept": "score_threshold"}

    score_threshold: float = Field(default=0.25, gt=0.0, lt=1.0)
    margin: float = Field(default=0.1, ge=0.0, lt=1.0)
    temperature: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    boxes: int = Field(default=512, ge=2)


def ranking_loss(student: Tensor, scores: Tensor, labels: Tensor, margin: float, temperature: float) -> Tensor:
    """Return sum_{i,j} d_ij log(1 + exp(-(s_i - s_j)/T)) / sum d_ij; 0 where there is no pair.

    Args:
        student: s, (M,) log-odds.
        scores: q, (M,) the teacher's.
        labels: (M,); only boxes of one class are compared, because mAP ranks each class alone.
        margin: d_ij = q_i - q_j where that is above the margin, else the pair does not count.
        temperature: T.
    """
    difference = scores[:, None] - scores
    weight = difference * ((difference > margin) & (labels[:, None] == labels))
    loss = functional.softplus((student - student[:, None]) / temperature)
    total = weight.sum()
    return (weight * loss).sum() / torch.where(total > 0, total, 1.0)


class RankPairs(DistillationLoss):
    """Of two objects of a class, anywhere in the batch, the student is surer of the one the teacher is surer of.

    L = sum_stages w_stage sum_{i,j} d_ij log(1 + exp(-(s_i - s_j)/T)) / sum_{i,j} d_ij over pairs of the teacher's
    boxes of one class with d_ij = q_i - q_j > margin. s_m is the highest log-odds that a row gives the class
    of box m, among those that the student's own assigner pairs with it.

    mAP depends on scores through their order alone; this term teaches nothing else. It has no minimum: the gap of a
    pair is widened as long as it lasts, so it should stand beside a class term.

    Shapes: rows (B, A, ...) of each stage to a scalar. Reduction: weighted mean over pairs, so the value does not
    depend on the batch size. Unit: nats. Rightly 0 where there is no pair.

    Raises:
        RequestError: a channel was not computed.

    Source: RankNet (Burges et al., ICML 2005) with the teacher's order; the weighting and the pairs are ours.
    """

    Config: ClassVar[type[LossConfig]] = RankPairsConfig
    requires: ClassVar[frozenset[Signal]] = frozenset({"detections"})
    can_be_zero = True

    def __init__(self, config: RankPairsConfig, student: DetectorSpec, teacher: DetectorSpec) -> None:
        super().__init__(config, student, teacher)
        self._settings = config

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        """Return the scalar loss."""
        settings = self._settings
        ranked, _ = split_by_score(pseudo_labels_of(teacher), settings.score_threshold, settings.score_threshold)
        if len(ranked) > settings.boxes:
            picked = torch.linspace(0, len(ranked) - 1, settings.boxes, device=ranked.scores.device)
            ranked = ranked.take(picked.long())
        stages = [stage.weight * self._stage(stage, ranked, targets) for stage in assign_student(student, ranked)]
        return torch.stack(stages).sum()

    def _stage(self, stage: AssignResult, ranked: PseudoLabels, targets: Targets) -> Tensor:
        mask = known_mask(stage.raw_predictions.centres_xy, targets, self.missing_labels, len(stage.matched_idx))
        image, row = ((stage.matched_idx >= 0) & mask).nonzero(as_tuple=True)
        own = stage.matched_idx[image, row]
        label = torch.zeros_like(own) if stage.class_agnostic else ranked.labels[own]
        odds = _log_odds(stage, image, row, label)
        best = odds.new_full((len(ranked),), float("-inf")).scatter_reduce(0, own, odds, "amax")
        found = best > float("-inf")
        return ranking_loss(
            best[found],
            ranked.scores[found].to(best.dtype),
            ranked.labels[found],
            self._settings.margin,
            self._settings.temperature,
        )


def _log_odds(stage: AssignResult, image: Tensor, row: Tensor, label: Tensor) -> Tensor:
    """Return (P,) log(p / (1 - p)) of the label at each row."""
    logits = full_precision(stage.raw_predictions.logits[image, row])
    own = logits.gather(1, label[:, None]).squeeze(1)
    if stage.raw_predictions.background is None:
        return own
    others = logits.scatter(1, label[:, None], float("-inf"))
    rest = torch.cat([full_precision(stage.raw_predictions.background[image, row])[:, None], others], dim=1)
    return own - rest.logsumexp(dim=1)
