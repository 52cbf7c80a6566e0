"""Typed settings, and pydantic's errors as messages that name the key, the given value and the valid ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from kd_vision.core.errors import RequestError, suggest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=BaseModel)
_log = logging.getLogger(__name__)


class StrictModel(BaseModel):
    """Base of every typed config: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not change any result, e.g. the number of threads; `fingerprint` leaves them out."""

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Old name of a key to its current name; the old one is still read, with one line of notice."""

    @model_validator(mode="before")
    @classmethod
    def _read_renamed_keys(cls, given: Any) -> Any:
        old = [key for key in cls.renamed_keys if isinstance(given, Mapping) and key in given]
        if not old:
            return given
        content = dict(given)
        for key in old:
            name = cls.renamed_keys[key]
            if name in content:
                raise ValueError(f"{key} is the old name of {name}; give {name} alone")
            _notice(key, name)
            content[name] = content.pop(key)
        return content


@cache
def _notice(old: str, new: str) -> None:
    """Log once that a key has another name today."""
    _log.warning("the key '%s' is called '%s' today; the old name is still read", old, new)


def validate(model: type[Model], content: Mapping[str, Any], where: str) -> Model:
    """Build `model` from `content`.

    Args:
        model: the typed tree.
        content: keys and values as read.
        where: file (or option) to name in messages.

    Raises:
        RequestError: with one line for every mistake.
    """
    errors: list[str] = []
    value = try_validate(model, content, where, errors)
    if value is None:
        raise RequestError(*errors)
    return value


def try_validate(
    model: type[Model], content: Mapping[str, Any], where: str, errors: list[str], separator: str = ": "
) -> Model | None:
    """Build `model` from `content`; None: add one line for every mistake to `errors`.

    Args:
        model: the typed tree.
        content: keys and values as read.
        where: file (or option) to name in messages, and the key that holds `content`, if any.
        errors: receives ``FILE: key.path: what is wrong; what would be right``.
        separator: between `where` and a key; "." where `where` ends with a key.
    """
    try:
        return model.model_validate(dict(content))
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            key = separator + ".".join(map(str, error["loc"])) if error["loc"] else ""
            errors.append(f"{where}{key}: {_message(model, error)}")
        return None


def _message(model: type[BaseModel], error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key{suggest(str(error['loc'][-1]), _fields_at(model, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return "is missing"
    message, given = error["msg"].removeprefix("Value error, "), error.get("input")
    shown = isinstance(given, str | int | float | bool | None) and error["type"] != "value_error"
    return message[0].lower() + message[1:] + (f"; given {given!r}" if shown else "")


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the model at `location` in the tree."""
    current: type[BaseModel] = model
    for part in location:
        field = current.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if inner is not None:
            current = inner
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    arguments = get_args(annotation)
    # Arguments come first: Python 3.10 takes `tuple[Model, ...]` for a class.
    if not arguments and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_model_in(argument) for argument in arguments)
    return next((model for model in models if model is not None), None)
