"""Metadata of an ONNX file: one typed model, written by the exporter and read by everybody who opens the file.

The properties of a file are strings by key. Ours start with ``kd_vision.``; the others are those of ultralytics,
so that ``ultralytics.YOLO`` opens our files and we open its.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_vision.core.errors import RequestError
from kd_vision.runtime.letterbox import INTERPOLATIONS
from kd_vision.runtime.preprocessing import Preprocessing, ValueRange

KEY_CLASSES = "kd_vision.classes"
KEY_OUTPUT_FORMAT = "kd_vision.layout"
KEY_PREPROCESSING = "kd_vision.preprocessing"
KEY_TRAINING_RUN = "kd_vision.training_run"
KEY_VERSION = "kd_vision.version"
KEY_PARITY = "kd_vision.parity"

RENAMED_FORMATS = {"dense_xywh": "dense_cxcywh"}
"""Output formats by the names that earlier files record."""

_DETR_HEAD = "RTDETRDecoder"
_ROW = 6
_SCALES: Mapping[str, ValueRange] = {"1/255": "unit", "1": "byte"}
_OLD_PAD_VALUE = 114
_COLOURS = {1: "gray", 3: "RGB", 4: "RGBX"}
Shape = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What an ONNX file records about itself. None (or an empty value): not recorded.

    Attributes:
        classes: names in label order.
        output_format: meaning of the outputs, a key of `output_formats.OUTPUT_FORMATS`.
        preprocessing: steps from an image to the input.
        image_size: recommended height and width of the input, in pixels.
        size_multiple: height and width must be multiples of it.
        channels: of the input.
        description: one line for people.
        export_args: settings of the export by the names of ultralytics, e.g. batch, opset, simplify.
        training_run: provenance of the weights.
        parity: report of the parity gate, as JSON.
        version: of kd_vision that wrote the file.
    """

    classes: tuple[str, ...] | None = None
    output_format: str | None = None
    preprocessing: Preprocessing | None = None
    image_size: int | None = None
    size_multiple: int | None = None
    channels: int | None = None
    description: str = ""
    export_args: Mapping[str, Any] = field(default_factory=dict)
    training_run: Mapping[str, Any] = field(default_factory=dict)
    parity: str = ""
    version: str = ""

    def to_properties(self) -> dict[str, str]:
        """Return the properties to write into an ONNX file; fields that are not recorded are left out.

        The keys of ultralytics follow from the fields: `names`, `stride`, `imgsz`, `channels`, `end2end`, `args`.
        """
        properties = {
            "description": self.description,
            KEY_PARITY: self.parity,
            KEY_VERSION: self.version,
            "stride": _text(self.size_multiple),
            "channels": _text(self.channels),
            "batch": _text(self.export_args.get("batch")),
        }
        if self.image_size is not None:
            properties["imgsz"] = str([self.image_size, self.image_size])
        if self.classes is not None:
            properties["names"] = str(dict(enumerate(self.classes)))
            properties[KEY_CLASSES] = json.dumps(list(self.classes))
        if self.output_format is not None:
            properties["task"] = "detect"
            properties["end2end"] = str(self.output_format == "end_to_end")
            # 'dynamic' means free height and width to ultralytics; those of our files are fixed.
            arguments = {**self.export_args, "dynamic": False, "nms": self.output_format == "nms"}
            properties["args"] = str(arguments)
            properties[KEY_OUTPUT_FORMAT] = self.output_format
        if self.preprocessing is not None:
            properties[KEY_PREPROCESSING] = json.dumps(self._preprocessing_content(self.preprocessing))
        if self.training_run:
            properties[KEY_TRAINING_RUN] = json.dumps(dict(self.training_run))
        return {key: value for key, value in properties.items() if value}

    def _preprocessing_content(self, preprocessing: Preprocessing) -> dict[str, Any]:
        colour = _COLOURS.get(self.channels or 3, "RGB")
        content = {
            "resize": preprocessing.resize,
            "interpolation": preprocessing.interpolation,
            "pad_value": preprocessing.pad_value,
            "scale": next(scale for scale, name in _SCALES.items() if name == preprocessing.value_range),
            "channel_order": colour.replace("RGB", "BGR") if preprocessing.channel_order == "bgr" else colour,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "layout": "NCHW",
            "height": self.image_size,
            "width": self.image_size,
        }
        return {key: value for key, value in content.items() if value is not None}

    @classmethod
    def read(
        cls, properties: Mapping[str, str], path: Path, output_shape: Shape = (), classes: int | None = None
    ) -> ModelMetadata:
        """Read the properties of a file of ours or of ultralytics.

        Args:
            properties: of the file.
            path: for messages.
            output_shape: of the first output; tells apart formats of ultralytics that record the same properties.
            classes: how many classes are declared, for a file that does not record them.

        Raises:
            RequestError: a property cannot be read, or the model does another task than detection.
        """
        names = _read_classes(properties, path)
        if classes is None and names is not None:
            classes = len(names)
        arguments = _arguments(properties)
        return cls(
            classes=names,
            output_format=_read_output_format(properties, output_shape, classes, path),
            preprocessing=_read_preprocessing(properties, path),
            image_size=recorded_size(properties),
            size_multiple=_positive(properties.get("stride", "")),
            channels=_positive(properties.get("channels", "")),
            description=properties.get("description", ""),
            export_args={key: value for key, value in arguments.items() if key not in ("dynamic", "nms")},
            training_run=_json(properties, KEY_TRAINING_RUN, dict, path) or {},
            parity=properties.get(KEY_PARITY, ""),
            version=properties.get(KEY_VERSION, ""),
        )


