"""AP before and after over seeds, with the interval of the gain.

    python tools/compare_runs.py runs/bccd_tenth/plain100 runs/bccd_fcos/distilled
    python tools/compare_runs.py runs/bccd_tenth/plain10 runs/bccd_tenth/distilled --ceiling runs/bccd_tenth/plain100

Each folder holds seed0, seed1, ...: run directories of `kd-vision train`. Runs of one seed are a pair. The interval is
Student's, at 95 %, over the differences of pairs; with three seeds it is wide, and says so.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from scipy import stats

from kd_vision.core.files import read_json


def main() -> None:
    """Print one line per class and for the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--ceiling", type=Path, help="what would be reached with everything")
    options = parser.parse_args()
    before, after = read(options.before), read(options.after)
    seeds = sorted(before.keys() & after.keys())
    if len(seeds) < 2:
        parser.error(f"{options.before} and {options.after} share {len(seeds)} seeds; two or more make an interval")
    for name in before[seeds[0]]:
        pairs = [(before[seed][name], after[seed][name]) for seed in seeds]
        print(f"{name:12} {spread([a for a, _ in pairs])} -> {spread([b for _, b in pairs])}   {interval(pairs)}")
    if options.ceiling:
        top = read(options.ceiling)
        low, high, got = (statistics.mean(r[s]["AP"] for s in seeds) for r in (before, top, after))
        print(f"of the way to {options.ceiling} ({high:.1f}): {(got - low) / (high - low):.0%}")


def read(folder: Path) -> dict[str, dict[str, float]]:
    """AP in points, the mean's and each class's, by seed."""
    found = {}
    for file in sorted(folder.glob("seed*/metrics.json")):
        content = read_json(file)
        measured = {name: values["ap"] for name, values in content["per_class"].items()}
        classes = {name: 100 * ap for name, ap in measured.items() if ap is not None}  # None: not in the split
        found[file.parent.name] = {"AP": 100 * content["AP"], "AP50": 100 * content["AP50"], **classes}
    return found


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    return f"{statistics.mean(values):5.1f} ± {statistics.stdev(values):3.1f}"


def interval(pairs: list[tuple[float, float]]) -> str:
    """Mean of the paired differences and its interval."""
    gains = [after - before for before, after in pairs]
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    mean = statistics.mean(gains)
    return f"{mean:+.1f}  [{mean - half:+.1f}, {mean + half:+.1f}]"


if __name__ == "__main__":
    main()
