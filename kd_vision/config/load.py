"""Reads a config file into a `RunConfig`, or raises one error that lists every mistake.

Everything but the settings of losses is read without loading torch, so that mistakes are reported within a second.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_vision.config.schema import ONLY_TEACHER, RootConfig, RunConfig, TeacherConfig, TermConfig
from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.strict_yaml import load_mapping, parse_scalar, resolve_path
from kd_vision.core.validation import StrictModel, try_validate
from kd_vision.detectors import DEFAULT_FAMILY, FAMILIES, family_config, head_kind
from kd_vision.knowledge.config import DenseLabelsConfig, is_dense_store
from kd_vision.knowledge.dense_manifest import any_dense_manifest
from kd_vision.losses import LOSSES, load_loss
from kd_vision.teachers.build import kind_of, parse_teacher
from kd_vision.teachers.options import ONLINE_OPTIONS

if TYPE_CHECKING:
    from kd_vision.detectors.inherit_config import InheritConfig
    from kd_vision.losses.base import DistillationLoss, LossConfig

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "imitation"
DIRECT_RECIPE = "imitation_direct"
BOXES_RECIPE = "boxes"
LARGER_VIEW_RECIPE = "teacher_sees_more"
STORE_NAME = "knowledge"
"""Name of the teacher that the top-level key `knowledge` describes."""

_log = logging.getLogger(__name__)


def load_config(path: Path | str, overrides: Sequence[str] = (), files_exist: bool = True) -> RunConfig:
    """Read a config file.

    Args:
        path: the YAML file; the paths in it are relative to its folder.
        overrides: ``key.path=value`` strings; paths in them are relative to the current folder.
        files_exist: a missing file is a mistake; False for the config of a finished run, whose files may have
            been removed.

    Raises:
        RequestError: one line for every mistake.
    """
    path = Path(path)
    errors: list[str] = []
    mapping = load_mapping(path)
    if "splits" in mapping and "student" not in mapping:
        raise RequestError(f"{path}: is a data descriptor; give a config, which names it: 'data: {path.name}'")
    content = _with_paths(mapping, path.resolve().parent, str(path), errors)
    if isinstance(content.get("knowledge"), str):  # so that an override can reach into it
        content["knowledge"] = {"store": content["knowledge"]}
    changes = [_parse_override(text) for text in overrides]
    into_terms = [change for change in changes if change[0][0] == "distill" and len(change[0]) > 1]
    for keys, value in (change for change in changes if change not in into_terms):
        _set(content, keys, value)
    if into_terms:  # last, because the default recipe depends on the teachers
        _spell_out_recipe(content)
    for keys, value in into_terms:
        _set(content, keys, value)
    if any(keys[0] in ("data", "teacher", "student", "knowledge") for keys, _ in changes):
        content = _with_paths(content, Path.cwd(), "--set", errors)
    if files_exist:
        errors += _missing_files(content, str(path))
    return _build(content, path, errors)


def _missing_files(content: Mapping[str, Any], where: str) -> list[str]:
    files = {"data": (content.get("data"), "a data descriptor (YAML)")}
    for key, part in _detectors(content).items():
        files[f"{key}.weights"] = (part.get("weights"), "a model's file")
        if isinstance(part.get("inherit"), dict) and str(part["inherit"].get("from", "")).endswith((".pt", ".pth")):
            files[f"{key}.inherit.from"] = (part["inherit"]["from"], "a model's file")
    return [
        f"{where}: {key}: {file} does not exist; give {kind}"
        for key, (file, kind) in files.items()
        if isinstance(file, str) and not Path(file).is_file()
    ]


def _detectors(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every mapping that describes a detector, by key: student, teachers, members of ensembles."""
    detectors: dict[str, dict[str, Any]] = {}

    def add(key: str, part: Any) -> None:
        if isinstance(part, list):
            for index, each in enumerate(part):
                add(f"{key}.{index}", each)
        elif isinstance(part, dict):
            detectors[key] = part
            add(f"{key}.members", part.get("members"))

    add("student", content.get("student"))
    add("teacher", content.get("teacher"))
    return detectors


def _build(content: dict[str, Any], path: Path, errors: list[str]) -> RunConfig:
    where = str(path)
    root = try_validate(RootConfig, content, where, errors)
    student = _student(content.get("student"), where, errors)
    teachers = _teachers(content, where, errors)
    items = _distill_items(content, teachers, where, errors)
    student = _with_ancestor(student, teachers, where, errors)
    if errors or root is None or student is None:
        raise RequestError(*dict.fromkeys(errors))
    recipe = content.get("distill") if isinstance(content.get("distill"), str) else None
    if items is None:
        recipe = _default_recipe(student, teachers, root.image_size)
        items = _recipe_items(recipe)
    terms = _terms(items, teachers, where, errors)
    if errors:
        raise RequestError(*dict.fromkeys(errors))
    return RunConfig(
        source=path,
        data=root.data,
        image_size=root.image_size,
        student=student,
        teachers=teachers,
        terms=terms,
        recipe=recipe if teachers else None,
        allow_weak_teacher=root.allow_weak_teacher,
        train=root.train,
        augment=root.augment,
        evaluate=root.evaluate,
    )


