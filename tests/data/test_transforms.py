from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_vision.data.augment_config import AugmentConfig, HsvGains
from kd_vision.data.transforms import (
    AugmentedSample,
    Augmenter,
    Sample,
    jitter_colour,
    mosaic,
    scale_and_crop,
)

PLAIN = AugmentConfig(
    mosaic=0, scale=0, translate=0, horizontal_flip=0, degrade=0, hsv=HsvGains(hue=0, saturation=0, value=0)
)


def flat(value: int, width: int, height: int, boxes: list[list[float]]) -> Sample:
    image = np.full((height, width, 3), value, np.uint8)
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), value, np.int64))


def augmented(config: AugmentConfig, samples: list[Sample], seed: int, size: int = 64) -> AugmentedSample:
    augmenter = Augmenter(config, size, samples[0].image.shape[2])
    return augmenter(samples.__getitem__, 0, len(samples), np.random.default_rng(seed), True)


def test_mosaic_puts_four_images_around_the_centre() -> None:
    parts = [
        flat(10, 8, 6, [[0, 0, 4, 3], [1, 1, 8, 6]]),
        flat(20, 8, 4, [[2, 1, 6, 3]]),
        flat(30, 6, 8, [[1, 0, 2, 2]]),
        flat(40, 8, 8, [[4, 4, 8, 8]]),
    ]
    made = mosaic(parts, 8, (5, 7))
    # Left top corners: (-3, 1), (5, 3), (-1, 7), (5, 7) on a canvas of 16 x 16.
    expected = np.full((16, 16), 114)
    expected[1:7, 0:5] = 10
    expected[3:7, 5:13] = 20
    expected[7:15, 0:5] = 30
    expected[7:15, 5:13] = 40
    np.testing.assert_array_equal(made.image[..., 0], expected)
    assert made.boxes_xyxy.tolist() == [
        [0, 1, 1, 4],
        [0, 2, 5, 7],
        [7, 4, 11, 6],
        [0, 7, 1, 9],
        [9, 11, 13, 15],
    ]
    assert made.rows.tolist() == [10, 10, 20, 30, 40]


def test_mosaic_drops_boxes_outside_the_canvas() -> None:
    part = flat(1, 8, 8, [[0, 0, 3, 8], [2, 0, 5, 8]])
    made = mosaic([part, flat(2, 8, 8, []), flat(3, 8, 8, []), flat(4, 8, 8, [])], 8, (5, 8))
    assert made.boxes_xyxy.tolist() == [[0, 0, 2, 8]]


def test_scale_and_crop_maps_boxes_by_hand() -> None:
    sample = flat(7, 40, 20, [[10, 5, 30, 15]])
    made = scale_and_crop(sample, 32, 1.5, (16.0, 20.0))
    # x' = 1.5 x + 16 - 30, y' = 1.5 y + 20 - 15
    assert made.boxes_xyxy.tolist() == [[1, 12.5, 31, 27.5]]
    rows = np.flatnonzero(made.image[:, 16, 0] == 7)
    assert (rows.min(), rows.max()) == (5, 32 - 1)
    assert made.image[0, 0].tolist() == [114, 114, 114]


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ([0, 0, 2.0, 10], False),  # a side of two pixels
        ([0, 0, 2.1, 10], True),
        ([-18, 0, 2.0 + 0.1, 10], True),  # 2.1 of 20.1 remain: more than a tenth
        ([-20, 0, 2.1, 10], False),  # 2.1 of 22.1 remain
        ([-28, 0, 3, 10], False),
        ([70, 0, 90, 10], False),
    ],
)
def test_boxes_too_small_to_learn_from_are_dropped(box: list[float], kept: bool) -> None:
    made = scale_and_crop(flat(1, 64, 64, [box]), 64, 1.0, (32.0, 32.0))
    assert len(made.rows) == int(kept)


def test_crop_of_an_image_that_fits_is_the_centred_image() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (32, 64, 3), np.uint8)
    made = augmented(PLAIN, [Sample(image, np.array([[0, 0, 64, 32]], np.float32), np.array([3]))], seed=0)
    np.testing.assert_array_equal(made.sample.image[16:48], image)
    assert set(np.unique(made.sample.image[:16])) == {114}
    assert made.sample.boxes_xyxy.tolist() == [[0, 16, 64, 48]]
    assert made.teacher_image is None


def test_flip_mirrors_image_and_boxes() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    sample = Sample(image, np.array([[4, 8, 20, 60]], np.float32), np.array([1]))
    sideways = augmented(PLAIN.model_copy(update={"horizontal_flip": 1.0}), [sample], seed=0)
    np.testing.assert_array_equal(sideways.sample.image, image[:, ::-1])
    assert sideways.sample.boxes_xyxy.tolist() == [[44, 8, 60, 60]]
    over = augmented(PLAIN.model_copy(update={"vertical_flip": 1.0}), [sample], seed=0)
    np.testing.assert_array_equal(over.sample.image, image[::-1])
    assert over.sample.boxes_xyxy.tolist() == [[4, 4, 20, 56]]


