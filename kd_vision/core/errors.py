"""Errors for people. Each carries the exit status a command ends with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_SHOWN = 20
_FEW = 6


class KDVisionError(Exception):
    """Base of all errors that a user can be told about. `exit_code` 1: the work failed."""

    exit_code = 1


class RequestError(KDVisionError):
    """The request is wrong: says what, where, and what would be right. Exit status 2.

    Args:
        *problems: one line each; all mistakes found are reported together.
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
    """Return the first 20 lines, and how many more there are: a million mistakes are told in a page.

    Args:
        lines: one for each mistake.
        hint: follows the number of those left out.
    """
    rest = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"and {rest} more{hint}"] if rest > 0 else [])]


def quote_some(names: Sequence[str]) -> str:
    """Return the first six names, in quotes, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:_FEW])
    return shown + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def first_line(error: Exception) -> str:
    """What another library says, in a line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def suggest(given: str, possible: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a near miss, else the list of what is possible.

    Args:
        given: what the user wrote.
        possible: the names that would have been right.
    """
    names: Sequence[str] = sorted(possible)
    near = get_close_matches(given, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; possible: {', '.join(names)}" if names else ""
