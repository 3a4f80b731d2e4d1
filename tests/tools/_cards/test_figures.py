"""The pictures of the cards: true to the operators, readable in light and dark, and said in words."""

import xml.etree.ElementTree as ET

import pytest
import timm
import torch
from contrast import contrast
from vertebra.kernels.window_attention import window_attention
from vertebra.tools._cards import figures, svg
from vertebra.tools.list import cards


@pytest.mark.parametrize(
    ("size", "partition"),
    [((7, 7), "block"), ((7, 7), "grid"), ((14, 7), "block"), ((7, 14), "block"), ((2, 2), "block")],
)
def test_a_drawn_window_is_what_the_operator_reads(size: tuple[int, int], partition: str) -> None:
    side, pixel = figures.SIDE, figures._PIXEL
    q, k, v = (torch.randn(1, side, side, 1, 8, requires_grad=True) for _ in range(3))
    out = window_attention(q, k, v, size, partition=partition)
    (read,) = torch.autograd.grad(out[0, pixel[0], pixel[1]].sum(), v)
    seen = {(row, column) for row, column in read[0].abs().sum((-1, -2)).nonzero().tolist()}
    assert seen == (figures.grid(pixel, 7) if partition == "grid" else figures.window(pixel, *size))


@pytest.mark.parametrize("key", cards())
def test_a_picture_is_svg_that_says_what_it_shows(key: str) -> None:
    root = ET.fromstring(figures.figure(key, "Some & Name"))
    labelled = {each.get("id"): each.text for each in root}
    assert all(labelled[name] for name in (root.get("aria-labelledby") or "").split())
    words = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]
    width = max(len(word) for word in words)
    assert width <= svg.BOX // 6.5, "words run out of their box"


@pytest.mark.parametrize("colours", [svg._LIGHT, svg._DARK], ids=["light", "dark"])
def test_pictures_are_readable_in_both_schemes(colours: dict[str, str]) -> None:
    assert contrast(colours["text"], colours["ground"]) >= 7
    assert contrast(colours["text"], colours["box"]) >= 7
    assert contrast(colours["line"], colours["ground"]) >= 3
    assert contrast(colours["query"], colours["key"]) >= 1.2
    assert contrast(colours["key"], colours["cell"]) >= 3


def test_what_is_reached_has_an_outline_of_the_keys_colour() -> None:
    drawing = ET.fromstring(figures.figure("van", "VAN"))
    (outline,) = [each for each in drawing.iter() if each.get("class") == "reach"]
    assert float(outline.get("width") or 0) == pytest.approx(svg.MAP * 23 / 27, abs=0.1)
    assert f".reach {{ stroke: {svg._LIGHT['key']}" in figures.figure("van", "VAN")


def test_boxes_that_share_the_work_stand_side_by_side() -> None:
    column = svg.Column("t", (svg.Branch(("first", ("one", "two"), "last")),))
    drawing = svg.draw("t", [column], [svg.Marks("m", 14, (0, 0), frozenset())])
    root = ET.fromstring(drawing)
    (one, two) = [each for each in root.iter() if each.text in ("one", "two")]
    assert one.get("y") == two.get("y")
    assert float(two.get("x") or 0) - float(one.get("x") or 0) > svg.BOX / 2
    assert "first - (one beside two) - last (added to its input)" in drawing


def test_the_drawn_regions_are_as_many_as_stage_3_chooses() -> None:
    attention = timm.create_model("biformer_tiny", depths=(1, 1, 1, 1)).stages[2].blocks[0].attn
    assert len({*figures._CHOSEN}) == attention.top_k
