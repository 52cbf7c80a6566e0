"""Time the bootstrap over images on a split of COCO's size, with synthetic matches.

    python tools/bench_bootstrap.py
    python tools/bench_bootstrap.py --images 500 --classes 10 --draws 200

Classes are as unequal as those of COCO (a third of all boxes is of one class), 100 detections an image, a tenth of
which match at the loosest IoU threshold.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from kd_vision.evaluation.bootstrap import draw_images, drawn_ap
from kd_vision.evaluation.match_table import AREAS, MatchTable

_THRESHOLDS = 10
_BOXES = 7  # an image, as in COCO val2017


def main() -> None:
    """Print the seconds of one run's bootstrap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--detections", type=int, default=100, help="of an image")
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    table = synthetic_table(options.images, options.classes, options.detections)
    start, processor = time.perf_counter(), time.process_time()
    drawn = draw_images(options.images, options.draws)
    result = drawn_ap(table, drawn)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    low, high = np.percentile(100 * result.overall[:, 0], [2.5, 97.5])
    size = f"{len(table.label)} detections, {len(table.box_label)} boxes"
    took = f"{seconds:.1f} s on {os.cpu_count()} cores ({processor:.1f} s of processor time)"
    print(f"{options.draws} draws of {options.images} images, {options.classes} classes, {size}: {took}")
    print(f"AP {low:.1f} to {high:.1f}")


def synthetic_table(images: int, classes: int, detections: int, seed: int = 0) -> MatchTable:
    """Return matches drawn at random, with the sizes of areas and classes of a real split."""
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, classes + 1)
    share /= share.sum()
    boxes = _BOXES * images
    box_label = rng.choice(classes, boxes, p=share)
    box_area = rng.choice(3, boxes, p=[0.41, 0.34, 0.25]) + 1
    box_ignored = np.ones((boxes, len(AREAS)), np.bool_)
    box_ignored[:, 0] = False
    box_ignored[np.arange(boxes), box_area] = False
    box_image = np.sort(rng.integers(0, images, boxes))
    found = rng.permutation(boxes)[: int(0.8 * boxes)]  # boxes that a detection matches
    wrong = max(detections * images - len(found), 0)
    image = np.concatenate([box_image[found], rng.integers(0, images, wrong)])
    label = np.concatenate([box_label[found], rng.choice(classes, wrong, p=share)])
    area = np.concatenate([box_area[found], rng.integers(1, 4, wrong)])
    score = np.concatenate([rng.beta(2, 2, len(found)), rng.beta(1, 6, wrong)])
    bits = (1 << rng.integers(1, _THRESHOLDS + 1, len(found))) - 1  # correct up to some threshold, wrong above
    matched = np.zeros((len(label), len(AREAS)), np.uint16)
    matched[: len(found)] = bits[:, None]
    every = (1 << _THRESHOLDS) - 1
    ignored = np.full((len(label), len(AREAS)), every, np.uint16)
    ignored[:, 0] = 0
    ignored[np.arange(len(label)), area] = 0
    order = np.lexsort((image, -score, label))
    return MatchTable(
        tuple(f"class{number}" for number in range(classes)),
        np.arange(images),
        image[order].astype(np.int32),
        label[order].astype(np.int32),
        score[order].astype(np.float32),
        matched[order],
        ignored[order],
        box_image.astype(np.int32),
        box_label.astype(np.int32),
        box_ignored,
    )


if __name__ == "__main__":
    main()
