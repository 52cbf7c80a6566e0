from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import BatchDetections, Detections, PredictOptions
from kd_vision.data.dataset import load_unlabelled
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.loader import eval_batches
from kd_vision.knowledge.ranking import disagreement
from kd_vision.pipeline.label import LabelOptions, label
from kd_vision.pipeline.models import load_model
from kd_vision.pipeline.select import select
from kd_vision.teachers.pseudo_labels import to_pseudo_labels

QUICK = LabelOptions(batch_size=4, workers=0)


@pytest.fixture
def footage(tmp_path: Path, squares: Path) -> Path:
    """The unlabelled squares, and one of them twice."""
    folder = tmp_path / "footage"
    shutil.copytree(squares.parent / "free", folder)
    shutil.copyfile(folder / "3.png", folder / "9.png")
    return folder


def top_class(one: Detections) -> Detections:
    """Keep a box under its likeliest class alone."""
    kept = to_pseudo_labels(BatchDetections.of([one]), None, 2, 0.6)
    return Detections(kept.boxes_xyxy.numpy(), kept.scores.numpy(), kept.labels.numpy())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_list_is_what_a_descriptor_takes(tmp_path: Path, footage: Path, write_config: Callable[..., Path]) -> None:
    label(write_config(), tmp_path / "store", images=footage, options=QUICK)
    done = select(tmp_path / "store", footage, 4, tmp_path / "selected.txt")
    assert (done.chosen, done.images) == (4, 9)
    found = rows(done.table)
    assert [row["rank"] for row in found] == [str(rank) for rank in range(1, 10)]
    scores = [float(row["score"]) for row in found]
    assert scores == sorted(scores, reverse=True)
    assert all(
        float(r["score"]) == pytest.approx((float(r["uncertainty"]) + float(r["rarity"])) / 2, abs=2e-6) for r in found
    )
    chosen = sorted(row["file"] for row in found if row["verdict"] == "chosen")
    assert done.out.read_text() == "".join(f"{name}\n" for name in chosen)
    descriptor = tmp_path / "data.yaml"
    descriptor.write_text("format: coco\nclasses: [red, blue]\nunlabelled: {images: footage, list: selected.txt}\n")
    assert [image.file_name for image in load_unlabelled(load_descriptor(descriptor)).images] == chosen
    before = done.table.read_bytes()
    assert select(tmp_path / "store", footage, 4, tmp_path / "selected.txt").table.read_bytes() == before
    everything = select(tmp_path / "store", footage, 100, tmp_path / "all.txt")
    assert everything.alike >= 1
    assert "9.png" in {row["file"] for row in rows(everything.table) if row["verdict"] == "looks like 3.png"}


def test_a_student_is_compared_with_the_store(
    tmp_path: Path,
    footage: Path,
    write_config: Callable[..., Path],
    teacher_file: Path,
    awake_file: Callable[[str], Path],
) -> None:
    store = label(write_config(), tmp_path / "store", images=footage, options=QUICK).store
    same = select(tmp_path / "store", footage, 4, tmp_path / "same.txt", teacher_file, image_size=64)
    assert max(float(row["disagreement"]) for row in rows(same.table)) < 0.01  # half precision
    other = awake_file("yolov8n")
    found = rows(select(tmp_path / "store", footage, 4, tmp_path / "o.txt", other, image_size=64).table)
    data = load_unlabelled(
        load_descriptor(_descriptor(tmp_path, "format: coco\nclasses: [red, blue]\nunlabelled: footage\n"))
    )
    (batch,) = eval_batches(data, 64, 9, 3)
    answers = load_model(other, 64).predictor.predict(batch, PredictOptions(0.05, 0.6, 100))
    expected = {
        i.file_name: disagreement(top_class(store.of(i)), top_class(one))
        for i, one in zip(data.images, answers, strict=True)
    }
    assert {row["file"]: float(row["disagreement"]) for row in found} == pytest.approx(expected, abs=2e-6)
    assert max(expected.values()) > 0.1


def _descriptor(folder: Path, text: str) -> Path:
    path = folder / "free.yaml"
    path.write_text(text)
    return path


def test_wrong_requests(tmp_path: Path, footage: Path, write_config: Callable[..., Path]) -> None:
    label(write_config(), tmp_path / "store", images=footage, options=QUICK)
    with pytest.raises(RequestError, match=r"^--budget: 0 is too few; give 1 or more$"):
        select(tmp_path / "store", footage, 0, tmp_path / "s.txt")
    with pytest.raises(RequestError, match=re.escape("s.csv is the name of the table; give one that ends in .txt")):
        select(tmp_path / "store", footage, 1, tmp_path / "s.csv")
    (footage / "1.png").unlink()
    shutil.copyfile(footage / "2.png", footage / "1.png")
    (footage / "2.png").write_bytes((footage / "2.png").read_bytes() + b" ")
    with pytest.raises(
        RequestError, match=r"2\.png: has changed since it was labelled as 2\.png in .*; label it again$"
    ):
        select(tmp_path / "store", footage, 1, tmp_path / "s.txt")
