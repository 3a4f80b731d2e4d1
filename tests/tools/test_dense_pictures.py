"""Pictures of detections and segmentations, pixel by pixel: colours lie where they belong, and names can be read."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from vertebra.tools import _dense
from vertebra.tools._dense import Dense, draw_boxes, draw_segments

RED, GREEN, BLUE = (200, 20, 30), (10, 180, 40), (20, 40, 210)
GREY = (100, 100, 100)
SCALE = 6  # of an image 100 pixels wide: enlarged until it is 512 or wider


@pytest.fixture
def dense() -> Dense:
    """Three classes, and no model: nothing is predicted here."""
    return Dense(None, ["sky", "road", "bus"], [RED, GREEN, BLUE], None, segments=False)


def image(size: tuple[int, int] = (100, 60)) -> Image.Image:
    return Image.new("RGB", size, GREY)


def entry(box: Sequence[float], index: int, score: float = 0.9, mask: Any = None) -> dict[str, Any]:
    return {"box": list(box), "label": "name", "index": index, "score": score, "mask": mask}


def region(rows: slice, columns: slice, size: tuple[int, int] = (60, 100)) -> dict[str, Any]:
    """COCO's encoding of a mask (H, W) that is set there."""
    pytest.importorskip("pycocotools")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[rows, columns] = True
    return _dense._encoded(mask)


