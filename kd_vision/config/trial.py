"""Reads a trial file: the arms of a benchmark beyond plain, control and distilled, each a set of overrides of a config.

No torch is loaded, but for the settings of losses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import RequestError
from kd_vision.core.strict_yaml import load_mapping, parse_scalar, resolve_path
from kd_vision.core.validation import StrictModel, validate

PLAIN, CONTROL, DISTILLED = "plain", "control", "distilled"
LONGER = "longer"
"""Folder of the plain twin that is trained longer; see `kd_vision.pipeline.benchmark`."""

Base = Literal["plain", "control", "distilled"]
ArmRole = Literal["plain", "control", "distilled", "other"]
_OTHER: ArmRole = "other"
_BASES: Mapping[str, Base] = {PLAIN: "plain", CONTROL: "control", DISTILLED: "distilled"}
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = (LONGER, "examples")
_EXAMPLE = "arms: {plain: {}, distilled: {}, small: {set: [student.model=yolo11n]}}"
_SHARED = {
    "data": "all arms share the data",
    "image_size": "all arms share the image size",
    "evaluate": "all arms are measured alike",
    "train.seed": "seeds are given by `seeds`",
    "train.devices": "a benchmark runs on one device",
    "train.num_nodes": "a benchmark runs on one device",
}
_OF_TEACHERS = ("teacher", "distill", "knowledge", "allow_weak_teacher")


class ArmConfig(StrictModel):
    """One arm of a trial file.

    Attributes:
        set: overrides of the config: ``key=value`` strings, or a mapping, which is merged key by key. Paths are
            relative to the trial file.
        base: `plain` takes teachers and unlabelled images away, `control` has the labels as its only teacher,
            `distilled` is the config itself; None: the arm's own name where it is one of these, else `distilled`.
        role: its part in the report's comparisons, which are those of `distilled` arms over `plain` ones, and of the
            first distilled arm over all others; None: the arm's own name where it is a base, else `other`.
        description: for the report.
    """

    set: list[str] | dict[str, Any] = Field(default_factory=list)
    base: Base | None = None
    role: ArmRole | None = None
    description: str = ""


class TrialConfig(StrictModel):
    """A trial file.

    Attributes:
        config: the run config that all arms start from, relative to the trial file.
        seeds: every arm is trained once for each.
        arms: by name, in the order of training.
    """

    config: Path
    seeds: tuple[int, ...] = (0,)
    arms: dict[str, ArmConfig]

    @field_validator("arms", mode="before")
    @classmethod
    def _empty_arms(cls, given: Any) -> Any:
        """Read ``plain:`` as ``plain: {}``."""
        if isinstance(given, Mapping):
            return {str(name): {} if arm is None else arm for name, arm in given.items()}
        return given


@dataclass(frozen=True, slots=True)
class TrialArm:
    """An arm with its config, before `base` takes anything away; see `ArmConfig`."""

    name: str
    base: Base
    role: ArmRole
    description: str
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial file, read.

    Attributes:
        source: the file.
        config: what all arms start from.
        seeds: as in the file.
        arms: in order.
    """

    source: Path
    config: RunConfig
    seeds: tuple[int, ...]
    arms: tuple[TrialArm, ...]


def is_trial(path: Path) -> bool:
    """Return whether a YAML file has `arms`, as only a trial file has.

    Raises:
        RequestError: the file is no YAML mapping.
    """
    return "arms" in load_mapping(path)


def load_trial(path: Path, overrides: list[str] | tuple[str, ...] = (), config: Path | None = None) -> Trial:
    """Read a trial file and the config of every arm.

    Args:
        path: the file.
        overrides: ``key=value`` strings for all arms; an arm's own come after them.
        config: replaces the file's `config`.

    Raises:
        RequestError: one line for every mistake of the file, or of the config that it names.
    """
    content = load_mapping(path)
    if "student" in content:
        raise RequestError(f"{path}: is a config, not a trial file; give it without --trial")
    if config is not None:
        content = {**content, "config": str(config.resolve())}
    trial = validate(TrialConfig, content, str(path))
    errors = [*_wrong_seeds(trial.seeds), *_wrong_arms(trial.arms)]
    if errors:
        raise RequestError(*(f"{path}: {error}" for error in errors))
    start = _config_path(trial.config, path)
    base = load_config(start, overrides)
    arms: list[TrialArm] = []
    for name, arm in trial.arms.items():
        try:
            arms.append(_read_arm(name, arm, start, overrides, path))
        except RequestError as error:
            errors += [f"{path}: arms.{name}.set: {_without(problem, start)}" for problem in error.problems]
    errors = errors or [f"{path}: {error}" for error in _twice(arms)]
    if errors:
        raise RequestError(*errors)
    return Trial(path, base, trial.seeds, tuple(arms))


