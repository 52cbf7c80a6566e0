"""Reads a config file into a `RunConfig`, or says everything that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kd_vision.config.schema import RootConfig, RunConfig, TermConfig
from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.strict_yaml import load_mapping, parse_scalar, resolve_path
from kd_vision.core.validation import problems
from kd_vision.detectors import FAMILIES, family_module
from kd_vision.losses import load_loss
from kd_vision.losses.base import LossConfig

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "imitation"

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path, overrides: Sequence[str] = (), files_exist: bool = True) -> RunConfig:
    """Read a config file.

    Args:
        path: the YAML file; the paths in it are relative to its folder.
        overrides: ``key.path=value`` strings; paths in them are relative to the current folder.
        files_exist: a file that the config names and that is not there is a mistake; False for the
            config of a finished run, whose files may have gone.

    Raises:
        RequestError: one line for every mistake found.
    """
    found: list[str] = []
    content = _with_paths(load_mapping(path), path.resolve().parent, str(path), found)
    changes = [_parse_override(text) for text in overrides]
    if any(keys[0] == "distill" and len(keys) > 1 for keys, _ in changes):
        _spell_out_recipe(content)
    for keys, value in changes:
        _set(content, keys, value)
    if any(keys[0] in ("data", "teacher", "student") for keys, _ in changes):
        content = _with_paths(content, Path.cwd(), "--set", found)
    if files_exist:
        found += _missing_files(content, str(path))
    return _build(content, path, found)


def _missing_files(content: Mapping[str, Any], where: str) -> list[str]:
    wanted = {"data": (content.get("data"), "a data descriptor (YAML)")}
    for role in ("student", "teacher"):
        part = content.get(role)
        if isinstance(part, Mapping):
            wanted[f"{role}.weights"] = (part.get("weights"), "a .pt file")
    return [
        f"{where}: {key}: {file} does not exist; give {kind}"
        for key, (file, kind) in wanted.items()
        if isinstance(file, str) and not Path(file).is_file()
    ]


def _build(content: dict[str, Any], path: Path, found: list[str]) -> RunConfig:
    where = str(path)
    root = _try(RootConfig, content, where, "", found)
    student = _detector(content.get("student"), "student", where, found)
    teacher = _detector(content.get("teacher"), "teacher", where, found)
    terms, recipe = _terms(content, where, found)
    if found or root is None or student is None:
        raise RequestError(*dict.fromkeys(found))
    return RunConfig(
        source=path,
        data=root.data,
        image_size=root.image_size,
        student=student,
        teacher=teacher,
        terms=terms,
        recipe=recipe,
        allow_weak_teacher=root.allow_weak_teacher,
        train=root.train,
        augment=root.augment,
        evaluate=root.evaluate,
    )


def recipe_names() -> list[str]:
    """Names that `distill:` may give instead of a list."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def _detector(content: Any, role: str, where: str, found: list[str]) -> BaseModel | None:
    if content is None:
        return None
    if not isinstance(content, Mapping):
        found.append(f"{where}: {role}: expected keys and values, e.g. {{family: ultralytics, model: yolo11n}}")
        return None
    family = str(content.get("family", "ultralytics"))
    entry = FAMILIES.get(family)
    if entry is None:
        found.append(f"{where}: {role}.family: unknown family '{family}'{suggest(family, FAMILIES)}")
        return None
    if role not in entry.roles:
        found.append(f"{where}: {role}.family: '{family}' cannot be a {role}")
        return None
    model: type[BaseModel] = getattr(family_module(family, role), entry.config)
    return _try(model, content, where, role, found)


