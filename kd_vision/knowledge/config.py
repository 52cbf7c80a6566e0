"""The settings of a store as a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kd_vision.core.validation import StrictModel

Verify = Literal["content", "size"]


class StoreConfig(StrictModel):
    """Stored predictions as a teacher; ``knowledge: FOLDER`` at the top level of a config is its short form.

    Attributes:
        store: folder that `kd-vision label` wrote.
        verify: how an image is identified with a labelled one. `content`: by the SHA-256 of its file. `size`: by
            file name, number of bytes, width and height, which is fast and misses a change that keeps all of them.
        same_teacher: where the config has online teachers, refuse a store of any other teacher.
    """

    family: Literal["store"] = "store"
    store: Path
    verify: Verify = "content"
    same_teacher: bool = False
