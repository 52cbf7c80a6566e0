"""Whether two teachers are the same: a hash of everything that decides what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kd_vision.core.errors import RequestError

_CHUNK = 1 << 20
_LONGEST_PATH = 4096


def fingerprint(config: Any) -> str:
    """Return a SHA-256 over settings and the content of every file they name.

    Where a file lies and what it is called changes nothing; its bytes do, and those of the files beside an ONNX
    file that hold its weights. A folder stands for all files in it, but for unfinished ones. A text that is the
    absolute path of something that exists counts as that path.

    Args:
        config: a pydantic model, mapping, sequence, path or plain value, nested at will.

    Raises:
        RequestError: a file is missing.
    """
    text = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        RequestError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Turn a value into what JSON can hold, files into their hashes."""
    if isinstance(value, Path) or (isinstance(value, str) and _is_there(value)):
        return {"sha256": _content(Path(value))}
    if isinstance(value, BaseModel):
        idle: frozenset[str] = getattr(type(value), "not_in_fingerprint", frozenset())
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields if name not in idle}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Set):
        return sorted((_plain(inner) for inner in value), key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} has no fingerprint")


def _is_there(text: str) -> bool:
    return len(text) < _LONGEST_PATH and Path(text).is_absolute() and Path(text).exists()


def _content(path: Path) -> str:
    if path.is_dir():
        return _all_of(path, sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".part"))
    beside = _weights_beside(path) if path.suffix == ".onnx" else []
    return _all_of(path.parent, [path, *beside]) if beside else file_sha256(path)


def _all_of(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\n{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _weights_beside(path: Path) -> list[Path]:
    """Files that hold the weights of an ONNX file, as large models and torch's exporter keep them."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # torn, or no ONNX file: whoever opens it says what is wrong with it
        return []
    named = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return [path.parent / name for name in sorted(named)]
