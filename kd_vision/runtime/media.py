"""Images, folders of images and videos: reads them frame by frame, and writes annotated copies.

Shapes: H W pixels, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

from kd_vision.core.errors import RequestError
from kd_vision.runtime.images import IMAGE_SUFFIXES, list_images, read_image

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"})
_DEFAULT_FPS = 25.0

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame of a source.

    Attributes:
        index: from 0 over the whole source.
        name: path of the image relative to its folder, or file name of the video.
        pixels: (H, W, C) uint8, RGB or gray.
    """

    index: int
    name: str
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Source:
    """A sequence of frames.

    Attributes:
        path: image, folder or video.
        images: files in order; empty for a video.
        count: number of frames; for a video the number in its header, which may be slightly wrong.
        frames_per_second: of a video; 0 for images.
        channels: 1 or 3, for images also 4.
    """

    path: Path
    images: tuple[Path, ...]
    count: int
    frames_per_second: float
    channels: int

    @property
    def is_video(self) -> bool:
        """True for a video."""
        return not self.images

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order, decoding each when it is needed.

        Raises:
            RequestError: an image cannot be read, or the video holds no frame.
        """
        return self._video_frames() if self.is_video else self._image_frames()

    def _image_frames(self) -> Iterator[Frame]:
        folder = self.path if self.path.is_dir() else self.path.parent
        for index, path in enumerate(self.images):
            yield Frame(index, path.relative_to(folder).as_posix(), read_image(path, self.channels))

    def _video_frames(self) -> Iterator[Frame]:
        capture = cv2.VideoCapture(str(self.path))
        index = 0
        try:
            while True:
                success, bgr = capture.read()
                if not success:
                    break
                code = cv2.COLOR_BGR2RGB if self.channels == 3 else cv2.COLOR_BGR2GRAY
                pixels = np.asarray(cv2.cvtColor(bgr, code), np.uint8)
                yield Frame(index, self.path.name, pixels.reshape(*pixels.shape[:2], self.channels))
                index += 1
        finally:
            capture.release()
        if index == 0:
            raise RequestError(f"{self.path}: holds no frame that OpenCV can decode; convert it to H.264 in .mp4")


def open_source(path: Path, channels: int = 3) -> Source:
    """Open an image, a folder or a video without decoding frames.

    Args:
        path: an image, a folder (searched with its subfolders) or a video.
        channels: of the frames: 1 gray, 3 RGB, 4 (images only) RGB and the file's fourth channel.

    Raises:
        RequestError: the path is missing, holds no image, or has another suffix.
    """
    if not path.exists():
        raise RequestError(f"{path}: does not exist; give an image, a folder of images or a video")
    if path.is_dir():
        images = tuple(list_images(path))
        if not images:
            raise RequestError(f"{path}: holds no image; possible: {_names(IMAGE_SUFFIXES)}")
        return Source(path, images, len(images), 0.0, channels)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Source(path, (path,), 1, 0.0, channels)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return _open_video(path, channels)
    raise RequestError(
        f"{path}: '{path.suffix}' is neither an image ({_names(IMAGE_SUFFIXES)}) nor a video ({_names(VIDEO_SUFFIXES)})"
    )


def _open_video(path: Path, channels: int) -> Source:
    if channels == 4:
        raise RequestError(f"{path}: a video has no fourth channel, which the model needs; give RGBA images")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise RequestError(f"{path}: OpenCV cannot open this video; convert it to H.264 in .mp4")
        count = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        speed = float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    return Source(path, (), count, speed if speed > 0 else _DEFAULT_FPS, channels)


class FrameWriter:
    """Writes annotated copies of frames in the form of their source: image files, or one .mp4 video.

    Files are written under a temporary name and renamed when they are complete: an image at once, a video when the
    writer closes without an error.

    Args:
        source: of the frames.
        folder: for the copies; created if missing.

    Raises:
        RequestError: the copy would overwrite the video.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._video: cv2.VideoWriter | None = None
        self._final = folder / f"{source.path.stem}.mp4"
        self._part = folder / f".{source.path.stem}.part.mp4"
        self.written: list[Path] = []
        if source.is_video and self._final.resolve() == source.path.resolve():
            raise RequestError(f"{self._final}: would overwrite the input video; give another --out")

    def __enter__(self) -> FrameWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._video is None:
            return
        self._video.release()
        if kind is None:
            os.replace(self._part, self._final)
            self.written.append(self._final)
        else:
            self._part.unlink(missing_ok=True)

    def write(self, frame: Frame, pixels: Pixels) -> None:
        """Write the annotated copy of a frame.

        Args:
            frame: the original; names the file.
            pixels: (H, W, 3) uint8 RGB.

        Raises:
            RequestError: the folder is not writable, or the copy would overwrite the image.
        """
        bgr = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), np.uint8)
        if self._source.is_video:
            self._write_frame(bgr)
        else:
            self._write_image(frame.name, bgr)

    def _write_frame(self, bgr: Pixels) -> None:
        if self._video is None:
            size = (bgr.shape[1], bgr.shape[0])
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._video = cv2.VideoWriter(str(self._part), codec, self._source.frames_per_second, size)
            if not self._video.isOpened():
                raise RequestError(f"{self._part}: OpenCV cannot write a video here; give another --out")
        self._video.write(bgr)

    def _write_image(self, name: str, bgr: Pixels) -> None:
        # PNG stays PNG, because JPEG blurs thin lines; some of the other formats cannot hold three channels.
        original = self._folder / name
        suffix = ".png" if original.suffix.lower() == ".png" else ".jpg"
        path = original.with_suffix(suffix)
        if path in self.written:  # the source has `a.bmp` and `a.jpg`
            path = original.with_name(original.name + suffix)
        if path.resolve() in {image.resolve() for image in self._source.images}:
            raise RequestError(f"{path}: would overwrite the input image; give another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.part{path.suffix}")
        if not cv2.imwrite(str(part), bgr):
            raise RequestError(f"{path}: cannot be written; give another --out")
        os.replace(part, path)
        self.written.append(path)


def _names(suffixes: frozenset[str]) -> str:
    return " ".join(sorted(suffixes))
