"""Compare AP before and after over seeds, with the interval of the gain.

    python tools/compare_runs.py runs/bccd_tenth/plain100 runs/bccd_fcos/distilled
    python tools/compare_runs.py runs/bccd_tenth/plain10 runs/bccd_tenth/distilled --ceiling runs/bccd_tenth/plain100

Each folder holds seed0, seed1, ...: run directories of `kd-vision train`. Runs of the same seed are a pair. The
interval is Student's t interval of the paired differences, at 95 %; with three seeds it is wide.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from statistics import fmean, stdev

from kd_vision.core.files import read_json
from kd_vision.evaluation.metrics import Metrics
from kd_vision.evaluation.statistics import paired_differences, paired_interval


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
    for name in before[seeds[0]]:
        print(f"{name:12} {describe({s: before[s][name] for s in seeds}, {s: after[s][name] for s in seeds})}")
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


def describe(before: dict[int, float], after: dict[int, float]) -> str:
    """Return mean and standard deviation of both, and the mean difference with its interval."""
    interval = paired_interval(paired_differences(after, before).values())
    assert interval is not None  # two seeds or more
    gain = f"{interval.mean:+.1f}  [{interval.low:+.1f}, {interval.high:+.1f}]"
    return f"{spread(before.values())} -> {spread(after.values())}   {gain}"


def spread(values: Collection[float]) -> str:
    """Return mean and sample standard deviation."""
    return f"{fmean(values):5.1f} ± {stdev(values):3.1f}"


if __name__ == "__main__":
    main()
