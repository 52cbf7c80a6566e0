"""Files of a run survive a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_vision.core.errors import RequestError
from kd_vision.core.files import write_text
from kd_vision.core.run_directory import RunDirectory, read_log


def test_a_torn_last_line_is_left_out_and_truncation_drops_later_steps(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        directory.append_log({"step": step})
    with directory.log.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in directory.read_log()] == [1, 2, 3]
    directory.truncate_log(2)
    assert directory.log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_line_without_its_line_break_counts_if_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\n{"step": 2}')
    assert read_log(path) == [{"step": 1}, {"step": 2}]


def test_wrong_lines_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{oops}\n[1]\n{"step": 2, ')
    with pytest.raises(RequestError) as caught:
        read_log(path)
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].startswith(f"{path}:2: is not valid JSON")
    assert caught.value.problems[1] == f"{path}:3: expected an object with keys and values"


def test_a_run_that_logged_nothing_has_no_lines_but_a_named_file_must_be_there(tmp_path: Path) -> None:
    assert list(RunDirectory(tmp_path).read_log()) == []
    with pytest.raises(RequestError, match=r"metrics\.jsonl: cannot be read"):
        read_log(tmp_path / "metrics.jsonl")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "report.md", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
