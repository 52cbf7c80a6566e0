"""`kd-vision benchmark`: what its options become, without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_vision.cli.main import main
from kd_vision.config.schema import RunConfig
from kd_vision.config.trial import Trial
from kd_vision.core.errors import GateError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What `benchmark` is called with; it then ends the command with exit status 3."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def called(*given: Any, **named: Any) -> None:
        calls.append((given, named))
        raise GateError("enough")

    monkeypatch.setattr("kd_vision.pipeline.benchmark.benchmark", called)
    return calls


@pytest.fixture
def trial(tmp_path: Path, write_config: Callable[..., Path]) -> Path:
    """A trial file of the tiny config."""
    write_config()
    path = tmp_path / "trial.yaml"
    path.write_text("config: config.yaml\nseeds: [4]\narms: {plain: {}, distilled: {}}\n")
    return path


def test_the_control_is_on_and_its_old_flag_is_read_with_a_notice(
    asked: list[Any], write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config())
    assert main(["benchmark", config]) == 3
    assert main(["benchmark", config, "--control"]) == 3
    assert main(["benchmark", config, "--no-control", "--jobs", "auto", "--check-budget", "--seeds", "1", "2"]) == 3
    first, second, third = asked
    assert isinstance(first[0][0], RunConfig)
    assert (first[0][1:], first[1]["control"], first[1]["jobs"], first[1]["check_budget"]) == (
        (None, None),
        True,
        "1",
        False,
    )
    assert second[1]["control"] is True
    assert (third[0][1], third[1]["control"], third[1]["jobs"], third[1]["check_budget"]) == (
        [1, 2],
        False,
        "auto",
        True,
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("kd-vision: --control is the default today; --no-control leaves it out") == 1


def test_a_trial_file_is_given_either_way(asked: list[Any], trial: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text((tmp_path / "config.yaml").read_text())
    assert main(["benchmark", str(trial), "--set", "train.epochs=9"]) == 3
    assert main(["benchmark", "--trial", str(trial)]) == 3
    assert main(["benchmark", str(other), "--trial", str(trial)]) == 3
    trials = [given[0] for given, _ in asked]
    assert all(isinstance(one, Trial) for one in trials)
    assert [one.config.train.epochs for one in trials] == [9, 2, 2]
    assert [one.config.source.name for one in trials] == ["config.yaml", "config.yaml", "other.yaml"]


def test_wrong_requests_are_one_line(trial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark"]) == 2
    assert main(["benchmark", str(trial), "--trial", str(trial)]) == 2
    assert main(["benchmark", str(trial), "--no-control"]) == 2
    assert main(["benchmark", str(trial), "--jobs", "many"]) == 2
    assert main(["benchmark", str(trial.with_name("config.yaml")), "--seeds", "1", "1"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "kd-vision: CONFIG: is missing; give a config with a teacher, or --trial FILE",
        f"kd-vision: {trial}: is a trial file, as is --trial {trial}; give one of them",
        "kd-vision: --no-control: a trial file says itself which arms there are; leave it out",
        "kd-vision: --jobs: 'many' is no number of processes; give 1, 2, ... or auto",
        "kd-vision: --seeds: give different seeds from 0 up, e.g. 0 1 2; given 1 1",
    ]


def test_the_help_has_an_example_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    examples = capsys.readouterr().out.split("\nexamples:\n")[1]
    for option in ("--set", "--trial", "--seeds", "--out", "--jobs", "--no-control", "--check-budget", "--no-latency"):
        assert option in examples, option
