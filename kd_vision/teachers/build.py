"""Parses and builds a teacher as a config describes it.

The same at the top level of a config (`teacher:`) and within an ensemble (`members:`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.label_map import build_label_map
from kd_vision.core.lazy import load_attribute
from kd_vision.core.validation import StrictModel, try_validate
from kd_vision.detectors import DEFAULT_FAMILY
from kd_vision.teachers import TeacherEntry, teacher_entry
from kd_vision.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from kd_vision.detectors.base import Detector
    from kd_vision.teachers.base import BlackBoxDetector
    from kd_vision.teachers.frozen import FrozenTeacher

ENSEMBLE = "ensemble"


def kind_of(content: Any) -> str:
    """Return the key of the table of teachers that a mapping, or a typed config, belongs to."""
    family = content.get("family") if isinstance(content, Mapping) else getattr(content, "family", None)
    return DEFAULT_FAMILY if family is None else str(family)


def parse_teacher(content: Any, where: str) -> tuple[StrictModel, TeacherOptions]:
    """Read one teacher. No torch is loaded.

    Args:
        content: keys of the family's config and of `TeacherOptions` side by side; paths are absolute.
        where: file and key for messages, e.g. ``config.yaml: teacher``.

    Returns:
        The typed config of its kind, and how it is run.

    Raises:
        RequestError: one line for every mistake, those of an ensemble's members among them.
    """
    if not isinstance(content, Mapping):
        raise RequestError(f"{where}: expected keys and values, e.g. {{family: ultralytics, weights: teacher.pt}}")
    kind = kind_of(content)
    model: type[StrictModel] = load_attribute(teacher_entry(kind, where).config)
    shared = {str(key): value for key, value in content.items() if key in TeacherOptions.model_fields}
    particular = {str(key): value for key, value in content.items() if key not in shared}
    readable = {*model.model_fields, *model.renamed_keys}
    possible = (*model.model_fields, *TeacherOptions.model_fields)
    errors = [f"{where}.{key}: unknown key{suggest(key, possible)}" for key in particular if key not in readable]
    readable_part = {key: value for key, value in particular.items() if key in readable}
    config = try_validate(model, readable_part, where, errors, ".")
    options = try_validate(TeacherOptions, shared, where, errors, ".")
    if kind == ENSEMBLE:
        errors += _member_errors(particular.get("members"), where)
    if errors or config is None or options is None:
        raise RequestError(*errors)
    return config, options


def _member_errors(members: Any, where: str) -> list[str]:
    errors: list[str] = []
    for position, member in enumerate(members if isinstance(members, list) else []):
        try:
            parse_member(member, f"{where}.members.{position}")
        except RequestError as error:
            errors += error.problems
    return errors


def parse_member(content: Any, where: str) -> tuple[StrictModel, TeacherOptions]:
    """Read one member of an ensemble; see `parse_teacher`.

    Raises:
        RequestError: as there, or it cannot be run on an image beside others.
    """
    kind = kind_of(content)
    reason = teacher_entry(kind, where).why_no_member if isinstance(content, Mapping) else ""
    if reason:
        raise RequestError(f"{where}.family: '{kind}' cannot be a member of an ensemble: {reason}")
    return parse_teacher(content, where)


def build_teacher(
    config: StrictModel,
    options: TeacherOptions,
    student_classes: tuple[str, ...] | None,
    where: str,
    given: int | None = None,
) -> FrozenTeacher:
    """Build one online teacher, frozen, with the student's classes.

    Args:
        config: typed config of its kind.
        options: how it is run.
        student_classes: names in label order; None: the teacher keeps its own.
        where: key for messages, e.g. ``teacher``.
        given: side of the images that are there anyhow, e.g. the student's; None: not known yet, see
            `refuse_idle_tiles`.

    Returns:
        The teacher. Its `image_size` is that of `options`, else the only one its file takes, else the largest that a
        member of an ensemble names (the others are then run on `given`), else `given`.

    Raises:
        RequestError: the teacher cannot be built, its classes do not fit, or a size does not.
    """
    from kd_vision.teachers.frozen import FrozenTeacher

    kind = kind_of(config)
    errors = _contradictions(kind, options, student_classes, where)
    if errors:
        raise RequestError(*errors)
    source = _build_source(teacher_entry(kind, where), config, student_classes if kind == ENSEMBLE else None, where)
    labels = None
    if student_classes is not None:
        labels = build_label_map(source.spec.classes, student_classes, options.labels, f"{where}.labels")
    shown = _with_views(source, options, where)
    cut = options.image_size or given
    if cut is not None:
        refuse_idle_tiles(options, cut, where, source.fixed_size)
    view = options.image_size or _input_size(shown, given, where)
    if view is not None:
        shown.spec.refuse_wrong_size(view, f"{where}.image_size")
    return FrozenTeacher(shown, labels, view, options.postprocess.options)


def _build_source(
    entry: TeacherEntry, config: StrictModel, classes: tuple[str, ...] | None, where: str
) -> Detector | BlackBoxDetector:
    """Build what is run; the members of an ensemble are given `classes`, a model would get a new head for them."""
    from kd_vision.detectors.base import Detector, freeze

    source: Detector | BlackBoxDetector = load_attribute(entry.build)(config, classes, where)
    if isinstance(source, Detector):
        freeze(source)
        source.fuse()
    return source


def _input_size(source: Detector | BlackBoxDetector, given: int | None, where: str) -> int | None:
    try:
        return source.resolve_input_size(given) or given
    except RequestError as error:
        raise RequestError(*(f"{where}: {line}" for line in error.problems)) from None


def refuse_idle_tiles(options: TeacherOptions, view: int, where: str, only: int | None = None) -> None:
    """Refuse tiles that would not cut what the teacher is run on.

    Args:
        options: how the teacher is run.
        view: side of the square that it is run on.
        where: key for messages, e.g. ``teacher``.
        only: side that its file insists on, which is the tile's where `options` name none.

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
    kind: str, options: TeacherOptions, student_classes: tuple[str, ...] | None, where: str
) -> list[str]:
    if options.labels is None:
        return []
    if kind == ENSEMBLE:
        return [f"{where}.labels: the members of an ensemble have a map each; put it there"]
    if student_classes is None:
        return [f"{where}.labels: there are no classes to map to; leave it out"]
    return []


def _with_views(
    source: Detector | BlackBoxDetector, options: TeacherOptions, where: str
) -> Detector | BlackBoxDetector:
    """Put tiles and test-time augmentation around a detector; a larger scale is cut into more tiles."""
    from kd_vision.teachers.augmented import Augmented, Tiled

    shown: Detector | BlackBoxDetector = source
    if options.tiles is not None:
        shown = Tiled.of(shown, options.tiles, f"{where}.tiles")
    if options.tta is not None:
        has_sizes = source.resolve_input_size(None) is not None and source.fixed_size is None
        if has_sizes and set(options.tta.scales) != {1.0}:
            raise RequestError(
                f"{where}.tta.scales: members of the ensemble have image sizes of their own, to which every scale "
                f"would be brought again; give 'tta' to the members"
            )
        shown = Augmented.of(shown, options.tta, f"{where}.tta")
    size, only = options.image_size, shown.fixed_size
    if size is not None and only is not None and size != only:
        raise RequestError(
            f"{where}.image_size: the file takes images of {only}x{only} pixels alone, given {size}; leave it out, or "
            f"add tiles: {{size: {only}}}"
        )
    return shown
