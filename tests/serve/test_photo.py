import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from mnist_jax.config import InputError
from mnist_jax.serve import photo
from mnist_jax.serve.digit import to_digit
from mnist_jax.serve.photo import read_photo
from tests.conftest import drawn


def test_files_give_their_grey_values(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "grey.png"), grey)
    Image.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "rgb.png"), grey)
    Image.fromarray(grey.astype(np.uint16) * 256).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "deep.png"), grey)
    Image.fromarray(grey > 128).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "bits.png"), 255 * (grey > 128))


def test_transparent_is_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[1, 1, 3] = 255  # one black dot on nothing
    Image.fromarray(pixels).save(tmp_path / "drawing.png")
    found = read_photo(tmp_path / "drawing.png")
    assert found[1, 1] == 0
    assert (found == 255).sum() == 15


def test_a_phone_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(drawn()).save(tmp_path / "turned.jpg", exif=exif)
    assert read_photo(tmp_path / "turned.jpg").shape == (200, 280)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n broken"])
def test_no_picture_is_refused(tmp_path, content):
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


def test_a_picture_of_absurd_size_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(photo, "LARGEST_PHOTO", 100)
    Image.fromarray(drawn()).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="200 x 280 pixels"):
        read_photo(tmp_path / "bomb.png")
    monkeypatch.setattr(photo, "LARGEST_FILE", 100)
    with pytest.raises(InputError, match="it has more than 100 bytes"):
        read_photo(tmp_path / "bomb.png")


def test_a_large_picture_is_made_grey_part_by_part(tmp_path, monkeypatch):
    monkeypatch.setattr(photo, "TILE", 16)
    random = np.random.default_rng(0)
    grey, alpha = random.integers(0, 256, (2, 50, 37), np.uint8)
    Image.fromarray(np.dstack([grey, grey, grey, alpha])).save(tmp_path / "page.png")
    share = alpha / 255
    expected = share * grey + (1 - share) * 255  # over white
    assert np.abs(read_photo(tmp_path / "page.png") - expected).max() < 1.01
    Image.fromarray(grey).save(tmp_path / "page.gif", transparency=7)
    expected = np.where(grey == 7, 255, grey)
    np.testing.assert_array_equal(read_photo(tmp_path / "page.gif"), expected)


def test_what_is_no_plain_file_is_not_opened(tmp_path):
    """It would be waited for, or run a program: Pillow hands EPS to Ghostscript."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="it is no plain file"):
        read_photo(tmp_path / "pipe.png")
    Image.fromarray(drawn()).save(tmp_path / "page.eps")
    with pytest.raises(InputError, match="cannot identify image file"):
        read_photo(tmp_path / "page.eps")


def files():
    """A small picture in many formats, as bytes."""
    grey = Image.fromarray(drawn(60, 50, 10, 20, 40, 8))
    colour, few = grey.convert("RGB"), grey.convert("1")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    for name, (picture, form, options) in {
        "PNG": (grey.convert("RGBA"), "PNG", {"exif": exif}),
        "16 bits": (deep, "PNG", {}),
        "JPEG": (colour, "JPEG", {"exif": exif}),
        "progressive": (colour.convert("CMYK"), "JPEG", {"progressive": True}),
        "GIF": (grey, "GIF", {"transparency": 255, "comment": b"digit"}),
        "BMP": (grey, "BMP", {}),
        "TIFF": (colour, "TIFF", {"exif": exif}),
        "LZW": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "fax": (few, "TIFF", {"compression": "group4"}),
        "WEBP": (colour, "WEBP", {"exif": exif}),
    }.items():
        stream = io.BytesIO()
        picture.save(stream, form, **options)
        yield pytest.param(stream.getvalue(), id=name)


@pytest.mark.parametrize("content", list(files()))
def test_a_damaged_file_is_refused_in_one_line_or_read(tmp_path, capfd, content):
    random = np.random.default_rng(0)
    file = tmp_path / "picture"
    file.write_bytes(content)
    assert to_digit(read_photo(file), (28, 28)).max() == 255
    for _ in range(100):
        damaged = bytearray(
            content[: random.integers(len(content)) if random.random() < 0.3 else None]
        )
        for place in random.integers(0, max(1, len(damaged)), min(len(damaged), 3)):
            damaged[place] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        with warnings.catch_warnings(record=True, action="always") as heard:
            try:
                to_digit(read_photo(file), (28, 28))
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017
        assert not heard
    os.write(2, b"and whatever comes after it is heard")
    assert capfd.readouterr() == ("", "and whatever comes after it is heard")