def recipe_names() -> list[str]:
    """Return the names of the recipes, which `distill:` takes instead of a list."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def _recipe_items(recipe: str) -> list[Any]:
    items: list[Any] = load_mapping(RECIPES / f"{recipe}.yaml")["distill"]
    return items


def _student(content: Any, where: str, errors: list[str]) -> StrictModel | None:
    if content is None:
        return None
    if not isinstance(content, Mapping):
        errors.append(f"{where}: student: expected keys and values, e.g. {{family: ultralytics, model: yolo11n}}")
        return None
    family = str(content.get("family", DEFAULT_FAMILY))
    if family not in FAMILIES:
        errors.append(f"{where}: student.family: unknown family '{family}'{suggest(family, FAMILIES)}")
        return None
    return try_validate(family_config(family, "student"), content, f"{where}: student", errors, ".")


def _with_ancestor(
    student: StrictModel | None, teachers: Sequence[TeacherConfig], where: str, errors: list[str]
) -> StrictModel | None:
    """Replace the teacher's name in ``student.inherit.from`` by its file."""
    inherit: InheritConfig | None = getattr(student, "inherit", None)
    if student is None or inherit is None:
        return student
    key = f"{where}: student.inherit"
    if getattr(student, "weights", None) is not None or getattr(student, "pretrained", "none") != "none":
        errors.append(f"{key}: 'weights' or 'pretrained' say where the first weights come from, too; leave one out")
    named = {teacher.name: teacher for teacher in teachers}
    source = str(inherit.source)
    if source in named:
        weights = named[source].weights
        if weights is None or kind_of(named[source].config) not in FAMILIES:
            kind = kind_of(named[source].config)
            errors.append(
                f"{key}.from: the teacher '{source}' ({kind}) has no weights to inherit; give the path of a .pt of the "
                f"student's family"
            )
            return student
        source = str(weights)
    elif not source.endswith(tuple(FAMILIES[kind_of(student)].weights)):
        names = [*named, "PATH.pt"]
        errors.append(f"{key}.from: there is no teacher '{source}'; possible: {', '.join(names)}")
    return student.model_copy(update={"inherit": inherit.model_copy(update={"source": Path(source)})})


def _teachers(content: Mapping[str, Any], where: str, errors: list[str]) -> tuple[TeacherConfig, ...]:
    """Read the teachers, and the store of `knowledge:` as one more."""
    given = content.get("teacher")
    parts = {f"teacher.{i}": part for i, part in enumerate(given)} if isinstance(given, list) else {"teacher": given}
    parts = {key: part for key, part in parts.items() if part is not None}
    single = len(parts) == 1
    teachers: dict[str, TeacherConfig] = {}
    for index, (key, part) in enumerate({**parts, **_store_part(content, where, errors)}.items(), start=1):
        try:
            config, options = parse_teacher(part, f"{where}: {key}")
        except RequestError as error:
            errors.extend(error.problems)
            continue
        teacher = TeacherConfig(options.name or (ONLY_TEACHER if single else f"teacher{index}"), config, options)
        if teacher.entry.offline:
            errors.extend(
                f"{where}: {key}.{name}: has no meaning for predictions made before training; leave it out"
                for name in ONLINE_OPTIONS
                if name in options.model_fields_set
            )
        if teacher.name in teachers or not teacher.name.isidentifier():
            errors.append(
                f"{where}: {key}.name: '{teacher.name}' is taken or not a plain name; use letters, digits and _"
            )
        teachers[teacher.name] = teacher
    return tuple(teachers.values())


def _store_part(content: Mapping[str, Any], where: str, errors: list[str]) -> dict[str, Any]:
    """Return ``knowledge:``, a folder or the settings of a store, as a teacher: the online one's store, if any."""
    given = content.get("knowledge")
    if given is None:
        return {}
    if not isinstance(given, (str, Mapping)):
        errors.append(f"{where}: knowledge: expected a folder that `kd-vision label` wrote, or {{store: FOLDER}}")
        return {}
    settings = {"store": given} if isinstance(given, str) else dict(given)
    family = "dense_labels" if is_dense_store(Path(str(settings.get("store")))) else "store"
    return {"knowledge": {"family": family, "name": STORE_NAME, "same_teacher": True, **settings}}


