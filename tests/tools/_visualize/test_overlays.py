"""Heat ranks for all eyes, what is unseen is dark, and captions stay below the picture and inside its width."""

import numpy as np
from PIL import Image
from vertebra.tools._visualize.overlays import captioned, colours, dim_unseen, heat_over, tinted


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def test_more_heat_is_lighter() -> None:
    lightness = colours(np.linspace(0, 1, 256)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness) > 0).all()


def test_heat_covers_what_is_seen_and_the_rest_is_dark() -> None:
    heat = np.full((8, 12), np.nan, np.float32)
    heat[:, :6], heat[:, :3] = 0, 1
    pixels = np.asarray(heat_over(Image.new("RGB", (12, 8), "white"), heat)).astype(int)
    hot, cold, unseen = (pixels[4, x] for x in (1, 4, 10))
    assert abs(hot - [255, 247, 187]).max() < 5  # nearly the last colour of the heat
    assert cold[1] < hot[1] - 80
    assert (unseen == unseen[0]).all()
    assert unseen[0] < 100


def test_a_tint_covers_its_area_alone() -> None:
    picture, areas = noise(20, 10), np.zeros((10, 20), bool)
    areas[:, :7] = True
    before, after = np.asarray(picture), np.asarray(tinted(picture, areas, "#ffffff"))
    assert (after[:, :7] >= before[:, :7]).all()
    assert np.array_equal(after[:, 7:], before[:, 7:])
    assert np.array_equal(np.asarray(dim_unseen(picture, areas))[:, :7], before[:, :7])


def test_a_caption_is_below_the_picture_and_inside_its_width() -> None:
    picture = noise(300, 40)
    sheet = np.asarray(captioned(picture, "many words that take more than one line of such a narrow picture " * 3))
    assert np.array_equal(sheet[:40], np.asarray(picture))
    strip = sheet[40:]
    assert strip.min() < 50  # there is something to read
    assert (strip[:, :6] == 255).all()
    assert (strip[:, -6:] == 255).all()
    assert (strip[-3:] == 255).all()
