from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from kd_vision.core.errors import RequestError
from kd_vision.runtime.media import Frame, FrameWriter, Source, open_source

RED, BLUE = (220, 30, 30), (30, 30, 220)


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), colour[::-1], np.uint8))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of 64 x 48: three red, three blue."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    source = Source(Path("clip.mp4"), (), 6, 10.0, 3)
    with FrameWriter(source, path.parent) as writer:
        for index in range(6):
            pixels = np.full((48, 64, 3), RED if index < 3 else BLUE, np.uint8)
            writer.write(Frame(index, "clip.mp4", pixels), pixels)
    return path


def test_one_image(tmp_path: Path) -> None:
    source = open_source(paint(tmp_path / "a.png", RED))
    frames = list(source.frames())
    assert (source.is_video, source.count) == (False, 1)
    assert [(frame.index, frame.name) for frame in frames] == [(0, "a.png")]
    assert frames[0].pixels.shape == (12, 20, 3)
    assert frames[0].pixels[5, 5].tolist() == list(RED)


def test_folder_in_order_with_subfolders(tmp_path: Path) -> None:
    paint(tmp_path / "b.png", BLUE)
    paint(tmp_path / "a.png", RED)
    paint(tmp_path / "more" / "c.png", RED)
    (tmp_path / "notes.txt").write_text("no picture")
    frames = list(open_source(tmp_path, channels=1).frames())
    assert [frame.name for frame in frames] == ["a.png", "b.png", "more/c.png"]
    assert frames[0].pixels.shape == (12, 20, 1)


def test_video(video: Path) -> None:
    source = open_source(video)
    assert (source.is_video, source.count, source.frames_per_second) == (True, 6, 10.0)
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(6))
    assert {frame.name for frame in frames} == {"clip.mp4"}
    means = [frame.pixels.reshape(-1, 3).mean(axis=0) for frame in frames]
    assert all(red > 150 and blue < 90 for red, _, blue in means[:3])
    assert all(red < 90 and blue > 150 for red, _, blue in means[3:])
    assert next(open_source(video, channels=1).frames()).pixels.shape == (48, 64, 1)


def problem(path: Path, channels: int = 3) -> str:
    with pytest.raises(RequestError) as caught:
        list(open_source(path, channels).frames())
    return str(caught.value)


def test_wrong_sources_are_refused(tmp_path: Path, video: Path) -> None:
    assert problem(tmp_path / "no") == (f"{tmp_path}/no: does not exist; give an image, a folder of images or a video")
    assert problem(tmp_path) == f"{tmp_path}: holds no image; possible: .bmp .jpeg .jpg .png .tif .tiff .webp"
    text = tmp_path / "a.txt"
    text.write_text("no picture")
    assert problem(text).startswith(f"{text}: '.txt' is neither an image (.bmp ")
    broken = tmp_path / "a.mp4"
    broken.write_bytes(b"no video")
    assert problem(broken) == f"{broken}: OpenCV cannot open this video; convert it to H.264 in .mp4"
    assert problem(video, 4) == (f"{video}: a video has no fourth channel, which the model needs; give RGBA images")
    corrupt = paint(tmp_path / "c.png", RED)
    corrupt.write_bytes(corrupt.read_bytes()[:40])
    assert problem(corrupt).startswith(f"{corrupt}: ")


def test_writer_mirrors_the_folder(tmp_path: Path) -> None:
    paint(tmp_path / "in" / "a.png", RED)
    paint(tmp_path / "in" / "more" / "b.tif", BLUE)
    source = open_source(tmp_path / "in")
    with FrameWriter(source, tmp_path / "out") as writer:
        for frame in source.frames():
            writer.write(frame, frame.pixels)
    assert writer.written == [tmp_path / "out" / "a.png", tmp_path / "out" / "more" / "b.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["a.png", "b.jpg"]
    copy = next(open_source(tmp_path / "out" / "a.png").frames())
    assert copy.pixels[0, 0].tolist() == list(RED)


def test_writer_never_overwrites_its_source(tmp_path: Path) -> None:
    path = paint(tmp_path / "a.png", RED)
    before = path.read_bytes()
    source = open_source(tmp_path)
    frame = next(source.frames())
    writer = FrameWriter(source, tmp_path)
    with pytest.raises(RequestError, match="would overwrite the input image"):
        writer.write(frame, np.zeros_like(frame.pixels))
    assert path.read_bytes() == before


def test_broken_off_video_leaves_nothing(tmp_path: Path) -> None:
    writer = FrameWriter(Source(Path("clip.mp4"), (), 2, 10.0, 3), tmp_path)
    pixels = np.zeros((48, 64, 3), np.uint8)

    def broken_off() -> None:
        with writer:
            writer.write(Frame(0, "clip.mp4", pixels), pixels)
            assert [path.name for path in tmp_path.iterdir()] == [".clip.part.mp4"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert list(tmp_path.iterdir()) == []
    assert writer.written == []


def test_a_video_is_never_overwritten_by_its_copy(video: Path) -> None:
    before = video.read_bytes()
    with pytest.raises(RequestError, match=r"clip\.mp4: would overwrite the input video"):
        FrameWriter(open_source(video), video.parent)
    assert video.read_bytes() == before


def test_images_of_one_name_and_two_kinds_have_a_copy_each(tmp_path: Path) -> None:
    paint(tmp_path / "in" / "a.bmp", RED)
    paint(tmp_path / "in" / "a.tif", BLUE)
    source = open_source(tmp_path / "in")
    with FrameWriter(source, tmp_path / "out") as writer:
        for frame in source.frames():
            writer.write(frame, frame.pixels)
    assert [path.name for path in writer.written] == ["a.jpg", "a.tif.jpg"]
    red, blue = (next(open_source(path).frames()).pixels[0, 0].tolist() for path in writer.written)
    assert (red[0] > 200, blue[2] > 200) == (True, True)
