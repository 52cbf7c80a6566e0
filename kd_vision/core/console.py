"""What long work tells a person: a progress bar with time left, on a terminal or in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LOG_EVERY_SECONDS = 30.0


class ProgressBar:
    """A bar on a terminal; where there is none, a line every half minute.

    Args:
        title: what is being done.
        console: where to write; None: standard error.
        quiet: write nothing.
    """

    def __init__(self, title: str, console: Console | None = None, quiet: bool = False) -> None:
        self.title = title
        self.quiet = quiet
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._spoke = time.monotonic()
        if self.console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=None, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` is done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=text)
            return
        now = time.monotonic()
        if not self.quiet and (now - self._spoke > _LOG_EVERY_SECONDS or done == total):
            self._spoke = now
            self.console.print(f"{self.title}: {done}/{total}  {text}", highlight=False)
