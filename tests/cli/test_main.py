"""The command line: light, teaching, and honest about its exit status."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_vision.cli.main import COMMANDS, main
from kd_vision.knowledge.dataset import PseudoLabelThresholds
from kd_vision.pipeline.label import LabelOptions

HEAVY = ("torch", "torchvision", "ultralytics", "albumentations", "lightning", "cv2", "numpy", "pydantic", "rich")


def loaded_by(*arguments: str) -> tuple[int, int, set[str]]:
    """Run a command in a fresh process; return its exit status, how many modules it loads, and the heavy ones."""
    code = (
        "import sys\nfrom kd_vision.cli.main import main\n"
        "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code\n"
        f"print(status, len(sys.modules), *[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    status, count, *heavy = done.stdout.splitlines()[-1].split()
    return int(status), int(count), set(heavy)


def test_import_loads_neither_torch_nor_ultralytics() -> None:
    code = (
        "import sys, kd_vision; kd_vision.__version__; dir(kd_vision)\n"
        "import kd_vision.cli.main as m; m.build_parser()\n"
        f"print([n for n in {HEAVY} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_little_more_than_python_itself() -> None:
    bare = subprocess.run(
        [sys.executable, "-c", "import argparse, logging, traceback, sys; print(len(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, count, heavy = loaded_by("--help")
    assert (status, heavy) == (0, set())
    assert count <= int(bare.stdout) + 60  # 20 of our own, and 24 of the standard library; numpy alone has 130


@pytest.mark.parametrize("command", ["check", "train", "benchmark"])
def test_a_mistake_in_a_config_is_told_before_torch_is_loaded(command: str, tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    (tmp_path / "d.yaml").touch()
    config.write_text("data: d.yaml\nimag_size: 64\nstudent: {model: yolov8n}\n")
    status, _, heavy = loaded_by(command, str(config))
    assert status == 2
    assert heavy <= {"pydantic", "rich", "numpy"}


def test_the_help_of_label_shows_the_defaults_of_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["label", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    options, thresholds = LabelOptions(), PseudoLabelThresholds()
    defaults = {
        "--score S": options.score, "--max-boxes N": options.max_boxes, "--top-k K": options.top_k,
        "--batch-size N": options.batch_size, "--min-score S": thresholds.positive,
        "--ignore-score S": thresholds.ignore,
    }  # fmt: skip
    for flag, default in defaults.items():
        assert re.search(rf" {flag} [^()]*\(default: {default}\)", text), flag
    assert "doubt" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "kd-vision" in text
    assert len(text.splitlines()) > 8


def test_a_wrong_config_is_one_line_per_mistake_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    (tmp_path / "d.yaml").touch()
    config.write_text("data: d.yaml\nstudent: {model: yolov8n}\nepochs: 3\ntrain: {batch: 4}\n")
    assert main(["train", str(config), "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"kd-vision: {config}: train.batch: unknown key; did you mean 'batch_size'?",
        f"kd-vision: {config}: epochs: unknown key; possible: allow_weak_teacher, augment, data, distill, evaluate, "
        "image_size, knowledge, student, teacher, train",
    ]
    assert not (tmp_path / "run").exists()


def test_missing_things_are_named(
    tmp_path: Path, squares: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    none = tmp_path / "none"
    assert main(["train", f"{none}.yaml"]) == 2
    assert main(["evaluate", f"{none}.pt", "--data", str(squares)]) == 2
    assert main(["evaluate", f"{none}.onnx", "--data", f"{none}.yaml"]) == 2
    config = write_config()
    assert main(["train", str(config), "--set", f"teacher.weights={none}.pt", "--out", str(none)]) == 2
    assert main(["train", str(config), "--out", str(none), "--resume"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"kd-vision: {none}.yaml: cannot be read (No such file or directory); give a YAML file"
    assert lines[1].startswith(f"kd-vision: {none}.pt: does not exist; give a run directory")
    assert lines[2].startswith(f"kd-vision: {none}.yaml: cannot be read")
    assert lines[3] == f"kd-vision: {config}: teacher.weights: {none}.pt does not exist; give a model's file"
    assert lines[4].endswith("no checkpoint to resume from; start without --resume")
    assert len(lines) == 5
    assert not none.exists()


def test_an_unknown_split_and_a_wrong_model_name_say_what_is_possible(
    tmp_path: Path,
    squares: Path,
    teacher_file: Path,
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", str(teacher_file), "--data", str(squares), "--split", "vall"]) == 2
    assert main(["train", str(write_config()), "--set", "student.model=yolo8n", "--out", str(tmp_path / "r")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "vall" in first
    assert "val" in first.split("vall")[1]
    assert second.endswith("config.yaml: student.model: unknown model 'yolo8n'; did you mean 'yolov8n'?")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["data", "check", "x.yaml"], "kd-vision: stopped\n"),
        (["label", "x.yaml", "--split", "train", "--out", "s"],
         "kd-vision: stopped; the same command continues\n"),
        (["train", "x.yaml"], "kd-vision: stopped; if it wrote a checkpoint, continue with --resume\n"),
    ],
)  # fmt: skip
def test_a_break_says_how_to_go_on(
    command: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"kd_vision.cli.{command[0]}.run", stopped)
    assert main(command) == 130
    assert capsys.readouterr().err == text
