"""Pixels of image files become 8-bit RGB without losing what is bright."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vertebra.backbones._images import as_rgb

GREY = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_keep_their_high_byte(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GREY).save(tmp_path / f"grey.{suffix}")
    with Image.open(tmp_path / f"grey.{suffix}") as image:
        pixels = np.asarray(as_rgb(image))
    assert np.array_equal(pixels, np.repeat((GREY >> 8)[..., None], 3, 2))


def test_the_order_of_bytes_in_the_file_is_minded() -> None:
    image = Image.frombytes("I;16B", (8, 8), GREY.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(as_rgb(image))[..., 0], GREY >> 8)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_of_32_bits_is_taken_for_16_bits_where_8_do_not_hold_it(tmp_path: Path, kind: type) -> None:
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "grey.tif")
    with Image.open(tmp_path / "grey.tif") as image:
        assert image.mode in ("I", "F")
        assert np.array_equal(np.asarray(as_rgb(image))[..., 0], GREY >> 8)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_of_32_bits_that_8_hold_stays_as_it_is(kind: type) -> None:
    image = Image.fromarray((GREY >> 8).astype(kind))
    assert np.array_equal(np.asarray(as_rgb(image))[..., 0], GREY >> 8)


@pytest.mark.parametrize("brightest", [250, 65535])
def test_files_that_hold_16_bits_are_taken_for_such_however_dark_they_are(tmp_path: Path, brightest: int) -> None:
    image = Image.fromarray(np.array([[0, brightest]], np.int32))
    image.save(tmp_path / "grey.pgm")
    with Image.open(tmp_path / "grey.pgm") as opened:
        assert opened.mode == "I"
        assert np.asarray(as_rgb(opened))[0, :, 0].tolist() == [0, brightest >> 8]
    image.format = "PNG"  # as Pillow before 10.3 opens such files
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == [0, brightest >> 8]


def test_values_that_no_pixel_has_are_black_or_white() -> None:
    image = Image.fromarray(np.array([[np.nan, -5, 1e9, np.inf, 65535]], np.float32))
    assert np.asarray(as_rgb(image))[0, :, 0].tolist() == [0, 0, 255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_all_other_modes_are_converted_as_pillow_does(mode: str) -> None:
    image = Image.fromarray((GREY >> 8).astype(np.uint8)).convert(mode)
    assert as_rgb(image).tobytes() == image.convert("RGB").tobytes()
