from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from kd_vision.core.errors import RequestError
from kd_vision.data.dataset import load_split, load_unlabelled
from kd_vision.data.descriptor import DataDescriptor, SplitSource
from kd_vision.data.formats.coco import to_coco

if TYPE_CHECKING:
    from data.conftest import CocoSet

Real = Callable[[str], DataDescriptor]


def test_coco_boxes_labels_and_crowds(coco_set: CocoSet) -> None:
    data = load_split(coco_set.write(), "train")
    assert data.classes == ("cat", "dog")
    assert data.category_ids == (3, 7)
    first, second = data.images
    np.testing.assert_allclose(first.boxes_xyxy, [[1.25, 2.5, 11.35, 22.7], [30, 4, 50, 12]], rtol=1e-6)
    assert first.labels.tolist() == [1, 0]
    assert first.areas.tolist() == [99.5, 160.0]
    assert (first.width, first.height, first.labelled) == (64, 48, True)
    assert second.crowd.tolist() == [True, False]


def test_to_coco_gives_back_the_numbers_of_the_file(coco_set: CocoSet) -> None:
    descriptor = coco_set.write()
    content = to_coco(load_split(descriptor, "train"))
    published = coco_set.files["train"]["annotations"]
    for ours, theirs in zip(content["annotations"], published, strict=True):
        for key in ("image_id", "category_id", "bbox", "area", "iscrowd"):
            assert ours[key] == theirs[key]
    assert [entry["id"] for entry in content["annotations"]] == [1, 2, 3, 4]
    assert content["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]


def test_classes_of_the_descriptor_give_the_order(coco_set: CocoSet) -> None:
    coco_set.descriptor["classes"] = ["dog", "cat"]
    data = load_split(coco_set.write(), "train")
    assert data.category_ids == (7, 3)
    assert data.images[0].labels.tolist() == [0, 1]


def test_other_classes_are_errors_unless_a_subset_is_asked_for(coco_set: CocoSet) -> None:
    coco_set.descriptor["classes"] = ["dog"]
    with pytest.raises(RequestError) as caught:
        load_split(coco_set.write(), "train")
    assert len(caught.value.problems) == 2
    assert "annotation 12: category 'cat' is not among the descriptor's classes (dog)" in str(caught.value)
    coco_set.descriptor["subset"] = True
    data = load_split(coco_set.write(), "train")
    assert [image.labels.tolist() for image in data.images] == [[0], [0]]
    assert data.category_ids == (7,)


def test_class_that_no_file_has_is_an_error_with_the_near_miss(coco_set: CocoSet) -> None:
    coco_set.descriptor["classes"] = ["cat", "dogs"]
    with pytest.raises(RequestError, match=r"class 'dogs' .* is not in the annotations; did you mean 'dog'\?"):
        load_split(coco_set.write(), "train")


def test_unknown_category_and_image_are_told_together_with_their_lines(coco_set: CocoSet) -> None:
    boxes = coco_set.files["train"]["annotations"]
    boxes[0]["category_id"] = 99
    boxes[1]["image_id"] = 55
    boxes[2]["bbox"] = [1, 2, 3]
    descriptor = coco_set.write()
    with pytest.raises(RequestError) as caught:
        load_split(descriptor, "train")
    text = (coco_set.root / "train.json").read_text().splitlines()
    lines = [number for number, line in enumerate(text, start=1) if line == "  {"]
    # Two images come before the annotations.
    where = f"{coco_set.root / 'train.json'}:"
    expected = [
        f"{where}{lines[3]}: annotation 12 belongs to image 55, which is not listed",
        f"{where}{lines[4]}: annotation 13 needs image_id, category_id and bbox with four finite numbers",
        f"{where}{lines[2]}: annotation 11: unknown category '99'; possible: 3, 7",
    ]
    assert sorted(caught.value.problems) == sorted(expected)


def test_zero_area_is_left_out_and_counted(coco_set: CocoSet) -> None:
    coco_set.files["train"]["annotations"][1]["bbox"] = [30, 4, 0, 8]
    data = load_split(coco_set.write(), "train")
    assert data.zero_area_dropped == 1
    assert data.images[0].labels.tolist() == [1]


def test_missing_image_file_is_told_before_training(coco_set: CocoSet) -> None:
    descriptor = coco_set.write()
    (coco_set.root / "train" / "b.png").unlink()
    with pytest.raises(RequestError, match=r"train.json:\d+: image .*b.png is missing"):
        load_split(descriptor, "train")


def test_unknown_split_lists_those_possible(coco_set: CocoSet) -> None:
    descriptor = coco_set.write()
    with pytest.raises(RequestError, match=r"^unknown split 'vla'; did you mean 'val'\? \(possible: train, val\)$"):
        load_split(descriptor, "vla")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations": [}', r"train.json:2: is not JSON"),
        ('{"images": []}', "has no list annotations and no list categories"),
        ("[]", "train.json: is a list; give a COCO detection file, an object with images, annotations, categories"),
        (" ", "train.json: is empty; give a COCO detection file"),
    ],
)
def test_broken_coco_file_is_named_with_its_line(coco_set: CocoSet, text: str, message: str) -> None:
    descriptor = coco_set.write()
    (coco_set.root / "train.json").write_text(text)
    with pytest.raises(RequestError, match=message):
        load_split(descriptor, "train")


