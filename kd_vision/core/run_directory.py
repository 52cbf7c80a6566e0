"""Where a run keeps what it did. Every file is written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kd_vision.core.files import write_text


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
