"""Reads the files of a run directory and writes pages into it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_json, read_text

VAL = "val"


@dataclass(frozen=True)
class Series:
    """A logged number over batches."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class History:
    """What a run logged, one mapping per line of `metrics.jsonl`."""

    records: tuple[Mapping[str, Any], ...]

    def keys(self, split: str, prefix: str = "") -> list[str]:
        """Return the names logged for `split` that start with `prefix`, in order of appearance."""
        names: dict[str, None] = {}
        for record in self.records:
            if record.get("split") == split:
                names.update(dict.fromkeys(key for key in record if key.startswith(prefix)))
        return list(names)

    def series(self, split: str, key: str) -> Series:
        """Return the finite values of `key` by step.

        A run that was killed and resumed logs some steps twice: the later line counts.
        """
        values = {
            int(record["step"]): float(record[key])
            for record in self.records
            if record.get("split") == split and _is_number(record.get(key)) and "step" in record
        }
        steps = sorted(values)
        return Series(tuple(steps), tuple(values[step] for step in steps))


def read_history(path: Path) -> History:
    """Read `metrics.jsonl`. An unfinished last line, left by a kill, is passed over.

    Raises:
        RequestError: the file cannot be read, or a line is not a JSON object.
    """
    text = read_text(path)
    lines = text.split("\n")
    finished = lines[:-1]  # what follows the last line break is empty, or was never finished
    records = []
    problems = []
    for number, line in enumerate(finished, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: is not valid JSON: {error.msg}")
            continue
        if isinstance(record, dict):
            records.append(record)
        else:
            problems.append(f"{path}:{number}: expected an object with keys and values")
    if problems:
        raise RequestError(*problems)
    return History(tuple(records))


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        RequestError: the file cannot be read or is something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise RequestError(f"{path}: expected an object with keys and values at the top level")
    return content


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