def test_a_boxs_edge_has_its_class_colour_at_the_scaled_corners(dense: Dense) -> None:
    drawn = draw_boxes(dense, image(), [entry((20, 30, 60, 50), 1)])
    assert drawn.size == (600, 360)
    left, top, right, bottom = (SCALE * side for side in (20, 30, 60, 50))
    middle = ((left + right) // 2, (top + bottom) // 2)
    edge = [*itertools.product((left, right), (top, bottom)), (left, middle[1]), (middle[0], bottom)]
    assert [drawn.getpixel(place) for place in edge] == [GREEN] * len(edge)
    around = [middle, (left - 1, middle[1]), (right + 1, middle[1]), (middle[0], bottom + 1)]
    assert [drawn.getpixel(place) for place in around] == [GREY] * len(around)


def test_the_edge_of_the_best_box_lies_on_top(dense: Dense) -> None:
    drawn = draw_boxes(dense, image(), [entry((10, 30, 60, 50), 0), entry((30, 20, 80, 40), 2, score=0.5)])
    crossings = [(SCALE * 30, SCALE * 30), (SCALE * 60, SCALE * 40)]
    assert [drawn.getpixel(place) for place in crossings] == [RED] * 2


def test_a_mask_is_coloured_inside_and_nowhere_else(dense: Dense) -> None:
    mask = region(slice(30, 40), slice(20, 50))
    drawn = np.asarray(draw_boxes(dense, image(), [entry((0, 20, 99, 59), 2, mask=mask)])).astype(int)
    inside = drawn[SCALE * 30 : SCALE * 40, SCALE * 20 : SCALE * 50]
    assert abs(inside - (np.array(GREY) + BLUE) / 2).max() <= 1
    rest = drawn[SCALE * 25 : SCALE * 55, SCALE * 10 : SCALE * 90].copy()  # what neither edge nor name covers
    rest[SCALE * 5 : SCALE * 15, SCALE * 10 : SCALE * 40] = GREY
    assert (rest == GREY).all()


def test_a_mask_is_drawn_at_the_pictures_size() -> None:
    drawn = _dense._with_mask(image((300, 180)), region(slice(0, 20), slice(50, 100)), RED)
    coloured = (np.asarray(drawn) != GREY).any(2)
    expected = np.zeros((180, 300), bool)
    expected[:60, 150:] = True
    assert (coloured == expected).all()


def test_a_name_stands_above_its_box_in_its_colour(dense: Dense) -> None:
    drawn = draw_boxes(dense, image(), [entry((20, 30, 60, 50), 1)])
    assert drawn.getpixel((SCALE * 20 + 1, SCALE * 30 - 3)) == GREEN


def test_names_of_near_boxes_stand_side_by_side(dense: Dense) -> None:
    drawn = draw_boxes(dense, image(), [entry((10, 30, 90, 50), 0), entry((10, 30, 90, 50), 2, score=0.5)])
    above = SCALE * 30 - 3
    assert drawn.getpixel((SCALE * 10 + 1, above)) == RED
    assert drawn.getpixel((SCALE * 90 - 2, above)) == BLUE


@pytest.mark.parametrize(
    "boxes",
    [
        [(100, 100, 300, 200)] * 4,
        [(0, 0, 90, 40), (5, 5, 95, 45)],
        [(420, 280, 512, 300), (430, 285, 512, 300)],
        [(0, 0, 512, 300)] * 3,
        [(-20, -10, 40, 20), (480, 290, 560, 330)],
    ],
    ids=["one place", "upper left corner", "lower right corner", "the whole picture", "beyond the picture"],
)
def test_names_lie_in_the_picture_and_on_no_other(boxes: list[tuple[int, ...]]) -> None:
    size, places = (512, 300), []
    for box in boxes:
        places.append(_dense._free_place(box, (0, 0, 80, 18), size, places))
    for left, top, right, bottom in places:
        assert (right - left, bottom - top) == (80, 18)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
    for a, b in itertools.combinations(places, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


@pytest.fixture
def classes() -> torch.Tensor:
    """A map (48, 64): left of the middle class 0, right of it class 2, and class 1 in four pixels."""
    found = torch.zeros(48, 64, dtype=torch.long)
    found[:, 32:] = 2
    found[:2, :2] = 1
    return found


def test_regions_take_the_colours_of_their_classes(dense: Dense, classes: torch.Tensor) -> None:
    drawn = np.asarray(draw_segments(dense, image((64, 48)), classes)).astype(int)
    assert drawn.shape[1] == 512
    whole = classes.repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()  # the image is 8 times as large
    for index, colour in ((0, RED), (1, GREEN), (2, BLUE)):
        pixels = drawn[:384][whole == index]
        assert abs(pixels - (0.45 * np.array(GREY) + 0.55 * np.array(colour))).max() <= 1


def test_the_legend_names_the_classes_that_cover_some_of_the_image(
    dense: Dense, classes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    write = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda pen, place, text, **how: (said.append(text), write(pen, place, text, **how))
    )
    legend = draw_segments(dense, image((64, 48)), classes)
    legend = legend.crop((0, 384, *legend.size))
    assert said == ["sky: 49.9%", "bus: 50.0%", "1 more below 0.5%"]
    colours = {colour for _, colour in legend.getcolors(legend.width * legend.height)}
    assert colours & {RED, GREEN, BLUE} == {RED, BLUE}
    assert (0, 0, 0) in colours  # the names


def test_classes_that_are_all_rare_are_drawn(dense: Dense) -> None:
    many = Dense(None, [str(i) for i in range(256)], [RED, BLUE], None, segments=True)
    drawn = draw_segments(many, image((16, 16)), torch.arange(256).view(16, 16))
    assert drawn.getpixel((0, 0)) != GREY


def test_names_of_a_narrow_image_have_room_beside_it(dense: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too tall to be made wide enough: each name, and each class of a legend, lies inside the drawing all the same."""
    extents = []
    write = ImageDraw.ImageDraw.text

    def remember(pen: Any, place: tuple[float, float], text: str, **how: Any) -> None:
        extents.append(pen.textbbox(place, text, font=how["font"]))
        write(pen, place, text, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", remember)
    narrow = image((10, 1200))
    boxes = draw_boxes(dense, narrow, [entry((2, 300, 8, 700), 1)])
    classes = torch.zeros(1200, 10, dtype=torch.long)
    classes[600:] = 2
    legend = draw_segments(dense, narrow, classes)
    assert boxes.width == legend.width
    assert len(extents) == 3  # one box, two classes
    assert all(left >= 0 and right <= legend.width for left, _, right, _ in extents)