def marked(side: int, left: int, top: int) -> Sample:
    """A black image with a white square of 16 pixels, and its box."""
    image = np.zeros((side, side, 3), np.uint8)
    image[top : top + 16, left : left + 16] = 255
    return Sample(image, np.array([[left, top, left + 16, top + 16]], np.float32), np.array([0]))


@pytest.mark.parametrize("seed", range(6))
def test_boxes_stay_on_their_objects_through_all_geometry(seed: int) -> None:
    config = PLAIN.model_copy(
        update={"mosaic": 1.0, "scale": 0.5, "translate": 0.1, "horizontal_flip": 0.5, "vertical_flip": 0.5}
    )
    samples = [marked(64, 8, 30), marked(64, 40, 4), marked(64, 20, 44)]
    made = augmented(config, samples, seed).sample
    white = made.image[..., 0] > 180
    covered = np.zeros_like(white)
    for x1, y1, x2, y2 in made.boxes_xyxy:
        covered[int(np.floor(y1)) : int(np.ceil(y2)) + 1, int(np.floor(x1)) : int(np.ceil(x2)) + 1] = True
        inner = made.image[int(y1) + 2 : int(y2) - 2, int(x1) + 2 : int(x2) - 2, 0]
        assert (inner > 180).all() or inner.size == 0
    lost = white & ~covered
    # Gray 114 and black are below; what is white without a box is a rest too small to keep.
    assert lost.sum() <= 0.12 * 16 * 16 * 2.25 * 4


@st.composite
def pools(draw: st.DrawFn) -> list[Sample]:
    """Images of the sides that the loader makes of a square of 64, with boxes anywhere on them."""
    samples = []
    for number in range(draw(st.integers(1, 3))):
        width, height = draw(st.permutations([64, draw(st.integers(1, 64))]))
        boxes = []
        for _ in range(draw(st.integers(0, 3))):
            left, top = draw(st.floats(0, width - 0.5)), draw(st.floats(0, height - 0.5))
            boxes.append([left, top, draw(st.floats(left + 0.25, width)), draw(st.floats(top + 0.25, height))])
        image = np.full((height, width, 3), 50 * number, np.uint8)
        rows = np.arange(len(boxes)) + 10 * number
        samples.append(Sample(image, np.array(boxes, np.float32).reshape(-1, 4), rows))
    return samples


chance = st.sampled_from([0.0, 0.5, 1.0])


