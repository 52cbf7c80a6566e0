"""Cross-fitted teachers: nobody labels what it was trained on, and a stopped call goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_vision.cli.main import main
from kd_vision.config.load import load_config
from kd_vision.core.batch import ImageBatch, Letterbox, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_json
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.dataset import DetectionData, load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.records import without_labels
from kd_vision.evaluation.metrics import ClassMetrics, Metrics
from kd_vision.knowledge.store import read_store
from kd_vision.pipeline import crossfit as crossfit_module
from kd_vision.pipeline import fold_teachers
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.crossfit import FoldResult, crossfit
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.evaluate import predict_split
from kd_vision.pipeline.label import LabelOptions
from kd_vision.pipeline.models import load_model

ONE_EPOCH = ["train.epochs=1", "train.loggers=[]"]


@pytest.fixture
def config(write_config: Callable[..., Path], teacher_file: Path) -> Path:
    """A plain training that starts from an awake detector, so that a step of training has boxes to say."""
    path = write_config(teacher=False)
    path.write_text(path.read_text().replace("{model: yolov8n}", f"{{weights: {teacher_file}}}"))
    return path


def trained_images(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names of the images that each run is given from here on, by the name of its folder."""
    seen: dict[str, list[str]] = {}
    train = crossfit_module.train

    def noted(config: Any, out: Path, *rest: Any, data: RunData, **named: Any) -> Any:
        seen[out.name] = [image.file_name for image in data.training(config)[0].images]
        return train(config, out, *rest, data=data, **named)

    monkeypatch.setattr(crossfit_module, "train", noted)
    return seen


def test_every_image_is_labelled_by_the_teacher_that_has_not_seen_it(
    config: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = trained_images(monkeypatch)
    out = tmp_path / "out"
    command = ["crossfit", str(config), "--folds", "2", "--out", str(out), "--set", *ONE_EPOCH]
    assert main(command) == 0
    said = capsys.readouterr().out
    store = read_store(out / "store")
    folders = {name.rpartition("/")[2]: name.partition("/")[0] for name in (image.name for image in store.images)
               if name.startswith("fold")}  # fmt: skip
    assert {fold: len(names) for fold, names in seen.items()} == {"fold1": 6, "fold2": 6}
    for fold, names in seen.items():
        assert {name for name, folder in folders.items() if folder == fold} == folders.keys() - set(names)
    _assert_boxes_are_those_of_the_fold(out, squares, folders)
    assert sum(image.name.startswith("unlabelled/") for image in store.images) == 8
    note = store.manifest.teacher
    assert len(set(note.by_folder.values())) == len(note.by_folder) == 3
    assert note.description.startswith("2 cross-fitted yolov8n, each on the images that it was not trained on; their")
    numbers = read_json(out / "crossfit.json")
    assert [fold["seen"]["n_images"] for fold in numbers["folds"]] == [6, 6]
    assert numbers["store"]["metrics"]["n_images"] == 12
    assert all(word in said for word in ("AP seen", "AP unseen", "over-fit", "AP val", "20 images, 8 without labels"))
    _assert_a_second_call_repeats_nothing(command, out, seen)


def _assert_boxes_are_those_of_the_fold(out: Path, squares: Path, folders: dict[str, str]) -> None:
    store, truth = read_store(out / "store"), load_split(load_descriptor(squares), "train")
    count = 0
    for fold in ("fold1", "fold2"):
        model = load_model(out / fold / "student.pt", 64)
        found = predict_split(model.predictor, truth, 64)
        for image in truth.images:
            stored, direct = store.of(image), found[image.image_id]
            if folders[image.file_name] == fold and len(stored) and stored.scores[0] > 0.06:
                np.testing.assert_allclose(stored.boxes_xyxy[0], direct.boxes_xyxy[0], atol=0.1)
                np.testing.assert_allclose(stored.scores[0], direct.scores[0], atol=1e-3)
                count += 1
    assert count > 0


def _assert_a_second_call_repeats_nothing(command: list[str], out: Path, seen: dict[str, list[str]]) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".pt", ".parquet")}
    seen.clear()
    (out / "crossfit.json").unlink()
    assert main(command) == 0
    assert seen == {}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "crossfit.json").is_file()


