"""Augmentation of training samples. The only file that imports albumentations.

Geometry (mosaic, scale, translation, crop) is implemented here as one warp that computes only the remaining pixels:
albumentations' Mosaic fits every image to a cell, unlike the mosaic with which current detectors are trained, and its
Affine warps four times the pixels that are kept. Photometric transforms other than colour jitter are albumentations'.

The strength is that of the default training of ultralytics 8.4: same probabilities, ranges, filters.

Shapes: H W pixels, C channels, M boxes, S the side of the network's input.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from kd_vision.data.augment_config import AugmentConfig, HsvGains
from kd_vision.runtime.letterbox import PAD_VALUE, resize

# Otherwise the import of albumentations requests its newest version number from a server.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

_MIN_SIDE = 2.0
_MIN_VISIBLE = 0.1
_MAX_ASPECT = 100.0
_MIXUP_BETA = 32.0

Pixels = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image with its boxes: ground truth and pseudo labels alike.

    Attributes:
        image: (H, W, C) uint8.
        boxes_xyxy: (M, 4) float32, pixels of `image`.
        rows: (M,) int64, row of each box in the `BoxTable`, which has its labels.
    """

    image: Pixels
    boxes_xyxy: Boxes
    rows: Rows


@dataclass(frozen=True, slots=True, eq=False)
class AugmentedSample:
    """A sample of the student's input size, and the teacher's image where it differs.

    Attributes:
        sample: for the student; the image is (S, S, C).
        teacher_image: the same crop without the student's noise, (S, S, C) or larger; None: the student's image.
    """

    sample: Sample
    teacher_image: Pixels | None = None


