"""A source of boxes as a config describes it: which model, in which words, how it is shown an image.

The same at the top level of a config (`teacher:`) and within an ensemble (`members:`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.label_map import build_label_map, stringify_keys
from kd_vision.core.validation import StrictModel, problems
from kd_vision.detectors import DEFAULT_FAMILY, FAMILIES, family_module
from kd_vision.detectors.base import Detector, PixelPredictor, freeze
from kd_vision.teachers.augmented import Augmented, Tiled, TilesConfig, TtaConfig
from kd_vision.teachers.base import fixed_size, resolve_input_size
from kd_vision.teachers.frozen import FrozenTeacher

ENSEMBLE = "ensemble"
_ALONE = {
    "predictions": "it answers by image id and looks at no pixels; give it as the teacher itself, or as 'knowledge'",
    "labels": "it is what the data set says already; give it as the only teacher",
    "self": "it is the student of the run itself; give it as a second teacher",
}

Model = TypeVar("Model", bound=BaseModel)


class TeacherOptions(StrictModel):
    """How a source is asked, whatever it is.

    Attributes:
        name: to speak of it; None: the caller's choice.
        labels: from its classes to the data's, see `core.labels.build_label_map`.
        image_size: side of the square that it is shown; None: that of the images it is given, the only one
            that its file takes, or the largest that a member names.
        tiles: cut the square into tiles, for objects that are small in it.
        tta: look at each image more than once.
    """

    name: str | None = None
    labels: dict[str, str] | None = None
    image_size: int | None = Field(default=None, ge=32)
    tiles: TilesConfig | None = None
    tta: TtaConfig | None = None

    @field_validator("labels", mode="before")
    @classmethod
    def _words(cls, labels: Any) -> Any:
        return stringify_keys(labels)


def parse_teacher(content: Any, where: str) -> tuple[BaseModel, TeacherOptions]:
    """Read one source.

    Args:
        content: keys of the family's config and of `TeacherOptions` side by side; paths are absolute.
        where: file and key for messages, e.g. ``config.yaml: teacher``.

    Returns:
        The typed config of the family, and how it is asked.

    Raises:
        RequestError: one line for every mistake, those of an ensemble's members among them.
    """
    if not isinstance(content, Mapping):
        raise RequestError(f"{where}: expected keys and values, e.g. {{family: ultralytics, weights: teacher.pt}}")
    family = str(content.get("family", DEFAULT_FAMILY))
    entry = FAMILIES.get(family)
    if entry is None:
        raise RequestError(f"{where}.family: unknown family '{family}'{suggest(family, FAMILIES)}")
    if "teacher" not in entry.roles:
        raise RequestError(f"{where}.family: '{family}' cannot be a teacher")
    model: type[BaseModel] = getattr(family_module(family, where), entry.config)
    asked = {str(key): value for key, value in content.items() if key in TeacherOptions.model_fields}
    own = {str(key): value for key, value in content.items() if key not in asked}
    readable = {*model.model_fields, *getattr(model, "renamed_keys", {})}
    possible = (*model.model_fields, *TeacherOptions.model_fields)
    found = [f"{where}.{key}: unknown key{suggest(key, possible)}" for key in own if key not in readable]
    config = _read(model, {key: value for key, value in own.items() if key in readable}, where, found)
    options = _read(TeacherOptions, asked, where, found)
    if family == ENSEMBLE:
        found += _wrong_members(own.get("members"), where)
    if found or config is None or options is None:
        raise RequestError(*found)
    return config, options


def _read(model: type[Model], content: Mapping[str, Any], where: str, found: list[str]) -> Model | None:
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        lines = zip(error.errors(include_url=False), problems(model, error, ""), strict=True)
        found += [where + ("." if finding["loc"] else ": ") + line.removeprefix(": ") for finding, line in lines]
        return None


def _wrong_members(members: Any, where: str) -> list[str]:
    found: list[str] = []
    for position, member in enumerate(members if isinstance(members, list) else []):
        try:
            parse_member(member, f"{where}.members.{position}")
        except RequestError as error:
            found += error.problems
    return found


def parse_member(content: Any, where: str) -> tuple[BaseModel, TeacherOptions]:
    """Read one member of an ensemble; see `parse_teacher`.

    Raises:
        RequestError: as there, or its family cannot be asked about an image beside others.
    """
    family = str(content.get("family", DEFAULT_FAMILY)) if isinstance(content, Mapping) else ""
    if family in _ALONE:
        raise RequestError(f"{where}.family: '{family}' cannot be a member of an ensemble: {_ALONE[family]}")
    return parse_teacher(content, where)


def build_teacher(
    config: BaseModel,
    options: TeacherOptions,
    student_classes: tuple[str, ...] | None,
    where: str,
    given: int | None = None,
) -> FrozenTeacher:
    """Build one source, frozen, answering in the student's classes.

    Args:
        config: typed config of its family.
        options: how it is asked.
        student_classes: names in label order; None: the source's own words are wanted.
        where: key for messages, e.g. ``teacher``.
        given: side of the images that are there anyhow, e.g. the student's; None: not known yet, see
            `refuse_idle_tiles`.

    Returns:
        The teacher. Its `image_size` is that of `options`, else the only one its file takes, else the largest that a
        member of an ensemble names (the others are then shown `given`), else `given`.

    Raises:
        RequestError: the source cannot be built, its classes do not fit, or a size does not.
    """
    family = str(getattr(config, "family", DEFAULT_FAMILY))
    wrong = _contradictions(family, options, student_classes, where)
    if wrong:
        raise RequestError(*wrong)
    # The members of an ensemble speak the student's words each by its own map; a model would get a new head.
    classes = student_classes if family == ENSEMBLE else None
    source: Detector | PixelPredictor = family_module(family, where).build(config, classes, where)
    if isinstance(source, Detector):
        freeze(source)
        source.fuse()
    labels = None
    if student_classes is not None:
        labels = build_label_map(source.spec.classes, student_classes, options.labels, f"{where}.labels")
    shown = _with_views(source, options, where)
    cut = options.image_size or given
    if cut is not None:
        refuse_idle_tiles(options, cut, where, fixed_size(source))
    view = options.image_size or _input_size(shown, given, where)
    if view is not None:
        shown.spec.refuse_wrong_size(view, f"{where}.image_size")
    return FrozenTeacher(shown, labels, view)


def _input_size(shown: Detector | PixelPredictor, given: int | None, where: str) -> int | None:
    try:
        return resolve_input_size(shown, given) or given
    except RequestError as error:
        raise RequestError(*(f"{where}: {line}" for line in error.problems)) from None


def refuse_idle_tiles(options: TeacherOptions, view: int, where: str, only: int | None = None) -> None:
    """Refuse tiles that would not cut what the source is shown.

    Args:
        options: how the source is asked.
        view: side of the square that it is shown.
        where: key for messages, e.g. ``teacher``.
        only: side that the source's file insists on, which is the tile's where `options` name none.

    Raises:
        RequestError: the tile is as large as the view.
    """
    tile = None if options.tiles is None else options.tiles.size or only
    largest = view * max(options.tta.scales if options.tta is not None else (1.0,))
    if tile is not None and tile >= largest:
        raise RequestError(
            f"{where}.tiles.size: a tile of {tile} pixels is not smaller than the {view}x{view} that it is cut from; "
            f"give image_size: {2 * tile}, or leave tiles out"
        )


def _contradictions(
    family: str, options: TeacherOptions, student_classes: tuple[str, ...] | None, where: str
) -> list[str]:
    if options.labels is None:
        return []
    if family == ENSEMBLE:
        return [f"{where}.labels: the members of an ensemble have a map each; put it there"]
    if student_classes is None:
        return [f"{where}.labels: there are no classes to map to; leave it out"]
    return []


def _with_views(source: Detector | PixelPredictor, options: TeacherOptions, where: str) -> Detector | PixelPredictor:
    """Put tiles and repeated looks around a source; a repeated look may be a larger one, with more tiles."""
    shown: Detector | PixelPredictor = source
    if options.tiles is not None:
        shown = Tiled.of(shown, options.tiles, f"{where}.tiles")
    if options.tta is not None:
        has_sizes = resolve_input_size(source, None) is not None and fixed_size(source) is None
        if has_sizes and set(options.tta.scales) != {1.0}:
            raise RequestError(
                f"{where}.tta.scales: members of the ensemble look at sizes of their own, to which every look would "
                f"be brought again; give 'tta' to the members"
            )
        shown = Augmented.of(shown, options.tta, f"{where}.tta")
    size, only = options.image_size, fixed_size(shown)
    if size is not None and only is not None and size != only:
        raise RequestError(
            f"{where}.image_size: the file takes images of {only}x{only} pixels alone, given {size}; leave it out, or "
            f"add tiles: {{size: {only}}}"
        )
    return shown