def test_content_hash_sees_boxes_and_files(coco_set: CocoSet) -> None:
    descriptor = coco_set.write()
    first = load_split(descriptor, "train").content_hash()
    assert load_split(descriptor, "train").content_hash() == first
    coco_set.files["train"]["annotations"][0]["bbox"][0] = 1.26
    moved = load_split(coco_set.write(), "train").content_hash()
    with (coco_set.root / "train" / "a.png").open("ab") as file:
        file.write(b"longer")
    longer = load_split(descriptor, "train").content_hash()
    assert len({first, moved, longer}) == 3


def test_unlabelled_folder(coco_set: CocoSet) -> None:
    descriptor = coco_set.write()
    with pytest.raises(RequestError, match="has no unlabelled folder; add `unlabelled: FOLDER`"):
        load_unlabelled(descriptor)
    more = coco_set.root / "more" / "deep"
    more.mkdir(parents=True)
    coco_set.descriptor["unlabelled"] = "more"
    with pytest.raises(RequestError, match="more: the unlabelled folder holds no images"):
        load_unlabelled(coco_set.write())
    Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(more / "x.png")
    data = load_unlabelled(coco_set.write())
    assert data.classes == ("cat", "dog")
    (record,) = data.images
    assert (record.width, record.height, record.labelled, record.file_name) == (9, 5, False, "deep/x.png")
    assert len(record.labels) == 0


def test_listed_unlabelled_images_alone_are_read(coco_set: CocoSet) -> None:
    more = coco_set.root / "more"
    more.mkdir()
    for name in ("north-1.png", "north-2.png", "south.png"):
        Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(more / name)
    listed = coco_set.root / "selected.txt"
    listed.write_text("south.png\nnorth-1.png\n")
    coco_set.descriptor["unlabelled"] = {"images": "more", "list": "selected.txt"}
    assert [image.file_name for image in load_unlabelled(coco_set.write()).images] == ["north-1.png", "south.png"]
    listed.write_text("nroth-2.png\nsouth.png\nelsewhere.jpeg\n")
    with pytest.raises(RequestError) as caught:
        load_unlabelled(coco_set.write())
    assert caught.value.problems == (
        f"{listed}: nroth-2.png is not among the images of {more}; did you mean 'north-2.png'?",
        f"{listed}: elsewhere.jpeg is not among the images of {more}",
    )


