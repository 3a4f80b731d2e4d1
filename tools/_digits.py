"""Draws scikit-learn's handwritten digits: one on a card to classify, several in a scene to detect and segment.

Source   sklearn.datasets.load_digits: 1797 digits of 8x8 pixels in 17 grey levels, by thirteen writers
Look     bright ink on a dark, softly textured canvas. In every channel the ink's colour is brighter than any canvas,
         because with ink now darker, now brighter than its surroundings nothing is learned within minutes
Ink      a coverage in [0, 1]: half or more is the digit, less than half is its soft rim, 0 is canvas
Random   every picture has a generator of its own, seeded by (seed, split, kind, number): a scene looks the same
         however many others are made
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image
from vertebra.tools._common import need

SOURCES = 1797
CARD = 64
SCENE = 128
SIZES = (20, 60)
UNLABELLED, BACKGROUND, FIRST_DIGIT = 0, 1, 2
SPLITS = ("train", "val")

_CANVAS_MAX = 84.0
_INK_MIN = 116.0
_RAMP = (0.14, 0.62)  # grey levels of the source that become no ink and full ink: keeps loops open, makes edges crisp
_CUBIC = Image.Resampling.BICUBIC
_RIM = 0.2  # a pixel covered less than this counts as canvas
_KEEP_VISIBLE = 0.8
_BOX_OVERLAP = 0.25


@dataclass(frozen=True)
class Sources:
    """The digits that one split may draw from: `index` in load_digits, `label` 0-9, `grey` (N, 8, 8) in [0, 1]."""

    index: np.ndarray
    label: np.ndarray
    grey: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Digit:
    """One digit of a scene: its index in load_digits, its label 0-9 and its visible ink, (H, W) bool."""

    source: int
    label: int
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """`image` (H, W, 3) uint8, `labels` (H, W) uint8 as the semantic set stores them, `digits` from back to front."""

    image: np.ndarray
    labels: np.ndarray
    digits: list[Digit]


def load_sources() -> dict[str, Sources]:
    """The source digits of train (1437) and val (360), which share none; UserError where scikit-learn is missing.

    Sorted by class, every fifth digit belongs to val: 35 to 37 of each class. The split is the same for every seed, so
    that a network trained on one seed's set can be tested on another's; it uses no random numbers, so that it is the
    same with every version of NumPy; and as the file goes from writer to writer, val has all of them.
    """
    data = need("sklearn.datasets", extra="train").load_digits()
    label = np.asarray(data.target, dtype=np.int64)
    in_val = np.zeros(len(label), dtype=bool)
    in_val[np.argsort(label, kind="stable")[::5]] = True
    grey = np.asarray(data.images, dtype=np.float32) / 16
    parts = {"train": np.flatnonzero(~in_val), "val": np.flatnonzero(in_val)}
    return {split: Sources(index, label[index], grey[index]) for split, index in parts.items()}


def make_rng(seed: int, split: str, kind: str, number: int) -> np.random.Generator:
    """The generator of one picture; `kind` is "card" or "scene"."""
    return np.random.default_rng((seed, SPLITS.index(split), ("card", "scene").index(kind), number))


def draw_card(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One digit (8, 8), large and near the middle of a canvas: (64, 64, 3) uint8."""
    ink = _ink(grey, int(rng.integers(42, 57)))
    room = np.array([CARD, CARD]) - ink.shape
    top, left = (room / 2 + rng.uniform(-0.35, 0.35, 2) * room).astype(int)
    image = _canvas(rng, CARD)
    _paint(image, ink, int(top), int(left), _colour(rng.uniform(), rng))
    return _to_bytes(image)


def draw_scene(sources: Sources, rng: np.random.Generator) -> Scene:
    """Two to five digits on a canvas of 128x128: later ones lie on top, each keeps 80 % of its ink or more in sight."""
    wanted = int(rng.integers(2, 6))
    # a crowd that does not fit is thrown away whole, so that crowds are as frequent as pairs
    while (placed := _place(sources, rng, wanted)) is None:
        pass
    return _compose(placed, rng)


@dataclass(frozen=True)
class _Placed:
    """A digit with its ink (h, w) and the place of its upper left corner in the scene."""

    source: int
    label: int
    ink: np.ndarray
    top: int
    left: int

    def mask(self) -> np.ndarray:
        return self.spread() >= 0.5

    def spread(self) -> np.ndarray:
        """Coverage on the whole scene, (H, W)."""
        canvas = np.zeros((SCENE, SCENE), np.float32)
        height, width = self.ink.shape
        canvas[self.top : self.top + height, self.left : self.left + width] = self.ink
        return canvas

    def overlap(self, other: "_Placed") -> float:
        """Common area of the two boxes as a share of the smaller box."""
        (h, w), (oh, ow) = self.ink.shape, other.ink.shape
        high = min(self.top + h, other.top + oh) - max(self.top, other.top)
        wide = min(self.left + w, other.left + ow) - max(self.left, other.left)
        return max(high, 0) * max(wide, 0) / min(h * w, oh * ow)


