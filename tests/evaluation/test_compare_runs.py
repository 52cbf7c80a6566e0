"""The tool pairs runs by seed and prints the interval of their differences."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kd_vision.core.predictions import Detections
from kd_vision.data.records import DetectionData
from kd_vision.evaluation.match_table import match_table
from kd_vision.evaluation.metrics import ClassMetrics, Metrics

TOOL = Path(__file__).parents[2] / "tools" / "compare_runs.py"


def write_runs(folder: Path, aps: dict[int, float]) -> Path:
    for seed, ap in aps.items():
        numbers = dict.fromkeys(Metrics.model_fields, ap)
        per_class = {"car": ClassMetrics(ap=ap / 2, ap50=ap, boxes=9), "bus": ClassMetrics(ap=None, ap50=None, boxes=0)}
        metrics = Metrics(**{**numbers, "per_class": per_class, "n_images": 3})  # type: ignore[arg-type]
        (folder / f"seed{seed}").mkdir(parents=True)
        (folder / f"seed{seed}" / "metrics.json").write_text(json.dumps(metrics.to_json()))
    return folder


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False)


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    before = write_runs(tmp_path / "plain", {0: 0.45, 1: 0.46, 2: 0.47, 7: 0.9})
    after = write_runs(tmp_path / "distilled", {2: 0.53, 1: 0.51, 0: 0.52, 8: 0.1})
    goal = write_runs(tmp_path / "all", {0: 0.56, 1: 0.58, 2: 0.60})
    result = compare(before, after, "--ceiling", goal)
    assert result.returncode == 0, result.stderr
    # Differences 7, 5, 6: mean 6, half width 4.3027 / sqrt(3); of the class half of it. From 46 to 58: 6 of 12.
    assert result.stdout.splitlines() == [
        "intervals over seeds alone",
        "AP            46.0 ± 1.0 ->  52.0 ± 1.0   +6.0  [+3.5, +8.5]",
        "AP50          46.0 ± 1.0 ->  52.0 ± 1.0   +6.0  [+3.5, +8.5]",
        "car           23.0 ± 0.5 ->  26.0 ± 0.5   +3.0  [+1.8, +4.2]",
        f"of the way to {goal} (58.0): 50%",
    ]


def test_one_common_seed_makes_no_interval(tmp_path: Path) -> None:
    before, after = write_runs(tmp_path / "a", {0: 0.4, 1: 0.4}), write_runs(tmp_path / "b", {1: 0.5})
    result = compare(before, after)
    assert result.returncode == 2
    assert f"{before} and {after} share 1 seeds; give two or more for an interval" in result.stderr


def test_with_kept_matches_the_interval_is_over_images_and_seeds(
    tmp_path: Path, scene: DetectionData, make_detections: Callable[..., Detections]
) -> None:
    """Nothing is found before and everything after, on any draw of the images."""
    before, after = write_runs(tmp_path / "a", {0: 0.0, 1: 0.0}), write_runs(tmp_path / "b", {0: 1.0, 1: 1.0})
    every = {
        image.image_id: make_detections(image.boxes_xyxy[~image.crowd], 0.9 - 0 * image.areas[~image.crowd],
                                        image.labels[~image.crowd])
        for image in scene.images
    }  # fmt: skip
    for seed in (0, 1):
        match_table(scene, {}).save(before / f"seed{seed}" / "matches.npz")
        match_table(scene, every).save(after / f"seed{seed}" / "matches.npz")
    lines = compare(before, after).stdout.splitlines()
    assert lines[0] == "intervals over images and seeds"
    assert [line.split()[0] for line in lines[1:]] == ["AP", "AP50", "car"]
    assert all(line.endswith("+100.0  [+100.0, +100.0]") for line in lines[1:])
