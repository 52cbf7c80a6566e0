"""What a report of one training run says, read from its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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
        environment: who was taught by whom and measured on what, then names and values of `environment.json`, flat.
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
    environment = _if_there(environment_file)
    fit, teachers = (_if_there(directory / name) for name in ("fit.json", "teacher.json"))
    text = config_file.read_text(encoding="utf-8") if config_file.is_file() else ""
    config = yaml.safe_load(text) or {}
    place = " ".join(str(part) for part in (Path(str(config.get("data", ""))).stem, fit.get("split")) if part)
    return RunData(
        title=f"Run {directory.resolve().name}",
        headline=_headline(history, metrics, place),
        history=history,
        metrics=metrics,
        environment=(*_parties(config, teachers), *_flat(environment)),
        config=text,
    )


def _if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _parties(config: Mapping[str, Any], teachers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say who learns, from whom, and what the gate measured of the teachers."""
    student = config.get("student", {})
    yield "student", str(student.get("model") or Path(str(student.get("weights", "not stated"))).name)
    sources = config.get("teacher") or []
    named = [_source(each) for each in (sources if isinstance(sources, list) else [sources])]
    if config.get("knowledge"):
        named.append("stored knowledge")
    yield "taught by", ", ".join(named) or "nobody: plain training"
    for name, said in teachers.items():
        yield f"{name} before training", f"AP {points(said.get('AP'))} on '{said.get('split')}'"


def _source(teacher: Mapping[str, Any]) -> str:
    family, file = teacher.get("family", "ultralytics"), teacher.get("weights")
    return f"{family} {Path(file).parent.name}/{Path(file).name}" if isinstance(file, str) else str(family)


def _headline(history: History, metrics: Metrics | None, place: str) -> str:
    curve = history.series(VAL, "AP")
    best = ""
    if len(curve):
        top = max(range(len(curve)), key=lambda index: curve.values[index])
        best = f"best validation AP {points(curve.values[top])} at step {curve.steps[top]}"
    if metrics is None:
        return f"The run is not finished; {best or 'nothing was validated yet'}."
    images = f"{metrics.n_images} images of {place}" if place else f"{metrics.n_images} images"
    final = f"AP {points(metrics.ap)}, AP50 {points(metrics.ap50)} on {images}"
    return f"{final}; {best}." if best else f"{final}."


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Turn nested mappings into dotted names, and long values into their beginnings."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = "none" if value is None else str(value)
            yield f"{prefix}{key}", text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
