"""Memory of stored pseudo labels in a training run, and the time to make them dense for a batch.

    python tools/bench_pseudo_labels.py --images 100000 --classes 80 --boxes 20

Every image has the same number of boxes with the five likeliest classes of each, as `kd-vision label` stores them.
Memory is the growth of the process; the images themselves are not loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from kd_vision.core.predictions import Detections
from kd_vision.data.box_table import tabulate
from kd_vision.data.pseudo_labels import PseudoLabelTable
from kd_vision.data.records import ImageRecord

_TOP_K = 5
_BATCH = 16


def main() -> None:
    """Run the measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, default=20, help="per image")
    options = parser.parse_args()
    process = psutil.Process(os.getpid())
    records = [record(number) for number in range(options.images)]
    before = process.memory_info().rss
    table = PseudoLabelTable.of(detections(options.images, options.boxes, options.classes), options.classes)
    boxes, placed = tabulate(records, {"teacher": table})
    grown = process.memory_info().rss - before
    times = []
    for first in range(0, min(options.images, 100 * _BATCH), _BATCH):
        began = time.perf_counter()
        part = placed.span(first, first + _BATCH)
        index = np.repeat(np.arange(_BATCH), np.diff(part.starts))
        boxes.to_targets(index, part.boxes_xyxy, part.rows)
        times.append(time.perf_counter() - began)
    result = {
        "images": options.images,
        "arrays_mb": round(table.nbytes / 1e6, 1),
        "process_growth_mb": round(grown / 1e6, 1),
        "bytes_per_image": round(grown / options.images),
        "dense_batch_ms": round(1000 * statistics.median(times), 3),
    }
    print(json.dumps(result, indent=2))


def record(number: int) -> ImageRecord:
    """Return an image without ground truth."""
    nothing = np.zeros(0)
    return ImageRecord(
        number + 1,
        Path(f"{number}.jpg"),
        640,
        480,
        np.zeros((0, 4), np.float32),
        nothing.astype(np.int64),
        nothing.astype(np.bool_),
        nothing,
        labelled=False,
    )


def detections(images: int, boxes: int, classes: int) -> Iterator[Detections]:
    """Yield random boxes with half-precision probabilities of a few classes, as a store gives them."""
    rng = np.random.default_rng(0)
    for _ in range(images):
        corner = rng.uniform(0, 400, (boxes, 2))
        xyxy = np.concatenate([corner, corner + 40], axis=1).astype(np.float32)
        kept = np.argsort(rng.random((boxes, classes)), axis=1)[:, :_TOP_K]
        values = np.sort(rng.random((boxes, _TOP_K)).astype(np.float16).astype(np.float32), axis=1)[:, ::-1]
        probs = np.zeros((boxes, classes), np.float32)
        np.put_along_axis(probs, kept, values, axis=1)
        yield Detections(xyxy, values[:, 0].copy(), kept[:, 0].astype(np.int64), probs)


if __name__ == "__main__":
    main()
