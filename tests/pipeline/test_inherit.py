"""`inherit` as a key of the student's config and as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kd_vision
from kd_vision.cli.main import main
from kd_vision.config.load import load_config
from kd_vision.core.errors import RequestError
from kd_vision.pipeline.arms import arm_config
from kd_vision.pipeline.inherit import inherit
from kd_vision.pipeline.models import load_model
from kd_vision.pipeline.train import train

INHERIT = "student.inherit.from=teacher"


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    detector = load_model(path).detector
    assert detector is not None
    return detector.state_dict()


def test_the_written_student_of_equal_shape_is_the_teacher(
    write_config: Callable[..., Path], teacher_file: Path, tmp_path: Path
) -> None:
    result = inherit(write_config(), tmp_path / "start.pt", [INHERIT, "student.inherit.images=4"])
    assert result.inheritance.weights.share == 1.0
    assert result.inheritance.images == 4
    mine, theirs = weights_of(result.student), weights_of(teacher_file)
    for name in ("net.model.22.cv3.0.2.weight", "net.model.0.conv.weight"):
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-3)
    assert result.metrics.ap == pytest.approx(result.teacher.ap, abs=0.02)


def test_a_run_inherits_resumes_and_exports(write_config: Callable[..., Path], tmp_path: Path) -> None:
    overrides = [INHERIT, "student.inherit.images=4", "student.inherit.strength=batchnorm"]
    whole = train(write_config(), tmp_path / "whole", overrides=overrides)
    told = json.loads((tmp_path / "whole" / "inherit.json").read_text())
    assert told["share"] == 1.0
    assert told["images"] == 4
    config = load_config(tmp_path / "whole" / "config.yaml")
    assert load_config(write_config(), overrides).student == config.student  # the written config reads back
    again = train(config, tmp_path / "again")
    for name, value in weights_of(again.student).items():
        torch.testing.assert_close(value, weights_of(whole.student)[name], rtol=0, atol=0)
    exported = kd_vision.export_model(whole.student, tmp_path / "student.onnx", data=config.data)
    assert exported.path.is_file()


def test_the_baselines_of_a_benchmark_do_not_inherit(write_config: Callable[..., Path]) -> None:
    config = load_config(write_config(), [INHERIT])
    inherits = {name: arm_config(config, name, 0).student for name in ("plain", "control", "distilled")}
    assert [inherits[name].inherit is None for name in inherits] == [True, True, False]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["student.inherit.from=techer"], "student.inherit.from: there is no teacher 'techer'; possible: teacher, "),
        (
            [INHERIT, "teacher={family: onnx, weights: x.onnx}"],
            "student.inherit.from: the teacher 'teacher' (onnx) has no weights to inherit; give the path of a .pt",
        ),
        (["student.inherit.from=missing.pt"], "missing.pt does not exist; give a model's file"),
        ([INHERIT, "student.weights=x.pt"], "student.inherit: 'weights' or 'pretrained' say where"),
        ([INHERIT, "student.inherit.strength=size"], "student.inherit.strength"),
        ([INHERIT, "student.inherit.images=0"], "student.inherit.images"),
    ],
)
def test_mistakes_are_named(write_config: Callable[..., Path], overrides: list[str], text: str) -> None:
    with pytest.raises(RequestError) as error:
        load_config(write_config(), overrides)
    assert text in str(error.value)


def test_the_command(write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_config())
    assert main(["inherit", config, "--out", str(tmp_path / "s.pt")]) == 2
    assert "student.inherit: is missing; give the model to inherit from" in capsys.readouterr().err
    assert main(["inherit", config, "--set", INHERIT, "--out", str(tmp_path / "s.onnx")]) == 2
    assert "give a file that ends in .pt" in capsys.readouterr().err
    assert main(["inherit", config, "--set", INHERIT, "student.inherit.images=4", "--out", str(tmp_path / "s.pt")]) == 0
    out = capsys.readouterr().out
    assert "100 % of the student's weights are slices of the teacher's" in out
    assert "before any training" in out
    assert (tmp_path / "s.pt").is_file()
