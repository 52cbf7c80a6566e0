from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_vision.cli.main import main
from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import KDVisionError, RequestError
from kd_vision.core.predictions import BatchDetections, Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.dataset import DetectionData, load_split, load_unlabelled, records_of
from kd_vision.data.descriptor import load_descriptor
from kd_vision.knowledge.dataset import PseudoLabelThresholds
from kd_vision.knowledge.manifest import TeacherNote
from kd_vision.knowledge.store import read_store
from kd_vision.knowledge.writer import StoreWriter
from kd_vision.pipeline.label import DatasetRequest, LabelOptions, fill, label
from kd_vision.runtime.images import list_images
from kd_vision.teachers.options import DEFAULT_TEACHER_POSTPROCESS
from kd_vision.teachers.pseudo_labels import to_pseudo_labels

QUICK = LabelOptions(batch_size=3, shard_size=4, workers=0)
SPEC = DetectorSpec("fake", "eye", ("red", "blue"), {}, {}, frozenset({"detections"}), size_multiple=1)


class Eye:
    """Sees one box per image, of a place and score that its pixels decide; counts, and dies when told to."""

    spec = SPEC

    def __init__(self, dies_at: int | None = None) -> None:
        self.seen: list[int] = []
        self.batches: list[int] = []
        self._dies_at = dies_at

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        if len(self.batches) == self._dies_at:
            raise KeyboardInterrupt
        self.batches.append(len(batch))
        self.seen += batch.image_ids
        bright = batch.images.float().mean(dim=(1, 2, 3)).numpy() / 255
        return [self._box(float(value)) for value in bright]

    @staticmethod
    def _box(bright: float) -> Detections:
        place = np.array([[1, 2, 3 + 20 * bright, 30]], np.float32)
        return Detections(place, np.array([bright], np.float32), np.array([int(bright > 0.45)]))


@pytest.fixture
def free(squares: Path) -> DetectionData:
    return load_unlabelled(load_descriptor(squares))


