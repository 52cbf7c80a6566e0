"""Reads a config file into a `RunConfig`, or says everything that is wrong with it at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from torch import nn

from kd_vision.config.schema import OFFLINE_TEACHERS, RootConfig, RunConfig, TeacherConfig, TermConfig, source_family
from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.predictions import Signal
from kd_vision.core.strict_yaml import load_mapping, parse_scalar, resolve_path
from kd_vision.core.validation import problems
from kd_vision.detectors import DEFAULT_FAMILY, FAMILIES, family_module
from kd_vision.knowledge.config import KnowledgeConfig
from kd_vision.losses import load_loss
from kd_vision.losses.base import LossConfig
from kd_vision.losses.distiller import KNOWLEDGE, ONLY_TEACHER
from kd_vision.teachers.build import parse_teacher

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "imitation"
BOXES_RECIPE = "boxes"
_PIXEL_OPTIONS = ("image_size", "tiles", "tta")

Model = TypeVar("Model", bound=BaseModel)


def load_config(path: Path | str, overrides: Sequence[str] = (), files_exist: bool = True) -> RunConfig:
    """Read a config file.

    Args:
        path: the YAML file; the paths in it are relative to its folder.
        overrides: ``key.path=value`` strings; paths in them are relative to the current folder.
        files_exist: a file that the config names and that is not there is a mistake; False for the
            config of a finished run, whose files may have gone.

    Raises:
        RequestError: one line for every mistake found.
    """
    path = Path(path)
    found: list[str] = []
    written = load_mapping(path)
    if "splits" in written and "student" not in written:
        raise RequestError(f"{path}: is a data descriptor; give a config, which names it: 'data: {path.name}'")
    content = _with_paths(written, path.resolve().parent, str(path), found)
    if isinstance(content.get("knowledge"), str):  # so that an override can reach into it
        content["knowledge"] = {"store": content["knowledge"]}
    changes = [_parse_override(text) for text in overrides]
    into_terms = [change for change in changes if change[0][0] == "distill" and len(change[0]) > 1]
    for keys, value in (change for change in changes if change not in into_terms):
        _set(content, keys, value)
    if into_terms:  # last, because who teaches decides which recipe is meant
        _spell_out_recipe(content)
    for keys, value in into_terms:
        _set(content, keys, value)
    if any(keys[0] in ("data", "teacher", "student", "knowledge") for keys, _ in changes):
        content = _with_paths(content, Path.cwd(), "--set", found)
    if files_exist:
        found += _missing_files(content, str(path))
    return _build(content, path, found)


def _missing_files(content: Mapping[str, Any], where: str) -> list[str]:
    wanted = {"data": (content.get("data"), "a data descriptor (YAML)")}
    for key, part in _detectors(content).items():
        wanted[f"{key}.weights"] = (part.get("weights"), "a model's file")
    return [
        f"{where}: {key}: {file} does not exist; give {kind}"
        for key, (file, kind) in wanted.items()
        if isinstance(file, str) and not Path(file).is_file()
    ]


def _detectors(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every mapping of a config that describes a detector, by its key: student, teachers, members of ensembles."""
    found: dict[str, dict[str, Any]] = {}

    def add(key: str, part: Any) -> None:
        if isinstance(part, list):
            for index, each in enumerate(part):
                add(f"{key}.{index}", each)
        elif isinstance(part, dict):
            found[key] = part
            add(f"{key}.members", part.get("members"))

    add("student", content.get("student"))
    add("teacher", content.get("teacher"))
    return found


