"""Training loggers, in addition to ``metrics.jsonl``, which every run writes.

The table is data: nothing is imported until a logger is built.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.lazy import load_attribute, missing_packages, refuse_missing_packages

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger

AUTO = "auto"
_AUTO_LOGGER = "tensorboard"
PROJECT = "kd_vision"
"""Project of Weights & Biases and experiment of MLflow that runs are logged to."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoggerEntry:
    """One logger.

    Attributes:
        path: ``module:function``, called with the run directory; returns a Fabric logger.
        packages: import names of what it needs.
        extra: ``pip install kd-vision[EXTRA]`` installs them.
        summary: one line for people.
    """

    path: str
    packages: tuple[str, ...]
    extra: str
    summary: str


LOGGERS: Mapping[str, LoggerEntry] = {
    "tensorboard": LoggerEntry(
        "kd_vision.engine.loggers:tensorboard_logger",
        ("tensorboard",),
        "tensorboard",
        "event files in RUN/tensorboard",
    ),
    "csv": LoggerEntry(
        "kd_vision.engine.loggers:csv_logger",
        (),
        "",
        "RUN/csv/version_N/metrics.csv, one table for each start of the run",
    ),
    "wandb": LoggerEntry(
        "kd_vision.engine.loggers:wandb_logger",
        ("wandb",),
        "wandb",
        "Weights & Biases; its own variables choose account and mode, e.g. WANDB_MODE=offline",
    ),
    "mlflow": LoggerEntry(
        "kd_vision.engine.loggers:mlflow_logger",
        ("mlflow",),
        "mlflow",
        "MLflow at MLFLOW_TRACKING_URI, else in mlflow.db next to the run directory",
    ),
}


def build_loggers(names: Sequence[str], root: Path) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        names: keys of `LOGGERS`; ``auto`` is TensorBoard where it is installed.
        root: run directory.

    Raises:
        RequestError: a logger is unknown, or its package is not installed.
    """
    if errors := unknown_loggers(names):
        raise RequestError(*(f"train.loggers: {error}" for error in errors))
    if AUTO in names:
        installed = not missing_packages(LOGGERS[_AUTO_LOGGER].packages)
        if not installed:
            _log.warning("%s is not installed, the run goes on without it; see train.loggers", _AUTO_LOGGER)
        names = [_AUTO_LOGGER if name == AUTO else name for name in names if name != AUTO or installed]
    for name in names:
        refuse_missing_packages("train.loggers", name, LOGGERS[name].packages, LOGGERS[name].extra)
    return [load_attribute(LOGGERS[name].path)(root) for name in dict.fromkeys(names)]


def unknown_loggers(names: Iterable[str]) -> list[str]:
    """Return one line for each name that is neither ``auto`` nor in the table."""
    return [f"'{name}' is unknown{suggest(name, (AUTO, *LOGGERS))}" for name in names if name not in (AUTO, *LOGGERS)]


def log_hyperparameters(loggers: Sequence[Logger], config: Mapping[str, object]) -> None:
    """Log the resolved config of a run to all loggers that keep one."""
    for logger in loggers:
        with suppress(NotImplementedError):  # Fabric's CSV logger keeps numbers only
            logger.log_hyperparams(dict(config))


def log_result(loggers: Sequence[Logger], metrics: Mapping[str, object], step: int) -> None:
    """Log the final numbers of a run, as ``final/NAME``, and close the loggers.

    Args:
        loggers: of the run.
        metrics: numbers by name; what is not a number is left out.
        step: steps of the run.
    """
    numbers = {f"final/{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
    for logger in loggers:
        logger.log_metrics(numbers, step)
        logger.finalize("success")


def tensorboard_logger(root: Path) -> Logger:
    """Return a logger of event files."""
    from lightning.fabric.loggers.tensorboard import TensorBoardLogger

    return TensorBoardLogger(root_dir=root, name="", version="tensorboard")


def csv_logger(root: Path) -> Logger:
    """Return a logger of CSV tables; it starts a new one on every start, as it would overwrite an old one."""
    from lightning.fabric.loggers.csv_logs import CSVLogger

    return CSVLogger(root_dir=root, name="csv", flush_logs_every_n_steps=1)


def wandb_logger(root: Path) -> Logger:
    """Return a logger of Weights & Biases.

    The run ends with the training, because one process may train several times. A resumed training is a new run.
    """
    from lightning.pytorch.loggers import WandbLogger

    class RunLogger(WandbLogger):
        def finalize(self, status: str) -> None:
            super().finalize(status)
            self.experiment.finish()

    return RunLogger(name=root.name, save_dir=root, project=PROJECT)


def mlflow_logger(root: Path) -> Logger:
    """Return a logger of MLflow.

    Without a server the runs of a folder share one SQLite file, as MLflow 3 refuses plain folders. MLflow keeps the
    address for the whole process, so that all runs of a benchmark are in the file of its first one.
    """
    from lightning.pytorch.loggers import MLFlowLogger

    root.mkdir(parents=True, exist_ok=True)
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve().parent / 'mlflow.db'}"
    return MLFlowLogger(experiment_name=PROJECT, run_name=root.name, tracking_uri=address)
