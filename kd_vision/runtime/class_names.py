"""Class names of COCO, for ONNX files that do not record their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_vision.core.errors import RequestError, suggest

COCO80: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
"""In label order, as most detectors are trained."""

_UNUSED_IDS = frozenset({0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
_names = iter(COCO80)
COCO91: tuple[str, ...] = tuple(f"unused {i}" if i in _UNUSED_IDS else next(_names) for i in range(91))
"""By COCO's category id from 0 to 90, the labels of torchvision's and DETR's detectors."""

CLASS_SETS: Mapping[str, tuple[str, ...]] = {"coco80": COCO80, "coco91": COCO91}
"""Class names by the short word that stands for them in a config."""


def class_names(declared: Sequence[str] | str | None, output_format: str | None, path: Path) -> tuple[str, ...] | None:
    """Return declared class names in label order; None: none are declared.

    Args:
        declared: names, or a key of `CLASS_SETS`.
        output_format: declared format; the labels of `torchvision` start after the background.
        path: for messages.

    Raises:
        RequestError: the short word is unknown, or not the labels of the format.
    """
    if declared is None or not isinstance(declared, str):
        return None if declared is None else tuple(declared)
    if declared not in CLASS_SETS:
        raise RequestError(
            f"{path}: classes: '{declared}' is neither a list nor a known set{suggest(declared, CLASS_SETS)}"
        )
    if output_format != "torchvision":
        return CLASS_SETS[declared]
    if declared == "coco80":
        raise RequestError(
            f"{path}: classes: the labels of torchvision's COCO detectors are COCO's category ids; use coco91, or "
            f"list the names"
        )
    return CLASS_SETS[declared][1:]  # 0 is the background
