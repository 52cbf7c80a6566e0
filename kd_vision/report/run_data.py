"""What a report of one training run says, read from its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_vision.core.errors import RequestError
from kd_vision.evaluation.metrics import Metrics
from kd_vision.report.files import VAL, History, read_history, read_json_object
from kd_vision.report.tables import points

_LONGEST = 200


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        title: name of the run directory.
        headline: its result in one sentence.
        history: what was logged.
        metrics: the final numbers; None while the run is not finished.
        environment: names and values of `environment.json`, flat.
        config: text of `config.yaml`, empty where there is none.
    """

    title: str
    headline: str
    history: History
    metrics: Metrics | None
    environment: tuple[tuple[str, str], ...]
    config: str


def read_run(directory: Path) -> RunData:
    """Read a run directory; also one whose run was stopped, which has no final numbers.

    Raises:
        RequestError: there is no `metrics.jsonl`, or a file says something it should not.
    """
    if not directory.is_dir():
        raise RequestError(f"{directory}: is no directory; give the run directory of `kd-vision train`")
    history = read_history(directory / "metrics.jsonl")
    metrics_file, config_file = directory / "metrics.json", directory / "config.yaml"
    environment_file = directory / "environment.json"
    metrics = None
    if metrics_file.is_file():
        metrics = Metrics.from_json(read_json_object(metrics_file), str(metrics_file))
    environment = read_json_object(environment_file) if environment_file.is_file() else {}
    return RunData(
        title=f"Run {directory.resolve().name}",
        headline=_headline(history, metrics),
        history=history,
        metrics=metrics,
        environment=tuple(_flat(environment)),
        config=config_file.read_text(encoding="utf-8") if config_file.is_file() else "",
    )


def _headline(history: History, metrics: Metrics | None) -> str:
    curve = history.series(VAL, "AP")
    best = ""
    if len(curve):
        top = max(range(len(curve)), key=lambda index: curve.values[index])
        best = f"best validation AP {points(curve.values[top])} at step {curve.steps[top]}"
    if metrics is None:
        return f"The run is not finished; {best or 'nothing was validated yet'}."
    final = f"AP {points(metrics.ap)}, AP50 {points(metrics.ap50)} on {metrics.n_images} images"
    return f"{final}; {best}." if best else f"{final}."


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Turn nested mappings into dotted names, and long values into their beginnings."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = "none" if value is None else str(value)
            yield f"{prefix}{key}", text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
