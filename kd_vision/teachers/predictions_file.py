"""A COCO result file of any model, boxes by image id, as a model to evaluate and as an offline teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import StrictModel
from kd_vision.data.coco_results import read_coco_results
from kd_vision.data.records import DetectionData, ImageRecord


class PredictionsConfig(StrictModel):
    """A COCO result file of any model; entries may have `class_probs`, see `read_coco_results`."""

    family: Literal["predictions"] = "predictions"
    weights: Path


class PredictionsFile:
    """Returns the boxes that a file has for an image; pixels are not used.

    The boxes are final, so that `PredictOptions` are not applied: numbers measured from them equal those of COCOeval
    on the same file.

    Args:
        detections: boxes by image id, in pixels of the original image; one for every image of `data`.
        data: the split of the image ids; labels are indices of its classes.
        path: of the file, for messages and for the name of the spec.
    """

    missing_classes: tuple[str, ...] = ()
    score_threshold = 0.0

    def __init__(self, detections: Mapping[int, Detections], data: DetectionData, path: Path) -> None:
        self._by_id = dict(detections)
        # By path for training: images of another source may have the same ids.
        self._by_path = {image.path: detections[image.image_id] for image in data.images}
        self._split = data.name
        self.classes = data.classes
        self.path = path
        self.spec = DetectorSpec(
            family="predictions",
            name=path.stem,
            classes=data.classes,
            level_channels={},
            level_strides={},
            provides=frozenset({"detections"}),
            size_multiple=1,
            end_to_end=True,
        )

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """Return the boxes of each image of the batch, in pixels of the original image.

        Raises:
            RequestError: the batch has no image ids, or the file has no predictions for one of its images.
        """
        if len(batch.image_ids) != len(batch):
            raise RequestError(f"{self.path}: holds boxes by image id, and these images have no ids; give a data set")
        missing = [str(image_id) for image_id in batch.image_ids if image_id not in self._by_id]
        if missing:
            raise RequestError(
                f"{self.path}: has no predictions for image id {', '.join(missing)}; evaluate it on the split it "
                f"was made for"
            )
        return [self._by_id[image_id] for image_id in batch.image_ids]

    def of(self, record: ImageRecord) -> Detections:
        """See `PrecomputedBoxes.of`."""
        if record.path not in self._by_path:
            raise RequestError(
                f"{record.path}: is not among the images of '{self._split}', for which {self.path} was made; store "
                f"predictions of other images with `kd-vision label`, and give the store as 'knowledge:'"
            )
        return self._by_path[record.path]


def read_predictions(path: Path, data: DetectionData) -> PredictionsFile:
    """Read a COCO result file of a split; an image without an entry has no boxes.

    Raises:
        RequestError: the file cannot be read, or an entry is wrong.
    """
    return PredictionsFile(read_coco_results(path, data), data, path)


def build(config: PredictionsConfig, train: DetectionData, where: str) -> PredictionsFile:
    """Read the file as predictions of the training split; see `read_predictions`."""
    return read_predictions(config.weights, train)
