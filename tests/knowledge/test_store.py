from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData
from kd_vision.knowledge.manifest import TeacherNote
from kd_vision.knowledge.shard import ShardRows, StoredImage, encode
from kd_vision.knowledge.store import read_store, refuse_other_teacher
from kd_vision.knowledge.writer import EXPECTED_BYTES, SHARD_SIZE

Make = Callable[[int], DetectionData]


def test_what_was_said_comes_back(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(6)
    words = [kit.said(seed, count=seed, width=40, height=30) for seed in range(6)]
    store = kit.finish(kit.begin(tmp_path / "store", data), words)
    assert store.classes == kit.CLASSES
    assert [image.name for image in store.images] == [f"{number:03}.png" for number in range(6)]
    for image, word in zip(data.images, words, strict=True):
        found = store.of(image)
        np.testing.assert_allclose(found.boxes_xyxy, word.boxes_xyxy, atol=40 / 65535 / 2 + 1e-5)
        np.testing.assert_allclose(found.scores, word.scores, rtol=2**-11, atol=1e-7)
        np.testing.assert_array_equal(found.labels, word.labels)
        if len(word) == 0:
            assert len(found) == 0
            continue
        assert word.class_probs is not None
        assert found.class_probs is not None
        kept = np.where(word.class_probs >= np.sort(word.class_probs, axis=1)[:, [-3]], word.class_probs, 0)
        np.testing.assert_allclose(found.class_probs, kept, rtol=2**-11, atol=1e-7)


def test_boxes_are_true_to_a_hundredth_of_a_pixel_of_a_thousand(kit: Any) -> None:
    image = StoredImage("a.png", "00" * 32, 9, 1000, 1000)
    word = kit.said(3, 500, 1000, 1000)
    found = ShardRows([encode([image], [word], 1)], 5).detections(0)
    off = np.abs(found.boxes_xyxy - word.boxes_xyxy)
    assert 0.005 < off.max() < 0.01


def test_absent_probabilities_stay_absent_and_ignored_boxes_ignored(kit: Any) -> None:
    image = StoredImage("a.png", "00" * 32, 9, 40, 30)
    bare = Detections(np.array([[1, 2, 3, 4]], np.float32), np.array([0.5], np.float32), np.array([4]))
    marked = replace(kit.said(1, 2, 40, 30), ignore=np.array([False, True]))
    rows = ShardRows([encode([image, image], [bare, marked], 3)], 5)
    assert rows.detections(0).class_probs is None
    assert rows.detections(0).ignore is None
    second = rows.detections(1).ignore
    assert second is not None
    assert second.tolist() == [False, True]


def test_an_image_with_twenty_objects_takes_little(kit: Any, tmp_path: Path, images: Make) -> None:
    """Whole files at the default shard size, COCO's 80 classes, five of them kept, noise in every number."""
    names = tuple(f"class {number}" for number in range(80))
    writer = kit.begin(tmp_path / "store", images(SHARD_SIZE), SHARD_SIZE, classes=names, options={"top_k": 5})
    kit.finish(writer, [kit.said(number, 20, 40, 30, classes=80) for number in range(SHARD_SIZE)])
    disk = sum(file.stat().st_size for file in (tmp_path / "store").iterdir())
    assert disk / SHARD_SIZE < EXPECTED_BYTES < 1200


def test_the_same_words_give_the_same_bytes(kit: Any, tmp_path: Path, images: Make) -> None:
    data, words = images(6), [kit.said(seed, 4, 40, 30) for seed in range(6)]
    for name in ("one", "two"):
        kit.finish(kit.begin(tmp_path / name, data), words)
    for file in ("manifest.json", "images.txt", "shard-00000.parquet", "shard-00001.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_finished_shards_are_kept_and_spoilt_ones_are_written_again(kit: Any, tmp_path: Path, images: Make) -> None:
    data, words = images(14), [kit.said(seed, 4, 40, 30) for seed in range(14)]
    folder = tmp_path / "store"
    first = kit.begin(folder, data)
    assert first.missing == [0, 1, 2, 3]
    first.write(0, words[:4])
    first.write(2, words[8:12])
    again = kit.begin(folder, data)
    assert again.missing == [1, 3]
    assert again.kept == 2
    kit.finish(again, words)
    shard = folder / "shard-00002.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    (folder / "shard-00003.parquet").unlink()
    changed = data.images[5].path
    changed.write_bytes(changed.read_bytes() + b" ")
    assert kit.begin(folder, data).missing == [1, 2, 3]
    kit.finish(kit.begin(folder, data), words)
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"score_threshold": 0.05, "top_k": 5}}, "was begun with top_k 3, now 5; use another --out"),
        (
            {"options": {"score_threshold": 0.05, "top_k": 3, "tta": True}},
            "was begun with tta None, now True; use another --out",
        ),
        (
            {"teacher": TeacherNote(fingerprint="0" * 64, description="yolo11x")},
            "was begun by another teacher (yolov8s teacher.pt, content ffffffffffff; now yolo11x, 000000000000); "
            "use another --out",
        ),
        ({"classes": ("cat",)}, "was begun with the classes car, van, bus, person, dog; use another --out"),
        ({"shard_size": 8}, "was begun with shard_size 4, now 8; use another --out"),
    ],
)
def test_another_request_is_refused(
    kit: Any, tmp_path: Path, images: Make, change: dict[str, object], message: str
) -> None:
    data = images(2)
    kit.begin(tmp_path / "store", data)
    with pytest.raises(RequestError, match=re.escape(f"{tmp_path / 'store'}: {message}")):
        kit.begin(tmp_path / "store", data, **change)


