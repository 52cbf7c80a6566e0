"""Files of weights: what they hold, opened without running their code, and copied into a network.

Importing this module loads no torch: the family, and the kind of head, of a file are known before torch is.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_vision.core.errors import RequestError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

NOTE = "kd_vision"
"""Key of the mapping that `Detector.save` writes beside the weights."""

_COUNTER = "num_batches_tracked"
_REFUSED = ("weights_only", "weights only", "unsupported global", "references types outside")
_OTHER_FAMILIES = {".onnx": "onnx", ".json": "predictions"}

Unpickle = Callable[[Path, bool], Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        source: the file, for messages.
        state: tensors by name; empty: there are none.
        model: the network itself, where the file holds it as a pickled object.
        note: description of the model that `Detector.save` wrote; empty in other files.
        trained_size: input side in pixels that the weights were trained at, where the file gives it.
    """

    source: str
    state: dict[str, Tensor] = field(default_factory=dict)
    model: nn.Module | None = None
    note: Mapping[str, Any] = field(default_factory=dict)
    trained_size: int | None = None


def read_weights(path: Path, trust: bool, where: str, unpickle: Unpickle | None = None) -> Checkpoint:
    """Read a file of weights.

    Args:
        path: the file.
        trust: load a pickle that needs classes outside the allow-list. Loading it runs its code.
        where: key of the config for messages, e.g. ``student``.
        unpickle: of a family whose files hold classes of its own: (path, trust) to the content; None: torch's.

    Raises:
        RequestError: the file is missing, unreadable, of another kind, or needs `trust`.
    """
    key = f"{where}.weights: {path}"
    if not path.is_file():
        raise RequestError(f"{key} does not exist; give a .pt file")
    if path.suffix in _OTHER_FAMILIES:
        family = _OTHER_FAMILIES[path.suffix]
        raise RequestError(f"{key} is not a .pt file; use it as a teacher with 'family: {family}'")
    try:
        content = (unpickle or _torch_load)(path, trust)
    except Exception as error:  # readers raise many kinds; the user needs one line
        if zipfile.is_zipfile(path) and any(sign in str(error).lower() for sign in _REFUSED):
            raise RequestError(
                f"{key} needs classes outside the allow-list; loading it would run its code; set trust: true if you "
                f"know who made it"
            ) from error
        raise RequestError(f"{key} cannot be read as a .pt file ({first_line(error)})") from error
    return _checkpoint(content, path)


def _torch_load(path: Path, trust: bool) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=not trust)


def _checkpoint(content: Any, path: Path) -> Checkpoint:
    from torch import nn

    if not isinstance(content, Mapping):
        return Checkpoint(str(path))
    note = _note_in(content)
    models = [content[key] for key in ("ema", "model") if isinstance(content.get(key), nn.Module)]
    return Checkpoint(
        source=str(path),
        state=_state_in(content),
        model=models[0] if models else None,
        note=note,
        trained_size=recorded_input_size(note.get("image_size") or _train_args(content).get("imgsz")),
    )


def _note_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    note = content.get(NOTE)
    return note if isinstance(note, Mapping) else {}


def _train_args(content: Mapping[str, Any]) -> Mapping[str, Any]:
    given = content.get("train_args")
    return given if isinstance(given, Mapping) else {}


def _state_in(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the tensors, at the top or where training scripts put them; empty: there are none."""
    from torch import Tensor

    for inner in (content.get("state_dict"), content.get("model"), content):
        if isinstance(inner, Mapping) and inner and all(isinstance(value, Tensor) for value in inner.values()):
            return dict(inner)
    return {}


def transfer(state: Mapping[str, Tensor], net: nn.Module, source: str, whole: bool, where: str) -> None:
    """Copy every tensor that fits by name and shape.

    Args:
        state: tensors to copy, by name.
        net: the network that receives them.
        source: file, for messages.
        whole: all tensors of the network must be given, as a teacher with random layers would teach noise. Else half
            of them: the new head of a student is what training is for.
        where: key of the config, for messages.

    Raises:
        RequestError: too few tensors fit.
    """
    wanted = net.state_dict()
    fitting = {name: value.float() for name, value in state.items() if _fits(value, wanted.get(name))}
    # Some networks rename tensors of older files while loading: only the missing keys tell what fits.
    missing = [name for name in net.load_state_dict(fitting, strict=False).missing_keys if _COUNTER not in name]
    total = sum(_COUNTER not in name for name in wanted)
    count = total - len(missing)
    if count < (total if whole else total // 2):
        raise RequestError(
            f"{where}.weights: only {count} of {total} tensors of {source} fit the model; give weights of the same "
            f"architecture"
        )


def _fits(value: Tensor, wanted: Tensor | None) -> bool:
    return wanted is None or value.shape == wanted.shape


def recorded_input_size(value: object) -> int | None:
    """Return the input side that a file records, a number or its digits; None: it records none, or two."""
    return int(str(value)) if str(value).isdigit() else None


def read_note(path: Path) -> Mapping[str, Any]:
    """Return the note that `Detector.save` wrote; empty for other files. No torch is loaded."""
    return _note_in(peek(path))


def peek(path: Path) -> Mapping[str, Any]:
    """Read the plain values of a file that ``torch.save`` wrote, without torch and without running its code.

    Numbers, text, lists and mappings come as they are. An object of a class comes as an `Opaque` with its attributes,
    whatever the class is: no class of the file is imported. Tensors come without their values.

    Returns:
        The top level of the file; empty: it is no such file, or its top level is no mapping.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                content = _InertUnpickler(file).load()
    except Exception:  # torn archives and pickles raise many kinds; `read_weights` reports what is wrong
        return {}
    return content if isinstance(content, Mapping) else {}


class Opaque(dict[Any, Any]):
    """An object of a file whose class was not imported. It takes whatever its pickle does to it and does nothing.

    Attributes:
        attributes: of the object.
    """

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.attributes: Mapping[str, Any] = {}

    def __call__(self, *_: Any) -> Opaque:
        return Opaque()

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, Mapping) else {}

    def append(self, _: Any) -> None:
        """Drop an item of a list."""

    def extend(self, _: Any) -> None:
        """Drop the items of a list."""

    def add(self, _: Any) -> None:
        """Drop an item of a set."""


class _InertUnpickler(pickle.Unpickler):
    """Makes an `Opaque` of everything that is not a plain value."""

    def find_class(self, module: str, name: str) -> Any:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else Opaque

    def persistent_load(self, pid: Any) -> Any:
        return None
