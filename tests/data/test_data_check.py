from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from kd_vision.cli import data as data_command
from kd_vision.cli.main import main
from kd_vision.data.check import check_data
from kd_vision.data.descriptor import DataDescriptor, load_descriptor

if TYPE_CHECKING:
    from data.conftest import CocoSet


def line_of(path: Path, entry: str, occurrence: int = 1) -> int:
    """Line of the `{` of the JSON entry that holds the text."""
    lines = path.read_text().splitlines()
    at = [number for number, line in enumerate(lines) if entry in line][occurrence - 1]
    return max(number for number, line in enumerate(lines[: at + 1], start=1) if line.strip() == "{")


def test_a_sound_set_has_no_defects(coco_set: CocoSet) -> None:
    assert check_data(coco_set.write()) == []


def test_every_defect_of_boxes_is_found_with_its_line(coco_set: CocoSet) -> None:
    boxes = coco_set.files["train"]["annotations"]
    boxes[0]["bbox"] = [1, 2, 0, 5]
    boxes[1]["bbox"] = [50, 4, 20, 8]
    boxes[2]["category_id"] = 4
    boxes[3]["bbox"] = [-0.5, 8, 16, 12]
    boxes.append({"id": 15, "image_id": 9, "category_id": 3, "bbox": [1, 1, 2, 2]})
    boxes.append({"id": 16, "image_id": 1, "category_id": 3, "bbox": [1, 1, "x", 2]})
    descriptor = coco_set.write()
    file = coco_set.root / "train.json"
    found = {(defect.kind, defect.line): defect for defect in check_data(descriptor)}
    lines = {number: line_of(file, f'"id": {number},') for number in range(11, 17)}
    assert set(found) == {
        ("zero-area", lines[11]),
        ("out-of-frame", lines[12]),
        ("unknown-category", lines[13]),
        ("out-of-frame", lines[14]),
        ("orphan", lines[15]),
        ("malformed", lines[16]),
    }
    assert all(defect.file == file for defect in found.values())
    wide, slight = found["out-of-frame", lines[12]], found["out-of-frame", lines[14]]
    assert wide.message == "annotation 12 of a.png: box leaves the 64x48 image by 6 pixels"
    assert (wide.level, slight.level) == ("error", "warning")
    assert found["zero-area", lines[11]].message == "annotation 11 of a.png: box has no area, width 0, height 5"


def test_every_defect_of_images_is_found(coco_set: CocoSet) -> None:
    folder = coco_set.root / "train"
    coco_set.files["train"]["images"] += [
        {"id": 3, "file_name": "gone.png", "width": 64, "height": 48},
        {"id": 4, "file_name": "cut.png", "width": 64, "height": 48},
        {"id": 5, "file_name": "twin.png", "width": 64, "height": 48},
        {"id": 6, "file_name": "wide.png", "width": 48, "height": 64},
        {"id": 7, "file_name": "leak.bmp", "width": 64, "height": 48},
    ]
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    shutil.copy(folder / "b.png", folder / "twin.png")
    Image.fromarray(np.random.default_rng(5).integers(0, 255, (48, 64, 3), np.uint8)).save(folder / "wide.png")
    Image.open(coco_set.root / "val" / "c.png").save(folder / "leak.bmp")
    descriptor = coco_set.write()
    train, val = coco_set.root / "train.json", coco_set.root / "val.json"
    found = {(defect.kind, defect.file, defect.line, defect.message) for defect in check_data(descriptor)}
    reason = next(message for kind, *_, message in found if kind == "corrupt")
    assert reason.startswith("is corrupt (")
    assert found == {
        ("missing", train, line_of(train, "gone.png"), f"image {folder / 'gone.png'} is missing"),
        ("corrupt", folder / "cut.png", 0, reason),
        ("duplicated", train, line_of(train, "twin.png"), "twin.png of train has the pixels of b.png"),
        (
            "size-mismatch",
            train,
            line_of(train, "wide.png"),
            "wide.png is 64x48, but recorded as 48x64",
        ),
        ("leak", val, line_of(val, "c.png"), "c.png of val has the pixels of leak.bmp of train"),
    }


def test_exif_rotated_size_is_a_defect(coco_set: CocoSet) -> None:
    path = coco_set.root / "train" / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.copy().save(path, exif=exif.tobytes())
    (defect, *_) = check_data(coco_set.write())
    assert (defect.kind, defect.message) == ("size-mismatch", "a.png is 48x64, but recorded as 64x48")


def smooth(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC))


def test_near_duplicates_between_splits_are_warnings(coco_set: CocoSet) -> None:
    image = smooth(1)
    Image.fromarray(image).save(coco_set.root / "train" / "b.png")
    Image.fromarray((image * 0.9).astype(np.uint8)).save(coco_set.root / "val" / "c.png")
    (defect,) = check_data(coco_set.write())
    assert (defect.kind, defect.level) == ("near-duplicate", "warning")
    assert defect.message == "c.png of val looks like b.png of train"


