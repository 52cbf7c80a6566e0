"""Light, weather and camera: from a clean picture to what a sensor in the air would deliver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from kd_vision.scenes.draw import Bytes, cloud_tile

SKIES: tuple[str, ...] = ("clear", "overcast", "haze", "low_sun", "dusk", "rain")
_CALM = np.array([0.6, 0.2, 0.05, 0.1, 0.03, 0.02])
_ROUGH = np.array([0.18, 0.16, 0.17, 0.18, 0.16, 0.15])


@dataclass(frozen=True, slots=True)
class Weather:
    """Everything between the scene and the file.

    Attributes:
        sky: one of `SKIES`.
        sun_offset: where the top of a thing one metre high throws its shadow: x, y in metres.
        shadow_light: light left in a shadow, 0 to 255.
        softness: width of the half-shadow, metres.
        contrast: factor on the distance from mid grey.
        tint: factor per channel, brightness included.
        haze: share of the light that the air adds, 0 to 1.
        blur: standard deviation of the optics and motion, final pixels.
        noise: standard deviation of the sensor noise at mid grey, grey levels.
        rain: number of streaks per 10000 pixels.
        jpeg_quality: of the camera's own compression.
    """

    sky: str
    sun_offset: tuple[float, float]
    shadow_light: int
    softness: float
    contrast: float
    tint: tuple[float, float, float]
    haze: float
    blur: float
    noise: float
    rain: float
    jpeg_quality: int


def sample_weather(rng: np.random.Generator, difficulty: float) -> Weather:
    """Draw the weather of one scene.

    Args:
        rng: random numbers of the scene.
        difficulty: 0 mostly clear with a good camera; 1 mostly bad weather with a poor one.
    """
    odds = (1 - difficulty) * _CALM + difficulty * _ROUGH
    sky = SKIES[int(rng.choice(len(SKIES), p=odds / odds.sum()))]
    low, dusk, grey = sky == "low_sun", sky == "dusk", sky in ("overcast", "haze", "rain")
    azimuth = rng.uniform(0, 2 * math.pi)
    length = rng.uniform(1.4, 2.4) if low else rng.uniform(0.35, 1.2)
    bright = rng.uniform(0.9, 1.1) * (rng.uniform(0.45, 0.68) if dusk else 0.85 if sky == "rain" else 1.0)
    warmth = rng.uniform(0.05, 0.14) if low else rng.uniform(-0.14, -0.05) if dusk else rng.normal(0, 0.02)
    severity = 0.2 + 1.2 * difficulty
    noise = (rng.uniform(0.8, 2.6) + (rng.uniform(3.0, 6.0) if dusk else 0.0)) * severity
    return Weather(
        sky=sky,
        sun_offset=(length * math.cos(azimuth), length * math.sin(azimuth)),
        shadow_light=int(rng.uniform(195, 225) if grey else 215 if dusk else rng.uniform(95, 145)),
        softness=1.6 if grey or dusk else 0.25,
        contrast=float(rng.uniform(1.0, 1.08) - 0.28 * difficulty * rng.uniform(0.3, 1.0)),
        tint=(bright * (1 + warmth), bright, bright * (1 - warmth)),
        haze=float(severity * rng.uniform(0.2, 0.4) if sky == "haze" else 0.03 + 0.05 * rng.random()),
        blur=float((0.1 + 0.7 * difficulty * rng.random()) * (1.15 if sky == "rain" else 1.0)),
        noise=float(noise),
        rain=float(severity * rng.uniform(4, 12) if sky == "rain" else 0.0),
        jpeg_quality=int(95 - 45 * difficulty * rng.random()),
    )


def develop(image: Bytes, weather: Weather, rng: np.random.Generator) -> Bytes:
    """Turn the clean picture into the camera's.

    Args:
        image: (H, W, 3) uint8 RGB at final size.
        weather: what to apply.
        rng: random numbers of the scene.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    tint = np.array(weather.tint, np.float32)
    light = (image.astype(np.float32) - 118) * np.float32(weather.contrast) + 118
    light *= tint
    light += _air(image.shape[0], image.shape[1], weather, rng)[..., None] * (
        np.array((206, 210, 216), np.float32) * min(1.0, weather.tint[1]) - light
    )
    if weather.rain:
        light += _streaks(image.shape[0], image.shape[1], weather.rain, rng)[..., None]
    if weather.blur > 0.25:
        light = cv2.GaussianBlur(light, (5, 5), weather.blur)
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    grain *= np.float32(weather.noise)
    grain *= np.sqrt(np.clip(light, 8, 255) * np.float32(1 / 128))
    light += grain
    picture = np.clip(light + 0.5, 0, 255).astype(np.uint8)
    return _compress(picture, weather.jpeg_quality)


def _air(height: int, width: int, weather: Weather, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return (H, W) haze in [0, 0.85], thicker in places."""
    tile = cloud_tile(2.0)
    row, column = (int(start) for start in rng.integers(0, 256, 2))
    patch = cv2.resize(tile[row : row + 200, column : column + 200], (width, height))
    wisps = 1 + (patch.astype(np.float32) - 128) * np.float32(0.5 / 40)
    return np.asarray(np.clip(np.float32(weather.haze) * wisps, 0, 0.85), np.float32)


def _streaks(height: int, width: int, amount: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return (H, W) light that falling drops add."""
    layer = np.zeros((height, width), np.uint8)
    slant = rng.uniform(-0.6, 0.6)
    count = int(amount * height * width / 10000)
    starts = rng.uniform(0, 1, (count, 2)) * (width, height)
    lengths = rng.uniform(5, 14, count)
    for (x, y), length in zip(starts, lengths, strict=True):
        end = (int(x + slant * length), int(y + length))
        cv2.line(layer, (int(x), int(y)), end, (60,), 1, cv2.LINE_AA)
    return layer.astype(np.float32)


def _compress(picture: Bytes, quality: int) -> Bytes:
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"OpenCV could not encode a picture of shape {picture.shape} as JPEG")
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
