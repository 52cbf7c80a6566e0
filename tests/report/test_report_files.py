"""Logs are read as written, also those of killed and resumed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_vision.core.errors import RequestError
from kd_vision.report.files import Series, read_history


def test_series_by_split_and_key(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "split": "train", "loss/total": 3.0}\n'
        '{"step": 10, "split": "val", "AP": 0.1}\n'
        '{"step": 20, "split": "train", "loss/total": NaN, "share/a": 0.5}\n'
        "\n"
        '{"step": 30, "split": "train", "loss/total": 1.0}\n'
        '{"step": 20, "split": "train", "loss/total": 2.0}\n'
        '{"step": 40, "split": "tra'
    )
    history = read_history(path)
    assert history.series("train", "loss/total") == Series((10, 20, 30), (3.0, 2.0, 1.0))
    assert history.series("val", "AP") == Series((10,), (0.1,))
    assert history.keys("train", "share/") == ["share/a"]
    assert len(history.series("val", "loss/total")) == 0


def test_wrong_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{oops}\n[1]\n')
    with pytest.raises(RequestError) as caught:
        read_history(path)
    assert caught.value.problems[0].startswith(f"{path}:2: is not valid JSON")
    assert caught.value.problems[1] == f"{path}:3: expected an object with keys and values"
