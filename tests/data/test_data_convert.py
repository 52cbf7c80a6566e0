from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from kd_vision.core.errors import RequestError
from kd_vision.data.convert import convert
from kd_vision.data.dataset import load_split, load_unlabelled
from kd_vision.data.descriptor import DataDescriptor, load_descriptor
from kd_vision.data.formats.coco import to_coco
from kd_vision.data.records import DetectionData

if TYPE_CHECKING:
    from data.conftest import CocoSet


def assert_alike(one: DetectionData, other: DetectionData, crowds: bool = True) -> None:
    assert one.classes == other.classes
    names = {image.file_name: image for image in other.images}
    assert len(names) == len(one.images)
    for image in one.images:
        twin = names[image.file_name]
        keep = np.ones(len(image.labels), bool) if crowds else ~image.crowd
        np.testing.assert_allclose(image.boxes_xywh[keep], twin.boxes_xywh, rtol=0, atol=1e-7)
        np.testing.assert_array_equal(image.labels[keep], twin.labels)
        np.testing.assert_array_equal(image.crowd[keep], twin.crowd)
        assert (image.width, image.height) == (twin.width, twin.height)


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_round_trip_gives_the_same_boxes(coco_set: CocoSet, tmp_path: Path, to: str) -> None:
    descriptor = coco_set.write()
    there = convert(descriptor, tmp_path / "there", to)
    back = convert(load_descriptor(there.descriptor), tmp_path / "back", "coco")
    assert there.crowd_dropped == (1 if to == "yolo" else 0)
    assert (there.images, there.boxes) == (3, 5 - there.crowd_dropped)
    for split in ("train", "val"):
        data = load_split(descriptor, split)
        assert_alike(data, load_split(load_descriptor(there.descriptor), split), crowds=to != "yolo")
        assert_alike(data, load_split(load_descriptor(back.descriptor), split), crowds=to != "yolo")


def test_coco_to_coco_keeps_every_number(coco_set: CocoSet, tmp_path: Path) -> None:
    descriptor = coco_set.write()
    made = load_descriptor(convert(descriptor, tmp_path / "out", "coco").descriptor)
    assert to_coco(load_split(made, "train")) == to_coco(load_split(descriptor, "train"))
    written = (tmp_path / "out" / "annotations" / "train.json").read_text()
    assert json.loads(written) == to_coco(load_split(descriptor, "train"))


@pytest.mark.parametrize("name", ["bccd", "traffic", "coco_tiny"])
@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_real_sets_come_back(real: Callable[[str], DataDescriptor], tmp_path: Path, name: str, to: str) -> None:
    descriptor = real(name)
    only = {"val": descriptor.splits["val"]}
    descriptor = descriptor.model_copy(update={"splits": only})
    made = load_descriptor(convert(descriptor, tmp_path / "out", to).descriptor)
    assert_alike(load_split(descriptor, "val"), load_split(made, "val"), crowds=to != "yolo")


def test_yolo_files_say_what_the_published_ones_say(real: Callable[[str], DataDescriptor], tmp_path: Path) -> None:
    descriptor = real("traffic")
    published = load_split(real("traffic_yolo"), "val")
    made = load_descriptor(convert(descriptor, tmp_path / "out", "yolo").descriptor)
    names = {image.file_name: image for image in load_split(made, "val").images}
    for image in published.images:
        ours = names[image.file_name]
        np.testing.assert_array_equal(image.labels, ours.labels)
        # The COCO file has two decimals.
        np.testing.assert_allclose(image.boxes_xyxy, ours.boxes_xyxy, atol=0.02)


def test_ultralytics_opens_the_yolo_set(coco_set: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    convert(coco_set.write(), tmp_path / "out", "yolo")
    check = pytest.importorskip("ultralytics.data.utils").check_det_dataset
    found = check(str(tmp_path / "out" / "ultralytics.yaml"), autodownload=False)
    assert found["names"] == {0: "cat", 1: "dog"}
    assert Path(found["train"]) == tmp_path / "out" / "images" / "train"


def test_images_are_linked_or_copied_and_unlabelled_ones_come_along(coco_set: CocoSet, tmp_path: Path) -> None:
    more = coco_set.root / "more"
    more.mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(more / "x.png")
    coco_set.descriptor["unlabelled"] = "more"
    descriptor = coco_set.write()
    steps: list[tuple[int, int]] = []
    linked = convert(descriptor, tmp_path / "linked", "coco", on_image=lambda done, all_: steps.append((done, all_)))
    copied = convert(descriptor, tmp_path / "copied", "coco", copy_images=True)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert linked.images == 4
    assert (tmp_path / "linked" / "images" / "train" / "a.png").is_symlink()
    copy = tmp_path / "copied" / "images" / "train" / "a.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (coco_set.root / "train" / "a.png").read_bytes()
    assert len(load_unlabelled(load_descriptor(copied.descriptor))) == 1


def test_full_folder_is_refused_and_nothing_half_written_stays(coco_set: CocoSet, tmp_path: Path) -> None:
    descriptor = coco_set.write()
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    with pytest.raises(RequestError, match="full: exists and is not an empty folder; give another --out"):
        convert(descriptor, full, "yolo")
    (coco_set.root / "val" / "c.png").unlink()
    with pytest.raises(RequestError, match=r"c.png is missing"):
        convert(descriptor, tmp_path / "out", "yolo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "set"]


def test_images_that_would_share_a_label_file_are_named(coco_set: CocoSet, tmp_path: Path) -> None:
    coco_set.files["train"]["images"][1]["file_name"] = "a.jpg"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(coco_set.root / "train" / "a.jpg")
    with pytest.raises(RequestError, match=r"split train: .*a.jpg and .*a.png would share the name a; rename one"):
        convert(coco_set.write(), tmp_path / "out", "yolo")
    assert convert(coco_set.descriptor and coco_set.write(), tmp_path / "out", "coco").images == 3