@given(
    pools(),
    st.builds(
        AugmentConfig, mosaic=chance, mixup=chance, horizontal_flip=chance, vertical_flip=chance,
        scale=st.floats(0, 0.9), translate=st.floats(0, 0.5), degrade=st.just(0.0),
    ),
    st.sampled_from([None, 96, 128]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_boxes_stay_in_the_image_and_large_enough(
    samples: list[Sample], config: AugmentConfig, teacher_size: int | None, seed: int
) -> None:
    """Whatever is drawn: more than 2 pixels a side of the student's image, and each a box that was put in."""
    factor = (teacher_size or 64) / 64
    given_samples = [Sample(_enlarged(s.image, factor), s.boxes_xyxy * np.float32(factor), s.rows) for s in samples]
    augmenter = Augmenter(config, 64, 3, teacher_size)
    made = augmenter(given_samples.__getitem__, 0, len(samples), np.random.default_rng(seed), True)
    boxes = made.sample.boxes_xyxy
    assert made.sample.image.shape == (64, 64, 3)
    assert (made.teacher_image is None) == (teacher_size is None)
    assert boxes.min(initial=0) >= 0
    assert boxes.max(initial=0) <= 64
    assert ((boxes[:, 2:] - boxes[:, :2]) > 2 - 1e-4).all()
    assert len(made.sample.rows) == len(boxes)
    assert set(made.sample.rows.tolist()) <= {row for sample in samples for row in sample.rows.tolist()}


def _enlarged(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return np.full((height, width, 3), image[0, 0], np.uint8)


def test_jitter_multiplies_saturation_and_value_and_turns_hue() -> None:
    gains = HsvGains(hue=0.1, saturation=0.5, value=0.4)
    colour = (180, 90, 60)
    image = np.full((4, 4, 3), colour, np.uint8)
    for seed in range(5):
        turn, saturation, value = np.random.default_rng(seed).uniform(-1, 1, 3) * [0.1, 0.5, 0.4]
        hsv = colorsys.rgb_to_hsv(*(part / 255 for part in colour))
        expected = colorsys.hsv_to_rgb(
            (hsv[0] + turn) % 1, min(hsv[1] * (1 + saturation), 1), min(hsv[2] * (1 + value), 1)
        )
        jittered = jitter_colour(image, gains, np.random.default_rng(seed))
        np.testing.assert_allclose(jittered[0, 0], np.array(expected) * 255, atol=4)


def test_jitter_leaves_gray_gray() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    jittered = jitter_colour(image, HsvGains(hue=0.5, saturation=1.0, value=0.0), np.random.default_rng(1))
    np.testing.assert_array_equal(jittered, image)


def test_mixup_blends_and_keeps_the_boxes_of_both() -> None:
    one, two = flat(0, 64, 64, [[1, 1, 20, 20]]), flat(200, 64, 64, [[30, 30, 60, 60]])
    config = PLAIN.model_copy(update={"mixup": 1.0})
    seen = set()
    for seed in range(8):
        made = augmented(config, [one, two], seed).sample
        assert len(made.rows) == 2
        seen.add(round(float(made.image.mean()) / 200, 1))
    assert seen <= {0.0, 0.3, 0.4, 0.5, 0.6, 0.7}
    assert max(seen) > 0.3


def test_student_noise_leaves_the_teacher_the_clean_image_with_the_same_geometry() -> None:
    rng = np.random.default_rng(0)
    samples = [
        Sample(rng.integers(0, 255, (64, 64, 3), np.uint8), np.array([[5, 5, 40, 40]], np.float32), np.array([0]))
        for _ in range(4)
    ]
    clean = augmented(AugmentConfig(), samples, seed=5)
    noisy = augmented(AugmentConfig(student_noise=True), samples, seed=5)
    assert noisy.teacher_image is not None
    np.testing.assert_array_equal(noisy.teacher_image, clean.sample.image)
    np.testing.assert_array_equal(noisy.sample.boxes_xyxy, clean.sample.boxes_xyxy)
    assert np.abs(noisy.sample.image.astype(int) - noisy.teacher_image).mean() > 3


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_samples_are_a_function_of_the_generator(channels: int) -> None:
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            rng.integers(0, 255, (48, 64, channels), np.uint8),
            np.array([[5, 5, 40, 40]], np.float32),
            np.array([0]),
        )
        for _ in range(4)
    ]
    config = AugmentConfig(degrade=0.5, mixup=0.5, student_noise=True)
    first, again, other = (augmented(config, samples, seed) for seed in (1, 1, 2))
    assert first.sample.image.shape == (64, 64, channels)
    np.testing.assert_array_equal(first.sample.image, again.sample.image)
    assert not np.array_equal(first.sample.image, other.sample.image)
    assert first.teacher_image is not None


def test_statistics_are_those_of_the_trainer_we_are_compared_with() -> None:
    """Box counts and sizes of 300 samples against an independent simulation of mosaic and affine."""
    rng = np.random.default_rng(0)
    size = 64
    samples = []
    for _ in range(8):
        corner = rng.uniform(0, 40, (5, 2))
        boxes = np.hstack([corner, corner + rng.uniform(6, 24, (5, 2))]).astype(np.float32)
        samples.append(
            Sample(np.zeros((48, size, 1), np.uint8), boxes.clip(0, [64, 48, 64, 48]), np.zeros(5, np.int64))
        )
    counts, sides = [], []
    augmenter = Augmenter(AugmentConfig(), size, 1)
    for seed in range(300):
        made = augmenter(samples.__getitem__, seed % 8, 8, np.random.default_rng(seed), True).sample
        counts.append(len(made.rows))
        sides.extend((made.boxes_xyxy[:, 2:] - made.boxes_xyxy[:, :2]).prod(axis=1) ** 0.5)
    expected_counts, expected_sides = simulated(samples, size, 1500)
    assert np.mean(counts) == pytest.approx(expected_counts, rel=0.06)
    assert np.mean(sides) == pytest.approx(expected_sides, rel=0.04)


def simulated(samples: list[Sample], size: int, rounds: int) -> tuple[float, float]:
    """Point by point: every box of four images, cut by canvas and crop, by the published ranges."""
    rng = np.random.default_rng(99)
    counts, sides = [], []
    for _ in range(rounds):
        count = 0
        cx, cy = int(rng.uniform(32, 96)), int(rng.uniform(32, 96))
        scale, tx, ty = rng.uniform(0.5, 1.5), rng.uniform(0.4, 0.6) * size, rng.uniform(0.4, 0.6) * size
        for corner in range(4):
            sample = samples[rng.integers(8)]
            ox, oy = cx - 64 * (corner % 2 == 0), cy - 48 * (corner < 2)
            for x1, y1, x2, y2 in sample.boxes_xyxy:
                ax, bx = np.clip([x1 + ox, x2 + ox], 0, 128)
                ay, by = np.clip([y1 + oy, y2 + oy], 0, 128)
                if bx <= ax or by <= ay:
                    continue
                left, right = np.clip([(ax - 64) * scale + tx, (bx - 64) * scale + tx], 0, size)
                top, bottom = np.clip([(ay - 64) * scale + ty, (by - 64) * scale + ty], 0, size)
                w, h = right - left, bottom - top
                if w > 2 and h > 2 and w * h > 0.1 * (bx - ax) * (by - ay) * scale**2:
                    count += 1
                    sides.append((w * h) ** 0.5)
        counts.append(count)
    return float(np.mean(counts)), float(np.mean(sides))
