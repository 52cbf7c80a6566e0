"""Speed of training, measured in one run: ours against ultralytics' trainer, and the price of a teacher.

    python tools/bench_training.py                      synthetic scenes, models from scratch
    python tools/bench_training.py --config configs/bccd_yolov8s_to_yolov8n.yaml

1. Images per second of plain training, ours and theirs, turn by turn: same model, data, image size, batch, augmentation
   strength, cache in memory, no validation. The first epoch of every turn warms up and does not count.
2. One distillation step against (student step + teacher forward), turn by turn on the same batches.
3. Memory of the process while distilling: early and late.

Read the ratios and medians; single numbers of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from ultralytics import YOLO

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig
from kd_vision.core.batch import ImageBatch
from kd_vision.core.files import write_json
from kd_vision.core.run_directory import RunDirectory
from kd_vision.data.convert import convert
from kd_vision.data.descriptor import load_descriptor
from kd_vision.engine.allocator import keep_freed_memory
from kd_vision.engine.optimizer import build_optimizer
from kd_vision.engine.step import TrainingStep, terms
from kd_vision.engine.trainer import Trainer, build_fabric, seed_everything
from kd_vision.pipeline.build import build_parts, build_student
from kd_vision.pipeline.data import RunData, build_stream
from kd_vision.pipeline.environment import hardware, versions
from kd_vision.pipeline.teachers import teacher_input_size
from kd_vision.scenes import write_scenes

_SYNTHETIC = """\
data: scenes/data.yaml
image_size: 256
teacher: {family: ultralytics, weights: teacher.pt}
student: {family: ultralytics, model: yolov8n}
train: {batch_size: 16, validate_every: 0, keep: last}
"""


# Theirs is told the same below.
_SAME = {"accelerator": "cpu", "workers": 1, "cache": "ram"}


class Stopwatch:
    """Remembers when each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, done: int, total: int, text: str) -> None:
        """See `Progress.step`."""
        self.times.append(time.perf_counter())


def main() -> None:
    """Run the three measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a distillation config (default: synthetic scenes)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = load_config(options.config or synthetic_config(folder))
        result = {
            "training": compare_trainers(config, options.epochs, options.rounds, folder),
            "distillation": price_of_a_teacher(config, 12),
            "hardware": hardware(),
            "versions": versions(),
        }
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


def synthetic_config(folder: Path) -> Path:
    """Write scenes, an untrained teacher and a config."""
    data = write_scenes(folder / "scenes", {"train": 208, "val": 16}, 0, 0, 256, 0.5)
    classes = RunData(data).classes
    path = folder / "pair.yaml"
    path.write_text(_SYNTHETIC, encoding="utf-8")
    config = load_config(path, ["student.model=yolov8s"], files_exist=False)  # the teacher is made next
    build_student(config, classes).save(folder / "teacher.pt", {})
    return path


def compare_trainers(config: RunConfig, epochs: int, rounds: int, folder: Path) -> dict[str, object]:
    """Images per second of both trainers, turn by turn."""
    plain = replace(config, teachers=(), terms=(), train=config.train.model_copy(update={"epochs": epochs, **_SAME}))
    convert(load_descriptor(config.data), folder / "yolo", "yolo")
    ours, theirs = [], []
    for turn in range(rounds):
        ours += speed_of_ours(plain, folder / f"ours{turn}")
        theirs += speed_of_theirs(plain, folder / "yolo" / "ultralytics.yaml", folder / f"theirs{turn}")
    ratio = statistics.median(ours) / statistics.median(theirs)
    return {"ours_images_per_second": summary(ours), "ultralytics_images_per_second": summary(theirs), "ratio": ratio}


def speed_of_ours(config: RunConfig, directory: Path) -> list[float]:
    """Images per second of every epoch but the first."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))  # what ultralytics sets itself on a CPU
    return training_speed(config, directory)