def _default_recipe(student: StrictModel, teachers: Sequence[TeacherConfig], image_size: int) -> str:
    """Return the imitation recipe for two dense heads with box bins, else that of final boxes, which fits any pair.

    Bins are in units of the stride: a teacher that sees larger images has its recipe without them. With dense labels
    it is the recipe on the dense grid, with box bins where both sides have them.
    """
    for teacher in teachers:
        if isinstance(teacher.config, DenseLabelsConfig):
            return _dense_recipe(student, teacher.config)
    for teacher in teachers:
        if kind_of(teacher.config) not in FAMILIES or teacher.options.tiles or teacher.options.tta:
            return BOXES_RECIPE
    heads = {head_kind(kind_of(config), config) for config in (student, *(teacher.config for teacher in teachers))}
    if heads != {"dense_bins"}:
        return BOXES_RECIPE
    sees_more = any((teacher.options.image_size or 0) > image_size for teacher in teachers)
    return LARGER_VIEW_RECIPE if sees_more else DEFAULT_RECIPE


def _dense_recipe(student: StrictModel, config: DenseLabelsConfig) -> str:
    has_bins = is_dense_store(config.store) and any_dense_manifest(config.store).spec.box_bins is not None
    return DEFAULT_RECIPE if has_bins and head_kind(kind_of(student), student) == "dense_bins" else DIRECT_RECIPE


def _distill_items(
    content: Mapping[str, Any], teachers: Sequence[TeacherConfig], where: str, errors: list[str]
) -> list[Any] | None:
    """Return the items of `distill`, or of the recipe that it names; None: the default recipe."""
    given = content.get("distill")
    if not content.get("teacher") and content.get("knowledge") is None:
        if given is not None:
            errors.append(
                f"{where}: distill: needs a teacher; add 'teacher:' or 'knowledge:', or remove 'distill:' for plain "
                f"training"
            )
        return []
    if given is None:
        return None
    if isinstance(given, str):
        if given in recipe_names():
            return _recipe_items(given)
        errors.append(f"{where}: distill: unknown recipe '{given}'{suggest(given, recipe_names())}")
        return []
    if not isinstance(given, list) or not given:
        errors.append(
            f"{where}: distill: expected the name of a recipe or a list of at least one loss, e.g. {DEFAULT_RECIPE}"
        )
        return []
    items = _with_offline_name(given, teachers)
    for index, item in enumerate(items):
        errors += _item_errors(item, [teacher.name for teacher in teachers], f"{where}: distill.{index}")
    return items


def _with_offline_name(items: list[Any], teachers: Sequence[TeacherConfig]) -> list[Any]:
    """Replace the former name of every offline teacher by the name of the only one."""
    offline = [teacher.name for teacher in teachers if teacher.entry.offline]
    if len(offline) != 1 or STORE_NAME in [teacher.name for teacher in teachers]:
        return items
    renamed = [
        {**item, "teacher": offline[0]} if isinstance(item, Mapping) and item.get("teacher") == STORE_NAME else item
        for item in items
    ]
    if renamed != items:
        _log.warning("the teacher '%s' is called '%s' today; the old name is still read", STORE_NAME, offline[0])
    return renamed


def _item_errors(item: Any, teachers: Sequence[str], where: str) -> list[str]:
    """Return the mistakes of an item of `distill`, but for those in the settings of its loss."""
    if not isinstance(item, Mapping) or "loss" not in item:
        return [f"{where}: expected a mapping with 'loss', e.g. {{loss: box_iou, weight: 7.5}}"]
    loss, teacher = str(item["loss"]), item.get("teacher")
    errors = []
    if loss not in LOSSES:
        errors.append(f"{where}.loss: loss '{loss}' is unknown{suggest(loss, LOSSES)}")
    if not str(item.get("name", loss)).isidentifier():
        errors.append(f"{where}.name: '{item['name']}' is not a plain name; use letters, digits and _")
    if teacher is not None and teachers and teacher not in teachers:
        errors.append(f"{where}.teacher: there is no teacher '{teacher}'{suggest(str(teacher), teachers)}")
    return errors


def _terms(
    items: Sequence[Mapping[str, Any]], teachers: Sequence[TeacherConfig], where: str, errors: list[str]
) -> tuple[TermConfig, ...]:
    """Read the settings of the losses; here torch is loaded."""
    terms: dict[str, TermConfig] = {}
    for index, item in enumerate(items):
        key = f"distill.{index}"
        for term in _term(item, teachers, key, where, errors):
            if term.name in terms:
                errors.append(f"{where}: {key}: a second term named '{term.name}'; give it another 'name'")
            terms.setdefault(term.name, term)
    return tuple(terms.values())


