"""Distillation losses: one file each, one line each in `LOSSES`. Importing this package loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.lazy import load_attribute

if TYPE_CHECKING:
    from kd_vision.losses.base import DistillationLoss


@dataclass(frozen=True)
class LossEntry:
    """One line of the table.

    Attributes:
        path: ``module:class`` of the loss.
        summary: what it compares, in a few words for people.
    """

    path: str
    summary: str


LOSSES: dict[str, LossEntry] = {
    "soft_boxes": LossEntry(
        "kd_vision.losses.soft_boxes:SoftBoxes",
        "final boxes of any teacher, as soft pseudo labels through the student's own label assignment",
    ),
    "class_bce": LossEntry(
        "kd_vision.losses.class_bce:ClassBCE",
        "class scores: sigmoid cross-entropy minus the teacher's entropy",
    ),
    "class_qfl": LossEntry(
        "kd_vision.losses.class_qfl:ClassQFL", "class scores: quality focal, most where the two disagree"
    ),
    "class_kl": LossEntry("kd_vision.losses.class_kl:ClassKL", "class scores: softmax KL with temperature"),
    "class_weighted_soft": LossEntry(
        "kd_vision.losses.class_weighted_soft:ClassWeightedSoft",
        "class scores: weighted classes, lower weight where ground truth contradicts the teacher",
    ),
    "hinton": LossEntry("kd_vision.losses.hinton:Hinton", "class scores: alpha * hard labels + (1 - alpha) * T^2 * KL"),
    "feature_mse": LossEntry(
        "kd_vision.losses.feature_mse:FeatureMSE", "feature maps: mean squared error after a linear adapter"
    ),
    "feature_pkd": LossEntry(
        "kd_vision.losses.feature_pkd:FeaturePKD", "feature maps: Pearson correlation per channel"
    ),
    "feature_cwd": LossEntry("kd_vision.losses.feature_cwd:FeatureCWD", "feature maps: channel-wise KL over positions"),
    "feature_at": LossEntry(
        "kd_vision.losses.feature_at:FeatureAT", "feature maps: where the energy is (attention transfer)"
    ),
    "feature_sl2": LossEntry(
        "kd_vision.losses.feature_sl2:FeatureSL2",
        "feature maps: L2 weighted by the teacher's scores, as ultralytics ships",
    ),
    "box_iou": LossEntry(
        "kd_vision.losses.box_iou:BoxIoU", "boxes: 1 - IoU to the teacher's box, weighted by its score"
    ),
    "box_ld": LossEntry(
        "kd_vision.losses.box_ld:BoxLD",
        "boxes: KL between distributions over box bins (localisation distillation)",
    ),
    "box_bounded": LossEntry(
        "kd_vision.losses.box_bounded:BoxBounded",
        "boxes: regression to ground truth only where the student is worse than the teacher",
    ),
    "region_feedback": LossEntry(
        "kd_vision.losses.region_feedback:RegionFeedback",
        "regions: the teacher classifies and refines the boxes that the student proposes",
    ),
    "rank_list": LossEntry(
        "kd_vision.losses.rank_list:RankList",
        "ranking: which of an object's candidates is best (softmax KL per object)",
    ),
    "rank_pairs": LossEntry(
        "kd_vision.losses.rank_pairs:RankPairs", "ranking: which of two objects of a class the teacher scores higher"
    ),
}


def load_loss(name: str) -> type[DistillationLoss]:
    """Import and return the loss called `name` in the table.

    Raises:
        RequestError: no loss has this name.
    """
    if name not in LOSSES:
        raise RequestError(f"loss '{name}' is unknown{suggest(name, LOSSES)}")
    return cast("type[DistillationLoss]", load_attribute(LOSSES[name].path))
