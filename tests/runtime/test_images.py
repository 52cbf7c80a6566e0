from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from kd_vision.core.errors import RequestError
from kd_vision.runtime.images import image_size, list_images, read_image


@pytest.fixture
def rgb() -> np.ndarray:
    """24 x 40, smooth, so that JPEG keeps it; no symmetry."""
    y, x = np.mgrid[0:24, 0:40]
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 4], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_files_come_back_as_written(tmp_path: Path, rgb: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(rgb).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(path, 3), rgb)


def test_jpeg_reads_as_opencv_reads_it(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(rgb).save(path, quality=95)
    np.testing.assert_array_equal(read_image(path, 3), cv2.imread(str(path))[..., ::-1])


def test_gray_file_repeats_into_three_channels_and_stays_one(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "gray.png"
    Image.fromarray(rgb[..., 0]).save(path)
    np.testing.assert_array_equal(read_image(path, 1), rgb[..., :1])
    np.testing.assert_array_equal(read_image(path, 3), np.repeat(rgb[..., :1], 3, axis=2))


def test_colour_becomes_gray_by_rec_601(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "colour.png"
    Image.fromarray(rgb).save(path)
    luma = rgb.astype(float) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(read_image(path, 1)[..., 0], luma, atol=1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_the_full_range(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    wide = np.array([[0, 257, 128 * 257, 65535], [128, 129, 65534, 300]], np.uint16)
    Image.fromarray(wide).save(path)
    expected = np.array([[0, 1, 128, 255], [0, 1, 255, 1]], np.uint8)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], expected)
    np.testing.assert_array_equal(read_image(path, 3)[..., 2], expected)


def test_sixteen_bit_colour_is_scaled(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), rgb[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_allclose(read_image(path, 3), rgb, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_rotation_is_applied(tmp_path: Path, rgb: np.ndarray, orientation: int, suffix: str) -> None:
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(path, exif=exif.tobytes(), **({"quality": 100} if suffix == "jpg" else {}))
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    pixels = read_image(path, 3)
    assert image_size(path) == (pixels.shape[1], pixels.shape[0])
    assert pixels.shape == upright.shape
    np.testing.assert_allclose(pixels, upright.astype(int), atol=2)


def test_palette_gives_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.save(path)
    assert read_image(path, 3).tolist() == [[[255, 0, 0], [0, 255, 0], [10, 20, 30]]]


def test_one_bit_gives_black_and_white(tmp_path: Path) -> None:
    path = tmp_path / "bits.png"
    Image.fromarray(np.array([[True, False]])).save(path)
    assert read_image(path, 1).ravel().tolist() == [255, 0]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_gives_the_colours_it_prints(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"print.{suffix}"
    colour = Image.new("RGB", (32, 32), (200, 40, 90))
    colour.convert("CMYK").save(path, **({"quality": 100} if suffix == "jpg" else {}))
    np.testing.assert_allclose(read_image(path, 3)[16, 16], [200, 40, 90], atol=4)


def test_alpha_is_left_out_or_kept_as_the_fourth_channel(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "alpha.png"
    four = np.dstack([rgb, rgb[..., 0] // 2])
    Image.fromarray(four, mode="RGBA").save(path)
    np.testing.assert_array_equal(read_image(path, 3), rgb)
    np.testing.assert_array_equal(read_image(path, 4), four)


def test_four_channels_of_a_three_channel_file_are_refused(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "three.png"
    Image.fromarray(rgb).save(path)
    with pytest.raises(RequestError, match=r"three.png: the model takes 4 channels, the image is 'RGB'"):
        read_image(path, 4)


def test_float_pixels_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    with pytest.raises(RequestError, match=r"float.tif: pixel format 'F' has no agreed conversion to 8 bits"):
        read_image(path, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RequestError, match=rf"cut.{suffix}: "):
        read_image(path, 3)


def test_text_empty_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    text, empty = tmp_path / "text.jpg", tmp_path / "empty.png"
    text.write_text("not an image")
    empty.write_bytes(b"")
    for path in (text, empty):
        with pytest.raises(RequestError, match="is not an image of a known kind; give JPEG, PNG"):
            read_image(path, 3)
        with pytest.raises(RequestError, match="is not an image of a known kind"):
            image_size(path)
    with pytest.raises(RequestError, match=r"none.jpg: image is missing"):
        read_image(tmp_path / "none.jpg", 3)


def test_list_images_goes_into_folders_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name in ("b.JPG", "a.png", "notes.txt", "deeper/c.tif"):
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.png", "b.JPG", "deeper/c.tif"]
    with pytest.raises(RequestError, match="image folder is missing"):
        list_images(tmp_path / "nowhere")


def test_broken_file_does_not_reach_the_image_open_that_other_packages_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:20])

    def installs_software(*_: object) -> None:
        raise ModuleNotFoundError("pi_heif")

    monkeypatch.setattr(Image, "open", installs_software)
    with pytest.raises(RequestError, match=r"cut.png: is corrupt"):
        read_image(path, 3)
    with pytest.raises(RequestError, match=r"cut.png: is corrupt"):
        image_size(path)


def test_absurd_size_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "huge.bmp"
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = (100_000).to_bytes(4, "little") * 2
    path.write_bytes(bytes(content))
    with pytest.raises(RequestError, match=r"huge.bmp: 100000x100000 is too large to read; cut it into tiles"):
        read_image(path, 3)
