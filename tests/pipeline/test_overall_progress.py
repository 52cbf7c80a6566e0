"""The time left of a benchmark, by hand, and what its bar says."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_vision.pipeline.overall_progress import OverallProgress, RunState, duration_text, last_step, seconds_left


def state(arm: str, step: int = 0, pace: float | None = None, active: bool = False, seed: int = 0) -> RunState:
    return RunState(arm, seed, 100, step, pace, active)


def test_nothing_measured_is_no_estimate() -> None:
    assert seconds_left([state("plain", active=True), state("distilled")], 1) is None


def test_runs_in_turn_add_up_at_their_own_speed() -> None:
    runs = [
        state("plain", 100, 1.0), state("distilled", 100, 2.0), state("plain", 50, 1.5, active=True, seed=1),
        state("distilled", seed=1),
    ]  # fmt: skip
    assert seconds_left(runs, 1) == 50 * 1.5 + 100 * 2.0


def test_an_arm_that_never_ran_has_the_slowest_speed() -> None:
    assert seconds_left([state("plain", 100, 1.0), state("control", 100, 3.0), state("distilled")], 1) == 300.0


def test_side_by_side_the_longest_lane_counts() -> None:
    runs = [state("a", 40, 1.0, active=True), state("b", 80, 1.0, active=True), state("c"), state("d", 90)]
    # lanes: 60 and 20; c (100) joins the second: 120; d (10) the first: 70
    assert seconds_left(runs, 2) == 120.0


def test_finished_runs_leave_nothing() -> None:
    assert seconds_left([state("plain", 100, 1.0)], 2) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (45, "45 s"), (61, "1 min"), (3600, "1 h"), (12000, "3 h 20 min"), (190800, "2 d 5 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_last_whole_line_of_a_log_counts(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert last_step(log) == 0
    log.write_text('{"step": 10}\n{"step": 20}\n{"step": 3')
    assert last_step(log) == 20


def test_loading_is_no_part_of_the_speed() -> None:
    class Bar:
        def step(self, done: int, total: int, text: str = "") -> None:
            pass

    now = [0.0]
    run = RunState("plain", 0, 100)
    overall = OverallProgress([run], 1, Bar(), lambda: now[0])
    overall.started(0, 20)
    for seconds, step in ((30.0, 20), (60.0, 30), (65.0, 30), (70.0, 40)):  # a log has a line every ten steps
        now[0] = seconds
        overall.stepped(0, step)
    assert run.seconds_per_step == 1.0


def test_the_bar_says_arm_seed_step_and_time_left() -> None:
    told: list[tuple[int, int, str]] = []

    class Bar:
        def step(self, done: int, total: int, text: str = "") -> None:
            told.append((done, total, text))

    now = [0.0]
    runs = [RunState("plain", 0, 10), RunState("distilled", 0, 10)]
    overall = OverallProgress(runs, 1, Bar(), lambda: now[0])
    with overall.of_run(0)("plain, seed 0") as bar:
        bar.step(1, 10)
        now[0] = 6.0
        bar.step(4, 10)
    assert told[0] == (1, 20, "arm 1 of 2: plain, seed 0, step 1/10")
    assert told[1] == (4, 20, "arm 1 of 2: plain, seed 0, step 4/10; 32 s left")
    overall.ended(0)  # stopped early: nothing of it is left
    assert told[2] == (10, 20, "20 s left")