def _build(content: dict[str, Any], path: Path, found: list[str]) -> RunConfig:
    where = str(path)
    root = _try(RootConfig, content, where, "", found)
    student = _student(content.get("student"), where, found)
    teachers = _teachers(content.get("teacher"), where, found)
    knowledge = _knowledge(content.get("knowledge"), where, found)
    terms, recipe = _terms(content, [teacher.name for teacher in teachers], where, found)
    if found or root is None or student is None:
        raise RequestError(*dict.fromkeys(found))
    return RunConfig(
        source=path,
        data=root.data,
        image_size=root.image_size,
        student=student,
        teachers=teachers,
        knowledge=knowledge,
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


def _student(content: Any, where: str, found: list[str]) -> BaseModel | None:
    if content is None:
        return None
    if not isinstance(content, Mapping):
        found.append(f"{where}: student: expected keys and values, e.g. {{family: ultralytics, model: yolo11n}}")
        return None
    family = str(content.get("family", DEFAULT_FAMILY))
    entry = FAMILIES.get(family)
    if entry is None:
        found.append(f"{where}: student.family: unknown family '{family}'{suggest(family, FAMILIES)}")
        return None
    if "student" not in entry.roles:
        found.append(f"{where}: student.family: '{family}' cannot be a student")
        return None
    model: type[BaseModel] = getattr(family_module(family, "student"), entry.config)
    return _try(model, content, where, "student", found)


def _teachers(content: Any, where: str, found: list[str]) -> tuple[TeacherConfig, ...]:
    parts = content if isinstance(content, list) else [] if content is None else [content]
    teachers: dict[str, TeacherConfig] = {}
    for index, part in enumerate(parts):
        key = f"teacher.{index}" if isinstance(content, list) else "teacher"
        try:
            source, options = parse_teacher(part, f"{where}: {key}")
        except RequestError as error:
            found.extend(error.problems)
            continue
        name = options.name or (ONLY_TEACHER if len(parts) == 1 else f"teacher{index + 1}")
        stored = source_family(source) in OFFLINE_TEACHERS
        if stored:
            unknown = [name for name in _PIXEL_OPTIONS if getattr(options, name) is not None]
            found.extend(f"{where}: {key}.{name}: nothing is shown to it; leave it out" for name in unknown)
        if stored and options.name not in (None, KNOWLEDGE):
            found.append(f"{where}: {key}.name: what looks at no pixels is called '{KNOWLEDGE}'; leave it out")
        name = KNOWLEDGE if stored else name  # it comes with the batch, as a store does
        if name in teachers or (name == KNOWLEDGE and not stored) or not name.isidentifier():
            found.append(f"{where}: {key}.name: '{name}' is taken or no plain name; use letters, digits and _")
        teachers[name] = TeacherConfig(name, source, options)
    return tuple(teachers.values())


def _knowledge(content: Any, where: str, found: list[str]) -> KnowledgeConfig | None:
    if content is None:
        return None
    if not isinstance(content, (str, Mapping)):
        found.append(f"{where}: knowledge: expected a folder that `kd-vision label` wrote, or {{store: FOLDER}}")
        return None
    return _try(KnowledgeConfig, {"store": content} if isinstance(content, str) else content, where, "knowledge", found)


def _default_recipe(content: Mapping[str, Any]) -> str:
    """Imitation needs two dense heads; final boxes are what everything else has."""
    if content.get("knowledge") is not None:
        return BOXES_RECIPE
    for part in _detectors(content).values():
        named = f"{part.get('model')} {Path(str(part.get('weights'))).name}"
        other = str(part.get("family", DEFAULT_FAMILY)) != DEFAULT_FAMILY or "rtdetr" in named
        if other or part.get("tiles") is not None or part.get("tta") is not None:
            return BOXES_RECIPE
    return DEFAULT_RECIPE


def _terms(
    content: Mapping[str, Any], teachers: Sequence[str], where: str, found: list[str]
) -> tuple[tuple[TermConfig, ...], str | None]:
    given = content.get("distill")
    if not content.get("teacher") and content.get("knowledge") is None:
        if given is not None:
            found.append(
                f"{where}: distill: needs a teacher; add 'teacher:' or 'knowledge:', or remove 'distill:' to train "
                f"plainly"
            )
        return (), None
    recipe = given if isinstance(given, str) else (_default_recipe(content) if given is None else None)
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
    teachers_ = [*teachers, KNOWLEDGE] if content.get("knowledge") is not None else list(teachers)
    terms: dict[str, TermConfig] = {}
    for index, item in enumerate(given):
        for term in _term(item, teachers_, f"distill.{index}", where, found):
            if term.name in terms:
                found.append(
                    f"{where}: distill.{index}: a second term named '{term.name}'; give it a 'name' of its own"
                )
            terms.setdefault(term.name, term)
    return tuple(terms.values()), recipe


def _term(item: Any, teachers_: Sequence[str], key: str, where: str, found: list[str]) -> list[TermConfig]:
    """Read one item of `distill`: one term, or one for each teacher where it names none of several."""
    if not isinstance(item, Mapping) or "loss" not in item:
        found.append(f"{where}: {key}: expected a mapping with 'loss', e.g. {{loss: box_iou, weight: 7.5}}")
        return []
    settings = dict(item)
    loss = str(settings.pop("loss"))
    name = str(settings.pop("name", loss))
    asked = settings.pop("teacher", None)
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):  # terms are kept under their names in one
        found.append(f"{where}: {key}.name: '{name}' is taken or no plain name; use letters, digits and _")
    if asked is not None and asked not in teachers_:
        found.append(f"{where}: {key}.teacher: there is no teacher '{asked}'{suggest(str(asked), teachers_)}")
        return []
    try:
        kind = load_loss(loss)
    except RequestError as error:
        found.append(f"{where}: {key}.loss: {error}")
        return []
    config: LossConfig | None = _try(kind.Config, settings, where, key, found)
    if config is None:
        return []
    learned_from = [str(asked)] if asked is not None else _learned_from(kind.requires, teachers_)
    if len(learned_from) < 2:  # none: the teachers could not be read, which is said already
        return [TermConfig(name, loss, config, *learned_from)]
    shared = config.weight if config.weight == "auto" else config.weight / len(learned_from)
    part = config.model_copy(update={"weight": shared, "share": config.share / len(learned_from)})
    return [TermConfig(f"{name}_{teacher}", loss, part, teacher) for teacher in learned_from]