def _config_path(given: Path, trial: Path) -> Path:
    found = resolve_path(str(given), trial.resolve().parent)
    if not found.is_file():
        raise RequestError(f"{trial}: config: {found} does not exist; give a config, relative to the trial file")
    return found


def _without(problem: str, config: Path) -> str:
    """Return a line of `load_config` without the place that it names: here the trial file is at fault."""
    return problem.removeprefix(f"{config}: ").removeprefix("--set: ").removeprefix("--set ")


def _wrong_seeds(seeds: tuple[int, ...]) -> list[str]:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        return [f"seeds: give different seeds from 0 up, e.g. [0, 1, 2]; given {list(seeds)}"]
    return []


def _wrong_arms(arms: Mapping[str, ArmConfig]) -> Iterator[str]:
    """Yield the mistakes in names, bases and overridden keys."""
    for name in (PLAIN, DISTILLED):
        if name not in arms:
            yield f"arms: there is no arm '{name}', one of the two that the report compares; add it, e.g. {_EXAMPLE}"
    for name, arm in arms.items():
        if not _FOLDER.fullmatch(name) or name in _RESERVED:
            yield f"arms.{name}: is no name for a folder here; use letters, digits, _ and -, and not 'longer'"
        own = _BASES.get(name)
        if own is not None and arm.base not in (None, own):
            yield f"arms.{name}.base: is '{arm.base}', but the name says '{own}'; leave base out, or name it otherwise"
        if own is not None and arm.role not in (None, own):
            yield f"arms.{name}.role: is '{arm.role}', but the name says '{own}'; leave role out, or name it otherwise"
        yield from _wrong_overrides(name, arm)


def _wrong_overrides(name: str, arm: ArmConfig) -> Iterator[str]:
    """Yield the overrides that have no form, that would make arms incomparable, and that have no effect."""
    if isinstance(arm.set, list):
        for text in arm.set:
            if "=" not in text:
                yield f"arms.{name}.set: {text}: expected key.path=value, e.g. train.epochs=2"
    for key, _ in _pairs(arm):
        where = f"arms.{name}.set: {key}"
        for shared, reason in _SHARED.items():
            if key == shared or key.startswith(f"{shared}."):
                yield f"{where}: cannot differ, as {reason}; set it in the config, or for all arms by --set"
        needs_teacher = key.partition(".")[0] in _OF_TEACHERS or key == "train.unlabelled_ratio"
        if _base(name, arm) != DISTILLED and needs_teacher:
            yield f"{where}: has no effect, as an arm of base '{_base(name, arm)}' is trained without it; leave it out"


def _base(name: str, arm: ArmConfig) -> Base:
    return arm.base or _BASES.get(name, "distilled")


def _read_arm(name: str, arm: ArmConfig, start: Path, overrides: list[str] | tuple[str, ...], trial: Path) -> TrialArm:
    folder = trial.resolve().parent
    own = [f"{key}={_yaml(_with_paths(key, value, folder))}" for key, value in _pairs(arm)]
    role = arm.role or _BASES.get(name) or _OTHER
    described = arm.description or ", ".join(f"{key}={_short(value)}" for key, value in _pairs(arm))
    return TrialArm(name, _base(name, arm), role, described, load_config(start, [*overrides, *own]))


def _yaml(value: Any) -> str:
    """Return a value as `load_config` reads it from an override: JSON is YAML."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else _yaml(value)


def _pairs(arm: ArmConfig) -> list[tuple[str, Any]]:
    """Return the overrides of an arm as key paths and values."""
    if isinstance(arm.set, dict):
        return list(_flat(arm.set))
    texts = (text.partition("=") for text in arm.set if "=" in text)
    return [(key.strip(), parse_scalar(value)) for key, _, value in texts]


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("train.epochs", 2)`` of ``{"train": {"epochs": 2}}``; lists stay whole."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with_paths(key: str, value: Any, folder: Path) -> Any:
    """Return a value whose files and folders are absolute: those of `weights`, `store`, `knowledge`, YAML models."""
    if isinstance(value, dict):
        return {name: _with_paths(str(name), inner, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_paths("", inner, folder) if isinstance(inner, dict) else inner for inner in value]
    last = key.rpartition(".")[2]
    is_path = last in ("weights", "store", "knowledge") or (last == "model" and str(value).endswith((".yaml", ".yml")))
    return str(resolve_path(value, folder)) if is_path and isinstance(value, str) else value


def _twice(arms: list[TrialArm]) -> Iterator[str]:
    """Yield the arms that are the same as an earlier one."""
    for index, arm in enumerate(arms):
        for other in arms[:index]:
            if arm.base == other.base and arm.config.identity() == other.config.identity():
                yield f"arms.{arm.name}: is the same as arms.{other.name}; change its `set`, or leave it out"
