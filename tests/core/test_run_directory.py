"""Files of a run survive a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_vision.core.files import write_text
from kd_vision.core.run_directory import RunDirectory


def test_a_torn_line_ends_the_log_and_truncation_drops_later_steps(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        directory.append_log({"step": step})
    with directory.log.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in directory.read_log()] == [1, 2, 3]
    directory.truncate_log(2)
    assert directory.log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "report.md", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
