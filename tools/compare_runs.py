"""Compare AP before and after over seeds, with the interval of the gain.

    python tools/compare_runs.py runs/bccd_tenth/plain100 runs/bccd_fcos/distilled
    python tools/compare_runs.py runs/bccd_tenth/plain10 runs/bccd_tenth/distilled --ceiling runs/bccd_tenth/plain100

Each folder holds seed0, seed1, ...: run directories of `kd-vision train`. Runs of the same seed are a pair. The 95 %
interval is over images and seeds where every run has its matches.npz, and else Student's over seeds alone; with three
seeds it is wide.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from kd_vision.core.files import read_json
from kd_vision.evaluation.bootstrap import NUMBERS, Counts, Floats, draw_images, drawn_ap, paired_bootstrap
from kd_vision.evaluation.match_table import MatchTable
from kd_vision.evaluation.metrics import Metrics
from kd_vision.evaluation.statistics import Interval, paired_differences, paired_interval


def main() -> None:
    """Print one line for AP, for AP50 and for each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--ceiling", type=Path, help="runs whose AP is the goal, for example with all labels")
    options = parser.parse_args()
    before, after = read_points(options.before), read_points(options.after)
    seeds = sorted(before.keys() & after.keys())
    if len(seeds) < 2:
        parser.error(f"{options.before} and {options.after} share {len(seeds)} seeds; give two or more for an interval")
    resampled = resampled_intervals(options.before, options.after, seeds)
    print(f"intervals over {'images and seeds' if resampled else 'seeds alone'}")
    for name in before[seeds[0]]:
        values = ({seed: runs[seed][name] for seed in seeds} for runs in (before, after))
        print(f"{name:12} {describe(*values, resampled.get(name))}")
    if options.ceiling:
        ceiling = read_points(options.ceiling)
        low, high, reached = (fmean(runs[seed]["AP"] for seed in seeds) for runs in (before, ceiling, after))
        print(f"of the way to {options.ceiling} ({high:.1f}): {(reached - low) / (high - low):.0%}")


def read_points(folder: Path) -> dict[int, dict[str, float]]:
    """Return AP, AP50 and the AP of each class with boxes, in points, by seed."""
    points = {}
    for file in sorted(folder.glob("seed*/metrics.json")):
        metrics = Metrics.from_json(read_json(file), str(file))
        fractions = {"AP": metrics.ap, "AP50": metrics.ap50}
        fractions |= {name: numbers.ap for name, numbers in metrics.per_class.items()}
        seed = int(file.parent.name.removeprefix("seed"))
        points[seed] = {name: 100 * value for name, value in fractions.items() if value is not None}
    return points


def resampled_intervals(before: Path, after: Path, seeds: Sequence[int]) -> dict[str, Interval]:
    """Return the interval over images and seeds of AP, AP50 and each class, in points; empty without all matches."""
    files = [[folder / f"seed{seed}" / "matches.npz" for seed in seeds] for folder in (before, after)]
    if not all(file.is_file() for arm in files for file in arm):
        return {}
    tables = [[MatchTable.load(file) for file in arm] for arm in files]
    first = tables[0][0]
    if not all(np.array_equal(table.image_ids, first.image_ids) for arm in tables for table in arm):
        return {}
    images = len(first.image_ids)
    names = (*NUMBERS, *first.classes)
    own, drawn = (
        [[_columns(table, times) for table in arm] for arm in tables]
        for times in (np.ones((images, 1), np.float32), draw_images(images))
    )
    intervals = {}
    for column, name in enumerate(names):
        differences = [float(new[0, column] - old[0, column]) for old, new in zip(*own, strict=True)]
        old, new = ([run[:, column] for run in arm] for arm in drawn)
        if not np.isnan(differences).any():
            intervals[name] = paired_bootstrap(new, old, differences)
    return intervals


def _columns(table: MatchTable, times: Counts) -> Floats:
    """Return (B, 6 + K): the numbers and the AP of each class for each draw, in points."""
    drawn = drawn_ap(table, times)
    return 100 * np.concatenate([drawn.overall, drawn.per_class], axis=1)


def describe(before: dict[int, float], after: dict[int, float], interval: Interval | None = None) -> str:
    """Return mean and standard deviation of both, and the mean difference with its interval, or Student's."""
    interval = interval or paired_interval(paired_differences(after, before).values())
    assert interval is not None  # two seeds or more
    gain = f"{interval.mean:+.1f}  [{interval.low:+.1f}, {interval.high:+.1f}]"
    return f"{spread(before.values())} -> {spread(after.values())}   {gain}"


def spread(values: Collection[float]) -> str:
    """Return mean and sample standard deviation."""
    return f"{fmean(values):5.1f} ± {stdev(values):3.1f}"


if __name__ == "__main__":
    main()
