"""Image files: decoding to 8-bit pixels, sizes, listing. Errors name the file and the reason.

Shapes: H W pixels, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from kd_vision.core.errors import RequestError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
_EXIF_ORIENTATION = 0x0112
_SWAPS_AXES = frozenset({5, 6, 7, 8})
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_CONVERTIBLE = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "La", "PA", "RGBA", "RGBa"})
_MAX_PIXELS = 1 << 29
_FORMATS = "give JPEG, PNG, TIFF, BMP or WebP"

Pixels = npt.NDArray[np.uint8]

# Files are opened by format instead of by Image.open: other packages replace that function (the one of ultralytics
# tries to install software when a file is broken), and only these formats are supported.
_OPENERS: dict[bytes, Callable[[IO[bytes]], Image.Image]] = {
    b"\xff\xd8\xff": JpegImagePlugin.jpeg_factory,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"II*\x00": TiffImagePlugin.TiffImageFile,
    b"MM\x00*": TiffImagePlugin.TiffImageFile,
    b"RIFF": WebPImagePlugin.WebPImageFile,
}


def read_image(path: Path, channels: int) -> Pixels:
    """Decode an image to 8 bits and apply its EXIF orientation.

    16-bit values are scaled by 1/257, so that the full range stays the full range. Transparency is left out and
    colour profiles are not applied, as in cv2.

    Args:
        path: the file.
        channels: 1 gray, 3 RGB, 4 RGB and the file's fourth channel.

    Returns:
        (H, W, C) uint8.

    Raises:
        RequestError: the file is missing, truncated, no image, or its pixel format cannot be converted to `channels`
            channels.
    """
    with _named_errors(path):
        data = path.read_bytes()
        with _opened(path, io.BytesIO(data)) as image:
            orientation = _orientation(image)
            pixels = _decode_fast(data, image, channels)
            if pixels is None:
                pixels = _decode(path, image, channels)
    return np.ascontiguousarray(_upright(pixels, orientation))


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the upright image from the file's header alone.

    Raises:
        RequestError: the file is missing or no image.
    """
    with _named_errors(path), path.open("rb") as file, _opened(path, file) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _SWAPS_AXES else (width, height)


def list_images(folder: Path) -> list[Path]:
    """Return the image files below `folder`, sorted by path.

    Raises:
        RequestError: there is no such folder.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: image folder is missing")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn exceptions of Pillow and the system into a `RequestError` that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise RequestError(f"{path}: image is missing") from None
    except (PermissionError, IsADirectoryError) as error:
        raise RequestError(f"{path}: image cannot be read ({error.strerror})") from None
    # Pillow's decoders raise all of these on broken files.
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, IndexError) as error:
        raise RequestError(f"{path}: is corrupt ({error}); replace or remove the file") from None


def _opened(path: Path, file: IO[bytes]) -> Image.Image:
    header = file.read(16)
    file.seek(0)
    opener = next((opener for signature, opener in _OPENERS.items() if header.startswith(signature)), None)
    if opener is None:
        raise RequestError(f"{path}: is not an image of a known kind; {_FORMATS}")
    image = opener(file)
    if image.width * image.height > _MAX_PIXELS:
        raise RequestError(f"{path}: {image.width}x{image.height} is too large to read; cut it into tiles")
    return image


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(_EXIF_ORIENTATION, 1))


def _decode_fast(data: bytes, image: Image.Image, channels: int) -> Pixels | None:
    """Decode JPEG and PNG with OpenCV; None: a case for Pillow.

    OpenCV fills the missing part of a truncated file with gray without an error, so that only files with an end
    marker are decoded here.
    """
    if channels == 4 or image.mode not in ("L", "RGB"):
        return None
    if image.format in ("JPEG", "MPO"):
        complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    else:
        complete = image.format == "PNG" and data.rfind(b"IEND", -64) > 0
    if not complete:
        return None
    # Gray is computed from RGB, here as in `_decode`: JPEG decoders would return their own luma.
    flag = cv2.IMREAD_GRAYSCALE if image.mode == "L" else cv2.IMREAD_COLOR
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if decoded is None:
        return None
    if image.mode == "L":
        return _with_channels(np.asarray(decoded, np.uint8)[..., None], channels)
    rgb = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return _with_channels(np.asarray(rgb, np.uint8), channels)


def _decode(path: Path, image: Image.Image, channels: int) -> Pixels:
    mode = image.mode
    if mode in _SIXTEEN_BIT or (mode == "I" and image.format == "PNG"):
        wide = np.asarray(image).astype(np.uint32)
        if wide.max(initial=0) > 65535:
            raise RequestError(f"{path}: has values above 16 bits; convert it to 8 or 16 bits")
        gray = ((wide + 128) // 257).astype(np.uint8)[..., None]
        if channels == 4:
            raise _no_fourth_channel(path, "16-bit gray")
        return _with_channels(gray, channels)
    if mode not in _CONVERTIBLE:
        raise RequestError(
            f"{path}: pixel format '{mode}' has no agreed conversion to 8 bits; convert it to 8-bit gray or RGB"
        )
    if channels == 4:
        if mode != "RGBA":
            raise _no_fourth_channel(path, f"'{mode}'")
        return np.asarray(image, np.uint8)
    if mode in ("1", "L", "LA", "La"):
        return _with_channels(np.asarray(image.convert("L"), np.uint8)[..., None], channels)
    # Pillow has no direct conversion from RGBa to RGB.
    straight = image.convert("RGBA") if mode in ("RGBa", "PA") else image
    return _with_channels(np.asarray(straight.convert("RGB"), np.uint8), channels)


def _no_fourth_channel(path: Path, pixel_format: str) -> RequestError:
    return RequestError(f"{path}: the model takes 4 channels, the image is {pixel_format}; give RGBA files")


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Convert (H, W, 1 or 3) pixels to 1 or 3 channels."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]
    return np.repeat(pixels, 3, axis=2)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply the EXIF orientation, a number 1 to 8 (TIFF 6.0, tag 274)."""
    if orientation in _SWAPS_AXES:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
