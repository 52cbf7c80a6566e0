"""Metadata of ONNX files: written, read back, and what other writers leave."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from kd_vision.core.errors import RequestError
from kd_vision.runtime.metadata import (
    KEY_CLASSES,
    KEY_OUTPUT_FORMAT,
    KEY_PREPROCESSING,
    KEY_TRAINING_RUN,
    ModelMetadata,
)
from kd_vision.runtime.output_formats import OUTPUT_FORMATS
from kd_vision.runtime.preprocessing import Preprocessing

PATH = Path("a.onnx")
FULL = ModelMetadata(
    classes=("car", "it's"),
    output_format="dense_cxcywh",
    preprocessing=Preprocessing(pad_value=7, channel_order="bgr", value_range="byte", mean=(0.5,) * 3, std=(2.0,) * 3),
    image_size=96,
    size_multiple=32,
    channels=3,
    description="yolo11n, exported by kd_vision",
    export_args={"batch": 1, "opset": 18, "simplify": True},
    training_run={"run": "bccd-7"},
    parity='{"passed": true}',
    version="1.2.3",
)


def refused(**properties: str) -> tuple[str, ...]:
    with pytest.raises(RequestError) as caught:
        ModelMetadata.read(properties, PATH)
    return caught.value.problems


@pytest.mark.parametrize("metadata", [FULL, ModelMetadata(), ModelMetadata(classes=()), ModelMetadata(channels=1)])
def test_what_is_written_is_read_back(metadata: ModelMetadata) -> None:
    assert ModelMetadata.read(metadata.to_properties(), PATH) == metadata


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_every_output_format_is_read_back(output_format: str) -> None:
    assert ModelMetadata.read(ModelMetadata(output_format=output_format).to_properties(), PATH).output_format == (
        output_format
    )


@pytest.mark.parametrize(
    ("output_format", "end2end", "nms"),
    [("dense_cxcywh", "False", False), ("end_to_end", "True", False), ("nms", "False", True)],
)
def test_ultralytics_reads_it_from_its_own_keys(output_format: str, end2end: str, nms: bool) -> None:
    """The same file without our keys means the same to a reader that knows those of ultralytics alone."""
    metadata = ModelMetadata(
        classes=("car", "it's"), output_format=output_format, image_size=96, size_multiple=32, export_args={"batch": 4}
    )
    properties = {key: value for key, value in metadata.to_properties().items() if not key.startswith("kd_vision.")}
    assert (properties["task"], properties["end2end"], properties["batch"]) == ("detect", end2end, "4")
    assert ast.literal_eval(properties["names"]) == {0: "car", 1: "it's"}
    assert ast.literal_eval(properties["args"]) == {"batch": 4, "dynamic": False, "nms": nms}
    assert properties["imgsz"] == "[96, 96]"
    assert ModelMetadata.read(properties, PATH) == metadata


def test_preprocessing_on_disk() -> None:
    assert json.loads(FULL.to_properties()[KEY_PREPROCESSING]) == {
        "resize": "letterbox",
        "interpolation": "area",
        "pad_value": 7,
        "scale": "1",
        "channel_order": "BGR",
        "mean": [0.5, 0.5, 0.5],
        "std": [2.0, 2.0, 2.0],
        "layout": "NCHW",
        "height": 96,
        "width": 96,
    }


@pytest.mark.parametrize(("channels", "colour"), [(1, "gray"), (3, "RGB"), (4, "RGBX")])
def test_channel_order_on_disk(channels: int, colour: str) -> None:
    properties = ModelMetadata(preprocessing=Preprocessing(), channels=channels).to_properties()
    assert json.loads(properties[KEY_PREPROCESSING])["channel_order"] == colour
    assert ModelMetadata.read(properties, PATH).preprocessing == Preprocessing()


def test_files_of_earlier_versions() -> None:
    content = {"scale": "1/255", "channel_order": "RGB"}
    properties = {KEY_OUTPUT_FORMAT: "dense_xywh", KEY_PREPROCESSING: json.dumps(content)}
    metadata = ModelMetadata.read(properties, PATH)
    assert metadata.output_format == "dense_cxcywh"
    assert metadata.preprocessing == Preprocessing(interpolation="bilinear", pad_value=114)


def test_wrong_preprocessing_is_refused_all_at_once() -> None:
    content = {"resize": "stretch", "interpolation": "lanczos", "scale": 2, "layout": "NHWC", "pad_value": 256}
    where = "a.onnx: metadata 'kd_vision.preprocessing' has"
    assert refused(**{KEY_PREPROCESSING: json.dumps(content)}) == (
        f"{where} resize stretch; possible: letterbox",
        f"{where} interpolation lanczos; possible: area, bilinear",
        f"{where} scale 2; possible: 1/255, 1",
        f"{where} layout NHWC; possible: NCHW",
        f"{where} pad_value 256; possible: 0 to 255",
    )


@pytest.mark.parametrize("mean", [0.5, ["red"]])
def test_a_mean_that_is_no_list_of_numbers_is_refused(mean: Any) -> None:
    assert refused(**{KEY_PREPROCESSING: json.dumps({"mean": mean, "std": [1.0]})}) == (
        f"a.onnx: metadata 'kd_vision.preprocessing' has mean {mean}; give one number per channel",
    )


@pytest.mark.parametrize(
    ("key", "kind"), [(KEY_CLASSES, "list"), (KEY_PREPROCESSING, "object"), (KEY_TRAINING_RUN, "object")]
)
@pytest.mark.parametrize("value", ["{", "7"])
def test_broken_json_is_refused(key: str, kind: str, value: str) -> None:
    assert refused(**{key: value}) == (f"a.onnx: metadata '{key}' is not a JSON {kind}; export the file again",)


@pytest.mark.parametrize(
    ("text", "size"), [("[96, 96]", 96), ("(64, 96)", 96), ("32", 32), ("[]", None), ("os.getcwd()", None)]
)
def test_recommended_size(text: str, size: int | None) -> None:
    assert ModelMetadata.read({"imgsz": text}, PATH).image_size == size


@pytest.mark.parametrize(("text", "stride"), [("32", 32), ("0", None), ("-8", None), ("8.0", None)])
def test_stride(text: str, stride: int | None) -> None:
    assert ModelMetadata.read({"stride": text}, PATH).size_multiple == stride


def test_declared_classes_count_where_the_format_depends_on_their_number() -> None:
    properties = {"task": "detect", "end2end": "False"}
    assert ModelMetadata.read(properties, PATH, (1, 300, 7), 3).output_format == "detr"
    assert ModelMetadata.read(properties, PATH, (1, 300, 7), 5).output_format == "dense_cxcywh"
    names = {**properties, "names": "['a', 'b', 'c']"}
    assert ModelMetadata.read(names, PATH, (1, 300, 7)).output_format == "detr"