def _term(
    item: Mapping[str, Any], teachers: Sequence[TeacherConfig], key: str, where: str, errors: list[str]
) -> list[TermConfig]:
    """Read one item of `distill`: one term, or one for each teacher where it names no teacher and there are several."""
    from torch import nn

    settings = dict(item)
    loss = str(settings.pop("loss"))
    name = str(settings.pop("name", loss))
    named = settings.pop("teacher", None)
    if hasattr(nn.ModuleDict, name):  # the distiller keeps terms by name in one
        errors.append(f"{where}: {key}.name: '{name}' is taken; give another")
    kind = load_loss(loss)
    config: LossConfig | None = try_validate(kind.Config, settings, f"{where}: {key}", errors, ".")
    if config is None:
        return []
    chosen = [str(named)] if named is not None else _teachers_of(kind, teachers)
    if len(chosen) == 1:
        return [TermConfig(name, loss, config, chosen[0])]
    shared = config.weight if config.weight == "auto" else config.weight / len(chosen)
    part = config.model_copy(update={"weight": shared, "share": config.share / len(chosen)})
    return [TermConfig(f"{name}_{teacher}", loss, part, teacher) for teacher in chosen]


def _teachers_of(kind: type[DistillationLoss], teachers: Sequence[TeacherConfig]) -> list[str]:
    """Return the teachers of a term that names none: the offline ones that have all it needs, else the others."""
    offline = [teacher for teacher in teachers if teacher.entry.offline]
    fitting = [teacher.name for teacher in offline if kind.requires <= teacher.entry.offline_signals]
    if fitting:
        return fitting
    return [teacher.name for teacher in teachers if teacher not in offline] or [teacher.name for teacher in offline]


def _spell_out_recipe(content: dict[str, Any]) -> None:
    """Replace a recipe's name by its list, and a loss's name by its settings, so that overrides can change them."""
    recipe = content.get("distill")
    if recipe is None:
        errors: list[str] = []
        student, teachers = _student(content.get("student"), "", errors), _teachers(content, "", errors)
        if errors or student is None or not teachers:
            return  # `_build` reports the errors
        size = content.get("image_size", RootConfig.model_fields["image_size"].default)
        recipe = _default_recipe(student, teachers, size if isinstance(size, int) else 0)
    if isinstance(recipe, str) and recipe in recipe_names():
        content["distill"] = _recipe_items(recipe)
    elif isinstance(recipe, list):
        content["distill"] = [{"loss": term} if isinstance(term, str) else term for term in recipe]


def _parse_override(text: str) -> tuple[list[str], Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise RequestError(f"--set {text}: expected key.path=value, e.g. train.epochs=2")
    return key.strip().split("."), parse_scalar(value)


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set a value at a key path; a number is an index into a list."""
    parent: Any = content
    for position, key in enumerate(keys[:-1]):
        if isinstance(parent, list):
            parent = parent[_list_index(parent, key, keys[: position + 1])]
        else:
            if not isinstance(parent.get(key), dict | list):
                parent[key] = {}
            parent = parent[key]
    if not isinstance(parent, (list, dict)):
        raise RequestError(f"--set {'.'.join(keys)}: {'.'.join(keys[:-1])} is {parent!r}, which has no settings")
    if isinstance(parent, list):
        parent[_list_index(parent, keys[-1], keys)] = value
    else:
        parent[keys[-1]] = value


def _list_index(items: list[Any], key: str, path: list[str]) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise RequestError(f"--set {'.'.join(path)}: '{key}' is no position in a list of {len(items)} (0 is the first)")
    return int(key)


def _with_paths(content: dict[str, Any], base: Path, where: str, errors: list[str]) -> dict[str, Any]:
    """Return the config with absolute paths."""
    resolved = copy.deepcopy(content)

    def absolute(holder: dict[str, Any], key: str, name: str) -> None:
        if isinstance(holder.get(key), str):
            try:
                holder[key] = str(resolve_path(holder[key], base))
            except RequestError as error:
                errors.append(f"{where}: {name}: {error}")

    absolute(resolved, "data", "data")
    for key, part in _detectors(resolved).items():
        absolute(part, "weights", f"{key}.weights")
        absolute(part, "store", f"{key}.store")
        if str(part.get("model", "")).endswith((".yaml", ".yml")):
            absolute(part, "model", f"{key}.model")
        if isinstance(part.get("inherit"), dict) and str(part["inherit"].get("from", "")).endswith((".pt", ".pth")):
            absolute(part["inherit"], "from", f"{key}.inherit.from")
    absolute(resolved, "knowledge", "knowledge")
    if isinstance(resolved.get("knowledge"), dict):
        absolute(resolved["knowledge"], "store", "knowledge.store")
    return resolved
