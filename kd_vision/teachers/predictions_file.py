"""A detector that is only what it said: boxes by image id, e.g. read from a COCO result file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.detectors.base import PredictOptions


class PredictionsConfig(StrictModel):
    """A COCO result file that anything made; entries may carry `class_probs`, see `read_coco_results`."""

    family: Literal["predictions"] = "predictions"
    weights: Path


class PredictionsFile:
    """Answers with the boxes a file holds for an image, whatever its pixels.

    `PredictOptions` says how dense predictions become final boxes; these are final already, so the
    file is given whole: a figure measured from it equals COCOeval on the same file.

    Args:
        found: boxes by image id, in pixels of the original image.
        classes: names in label order.
        path: of the file, for messages and the name.
    """

    def __init__(self, found: Mapping[int, Detections], classes: Sequence[str], path: Path) -> None:
        self._found = dict(found)
        self.path = path
        self.spec = DetectorSpec(
            family="predictions",
            name=path.stem,
            classes=tuple(classes),
            level_channels={},
            level_strides={},
            provides=frozenset({"detections"}),
            size_multiple=1,
            end_to_end=True,
        )

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return the boxes of each image of the batch, in pixels of the original image.

        Raises:
            RequestError: the batch has no image ids, or the file was not made for one of its images.
        """
        if len(batch.image_ids) != len(batch):
            raise RequestError(f"{self.path}: answers by image id, and these images have none; give a data set")
        missing = [str(image_id) for image_id in batch.image_ids if image_id not in self._found]
        if missing:
            raise RequestError(
                f"{self.path}: was not read for image id {', '.join(missing)}; evaluate it on the split it was made for"
            )
        return [self._found[image_id] for image_id in batch.image_ids]


def build(config: PredictionsConfig, classes: tuple[str, ...] | None, where: str) -> NoReturn:
    """Refuse: the boxes belong to images by their id, so they are attached to the data as stored knowledge.

    Raises:
        RequestError: always.
    """
    raise RequestError(
        f"{where}: {config.weights} answers by image id and looks at no pixels, so it can be neither a member of an "
        f"ensemble nor shown tiles; give it as the teacher itself, or as 'knowledge'"
    )
