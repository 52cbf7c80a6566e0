"""The demo on synthetic aerial scenes: few labels, many unlabelled images, a benchmark and an ONNX file."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_text
from kd_vision.core.progress import ProgressFactory, log_progress
from kd_vision.core.strict_yaml import load_mapping
from kd_vision.data.descriptor import write_descriptor
from kd_vision.pipeline.assemble import BenchmarkResult
from kd_vision.pipeline.benchmark import benchmark
from kd_vision.pipeline.export import ExportResult, run_export
from kd_vision.pipeline.train import train
from kd_vision.scenes import write_scenes

_log = logging.getLogger(__name__)

IMAGE_SIZE = 192
SEED = 0
DIFFICULTY = 0.3
UNLABELLED = 480
SPLITS = {"plenty": 480, "train": 48, "val": 48, "test": 160}

_TEACHER = """\
# The teacher: a larger model, trained on plenty of labelled scenes.
data: scenes/plenty.yaml
image_size: {size}
student: {{family: ultralytics, model: yolov8s}}
train: {{epochs: {epochs}, batch_size: 16, lr: 0.002, validate_every: 0, keep: last, ema_ramp: 200}}
augment: {{mosaic: 0.0, vertical_flip: 0.5}}
"""

_PAIR = """\
# Few labels, much footage: 48 labelled scenes and, for the distilled student, 480 without labels.
data: scenes/data.yaml
image_size: {size}
teacher: {{family: ultralytics, weights: teacher/student.pt}}
student: {{family: ultralytics, model: yolov8n}}
distill: imitation
train:
  {{epochs: {epochs}, batch_size: 16, unlabelled_ratio: 1, lr: 0.002, validate_every: 0, keep: last, ema_ramp: 200}}
augment: {{mosaic: 0.0, vertical_flip: 0.5}}
"""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Result of the demo.

    Attributes:
        benchmark: of baseline and distilled student.
        student: file of the distilled student.
        export: its ONNX file with the parity report.
    """

    benchmark: BenchmarkResult
    student: Path
    export: ExportResult


def demo(
    out: Path,
    teacher_epochs: int = 12,
    student_epochs: int = 80,
    splits: dict[str, int] = SPLITS,
    unlabelled: int = UNLABELLED,
    progress: ProgressFactory = log_progress,
    log: Callable[[str], None] = _log.info,
) -> DemoResult:
    """Run the demo; parts that are finished in `out` are not repeated.

    Args:
        out: directory of all files.
        teacher_epochs, student_epochs: length of training.
        splits, unlabelled: numbers of scenes.
        progress: receives the progress.
        log: called with a line at the start of each part.

    Raises:
        RequestError: `out` holds other files.
    """
    scenes = out / "scenes"
    if out.exists() and not scenes.is_dir() and any(not _left_by_a_kill(path) for path in out.iterdir()):
        raise RequestError(f"{out}: is not empty and holds no demo; give another --out")
    log("1/4  scenes: roads, fields, buildings, weather; cars, trucks, buses, people, bicycles")
    _scenes(out, splits, unlabelled, progress)
    write_text(out / "teacher.yaml", _TEACHER.format(size=IMAGE_SIZE, epochs=teacher_epochs))
    write_text(out / "pair.yaml", _PAIR.format(size=IMAGE_SIZE, epochs=student_epochs))
    log(f"2/4  teacher: yolov8s on {splits['plenty']} labelled scenes")
    if not (out / "teacher" / "metrics.json").is_file():
        resume = (out / "teacher" / "checkpoints" / "last.ckpt").is_file()
        train(out / "teacher.yaml", out / "teacher", resume, progress=progress, title="teacher")
    log(f"3/4  student: yolov8n on {splits['train']} labelled scenes; distilled also on {unlabelled} without labels")
    result = benchmark(out / "pair.yaml", [SEED], out / "benchmark", progress=progress, control=False)
    log("4/4  export to ONNX through the parity gate")
    student = out / "benchmark" / "distilled" / f"seed{SEED}" / "student.pt"
    shutil.copyfile(student, out / "student.pt")
    exported = run_export(out / "student.pt", out / "student.onnx", out / "scenes" / "data.yaml", image_size=IMAGE_SIZE)
    return DemoResult(result, out / "student.pt", exported)


def _left_by_a_kill(path: Path) -> bool:
    """Return whether it is a temporary folder of `write_scenes`."""
    return path.name.startswith(".scenes.")


def _scenes(out: Path, splits: dict[str, int], unlabelled: int, progress: ProgressFactory) -> None:
    folder = out / "scenes"
    if not (folder / "data.yaml").is_file():
        with progress("scenes") as bar:
            write_scenes(folder, splits, unlabelled, SEED, IMAGE_SIZE, DIFFICULTY, bar.step)
    # The teacher is trained on the split `plenty` and evaluated on the same scenes as the student.
    content = load_mapping(folder / "data.yaml")
    content["splits"]["train"] = content["splits"].pop("plenty")
    write_descriptor(folder / "plenty.yaml", content)
