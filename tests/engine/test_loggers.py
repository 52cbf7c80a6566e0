from __future__ import annotations

import csv
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_vision.core.errors import RequestError
from kd_vision.engine.config import TrainConfig
from kd_vision.engine.loggers import LOGGERS, LoggerEntry, build_loggers, log_hyperparameters, log_result
from kd_vision.pipeline.train import train

CONFIG = {"data": "a.yaml", "train": {"epochs": 2, "lr": 0.1}, "distill": [{"loss": "class_bce"}]}
RESULT = {"AP": 0.25, "AP50": 0.5, "AP_small": None, "n_images": 6, "per_class": {"a": 0.1}}


class Recorder:
    """A Fabric logger that keeps what it is given."""

    last: Recorder

    def __init__(self, root: Path) -> None:
        Recorder.last = self
        self.root = root
        self.calls: list[tuple[Any, ...]] = []

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self.calls.append(("hyperparameters", params))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.calls.append(("metrics", metrics, step))

    def finalize(self, status: str) -> None:
        self.calls.append(("finalize", status))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger that is one function and one line of the table."""
    monkeypatch.setitem(LOGGERS, "toy", LoggerEntry(f"{__name__}:Recorder", (), "toy", "for tests"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("toy")
def test_a_logger_is_one_line_of_the_table(tmp_path: Path) -> None:
    (logger,) = build_loggers(TrainConfig(loggers=("toy",)).loggers, tmp_path)
    assert isinstance(logger, Recorder)
    assert logger.root == tmp_path
    log_hyperparameters([logger], CONFIG)
    log_result([logger], RESULT, step=8)
    assert logger.calls == [
        ("hyperparameters", CONFIG),
        ("metrics", {"final/AP": 0.25, "final/AP50": 0.5, "final/n_images": 6}, 8),
        ("finalize", "success"),
    ]


@pytest.mark.usefixtures("toy")
def test_training_logs_config_steps_and_final_numbers(write_config: Callable[..., Path], tmp_path: Path) -> None:
    result = train(write_config(teacher=False, train="epochs: 1, loggers: [toy]"), tmp_path / "run")
    first, *steps, final, end = Recorder.last.calls
    assert first == ("hyperparameters", yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()))
    assert [step for _, _, step in steps] == [1, 2, 3]
    assert all("train/loss/total" in metrics for _, metrics, _ in steps)
    numbers = {
        f"final/{key}": value for key, value in result.metrics.to_json().items() if isinstance(value, float | int)
    }
    assert final == ("metrics", numbers, 3)
    assert "final/AP" in numbers
    assert end == ("finalize", "success")


def test_default_is_tensorboard_where_it_is_installed(tmp_path: Path) -> None:
    (logger,) = build_loggers(TrainConfig().loggers, tmp_path)
    logger.log_metrics({"train/loss": 2.0}, 3)
    log_hyperparameters([logger], CONFIG)
    log_result([logger], RESULT, step=8)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("final/AP")] == [(8, 0.25)]
    assert "_hparams_/experiment" in events.PluginTagToContent("hparams")


def pretend(monkeypatch: pytest.MonkeyPatch, **installed: bool) -> None:
    """Make packages look as if they were installed, or not."""
    state = {name: ModuleSpec(name, None) if there else None for name, there in installed.items()}
    monkeypatch.setattr("kd_vision.core.lazy.find_spec", lambda name: state[name] if name in state else find_spec(name))


def test_default_without_tensorboard_is_one_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, tensorboard=False)
    with caplog.at_level(logging.WARNING):
        assert build_loggers(TrainConfig().loggers, tmp_path) == []
    assert caplog.messages == ["tensorboard is not installed, the run goes on without it; see train.loggers"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_that_was_asked_for_and_is_not_installed_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **{name: False})
    with pytest.raises(RequestError) as caught:
        build_loggers((name,), tmp_path)
    assert str(caught.value) == (
        f"train.loggers: '{name}' needs the package {name}, which is not installed; pip install kd-vision[{name}]"
    )


def test_unknown_names_are_refused_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        build_loggers(("wanb", "csv", "zz"), tmp_path)
    assert caught.value.problems == (
        "train.loggers: 'wanb' is unknown; did you mean 'wandb'?",
        "train.loggers: 'zz' is unknown; possible: auto, csv, mlflow, tensorboard, wandb",
    )
    with pytest.raises(ValueError, match="'wanb' is unknown; did you mean 'wandb'"):
        TrainConfig(loggers=("wanb",))


def test_one_name_none_and_the_same_logger_twice(tmp_path: Path) -> None:
    assert TrainConfig.model_validate({"loggers": "csv"}).loggers == ("csv",)
    assert build_loggers(TrainConfig(loggers=()).loggers, tmp_path) == []
    assert len(build_loggers(("auto", "tensorboard", "csv"), tmp_path)) == 2


def test_csv_keeps_the_table_of_an_earlier_start(tmp_path: Path) -> None:
    """Rows are on disk at once; a resumed run writes another table."""
    for start in range(2):
        (logger,) = build_loggers(("csv",), tmp_path)
        log_hyperparameters([logger], CONFIG)  # Fabric's logger keeps none, and raises
        logger.log_metrics({"train/loss": 2.0 + start}, 3)
        with (tmp_path / "csv" / f"version_{start}" / "metrics.csv").open() as file:
            assert list(csv.DictReader(file)) == [{"step": "3", "train/loss": str(2.0 + start)}]
        log_result([logger], RESULT, step=8)
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        assert list(csv.DictReader(file))[-1]["final/AP"] == "0.25"


class FakeExperiment:
    """Run of Weights & Biases."""

    def __init__(self) -> None:
        self.finished = False

    def finish(self) -> None:
        self.finished = True


class FakeLightningLogger:
    """Stands for the loggers of lightning.pytorch, which need their packages."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.experiment = FakeExperiment()
        self.finalized: list[str] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        assert not self.experiment.finished

    def finalize(self, status: str) -> None:
        assert not self.experiment.finished
        self.finalized.append(status)


@pytest.fixture
def fake_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that wandb and mlflow are installed."""
    pretend(monkeypatch, wandb=True, mlflow=True)
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", FakeLightningLogger)
    monkeypatch.setattr("lightning.pytorch.loggers.MLFlowLogger", FakeLightningLogger)


@pytest.mark.usefixtures("fake_packages")
def test_wandb_run_is_named_after_the_directory_and_ends_with_the_training(tmp_path: Path) -> None:
    root = tmp_path / "bccd"
    (logger,) = build_loggers(("wandb",), root)
    assert isinstance(logger, FakeLightningLogger)
    assert logger.settings == {"name": "bccd", "save_dir": root, "project": "kd_vision"}
    log_result([logger], RESULT, step=8)
    assert logger.finalized == ["success"]
    assert logger.experiment.finished


@pytest.mark.usefixtures("fake_packages")
@pytest.mark.parametrize("server", ["http://tracking:5000", ""])
def test_mlflow_run_goes_to_the_server_or_a_file_beside_the_run(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    root = tmp_path / "bccd"
    (logger,) = build_loggers(("mlflow",), root)
    assert isinstance(logger, FakeLightningLogger)
    assert logger.settings == {
        "experiment_name": "kd_vision",
        "run_name": "bccd",
        "tracking_uri": server or f"sqlite:///{tmp_path}/mlflow.db",
    }


def test_the_table_and_the_settings_load_neither_torch_nor_lightning() -> None:
    code = (
        "import sys, kd_vision.engine.config, kd_vision.engine.loggers\n"
        "print([name for name in ('torch', 'lightning', 'tensorboard') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