def test_another_list_of_images_is_refused(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(3)
    kit.begin(tmp_path / "store", data)
    other = replace(data, images=(*data.images[1:], kit.record(data.images[0].path, 9, 40, 30, "b/new.png")))
    message = "was begun for other images (1 added, e.g. b/new.png; 1 removed, e.g. 000.png); use another --out"
    with pytest.raises(RequestError, match=re.escape(message)):
        kit.begin(tmp_path / "store", other)


def test_a_folder_that_is_no_store_is_left_alone(kit: Any, tmp_path: Path, images: Make) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(RequestError, match="exists and is no knowledge store; give another --out"):
        kit.begin(tmp_path, images(1))


def test_a_small_disk_is_refused_before_anything_is_written(
    kit: Any, tmp_path: Path, images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * EXPECTED_BYTES - 1))
    with pytest.raises(RequestError, match="2 images take about 0 MB, and the disk has 0 MB free; make room"):
        kit.begin(tmp_path / "store", images(2))
    assert not (tmp_path / "store").exists()


def test_a_store_that_cannot_be_trusted_is_not_read(kit: Any, tmp_path: Path, images: Make) -> None:
    data, words = images(6), [kit.said(seed, 4, 40, 30) for seed in range(6)]
    folder = tmp_path / "store"
    with pytest.raises(RequestError, match=r"is no knowledge store \(no manifest.json\); make one with"):
        read_store(folder)
    writer = kit.begin(folder, data)
    writer.write(0, words[:4])
    with pytest.raises(RequestError, match="holds 4 of 6 images; to finish it, run the same `kd-vision label` command"):
        read_store(folder)
    kit.finish(writer, words)
    shard = folder / "shard-00001.parquet"
    whole = bytearray(shard.read_bytes())
    whole[len(whole) // 2] ^= 1
    shard.write_bytes(whole)
    message = rf"^{shard}: is damaged .*; to write it again, run the same `kd-vision label` command again$"
    with pytest.raises(RequestError, match=message):
        read_store(folder)
    shard.unlink()
    with pytest.raises(RequestError, match=rf"^{shard}: cannot be read \(No such file or directory\)"):
        read_store(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(RequestError, match="is of format version 2, this kd_vision reads 1; label the images again"):
        read_store(folder)


def test_images_are_found_by_content_wherever_they_lie(kit: Any, tmp_path: Path, images: Make) -> None:
    data, words = images(5), [kit.said(seed, 4, 40, 30) for seed in range(5)]
    store = kit.finish(kit.begin(tmp_path / "store", data), words)
    moved = tmp_path / "elsewhere" / "x.png"
    moved.parent.mkdir()
    shutil.copyfile(data.images[3].path, moved)
    np.testing.assert_array_equal(store.of(kit.record(moved, 77, 40, 30)).labels, words[3].labels)
    data.images[3].path.write_bytes(data.images[3].path.read_bytes() + b"!")
    with pytest.raises(
        RequestError, match=r"003.png: has changed since it was labelled as 003.png in .*; label it again"
    ):
        store.of(data.images[3])
    fresh = tmp_path / "elsewhere" / "y.png"
    fresh.write_bytes(b"new")
    with pytest.raises(RequestError, match=r"y.png: is not in the knowledge store .*; label it too"):
        store.of(kit.record(fresh, 78, 40, 30))


def test_by_size_no_file_is_read_and_a_change_of_size_is_seen(
    kit: Any, tmp_path: Path, images: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, words = images(3), [kit.said(seed, 4, 40, 30) for seed in range(3)]
    kit.finish(kit.begin(tmp_path / "store", data), words)
    store = read_store(tmp_path / "store", "size")
    read: list[Path] = []
    monkeypatch.setattr("kd_vision.knowledge.store.file_sha256", lambda path: read.append(path) or "")
    np.testing.assert_array_equal(store.of(data.images[1]).labels, words[1].labels)
    assert read == []
    data.images[1].path.write_bytes(data.images[1].path.read_bytes() + b"!")
    with pytest.raises(RequestError, match="has changed since"):
        store.of(data.images[1])


def test_another_teachers_store_is_refused(kit: Any, tmp_path: Path, images: Make) -> None:
    store = kit.finish(kit.begin(tmp_path / "store", images(1)), [kit.said(0, 2, 40, 30)])
    refuse_other_teacher(store.path, store.manifest.teacher, kit.TEACHER.fingerprint, "c.yaml: knowledge")
    message = (
        f"c.yaml: knowledge: {tmp_path / 'store'} was labelled by another teacher (yolov8s teacher.pt, ffffffffffff; "
        "'teacher:' is 0123456789ab); label again, or leave 'teacher:' out"
    )
    with pytest.raises(RequestError, match=re.escape(message)):
        refuse_other_teacher(store.path, store.manifest.teacher, "0123456789abcdef", "c.yaml: knowledge")


def test_a_store_remembers_the_classes_that_nobody_learned(kit: Any, tmp_path: Path, images: Make) -> None:
    data = images(2)
    plain = kit.finish(kit.begin(tmp_path / "plain", data), [Detections.empty()] * 2)
    assert plain.missing_classes == ()
    kit.finish(kit.begin(tmp_path / "store", data, missing_classes=("bus", "dog")), [Detections.empty()] * 2)
    assert read_store(tmp_path / "store").missing_classes == ("bus", "dog")
    older = json.loads((tmp_path / "store" / "manifest.json").read_text())
    del older["missing_classes"]
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(older))
    assert read_store(tmp_path / "store").missing_classes == ()


@pytest.mark.parametrize("names", [["images.txt"], ["images.txt.part"], ["manifest.json.part", "images.txt"]])
def test_a_store_killed_at_its_very_beginning_is_begun_again(
    names: list[str], kit: Any, tmp_path: Path, images: Make
) -> None:
    (tmp_path / "store").mkdir()
    for name in names:
        (tmp_path / "store" / name).write_text("000.png\n00")
    store = kit.finish(kit.begin(tmp_path / "store", images(2)), [Detections.empty()] * 2)
    assert len(store) == 2
    (tmp_path / "other").mkdir()
    for name in (*names, "mine.txt"):
        (tmp_path / "other" / name).write_text("")
    with pytest.raises(RequestError, match="exists and is no knowledge store; give another --out"):
        kit.begin(tmp_path / "other", images(2))


def test_the_manifest_is_written_first(kit: Any, tmp_path: Path, images: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kd_vision.knowledge.writer.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        kit.begin(tmp_path / "store", images(2))
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["manifest.json"]