def test_a_stopped_cross_fit_goes_on_with_the_fold_it_was_at(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained_images(monkeypatch)
    measure = crossfit_module.measure
    monkeypatch.setattr(crossfit_module, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        crossfit(config, 2, tmp_path / "out", ONE_EPOCH)
    assert list(seen) == ["fold1"]
    monkeypatch.setattr(crossfit_module, "measure", measure)
    result = crossfit(config, 2, tmp_path / "out", ONE_EPOCH)
    assert list(seen) == ["fold1", "fold2"]
    assert [fold.images for fold in result.folds] == [6, 6]
    with pytest.raises(RequestError, match=r"holds the folds of another request: --folds was 2, is 3; give another"):
        crossfit(config, 3, tmp_path / "out", ONE_EPOCH)
    with pytest.raises(RequestError, match=r"holds the folds of another request: train.epochs was 1, is 4; give"):
        crossfit(config, 2, tmp_path / "out", ["train.epochs=4", "train.loggers=[]"])


def test_a_student_takes_the_store_and_its_teacher_is_measured_on_unseen_images(
    config: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    result = crossfit(config, 2, tmp_path / "out", [*ONE_EPOCH, "train.label_fraction=0.5"])
    assert [fold.images for fold in result.folds] == [3, 3]
    assert result.unlabelled == 6 + 8  # the rest of the split, and the folder
    student = write_config(teacher=False)
    student.write_text(student.read_text() + "distill: [{loss: soft_boxes}]\n")
    run = load_config(student, [f"knowledge={tmp_path / 'out' / 'store'}"])
    parts = build_parts(run, RunData(run.data))
    for split in RunData(run.data).training(run):
        if split is not None:
            assert len(parts.with_pseudo_labels(split).pseudo_labels["knowledge"]) == len(split)


def test_wrong_requests_are_told_before_anything_is_written(
    config: Path,
    squares: Path,
    write_config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    for folds, text in ((1, "--folds: 1 leaves no images"), (13, "--folds: 13 is more than the 12 labelled images")):
        assert main(["crossfit", str(config), "--folds", str(folds), "--out", str(out)]) == 2
        assert capsys.readouterr().err.startswith(f"kd-vision: {text}")
    with pytest.raises(RequestError, match=r"train.devices: crossfit runs on one device"):
        crossfit(config, 2, out, ["train.devices=2"])
    with pytest.raises(RequestError, match=r"--top-k: 0 is too few; give 1 or more"):
        crossfit(config, 2, out, options=LabelOptions(top_k=0))
    missing = tmp_path / "data.yaml"
    text = (
        squares.read_text()
        .replace("root: .", f"root: {squares.parent}")
        .replace("unlabelled: free", "unlabelled: gone")
    )
    missing.write_text(text)
    with pytest.raises(RequestError, match=rf"{squares.parent}/gone"):
        crossfit(config, 2, out, [f"data={missing}"])
    assert not out.exists()
    with pytest.raises(RequestError, match=r"exists and holds no folds of `kd-vision crossfit`; give another --out"):
        crossfit(config, 2, tmp_path)
    distilled = write_config()
    with pytest.raises(
        RequestError, match=rf"^{re.escape(str(distilled))}: teacher: has seen the images of every fold"
    ):
        crossfit(distilled, 2, out)


def test_a_fold_with_all_boxes_is_refused_and_a_class_of_one_fold_is_told(
    squares: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = load_split(load_descriptor(squares), "train")
    reds = [row for row, image in enumerate(train.images) if 0 in image.labels]
    fold_of = np.zeros(12, np.int64)
    fold_of[[row for row in range(12) if row not in reds][:1]] = 1
    crossfit_module._refuse_empty_folds(train, fold_of)
    assert caplog.messages == ["'red' is only in fold1: the teacher that labels these images never saw one"]
    with pytest.raises(RequestError, match=r"^--folds: all boxes are in the images of fold1, and its teacher"):
        crossfit_module._refuse_empty_folds(_without_boxes(train, keep=0), np.arange(12) % 2)


def _without_boxes(data: DetectionData, keep: int) -> DetectionData:
    bare = without_labels(data).images
    return replace(data, images=tuple(image if n == keep else bare[n] for n, image in enumerate(data.images)))


class Says:
    """Answers every image with its own number as the score; remembers the ids it was shown."""

    spec = DetectorSpec("fake", "fake", ("red", "blue"), {}, {}, frozenset({"detections"}), size_multiple=1)

    def __init__(self, number: int) -> None:
        self.number = number
        self.shown: list[int] = []

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        self.shown += batch.image_ids
        assert batch.images[:, 0, 0, 0].tolist() == list(batch.image_ids) == [b.pad_left for b in batch.letterboxes]
        box = Detections(np.zeros((1, 4), np.float32), np.array([self.number / 10], np.float32), np.zeros(1, np.int64))
        return [box] * len(batch)


def test_a_batch_of_several_folds_is_split_among_their_teachers() -> None:
    ids = (3, 5, 7, 9)
    none = torch.zeros(0, dtype=torch.int64)
    batch = ImageBatch(
        images=torch.tensor(ids, dtype=torch.float32)[:, None, None, None].expand(4, 3, 2, 2),
        targets=Targets(none, none, torch.zeros(0, 4)),
        labelled=torch.ones(4, dtype=torch.bool),
        image_ids=ids,
        letterboxes=tuple(Letterbox(2, 2, 1.0, 1.0, number, 0) for number in ids),
    )
    members = [Says(1), Says(2)]
    router = fold_teachers.FoldTeachers(members, {3: 1, 5: 0, 7: 1, 9: 1})
    assert [round(float(one.scores[0]), 1) for one in router.predict(batch)] == [0.2, 0.1, 0.2, 0.2]
    assert [member.shown for member in members] == [[5], [3, 7, 9]]


def test_the_over_fit_is_measured_on_the_classes_that_both_sides_have() -> None:
    def metrics(red: float | None, blue: float | None) -> Metrics:
        classes = {name: ClassMetrics(ap=ap, ap50=ap, boxes=1) for name, ap in (("red", red), ("blue", blue))}
        numbers = dict.fromkeys(Metrics.model_fields, 0.0)
        return Metrics(**{**numbers, "per_class": classes, "n_images": 1})  # type: ignore[arg-type]

    fold = FoldResult("fold1", 1, seen=metrics(0.9, 0.5), unseen=metrics(0.6, None), final=metrics(0, 0))
    assert fold.seen_and_unseen_ap == (0.9, 0.6)
    assert json.dumps(crossfit_module._gap(fold.seen_and_unseen_ap)).startswith('{"ap_seen": 0.9, "ap_unseen": 0.6')
    nothing = FoldResult("fold1", 1, seen=metrics(0.9, None), unseen=metrics(None, 0.1), final=metrics(0, 0))
    assert nothing.seen_and_unseen_ap is None
