"""What tests of whole runs share."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from kd_vision.data import dataset


@pytest.fixture
def split_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the splits that are parsed from here on, in order, whoever asks."""
    reads: list[str] = []
    load = dataset.load_split

    def counted(descriptor: Any, name: str, *rest: Any, **named: Any) -> Any:
        reads.append(name)
        return load(descriptor, name, *rest, **named)

    for name, module in list(sys.modules.items()):
        if name.startswith("kd_vision.") and getattr(module, "load_split", None) is load:
            monkeypatch.setattr(module, "load_split", counted)
    return reads