def test_all_unlabelled_images_that_cannot_be_opened_are_named(coco_set: CocoSet) -> None:
    more = coco_set.root / "more"
    more.mkdir()
    for name in ("b.png", "a.png"):
        (more / name).write_bytes(b"no image")
    coco_set.descriptor["unlabelled"] = "more"
    with pytest.raises(RequestError) as caught:
        load_unlabelled(coco_set.write())
    kinds = "is not an image of a known kind; give JPEG, PNG, TIFF, BMP or WebP"
    assert caught.value.problems == (f"{more / 'a.png'}: {kinds}", f"{more / 'b.png'}: {kinds}")


def yolo_set(root: Path, label: str) -> DataDescriptor:
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for name in ("a", "empty"):
        Image.fromarray(np.zeros((50, 200, 3), np.uint8)).save(root / "images" / f"{name}.png")
    (root / "labels" / "a.txt").write_text(label)
    splits = {"train": SplitSource(images="images")}
    return DataDescriptor(format="yolo", root=root, splits=splits, classes=("car", "bus"))


def test_yolo_boxes_and_polygons(tmp_path: Path) -> None:
    data = load_split(yolo_set(tmp_path, "1 0.5 0.5 0.25 0.2\n\n0 0.1 0.2 0.3 0.2 0.2 0.6\n"), "train")
    full, empty = data.images
    np.testing.assert_allclose(full.boxes_xyxy, [[75, 20, 125, 30], [20, 10, 60, 30]], rtol=1e-6)
    assert full.labels.tolist() == [1, 0]
    np.testing.assert_allclose(full.areas, [500, 800])
    assert (len(empty.labels), empty.labelled) == (0, True)


def test_yolo_mistakes_come_with_file_and_line(tmp_path: Path) -> None:
    descriptor = yolo_set(tmp_path, "0 0.5 0.5 0.1 0.1\n7 0.5 0.5 0.1 0.1\ncar 0.5 0.5 0.1 0.1\n0 0.5 0.5\n")
    with pytest.raises(RequestError) as caught:
        load_split(descriptor, "train")
    file = tmp_path / "labels" / "a.txt"
    assert set(caught.value.problems) == {
        f"{file}:2: box 2: unknown category '7'; possible: 0, 1",
        f"{file}:3: needs 'class cx cy w h' with numbers, found 'car 0.5 0.5 0.1 0.1'",
        f"{file}:4: needs 'class cx cy w h' with numbers, found '0 0.5 0.5'",
    }


def test_yolo_image_list_chooses_and_names_what_is_missing(tmp_path: Path) -> None:
    descriptor = yolo_set(tmp_path, "")
    (tmp_path / "list.txt").write_text("empty.png\n")
    listed = {"train": SplitSource(images="images", image_list="list.txt")}
    data = load_split(descriptor.model_copy(update={"splits": listed}), "train")
    assert [image.file_name for image in data.images] == ["empty.png"]
    (tmp_path / "list.txt").write_text("gone.png\n")
    with pytest.raises(RequestError, match=r"gone.png: image is missing"):
        load_split(descriptor.model_copy(update={"splits": listed}), "train")


VOC = """<annotation>
 <size><width>60</width><height>40</height><depth>3</depth></size>
 <object>
  <name>{name}</name><difficult>{difficult}</difficult>
  <bndbox><xmin>1.5</xmin><ymin>2</ymin><xmax>{xmax}</xmax><ymax>20</ymax></bndbox>
 </object>
</annotation>
"""


def voc_set(root: Path, **values: object) -> DataDescriptor:
    (root / "images").mkdir()
    (root / "xml").mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / "images" / "a.jpg")
    (root / "xml" / "a.xml").write_text(VOC.format(**{"name": "cat", "difficult": 0, "xmax": 11.5, **values}))
    splits = {"train": SplitSource(images="images", annotations="xml")}
    return DataDescriptor(format="voc", root=root, splits=splits)


def test_voc_corners_are_taken_as_they_stand(tmp_path: Path) -> None:
    data = load_split(voc_set(tmp_path, difficult=1), "train")
    (image,) = data.images
    assert image.boxes_xyxy.tolist() == [[1.5, 2, 11.5, 20]]
    assert image.areas.tolist() == [180.0]
    assert image.crowd.tolist() == [True]
    assert data.classes == ("cat",)


