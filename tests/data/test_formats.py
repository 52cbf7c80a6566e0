"""Every line of the table of formats: what is written is read back, and a spoilt file never crashes a reader."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from kd_vision.core.errors import RequestError
from kd_vision.data.check import check_data
from kd_vision.data.convert import convert
from kd_vision.data.dataset import load_split
from kd_vision.data.descriptor import DataDescriptor, load_descriptor, write_descriptor
from kd_vision.data.formats import FORMATS, FormatEntry, load_writer, writable_formats
from kd_vision.data.formats.coco import to_coco
from kd_vision.data.records import DetectionData, ImageRecord

WIDTH, HEIGHT = 64, 48
CLASSES = ("person", "traffic light", "r&d <van>")

Box = tuple[float, float, float, float]
Boxes = list[tuple[Box, int, bool]]

TOY_FORMAT = '''
"""One line for each image: its name, then class, left, top, width, height of each box, all divided by tabs."""

from kd_vision.data.records import RawBox, RawImage, RawSplit


def read_toy(descriptor, split):
    source = descriptor.splits[split]
    file, folder = descriptor.resolve(source.annotations), descriptor.resolve(source.images)
    images = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        name, *cells = line.split("\\t")
        image = RawImage(number, folder / name, name, None, file, number)
        for at in range(0, len(cells), 5):
            xywh = tuple(map(float, cells[at + 1 : at + 5]))
            image.boxes.append(RawBox(int(cells[at]), xywh, None, False, number, f"box {at // 5 + 1}"))
        images.append(image)
    return RawSplit(images, dict(enumerate(descriptor.classes)))


def write_toy(parts, out):
    for part in parts:
        lines = []
        for image in part.images:
            cells = [image.file_name]
            for box, label, crowd in zip(image.boxes_xywh, image.labels, image.crowd):
                cells += [] if crowd else [str(label), *map(str, box)]
            lines.append("\\t".join(cells))
        (out / f"{part.name}.tsv").write_text("\\n".join(lines))
    return {part.name: f"{part.name}.tsv" for part in parts}
'''


def record(path: Path, number: int, boxes: Boxes) -> ImageRecord:
    xywh = np.array([box for box, _, _ in boxes], np.float64).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return ImageRecord(
        image_id=number,
        path=path,
        width=WIDTH,
        height=HEIGHT,
        boxes_xyxy=corners.astype(np.float32),
        labels=np.array([label for _, label, _ in boxes], np.int64),
        crowd=np.array([crowd for _, _, crowd in boxes], np.bool_),
        areas=xywh[:, 2:].prod(axis=1) * 0.75,
        file_name=path.name,
        source_xywh=xywh,
    )


def write_set(root: Path, name: str, splits: dict[str, list[Boxes]]) -> Path:
    """Write a set of noise images in a format, with its descriptor; returns the path of that."""
    parts = []
    for split, images in splits.items():
        folder = root / "images" / split
        folder.mkdir(parents=True)
        records = []
        for number, boxes in enumerate(images, start=1):
            path = folder / f"{number}.png"
            noise = np.random.default_rng([number, len(parts)]).integers(0, 255, (12, 16), np.uint8)
            Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(path)
            records.append(record(path, number, boxes))
        parts.append(DetectionData(split, CLASSES, (4, 7, 9), tuple(records)))
    annotations = load_writer(name)(parts, root)
    content = {split: {"images": f"images/{split}", "annotations": annotations[split]} for split in splits}
    path = root / "dataset.yaml"
    write_descriptor(path, {"format": name, "splits": content, "classes": list(CLASSES)})
    return path


def assert_read_back(path: Path, name: str, splits: dict[str, list[Boxes]]) -> None:
    """What a format keeps comes back; the rest is numbered from 1, or the area of the box, or left out."""
    keeps = FORMATS[name].keeps
    descriptor = load_descriptor(path)
    for split, images in splits.items():
        data = load_split(descriptor, split)
        assert data.classes == CLASSES
        assert data.category_ids == ((4, 7, 9) if "ids" in keeps else (1, 2, 3))
        assert [image.file_name for image in data.images] == [f"{n}.png" for n in range(1, len(images) + 1)]
        for image, boxes in zip(data.images, images, strict=True):
            kept = [box for box in boxes if "crowds" in keeps or not box[2]]
            expected = record(image.path, image.image_id, kept)
            np.testing.assert_allclose(image.boxes_xywh, expected.boxes_xywh, rtol=0, atol=1e-7)
            np.testing.assert_array_equal(image.labels, expected.labels)
            np.testing.assert_array_equal(image.crowd, expected.crowd)
            areas = expected.areas if "areas" in keeps else expected.areas / 0.75
            np.testing.assert_allclose(image.areas, areas, rtol=0, atol=1e-3)
            assert (image.width, image.height) == (WIDTH, HEIGHT)


SPLITS: dict[str, list[Boxes]] = {
    "train": [
        [((1.25, 2.5, 10.1, 20.2), 1, False), ((0.0, 0.0, 64.0, 48.0), 2, True), ((60.3, 4.0, 3.7, 8.0), 0, False)],
        [],
    ],
    "val": [[((10.0, 10.0, 1 / 3, 20.0), 2, False)]],
}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new format: one file, one line of the table."""
    (tmp_path / "kd_toy_format.py").write_text(TOY_FORMAT)
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = FormatEntry(
        read="kd_toy_format:read_toy",
        write="kd_toy_format:write_toy",
        needs_annotations="a file of tabs",
        needs_classes="its files hold only numbers",
    )
    monkeypatch.setitem(FORMATS, "toy", entry)  # type: ignore[arg-type]
    return "toy"


