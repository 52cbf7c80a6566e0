"""Parses and builds teachers of a config: at its top level (`teacher:`) and in an ensemble (`members:`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.label_map import build_label_map
from kd_vision.core.lazy import load_attribute
from kd_vision.core.validation import StrictModel, try_validate
from kd_vision.detectors import DEFAULT_FAMILY, FAMILIES, family_module
from kd_vision.teachers import teacher_entry
from kd_vision.teachers.options import TeacherOptions

if TYPE_CHECKING:
    from kd_vision.detectors.base import Detector
    from kd_vision.teachers.base import BlackBoxDetector
    from kd_vision.teachers.frozen import FrozenTeacher

ENSEMBLE = "ensemble"


def kind_of(content: Any) -> str:
    """Return the key in the table of teachers of a mapping or a typed config."""
    family = content.get("family") if isinstance(content, Mapping) else getattr(content, "family", None)
    return DEFAULT_FAMILY if family is None else str(family)


def parse_teacher(content: Any, where: str) -> tuple[StrictModel, TeacherOptions]:
    """Read one teacher; torch is not loaded.

    Args:
        content: keys of the family's config and of `TeacherOptions`; paths are absolute.
        where: file and key for messages, e.g. ``config.yaml: teacher``.

    Returns:
        The typed config of its kind, and the options of every kind.

    Raises:
        RequestError: one line for every mistake, also of the members of an ensemble.
    """
    if not isinstance(content, Mapping):
        raise RequestError(f"{where}: expected keys and values, e.g. {{family: ultralytics, weights: teacher.pt}}")
    kind = kind_of(content)
    model: type[StrictModel] = load_attribute(teacher_entry(kind, where).config)
    general = {str(key): value for key, value in content.items() if key in TeacherOptions.model_fields}
    specific = {str(key): value for key, value in content.items() if key not in general}
    valid = {*model.model_fields, *model.renamed_keys}
    possible = (*model.model_fields, *TeacherOptions.model_fields)
    errors = [f"{where}.{key}: unknown key{suggest(key, possible)}" for key in specific if key not in valid]
    config = try_validate(model, {key: specific[key] for key in specific if key in valid}, where, errors, ".")
    options = try_validate(TeacherOptions, general, where, errors, ".")
    if kind == ENSEMBLE:
        errors += _member_errors(specific.get("members"), where)
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
        RequestError: see `parse_teacher`, or its kind cannot be a member.
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
    default_size: int | None = None,
) -> FrozenTeacher:
    """Build one online teacher, frozen, with the student's classes.

    Args:
        config: typed config of its kind.
        options: of every kind.
        student_classes: names in label order; None: the teacher keeps its own.
        where: key for messages, e.g. ``teacher``.
        default_size: side of the images, e.g. the student's; None: not known yet, see `refuse_idle_tiles`.

    Returns:
        The teacher. Its `image_size` is that of `options`, else the fixed size of its file, else the largest of an
        ensemble's members (those without a size then run on `default_size`), else `default_size`.

    Raises:
        RequestError: the teacher cannot be built, or its classes or a size do not fit.
    """
    from kd_vision.teachers.frozen import FrozenTeacher

    kind = kind_of(config)
    _refuse_useless_labels(kind, options, student_classes, where)
    source = _build_source(kind, config, student_classes if kind == ENSEMBLE else None, where)
    labels = None
    if student_classes is not None:
        labels = build_label_map(source.spec.classes, student_classes, options.labels, f"{where}.labels")
    detector = _with_tiles_and_tta(source, options, where)
    if known_size := options.image_size or default_size:
        refuse_idle_tiles(options, known_size, where, source.fixed_size)
    image_size = options.image_size or _input_size(detector, default_size, where)
    if image_size is not None:
        detector.spec.refuse_wrong_size(image_size, f"{where}.image_size")
    return FrozenTeacher(detector, labels, image_size, options.postprocess.options)


def _build_source(
    kind: str, config: StrictModel, classes: tuple[str, ...] | None, where: str
) -> Detector | BlackBoxDetector:
    """Build the detector; only an ensemble is given `classes`, a model would get a new head for them."""
    from kd_vision.detectors.base import Detector, freeze

    # `family_module` refuses a family whose package is not installed, with the command that installs it.
    build = family_module(kind, where).build if kind in FAMILIES else load_attribute(teacher_entry(kind, where).build)
    source: Detector | BlackBoxDetector = build(config, classes, where)
    if isinstance(source, Detector):
        freeze(source)
        source.fuse()
    return source


def _input_size(source: Detector | BlackBoxDetector, default_size: int | None, where: str) -> int | None:
    try:
        return source.resolve_input_size(default_size) or default_size
    except RequestError as error:
        raise RequestError(*(f"{where}: {line}" for line in error.problems)) from None


def refuse_idle_tiles(options: TeacherOptions, image_size: int, where: str, fixed_size: int | None = None) -> None:
    """Refuse tiles that are not smaller than the image.

    Args:
        options: of the teacher.
        image_size: side of the teacher's square input.
        where: key for messages, e.g. ``teacher``.
        fixed_size: input side of its file, if fixed; the default size of a tile.

    Raises:
        RequestError: a tile is as large as the image.
    """
    tile = None if options.tiles is None else options.tiles.size or fixed_size
    largest = image_size * max(options.tta.scales if options.tta is not None else (1.0,))
    if tile is not None and tile >= largest:
        raise RequestError(
            f"{where}.tiles.size: a tile of {tile} pixels is not smaller than the image of {image_size}x{image_size} "
            f"pixels; give image_size: {2 * tile}, or leave tiles out"
        )


def _refuse_useless_labels(
    kind: str, options: TeacherOptions, student_classes: tuple[str, ...] | None, where: str
) -> None:
    if options.labels is not None and kind == ENSEMBLE:
        raise RequestError(f"{where}.labels: each member of an ensemble has its own label map; give it there")
    if options.labels is not None and student_classes is None:
        raise RequestError(f"{where}.labels: there are no classes to map to; leave it out")


def _with_tiles_and_tta(
    source: Detector | BlackBoxDetector, options: TeacherOptions, where: str
) -> Detector | BlackBoxDetector:
    """Wrap a detector in tiling and test-time augmentation; each scale is tiled by itself."""
    from kd_vision.teachers.augmented import Augmented, Tiled

    detector: Detector | BlackBoxDetector = source
    if options.tiles is not None:
        detector = Tiled.of(detector, options.tiles, f"{where}.tiles")
    if options.tta is not None:
        has_sizes = source.resolve_input_size(None) is not None and source.fixed_size is None
        if has_sizes and set(options.tta.scales) != {1.0}:
            raise RequestError(
                f"{where}.tta.scales: members of the ensemble have their own image_size, to which every scale would "
                f"be resized again; give 'tta' to the members"
            )
        detector = Augmented.of(detector, options.tta, f"{where}.tta")
    size, fixed = options.image_size, detector.fixed_size
    if size is not None and fixed is not None and size != fixed:
        raise RequestError(
            f"{where}.image_size: the file only takes images of {fixed}x{fixed} pixels, given {size}; leave it out, "
            f"or add tiles: {{size: {fixed}}}"
        )
    return detector
