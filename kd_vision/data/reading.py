"""Text and numbers of annotation files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from kd_vision.core import files
from kd_vision.core.errors import RequestError

_LARGEST = 1e15
_LARGEST_ID = 2**63 - 1


def read_text(path: Path, expected: str) -> str:
    """Read a text file.

    Args:
        path: the file.
        expected: what would be right, for the message.

    Raises:
        RequestError: it cannot be read, or is not UTF-8 text.
    """
    try:
        return files.read_text(path)
    except RequestError as error:
        raise RequestError(f"{error}; give {expected}") from None


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number of at most 1e15 (larger ones overflow in products)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def is_id(value: Any) -> TypeGuard[int]:
    """Return whether a JSON value is a whole number of at most 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_ID


def parse_number(text: str) -> float | None:
    """Return the finite number that a text is; None: it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if is_number(value) else None