def assert_contract(name: str, root: Path) -> None:
    path = write_set(root / "set", name, SPLITS)
    assert_read_back(path, name, SPLITS)
    assert check_data(load_descriptor(path)) == []
    done = convert(load_descriptor(path), root / "again", name)
    assert_read_back(done.descriptor, name, SPLITS)
    crowds = 0 if "crowds" in FORMATS[name].keeps else 1
    assert (done.images, done.boxes) == (3, 4 - crowds)


@pytest.mark.parametrize("name", writable_formats())
def test_what_is_written_is_read_back_without_defects(name: str, tmp_path: Path) -> None:
    assert_contract(name, tmp_path)


def test_a_new_format_is_one_file_and_one_line(toy: str, tmp_path: Path) -> None:
    assert_contract(toy, tmp_path)
    with pytest.raises(RequestError, match=r"splits\.a needs annotations: a file of tabs"):
        load_descriptor(described(tmp_path, {"format": toy, "classes": ["x"], "splits": {"a": {"images": "i"}}}))


def described(folder: Path, content: dict[str, Any]) -> Path:
    write_descriptor(folder / "data.yaml", content)
    return folder / "data.yaml"


@pytest.mark.parametrize("name", FORMATS)
def test_the_descriptor_needs_what_the_format_needs(name: str, tmp_path: Path) -> None:
    entry = FORMATS[name]
    bare = {"format": name, "splits": {"a": {"images": "i", "image_list": "l.txt"}}}
    expected = [
        *([f"format {name} needs classes: {entry.needs_classes}"] if entry.needs_classes else []),
        *([f"splits.a needs annotations: {entry.needs_annotations}"] if entry.needs_annotations else []),
        *([f"splits.a: format {name} takes no image_list"] if entry.label_suffix is None else []),
    ]
    assert expected
    with pytest.raises(RequestError) as caught:
        load_descriptor(described(tmp_path, bare))
    for text in expected:
        assert text in str(caught.value)


def test_a_format_without_writer_cannot_be_converted_to(
    tmp_path: Path, toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, toy, replace(FORMATS[toy], write=None))  # type: ignore[arg-type]
    descriptor = load_descriptor(write_set(tmp_path / "set", "voc", SPLITS))
    for name, hint in ((toy, "; possible: coco, voc, yolo"), ("yollo", "; did you mean 'yolo'?")):
        with pytest.raises(RequestError) as caught:
            convert(descriptor, tmp_path / "out", name)
        assert str(caught.value) == f"format '{name}' cannot be written{hint}"
    assert not (tmp_path / "out").exists()