def test_unlabelled_images_may_overlap_with_train_but_not_with_what_measures(coco_set: CocoSet) -> None:
    more = coco_set.root / "more"
    more.mkdir()
    shutil.copy(coco_set.root / "train" / "a.png", more / "from_train.png")
    shutil.copy(coco_set.root / "val" / "c.png", more / "from_val.png")
    coco_set.descriptor["unlabelled"] = "more"
    (defect,) = check_data(coco_set.write())
    assert (defect.kind, defect.file) == ("unlabelled-overlap", more / "from_val.png")
    assert defect.message == "from_val.png of unlabelled has the pixels of c.png of val"
    shutil.rmtree(more)
    (defect,) = check_data(coco_set.write())
    assert (defect.kind, defect.message) == ("unreadable", "image folder is missing")


def test_unreadable_annotation_file_does_not_hide_the_other_split(coco_set: CocoSet) -> None:
    coco_set.files["val"]["annotations"][0]["bbox"] = [0, 0, 0, 0]
    descriptor = coco_set.write()
    (coco_set.root / "train.json").write_text('{"images": [],\n\n "annotations": 5 5}')
    first, second = check_data(descriptor)
    assert (first.kind, first.file.name, first.line) == ("unreadable", "train.json", 3)
    assert first.message.startswith("is not JSON")
    assert (second.kind, second.file.name) == ("zero-area", "val.json")


def test_yolo_defects(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n0 0.9 0.5 0.4 0.2\n2 0.5 0.5 0.1 0.1\nx\n")
    (tmp_path / "labels" / "gone.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    descriptor = DataDescriptor.model_validate(
        {
            "format": "yolo",
            "root": str(tmp_path),
            "splits": {"train": {"images": "images"}},
            "classes": ["car"],
        }
    )
    found = {(defect.kind, defect.file.name, defect.line) for defect in check_data(descriptor)}
    assert found == {
        ("out-of-frame", "a.txt", 2),
        ("unknown-category", "a.txt", 3),
        ("malformed", "a.txt", 4),
        ("missing", "gone.txt", 1),
    }


def test_real_voc_set_has_its_two_known_defects(real: Callable[[str], DataDescriptor]) -> None:
    defects = check_data(real("bccd_voc"))
    assert {(defect.kind, defect.file.name, defect.line) for defect in defects} == {
        ("zero-area", "BloodImage_00343.xml", 50),
        ("zero-area", "BloodImage_00338.xml", 158),
    }


@pytest.mark.parametrize("name", ["bccd", "coco_tiny"])
def test_real_coco_sets_are_sound(real: Callable[[str], DataDescriptor], name: str) -> None:
    assert check_data(real(name)) == []


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    data_command.add_parser(parser.add_subparsers())
    options = parser.parse_args(["data", *arguments])
    return int(options.run(options))


def test_command_ends_with_2_for_errors_only(
    coco_set: CocoSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = str(coco_set.root / "data.yaml")
    coco_set.files["train"]["annotations"][3]["bbox"] = [-0.5, 8, 16, 12]
    coco_set.write()
    assert call("check", path) == 0
    assert "data.yaml: 0 errors, 1 warning" in capsys.readouterr().out
    coco_set.files["train"]["annotations"][0]["bbox"] = [1, 2, 0, 5]
    coco_set.write()
    assert call("check", path) == 2
    out = capsys.readouterr().out
    assert "zero-area" in out
    assert "data.yaml: 1 error, 1 warning" in out


def test_convert_command(coco_set: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco_set.write()
    status = call("convert", str(coco_set.root / "data.yaml"), "--to", "yolo", "--out", str(tmp_path / "out"))
    out = "".join(capsys.readouterr().out.split())
    assert status == 0
    assert "3images,4boxesasyolo" in out
    assert "leftout,asYOLOcannotholdthem:1crowdboxes" in out
    assert (
        tmp_path / "out" / "labels" / "val" / "c.txt"
    ).read_text() == "0 0.1328125 0.208333333333 0.109375 0.166666666667\n"


def test_synth_command_writes_a_sound_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scenes"
    counts = ("--train", "2", "--val", "1", "--test", "0", "--unlabelled", "1", "--image-size", "128")
    assert call("synth", "--out", str(out), *counts) == 0
    assert "4scenes" in "".join(capsys.readouterr().out.split())
    assert check_data(load_descriptor(out / "data.yaml")) == []


def test_splits_with_nothing_in_them_are_named(coco_set: CocoSet) -> None:
    coco_set.files["train"]["annotations"] = []
    coco_set.files["val"] |= {"images": [], "annotations": []}
    found = check_data(coco_set.write())
    assert [(defect.kind, defect.level, defect.message) for defect in found] == [
        ("empty", "warning", "split 'train' holds no box"),
        ("empty", "error", "split 'val' holds no images"),
    ]


def test_a_negative_number_of_scenes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "synth", "--out", str(tmp_path / "s"), "--train", "-4", "--val", "0"]) == 2
    assert "-4 scenes for split 'train'; give 1 to" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
