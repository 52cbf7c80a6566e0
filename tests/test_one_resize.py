"""One resize: the pixels of an image are the same on every route to a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from kd_vision.core.spec import DetectorSpec
from kd_vision.data.augment_config import AugmentConfig, HsvGains
from kd_vision.data.loader import LoaderConfig, TrainStream, eval_batches
from kd_vision.data.records import DetectionData, ImageRecord
from kd_vision.detectors.resize import resize_batch
from kd_vision.runtime.letterbox import letterbox_image, resize
from kd_vision.teachers.frozen import FrozenTeacher

SIZE, VIEW = 48, 96
STILL = AugmentConfig(
    mosaic=0, scale=0, translate=0, horizontal_flip=0, degrade=0, hsv=HsvGains(hue=0, saturation=0, value=0)
)
Images = npt.NDArray[np.uint8]


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    """One image of noise, which shows every difference of interpolation."""
    pixels = np.random.default_rng(0).integers(0, 256, (VIEW, VIEW, 3), np.uint8)
    path = tmp_path / "noise.png"
    cv2.imwrite(str(path), pixels[..., ::-1])
    boxes = np.array([[8, 8, 60, 60]], np.float32)
    record = ImageRecord(1, path, VIEW, VIEW, boxes, np.array([0]), np.array([False]), np.array([2704.0]))
    return DetectionData("train", ("thing",), (1,), (record,))


@pytest.fixture
def expected(data: DetectionData) -> Images:
    """(3, S, S): the mean of each 2 x 2 pixels."""
    pixels = cv2.imread(str(data.images[0].path))[..., ::-1].astype(np.float64)
    mean = pixels.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))
    return mean.transpose(2, 0, 1)


def evaluation(data: DetectionData) -> Images:
    """What evaluation sees, and `label` for a store."""
    (batch,) = eval_batches(data, SIZE, 1, 3)
    return batch.images[0].numpy()


def training(data: DetectionData) -> Images:
    return TrainStream(data, None, STILL, LoaderConfig(SIZE, 1), epochs=20).batch_at(0).images[0].numpy()


def training_beside_a_larger_view(data: DetectionData) -> Images:
    loader = LoaderConfig(SIZE, 1, teacher_size=VIEW)
    return TrainStream(data, None, STILL, loader, epochs=20).batch_at(0).images[0].numpy()


def live_teacher_of_a_smaller_size(data: DetectionData) -> Images:
    seen: list[torch.Tensor] = []

    class Source:
        spec = DetectorSpec("fake", "fake", ("thing",), {}, {}, frozenset({"detections"}))
        score_floor = 0.0

        def __call__(self, images: torch.Tensor, signals: frozenset[str] = frozenset()) -> object:
            seen.append(images)
            raise StopIteration

    batch = TrainStream(data, None, STILL, LoaderConfig(VIEW, 1), epochs=20).batch_at(0).as_float()
    with pytest.raises(StopIteration):
        FrozenTeacher(Source(), image_size=SIZE).signals(batch, frozenset({"detections"}))  # type: ignore[arg-type]
    return 255 * seen[0][0].numpy()


def device(data: DetectionData) -> Images:
    pixels = cv2.imread(str(data.images[0].path))[..., ::-1]
    return letterbox_image(np.ascontiguousarray(pixels), SIZE)[0].transpose(2, 0, 1)


ROUTES = (evaluation, training, training_beside_a_larger_view, live_teacher_of_a_smaller_size, device)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.__name__)
def test_every_route_averages_the_pixels(
    route: Callable[[DetectionData], Images], data: DetectionData, expected: Images
) -> None:
    """Half a step of rounding apart at most; with bilinear or sharper filters noise would differ by dozens."""
    assert np.abs(route(data).astype(np.float64) - expected).max() <= 0.501


def gradient_energy(images: torch.Tensor) -> float:
    """Mean square of the differences of neighbouring pixels; images (B, C, H, W)."""
    pixels = images.double()
    return float(pixels.diff(dim=-1).square().mean() + pixels.diff(dim=-2).square().mean())


@pytest.fixture
def picture(tmp_path: Path) -> DetectionData:
    """One picture of 800 px with the spectrum of photographs (amplitude 1/f), on which thin lines are drawn."""
    side = 800
    rng = np.random.default_rng(3)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    spectrum = np.fft.fft2(rng.standard_normal((side, side))) / np.maximum(frequency, 1 / side)
    plane = np.fft.ifft2(spectrum).real
    pixels = np.clip(128 + 45 * plane / plane.std(), 0, 255).astype(np.uint8)
    for start, end in rng.integers(0, side, (60, 2, 2)):
        cv2.line(pixels, start.tolist(), end.tolist(), int(rng.integers(0, 256)), 2)
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), pixels)
    boxes = np.array([[80, 80, 600, 600]], np.float32)
    record = ImageRecord(1, path, side, side, boxes, np.array([0]), np.array([False]), np.array([270400.0]))
    return DetectionData("train", ("thing",), (1,), (record,))


@pytest.mark.parametrize("view", [None, 512, 768])
def test_a_larger_view_of_the_teacher_leaves_the_students_pixels_as_sharp_as_in_evaluation(
    view: int | None, picture: DetectionData
) -> None:
    """800 px to the view and from there to 256 px, against 800 px to 256 px at once.

    Of views that are no multiple of the student's size the second shrinking blurs: 11 % less energy at 640 px, 36 % at
    320 px.
    """
    (judged,) = eval_batches(picture, 256, 1, 3)
    trained = TrainStream(picture, None, STILL, LoaderConfig(256, 1, teacher_size=view), epochs=20).batch_at(0)
    assert gradient_energy(trained.images) == pytest.approx(gradient_energy(judged.images), rel=0.05)


def test_an_augmented_picture_is_no_less_sharp_beside_a_larger_view(picture: DetectionData) -> None:
    """The warp interpolates at the larger side; shrunk by area, its blur is halved."""
    augment = AugmentConfig(mosaic=0, degrade=0, hsv=STILL.hsv)
    plain, beside = (
        TrainStream(picture, None, augment, LoaderConfig(256, 1, teacher_size=view), epochs=20) for view in (None, 512)
    )
    energies = [sum(gradient_energy(stream.batch_at(step).images) for step in range(8)) for stream in (plain, beside)]
    assert energies[1] >= energies[0]


@pytest.mark.parametrize(("before", "after"), [(64, 32), (64, 24), (97, 41), (32, 80)])
def test_batches_are_resized_as_images_are(before: int, after: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (before, before, 3), np.uint8)
    batch = torch.from_numpy(image.transpose(2, 0, 1))[None].float()
    resized = resize_batch(batch, after, after)[0].numpy().transpose(1, 2, 0)
    assert np.abs(resized - resize(image, after, after)).max() <= 1.0