def _learned_from(requires: frozenset[Signal], teachers_: Sequence[str]) -> list[str]:
    """Whom a term without a name learns from: what is stored, where that is enough, else every live teacher."""
    if KNOWLEDGE in teachers_ and requires == {"detections"}:
        return [KNOWLEDGE]
    return [name for name in teachers_ if name != KNOWLEDGE] or list(teachers_)


def _try(model: type[Model], content: Mapping[str, Any], where: str, key: str, found: list[str]) -> Model | None:
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        for line in problems(model, error, ""):
            text = line.removeprefix(": ")
            found.append(f"{where}: {key}.{text}" if key else f"{where}: {text}")
        return None


def _spell_out_recipe(content: dict[str, Any]) -> None:
    """Put a recipe's list in the place of its name, and settings in that of a loss's, for an override to reach."""
    recipe = content.get("distill") or _default_recipe(content)
    if isinstance(recipe, str) and recipe in recipe_names():
        content["distill"] = load_mapping(RECIPES / f"{recipe}.yaml")["distill"]
    elif isinstance(recipe, list):
        content["distill"] = [{"loss": term} if isinstance(term, str) else term for term in recipe]


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
    if not isinstance(here, (list, dict)):
        raise RequestError(f"--set {'.'.join(keys)}: {'.'.join(keys[:-1])} is {here!r}, which has no settings")
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
    resolved = copy.deepcopy(content)

    def absolute(holder: dict[str, Any], key: str, name: str) -> None:
        if isinstance(holder.get(key), str):
            try:
                holder[key] = str(resolve_path(holder[key], base))
            except RequestError as error:
                found.append(f"{where}: {name}: {error}")

    absolute(resolved, "data", "data")
    for key, part in _detectors(resolved).items():
        absolute(part, "weights", f"{key}.weights")
        if str(part.get("model", "")).endswith((".yaml", ".yml")):
            absolute(part, "model", f"{key}.model")
    absolute(resolved, "knowledge", "knowledge")
    if isinstance(resolved.get("knowledge"), dict):
        absolute(resolved["knowledge"], "store", "knowledge.store")
    return resolved
