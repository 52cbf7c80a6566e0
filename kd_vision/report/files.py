"""The log of a run as series of numbers, and JSON files as mappings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_json

VAL = "val"


@dataclass(frozen=True)
class Series:
    """A logged number over training batches."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class History:
    """The log of a run, one mapping per line of `metrics.jsonl` (from `read_log`)."""

    records: Sequence[Mapping[str, Any]]

    def keys(self, split: str, prefix: str = "") -> list[str]:
        """Return the names logged for `split` that start with `prefix`, in order of appearance."""
        names: dict[str, None] = {}
        for record in self.records:
            if record.get("split") == split:
                names.update(dict.fromkeys(key for key in record if key.startswith(prefix)))
        return list(names)

    def series(self, split: str, key: str) -> Series:
        """Return the finite values of `key` by step.

        Where a step was logged twice, the later line counts.
        """
        values = {
            int(record["step"]): float(record[key])
            for record in self.records
            if record.get("split") == split and _is_number(record.get(key)) and "step" in record
        }
        steps = sorted(values)
        return Series(tuple(steps), tuple(values[step] for step in steps))


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
