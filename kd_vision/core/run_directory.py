"""The files of a run. Every file is written whole or not at all, except the log, to which lines are appended."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_text, write_text


class RunDirectory:
    """Paths of the files of one run; the names are part of the public interface.

    Args:
        root: the folder; created by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.environment = root / "environment.json"
        self.log = root / "metrics.jsonl"
        self.metrics = root / "metrics.json"
        self.matches = root / "matches.npz"
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
        """Yield the lines of ``metrics.jsonl``, see `read_log`; none where there is no file yet."""
        yield from read_log(self.log) if self.log.is_file() else ()

    def write_csv(self) -> None:
        """Write ``metrics.csv``: the lines of ``metrics.jsonl`` as a table."""
        rows = list(self.read_log())
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.root / "metrics.csv", text.getvalue())

    def truncate_log(self, last_step: int) -> None:
        """Remove the lines after `last_step`; a resumed run writes them again."""
        rows = [row for row in self.read_log() if row.get("step", 0) <= last_step]
        write_text(self.log, "".join(json.dumps(row) + "\n" for row in rows))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one per line. An incomplete last line (of a killed run) is left out.

    Raises:
        RequestError: the file cannot be read, or a finished line is not a JSON object.
    """
    rows, errors = [], []
    for number, line in enumerate(io.StringIO(read_text(path)), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if line.endswith("\n"):  # else the writer was killed while writing it
                errors.append(f"{path}:{number}: is not valid JSON: {error.msg}")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            errors.append(f"{path}:{number}: expected an object with keys and values")
    if errors:
        raise RequestError(*errors)
    return rows
