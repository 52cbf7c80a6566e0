"""Reads and writes YAML: `1e-3` is a number, a duplicate key is an error, paths are relative to the file.

Data descriptors and configs both use it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kd_vision.core.errors import RequestError

_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _StrictLoader(yaml.SafeLoader):
    """Safe loader with YAML 1.2 floats that refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *other`; keys of the mapping itself override merged ones
            key = self.construct_object(key_node, deep=True)
            mark = key_node.start_mark
            if not isinstance(key, Hashable):
                raise RequestError(f"{mark.name}:{mark.line + 1}: {_kind(key)} cannot be a key; put it in quotes")
            if key in seen:
                raise RequestError(f"{mark.name}:{mark.line + 1}: key '{key}' is given twice; keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    letter: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:float"]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_scalar(text: str) -> Any:
    """Read the value of a command-line override (``2``, ``1e-3``, ``[a, b]``) as YAML."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "cannot be read"
        raise RequestError(f"{text}: not a YAML value ({problem})") from None


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Return plain values as YAML text, keys in their order."""
    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    return text


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        RequestError: the file is missing, is not YAML, repeats a key or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give a YAML file") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path}: is not UTF-8 text; give a YAML file") from None
    try:
        loader = _StrictLoader(text)
        loader.name = str(path)
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise RequestError(f"{path}{line}: {problem}") from None
    if not isinstance(content, dict):
        raise RequestError(f"{path}: expected keys and values at the top level, found {_kind(content)}")
    return content


def resolve_path(text: str, relative_to: Path) -> Path:
    """Expand ``~`` and ``${VARS}`` and resolve against the folder of the file that names the path.

    Raises:
        RequestError: a variable is not set.
    """
    expanded = os.path.expandvars(os.path.expanduser(text))
    unset = re.search(r"\$\{?(\w+)\}?", expanded)
    if unset:
        raise RequestError(
            f"{text}: the variable {unset.group(1)} is not set; set it, e.g. `export {unset.group(1)}=/a/folder`"
        )
    path = Path(expanded)
    return path if path.is_absolute() else (relative_to / path).resolve()


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
