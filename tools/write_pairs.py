"""Writes docs/pairs.md: which teacher can teach which student what.

python tools/write_pairs.py            writes the page
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kd_vision.core.predictions import Signal
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors import family_config, family_module
from kd_vision.losses import LOSSES, load_loss
from kd_vision.losses.fitting import fitting_losses

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pairs.md"
CLASSES = ("one", "two", "three")
MODELS = {
    "YOLO (v8, 11, 12)": ("ultralytics", "yolov8n"),
    "YOLO end-to-end (v10, 26)": ("ultralytics", "yolo26n"),
    "RT-DETR": ("ultralytics", "rtdetr-resnet50"),
    "RetinaNet": ("torchvision", "retinanet_resnet18_fpn"),
    "FCOS": ("torchvision", "fcos_resnet18_fpn"),
    "SSD": ("torchvision", "ssdlite320_mobilenet_v3_large"),
    "Faster R-CNN": ("torchvision", "fasterrcnn_resnet18_fpn"),
}
BLACK_BOXES = ("ONNX file", "predictions JSON", "ensemble, tiles, stored knowledge")
SIGNALS: tuple[Signal, ...] = ("features", "grid", "regions", "detections")
_PAGE = """\
# Who can teach whom

This page is written by `python tools/write_pairs.py` from the code; a test holds it true. A cell names the signals
that a pair can use, with the number of losses that fit it by their default settings (same classes, after the
label map, given). Every pair can learn from `detections`: the teacher's final boxes and class probabilities through the
student's own rule of training, which is also what stored knowledge (`kd-vision label`), ensembles, tiles and files of
predictions give.

{table}

## Losses that fit

{lists}

## The losses

{losses}
"""


def page() -> str:
    """Build one detector of each kind and return the page."""
    students = {}
    for title, (family, model) in MODELS.items():
        config = family_config(family, "student")
        students[title] = family_module(family, "student").build(config(model=model), CLASSES, "student").spec
    box = DetectorSpec("black box", "black box", CLASSES, {}, {}, frozenset({"detections"}))
    return pairs_page(students, {**students, **dict.fromkeys(BLACK_BOXES, box)})


def losses_by_signal(student: DetectorSpec, teacher: DetectorSpec) -> dict[Signal, list[str]]:
    """Return the losses that fit a pair with their default settings, by the signal they learn from."""
    found: dict[Signal, list[str]] = {signal: [] for signal in SIGNALS}
    for name in fitting_losses(student, teacher):
        found[signal_of(name)].append(name)
    return found


def pairs_page(students: Mapping[str, DetectorSpec], teachers: Mapping[str, DetectorSpec]) -> str:
    """Return the page: one table of signals for all pairs, then the losses of each kind of pair.

    Args:
        students: by the name a reader knows them under.
        teachers: likewise; black boxes among them.
    """
    head = ["teacher \\ student", *students]
    rows = [head, ["---"] * len(head)]
    kinds: dict[str, list[str]] = {}
    for teacher_name, teacher in teachers.items():
        row = [teacher_name]
        for student_name, student in students.items():
            found = losses_by_signal(student, replace(teacher, classes=student.classes))
            row.append(", ".join(f"{signal} ({len(names)})" for signal, names in found.items() if names) or "none")
            text = "; ".join(f"{signal}: {', '.join(names)}" for signal, names in found.items() if names)
            kinds.setdefault(text, []).append(f"{teacher_name} -> {student_name}")
        rows.append(row)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    lists = "\n\n".join(f"**{', '.join(pairs)}**\n\n{text}" for text, pairs in kinds.items())
    losses = "\n".join(f"- `{name}` ({signal_of(name)}): {entry.summary}" for name, entry in LOSSES.items())
    return _PAGE.format(table=table, lists=lists, losses=losses)


def signal_of(loss: str) -> Signal:
    """The signal a reader looks for a loss under: the most particular one that it requires."""
    requires = load_loss(loss).requires
    return next(signal for signal in ("regions", "grid", "detections", "features") if signal in requires)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written {PAGE.relative_to(PAGE.parents[1])}")