def _place(sources: Sources, rng: np.random.Generator, wanted: int) -> list[_Placed] | None:
    placed: list[_Placed] = []
    for _ in range(12 * wanted):
        pick = int(rng.integers(len(sources)))
        ink = _ink(sources.grey[pick], int(rng.integers(SIZES[0], SIZES[1] + 1)))
        top, left = (int(rng.integers(0, SCENE - side + 1)) for side in ink.shape)
        new = _Placed(int(sources.index[pick]), int(sources.label[pick]), ink, top, left)
        if all(new.overlap(old) <= _BOX_OVERLAP for old in placed) and _all_visible([*placed, new]):
            placed.append(new)
        if len(placed) == wanted:
            return placed
    return None


def _all_visible(placed: list[_Placed]) -> bool:
    whole = [digit.mask() for digit in placed]
    return all(seen.sum() >= _KEEP_VISIBLE * ink.sum() for seen, ink in zip(_visible(whole), whole, strict=True))


def _visible(masks: list[np.ndarray]) -> list[np.ndarray]:
    """What is left of each mask under those that follow it."""
    covered = np.zeros((SCENE, SCENE), dtype=bool)
    left = []
    for mask in reversed(masks):
        left.append(mask & ~covered)
        covered |= mask
    return left[::-1]


def _compose(placed: list[_Placed], rng: np.random.Generator) -> Scene:
    image = _canvas(rng, SCENE)
    labels = np.full((SCENE, SCENE), BACKGROUND, np.uint8)
    hue = rng.uniform()
    for number, digit in enumerate(placed):
        # golden-ratio steps round the colour circle keep neighbours apart however many digits there are
        _paint(image, digit.ink, digit.top, digit.left, _colour(hue + 0.618 * number, rng))
        labels[(digit.spread() >= _RIM) & (labels == BACKGROUND)] = UNLABELLED
        labels[digit.mask()] = FIRST_DIGIT + digit.label
    masks = _visible([digit.mask() for digit in placed])
    digits = [Digit(digit.source, digit.label, mask) for digit, mask in zip(placed, masks, strict=True)]
    return Scene(_to_bytes(image), labels, digits)


def _ink(grey: np.ndarray, size: int) -> np.ndarray:
    """Coverage of a digit (8, 8), enlarged until the longer side of its ink has `size` pixels, or one off: (h, w)."""
    source = Image.fromarray(np.pad(grey, 2))
    fine = 8
    enlarged = source.resize((source.width * fine, source.height * fine), _CUBIC)
    rows, columns = np.nonzero(_coverage(enlarged) >= 0.5)
    top, bottom, left, right = rows.min() / fine, rows.max() / fine, columns.min() / fine, columns.max() / fine
    scale = size / (max(bottom - top, right - left) + 1 / fine)
    margin = 2 / scale  # two pixels for the soft rim
    box = (left - margin, top - margin, right + 1 / fine + margin, bottom + 1 / fine + margin)
    width, height = round((box[2] - box[0]) * scale), round((box[3] - box[1]) * scale)
    return _coverage(source.resize((width, height), _CUBIC, box=box))


def _coverage(grey: Image.Image) -> np.ndarray:
    low, high = _RAMP
    return np.clip((np.asarray(grey) - low) / (high - low), 0, 1)


def _canvas(rng: np.random.Generator, size: int) -> np.ndarray:
    """A dark canvas with soft blotches and stripes, all below `_CANVAS_MAX`: (size, size, 3) float."""
    texture = np.zeros((size, size), np.float32)
    for cells, strength in ((3, 0.8), (size // 12, 0.45), (size // 4, 0.25)):
        noise = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        texture += strength * np.asarray(Image.fromarray(noise).resize((size, size), _CUBIC))
    y, x = np.mgrid[:size, :size] / size
    angle, waves, phase = rng.uniform(0, np.pi), rng.uniform(3, 9) * size / SCENE, rng.uniform(0, 2 * np.pi)
    stripes = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    texture += rng.uniform(0, 0.6) * stripes
    base, contrast = rng.uniform(18, 46, 3), rng.uniform(8, 18, 3)
    return np.clip(base + contrast * texture[..., None], 0, _CANVAS_MAX)


def _colour(hue: float, rng: np.random.Generator) -> np.ndarray:
    """A bright colour of that hue, pale to vivid, with no channel below `_INK_MIN`: (3,) float."""
    value = rng.uniform(0.85, 1.0)
    saturation = rng.uniform(0.1, 1 - _INK_MIN / 255 / value)
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _paint(image: np.ndarray, ink: np.ndarray, top: int, left: int, colour: np.ndarray) -> None:
    """Lay ink of a colour over a part of the image, in place."""
    height, width = ink.shape
    part = image[top : top + height, left : left + width]
    part += ink[..., None] * (colour - part)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.round(image).astype(np.uint8)
