"""What stored knowledge costs, measured in one run: labelling, disk, training.

    python tools/bench_knowledge.py                     synthetic scenes, an untrained teacher that is not silent
    python tools/bench_knowledge.py --config configs/bccd_yolov8s_to_yolov8n.yaml

1. `label` against the family's own batched prediction of the same images (ultralytics teachers only), turn by turn.
2. Bytes of the store per image.
3. Images per second of training from the store against plain training, turn by turn: same student, images,
   augmentation, batch and threads; the first epoch of every turn warms up and does not count.

Read the ratios and medians; single numbers of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from bench_training import summary, synthetic_config, training_speed
from ultralytics import YOLO

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig
from kd_vision.core.files import write_json
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.environment import hardware, versions
from kd_vision.pipeline.label import LabelOptions, label

_BATCH = 16


def main() -> None:
    """Run the three measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a distillation config (default: synthetic scenes)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch, for both sides (default: 1)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = options.config or synthetic_config(folder)
        labelling, store = compare_labelling(path, options.rounds, folder)
        result = {
            "labelling": labelling,
            "training": compare_training(load_config(path), store, options.epochs, options.rounds, folder),
            "hardware": hardware(),
            "versions": versions(),
        }
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


def compare_labelling(path: Path, rounds: int, folder: Path) -> tuple[dict[str, object], Path]:
    """Images per second of `label` and of ultralytics' own batched prediction; the last store."""
    config = load_config(path)
    images = [str(image.path) for image in RunData(config.data).split("train").images]
    size = config.teachers[0].options.image_size or config.image_size
    model = YOLO(str(config.teachers[0].weights))  # type: ignore[attr-defined]
    ours, theirs = [], []
    for turn in range(rounds):
        began = time.perf_counter()
        for start in range(0, len(images), _BATCH):
            model.predict(
                images[start : start + _BATCH], imgsz=size, conf=0.05, iou=0.6, max_det=100, verbose=False, rect=False,
                batch=_BATCH, device="cpu",
            )  # fmt: skip
        theirs.append(len(images) / (time.perf_counter() - began))
        asked = LabelOptions(batch_size=_BATCH, device="cpu")
        done = label(path, folder / f"store{turn}", splits=["train"], options=asked)
        ours.append(done.made / done.seconds)
    boxes = sum(done.boxes.values()) / len(images)
    return {
        "label_images_per_second": summary(ours),
        "ultralytics_predict_images_per_second": summary(theirs),
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "store_bytes_per_image": done.bytes / len(images),
        "boxes_per_image": boxes,
    }, folder / f"store{rounds - 1}"


def compare_training(config: RunConfig, store: Path, epochs: int, rounds: int, folder: Path) -> dict[str, object]:
    """Images per second of training from the store and of plain training, turn by turn."""
    same = {"epochs": epochs, "accelerator": "cpu", "workers": 1, "cache": "ram", "validate_every": 0, "keep": "last"}
    plain = replace(config, teachers=(), terms=(), train=config.train.model_copy(update=same))
    path = folder / "stored.yaml"
    mapping = plain.to_mapping() | {"knowledge": str(store), "distill": "boxes", "allow_weak_teacher": True}
    path.write_text(json.dumps(mapping), encoding="utf-8")
    stored = load_config(path)
    without, beside = [], []
    for turn in range(rounds):
        without += training_speed(plain, folder / f"plain{turn}")
        beside += training_speed(stored, folder / f"stored{turn}")
    return {
        "plain_images_per_second": summary(without),
        "from_store_images_per_second": summary(beside),
        "ratio": statistics.median(beside) / statistics.median(without),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
