"""The tool that trains ultralytics' own trainer: its arms, without training one."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

TOOL = str(Path(__file__).parents[2] / "tools" / "train_peer.py")


def test_each_gain_is_an_arm() -> None:
    arms_of = runpy.run_path(TOOL)["arms_of"]
    assert arms_of("builtin", [1.5, 3.0, 12.0]) == {
        "builtin-1.5": {"dis": 1.5}, "builtin-3": {"dis": 3.0}, "builtin-12": {"dis": 12.0},
    }  # fmt: skip
    assert arms_of("peer-plain", []) == {"peer-plain": {}}


def test_a_gain_without_a_teacher_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [TOOL, "c.yaml", "--arm", "peer-plain", "--gain", "3", "--out", "out"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(TOOL, run_name="__main__")
    assert caught.value.code == 2
    assert "--gain: numbers above 0, of --arm builtin alone" in capsys.readouterr().err