def writer(folder: Path, data: DetectionData) -> StoreWriter:
    note = TeacherNote(fingerprint="f", description="eye")
    return StoreWriter(folder, note, SPEC.classes, {"top_k": 2}, data.images, QUICK.shard_size)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_stopped_labelling_goes_on_without_loss_or_repeat(tmp_path: Path, free: DetectionData) -> None:
    """Eight images in two shards of four, three a batch: batches of 3, 1, 3, 1."""
    whole = Eye()
    assert fill(writer(tmp_path / "whole", free), whole, 64, QUICK) == 8
    assert whole.batches == [3, 1, 3, 1]
    first = Eye(dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        fill(writer(tmp_path / "cut", free), first, 64, QUICK)
    assert [name for name in content(tmp_path / "cut") if name.startswith("shard")] == ["shard-00000.parquet"]
    second = Eye()
    assert fill(writer(tmp_path / "cut", free), second, 64, QUICK) == 4
    assert first.seen[:4] + second.seen == whole.seen
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    idle = Eye()
    assert fill(writer(tmp_path / "cut", free), idle, 64, QUICK) == 0
    assert idle.batches == []


def test_what_is_stored_is_what_was_said_in_pixels_of_the_file(tmp_path: Path, free: DetectionData) -> None:
    fill(writer(tmp_path / "store", free), Eye(), 64, replace(QUICK, workers=1))
    store = read_store(tmp_path / "store")
    for image in free.images:
        found = store.of(image)
        assert found.boxes_xyxy[0, 2] == pytest.approx(3 + 20 * found.scores[0], abs=0.02)


def test_an_unreadable_image_ends_the_work_and_leaves_what_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(np.full((64, 64, 3), 20 * number, np.uint8)).save(folder / f"{number}.jpg")
    torn = folder / "5.jpg"
    torn.write_bytes(torn.read_bytes()[:-60])  # the header is whole: found at its turn
    data = DetectionData("x", (), (), records_of(list_images(folder), folder))
    with pytest.raises(RequestError, match=rf"^{torn}: is corrupt"):
        fill(writer(tmp_path / "store", data), Eye(), 64, QUICK)
    assert writer(tmp_path / "store", data).missing == [1]


def test_a_full_disk_is_told_and_leaves_what_is_done(
    tmp_path: Path, free: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = writer(tmp_path / "store", free)
    write = made.write

    def full(shard: int, found: list[Detections]) -> None:
        if shard == 1:
            raise OSError(28, "No space left on device")
        write(shard, found)

    monkeypatch.setattr(made, "write", full)
    with pytest.raises(KDVisionError, match=r"shard 1 cannot be written \(No space left on device\); fix the cause"):
        fill(made, Eye(), 64, QUICK)
    assert writer(tmp_path / "store", free).missing == [1]


def test_a_configs_teacher_is_stored_in_its_own_words(
    tmp_path: Path, write_config: Callable[..., Path], squares: Path
) -> None:
    config = write_config()
    result = label(config, tmp_path / "store", splits=["train", "unlabelled"], options=QUICK)
    assert result.made == 20
    assert result.store.classes == ("red", "blue")
    assert [image.name for image in result.store.images][:3] == ["train/0.png", "train/1.png", "train/10.png"]
    assert result.store.manifest.options == {
        "image_size": 64, "score_threshold": 0.05, "nms_iou": 0.6, "max_boxes": 100, "top_k": 5,
    }  # fmt: skip
    assert sum(result.boxes.values()) > 0
    again = label(config, tmp_path / "store", splits=["train", "unlabelled"], options=QUICK)
    assert again.made == 0
    # The same images of the folder, and what the teacher itself says of them.
    alone = label(config, tmp_path / "alone", images=squares.parent / "free", options=QUICK)
    image = load_unlabelled(load_descriptor(squares)).images[3]
    np.testing.assert_array_equal(alone.store.of(image).boxes_xyxy, result.store.of(image).boxes_xyxy)
    assert all(image.sha256 for image in alone.store.images)


def test_a_store_becomes_a_data_set_that_trains(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    request = DatasetRequest(tmp_path / "set", PseudoLabelThresholds(0.3, 0.2, keep_ignored=True))
    result = label(write_config(), tmp_path / "store", splits=["unlabelled"], options=QUICK, dataset=request)
    assert result.dataset is not None
    descriptor = load_descriptor(result.dataset.descriptor)
    train, val = load_split(descriptor, "train"), load_split(descriptor, "val")
    assert (len(train), len(val), train.classes) == (8, 6, ("red", "blue"))
    said = BatchDetections.of([result.store.detections(row) for row in range(8)])
    once = to_pseudo_labels(said, None, 2, 0.6)  # a box is labelled once
    sure = int((once.scores >= 0.3).sum())
    assert result.dataset.labels == sum(int((~image.crowd).sum()) for image in train.images) == sure > 0


def test_the_command_says_what_it_stored(
    tmp_path: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    command = ["label", str(write_config()), "--split", "val", "--out", str(store), "--workers", "0"]
    assert main([*command, "--as-dataset", str(tmp_path / "set"), "--min-score", "0.3"]) == 0
    said = capsys.readouterr()
    assert f"6 images, about 0.0 MB in {store}" in said.err
    assert said.out.startswith("6 images, boxes: ")
    assert f"store    {store}\n" in said.out
    assert f"data set {tmp_path / 'set' / 'dataset.yaml'} (" in said.out
    assert main([*command, "--score", "0.1"]) == 2
    assert "was begun with score_threshold 0.05, now 0.1; use another --out" in capsys.readouterr().err
    assert main([*command[:-1], "many"]) == 2
    assert capsys.readouterr().err == "kd-vision: --workers: 'many' is neither a number nor auto\n"
    assert main([*command, "--as-dataset", str(tmp_path / "more"), "--doubt", "0.1"]) == 2
    assert capsys.readouterr().err == ("kd-vision: --ignore-score: used only with --keep-ignored; add --keep-ignored\n")
    assert main([*command, "--min-score", "0.4", "--keep-doubtful"]) == 2
    assert capsys.readouterr().err == (
        "kd-vision: --min-score, --keep-ignored: used only with --as-dataset; add --as-dataset DIR, or leave out "
        "--min-score, --keep-ignored\n"
    )
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "which images? give either --images FOLDER or --split NAME"),
        ({"images": "x", "splits": ["train"]}, "which images? give either --images FOLDER or --split NAME"),
        ({"splits": ["trian"]}, "unknown split 'trian'; did you mean 'train'? (possible: train, val)"),
        ({"splits": ["train"], "teacher": "big"}, "has no teacher 'big'"),
        (
            {"splits": ["train"], "options": LabelOptions(score=0, top_k=0)},
            "--score: 0 is not a threshold; give more than 0 and less than 1\n--top-k: 0 is too few; give 1 or more",
        ),
        (
            {"splits": ["train"], "options": LabelOptions(device="gpu")},
            "--device: 'gpu' is no device; possible: cpu, cuda, cuda:1, mps",
        ),
        (
            {"splits": ["train"], "options": LabelOptions(device="meta")},
            "--device: 'meta' is no device; possible: cpu, cuda, cuda:1, mps",
        ),
        ({"splits": ["train"], "options": LabelOptions(device="cuda:77")}, "--device: 'cuda:77' is not available"),
        (
            {"splits": ["train"], "overrides": ["image_size=72"]},
            ".image_size: 72 is not a multiple of 32, which yolov8n needs; use 64",
        ),
    ],
)
def test_wrong_requests_are_told_before_anything_is_written(
    tmp_path: Path, write_config: Callable[..., Path], request_: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        label(write_config(), tmp_path / "store", **request_)  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()


def test_images_that_cannot_be_opened_are_named_before_the_teacher_is_built(
    tmp_path: Path, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"text")
    monkeypatch.setattr("kd_vision.pipeline.label._build_teacher", lambda *_: pytest.fail("built"))
    with pytest.raises(RequestError, match=r"x.png: is not an image of a known kind"):
        label(write_config(), tmp_path / "store", images=tmp_path / "images")


_KILLED = """
import sys, time
from pathlib import Path
import test_label as t
from kd_vision.data.dataset import load_unlabelled
from kd_vision.data.descriptor import load_descriptor

class Slow(t.Eye):
    def predict(self, batch, options=None):
        time.sleep(0.4)
        return super().predict(batch)

data = load_unlabelled(load_descriptor(Path(sys.argv[1])))
t.fill(t.writer(Path(sys.argv[2]), data), Slow(), 64, t.QUICK)
"""


@pytest.mark.stress
def test_a_killed_labelling_goes_on(tmp_path: Path, squares: Path, free: DetectionData) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", _KILLED, str(squares), str(tmp_path / "cut")]
    process = subprocess.Popen(command, env=environment)
    first = tmp_path / "cut" / "shard-00000.parquet"
    while not first.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    second = Eye()
    assert fill(writer(tmp_path / "cut", free), second, 64, QUICK) == 4
    fill(writer(tmp_path / "whole", free), Eye(), 64, QUICK)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.stress
def test_labelling_keeps_the_speed_of_the_predictor(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """A predictor that waits for a device meanwhile leaves the time in which images are loaded and stored."""

    class Device(Eye):
        def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
            time.sleep(0.05)
            return super().predict(batch)

    (tmp_path / "images").mkdir()
    for number in range(64):
        pixels = np.random.default_rng(number).integers(0, 255, (240, 320, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:03}.jpg")
    data = DetectionData("x", (), (), records_of(list_images(tmp_path / "images"), tmp_path / "images"))
    options = LabelOptions(batch_size=8, shard_size=16, workers=1)
    note = TeacherNote(fingerprint="f", description="eye")
    made = StoreWriter(tmp_path / "store", note, SPEC.classes, {"top_k": 2}, data.images, 16)
    start = time.monotonic()
    fill(made, Device(), 256, options)
    spent = time.monotonic() - start
    assert spent < 8 * 0.05 * 1.5 + 0.5


def test_an_ensemble_is_shown_what_its_largest_member_wants_and_its_silence_is_stored(
    tmp_path: Path, write_config: Callable[..., Path], teacher_file: Path
) -> None:
    members = [
        {"weights": str(teacher_file), "labels": {"blue": "drop"}},
        {"weights": str(teacher_file), "labels": {"blue": "drop"}, "image_size": 128},
    ]
    config = write_config(teacher=False)
    asked = {
        "teacher": {"family": "ensemble", "members": members, "weights": [2, 1]},
        "distill": [{"loss": "soft_boxes"}],
    }
    config.write_text(config.read_text() + "".join(f"{key}: {json.dumps(value)}\n" for key, value in asked.items()))
    result = label(config, tmp_path / "store", splits=["val"], options=QUICK)
    assert result.store.manifest.options["image_size"] == 128
    assert result.store.missing_classes == ("blue",)


def test_the_command_stores_a_hundred_boxes_an_image_whatever_a_live_teacher_says() -> None:
    assert (LabelOptions().max_boxes, DEFAULT_TEACHER_POSTPROCESS.max_detections) == (100, 300)
