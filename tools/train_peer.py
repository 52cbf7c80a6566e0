"""Trains the same student on the same data with ultralytics' own trainer, plain or with its `distill_model`.

The result lies where `kd-vision benchmark` looks for arms, in the same form, so that its report compares them:

    python tools/train_peer.py configs/bccd_yolov8s_to_yolov8n.yaml --arm builtin --seeds 0 1 2 --out runs/bccd
    python tools/train_peer.py configs/bccd_yolov8s_to_yolov8n.yaml --arm peer-plain --seeds 0 1 2 --out runs/bccd
    python tools/train_peer.py configs/bccd_yolov8s_to_yolov8n.yaml --arm builtin --gain 1.5 3 6 12 --out runs/bccd

The last one is a search of its distillation gain, ultralytics' `dis`: one arm for each, `builtin-1.5` to `builtin-12`.

Same optimiser steps as ours: `nbs` equals the batch, so that every batch is a step. The last weights (moving average)
are taken, as with `keep: last`, and measured by kd_vision like every other arm.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultralytics import YOLO

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig
from kd_vision.core.files import read_json, write_json, write_text
from kd_vision.data.convert import convert
from kd_vision.data.descriptor import load_descriptor
from kd_vision.engine.trainer import seed_everything
from kd_vision.pipeline.arms import ARM_FILE
from kd_vision.pipeline.build import build_student
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.evaluate import measure
from kd_vision.pipeline.models import load_model

ARMS = {
    "builtin": "ultralytics' own distill_model at {gain}, ultralytics' trainer",
    "peer-plain": "ultralytics' own trainer without a teacher",
}


def main() -> None:
    """Train and measure the arm for every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--arm", choices=sorted(ARMS), required=True)
    parser.add_argument(
        "--gain", type=float, nargs="+", help="of --arm builtin: an arm for each (default: 6, as theirs)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the benchmark")
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[])
    options = parser.parse_args()
    if options.gain and (options.arm != "builtin" or min(options.gain) <= 0):
        parser.error("--gain: numbers above 0, of --arm builtin alone; peer-plain has no teacher")
    config = load_config(options.config, options.overrides)
    data = yolo_copy(config, options.out / "yolo")
    for arm, settings in arms_of(options.arm, options.gain or ()).items():
        gain = f"a gain of {settings['dis']:g}" if settings else "its default gain"
        write_json(options.out / arm / ARM_FILE, {"role": "other", "description": ARMS[options.arm].format(gain=gain)})
        for seed in options.seeds:
            directory = options.out / arm / f"seed{seed}"
            if not (directory / "metrics.json").is_file():
                run_seed(config, arm, seed, data, directory, settings)


def arms_of(arm: str, gains: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Return the arms by name, each with the settings that it adds to ultralytics' own."""
    return {f"{arm}-{gain:g}": {"dis": gain} for gain in gains} or {arm: {}}


def yolo_copy(config: RunConfig, out: Path) -> Path:
    """Write the data set as ultralytics reads it, once."""
    described = out / "ultralytics.yaml"
    if not described.is_file():
        convert(load_descriptor(config.data), out, "yolo")
    return described


def run_seed(config: RunConfig, arm: str, seed: int, data: Path, directory: Path, settings: dict[str, Any]) -> None:
    """Train one seed."""
    student, teacher, train = config.student, config.teachers[0], config.train
    source = RunData(config.data)
    directory.mkdir(parents=True, exist_ok=True)
    if student.weights is None:
        model = YOLO(f"{student.model}.yaml")
    else:  # the very weights that our arms of this seed start from
        seed_everything(seed)
        build_student(config, source.classes).save(directory / "start.pt", {})
        model = YOLO(directory / "start.pt")
    began = time.perf_counter()
    model.train(
        data=str(data.resolve()),
        imgsz=config.image_size,
        epochs=train.epochs,
        batch=train.batch_size,
        nbs=train.batch_size,
        seed=seed,
        close_mosaic=config.augment.close_mosaic,
        workers=1,
        cache="ram",
        device="cpu",
        val=False,
        plots=False,
        verbose=False,
        exist_ok=True,
        project=str(directory.resolve()),
        name="ultralytics",
        **({} if arm == "peer-plain" else {"distill_model": str(teacher.weights), **settings}),
    )
    measure_seed(config, arm, seed, source, directory, time.perf_counter() - began)


def measure_seed(config: RunConfig, arm: str, seed: int, source: RunData, directory: Path, seconds: float) -> None:
    """Measure the last weights and write student.pt, description.txt, fit.json and metrics.json."""
    train = config.train
    last = directory / "ultralytics" / "weights" / "last.pt"
    (directory / "student.pt").write_bytes(last.read_bytes())
    truth = source.final_split(config)
    loaded = load_model(directory / "student.pt", config.image_size)
    metrics = measure(loaded.predictor, truth, config.image_size, config.evaluate)
    count = len(source.split("train"))
    images, steps = count * train.epochs, -(-count // train.batch_size) * train.epochs
    fit = {"steps": steps, "seconds": seconds, "images_per_second": images / seconds}
    description = read_json(directory.parent / ARM_FILE)["description"]
    write_text(directory / "description.txt", f"{description}\n")
    write_json(directory / "fit.json", fit)
    write_json(directory / "metrics.json", metrics.to_json())
    print(arm, seed, metrics.ap)


if __name__ == "__main__":
    main()