fractions = st.floats(0.0, 0.999)
sides = st.floats(0.001, 1.0)


@st.composite
def boxes_inside(draw: st.DrawFn) -> Boxes:
    boxes: Boxes = []
    for _ in range(draw(st.integers(0, 5))):
        x, y = draw(fractions) * WIDTH, draw(fractions) * HEIGHT
        w, h = draw(sides) * (WIDTH - x), draw(sides) * (HEIGHT - y)
        boxes.append(((x, y, w, h), draw(st.integers(0, 2)), draw(st.booleans())))
    return boxes


@pytest.mark.parametrize("name", writable_formats())
@settings(max_examples=40, deadline=None)
@given(boxes=boxes_inside())
def test_any_boxes_come_back(name: str, boxes: Boxes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        splits = {"train": [boxes]}
        path = write_set(Path(folder), name, splits)
        assert_read_back(path, name, splits)
        assert [defect for defect in check_data(load_descriptor(path)) if defect.kind != "empty"] == []


@contextmanager
def spoilable_set(name: str) -> Iterator[tuple[DataDescriptor, Path]]:
    """Yield a sound set of one image, and the annotation file to spoil."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_set(Path(folder), name, {"train": [SPLITS["train"][0]]})
        suffix = FORMATS[name].label_suffix or ".json"
        (file,) = Path(folder).rglob(f"*{suffix}")
        yield load_descriptor(path), file


def read_or_refuse(descriptor: DataDescriptor) -> None:
    """Check and load a spoilt set: boxes that come through are finite and have a known class."""
    defects = check_data(descriptor)
    try:
        data = load_split(descriptor, "train")
    except RequestError:
        assert any(defect.level == "error" for defect in defects)
        return
    for image in data.images:
        assert np.isfinite(image.boxes_xyxy).all()
        assert np.isfinite(image.areas).all()
        assert ((image.labels >= 0) & (image.labels < len(data.classes))).all()
        assert min(image.width, image.height) > 0


@st.composite
def spoilt(draw: st.DrawFn, sound: bytes) -> bytes:
    """Cut, double, overwrite or insert pieces."""
    content = sound
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(start + draw(st.integers(0, 12)), len(content))
        piece = draw(
            st.one_of(
                st.just(b""),
                st.just(content[start:end] * 2),
                st.binary(max_size=4),
                st.sampled_from(
                    [b"1e999", b"-1", b"nan", b"9" * 400, b"null", b'"', b"<", b"[", b"{}", b"\n", b"\x00"]
                ),
            )
        )
        content = content[:start] + piece + content[end:]
    return content


@pytest.mark.parametrize("name", writable_formats())
def test_a_spoilt_file_is_read_or_refused(name: str) -> None:
    with spoilable_set(name) as (descriptor, file):
        sound = file.read_bytes()

        @settings(max_examples=150, deadline=None)
        @given(content=spoilt(sound))
        @example(content=b"")
        @example(content=b"\xff\xfe\x00")
        @example(content=b"[" * 100_000)
        @example(content=b'{"images": ' + b"[" * 100_000)
        @example(content=b'{"images": [' + b"9" * 5000)
        @example(content=b'<?xml version="1.0" encoding="big5"?><annotation/>')
        @example(content=b'<?xml version="1.0" encoding="unheard-of"?><annotation/>')
        def read(content: bytes) -> None:
            file.write_bytes(content)
            read_or_refuse(descriptor)

        read()


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**30, 10**400, -(10**400), 2**63]),
        st.floats(),
        st.text(max_size=4),
        st.just("x" * 300),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
    max_leaves=6,
)


@st.composite
def odd_coco(draw: st.DrawFn, sound: dict[str, Any]) -> dict[str, Any]:
    """Replace values of entries, entries, or whole lists."""
    content = json.loads(json.dumps(sound))
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(["images", "annotations", "categories"]))
        entries = content[key]
        if not isinstance(entries, list) or not entries or draw(st.integers(0, 9)) == 0:
            content[key] = draw(values)
            continue
        at = draw(st.integers(0, len(entries) - 1))
        if not isinstance(entries[at], dict) or not entries[at] or draw(st.integers(0, 4)) == 0:
            entries[at] = draw(values)
        else:
            place, field = entries[at], draw(st.sampled_from(sorted(entries[at])))
            if field == "bbox" and isinstance(place[field], list):
                place, field = place[field], draw(st.integers(0, 3))
            place[field] = draw(st.one_of(values, st.floats()))
    return content


def test_coco_values_of_the_wrong_kind_are_read_or_refused() -> None:
    with spoilable_set("coco") as (descriptor, file):
        sound = to_coco(load_split(descriptor, "train"))

        @settings(max_examples=300, deadline=None)
        @given(content=odd_coco(sound))
        def read(content: dict[str, Any]) -> None:
            file.write_text(json.dumps(content))
            read_or_refuse(descriptor)

        read()


numbers = st.lists(st.floats(), min_size=4, max_size=9).map(lambda values: " ".join(["1", *map(repr, values)]))
words = st.lists(st.one_of(st.integers(-1, 4).map(str), st.text(max_size=3)), max_size=9).map(" ".join)


def test_any_yolo_lines_are_read_or_refused() -> None:
    with spoilable_set("yolo") as (descriptor, file):

        @settings(max_examples=200, deadline=None)
        @given(content=st.lists(st.one_of(numbers, words), max_size=4))
        def read(content: list[str]) -> None:
            file.write_text("\n".join(content), encoding="utf-8", errors="surrogatepass")
            read_or_refuse(descriptor)

        read()


names = st.one_of(
    st.sampled_from(["", ".", "..", "/", "1", "1.png", "./1.png", "gone.png", "x" * 300, "a\0b"]), st.text(max_size=8)
)


@pytest.mark.parametrize("name", [name for name in writable_formats() if FORMATS[name].label_suffix])
def test_any_image_list_is_read_or_refused(name: str) -> None:
    with spoilable_set(name) as (descriptor, file):
        listed = file.parent / "list"
        source = descriptor.splits["train"].model_copy(update={"image_list": str(listed)})
        descriptor = descriptor.model_copy(update={"splits": {"train": source}})

        @settings(max_examples=80, deadline=None)
        @given(content=st.lists(names, max_size=3))
        def read(content: list[str]) -> None:
            listed.write_text("\n".join(content), encoding="utf-8", errors="surrogatepass")
            read_or_refuse(descriptor)

        read()


def test_voc_class_names_are_the_same_with_and_without_classes_of_the_descriptor(tmp_path: Path) -> None:
    descriptor = load_descriptor(write_set(tmp_path / "set", "voc", SPLITS))
    data = load_split(descriptor.model_copy(update={"classes": None}), "train")
    assert data.classes == tuple(sorted(CLASSES))
    assert [data.classes[label] for label in data.images[0].labels] == ["traffic light", "r&d <van>", "person"]


@pytest.mark.parametrize(
    ("name", "written", "impossible"),
    [
        ("coco", '"width": 64', '"width": 0'),
        ("coco", '"width": 64', '"width": -64'),
        ("coco", '"width": 64', '"width": "64"'),
        ("coco", '"width": 64', f'"width": {10**400}'),
        ("voc", "<width>64<", "<width>0.5<"),
        ("voc", "<width>64<", "<width>-64<"),
        ("voc", "<width>64<", "<width>wide<"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_instead_of_an_impossible_size_that_of_the_image_is_read(name: str, written: str, impossible: str) -> None:
    with spoilable_set(name) as (descriptor, file):
        text = file.read_text()
        assert written in text
        file.write_text(text.replace(written, impossible))
        (image,) = load_split(descriptor, "train").images
        assert (image.width, image.height) == (WIDTH, HEIGHT)
