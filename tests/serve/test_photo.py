import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from mnist_jax.errors import InputError
from mnist_jax.serve import photo
from mnist_jax.serve.digit import to_digit
from mnist_jax.serve.photo import read_photo
from tests.conftest import drawn


def test_grey_values_of_several_modes(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "grey.png"), grey)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "rgb.png"), grey)
    Image.fromarray(grey.astype(np.uint16) * 256).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "deep.png"), grey)
    Image.fromarray(grey > 128).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "bits.png"), 255 * (grey > 128))


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[1, 1, 3] = 255  # one black pixel, the rest is transparent
    Image.fromarray(pixels).save(tmp_path / "drawing.png")
    grey = read_photo(tmp_path / "drawing.png")
    assert grey[1, 1] == 0
    assert (grey == 255).sum() == 15


def test_a_phone_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(drawn()).save(tmp_path / "turned.jpg", exif=exif)
    assert read_photo(tmp_path / "turned.jpg").shape == (200, 280)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_not_a_picture_is_refused(tmp_path, content):
    file = tmp_path / "file.png"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"file.png cannot be read as a picture"):
        read_photo(file)


def test_a_truncated_picture_is_refused(tmp_path):
    file = tmp_path / "half.png"
    Image.fromarray(drawn()).save(file)
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(InputError, match=r"half.png cannot be read"):
        read_photo(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_photo(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot be read"):
        read_photo(tmp_path)


def test_a_picture_with_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(photo, "MAX_PIXELS", 100)
    Image.fromarray(drawn()).save(tmp_path / "bomb.png")
    expected = r"\(it has 200 x 280 pixels\); use a PNG or JPEG file of at most 100 pixels"
    with pytest.raises(InputError, match=expected):
        read_photo(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # far above it, Pillow itself refuses
    with pytest.raises(InputError, match=r"cannot be read as a picture \(Image size"):
        read_photo(tmp_path / "bomb.png")


def test_half_transparent_pixels_are_blended_with_white(tmp_path):
    random = np.random.default_rng(0)
    grey, alpha = random.integers(0, 256, (2, 50, 37), np.uint8)
    Image.fromarray(np.dstack([grey, grey, grey, alpha])).save(tmp_path / "page.png")
    opacity = alpha / 255
    expected = opacity * grey + (1 - opacity) * 255
    assert np.abs(read_photo(tmp_path / "page.png") - expected).max() < 1.01
    Image.fromarray(grey).save(tmp_path / "page.gif", transparency=7)
    expected = np.where(grey == 7, 255, grey)
    np.testing.assert_array_equal(read_photo(tmp_path / "page.gif"), expected)


def test_pipes_and_eps_files_are_not_opened(tmp_path):
    """A read from the pipe would never end, and Pillow would run Ghostscript for EPS."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="it is not a regular file"):
        read_photo(tmp_path / "pipe.png")
    Image.fromarray(drawn()).save(tmp_path / "page.eps")
    with pytest.raises(InputError, match="cannot identify image file"):
        read_photo(tmp_path / "page.eps")


def files():
    """The bytes of a small picture in many formats."""
    grey = Image.fromarray(drawn(60, 50, 10, 20, 40, 8))
    colour, binary = grey.convert("RGB"), grey.convert("1")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    for name, (picture, format_name, options) in {
        "PNG": (grey.convert("RGBA"), "PNG", {"exif": exif}),
        "16 bits": (deep, "PNG", {}),
        "JPEG": (colour, "JPEG", {"exif": exif}),
        "progressive": (colour.convert("CMYK"), "JPEG", {"progressive": True}),
        "GIF": (grey, "GIF", {"transparency": 255, "comment": b"digit"}),
        "BMP": (grey, "BMP", {}),
        "TIFF": (colour, "TIFF", {"exif": exif}),
        "LZW": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "fax": (binary, "TIFF", {"compression": "group4"}),
        "WEBP": (colour, "WEBP", {"exif": exif}),
    }.items():
        stream = io.BytesIO()
        picture.save(stream, format_name, **options)
        yield pytest.param(stream.getvalue(), id=name)


@pytest.mark.parametrize("content", list(files()))
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, capfd, content):
    random = np.random.default_rng(0)
    file = tmp_path / "picture"
    file.write_bytes(content)
    assert to_digit(read_photo(file), (28, 28)).max() == 255
    for _ in range(100):
        damaged = bytearray(
            content[: random.integers(len(content)) if random.random() < 0.3 else None]
        )
        for position in random.integers(0, max(1, len(damaged)), min(len(damaged), 3)):
            damaged[position] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        with warnings.catch_warnings(record=True, action="always") as caught:
            try:
                to_digit(read_photo(file), (28, 28))
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017
        assert not caught
    os.write(2, b"and later messages appear")
    assert capfd.readouterr() == ("", "and later messages appear")
