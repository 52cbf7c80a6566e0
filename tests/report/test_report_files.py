"""Logs are read as written, also those of killed and resumed runs."""

from __future__ import annotations

from pathlib import Path

from kd_vision.core.run_directory import read_log
from kd_vision.report.files import History, Series


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
    history = History(read_log(path))
    assert history.series("train", "loss/total") == Series((10, 20, 30), (3.0, 2.0, 1.0))
    assert history.series("val", "AP") == Series((10,), (0.1,))
    assert history.keys("train", "share/") == ["share/a"]
    assert len(history.series("val", "loss/total")) == 0
