"""Reads and writes COCO result files: boxes by image id.

Shapes: M boxes of one image, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_vision.core.errors import RequestError, truncate
from kd_vision.core.files import read_json
from kd_vision.core.predictions import Detections
from kd_vision.data.reading import is_id, is_number

if TYPE_CHECKING:
    from kd_vision.data.records import DetectionData

_RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


def to_coco_results(data: DetectionData, detections: Mapping[int, Detections]) -> list[dict[str, Any]]:
    """Return the content of a COCO result file.

    Args:
        data: gives the category id of each label.
        detections: boxes by image id, in pixels of the original image.

    Returns:
        One ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`` per box.

    Raises:
        RequestError: a box or score is not finite, or an image id or label is unknown.
    """
    _refuse(_detection_errors(data, detections))
    return [
        result_entry(image_id, data.category_ids[int(label)], box, score)
        for image_id, of_image in detections.items()
        for box, score, label in zip(of_image.boxes_xyxy, of_image.scores, of_image.labels, strict=True)
    ]


def result_entry(image_id: int, category_id: int, box_xyxy: Iterable[float], score: float) -> dict[str, Any]:
    """Return the entry of one box, whose corners are in pixels of the original image."""
    left, top, right, bottom = map(float, box_xyxy)
    box = [left, top, right - left, bottom - top]
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": float(score)}


def read_coco_results(path: Path, data: DetectionData) -> dict[int, Detections]:
    """Read a COCO result file and check every entry.

    Args:
        path: JSON list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``. An entry may
            have ``"class_probs"`` as well: a number for each class of `data`, in label order, or by category id
            (``{"17": 0.2}``, the others 0). They need not sum to 1.
        data: images and categories that entries may have; a ``"file_name"`` in an entry must be that of its image.

    Returns:
        Detections by image id, best score first; every image of `data` has an entry.

    Raises:
        RequestError: the file cannot be read, or entries are wrong (each named by its number,
            counted from 1).
    """
    entries = _read_list(path)
    check = _EntryCheck(data)
    errors = {number: check.error(entry) for number, entry in enumerate(entries, start=1)}
    _refuse([f"{path}: entry {number}: {text}" for number, text in errors.items() if text])
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        by_image[entry["image_id"]].append(entry)
    return {image.image_id: _to_detections(by_image[image.image_id], data.category_ids) for image in data.images}


class _EntryCheck:
    """Checks entries of a result file against the images and categories of a split."""

    def __init__(self, data: DetectionData) -> None:
        self._name = data.name
        self._images = {image.image_id: image.path.name for image in data.images}
        self._categories = set(data.category_ids)
        self._ids_by_name = dict(zip(data.classes, data.category_ids, strict=True))

    def error(self, entry: object) -> str:
        """Return what is wrong with an entry; empty: nothing."""
        if not isinstance(entry, dict):
            return f"expected an object with {', '.join(_RESULT_KEYS)}; found {_kind(entry)}"
        missing = [key for key in _RESULT_KEYS if key not in entry]
        if missing:
            return f"{', '.join(missing)} missing; each entry has {', '.join(_RESULT_KEYS)}"
        return (
            self._id_error(entry)
            or self._file_name_error(entry)
            or _number_error(entry["bbox"], entry["score"])
            or self._probs_error(entry.get("class_probs"))
        )

    def _id_error(self, entry: Mapping[str, Any]) -> str:
        image, category = entry["image_id"], entry["category_id"]
        if not is_id(image) or image not in self._images:
            near = _near_id(image, self._images)
            return f"image_id {image!r} is not in '{self._name}' ({len(self._images)} images){near}"
        if not is_id(category) or category not in self._categories:
            return f"category_id {category!r} is not in '{self._name}'{self._near_category(category)}"
        return ""

    def _file_name_error(self, entry: Mapping[str, Any]) -> str:
        """Compare the file name that some writers add: the same number may be another image in another split."""
        recorded, name = entry.get("file_name"), self._images[entry["image_id"]]
        if not isinstance(recorded, str) or Path(recorded).name == name:
            return ""
        return (
            f"file_name is {recorded}, but image_id {entry['image_id']} of '{self._name}' is {name}; "
            "give the split that the file was made on"
        )

    def _near_category(self, given: object) -> str:
        near = get_close_matches(given, self._ids_by_name, n=1) if isinstance(given, str) else []
        name = f"; did you mean {self._ids_by_name[near[0]]} ({near[0]})?" if near else ""
        return _near_id(given, self._categories) or name or f"; possible: {_some(self._categories)}"

    def _probs_error(self, given: object) -> str:
        if given is None:
            return ""
        if isinstance(given, list) and len(given) != len(self._categories):
            return f"class_probs has {len(given)} numbers, '{self._name}' has {len(self._categories)} classes"
        if isinstance(given, dict):
            possible = {str(category) for category in self._categories}
            unknown = next((key for key in given if key not in possible), None)
            if unknown is not None:
                return (
                    f"class_probs: category id {unknown} is not in '{self._name}'; possible: {_some(self._categories)}"
                )
        elif not isinstance(given, list):
            return f"class_probs must be a list of numbers, or numbers by category id; found {_kind(given)}"
        wrong = [value for value in (given.values() if isinstance(given, dict) else given) if not _is_fraction(value)]
        return f"class_probs must be numbers between 0 and 1; given {wrong[0]!r}" if wrong else ""


def _near_id(given: object, possible: Container[int]) -> str:
    """Suggest the number where its digits are given as a text."""
    is_text_of_id = isinstance(given, str) and given.isdecimal() and len(given) < 20 and int(given) in possible
    return f"; did you mean the number {int(str(given))}?" if is_text_of_id else ""


def _number_error(box: object, score: object) -> str:
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(side) for side in box):
        return f"bbox must be four finite numbers [x, y, width, height]; given {box!r}"
    if box[2] < 0 or box[3] < 0:
        return f"bbox has a negative width or height; given {box!r}; the order is [x, y, width, height]"
    if not _is_fraction(score):
        return f"score must be a number between 0 and 1; given {score!r}"
    return ""


def _detection_errors(data: DetectionData, detections: Mapping[int, Detections]) -> list[str]:
    images = {image.image_id for image in data.images}
    errors = []
    for image_id, of_image in detections.items():
        where = f"detections of image {image_id}"
        if image_id not in images:
            errors.append(f"detections: image id {image_id} is not in '{data.name}' ({len(images)} images)")
        boxes = int((~np.isfinite(of_image.boxes_xyxy)).any(axis=1).sum())
        if boxes:
            errors.append(f"{where}: {boxes} boxes are not finite")
        scores = int((~np.isfinite(of_image.scores)).sum())
        if scores:
            errors.append(f"{where}: {scores} scores are not finite")
        wrong = sorted({int(label) for label in of_image.labels if not 0 <= label < len(data.classes)})
        if wrong:
            last = len(data.classes) - 1
            errors.append(
                f"{where}: label {', '.join(map(str, wrong))} is no class of '{data.name}'; labels go from 0 to {last}"
            )
    return errors


def _refuse(errors: list[str]) -> None:
    """Raise the errors, if there are any."""
    if errors:
        raise RequestError(*truncate(errors))


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
    """Return one number for each class; without `class_probs`, the score for its class and 0 for the others."""
    given = entry.get("class_probs")
    if isinstance(given, list):
        return given
    by_category = {str(entry["category_id"]): entry["score"]} if given is None else given
    return [float(by_category.get(str(category), 0.0)) for category in categories]


def _is_fraction(value: object) -> bool:
    return is_number(value) and 0.0 <= value <= 1.0


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _some(values: set[int]) -> str:
    ordered = sorted(values)
    shown = ", ".join(map(str, ordered[:10]))
    return shown if len(ordered) <= 10 else f"{shown}, ... {ordered[-1]}"
