"""The part of a run config that names a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from kd_vision.core.label_map import stringify_keys
from kd_vision.core.validation import StrictModel

Verify = Literal["content", "size"]


class KnowledgeConfig(StrictModel):
    """Stored knowledge to learn from instead of asking the teacher; a bare path means `store`.

    Attributes:
        store: folder that `kd-vision label` wrote.
        labels: see `build_label_map`: the teacher's class to the data's, ``drop`` or ``ignore``; None: same names.
        verify: how an image is known to be the one that was labelled. `content`: the SHA-256 of its file. `size`:
            name, bytes and pixels of the file, which is quick, and blind to a change that keeps them all.
    """

    store: Path
    labels: dict[str, str] | None = None
    verify: Verify = "content"

    @field_validator("labels", mode="before")
    @classmethod
    def _words(cls, labels: Any) -> Any:
        return stringify_keys(labels)

    @model_validator(mode="before")
    @classmethod
    def _bare_path(cls, given: Any) -> Any:
        return {"store": given} if isinstance(given, (str, Path)) else given
