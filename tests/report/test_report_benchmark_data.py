"""benchmark.json keeps its shape, comes back equal, and mistakes in it are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_vision.core.errors import RequestError
from kd_vision.report.benchmark_data import BenchmarkData, read_benchmark, write_benchmark
from kd_vision.report.write import write_benchmark_report

Build = Callable[..., BenchmarkData]


def test_comes_back_equal_under_the_keys_of_coco(benchmark: Build, tmp_path: Path) -> None:
    data = benchmark([0.46, 0.47], [0.51, 0.52], other=[0.5, 0.5])
    path = write_benchmark(tmp_path, data)
    assert read_benchmark(tmp_path) == data
    written = json.loads(path.read_text())
    run = written["arms"][0]["runs"][0]
    assert list(run["metrics"])[:6] == ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert run["curve"][0]["step"] == 65
    assert set(run["curve"][0]) == {"step", "AP"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["benchmark.json"], "no temporary file stays"


def test_latency_of_earlier_versions_is_read(benchmark: Build, tmp_path: Path) -> None:
    data = benchmark([0.46], [0.51])
    content = data.model_dump(mode="json", by_alias=True)
    content["arms"][-1]["onnx_latency_ms"] = {"median": 12.34, "p90": 14.0, "runs": 50, "threads": 2}
    (tmp_path / "benchmark.json").write_text(json.dumps(content))
    assert read_benchmark(tmp_path) == data


def refused(content: dict[str, Any], folder: Path) -> tuple[str, ...]:
    (folder / "benchmark.json").write_text(json.dumps(content))
    with pytest.raises(RequestError) as caught:
        read_benchmark(folder)
    return caught.value.problems


def test_mistakes_are_named_all_at_once(benchmark: Build, tmp_path: Path) -> None:
    content = benchmark([0.46], [0.51]).model_dump(mode="json", by_alias=True)
    del content["command"]
    content["arms"][0]["role"] = "techer"
    content["arms"][1]["parametres"] = 3
    problems = refused(content, tmp_path)
    file = tmp_path / "benchmark.json"
    assert f"{file}: command: is missing" in problems
    assert any(line.startswith(f"{file}: arms.0.role: input should be 'teacher', 'plain'") for line in problems)
    assert f"{file}: arms.1.parametres: unknown key; did you mean 'parameters'?" in problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["arms"][1].update(name="teacher"),
            "arms: the name teacher is given to more than one arm",
        ),
        (
            lambda content: content["arms"][1]["runs"].append(content["arms"][1]["runs"][0]),
            "arm plain: a seed comes twice; give one run per seed",
        ),
        (
            lambda content: content["examples"].append(
                {
                    "image": "e.jpg",
                    "file_name": "e",
                    "ground_truth": [],
                    "detections": {"x": []},
                    "difference": 1,
                }
            ),
            "example e.jpg: no arm is named x",
        ),
        (
            lambda content: content["examples"].append(
                {
                    "image": "e.jpg",
                    "file_name": "e",
                    "ground_truth": [{"box_xyxy": [0, 0, 1, 1], "label": 3}],
                    "detections": {},
                    "difference": 1,
                }
            ),
            "example e.jpg: label 3 is no class; labels go from 0 to 2",
        ),
        (
            lambda content: content["examples"].append(
                {
                    "image": "e.jpg",
                    "file_name": "e",
                    "ground_truth": [{"box_xyxy": [0, 0, 1, 1], "label": 0}],
                    "detections": {
                        "plain": [{"box_xyxy": [0, 0, 1, 1], "label": 2, "score": 0.5, "matched_idx": 1}],
                    },
                    "difference": 1,
                }
            ),
            "example e.jpg: matched_idx 1: there are 1 ground-truth boxes",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other(
    benchmark: Build, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = benchmark([0.46], [0.51]).model_dump(mode="json", by_alias=True)
    change(content)
    assert refused(content, tmp_path) == (f"{tmp_path / 'benchmark.json'}: {message}",)


def test_a_directory_without_benchmark_json(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"benchmark\.json: cannot be read \(No such file or directory\)"):
        read_benchmark(tmp_path)


def test_files_without_intervals_boxes_errors_and_budget_are_read(benchmark: Build, tmp_path: Path) -> None:
    data = benchmark([0.46, 0.47], [0.51, 0.52])
    content = data.model_dump(mode="json", by_alias=True)
    for key in ("differences", "box_counts", "budget"):
        del content[key]
    for arm in content["arms"]:
        del arm["errors"]
        if arm["onnx_latency_ms"]:
            del arm["onnx_latency_ms"]["ratio"]
    (tmp_path / "benchmark.json").write_text(json.dumps(content))
    assert read_benchmark(tmp_path) == data
    markdown, _ = write_benchmark_report(tmp_path)
    assert "95 % interval over seeds alone" in markdown.read_text(encoding="utf-8")
