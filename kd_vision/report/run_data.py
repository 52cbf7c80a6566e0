"""The content of the report of one training run, read from its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_text
from kd_vision.core.run_directory import RunDirectory, read_log
from kd_vision.evaluation.metrics import Metrics
from kd_vision.report.files import VAL, History, read_json_object
from kd_vision.report.tables import points

_MAX_TEXT = 200


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        title: name of the run directory.
        headline: its result in one sentence.
        history: the log.
        metrics: the final numbers; None while the run is not finished.
        environment: student, teachers and their AP, then the names and values of `environment.json`, flat.
        config: text of `config.yaml`, empty without the file.
    """

    title: str
    headline: str
    history: History
    metrics: Metrics | None
    environment: tuple[tuple[str, str], ...]
    config: str


def read_run(directory: Path) -> RunData:
    """Read a run directory. The run may be unfinished; it has no final numbers then.

    Raises:
        RequestError: there is no `metrics.jsonl`, or a file has wrong values.
    """
    if not directory.is_dir():
        raise RequestError(f"{directory}: is no directory; give the run directory of `kd-vision train`")
    files = RunDirectory(directory)
    history = History(read_log(files.log))
    metrics = None
    if files.metrics.is_file():
        metrics = Metrics.from_json(read_json_object(files.metrics), str(files.metrics))
    environment, fit, teachers = map(_read_if_there, (files.environment, files.fit, directory / "teacher.json"))
    text = read_text(files.config) if files.config.is_file() else ""
    config = yaml.safe_load(text) or {}
    split = " ".join(str(part) for part in (Path(str(config.get("data", ""))).stem, fit.get("split")) if part)
    return RunData(
        title=f"Run {directory.resolve().name}",
        headline=_headline(history, metrics, split),
        history=history,
        metrics=metrics,
        environment=(*_models(config, teachers), *_flatten(environment)),
        config=text,
    )


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _models(config: Mapping[str, Any], teachers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the student, its teachers, and the AP that the teacher gate measured of them."""
    student = config.get("student", {})
    yield "student", str(student.get("model") or Path(str(student.get("weights", "not stated"))).name)
    sources = config.get("teacher") or []
    names = [_source(each) for each in (sources if isinstance(sources, list) else [sources])]
    if config.get("knowledge"):
        names.append("stored knowledge")
    yield "taught by", ", ".join(names) or "nobody: plain training"
    for name, numbers in teachers.items():
        yield f"{name} before training", f"AP {points(numbers.get('AP'))} on '{numbers.get('split')}'"


def _source(teacher: Mapping[str, Any]) -> str:
    family, file = teacher.get("family", "ultralytics"), teacher.get("weights")
    return f"{family} {Path(file).parent.name}/{Path(file).name}" if isinstance(file, str) else str(family)


def _headline(history: History, metrics: Metrics | None, split: str) -> str:
    curve = history.series(VAL, "AP")
    best = ""
    if len(curve):
        top = max(range(len(curve)), key=lambda index: curve.values[index])
        best = f"best validation AP {points(curve.values[top])} at step {curve.steps[top]}"
    if metrics is None:
        return f"The run is not finished; {best or 'nothing was validated yet'}."
    images = f"{metrics.n_images} images of {split}" if split else f"{metrics.n_images} images"
    final = f"AP {points(metrics.ap)}, AP50 {points(metrics.ap50)} on {images}"
    return f"{final}; {best}." if best else f"{final}."


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested mappings under dotted names; long values are truncated."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = "none" if value is None else str(value)
            yield f"{prefix}{key}", text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
