"""Tiles and repeated looks, with a source that sees boxes painted into the image."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from kd_vision.core.batch import ImageBatch, Letterbox, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import BatchDetections, Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.runtime.letterbox import PAD_VALUE
from kd_vision.teachers.augmented import Augmented, Tiled
from kd_vision.teachers.base import BlackBoxDetector
from kd_vision.teachers.options import TilesConfig, TtaConfig
from kd_vision.teachers.pseudo_labels import classwise_nms
from kd_vision.teachers.tiling import TileDetections, Window, merge_tiles, windows

SPEC = DetectorSpec("fake", "eyes", ("a", "b"), {"P3": 8}, {"P3": 8}, frozenset({"features", "detections"}))


class Eyes(BlackBoxDetector):
    """Sees each level of brightness in the red channel as one box: the score is the level, the label 0."""

    def __init__(self, size: int | None = None) -> None:
        self.spec = SPEC
        self.fixed_size = size
        self.shown: list[tuple[int, ...]] = []

    def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
        self.shown.append(tuple(images.shape))
        return [self._see(image[0]) for image in images]

    def _see(self, red: Tensor) -> Detections:
        levels = [level for level in (red * 10).round().unique().tolist() if 1 <= level <= 10]
        boxes = []
        for level in levels:
            rows, columns = ((red * 10).round() == level).nonzero(as_tuple=True)
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            boxes.append([float(edge) for edge in edges])
        order = np.argsort([-level for level in levels], kind="stable")
        return detections(boxes, [level / 10 for level in levels], np.zeros(len(levels))).take(order)


class DullEyes(Eyes):
    """Takes everything brighter than 0.3 for one box of score 0.6: not confused by soft edges."""

    def _see(self, red: Tensor) -> Detections:
        bright = (red > 0.3).float() * 0.6
        return super()._see(bright)


def detections(boxes: Any, scores: Any, labels: Any) -> Detections:
    return Detections(
        np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32), np.asarray(labels, np.int64)
    )


def painted(*boxes: tuple[int, int, int, int, float], side: int = 128, width: int | None = None) -> Tensor:
    image = torch.zeros(1, 3, side, width or side)
    for left, top, right, bottom, level in boxes:
        image[0, 0, top:bottom, left:right] = level
    return image


def rows(found: Detections) -> list[list[float]]:
    return [[*map(float, box), round(float(score), 4)] for box, score in zip(found.boxes_xyxy, found.scores)]


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "starts"),
    [
        (128, 64, 0.25, [0, 48, 64]),
        (128, 64, 0.0, [0, 64]),
        (100, 64, 0.5, [0, 32, 36]),
        (64, 64, 0.2, [0]),
        (40, 64, 0.2, [0]),
    ],
)
def test_tiles_start_where_they_should(side: int, tile: int, overlap: float, starts: list[int]) -> None:
    found = list(windows(side, side, tile, overlap))
    assert [w.left for w in found[: len(starts)]] == starts
    assert [w.top for w in found[:: len(starts)]] == starts
    assert len(found) == len(starts) ** 2


@pytest.mark.parametrize("sides", [(128, 128), (200, 130), (65, 300)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.9])
def test_tiles_cover_every_pixel_and_neighbours_share_enough(sides: tuple[int, int], overlap: float) -> None:
    seen = np.zeros(sides, int)
    found = list(windows(*sides, 64, overlap))
    for window in found:
        assert 0 <= window.left < window.right <= sides[1]
        assert 0 <= window.top < window.bottom <= sides[0]
        seen[window.top : window.bottom, window.left : window.right] += 1
    assert seen.min() >= 1
    lefts = sorted({window.left for window in found})
    assert all(first + 64 - second >= overlap * 64 - 1 for first, second in pairwise(lefts))


def test_each_object_is_found_once_where_it_is() -> None:
    """Within one tile, in the band of two, in the corner of four, on the border of the image."""
    wanted = [(5, 6, 15, 16, 1.0), (50, 4, 62, 12, 0.8), (50, 50, 60, 60, 0.6), (118, 100, 128, 128, 0.4)]
    tiled = Tiled(Eyes(), 64, 0.25)
    assert rows(tiled.detect(painted(*wanted))[0]) == [[*map(float, box[:4]), box[4]] for box in wanted]


def test_a_part_goes_where_another_tile_saw_the_whole() -> None:
    """Tiles start at 0, 48 and 64: the border at 64 cuts the box for two of them, the middle one sees it whole."""
    source = Eyes()
    box = (56, 10, 72, 20, 0.5)
    assert rows(Tiled(source, 64, 0.25).detect(painted(box))[0]) == [[56, 10, 72, 20, 0.5]]
    assert source.shown == [(1, 3, 64, 64)] * 9


def test_parts_of_an_object_larger_than_a_tile_become_one() -> None:
    box = (10, 20, 120, 110, 0.7)
    assert rows(Tiled(Eyes(), 64, 0.25).detect(painted(box))[0]) == [[10, 20, 120, 110, 0.7]]


def test_a_box_at_the_images_own_border_is_whole() -> None:
    boxes = detections([[0, 10, 9, 20], [55, 10, 64, 20], [20, 0, 30, 9], [20, 55, 30, 64]], [0.9] * 4, [0] * 4)
    tile = [
        TileDetections.of_tile(Window(*corner, corner[0] + 64, corner[1] + 64), boxes, 128, 128)
        for corner in ((0, 0), (64, 64))
    ]
    assert tile[0].truncated.tolist() == [False, True, False, True]
    assert tile[1].truncated.tolist() == [True, False, True, False]


def test_parts_of_different_objects_or_classes_stay_apart() -> None:
    """Left tile 0..64, right tile 48..112: two parts that end at the border, but at other heights."""
    left, right = Window(0, 0, 64, 64), Window(48, 0, 112, 64)
    seen = [
        TileDetections.of_tile(left, detections([[30, 0, 64, 20], [30, 40, 64, 60]], [0.9, 0.8], [0, 0]), 64, 112),
        TileDetections.of_tile(right, detections([[0, 20, 30, 40], [0, 40, 30, 60]], [0.7, 0.6], [0, 1]), 64, 112),
    ]
    assert [one.truncated.tolist() for one in seen] == [[True, True], [True, True]]
    found = merge_tiles(seen, PredictOptions())
    assert len(found) == 4
    assert sorted(rows(found), reverse=True)[0] == [48, 40, 78, 60, 0.6]


def test_parts_that_agree_become_one_only_where_both_are_sure_and_each_tile_says_one() -> None:
    """Bars from 10 to 90, across the border at 64; the bands of the two tiles meet from 48 to 64."""
    left, right = Window(0, 0, 64, 64), Window(48, 0, 112, 64)
    bar, rest = [10, 10, 64, 30], [0, 10, 42, 30]

    def found(first: Any, second: Any) -> list[list[float]]:
        seen = [TileDetections.of_tile(left, first, 64, 112), TileDetections.of_tile(right, second, 64, 112)]
        return rows(merge_tiles(seen, PredictOptions(nms_iou=0.9)))

    assert found(detections([bar], [0.9], [0]), detections([rest], [0.3], [0])) == [[10, 10, 90, 30, 0.9]]
    assert len(found(detections([bar], [0.9], [0]), detections([rest], [0.2], [0]))) == 2
    two = detections([bar, [30, 10, 64, 30]], [0.9, 0.8], [0, 0])  # of one tile: two objects
    assert len(found(two, detections([], [], []))) == 2


@pytest.mark.parametrize(
    ("rest", "joined"),
    [
        ([0, 16, 42, 36], [10, 10, 90, 36]),  # in the band 14 rows of 26 are common: 0.54
        ([0, 17, 42, 37], None),  # 13 of 27: 0.48
        ([0, 0, 42, 38], [10, 0, 90, 38]),  # 20 of 38: 0.53
        ([0, 0, 42, 42], None),  # 20 of 42: 0.48
    ],
)
def test_parts_are_joined_from_half_an_overlap_within_the_band_that_both_tiles_see(
    rest: list[float], joined: list[float] | None
) -> None:
    """A bar of rows 10 to 30 in the left tile; the band is from 48 to 64, 16 wide."""
    bar = TileDetections.of_tile(Window(0, 0, 64, 64), detections([[10, 10, 64, 30]], [0.9], [0]), 64, 112)
    other = TileDetections.of_tile(Window(48, 0, 112, 64), detections([rest], [0.8], [0]), 64, 112)
    for seen in ([bar, other], [other, bar]):
        found = merge_tiles(seen, PredictOptions(nms_iou=0.9))
        if joined is None:
            left, top, right, bottom = rest
            assert rows(found) == [[10, 10, 64, 30, 0.9], [left + 48, top, right + 48, bottom, 0.8]]
        else:
            assert rows(found) == [[*joined, 0.9]]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(16, 128), st.floats(0, 0.95))
def test_windows_cover_any_image(height: int, width: int, tile: int, overlap: float) -> None:
    seen = np.zeros((height, width), np.bool_)
    for window in windows(height, width, tile, overlap):
        assert window.right - window.left == window.bottom - window.top == tile
        assert window.left == 0 or window.right <= width
        assert window.top == 0 or window.bottom <= height
        seen[window.top : window.bottom, window.left : window.right] = True
    assert seen.all()


@given(st.data(), st.integers(70, 220), st.integers(70, 220), st.floats(0, 0.6))
def test_an_object_that_one_tile_sees_whole_is_found_once(
    data: st.DataObject, height: int, width: int, overlap: float
) -> None:
    """Every tile reports the part that it sees, as sure as of the whole."""
    left, top = data.draw(st.integers(0, width - 5)), data.draw(st.integers(0, height - 5))
    right = data.draw(st.integers(left + 4, min(left + 50, width)))
    bottom = data.draw(st.integers(top + 4, min(top + 50, height)))
    seen = []
    for window in windows(height, width, 64, overlap):
        corners = np.clip([left, top, right, bottom], (window.left, window.top) * 2, (window.right, window.bottom) * 2)
        part = corners - [window.left, window.top] * 2
        solid = part[2] > part[0] and part[3] > part[1]
        found = detections([part], [0.8], [0]) if solid else Detections.empty()
        seen.append(TileDetections.of_tile(window, found, height, width))
    assume(any(len(one.detections) and not one.truncated[0] for one in seen))
    assert rows(merge_tiles(seen, PredictOptions())) == [[left, top, right, bottom, 0.8]]


def test_a_whole_that_is_hardly_sure_does_not_replace_a_part() -> None:
    left, right = Window(0, 0, 64, 64), Window(32, 0, 96, 64)
    part = detections([[40, 10, 64, 20]], [0.9], [0])
    for score, wanted in ((0.2, 2), (0.3, 1)):
        whole = detections([[8, 10, 40, 20]], [score], [0])
        seen = [TileDetections.of_tile(left, part, 64, 96), TileDetections.of_tile(right, whole, 64, 96)]
        assert len(merge_tiles(seen, PredictOptions(nms_iou=0.9))) == wanted


def test_class_probabilities_travel_with_the_boxes() -> None:
    probs = np.float32([[0.1, 0.9]])
    one = Detections(np.float32([[1, 1, 5, 5]]), np.float32([0.9]), np.array([1]), probs)
    window = Window(32, 0, 64, 32)
    found = merge_tiles([TileDetections.of_tile(window, one, 32, 64)], PredictOptions())
    assert found.boxes_xyxy.tolist() == [[33, 1, 37, 5]]
    assert found.class_probs is not None
    assert found.class_probs.tolist() == probs.tolist()


def test_the_whole_image_is_seen_too_where_asked() -> None:
    source = Eyes()
    box = (0, 0, 96, 96, 0.5)
    found = Tiled(source, 32, 0.0, whole=True).detect(painted(box))[0]
    assert source.shown[-1] == (1, 3, 32, 32)
    assert len(source.shown) == 17
    assert len(found) == 1
    np.testing.assert_allclose(rows(found)[0], [0, 0, 96, 96, 0.5], atol=4)  # a pixel of the shrunk image
    once = Eyes()
    Tiled(once, 128, 0.2, whole=True).detect(painted(box))
    assert len(once.shown) == 1  # a single tile is the whole image


def test_an_image_smaller_than_a_tile_is_filled_with_the_letterboxs_gray() -> None:
    seen: list[Tensor] = []

    class Camera(Eyes):
        def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
            seen.append(images)
            return [detections([[2, 2, 9, 9], [50, 50, 60, 60]], [0.9, 0.8], [0, 0])]

    found = Tiled(Camera(), 64).detect(painted(side=40, width=48))[0]
    assert rows(found) == [[2, 2, 9, 9, 0.9]]  # the second lies beyond the image
    assert seen[0].shape == (1, 3, 64, 64)
    assert (seen[0][..., :40, :48] == 0).all()
    assert float(seen[0][0, 0, 50, 50]) == pytest.approx(PAD_VALUE / 255)


def test_a_batch_is_answered_image_by_image() -> None:
    images = torch.cat([painted((5, 5, 15, 15, 0.5)), painted(), painted((70, 70, 90, 90, 0.9))])
    assert [rows(one) for one in Tiled(Eyes(), 64).detect(images)] == [
        [[5, 5, 15, 15, 0.5]],
        [],
        [[70, 70, 90, 90, pytest.approx(0.9)]],
    ]
    assert Tiled(Eyes(), 64).detect(images[:0]) == []


def test_thresholds_limit_what_is_put_together() -> None:
    image = painted((5, 5, 15, 15, 0.5), (70, 70, 90, 90, 0.9), (5, 100, 20, 120, 0.3))
    assert len(Tiled(Eyes(), 64).detect(image, PredictOptions(max_detections=2))[0]) == 2


def test_views_promise_boxes_only_and_no_more() -> None:
    for view in (Tiled(Eyes(), 64), Augmented(Eyes())):
        assert isinstance(view, BlackBoxDetector)
        assert view.spec.provides == {"detections"}
        assert view.spec.classes == SPEC.classes
        assert not view.spec.level_channels
    assert Tiled(Eyes(), 64).spec.size_multiple == 1
    assert Augmented(Eyes()).spec.size_multiple == SPEC.size_multiple


def test_predict_answers_in_pixels_of_the_original_image() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    batch = ImageBatch(
        (painted((40, 30, 60, 50, 1.0)) * 255).to(torch.uint8),
        Targets(none, none, torch.zeros(0, 4)),
        torch.ones(1, dtype=torch.bool),
        (1,),
        (Letterbox(216, 256, 0.5, 0.5, 0, 10),),
    )
    assert rows(Tiled(Eyes(), 64).predict(batch)[0]) == [[80, 40, 120, 80, 1.0]]


def test_a_mirrored_look_comes_back_exactly() -> None:
    wanted = [(5, 6, 15, 16, 1.0), (50, 4, 62, 12, 0.8)]
    source = Eyes()
    found = Augmented(source, flip=True).detect(painted(*wanted))[0]
    assert rows(found) == [[*map(float, box[:4]), box[4]] for box in wanted]
    assert len(source.shown) == 2


def test_an_object_that_one_of_two_looks_sees_is_half_as_sure() -> None:
    class OneEyed(Eyes):
        def detect(self, images: Tensor, options: PredictOptions = PredictOptions()) -> list[Detections]:
            found = super().detect(images, options)
            return [one.take(one.boxes_xyxy[:, 0] < 64) for one in found]

    found = Augmented(OneEyed()).detect(painted((10, 10, 20, 20, 0.8)))[0]
    assert rows(found) == [[10, 10, 20, 20, 0.4]]
    assert len(Augmented(OneEyed()).detect(painted((10, 10, 20, 20, 0.8)), PredictOptions(0.5))[0]) == 0


def test_scaled_looks_are_multiples_of_the_stride_and_come_back() -> None:
    source = DullEyes()
    found = Augmented(source, flip=False, scales=(1.0, 2.0, 0.6)).detect(painted((32, 32, 64, 96, 0.6)))[0]
    assert source.shown == [(1, 3, 128, 128), (1, 3, 256, 256), (1, 3, 64, 64)]
    assert len(found) == 1
    np.testing.assert_allclose(rows(found)[0], [32, 32, 64, 96, 0.6], atol=0.5)


def test_wrong_views_are_refused() -> None:
    def refused(kind: Any, source: BlackBoxDetector, config: Any) -> str:
        with pytest.raises(RequestError) as caught:
            kind.of(source, config, "teacher.view")
        return str(caught.value)

    assert refused(Tiled, Eyes(), TilesConfig()) == (
        "teacher.view.size: is missing; give the side of a tile in pixels, e.g. 640"
    )
    assert refused(Tiled, Eyes(416), TilesConfig(size=640)) == (
        "teacher.view.size: the file only takes images of 416x416 pixels, given 640"
    )
    assert (
        refused(Tiled, Eyes(), TilesConfig(size=100))
        == "teacher.view.size: 100 is not a multiple of 32, which eyes needs; use 96"
    )
    assert refused(Augmented, Eyes(416), TtaConfig(scales=(1.0, 1.5))) == (
        "teacher.view.scales: the file only takes images of 416x416 pixels; leave scales out, or add tiles"
    )
    assert Tiled.of(Eyes(416), TilesConfig(), "teacher.view").tile == 416
    for scales in ((), (1.0, -1.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match="expected different factors above 0"):
            TtaConfig(scales=scales)


def test_tiles_of_a_fixed_size_may_be_looked_at_scaled() -> None:
    source = DullEyes(64)
    view = Augmented.of(Tiled.of(source, TilesConfig(), "t"), TtaConfig(flip=False, scales=(1.0, 2.0)), "t")
    found = view.detect(painted((30, 30, 60, 70, 0.6)))[0]
    assert set(source.shown) == {(1, 3, 64, 64)}
    assert len(found) == 1
    np.testing.assert_allclose(rows(found)[0], [30, 30, 60, 70, 0.6], atol=0.5)


def test_places_to_be_ignored_stay_marked_and_apart_from_objects() -> None:
    """One tile says where to learn nothing, the other sees an object in the same place; each has one elsewhere."""
    window = Window(0, 0, 64, 64)
    place = [10, 10, 30, 30]
    marked = Detections(
        np.float32([place, [40, 40, 50, 50]]), np.float32([0.9, 0.8]), np.array([0, 0]), None, np.array([True, True])
    )
    plain = detections([place], [0.7], [0])
    found = merge_tiles([TileDetections.of_tile(window, one, 64, 64) for one in (marked, plain)], PredictOptions())
    assert rows(found) == [[*place, 0.9], [40, 40, 50, 50, 0.8], [*place, 0.7]]
    assert found.ignore is not None
    assert found.ignore.tolist() == [True, True, False]


def test_a_place_to_be_ignored_neither_replaces_nor_completes_a_part() -> None:
    """Left tile 0..64, right tile 32..96: the marked place covers the part, and agrees with it in the band."""
    left, right = Window(0, 0, 64, 64), Window(32, 0, 96, 64)
    part = detections([[40, 10, 64, 20]], [0.9], [0])
    for box in ([8, 10, 40, 20], [8, 10, 64, 20]):  # whole in the right tile; up to its border
        marked = Detections(np.float32([box]), np.float32([0.9]), np.array([0]), None, np.array([True]))
        seen = [TileDetections.of_tile(left, part, 64, 96), TileDetections.of_tile(right, marked, 64, 96)]
        found = merge_tiles(seen, PredictOptions(nms_iou=0.9))
        assert sorted(found.boxes_xyxy[:, [0, 2]].tolist()) == [[40, 64], [40, box[2] + 32]]


def test_overlapping_boxes_are_merged_among_objects_and_among_ignored_places() -> None:
    boxes = np.tile(np.float32([0, 0, 10, 10]), (4, 1))
    found = Detections(
        boxes, np.float32([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 1, 0]), None, np.array([True, False, True, False])
    )
    kept = classwise_nms(BatchDetections.of([found, found.take(np.array([3]))]), 0.5)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8, 0.6])  # boxes of two images never meet
    assert kept.image_index.tolist() == [0, 0, 1]
