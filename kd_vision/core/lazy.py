"""Tables are data: the module that an entry names is imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from kd_vision.core.errors import RequestError


def load_attribute(path: str) -> Any:
    """Import a module and return its attribute, both given as ``module:attribute``."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def missing_packages(packages: Iterable[str]) -> list[str]:
    """Return the (import) names of the packages that are not installed."""
    return [name for name in packages if find_spec(name) is None]


def refuse_missing_packages(where: str, needed_by: str, packages: Iterable[str], extra: str) -> None:
    """Refuse an entry whose packages are not installed.

    Args:
        where: key or option that asked for the entry, e.g. ``train.loggers``.
        needed_by: name of the entry.
        packages: import names.
        extra: of ``pip install kd-vision[EXTRA]``.

    Raises:
        RequestError: a package is missing.
    """
    missing = missing_packages(packages)
    if missing:
        words = f"package {missing[0]}, which is" if len(missing) == 1 else f"packages {', '.join(missing)}, which are"
        raise RequestError(f"{where}: '{needed_by}' needs the {words} not installed; pip install kd-vision[{extra}]")