def test_voc_mistakes_come_with_file_and_line(tmp_path: Path) -> None:
    descriptor = voc_set(tmp_path, xmax="wide")
    with pytest.raises(RequestError, match=r"a.xml:3: object needs a name and bndbox with xmin, ymin, xmax, ymax"):
        load_split(descriptor, "train")
    (tmp_path / "xml" / "a.xml").write_text("<annotation>\n<object>\n")
    with pytest.raises(RequestError, match=r"a.xml:3: is not XML"):
        load_split(descriptor, "train")


def test_voc_unknown_name(tmp_path: Path) -> None:
    descriptor = voc_set(tmp_path, name="kat").model_copy(update={"classes": ("cat", "dog")})
    with pytest.raises(RequestError, match=r"a.xml:3: object 1: unknown category 'kat'; did you mean 'cat'\?"):
        load_split(descriptor, "train")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("bccd", {"train": (205, 2804), "val": (87, 1137), "test": (72, 945)}),
        ("bccd_voc", {"train": (205, 2804), "val": (87, 1137), "test": (72, 945)}),
        ("traffic", {"train": (164, 2778), "val": (60, 1047), "test": (60, 949)}),
        ("traffic_yolo", {"train": (164, 2778), "val": (60, 1047), "test": (60, 949)}),
        ("aerial", {"train": (190, 2072), "val": (67, 740), "test": (57, 674), "full_test": (8, 139)}),
        ("coco_tiny", {"train": (32, 288), "val": (6, 136)}),
    ],
)
def test_real_sets_have_the_published_counts(real: Real, name: str, counts: dict[str, tuple[int, int]]) -> None:
    descriptor = real(name)
    found = {}
    for split in counts:
        data = load_split(descriptor, split)
        found[split] = (len(data), sum(len(image.labels) for image in data.images))
    assert found == counts


def test_voc_and_coco_files_of_one_set_say_the_same(real: Real) -> None:
    for coco, voc in zip(load_split(real("bccd"), "val").images, _sorted(real("bccd_voc")), strict=True):
        assert coco.file_name == voc.file_name
        order = [np.lexsort(image.boxes_xyxy.T) for image in (coco, voc)]
        np.testing.assert_array_equal(coco.boxes_xyxy[order[0]], voc.boxes_xyxy[order[1]])
        np.testing.assert_array_equal(coco.labels[order[0]], voc.labels[order[1]])


def _sorted(descriptor: DataDescriptor) -> list:
    return list(load_split(descriptor, "val").images)


def test_zero_area_boxes_of_the_real_voc_files_are_counted(real: Real) -> None:
    descriptor = real("bccd_voc")
    assert sum(load_split(descriptor, split).zero_area_dropped for split in descriptor.splits) == 2


def test_coco_tiny_keeps_gaps_and_crowds(real: Real) -> None:
    descriptor = real("coco_tiny")
    data = load_split(descriptor, "train")
    assert len(data.classes) == 80
    assert data.category_ids[-1] == 90
    assert data.classes[data.category_ids.index(13)] == "stop sign"
    crowds = sum(int(i.crowd.sum()) for s in ("train", "val") for i in load_split(descriptor, s).images)
    assert crowds == 5


def test_cocoeval_answers_the_same_on_our_file_and_the_published_one(real: Real) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    descriptor = real("coco_tiny")
    published = json.loads(Path(descriptor.splits["val"].annotations or "").read_text())
    rng = np.random.default_rng(0)
    results = [
        {
            "image_id": box["image_id"],
            "category_id": box["category_id"],
            "bbox": (np.array(box["bbox"]) * rng.uniform(0.9, 1.1, 4)).tolist(),
            "score": float(rng.random()),
        }
        for box in published["annotations"]
    ]
    numbers = []
    for content in (published, to_coco(load_split(descriptor, "val"))):
        with redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = content
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        numbers.append(evaluation.stats)
    np.testing.assert_array_equal(*numbers)
    assert 0.2 < numbers[0][0] < 1.0
