"""What is drawn over a picture: heat, areas, lines and a place, with a caption below that says what they are.

The caption has its own white ground, so that it can be read in light and dark viewers; lines are light with dark edges.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from vertebra.tools._pictures import find_font

HEAT = ("#1d1147", "#7a1d6d", "#d1424f", "#f99c38", "#fff6b0")  # ever lighter, so that grey prints and all eyes rank it
TINTS = ("#ffb000", "#4cc9f0")
_UNSEEN = 0.35  # of the brightness of what the model does not see
_LEAST_WIDTH = 240  # of a caption: some words a line
_FAINT, _STRONG = 0.4, 0.85  # how much of the heat's colour covers the picture at its least and most


def colours(shares: np.ndarray) -> np.ndarray:
    """Shares from 0 to 1, (...) -> colours (..., 3), uint8."""
    stops = np.array([ImageColor.getrgb(colour) for colour in HEAT], float)
    at, all_256 = np.linspace(0, 1, len(stops)), np.linspace(0, 1, 256)
    table = np.stack([np.interp(all_256, at, stops[:, channel]) for channel in range(3)], -1)
    return table.round().astype(np.uint8)[_bytes(shares)]


def dim_unseen(picture: Image.Image, seen: np.ndarray) -> Image.Image:
    """The picture, dark where `seen`, (height, width) of bool, is not."""
    dark = Image.blend(picture, Image.new("RGB", picture.size), 1 - _UNSEEN)
    return Image.composite(picture, dark, Image.fromarray(_bytes(seen)))


def grey(picture: Image.Image) -> Image.Image:
    """The picture without its colours, so that those drawn over it are seen on any."""
    return picture.convert("L").convert("RGB")


def heat_over(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """The picture in grey below heat (height, width) from 0 to 1, dark where that is NaN."""
    seen, shares = ~np.isnan(heat), np.nan_to_num(heat)
    cover = Image.fromarray(_bytes((_FAINT + (_STRONG - _FAINT) * shares) * seen))
    warm = Image.composite(Image.fromarray(colours(shares)), grey(picture), cover)
    return dim_unseen(warm, seen)


def tinted(picture: Image.Image, areas: np.ndarray, tint: str, cover: float = 0.5) -> Image.Image:
    """The picture with a tint over `areas`, (height, width) of bool."""
    mixed = Image.blend(picture, Image.new("RGB", picture.size, tint), cover)
    return Image.composite(mixed, picture, Image.fromarray(_bytes(areas)))


def _bytes(shares: np.ndarray) -> np.ndarray:
    """Shares from 0 to 1, or what is true, as numbers from 0 to 255."""
    return (shares * np.float32(255)).round().astype(np.uint8)


def outline(picture: Image.Image, box: Sequence[float], colour: str = "white", width: int = 1) -> None:
    """Draw a rectangle (x0, y0, x1, y1) around its pixels, in place, with a dark edge inside and outside."""
    pen = ImageDraw.Draw(picture)
    x0, y0, x1, y1 = box[0], box[1], max(box[0], box[2] - 1), max(box[1], box[3] - 1)
    pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="black", width=width + 2)
    pen.rectangle((x0, y0, x1, y1), outline=colour, width=width)


def line(picture: Image.Image, ends: Sequence[float]) -> None:
    """Draw a thin line (x0, y0, x1, y1) in place, light beside dark."""
    pen = ImageDraw.Draw(picture)
    x0, y0, x1, y1 = ends
    pen.line((x0, y0, x1, y1), fill="white")
    aside = (1, 0) if x0 == x1 else (0, 1)
    pen.line((x0 + aside[0], y0 + aside[1], x1 + aside[0], y1 + aside[1]), fill="black")


def mark(picture: Image.Image, x: float, y: float) -> None:
    """Draw a ring around a place, in place."""
    radius = max(6, min(picture.size) // 30)  # what is around the place shall be seen inside
    pen = ImageDraw.Draw(picture)
    for width, colour in ((5, "black"), (2, "white")):
        reach = radius + width / 2
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour, width=width)


def captioned(picture: Image.Image, text: str, scale: tuple[str, str] | None = None) -> Image.Image:
    """The picture above a white strip with a text, and with a bar of the heat's colours between two words if given."""
    width = max(picture.width, _LEAST_WIDTH)
    size = max(13, width // 40)
    font, row = find_font(size), round(size * 1.4)
    lines = _wrapped(text, font, width - 12)
    height = row * (len(lines) + (scale is not None)) + 8
    sheet = Image.new("RGB", (width, picture.height + height), "white")
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for place, words in enumerate(lines):
        pen.text((6, picture.height + 4 + place * row), words, fill="black", font=font)
    if scale is not None:
        top = picture.height + 4 + len(lines) * row
        left, right = (round(font.getlength(word)) + 12 for word in scale)
        bar = colours(np.linspace(0, 1, max(1, width - left - right)))
        sheet.paste(Image.fromarray(np.repeat(bar[None], size, 0)), (left, top + 2))
        pen.text((6, top), scale[0], fill="black", font=font)
        pen.text((width - 6, top), scale[1], fill="black", font=font, anchor="ra")
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
