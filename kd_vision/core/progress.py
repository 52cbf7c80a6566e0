"""Progress of long work. The library logs it; a program that embeds the library can display it otherwise."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

LOG_EVERY_SECONDS = 30.0

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """Receives the progress of one piece of work."""

    def step(self, done: int, total: int, text: str = "") -> None:
        """Receive that `done` of `total` steps are done; called after every step."""
        ...


class ProgressFactory(Protocol):
    """Starts the progress of one piece of work."""

    def __call__(self, title: str) -> AbstractContextManager[Progress]:
        """Return the progress of the work called `title`."""
        ...


class LoggedProgress:
    """Logs a line every half minute and at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = time.monotonic()

    def step(self, done: int, total: int, text: str = "") -> None:
        """See `Progress.step`."""
        now = time.monotonic()
        if now - self._last > LOG_EVERY_SECONDS or done == total:
            self._last = now
            _log.info("%s: %d/%d  %s", self._title, done, total, text)


class _NoProgress:
    def step(self, done: int, total: int, text: str = "") -> None:
        """See `Progress.step`."""


@contextmanager
def log_progress(title: str) -> Iterator[Progress]:
    """Log progress at level INFO; the default of every long-running function of the library."""
    yield LoggedProgress(title)


@contextmanager
def no_progress(title: str) -> Iterator[Progress]:
    """Log nothing: for work within other work, and for all processes but the first."""
    yield _NoProgress()