class Augmenter:
    """Makes training samples; each depends only on the given random generator."""

    def __init__(self, config: AugmentConfig, image_size: int, channels: int, teacher_size: int | None = None) -> None:
        """Build the pipelines once.

        Args:
            config: settings of augmentation.
            image_size: side S of the student's input.
            channels: of the images.
            teacher_size: side of the teacher's images, at least S. Samples are made at this size and shrunk for the
                student. None: S.
        """
        self._config = config
        self._size = teacher_size or image_size
        self._student_size = image_size
        self._channels = channels
        self._degradations = _degradations(channels)
        self._noises = _student_noises(channels)

    def __call__(
        self,
        load: Callable[[int], Sample],
        index: int,
        pool_size: int,
        rng: np.random.Generator,
        use_mosaic: bool,
    ) -> AugmentedSample:
        """Make one sample.

        Args:
            load: returns image `i` of the pool, its longer side resized to the side of a sample.
            index: of the main image of the sample.
            pool_size: other images of mosaic and mixup are drawn from 0 .. pool_size - 1.
            rng: the only source of randomness.
            use_mosaic: False in the last epochs.
        """
        config = self._config
        sample = self._placed(load, index, pool_size, rng, use_mosaic)
        if config.mixup > 0 and rng.random() < config.mixup:
            other = self._placed(load, int(rng.integers(pool_size)), pool_size, rng, use_mosaic)
            sample = _mixed(sample, other, float(rng.beta(_MIXUP_BETA, _MIXUP_BETA)))
        image = self._degraded(sample.image, rng)
        if self._channels == 3:
            image = jitter_colour(image, config.hsv, rng)
        sample = Sample(image, sample.boxes_xyxy, sample.rows)
        if config.vertical_flip > 0 and rng.random() < config.vertical_flip:
            sample = _flipped(sample, axis=0)
        if config.horizontal_flip > 0 and rng.random() < config.horizontal_flip:
            sample = _flipped(sample, axis=1)
        student = _shrunk(sample, self._student_size)
        if config.student_noise:
            student = Sample(self._noisy(student.image, rng), student.boxes_xyxy, student.rows)
        return AugmentedSample(student, None if student is sample else sample.image)

    def _placed(
        self,
        load: Callable[[int], Sample],
        index: int,
        pool_size: int,
        rng: np.random.Generator,
        use_mosaic: bool,
    ) -> Sample:
        """Return the image, or a mosaic around it, scaled and moved into the input square."""
        config = self._config
        canvas = load(index)
        if use_mosaic and config.mosaic > 0 and rng.random() < config.mosaic:
            partners = [load(int(other)) for other in rng.integers(pool_size, size=3)]
            centre = rng.uniform(0.5 * self._size, 1.5 * self._size, size=2).astype(int)
            canvas = mosaic([canvas, *partners], self._size, (int(centre[0]), int(centre[1])))
        scale = float(rng.uniform(1 - config.scale, 1 + config.scale))
        shift = rng.uniform(0.5 - config.translate, 0.5 + config.translate, size=2) * self._size
        least = _MIN_SIDE * self._size / self._student_size  # 2 pixels of the student's image
        return scale_and_crop(canvas, self._size, scale, (float(shift[0]), float(shift[1])), least)

    def _degraded(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        chance = self._config.degrade
        if chance <= 0:
            return image
        for transform, gate in zip(self._degradations, rng.random(len(self._degradations)), strict=True):
            if gate < chance:
                image = _applied(transform, image, rng)
        return image

    def _noisy(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Apply each noise with probability 0.5, so that a sixteenth of the images stays clean."""
        for transform, gate in zip(self._noises, rng.random(len(self._noises)), strict=True):
            if gate < 0.5:
                image = _applied(transform, image, rng)
        return image


def mosaic(samples: list[Sample], size: int, centre_xy: tuple[int, int]) -> Sample:
    """Put four images around a point of a canvas of twice the input's side.

    Each touches the point with one corner; parts outside the canvas are cropped, the rest of the canvas is gray.

    Args:
        samples: top left, top right, bottom left, bottom right; sides at most `size`.
        size: S; the canvas is (2 S, 2 S).
        centre_xy: the common corner of the four images, in canvas pixels.
    """
    side = 2 * size
    canvas = np.full((side, side, samples[0].image.shape[2]), PAD_VALUE, np.uint8)
    boxes = []
    for position, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        left = centre_xy[0] - (width if position in (0, 2) else 0)
        top = centre_xy[1] - (height if position in (0, 1) else 0)
        x1, y1 = max(left, 0), max(top, 0)
        x2, y2 = min(left + width, side), min(top + height, side)
        canvas[y1:y2, x1:x2] = sample.image[y1 - top : y2 - top, x1 - left : x2 - left]
        boxes.append(sample.boxes_xyxy + np.array([left, top, left, top], np.float32))
    merged = np.concatenate(boxes).clip(0, side)
    rows = np.concatenate([sample.rows for sample in samples])
    solid = (merged[:, 2] > merged[:, 0]) & (merged[:, 3] > merged[:, 1])
    return Sample(canvas, merged[solid], rows[solid])


def scale_and_crop(
    sample: Sample, size: int, scale: float, centre_xy: tuple[float, float], least_side: float = _MIN_SIDE
) -> Sample:
    """Scale an image about its centre, place the centre at a point of a square, and crop the square.

    Boxes are clipped to it. A box is dropped if a side becomes `least_side` or shorter, if a tenth or less of it
    remains, or if its sides differ by a factor of 100 or more.

    Args:
        sample: any size.
        size: S, the side of the square.
        scale: factor.
        centre_xy: position of the image's centre, in pixels of the square.
        least_side: in pixels of the square.
    """
    height, width = sample.image.shape[:2]
    shift_x = centre_xy[0] - scale * width / 2
    shift_y = centre_xy[1] - scale * height / 2
    matrix = np.array([[scale, 0.0, shift_x], [0.0, scale, shift_y]])
    # Four values: OpenCV needs a scalar, and leaves a fourth channel black with three.
    warped = cv2.warpAffine(sample.image, matrix, (size, size), borderValue=(PAD_VALUE,) * 4)
    image = np.asarray(warped, np.uint8).reshape(size, size, -1)
    scaled = sample.boxes_xyxy * np.float32(scale)
    boxes = (scaled + np.array([shift_x, shift_y] * 2, np.float32)).clip(0, size)
    keep = _worth_keeping(scaled, boxes, least_side)
    return Sample(image, boxes[keep], sample.rows[keep])


def jitter_colour(image: Pixels, gains: HsvGains, rng: np.random.Generator) -> Pixels:
    """Shift the hue and multiply saturation and value by random gains; gray pixels stay gray.

    Args:
        image: (H, W, 3) RGB.
        gains: limits; the hue is shifted by up to `hue` of the colour circle.
        rng: draws three numbers.
    """
    limits = (gains.hue, gains.saturation, gains.value)
    hue, saturation, value = rng.uniform(-1.0, 1.0, size=3) * limits
    if not any(limits):
        return image
    steps = np.arange(256, dtype=np.float64)
    table = np.empty((1, 256, 3), np.uint8)
    table[0, :, 0] = (steps + hue * 180) % 180
    table[0, :, 1] = np.clip(steps * (saturation + 1), 0, 255)
    table[0, :, 2] = np.clip(steps * (value + 1), 0, 255)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return np.asarray(cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB), np.uint8)


def _worth_keeping(before: Boxes, after: Boxes, least_side: float) -> npt.NDArray[np.bool_]:
    width, height = after[:, 2] - after[:, 0], after[:, 3] - after[:, 1]
    area = (before[:, 2] - before[:, 0]) * (before[:, 3] - before[:, 1])
    tall_enough = (width > least_side) & (height > least_side)
    slim = np.maximum(width, height) < _MAX_ASPECT * np.minimum(width, height)
    return np.asarray(tall_enough & (width * height > _MIN_VISIBLE * area) & slim)


def _mixed(first: Sample, second: Sample, share: float) -> Sample:
    blend = cv2.addWeighted(first.image, share, second.image, 1.0 - share, 0.0)
    return Sample(
        np.asarray(blend, np.uint8).reshape(first.image.shape),
        np.concatenate([first.boxes_xyxy, second.boxes_xyxy]),
        np.concatenate([first.rows, second.rows]),
    )


def _flipped(sample: Sample, axis: int) -> Sample:
    """Mirror top to bottom (axis 0) or left to right (axis 1)."""
    side = np.float32(sample.image.shape[axis])
    low, high = (1, 3) if axis == 0 else (0, 2)
    boxes = sample.boxes_xyxy.copy()
    boxes[:, low], boxes[:, high] = side - sample.boxes_xyxy[:, high], side - sample.boxes_xyxy[:, low]
    return Sample(np.flip(sample.image, axis), boxes, sample.rows)


def _shrunk(sample: Sample, size: int) -> Sample:
    """Make a square sample smaller; the sample itself where it fits."""
    side = sample.image.shape[0]
    if side == size:
        return sample
    small = resize(np.ascontiguousarray(sample.image), size, size)
    return Sample(small, sample.boxes_xyxy * np.float32(size / side), sample.rows)


def _applied(transform: A.Compose, image: Pixels, rng: np.random.Generator) -> Pixels:
    """Apply a pipeline of one transform with probability 1.

    Seeding a pipeline gives all its transforms the same seed, so that their random decisions would be correlated.
    Hence each pipeline has one transform, and this module decides whether it is applied.
    """
    transform.set_random_seed(int(rng.integers(2**31)))
    return np.asarray(transform(image=np.ascontiguousarray(image))["image"], np.uint8).reshape(image.shape)


def _degradations(channels: int) -> list[A.Compose]:
    anywhere: list[A.BasicTransform] = [A.Blur(p=1.0), A.MedianBlur(p=1.0)]
    colour: list[A.BasicTransform] = [A.ToGray(p=1.0), A.CLAHE(p=1.0)] if channels == 3 else []
    return [A.Compose([transform]) for transform in anywhere + colour]


def _student_noises(channels: int) -> list[A.Compose]:
    transforms: list[A.BasicTransform] = [
        A.GaussianBlur(blur_limit=(3, 5), p=1.0),
        A.RandomBrightnessContrast(brightness_limit=(-0.5, 0.0), contrast_limit=(-0.2, 0.1), p=1.0),
        A.GaussNoise(std_range=(0.02, 0.08), p=1.0),
    ]
    if channels != 4:
        transforms.append(A.ImageCompression(quality_range=(30, 80), p=1.0))
    return [A.Compose([transform]) for transform in transforms]
