from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from kd_vision.cli.main import main
from kd_vision.core.errors import RequestError
from kd_vision.pipeline.evaluate import evaluate
from kd_vision.pipeline.predict import frame_batch, run_predict
from kd_vision.runtime.media import Frame, FrameWriter, Source, open_source


def test_folder_gives_what_evaluation_gives(student_file: Path, squares: Path, tmp_path: Path) -> None:
    result = run_predict(student_file, squares.parent / "val", tmp_path / "out", score=0.2)
    entries = json.loads(result.predictions.read_text())
    wanted = evaluate(student_file, squares).detections
    assert result.frames == 6
    for image_id, detections in wanted.items():
        predicted = [entry for entry in entries if entry["image_id"] == image_id]
        above = detections.scores > 0.2
        assert [entry["score"] for entry in predicted] == pytest.approx(detections.scores[above].tolist(), abs=1e-5)
        corners = detections.boxes_xyxy[above]
        sizes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        given = np.array([entry["bbox"] for entry in predicted]).reshape(-1, 4)
        np.testing.assert_allclose(given, sizes, atol=1e-3)
        assert [entry["category_id"] for entry in predicted] == (detections.labels[above] + 1).tolist()
        assert {entry["file_name"] for entry in predicted} <= {f"{image_id - 1}.png"}
    assert sum(result.boxes.values()) == len(entries) > 0
    assert {entry["category"] for entry in entries} <= {"red", "blue"}


def test_copies_are_drawn(student_file: Path, squares: Path, tmp_path: Path) -> None:
    """At a threshold that some pictures reach and others do not."""
    val = squares.parent / "val"
    every = json.loads(run_predict(student_file, val, tmp_path, score=0.0, draw=False).predictions.read_text())
    best = sorted(max(e["score"] for e in every if e["image_id"] == index + 1) for index in range(6))
    result = run_predict(student_file, val, tmp_path / "out", score=(best[2] + best[3]) / 2)
    assert [path.name for path in result.copies] == [f"{index}.png" for index in range(6)]
    originals = open_source(val).frames()
    drawn = open_source(tmp_path / "out").frames()
    changed = [bool((a.pixels != b.pixels).any()) for a, b in zip(originals, drawn)]
    entries = json.loads(result.predictions.read_text())
    assert changed == [any(entry["image_id"] == index + 1 for entry in entries) for index in range(6)]
    assert sum(changed) == 3


def test_video(student_file: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    rng = np.random.default_rng(0)
    with FrameWriter(Source(Path("clip.mp4"), (), 6, 10.0, 3), tmp_path) as writer:
        for index in range(6):
            pixels = rng.integers(90, 130, (64, 96, 3), dtype=np.uint8)
            pixels[20:44, 10 + index : 34 + index] = (220, 40, 40)
            writer.write(Frame(index, "clip.mp4", pixels), pixels)
    result = run_predict(student_file, clip, tmp_path / "out", score=0.001)
    assert result.frames == 6
    assert result.copies == (tmp_path / "out" / "clip.mp4",)
    assert open_source(result.copies[0]).count == 6
    entries = json.loads(result.predictions.read_text())
    assert {(entry["frame"], entry["image_id"]) for entry in entries} == {(n, n + 1) for n in range(6)}
    assert max(entry["bbox"][0] + entry["bbox"][2] for entry in entries) <= 96.0


def test_batch_of_frames_of_different_sizes() -> None:
    tall, wide = np.full((40, 20, 3), 9, np.uint8), np.full((10, 20, 3), 7, np.uint8)
    batch = frame_batch([Frame(0, "a", tall), Frame(1, "b", wide)], 32)
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.image_ids == (1, 2)
    assert batch.images[0, 0, :, 16].tolist() == [9] * 32
    assert batch.images[1, 0, 16].tolist() == [7] * 32
    assert int(batch.images[1, 0, 0, 0]) == 114
    assert batch.letterboxes[1].pad_top == 8


def test_command_json_only(
    student_file: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = squares.parent / "val" / "0.png"
    assert main(["predict", str(student_file), str(picture), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]
    assert capsys.readouterr().out.startswith("1 images, boxes: ")


def test_wrong_requests_are_refused(student_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        run_predict(student_file, tmp_path, tmp_path / "out", score=1.5)
    assert str(caught.value) == "--score: 1.5 is not a score; give 0 or more, and less than 1"
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError) as caught:
        run_predict(student_file, tmp_path, tmp_path / "file")
    assert str(caught.value) == f"--out: {tmp_path}/file is a file; give a folder"


def test_corrupt_image_is_named(student_file: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"b\.png: is not an image of a known kind"):
        run_predict(student_file, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.json").exists()
