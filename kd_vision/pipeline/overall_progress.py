"""Progress of a whole benchmark: which arm, which step, and how long the rest will take at the measured speed."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kd_vision.core.progress import Progress, ProgressFactory

TITLE = "benchmark"
_TAIL = 65536
_SHOWN_RUNS = 2
_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 0, ""))


@dataclass(slots=True)
class RunState:
    """Where a run stands.

    Attributes:
        arm, seed: which run.
        steps: of the whole run.
        step: done.
        seconds_per_step: as measured; None: not yet.
        active: it is running now.
    """

    arm: str
    seed: int
    steps: int
    step: int = 0
    seconds_per_step: float | None = None
    active: bool = False

    @property
    def finished(self) -> bool:
        """True where no step is left."""
        return self.step >= self.steps and not self.active


def seconds_left(runs: Sequence[RunState], jobs: int) -> float | None:
    """Return the time until the last run ends, with the runs that wait taken up in order; None: nothing measured.

    A run that is not measured yet has the speed of its arm in another seed, else the slowest measured one.
    """
    speeds = [run.seconds_per_step for run in runs if run.seconds_per_step is not None]
    if not speeds:
        return None

    def rest(run: RunState) -> float:
        own = run.seconds_per_step
        arm = [r.seconds_per_step for r in runs if r.arm == run.arm and r.seconds_per_step is not None]
        pace = own if own is not None else max(arm or speeds)
        return pace * max(run.steps - run.step, 0)

    lanes = [rest(run) for run in runs if run.active]
    lanes += [0.0] * (jobs - len(lanes))
    heapq.heapify(lanes)
    for run in runs:
        if not run.active and not run.finished:
            heapq.heapreplace(lanes, lanes[0] + rest(run))
    return max(lanes, default=0.0)


def duration_text(seconds: float) -> str:
    """Return ``45 s``, ``12 min``, ``3 h 20 min`` or ``2 d 5 h``."""
    whole = round(seconds)
    for size, name, small, small_name in _UNITS:
        if whole >= size:
            count, rest = divmod(whole, size)
            part = rest // small if small else 0
            return f"{count} {name}" + (f" {part} {small_name}" if part else "")
    return f"{whole} s"


def last_step(log: Path) -> int:
    """Return the last step in a run's ``metrics.jsonl``; 0 where there is none yet."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - _TAIL, 0))
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    for line in reversed(lines[:-1]):  # what follows the last line break is not whole yet
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


class OverallProgress:
    """One bar over all runs of a benchmark.

    Args:
        runs: in the order in which they are started.
        jobs: how many run at a time.
        bar: receives the sum of steps.
        clock: returns seconds.
    """

    def __init__(
        self, runs: Sequence[RunState], jobs: int, bar: Progress, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runs, self._jobs, self._bar, self._clock = runs, jobs, bar, clock
        self._began: dict[int, tuple[float, int]] = {}  # time and step at which a run was first seen to move

    def started(self, index: int, step: int = 0) -> None:
        """Receive that a run has started, or has been taken up at `step`."""
        self._runs[index].active, self._runs[index].step = True, step
        self._began.pop(index, None)

    def stepped(self, index: int, step: int) -> None:
        """Receive the number of steps that a run has done; its speed is measured from the first one on."""
        run, now = self._runs[index], self._clock()
        if index in self._began:
            began, first = self._began[index]
            if step > first:
                run.seconds_per_step = (now - began) / (step - first)
        elif step != run.step:  # all before was loading
            self._began[index] = now, step
        run.step = min(step, run.steps)
        self.show()

    def ended(self, index: int) -> None:
        """Receive that a run has ended, with all its steps or by an error: nothing of it is left."""
        run = self._runs[index]
        shown = run.step == run.steps
        run.active, run.step = False, run.steps
        if not shown:
            self.show()

    def show(self) -> None:
        """Hand the bar the state of all runs."""
        done = sum(run.step for run in self._runs)
        self._bar.step(done, sum(run.steps for run in self._runs), self.text())

    def text(self) -> str:
        """Return ``arm 2 of 6: distilled, seed 0, step 40/325; 12 min left``."""
        arms = list(dict.fromkeys(run.arm for run in self._runs))
        active = [run for run in self._runs if run.active]
        shown = [
            f"arm {arms.index(run.arm) + 1} of {len(arms)}: {run.arm}, seed {run.seed}, step {run.step}/{run.steps}"
            for run in active[:_SHOWN_RUNS]
        ]
        more = len(active) - len(shown)
        left = seconds_left(self._runs, self._jobs)
        parts = [*shown, *([f"{more} more"] if more > 0 else []), *([f"{duration_text(left)} left"] if left else [])]
        return "; ".join(parts)

    def of_run(self, index: int) -> ProgressFactory:
        """Return the progress for the trainer of one run in this process."""
        overall = self

        class _OneRun:
            def step(self, done: int, total: int, text: str = "") -> None:
                """See `Progress.step`."""
                if not overall._runs[index].active:
                    overall.started(index, done - 1)
                overall.stepped(index, done)

        @contextmanager
        def factory(title: str) -> Iterator[Progress]:
            yield _OneRun()

        return factory
