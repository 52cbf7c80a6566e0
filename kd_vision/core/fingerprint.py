"""Fingerprint of a configuration: a hash over its settings and the content of its files."""

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

    The name and place of a file do not count; its bytes do, and those of the external weights of an ONNX file. A
    folder counts as all its files, without unfinished ones (``.part``). A string that is the absolute path of an
    existing file or folder counts as that path.

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
    """Turn a value into plain JSON values, files into their hashes."""
    if isinstance(value, Path) or (isinstance(value, str) and _is_existing_path(value)):
        return {"sha256": _content_hash(Path(value))}
    if isinstance(value, BaseModel):
        excluded: frozenset[str] = getattr(type(value), "not_in_fingerprint", frozenset())
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields if name not in excluded}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Set):
        return sorted((_plain(inner) for inner in value), key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} has no fingerprint")


def _is_existing_path(text: str) -> bool:
    return len(text) < _LONGEST_PATH and Path(text).is_absolute() and Path(text).exists()


def _content_hash(path: Path) -> str:
    if path.is_dir():
        return _hash_files(path, sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".part"))
    weights = _external_weights(path) if path.suffix == ".onnx" else []
    return _hash_files(path.parent, [path, *weights]) if weights else file_sha256(path)


def _hash_files(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\n{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _external_weights(path: Path) -> list[Path]:
    """Return the files of external data of an ONNX file, in which large models and torch's exporter keep weights."""
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # damaged, or not ONNX: the code that opens it reports the error
        return []
    names = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    return [path.parent / name for name in sorted(names)]
