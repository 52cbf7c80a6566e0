"""Several passes over an image: tiles for small objects, and test-time augmentation by flips and scales.

Shapes: B images, C channels, H W pixels, M boxes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import Detector
from kd_vision.detectors.resize import resize_batch
from kd_vision.teachers.base import BlackBoxDetector
from kd_vision.teachers.fusion import fuse, top_k_detections
from kd_vision.teachers.options import TilesConfig, TtaConfig
from kd_vision.teachers.tiling import TileDetections, Window, crop, merge_tiles, pad, windows


class Tiled(BlackBoxDetector):
    """Detects on overlapping square tiles and merges the boxes.

    Args:
        source: detector that is run on the tiles.
        tile: side of a tile in pixels.
        overlap: share of a tile that is also in its neighbour.
        whole: also run on the whole image, resized to one tile.
    """

    def __init__(
        self, source: Detector | BlackBoxDetector, tile: int, overlap: float = 0.2, whole: bool = False
    ) -> None:
        self.source = source
        self.tile = tile
        self.overlap = overlap
        self.whole = whole
        self.spec = replace(_boxes_only(source.spec), size_multiple=1)

    @classmethod
    def of(cls, source: Detector | BlackBoxDetector, config: TilesConfig, where: str) -> Tiled:
        """Build from a config.

        Raises:
            RequestError: the source does not take tiles of that size, or no size is given.
        """
        fixed = source.fixed_size
        size = config.size or fixed
        if size is None:
            raise RequestError(f"{where}.size: is missing; give the side of a tile in pixels, e.g. 640")
        if fixed is not None and size != fixed:
            raise RequestError(f"{where}.size: the file only takes images of {fixed}x{fixed} pixels, given {size}")
        source.spec.refuse_wrong_size(size, f"{where}.size")
        return cls(source, size, config.overlap, config.whole)

    def to(self, device: torch.device | str) -> Tiled:
        """Move the source."""
        self.source.to(device)
        return self

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `BlackBoxDetector.detect`."""
        height, width = images.shape[-2:]
        tiles: list[list[TileDetections]] = [[] for _ in images]
        for window in windows(height, width, self.tile, self.overlap):
            for image, detections in enumerate(self.source.detect(crop(images, window, self.tile), options)):
                tiles[image].append(TileDetections.of_tile(window, detections, height, width))
        several = len(tiles[0]) > 1 if tiles else False
        if self.whole and several:
            whole = Window(0, 0, width, height)
            for image, detections in enumerate(self._detect_whole(images, options)):
                tiles[image].append(TileDetections(detections, np.zeros(len(detections), np.bool_), whole))
        return [merge_tiles(each, options) for each in tiles]

    def _detect_whole(self, images: Tensor, options: PredictOptions) -> list[Detections]:
        height, width = images.shape[-2:]
        longest = max(height, width)
        square = pad(images, longest, longest)
        small = resize_batch(square, self.tile, self.tile)
        factor = longest / self.tile
        return [_scaled(one, factor, factor, height, width) for one in self.source.detect(small, options)]


class Augmented(BlackBoxDetector):
    """Detects on several views of an image, mirrored and resized, and fuses the boxes.

    Args:
        source: detector that is run on the views.
        flip: also run on the mirrored image.
        scales: sizes of the views, as factors.
        iou: overlap from which boxes of two views are the same object.
    """

    def __init__(
        self,
        source: Detector | BlackBoxDetector,
        flip: bool = True,
        scales: tuple[float, ...] = (1.0,),
        iou: float = 0.55,
    ) -> None:
        self.source = source
        self.flip = flip
        self.scales = scales
        self.iou = iou
        self.spec = _boxes_only(source.spec)
        self.fixed_size = source.fixed_size

    @classmethod
    def of(cls, source: Detector | BlackBoxDetector, config: TtaConfig, where: str) -> Augmented:
        """Build from a config.

        Raises:
            RequestError: the source's file takes a single size, and other scales are given.
        """
        fixed = source.fixed_size
        if fixed is not None and config.scales != (1.0,):
            raise RequestError(
                f"{where}.scales: the file only takes images of {fixed}x{fixed} pixels; leave scales out, or add tiles"
            )
        return cls(source, config.flip, config.scales, config.iou)

    def resolve_input_size(self, default_size: int | None) -> int | None:
        """See `BlackBoxDetector.resolve_input_size`."""
        return self.source.resolve_input_size(default_size)

    def to(self, device: torch.device | str) -> Augmented:
        """Move the source."""
        self.source.to(device)
        return self

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `BlackBoxDetector.detect`."""
        flips = (False, True) if self.flip else (False,)
        views = [self._detect_view(images, scale, flip, options) for scale in self.scales for flip in flips]
        return [top_k_detections(fuse(detections, self.iou), options) for detections in zip(*views, strict=True)]

    def _detect_view(self, images: Tensor, scale: float, flip: bool, options: PredictOptions) -> list[Detections]:
        """Detect on one view of the images; boxes are in pixels of `images`."""
        height, width = images.shape[-2:]
        multiple = self.spec.size_multiple
        size = [max(1, round(side * scale / multiple)) * multiple for side in (height, width)]
        if scale == 1.0 or size == [height, width]:
            size, view = [height, width], images
        else:
            view = resize_batch(images, *size)
        detections = self.source.detect(view.flip(-1) if flip else view, options)
        detections = [_unflipped(one, size[1]) for one in detections] if flip else detections
        return [_scaled(one, width / size[1], height / size[0], height, width) for one in detections]


def _boxes_only(spec: DetectorSpec) -> DetectorSpec:
    return replace(spec, provides=frozenset({"detections"}), level_channels={}, level_strides={}, level_anchors={})


def _unflipped(detections: Detections, width: int) -> Detections:
    boxes = detections.boxes_xyxy.copy()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return replace(detections, boxes_xyxy=boxes)


def _scaled(detections: Detections, factor_x: float, factor_y: float, height: int, width: int) -> Detections:
    """Return the boxes in an image of another size, `height` x `width`, clipped to it."""
    if factor_x == factor_y == 1.0:
        return detections
    factor, limit = np.array([factor_x, factor_y] * 2), np.array([width, height] * 2)
    return replace(detections, boxes_xyxy=np.clip(detections.boxes_xyxy * factor, 0, limit).astype(np.float32))