def _terms(content: Mapping[str, Any], where: str, found: list[str]) -> tuple[tuple[TermConfig, ...], str | None]:
    given = content.get("distill")
    if content.get("teacher") is None:
        if given is not None:
            found.append(f"{where}: distill: needs a teacher; add 'teacher:', or remove 'distill:' to train plainly")
        return (), None
    recipe = given if isinstance(given, str) else (DEFAULT_RECIPE if given is None else None)
    if recipe is not None:
        if recipe not in recipe_names():
            found.append(f"{where}: distill: unknown recipe '{recipe}'{suggest(recipe, recipe_names())}")
            return (), None
        given = load_mapping(RECIPES / f"{recipe}.yaml")["distill"]
    if not isinstance(given, list) or not given:
        found.append(
            f"{where}: distill: expected a recipe's name or a list of losses; a teacher without one teaches nothing"
        )
        return (), None
    terms: dict[str, TermConfig] = {}
    for index, item in enumerate(given):
        term = _term(item, f"distill.{index}", where, found)
        if term is not None and term.name in terms:
            found.append(f"{where}: distill.{index}: a second term named '{term.name}'; give it a 'name' of its own")
        elif term is not None:
            terms[term.name] = term
    return tuple(terms.values()), recipe


def _term(item: Any, key: str, where: str, found: list[str]) -> TermConfig | None:
    if not isinstance(item, Mapping) or "loss" not in item:
        found.append(f"{where}: {key}: expected a mapping with 'loss', e.g. {{loss: box_iou, weight: 7.5}}")
        return None
    settings = dict(item)
    loss = str(settings.pop("loss"))
    name = str(settings.pop("name", loss))
    if not name.isidentifier():
        found.append(f"{where}: {key}.name: '{name}' is no plain name; use letters, digits and _")
    try:
        model = load_loss(loss).Config
    except RequestError as error:
        found.append(f"{where}: {key}.loss: {error}")
        return None
    config: LossConfig | None = _try(model, settings, where, key, found)
    return None if config is None else TermConfig(name, loss, config)


def _try(model: type[Model], content: Mapping[str, Any], where: str, key: str, found: list[str]) -> Model | None:
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        for line in problems(model, error, ""):
            text = line.removeprefix(": ")
            found.append(f"{where}: {key}.{text}" if key else f"{where}: {text}")
        return None


def _spell_out_recipe(content: dict[str, Any]) -> None:
    """Put a recipe's list in the place of its name, so that an override can reach into it."""
    recipe = content.get("distill", DEFAULT_RECIPE)
    if isinstance(recipe, str) and recipe in recipe_names():
        content["distill"] = load_mapping(RECIPES / f"{recipe}.yaml")["distill"]


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise RequestError(f"--set {text}: expected key.path=value, e.g. train.epochs=2")
    return key.strip().split("."), parse_scalar(value)


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    """Put a value at a key path; a number steps into a list."""
    here: Any = content
    for position, key in enumerate(keys[:-1]):
        if isinstance(here, list):
            here = here[_list_index(here, key, keys[: position + 1])]
        else:
            if not isinstance(here.get(key), dict | list):
                here[key] = {}
            here = here[key]
    if isinstance(here, list):
        here[_list_index(here, keys[-1], keys)] = value
    else:
        here[keys[-1]] = value


def _list_index(items: list[Any], key: str, path: list[str]) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise RequestError(f"--set {'.'.join(path)}: '{key}' is no position in a list of {len(items)} (0 is the first)")
    return int(key)


def _with_paths(content: dict[str, Any], base: Path, where: str, found: list[str]) -> dict[str, Any]:
    """Make the paths of a config absolute."""
    resolved = dict(content)

    def absolute(holder: dict[str, Any], key: str, name: str) -> None:
        if isinstance(holder.get(key), str):
            try:
                holder[key] = str(resolve_path(holder[key], base))
            except RequestError as error:
                found.append(f"{where}: {name}: {error}")

    absolute(resolved, "data", "data")
    for role in ("teacher", "student"):
        if isinstance(resolved.get(role), Mapping):
            part = dict(resolved[role])
            absolute(part, "weights", f"{role}.weights")
            if str(part.get("model", "")).endswith((".yaml", ".yml")):
                absolute(part, "model", f"{role}.model")
            resolved[role] = part
    return resolved
