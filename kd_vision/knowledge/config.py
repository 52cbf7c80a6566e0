"""The settings of stores as teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kd_vision.core.validation import StrictModel

Verify = Literal["content", "size"]
DENSE_MANIFEST = "dense.json"
"""File by which a store of dense labels is recognised."""


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


class DenseLabelsConfig(StrictModel):
    """Stored dense predictions on the training batches as a teacher; `knowledge` takes such a folder too.

    Attributes:
        store: folder that `kd-vision label --dense` wrote, or one with a folder ``seed<k>`` for each seed.
        same_teacher: where the config has online teachers, refuse a store of any other teacher.
    """

    family: Literal["dense_labels"] = "dense_labels"
    store: Path
    same_teacher: bool = False


def is_dense_store(folder: Path) -> bool:
    """Return whether a folder holds dense labels, of one seed or of several."""
    return (folder / DENSE_MANIFEST).is_file() or bool(seed_folders(folder))


def seed_folders(folder: Path) -> list[Path]:
    """Return the folders ``seed<k>`` of a store of several seeds; empty where it has one."""
    if (folder / DENSE_MANIFEST).is_file():
        return []
    return sorted(path.parent for path in folder.glob(f"seed*/{DENSE_MANIFEST}"))


def seeds_store(folder: Path, seed: int) -> Path | None:
    """Return the folder of a seed's dense labels; None: there are those of other seeds alone."""
    if not seed_folders(folder):
        return folder
    own = folder / f"seed{seed}"
    return own if (own / DENSE_MANIFEST).is_file() else None
