"""Maps lie over the place of the picture that they were made of, however images are resized and cropped."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from vertebra.tools._visualize.view import View, prepare

CASES: list[dict[str, Any]] = [
    {"input_size": (3, 64, 64), "crop_pct": 0.875},
    {"input_size": (3, 64, 64), "crop_pct": 1.0},
    {"input_size": (3, 64, 96), "crop_pct": 0.9},
    {"input_size": (3, 64, 64), "crop_pct": 0.9, "crop_mode": "squash"},
    {"input_size": (3, 64, 64), "crop_pct": 0.9, "crop_mode": "border"},
    {"input_size": (3, 64, 64), "crop_pct": 1.0, "crop_mode": "border"},
    {"input_size": (3, 64, 64), "crop_pct": 0.9, "crop_border_pixels": 9},
]


def with_spot(size: tuple[int, int], spot: tuple[int, int], radius: int = 6) -> Image.Image:
    image = Image.new("RGB", size)
    x, y = spot
    image.paste("white", (x - radius, y - radius, x + radius, y + radius))
    return image


def centre_of_mass(values: np.ndarray) -> tuple[float, float]:
    values = np.nan_to_num(values)
    y, x = np.mgrid[: values.shape[0], : values.shape[1]] + 0.5
    return float((x * values).sum() / values.sum()), float((y * values).sum() / values.sum())


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize(("size", "spot"), [((301, 200), (171, 70)), ((150, 260), (60, 161))])
def test_a_bright_spot_comes_back_to_its_place(
    options: dict[str, Any], size: tuple[int, int], spot: tuple[int, int]
) -> None:
    transform = create_transform(**options, interpolation="bicubic", is_training=False)
    images = [prepare(image, transform) for image in (with_spot(size, spot), Image.new("RGB", size))]
    (bright, view), (dark, _) = images
    seen = (bright - dark).mean(0).clamp(min=0)
    assert centre_of_mass(seen.numpy()) == pytest.approx(view.into(*spot), abs=0.3)
    assert centre_of_mass(view.lay(seen, 1, smooth=True)) == pytest.approx(spot, abs=1)
    twice = view.resized((2 * size[0], 2 * size[1]))
    assert centre_of_mass(twice.lay(seen, 1)) == pytest.approx([2 * side for side in spot], abs=3)


def test_what_is_cropped_away_is_not_seen() -> None:
    _, view = prepare(Image.new("RGB", (300, 200)), create_transform((3, 64, 64), crop_pct=1.0))
    laid = view.lay(torch.ones(4, 4), 16)
    assert laid.shape == (200, 300)
    assert np.isnan(laid[:, :50]).all()
    assert np.isnan(laid[:, 250:]).all()
    assert (laid[:, 50:250] == 1).all()


def test_tokens_beyond_the_image_are_cut_off() -> None:
    view = View((60, 60), (30, 30), (0.5, 0.5))
    laid = view.lay(torch.arange(4.0).reshape(2, 2), 16)  # two tokens of 16 pixels reach over 30
    assert np.array_equal(np.unique(laid, return_counts=True)[1], [32 * 32, 28 * 32, 28 * 32, 28 * 28])


def test_places_go_there_and_back() -> None:
    view = View((60, 60), (30, 30), (0.5, 0.7), (3, -2)).resized((180, 20))
    assert view.back(*view.into(17.5, 29)) == pytest.approx((17.5, 29))
    assert view.box(-5, 1, 10, 99) == pytest.approx((*view.back(0, 1), *view.back(10, 30)))
