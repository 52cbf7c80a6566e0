"""Writes docs/pairs.md: which teacher can teach which student what.

python tools/write_pairs.py            writes the page
"""

from __future__ import annotations

from pathlib import Path

from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors import FAMILIES, family_module
from kd_vision.pipeline.pairs import pairs_page

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


def page() -> str:
    """Build one detector of each kind and return the page."""
    students = {}
    for title, (family, model) in MODELS.items():
        module = family_module(family, "student")
        config = getattr(module, FAMILIES[family].config)
        students[title] = module.build(config(model=model), CLASSES, "student").spec
    box = DetectorSpec("black box", "black box", CLASSES, {}, {}, frozenset({"detections"}))
    return pairs_page(students, {**students, **dict.fromkeys(BLACK_BOXES, box)})


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written {PAGE.relative_to(PAGE.parents[1])}")
