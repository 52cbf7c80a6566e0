"""Reads and writes COCO result files: boxes by image id.

Shapes: M boxes of one image, K classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from kd_vision.core.errors import RequestError, truncate
from kd_vision.core.files import read_json
from kd_vision.core.predictions import Detections

if TYPE_CHECKING:
    from kd_vision.data.records import DetectionData


_RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


def to_coco_results(data: DetectionData, detections: Mapping[int, Detections]) -> list[dict[str, Any]]:
    """Turn detections into the list that COCO calls a result file.

    Args:
        data: gives the category id of each label.
        detections: boxes by image id, in pixels of the original image.

    Returns:
        One ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`` per box.

    Raises:
        RequestError: a box or score is not finite, or an image id or label is unknown.
    """
    _refuse(_detection_problems(data, detections))
    return [
        {
            "image_id": image_id,
            "category_id": data.category_ids[int(label)],
            "bbox": _to_xywh(box),
            "score": float(score),
        }
        for image_id, found in detections.items()
        for box, score, label in zip(found.boxes_xyxy, found.scores, found.labels, strict=True)
    ]


def read_coco_results(path: Path, data: DetectionData) -> dict[int, Detections]:
    """Read a COCO result file, every entry of it checked.

    Args:
        path: JSON list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``. An entry may
            have ``"class_probs"`` as well: a number for each class of `data`, in label order, or by category id
            (``{"17": 0.2}``, the others 0). They need not sum to 1.
        data: the images and categories that entries may name; a ``"file_name"`` in an entry must be the image's.

    Returns:
        Detections by image id, best score first; every image of `data` has an entry.

    Raises:
        RequestError: the file cannot be read, or entries are wrong (each named by its number,
            counted from 1).
    """
    entries = _read_list(path)
    known = _Known(data)
    found = {number: known.problem(entry) for number, entry in enumerate(entries, start=1)}
    _refuse([f"{path}: entry {number}: {text}" for number, text in found.items() if text])
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        by_image[entry["image_id"]].append(entry)
    return {image.image_id: _to_detections(by_image[image.image_id], data.category_ids) for image in data.images}


class _Known:
    """What an entry of a result file may name."""

    def __init__(self, data: DetectionData) -> None:
        self._name = data.name
        self._images = {image.image_id: image.path.name for image in data.images}
        self._categories = set(data.category_ids)
        self._ids_by_name = dict(zip(data.classes, data.category_ids, strict=True))

    def problem(self, entry: object) -> str:
        """Return what is wrong with an entry, or nothing."""
        if not isinstance(entry, dict):
            return f"expected an object with {', '.join(_RESULT_KEYS)}; found {_kind(entry)}"
        missing = [key for key in _RESULT_KEYS if key not in entry]
        if missing:
            return f"{', '.join(missing)} missing; each entry has {', '.join(_RESULT_KEYS)}"
        return (
            self._unknown(entry)
            or self._other_image(entry)
            or _wrong_numbers(entry["bbox"], entry["score"])
            or self._wrong_probs(entry.get("class_probs"))
        )

    def _unknown(self, entry: Mapping[str, Any]) -> str:
        image, category = entry["image_id"], entry["category_id"]
        if not _is_integer(image) or image not in self._images:
            return f"image_id {image!r} is not in '{self._name}' ({len(self._images)} images){self._meant_image(image)}"
        if not _is_integer(category) or category not in self._categories:
            return f"category_id {category!r} is not in '{self._name}'{self._meant_category(category)}"
        return ""

    def _other_image(self, entry: Mapping[str, Any]) -> str:
        """Some writers, our `predict` among them, name the file too: a number alone may mean another image here."""
        said, ours = entry.get("file_name"), self._images[entry["image_id"]]
        if not isinstance(said, str) or Path(said).name == ours:
            return ""
        return f"speaks of {said}, image_id {entry['image_id']} of '{self._name}' is {ours}; give the split it is of"

    def _meant_image(self, given: object) -> str:
        is_text = isinstance(given, str) and given.isdigit() and int(given) in self._images
        return f"; did you mean the number {int(str(given))}?" if is_text else ""

    def _meant_category(self, given: object) -> str:
        if isinstance(given, str) and given.isdigit() and int(given) in self._categories:
            return f"; did you mean the number {int(given)}?"
        near = get_close_matches(given, self._ids_by_name, n=1) if isinstance(given, str) else []
        if near:
            return f"; did you mean {self._ids_by_name[near[0]]} ({near[0]})?"
        return f"; possible: {_some(self._categories)}"

    def _wrong_probs(self, given: object) -> str:
        if given is None:
            return ""
        if isinstance(given, list) and len(given) != len(self._categories):
            return f"class_probs has {len(given)} numbers, '{self._name}' has {len(self._categories)} classes"
        if isinstance(given, dict):
            known = {str(category) for category in self._categories}
            unknown = next((key for key in given if key not in known), None)
            if unknown is not None:
                return (
                    f"class_probs: category id {unknown} is not in '{self._name}'; possible: {_some(self._categories)}"
                )
        elif not isinstance(given, list):
            return f"class_probs must be a list of numbers, or numbers by category id; found {_kind(given)}"
        wrong = [value for value in (given.values() if isinstance(given, dict) else given) if not _is_fraction(value)]
        return f"class_probs must be numbers between 0 and 1; given {wrong[0]!r}" if wrong else ""


def _wrong_numbers(box: object, score: object) -> str:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(side) for side in box):
        return f"bbox must be four finite numbers [x, y, width, height]; given {box!r}"
    if box[2] < 0 or box[3] < 0:
        return f"bbox has a negative width or height; given {box!r}; the order is [x, y, width, height]"
    if not _is_fraction(score):
        return f"score must be a number between 0 and 1; given {score!r}"
    return ""


def _detection_problems(data: DetectionData, detections: Mapping[int, Detections]) -> list[str]:
    images = {image.image_id for image in data.images}
    lines = []
    for image_id, found in detections.items():
        if image_id not in images:
            lines.append(f"detections: image id {image_id} is not in '{data.name}' ({len(images)} images)")
        boxes = int((~np.isfinite(found.boxes_xyxy)).any(axis=1).sum())
        if boxes:
            lines.append(f"detections of image {image_id}: {boxes} boxes are not finite")
        scores = int((~np.isfinite(found.scores)).sum())
        if scores:
            lines.append(f"detections of image {image_id}: {scores} scores are not finite")
        wrong = sorted({int(label) for label in found.labels if not 0 <= label < len(data.classes)})
        if wrong:
            given = ", ".join(map(str, wrong))
            lines.append(
                f"detections of image {image_id}: label {given} is no class of '{data.name}'; "
                f"labels go from 0 to {len(data.classes) - 1}"
            )
    return lines


def _refuse(lines: list[str]) -> None:
    """Raise what is wrong, if anything."""
    if lines:
        raise RequestError(*truncate(lines))


def _read_list(path: Path) -> list[Any]:
    content = read_json(path)
    if not isinstance(content, list):
        raise RequestError(f"{path}: a COCO result file is a list of entries; found {_kind(content)}")
    return content


def _to_detections(entries: list[Mapping[str, Any]], categories: Sequence[int]) -> Detections:
    if not entries:
        return Detections.empty()
    labels = {category: label for label, category in enumerate(categories)}
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([entry["score"] for entry in entries], dtype=np.float32)
    label = np.array([labels[entry["category_id"]] for entry in entries], dtype=np.int64)
    best_first = np.argsort(-scores, kind="stable")
    probs = None
    if any(entry.get("class_probs") is not None for entry in entries):
        probs = np.array([_probabilities(entry, categories) for entry in entries], dtype=np.float32)[best_first]
    return Detections(boxes.astype(np.float32)[best_first], scores[best_first], label[best_first], probs)


def _probabilities(entry: Mapping[str, Any], categories: Sequence[int]) -> list[float]:
    """One number a class; an entry that does not say them is sure of its class."""
    given = entry.get("class_probs")
    if isinstance(given, list):
        return given
    by_category = {str(entry["category_id"]): entry["score"]} if given is None else given
    return [float(by_category.get(str(category), 0.0)) for category in categories]


def _to_xywh(box_xyxy: np.ndarray[Any, Any]) -> list[float]:
    left, top, right, bottom = (float(side) for side in box_xyxy)
    return [left, top, right - left, bottom - top]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_fraction(value: object) -> bool:
    return _is_finite(value) and 0.0 <= value <= 1.0


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _some(values: set[int]) -> str:
    ordered = sorted(values)
    shown = ", ".join(map(str, ordered[:10]))
    return shown if len(ordered) <= 10 else f"{shown}, ... {ordered[-1]}"