def recorded_size(properties: Mapping[str, str]) -> int | None:
    """Return the recommended height and width of the input, the larger one where they differ; None: not recorded."""
    sizes = _literal(properties.get("imgsz", "None"))
    if isinstance(sizes, int):
        return sizes
    return max(sizes) if isinstance(sizes, (list, tuple)) and sizes else None


def _read_classes(properties: Mapping[str, str], path: Path) -> tuple[str, ...] | None:
    names = _json(properties, KEY_CLASSES, list, path)
    if names is not None or "names" not in properties:
        return None if names is None else tuple(str(name) for name in names)
    try:
        names = ast.literal_eval(properties["names"])
        if isinstance(names, Mapping):
            names = [names[index] for index in range(len(names))]
        return tuple(str(name) for name in names)
    except (ValueError, SyntaxError, KeyError, TypeError):
        text = properties["names"][:80]
        raise RequestError(
            f"{path}: metadata 'names' is not a list of classes: {text}; export the file again"
        ) from None


def _read_output_format(properties: Mapping[str, str], shape: Shape, classes: int | None, path: Path) -> str | None:
    """Return the recorded format, or the one that ultralytics' properties and the shape of the output imply."""
    if KEY_OUTPUT_FORMAT in properties:
        recorded = properties[KEY_OUTPUT_FORMAT]
        return RENAMED_FORMATS.get(recorded, recorded)
    task = properties.get("task")
    if task is None:
        return None
    if task != "detect":
        raise RequestError(f"{path}: is a model for '{task}'; only 'detect' is supported")
    if _arguments(properties).get("nms"):
        return "nms"
    if properties.get("end2end", "False") == "True":
        return "end_to_end"
    if properties.get("head") == _DETR_HEAD:
        return _detr_format(shape, classes)
    if "head" in properties or classes is None or len(shape) != 3 or shape[1] == 4 + classes:
        return "dense_cxcywh"
    if shape[2] == _ROW and (classes == _ROW - 4 or "end2end" not in properties):
        return None  # YOLOv10 of a version without the key 'end2end', or RT-DETR of one without the key 'head'
    return _detr_format(shape, classes) or "dense_cxcywh"


def _detr_format(shape: Shape, classes: int | None) -> str | None:
    """Old exports give all class scores of a query, newer ones rows of six; two classes make both six wide."""
    if classes is None or len(shape) != 3 or classes == _ROW - 4:
        return None
    return {4 + classes: "detr", _ROW: "detr_rows"}.get(shape[2]) if isinstance(shape[2], int) else None


def _read_preprocessing(properties: Mapping[str, str], path: Path) -> Preprocessing | None:
    content = _json(properties, KEY_PREPROCESSING, dict, path)
    if content is None:
        return None
    where = f"{path}: metadata '{KEY_PREPROCESSING}'"
    # A step that a file does not record is the only one there was when the file was written.
    steps = {"resize": "letterbox", "interpolation": "bilinear", "scale": "1/255", "layout": "NCHW"}
    steps = {key: str(content.get(key, step)) for key, step in steps.items()}
    possible = {"resize": ["letterbox"], "interpolation": INTERPOLATIONS, "scale": _SCALES, "layout": ["NCHW"]}
    errors = [
        f"{where} has {key} {steps[key]}; possible: {', '.join(names)}"
        for key, names in possible.items()
        if steps[key] not in names
    ]
    pad_value = content.get("pad_value", _OLD_PAD_VALUE)
    if not isinstance(pad_value, int) or not 0 <= pad_value <= 255:
        errors.append(f"{where} has pad_value {pad_value}; possible: 0 to 255")
    if errors:
        raise RequestError(*errors)
    return Preprocessing(
        interpolation=steps["interpolation"],
        pad_value=pad_value,
        channel_order="bgr" if str(content.get("channel_order", "RGB")).upper().startswith("BGR") else "rgb",
        value_range=_SCALES[steps["scale"]],
        mean=_floats(content, "mean", where),
        std=_floats(content, "std", where),
    )


def _floats(content: Mapping[str, Any], key: str, where: str) -> tuple[float, ...] | None:
    if content.get(key) is None:
        return None
    try:
        return tuple(float(value) for value in content[key])
    except (TypeError, ValueError):
        raise RequestError(f"{where} has {key} {content[key]}; give one number per channel") from None


def _json(properties: Mapping[str, str], key: str, kind: type[list[Any]] | type[dict[str, Any]], path: Path) -> Any:
    """Return the JSON list or object under a key; None: not recorded."""
    if key not in properties:
        return None
    try:
        content = json.loads(properties[key])
    except ValueError:
        content = None
    if not isinstance(content, kind):
        name = "list" if kind is list else "object"
        raise RequestError(f"{path}: metadata '{key}' is not a JSON {name}; export the file again")
    return content


def _arguments(properties: Mapping[str, str]) -> Mapping[str, Any]:
    arguments = _literal(properties.get("args", "{}"))
    return arguments if isinstance(arguments, Mapping) else {}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _positive(text: str) -> int | None:
    return int(text) if text.isdigit() and int(text) > 0 else None


def _text(value: object) -> str:
    return "" if value is None else str(value)
