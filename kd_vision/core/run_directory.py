"""Where a run keeps what it did. Every file is written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_vision.core.errors import RequestError


class RunDirectory:
    """Files of one run, by the names other people's scripts rely on.

    Args:
        root: the folder; made on the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.environment = root / "environment.json"
        self.log = root / "metrics.jsonl"
        self.metrics = root / "metrics.json"
        self.fit = root / "fit.json"
        self.student = root / "student.pt"
        self.last_checkpoint = root / "checkpoints" / "last.ckpt"
        self.best_checkpoint = root / "checkpoints" / "best.ckpt"

    def append_log(self, row: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def read_log(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of ``metrics.jsonl``; a line torn by a kill ends the reading."""
        if not self.log.is_file():
            return
        with self.log.open(encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    return

    def write_csv(self) -> None:
        """Write ``metrics.csv``, the same lines as ``metrics.jsonl`` as a table."""
        rows = list(self.read_log())
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.root / "metrics.csv", text.getvalue())

    def truncate_log(self, last_step: int) -> None:
        """Drop the lines after `last_step`, which a resumed run will write again."""
        rows = [row for row in self.read_log() if row.get("step", 0) <= last_step]
        write_text(self.log, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """Yield a name to write to; it becomes `path` on success and is removed on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_or_nothing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole_or_nothing(path) as part:
        part.write_bytes(content)


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        RequestError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path}: is not UTF-8 text") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RequestError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise RequestError(f"{path}:{error.lineno}: is not valid JSON: {error.msg}") from None
