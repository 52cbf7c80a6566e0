"""The demo's parts at a tiny size; the whole story is a long test."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_vision.cli.main import main
from kd_vision.config.load import load_config
from kd_vision.core.errors import GateError, RequestError
from kd_vision.core.progress import no_progress
from kd_vision.data.dataset import load_split, load_unlabelled
from kd_vision.data.descriptor import load_descriptor
from kd_vision.pipeline.demo import demo
from kd_vision.report.benchmark_data import read_benchmark

TINY = {"plenty": 3, "train": 2, "val": 2, "test": 2}


def test_teacher_and_student_get_their_own_labels_and_the_same_judges(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    told: list[str] = []
    # A teacher of one step knows nothing, and the gate says so: that is where the tiny story rightly ends.
    with pytest.raises(GateError, match="is not better than the untrained student's"):
        demo(out, teacher_epochs=1, student_epochs=1, splits=TINY, unlabelled=2, progress=no_progress, log=told.append)
    assert [line[:3] for line in told] == ["1/4", "2/4", "3/4"]
    few, plenty = load_descriptor(out / "scenes" / "data.yaml"), load_descriptor(out / "scenes" / "plenty.yaml")
    assert len(load_split(few, "train")) == 2
    assert len(load_split(plenty, "train")) == 3
    assert load_split(few, "test").content_hash() == load_split(plenty, "test").content_hash()
    assert len(load_unlabelled(few)) == 2
    pair = load_config(out / "pair.yaml")
    assert pair.recipe == "imitation"
    assert pair.train.unlabelled_ratio == 1


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RequestError, match="is not empty and holds no demo"):
        demo(tmp_path, progress=no_progress)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_demo_killed_while_it_drew_its_first_scenes_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".scenes.x1y2").mkdir()
    with pytest.raises(GateError, match="is not better than the untrained student's"):
        demo(tmp_path, teacher_epochs=1, student_epochs=1, splits=TINY, unlabelled=2, progress=no_progress)


@pytest.mark.stress
def test_the_whole_story_ends_with_a_better_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert "student.onnx  (parity: 100.00 % of boxes match)" in capsys.readouterr().out
    arms = {arm.name: arm.runs[0].metrics.ap for arm in read_benchmark(tmp_path / "demo" / "benchmark").arms}
    assert arms["teacher"] > arms["plain"]
    assert arms["distilled"] > arms["plain"]
    assert (tmp_path / "demo" / "student.onnx").is_file()
