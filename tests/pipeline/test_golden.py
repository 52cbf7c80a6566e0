"""Losses of six steps of every kind of run, against numbers that were written down.

A change of the numbers is meant or it is a mistake: where it is meant, write them anew with
`python tests/pipeline/test_golden.py` and say in the commit why they changed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kd_vision.core.run_directory import RunDirectory
from kd_vision.pipeline.export import run_export
from kd_vision.pipeline.label import LabelOptions, label
from kd_vision.pipeline.train import train

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
RTOL = 2e-3
"""Kernels of CPUs differ; the losses of two versions of a formula differ by more."""
Curves = dict[str, list[float]]


class Kit:
    """Configs of the runs, on the tiny squares.

    Args:
        folder: where configs, runs, the store and the ONNX file go.
        squares: descriptor of the data.
        teacher: file of a torch teacher.
    """

    def __init__(self, folder: Path, squares: Path, teacher: Path) -> None:
        self.folder, self.squares, self.teacher = folder, squares, teacher

    def write(self, kind: str, **settings: Any) -> Path:
        content = {
            "data": str(self.squares),
            "image_size": 64,
            "student": {"model": "yolov8n"},
            "train": {"epochs": 2, "batch_size": 4, "workers": 0, "warmup_epochs": 0.5, "log_every": 1,
                      "validate_every": 0, "keep": "last"},
            "augment": {"close_mosaic": 0},
            **settings,
        }  # fmt: skip
        path = self.folder / f"{kind}.json"
        path.write_text(json.dumps(content))
        return path

    def taught(self, kind: str, distill: Any, **teacher: Any) -> Path:
        source = {"weights": str(self.teacher), **teacher}
        return self.write(kind, teacher=source, distill=distill, allow_weak_teacher=True)

    def stored(self, kind: str) -> Path:
        options = LabelOptions(batch_size=4, workers=0)
        label(self.taught("label", "boxes"), self.folder / "store", splits=["train"], options=options)
        return self.write(kind, knowledge=str(self.folder / "store"), distill=[BOXES], allow_weak_teacher=True)

    def control(self, kind: str) -> Path:
        return self.write(kind, teacher={"family": "labels"}, distill=[BOXES], allow_weak_teacher=True)

    def exported(self, kind: str) -> Path:
        run_export(self.teacher, self.folder / "teacher.onnx", image_size=64, with_latency=False)
        return self.taught(kind, [BOXES], family="onnx", weights=str(self.folder / "teacher.onnx"))


BOXES = {"loss": "soft_boxes", "score_threshold": 0.3, "ignore_threshold": 0.1}
GRID = [{"loss": "class_qfl"}, {"loss": "box_iou"}, {"loss": "feature_pkd"}, BOXES]
KINDS: Mapping[str, Callable[[Kit, str], Path]] = {
    "plain": lambda kit, kind: kit.write(kind),
    "imitation": lambda kit, kind: kit.taught(kind, "imitation"),
    "soft_boxes": lambda kit, kind: kit.taught(kind, [BOXES]),
    "store": lambda kit, kind: kit.stored(kind),
    "labels": lambda kit, kind: kit.control(kind),
    "larger_view": lambda kit, kind: kit.taught(kind, GRID, image_size=128),
    "onnx": lambda kit, kind: kit.exported(kind),
}


def curves(kit: Kit, kind: str) -> Curves:
    """Train a run and return its losses by name, a number a step."""
    result = train(KINDS[kind](kit, kind), kit.folder / "runs" / kind)
    rows = [row for row in RunDirectory(result.directory).read_log() if row["split"] == "train"]
    return {name: [row[name] for row in rows] for name in sorted(rows[0]) if name.startswith("loss/")}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_written_down(kind: str, tmp_path: Path, squares: Path, teacher_file: Path) -> None:
    expected: Curves = json.loads(GOLDEN.read_text())[kind]
    measured = curves(Kit(tmp_path, squares, teacher_file), kind)
    assert set(measured) == set(expected)
    for name, values in expected.items():
        assert len(measured[name]) == 6
        assert measured[name] == pytest.approx(values, rel=RTOL), name


def write_golden() -> None:
    """Write the file anew."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        conftest.awake("yolov8n", ("red", "blue"), seed=1).save(folder / "teacher.pt", {})
        kit = Kit(folder, conftest.make_squares(folder), folder / "teacher.pt")
        measured = {kind: curves(kit, kind) for kind in KINDS}
    golden = {
        kind: {name: [float(f"{value:.6g}") for value in values] for name, values in losses.items()}
        for kind, losses in measured.items()
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
