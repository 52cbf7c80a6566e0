"""Computes the intervals of a benchmark's comparisons from the matches of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kd_vision.evaluation.bootstrap import DRAWS, NUMBERS, DrawnAP, Floats, draw_images, drawn_ap, paired_bootstrap
from kd_vision.evaluation.match_table import MatchTable
from kd_vision.report.benchmark_data import Bounds, Comparison, Difference, ImageCounts

Run = tuple[str, int]
"""Arm and seed."""


@dataclass(frozen=True, slots=True, eq=False)
class _RunNumbers:
    """AP of a run on the images as they are and for each draw of them, and its mistakes on each image."""

    own: DrawnAP
    drawn: DrawnAP
    mistakes: Floats


@dataclass(slots=True, eq=False)
class Differences:
    """Makes the `Difference` of any comparison; every run is resampled once, all with the same draws.

    Args:
        tables: matches of each run, all of one split.
        draws: of the images.
    """

    tables: Mapping[Run, MatchTable]
    draws: int = DRAWS
    _numbers: dict[Run, _RunNumbers] = field(default_factory=dict)

    def of_all(self, pairs: Iterable[Comparison]) -> tuple[Difference, ...]:
        """Return the intervals of every comparison whose arms share a seed."""
        found = map(self.of, pairs)
        return tuple(one for one in found if one is not None)

    def of(self, pair: Comparison) -> Difference | None:
        """Return the intervals of a comparison over the seeds that both arms have; None where they share none."""
        seeds = sorted(
            {seed for name, seed in self.tables if name == pair.after.name}
            & {seed for name, seed in self.tables if name == pair.before.name}
        )
        if not seeds:
            return None
        after, before = ([self._run((arm.name, seed)) for seed in seeds] for arm in (pair.after, pair.before))
        classes = self.tables[pair.after.name, seeds[0]].classes
        return Difference(
            after=pair.after.name,
            before=pair.before.name,
            seeds=len(seeds),
            draws=self.draws,
            overall=_bounds(NUMBERS, [one.drawn.overall for one in after], [one.drawn.overall for one in before],
                            [one.own.overall[0] - other.own.overall[0] for one, other in zip(after, before)]),
            per_class=_bounds(classes, [one.drawn.per_class for one in after], [one.drawn.per_class for one in before],
                              [one.own.per_class[0] - other.own.per_class[0] for one, other in zip(after, before)]),
            images=_images(after, before),
        )  # fmt: skip

    def _run(self, run: Run) -> _RunNumbers:
        if run not in self._numbers:
            table = self.tables[run]
            images = len(table.image_ids)
            own = drawn_ap(table, np.ones((images, 1), np.float32))
            drawn = drawn_ap(table, draw_images(images, self.draws))
            self._numbers[run] = _RunNumbers(own, drawn, _mistakes(table))
        return self._numbers[run]


def _mistakes(table: MatchTable) -> Floats:
    return table.mistakes(table.matched_count_threshold()).astype(np.float64)


def _bounds(
    names: Sequence[str], after: Sequence[Floats], before: Sequence[Floats], differences: Sequence[Floats]
) -> dict[str, Bounds]:
    """Return the interval of each column that is defined on the images as they are."""
    bounds = {}
    for column, name in enumerate(names):
        own = [float(one[column]) for one in differences]
        if not np.isnan(own).any():
            interval = paired_bootstrap([one[:, column] for one in after], [one[:, column] for one in before], own)
            bounds[name] = Bounds(low=interval.low, high=interval.high)
    return bounds


def _images(after: Sequence[_RunNumbers], before: Sequence[_RunNumbers]) -> ImageCounts:
    fewer = np.sum([other.mistakes - one.mistakes for one, other in zip(after, before, strict=True)], axis=0)
    return ImageCounts(won=int((fewer > 0).sum()), lost=int((fewer < 0).sum()), equal=int((fewer == 0).sum()))
