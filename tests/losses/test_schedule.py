"""How a term's weight changes over training."""

from __future__ import annotations

import pytest

from kd_vision.losses.base import Schedule


def test_a_window_is_open_from_its_start_up_to_its_stop() -> None:
    window = Schedule(kind="window", start=0.25, stop=0.5)
    assert [window.factor(x) for x in (0.0, 0.24, 0.25, 0.49, 0.5, 1.0)] == [0, 0, 1, 1, 0, 0]
    assert [window.takes_part(x) for x in (0.1, 0.3, 0.6)] == [False, True, False]


def test_windows_that_meet_leave_no_gap_and_no_overlap() -> None:
    """Progressive distillation: at every moment one teacher, at the end the last."""
    weak, strong = Schedule(kind="window", stop=0.4), Schedule(kind="window", start=0.4)
    for step in range(101):
        assert weak.factor(step / 100) + strong.factor(step / 100) == 1.0
    assert strong.factor(1.0) == 1.0


def test_other_kinds_take_part_from_the_first_step() -> None:
    for kind in ("constant", "warm_up", "cosine"):
        assert Schedule(kind=kind).takes_part(0.0)
    assert Schedule(kind="warm_up").factor(0.1) == pytest.approx(0.5)


def test_a_window_must_open_before_it_closes() -> None:
    with pytest.raises(ValueError, match=r"start must be below stop; given 0\.5 and 0\.5"):
        Schedule(kind="window", start=0.5, stop=0.5)
    with pytest.raises(ValueError, match="start and stop belong to the kind window; given cosine"):
        Schedule(kind="cosine", start=0.5)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"kind": "cosine", "fraction": 0.5}, "fraction belongs to the kind warm_up; given cosine"),
        ({"kind": "constant", "final": 0.5}, "final belongs to the kind cosine; given constant"),
    ],
)
def test_settings_of_another_kind_are_refused(given: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Schedule.model_validate(given)
