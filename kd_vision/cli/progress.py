"""Progress on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from kd_vision.core.progress import LoggedProgress, Progress


class _BarProgress:
    """A bar with the time left."""

    def __init__(self, bar: Bar, title: str) -> None:
        self._bar = bar
        self._task = bar.add_task(title, total=None, note="")

    def step(self, done: int, total: int, text: str = "") -> None:
        """See `Progress.step`."""
        self._bar.update(self._task, completed=done, total=total, note=text)


@contextmanager
def show_progress(title: str, time_left: bool = True) -> Iterator[Progress]:
    """Show a bar on a terminal; where there is none, a line every half minute.

    Args:
        title: of the work.
        time_left: estimate the time left; False for work that says it itself.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LoggedProgress(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *((TextColumn("left"), TimeRemainingColumn()) if time_left else ()),
        TextColumn("{task.fields[note]}"),
    )
    with Bar(*columns, console=console) as bar:
        yield _BarProgress(bar, title)
