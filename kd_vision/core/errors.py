"""Errors with messages for the user. Each has the exit status of the command that it ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_SHOWN = 20
_FEW = 6


class KDVisionError(Exception):
    """Base of all errors whose message is for the user. `exit_code` 1: the work failed."""

    exit_code = 1


class RequestError(KDVisionError):
    """The request is wrong. Exit status 2.

    Args:
        *problems: all mistakes, a line each: ``where: what is wrong; what would be right``.
    """

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class TrainingError(KDVisionError):
    """Training cannot go on (a term is not finite, has no gradient, or is inactive). Exit status 1."""


class GateError(KDVisionError):
    """A gate refused the result (parity, budget, teacher not better). Exit status 3."""

    exit_code = 3


def truncate(lines: Sequence[str], hint: str = "") -> list[str]:
    """Return the first 20 lines, and one with the number of the others.

    Args:
        lines: one for each mistake.
        hint: appended to that number.
    """
    rest = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"and {rest} more{hint}"] if rest > 0 else [])]


def quote_some(names: Sequence[str]) -> str:
    """Return the first six names in quotes, and the number of the others."""
    shown = ", ".join(f"'{name}'" for name in names[:_FEW])
    return shown + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def first_line(error: Exception) -> str:
    """Return the first line of a message, at most 160 characters; the name of the class where it is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def suggest(given: str, possible: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a near miss, else the list of possible names.

    Args:
        given: the unknown name.
        possible: the valid names.
    """
    names: Sequence[str] = sorted(possible)
    near = get_close_matches(given, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; possible: {', '.join(names)}" if names else ""
