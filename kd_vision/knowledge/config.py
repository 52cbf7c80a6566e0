"""The part of a run config that names a store."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kd_vision.core.validation import StrictModel

Verify = Literal["content", "size"]


class StoreConfig(StrictModel):
    """Stored predictions as a teacher; ``knowledge: FOLDER`` at the top of a config is short for one.

    Attributes:
        store: folder that `kd-vision label` wrote.
        verify: how an image is known to be the one that was labelled. `content`: the SHA-256 of its file. `size`:
            name, bytes and pixels of the file, which is quick, and blind to a change that keeps them all.
        same_teacher: refuse a store that was made by none of the config's online teachers, where it has some.
    """

    family: Literal["store"] = "store"
    store: Path
    verify: Verify = "content"
    same_teacher: bool = False