def training_speed(config: RunConfig, directory: Path) -> list[float]:
    """Images per second of every epoch but the first, with the teachers of the config."""
    data = RunData(config.data)
    labelled, unlabelled = data.training(config)
    seed_everything(0)
    parts = build_parts(config, data)
    size = teacher_input_size(config, parts.teachers)
    stream = build_stream(config, parts.with_pseudo_labels(labelled), unlabelled, parts.channels, teacher_size=size)
    run = TrainingStep(parts.student, parts.distiller, parts.teachers)
    optimizer = build_optimizer([run], config.train, stream.total_steps, len(labelled.classes))
    watch = Stopwatch()
    fabric = build_fabric(config.train, [])
    Trainer(fabric, run, stream, optimizer, config.train, RunDirectory(directory), {}, None, watch).fit()
    ends = watch.times[stream.steps_per_epoch - 1 :: stream.steps_per_epoch]
    return [len(labelled.images) / (after - before) for before, after in itertools.pairwise(ends)]


def speed_of_theirs(config: RunConfig, data: Path, directory: Path) -> list[float]:
    """Images per second of every epoch but the first."""
    ends: list[float] = []
    model = YOLO(f"{config.student.model}.yaml")
    model.add_callback("on_train_epoch_end", lambda trainer: ends.append(time.perf_counter()))
    starts: list[float] = []
    model.add_callback("on_train_epoch_start", lambda trainer: starts.append(time.perf_counter()))
    model.train(
        data=str(data), imgsz=config.image_size, epochs=config.train.epochs, batch=config.train.batch_size,
        nbs=config.train.batch_size, close_mosaic=0, workers=1, cache="ram", device="cpu", val=False, plots=False,
        verbose=False, project=str(directory), name="run", save=False,
    )  # fmt: skip
    count = len(RunData(config.data).split("train"))
    return [count / (end - start) for start, end in list(zip(starts, ends))[1:]]


def price_of_a_teacher(config: RunConfig, turns: int) -> dict[str, object]:
    """One distillation step over (student step + teacher forward), turn by turn on the same batches."""
    data = RunData(config.data)
    parts = build_parts(config, data)
    student, distiller, (teacher,) = parts.student, parts.distiller, parts.teachers.values()
    assert distiller is not None
    (signals,) = distiller.required_signals().values()
    keep_freed_memory()  # as training does
    plain, distilled = TrainingStep(student, None).train(), TrainingStep(student, distiller, teacher).train()
    light = replace(config, train=config.train.model_copy(update={**_SAME, "workers": 0}))
    stream = build_stream(light, parts.with_pseudo_labels(data.split("train")), None, parts.channels)
    batches = [batch.as_float() for batch in itertools.islice(stream.batches(), 4)]
    weights = distiller.weights(0.0)
    step, forward, both = [], [], []
    process = psutil.Process(os.getpid())
    early = 0
    for turn in range(turns + 2):
        batch = batches[turn % len(batches)]
        one = timed(lambda b=batch: work(plain, b, {}))
        two = timed(lambda b=batch: teacher.signals(b, signals))
        three = timed(lambda b=batch: work(distilled, b, weights))
        if turn < 2:
            early = process.memory_info().rss
            continue
        step.append(one)
        forward.append(two)
        both.append(three)
    ratios = [c / (a + b) for a, b, c in zip(step, forward, both)]
    return {
        "student_step_s": summary(step),
        "teacher_forward_s": summary(forward),
        "distillation_step_s": summary(both),
        "step_over_sum": summary(ratios),
        "memory_growth_mb": round((process.memory_info().rss - early) / 1e6, 1),
    }


def work(run: TrainingStep, batch: ImageBatch, weights: dict[str, float]) -> None:
    """Forward and backward of one step, without the optimiser (it costs both arms the same)."""
    terms(run, batch).total(weights).backward()
    run.zero_grad(set_to_none=True)


def timed(action: Callable[[], object]) -> float:
    """Seconds an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def summary(values: list[float]) -> dict[str, float]:
    """Least, median and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
