"""What of a picture a model sees, and where: images are resized and cropped on their way in, and maps go back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class View:
    """A picture and the image made of it for a model.

    Places are in pixels from the top left corner, x before y; the first pixel reaches from 0 to 1.
    """

    size: tuple[int, int]
    """Width and height of the picture."""
    seen: tuple[int, int]
    """Width and height of the model's image."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Pixels of the model's image for one of the picture."""
    offset: tuple[float, float] = (0.0, 0.0)
    """What is cut off at the left and top, in pixels of the model's image; below 0 where something is added."""

    def into(self, x: float, y: float) -> tuple[float, float]:
        """A place in the picture, as a place in the model's image."""
        return x * self.scale[0] - self.offset[0], y * self.scale[1] - self.offset[1]

    def back(self, x: float, y: float) -> tuple[float, float]:
        """A place in the model's image, as a place in the picture."""
        return (x + self.offset[0]) / self.scale[0], (y + self.offset[1]) / self.scale[1]

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        """A rectangle of the model's image, cut to it, as one of the picture."""
        width, height = self.seen
        corner = self.back(max(0.0, x0), max(0.0, y0))
        return (*corner, *self.back(min(float(width), x1), min(float(height), y1)))

    def resized(self, size: tuple[int, int]) -> "View":
        """The view of the same picture with another width and height."""
        across, down = (scale * old / new for scale, old, new in zip(self.scale, self.size, size, strict=True))
        return replace(self, size=size, scale=(across, down))

    def lay(self, values: torch.Tensor, stride: float, smooth: bool = False) -> np.ndarray:
        """Lay a map over the picture.

        Args:
            values: (h, w), the map.
            stride: pixels of the model's image for one of the map.
            smooth: go evenly from value to value; otherwise each fills its square.

        Returns:
            (height, width) of the picture, float32; NaN where the model sees nothing.
        """
        (across, down), (left, top) = self.scale, self.offset
        matrix = (across / stride, 0.0, -left / stride, 0.0, down / stride, -top / stride)
        way = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        grid = Image.fromarray(values.detach().cpu().float().numpy())
        laid = np.array(grid.transform(self.size, Image.Transform.AFFINE, matrix, way))
        x, y = ((np.arange(self.size[i]) + 0.5) * self.scale[i] - self.offset[i] for i in (0, 1))
        inside = ((y >= 0) & (y < self.seen[1]))[:, None] & ((x >= 0) & (x < self.seen[0]))
        return np.where(inside, laid, np.float32("nan"))


def prepare(
    image: Image.Image, transform: Callable[[Any], torch.Tensor], whole: bool = False
) -> tuple[torch.Tensor, View]:
    """What `transform` makes of an image, and where its pixels come from.

    Args:
        image: a picture in RGB.
        transform: timm's for evaluation. Its steps resize, crop or pad around the centre, or move nothing.
        whole: leave out the crop.

    Returns:
        (3, h, w), and the view.
    """
    scale, offset, made = np.ones(2), np.zeros(2), image
    steps: Any = getattr(transform, "transforms", [transform])
    for step in steps:
        if whole and "Crop" in type(step).__name__:
            continue
        before, made = made, step(made)
        if not isinstance(made, Image.Image) or made.size == before.size:
            continue
        old, new = np.array(before.size), np.array(made.size)
        if "Resize" in type(step).__name__:
            scale, offset = scale * new / old, offset * new / old
        else:
            offset = offset + [_cut(*sides) for sides in zip(before.size, made.size, strict=True)]
    seen = (made.shape[-1], made.shape[-2])
    return made, View(image.size, seen, (float(scale[0]), float(scale[1])), (float(offset[0]), float(offset[1])))


def _cut(old: int, new: int) -> int:
    """What a crop or pad around the centre takes from a side's beginning: torchvision and timm round alike."""
    return round((old - new) / 2) if old > new else -((new - old) // 2)
