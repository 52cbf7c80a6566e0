"""The numbers equal COCOeval called by hand, for both backends, and wrong input is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections
from kd_vision.data.coco_results import read_coco_results, to_coco_results
from kd_vision.data.formats.coco import to_coco
from kd_vision.data.records import DetectionData
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.metrics import Metrics

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def by_hand(data: DetectionData, found: dict[int, Detections], folder: Path) -> list[float | None]:
    """COCOeval on files, as anybody would call it."""
    truth_file, result_file = folder / "truth.json", folder / "results.json"
    truth_file.write_text(json.dumps(to_coco(data)))
    result_file.write_text(json.dumps(to_coco_results(data, found)))
    truth = COCO(str(truth_file))
    evaluation = COCOeval(truth, truth.loadRes(str(result_file)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [None if value == -1 else float(value) for value in evaluation.stats]


def perfect(data: DetectionData) -> dict[int, Detections]:
    return {
        image.image_id: Detections(
            image.boxes_xyxy[~image.crowd],
            np.ones(int((~image.crowd).sum()), np.float32),
            image.labels[~image.crowd],
        )
        for image in data.images
    }


def test_perfect_boxes_score_one_and_undefined_sizes_are_none(scene: DetectionData) -> None:
    metrics = evaluate_detections(scene, perfect(scene))
    assert metrics.ap == pytest.approx(1.0, abs=1e-12)
    assert metrics.ap_small == pytest.approx(1.0, abs=1e-12)
    assert metrics.ap_medium == pytest.approx(1.0, abs=1e-12)
    assert metrics.ap_large == pytest.approx(1.0, abs=1e-12)
    only_small = DetectionData("val", ("car", "bus"), (3, 17), scene.images[1:])
    numbers = evaluate_detections(only_small, perfect(only_small))
    assert numbers.ap_medium is None
    assert numbers.ar_large is None
    assert numbers.per_class["bus"].ap is None
    assert numbers.per_class["bus"].boxes == 0
    assert numbers.per_class["car"].boxes == 1, "a crowd region is no box to be found"
    assert numbers.n_images == 2


def test_one_of_two_boxes_gives_the_hand_computed_average(
    scene: DetectionData, make_detections: Callable[..., Detections]
) -> None:
    # Class car: 2 boxes, one found, nothing false: precision 1 up to recall 0.5, so 51 of the 101
    # recall points. Class bus: found, but a stronger false box before it: precision 1/2 everywhere.
    found = {10: make_detections([[10, 10, 60, 60], [0, 0, 30, 30], [100, 100, 300, 220]], [0.9, 0.8, 0.7], [0, 1, 1])}
    metrics = evaluate_detections(scene, found)
    assert metrics.per_class["car"].ap == pytest.approx(51 / 101)
    assert metrics.per_class["car"].ap50 == pytest.approx(51 / 101)
    assert metrics.per_class["bus"].ap == pytest.approx(0.5)
    assert metrics.ap == pytest.approx((51 / 101 + 0.5) / 2)
    assert metrics.ar100 == pytest.approx((0.5 + 1.0) / 2)


def test_boxes_inside_a_crowd_region_cost_nothing(
    scene: DetectionData, make_detections: Callable[..., Detections]
) -> None:
    found = perfect(scene)
    found[11] = make_detections([[60, 60, 90, 90], [120, 120, 150, 150], [5, 5, 25, 25]], [1.0, 0.99, 0.5], [0, 0, 0])
    assert evaluate_detections(scene, found).ap == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_cocoeval_by_hand(
    scene: DetectionData, disturb: Callable[..., dict[int, Detections]], tmp_path: Path, seed: int
) -> None:
    found = disturb(scene, seed)
    metrics = evaluate_detections(scene, found).to_json()
    assert [metrics[key] for key in KEYS] == by_hand(scene, found, tmp_path)


def test_equals_cocoeval_by_hand_on_real_coco_with_crowds(
    coco_tiny: DetectionData, disturb: Callable[..., dict[int, Detections]], tmp_path: Path
) -> None:
    assert sum(int(image.crowd.sum()) for image in coco_tiny.images) == 5
    found = disturb(coco_tiny)
    metrics = evaluate_detections(coco_tiny, found)
    written = metrics.to_json()
    assert [written[key] for key in KEYS] == by_hand(coco_tiny, found, tmp_path)
    defined = [numbers.ap for numbers in metrics.per_class.values() if numbers.ap is not None]
    assert np.mean(defined) == pytest.approx(metrics.ap, abs=1e-12)


def test_faster_backend_agrees(coco_tiny: DetectionData, disturb: Callable[..., dict[int, Detections]]) -> None:
    pytest.importorskip("faster_coco_eval")
    found = disturb(coco_tiny)
    slow = evaluate_detections(coco_tiny, found).to_json()
    fast = evaluate_detections(coco_tiny, found, "faster").to_json()
    for key in KEYS:
        assert fast[key] == pytest.approx(slow[key], abs=1e-6), key
    for name, numbers in slow["per_class"].items():
        assert fast["per_class"][name] == pytest.approx(numbers, abs=1e-6), name


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
def test_no_detection_at_all_is_zero_not_an_error(scene: DetectionData, backend: Any) -> None:
    metrics = evaluate_detections(scene, {}, backend)
    assert (metrics.ap, metrics.ar100, metrics.ap_small) == (0.0, 0.0, 0.0)


def test_evaluation_prints_nothing(scene: DetectionData, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate_detections(scene, perfect(scene))
    evaluate_detections(scene, {}, "faster")
    assert capfd.readouterr() == ("", "")


def test_wrong_detections_are_all_named(scene: DetectionData, make_detections: Callable[..., Detections]) -> None:
    found = {
        10: make_detections([[0, 0, np.nan, 5], [0, 0, 5, 5]], [0.5, np.inf], [0, 2]),
        99: make_detections([[0, 0, 5, 5]], [0.5], [0]),
    }
    with pytest.raises(RequestError) as caught:
        evaluate_detections(scene, found)
    assert caught.value.problems == (
        "detections of image 10: 1 boxes are not finite",
        "detections of image 10: 1 scores are not finite",
        "detections of image 10: label 2 is no class of 'val'; labels go from 0 to 1",
        "detections: image id 99 is not in 'val' (3 images)",
    )


def test_an_unlabelled_split_cannot_be_evaluated(make_record: Callable[..., Any]) -> None:
    data = DetectionData("more", ("car",), (1,), (make_record(1, [], [], labelled=False),))
    with pytest.raises(RequestError, match="'more': 1 images have no labels; evaluate on a labelled split"):
        evaluate_detections(data, {})


def test_unknown_and_missing_backends_say_what_to_do(scene: DetectionData, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError) as unknown:
        evaluate_detections(scene, {}, "fastr")  # type: ignore[arg-type]
    assert str(unknown.value) == "evaluation backend 'fastr' is unknown; did you mean 'faster'?"
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(RequestError) as missing:
        evaluate_detections(scene, {}, "faster")
    assert str(missing.value) == (
        "evaluation backend 'faster': the package faster-coco-eval is not installed; "
        "`pip install faster-coco-eval`, or use the backend 'pycocotools'"
    )


def test_results_survive_the_file(
    scene: DetectionData, disturb: Callable[..., dict[int, Detections]], tmp_path: Path
) -> None:
    found = disturb(scene)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(to_coco_results(scene, found)))
    back = read_coco_results(path, scene)
    assert set(back) == {10, 11, 12}
    assert len(back[12]) == 0
    for image_id, expected in found.items():
        order = np.argsort(-expected.scores, kind="stable")
        np.testing.assert_array_equal(back[image_id].scores, expected.scores[order])
        np.testing.assert_array_equal(back[image_id].labels, expected.labels[order])
        np.testing.assert_allclose(back[image_id].boxes_xyxy, expected.boxes_xyxy[order], atol=1e-4)
    assert evaluate_detections(scene, back).ap == pytest.approx(evaluate_detections(scene, found).ap)


def test_every_wrong_entry_of_a_result_file_is_named(scene: DetectionData, tmp_path: Path) -> None:
    right = {"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    wrong: list[Any] = [
        right,
        {**right, "image_id": 7},
        {**right, "category_id": 0},
        {**right, "bbox": [1, 2, float("nan"), 4]},
        {**right, "bbox": [10, 10, -3, 4]},
        {**right, "score": 1.5},
        {"image_id": 10, "bbox": [1, 2, 3, 4]},
        "box",
        {**right, "image_id": "10"},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(RequestError) as caught:
        read_coco_results(path, scene)
    assert caught.value.problems == (
        f"{path}: entry 2: image_id 7 is not in 'val' (3 images)",
        f"{path}: entry 3: category_id 0 is not in 'val'; possible: 3, 17",
        f"{path}: entry 4: bbox must be four finite numbers [x, y, width, height]; given [1, 2, nan, 4]",
        f"{path}: entry 5: bbox has a negative width or height; given [10, 10, -3, 4]; "
        "the order is [x, y, width, height]",
        f"{path}: entry 6: score must be a number between 0 and 1; given 1.5",
        f"{path}: entry 7: category_id, score missing; each entry has image_id, category_id, bbox, score",
        f"{path}: entry 8: expected an object with image_id, category_id, bbox, score; found a str",
        f"{path}: entry 9: image_id '10' is not in 'val' (3 images); did you mean the number 10?",
    )


def test_boxes_of_another_image_with_the_same_number_are_refused(scene: DetectionData, tmp_path: Path) -> None:
    name = scene.images[0].path.name
    entry = {"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**entry, "file_name": f"a/{name}"}]))
    assert len(read_coco_results(path, scene)[10]) == 1
    path.write_text(json.dumps([entry, {**entry, "file_name": "other.jpg"}]))
    with pytest.raises(RequestError) as caught:
        read_coco_results(path, scene)
    assert str(caught.value) == (
        f"{path}: entry 2: file_name is other.jpg, but image_id 10 of 'val' is {name}; "
        "give the split that the file was made on"
    )


def test_class_probabilities_are_read_in_either_form(scene: DetectionData, tmp_path: Path) -> None:
    entry = {"image_id": 10, "category_id": 17, "bbox": [1, 2, 3, 4], "score": 0.5}
    path = tmp_path / "results.json"
    said = [
        {**entry, "score": 0.7, "class_probs": [0.1, 0.7]},
        {**entry, "score": 0.9, "class_probs": {"17": 0.9}},
        entry,
        {**entry, "image_id": 11, "score": 0.25},
    ]
    path.write_text(json.dumps(said))
    back = read_coco_results(path, scene)
    assert back[10].class_probs is not None
    np.testing.assert_array_equal(back[10].class_probs, np.float32([[0, 0.9], [0.1, 0.7], [0, 0.5]]))
    assert back[11].class_probs is None


def test_wrong_class_probabilities_and_names_for_ids_are_told(scene: DetectionData, tmp_path: Path) -> None:
    right = {"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    wrong: list[Any] = [
        {**right, "class_probs": [0.5]},
        {**right, "class_probs": [0.5, float("nan")]},
        {**right, "class_probs": {"3": 1.5}},
        {**right, "class_probs": {"4": 0.5}},
        {**right, "class_probs": "0.5"},
        {**right, "category_id": "17"},
        {**right, "category_id": "Bus"},
        {**right, "category_id": "zebra"},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(RequestError) as caught:
        read_coco_results(path, scene)
    assert caught.value.problems == (
        f"{path}: entry 1: class_probs has 1 numbers, 'val' has 2 classes",
        f"{path}: entry 2: class_probs must be numbers between 0 and 1; given nan",
        f"{path}: entry 3: class_probs must be numbers between 0 and 1; given 1.5",
        f"{path}: entry 4: class_probs: category id 4 is not in 'val'; possible: 3, 17",
        f"{path}: entry 5: class_probs must be a list of numbers, or numbers by category id; found a str",
        f"{path}: entry 6: category_id '17' is not in 'val'; did you mean the number 17?",
        f"{path}: entry 7: category_id 'Bus' is not in 'val'; did you mean 17 (bus)?",
        f"{path}: entry 8: category_id 'zebra' is not in 'val'; possible: 3, 17",
    )


def test_a_thousand_wrong_entries_are_told_in_a_page(scene: DetectionData, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([0] * 1000))
    with pytest.raises(RequestError) as caught:
        read_coco_results(path, scene)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and 980 more"


def test_files_that_are_no_result_files(scene: DetectionData, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(RequestError, match=r"cannot be read \(No such file or directory\)"):
        read_coco_results(path, scene)
    path.write_text("{}")
    with pytest.raises(RequestError, match="a COCO result file is a list of entries; found a dict"):
        read_coco_results(path, scene)
    path.write_text("[\n{]")
    with pytest.raises(RequestError, match=r"results.json:2: is not valid JSON"):
        read_coco_results(path, scene)


def test_metrics_json_has_the_fixed_keys_and_comes_back(scene: DetectionData) -> None:
    metrics = evaluate_detections(scene, perfect(scene))
    written = metrics.to_json()
    assert tuple(written) == (*KEYS, "per_class", "n_images")
    assert list(written["per_class"]) == ["car", "bus"]
    assert Metrics.from_json(json.loads(json.dumps(written))) == metrics


def test_metrics_json_with_mistakes_is_refused(scene: DetectionData) -> None:
    written = evaluate_detections(scene, {}).to_json()
    del written["AP75"]
    written["AP"] = 46.0
    written["AP500"] = 0.1
    with pytest.raises(RequestError) as caught:
        Metrics.from_json(written, "run/metrics.json")
    assert "run/metrics.json: AP: input should be less than or equal to 1; given 46.0" in caught.value.problems
    assert "run/metrics.json: AP75: is missing" in caught.value.problems
    assert any("AP500: unknown key" in line for line in caught.value.problems)
