"""Tables are data: what an entry names is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any


def load_attribute(path: str) -> Any:
    """Import and return what ``module:attribute`` names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
