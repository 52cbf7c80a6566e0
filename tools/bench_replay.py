"""What stored dense labels cost: speed of plain training, of live distillation and of replay, and bytes per image.

    python tools/bench_replay.py --teacher runs/bccd_teacher/student.pt
    python tools/bench_replay.py --teacher t.pt --config configs/bccd_yolov8s_to_yolov8n.yaml --epochs 3 --rounds 3

1. `label --dense` on the training batches of a few epochs: bytes per image, steps per second.
2. The time to read a step from the store, and to make it dense.
3. Images per second of training the same student on the same batches, turn by turn: without a teacher, with the teacher
   run on every batch, and from the store. The first epoch of every turn warms up and does not count.

Read the ratios and medians; single numbers of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from bench_training import summary, training_speed

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig
from kd_vision.core.files import write_json
from kd_vision.knowledge.dense_store import DenseStore, read_layout
from kd_vision.pipeline.environment import hardware, versions
from kd_vision.pipeline.label_dense import DenseOptions, label_dense

_CONFIG = Path("configs/bccd_yolov8s_to_yolov8n.yaml")
_READS = 20


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="weights of the teacher")
    parser.add_argument("--config", type=Path, default=_CONFIG, help=f"a distillation config (default: {_CONFIG})")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    same = [f"teacher.weights={options.teacher}", f"train.epochs={options.epochs}", "train.workers=1"]
    same += ["train.cache=ram", "train.accelerator=cpu", "train.validate_every=0", "train.keep=last"]
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), Path(name) / "store"
        made = label_dense(options.config, store, overrides=same, options=DenseOptions(device="cpu"))[0]
        live = load_config(options.config, same)
        stored = load_config(options.config, [*same, f"knowledge={store}"])
        result = {
            "bytes_per_image": made.bytes / made.images,
            "label_steps_per_second": made.made / made.seconds,
            "milliseconds_per_step": reading(store),
            "images_per_second": compare(live, stored, options.rounds, folder),
            "hardware": hardware(),
            "versions": versions(),
        }
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


def reading(path: Path) -> dict[str, float]:
    """Milliseconds to read and decode a step, which loader processes do, and to make it dense."""
    store = DenseStore(path)
    layout = read_layout(path, store.manifest)
    steps = [store.step(step) for step in range(min(_READS, store.manifest.steps))]
    return {
        "read": median_ms(lambda index: store.step(index), len(steps)),
        "dense": median_ms(
            lambda index: [layout.dense(labels, steps[index].images) for labels in steps[index].branches.values()],
            len(steps),
        ),
    }


def median_ms(work: Callable[[int], object], times: int) -> float:
    """Return the median time of `work`, called with 0, 1, ..., in milliseconds."""
    seconds = []
    for index in range(times):
        began = time.perf_counter()
        work(index)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def compare(live: RunConfig, stored: RunConfig, rounds: int, folder: Path) -> dict[str, object]:
    """Images per second of the three ways to train, turn by turn, and their ratios."""
    runs = {"plain": replace(live, teachers=(), terms=(), recipe=None), "live": live, "replay": stored}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name, config in runs.items():
            speeds[name] += training_speed(config, folder / f"{name}{turn}")
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        **{name: summary(values) for name, values in speeds.items()},
        "live_to_plain": middle["live"] / middle["plain"],
        "replay_to_plain": middle["replay"] / middle["plain"],
        "replay_to_live": middle["replay"] / middle["live"],
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
