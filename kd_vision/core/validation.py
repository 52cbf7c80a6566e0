"""Turns pydantic's findings into lines that say where, what was given, and what is possible."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from kd_vision.core.errors import RequestError, suggest

Model = TypeVar("Model", bound=BaseModel)
_log = logging.getLogger(__name__)


class StrictModel(BaseModel):
    """Base of every typed config: unknown keys are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset()
    """Fields that change nothing of what comes out (threads, say): two configs are the same without them."""

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Old name of a key to its name today; the old one is still read, with one line of notice."""

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
    """Say once that a key has another name today."""
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
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise RequestError(*problems(model, error, where)) from None


def problems(model: type[BaseModel], error: ValidationError, where: str) -> list[str]:
    """One line per finding: ``FILE: key.path: what is wrong; what would be right``."""
    lines = []
    for finding in error.errors(include_url=False):
        location = tuple(part for part in finding["loc"])
        key = ".".join(str(part) for part in location)
        if finding["type"] == "extra_forbidden":
            names = _fields_at(model, location[:-1])
            text = f"unknown key{suggest(str(location[-1]), names)}"
        elif finding["type"] == "missing":
            text = "is missing"
        else:
            message = finding["msg"].removeprefix("Value error, ")
            given = finding.get("input")
            text = message[0].lower() + message[1:]
            if isinstance(given, str | int | float | bool | None) and finding["type"] != "value_error":
                text += f"; given {given!r}"
        lines.append(f"{where}: {key}: {text}" if key else f"{where}: {text}")
    return lines


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model that stands at `location` in the tree."""
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
    found = (_model_in(argument) for argument in arguments)
    return next((model for model in found if model is not None), None)
