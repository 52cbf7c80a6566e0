"""Progress is logged, seldom; a library that is embedded prints nothing."""

from __future__ import annotations

import logging

import pytest

from kd_vision.core import progress
from kd_vision.core.progress import LOG_EVERY_SECONDS, log_progress, no_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list of one that a test may change."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_half_minute_and_one_at_the_end(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kd_vision")
    with log_progress("train") as bar:
        for done in range(1, 11):
            clock[0] += 0.4 * LOG_EVERY_SECONDS
            bar.step(done, 10, f"loss {done}")
    assert [record.getMessage() for record in caplog.records] == [
        "train: 3/10  loss 3", "train: 6/10  loss 6", "train: 9/10  loss 9", "train: 10/10  loss 10",
    ]  # fmt: skip


def test_quick_work_logs_its_end_alone_and_quiet_work_nothing(
    clock: list[float], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "kd_vision")
    for factory in (log_progress, no_progress):
        with factory("predict") as bar:
            bar.step(1, 2)
            bar.step(2, 2)
    assert [record.getMessage() for record in caplog.records] == ["predict: 2/2  "]
    assert capsys.readouterr() == ("", "")
