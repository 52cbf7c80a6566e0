"""More than one look at an image: tiles for small objects, mirrored and resized looks for sureness.

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
from kd_vision.teachers.tiling import TileDetections, Window, cut_out, filled, merge_tiles, windows


class Tiled(BlackBoxDetector):
    """Detects on overlapping square tiles and puts the boxes together.

    Args:
        source: what looks at the tiles.
        tile: side of a tile in pixels.
        overlap: share of a tile that its neighbour sees too.
        whole: look at the whole image as well, resized to one tile.
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
            RequestError: the source does not take tiles of that size, or no size is known.
        """
        only = source.fixed_size
        size = config.size or only
        if size is None:
            raise RequestError(f"{where}.size: is missing; give the side of a tile in pixels, e.g. 640")
        if only is not None and size != only:
            raise RequestError(f"{where}.size: the file takes images of {only}x{only} pixels alone, given {size}")
        source.spec.refuse_wrong_size(size, f"{where}.size")
        return cls(source, size, config.overlap, config.whole)

    def to(self, device: torch.device | str) -> Tiled:
        """Move the source."""
        self.source.to(device)
        return self

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `BlackBoxDetector.detect`."""
        height, width = images.shape[-2:]
        seen: list[list[TileDetections]] = [[] for _ in images]
        for window in windows(height, width, self.tile, self.overlap):
            for image, found in enumerate(self.source.detect(cut_out(images, window, self.tile), options)):
                seen[image].append(TileDetections.through(window, found, height, width))
        several = len(seen[0]) > 1 if seen else False
        if self.whole and several:
            for image, found in enumerate(self._shrunk(images, options)):
                seen[image].append(TileDetections(found, np.zeros(len(found), np.bool_), Window(0, 0, width, height)))
        return [merge_tiles(each, options) for each in seen]

    def _shrunk(self, images: Tensor, options: PredictOptions) -> list[Detections]:
        height, width = images.shape[-2:]
        longest = max(height, width)
        square = filled(images, longest, longest)
        small = resize_batch(square, self.tile, self.tile)
        factor = longest / self.tile
        return [_mapped(found, factor, factor, height, width) for found in self.source.detect(small, options)]


class Augmented(BlackBoxDetector):
    """Looks at an image several times, mirrored and resized, and fuses what it found.

    Args:
        source: what looks.
        flip: look at the mirror image too.
        scales: sizes to look at, as factors.
        iou: overlap from which boxes of two looks are the same object.
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
            RequestError: the source's file takes one size alone, and others are asked for.
        """
        only = source.fixed_size
        if only is not None and config.scales != (1.0,):
            raise RequestError(
                f"{where}.scales: the file takes images of {only}x{only} pixels alone; leave scales out, or add tiles"
            )
        return cls(source, config.flip, config.scales, config.iou)

    def resolve_input_size(self, given: int | None) -> int | None:
        """See `BlackBoxDetector.resolve_input_size`."""
        return self.source.resolve_input_size(given)

    def to(self, device: torch.device | str) -> Augmented:
        """Move the source."""
        self.source.to(device)
        return self

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        """See `BlackBoxDetector.detect`."""
        looks = [self._look(images, scale, mirrored, options) for scale in self.scales for mirrored in self._mirrored]
        return [top_k_detections(fuse(found, self.iou), options) for found in zip(*looks, strict=True)]

    @property
    def _mirrored(self) -> tuple[bool, ...]:
        return (False, True) if self.flip else (False,)

    def _look(self, images: Tensor, scale: float, mirrored: bool, options: PredictOptions) -> list[Detections]:
        height, width = images.shape[-2:]
        multiple = self.spec.size_multiple
        sides = [max(1, round(side * scale / multiple)) * multiple for side in (height, width)]
        if scale == 1.0 or sides == [height, width]:
            sides, shown = [height, width], images
        else:
            shown = resize_batch(images, *sides)
        found = self.source.detect(shown.flip(-1) if mirrored else shown, options)
        found = [_unmirrored(one, sides[1]) for one in found] if mirrored else found
        return [_mapped(one, width / sides[1], height / sides[0], height, width) for one in found]


def _boxes_only(spec: DetectorSpec) -> DetectorSpec:
    return replace(spec, provides=frozenset({"detections"}), level_channels={}, level_strides={}, level_anchors={})


def _unmirrored(found: Detections, width: int) -> Detections:
    boxes = found.boxes_xyxy.copy()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return replace(found, boxes_xyxy=boxes)


def _mapped(found: Detections, factor_x: float, factor_y: float, height: int, width: int) -> Detections:
    if factor_x == factor_y == 1.0:
        return found
    factor, limit = np.array([factor_x, factor_y] * 2), np.array([width, height] * 2)
    return replace(found, boxes_xyxy=np.clip(found.boxes_xyxy * factor, 0, limit).astype(np.float32))
