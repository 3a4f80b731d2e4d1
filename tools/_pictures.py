"""What pictures of predictions share: a font, and a size at which something can be read."""

import contextlib
import importlib.util
from pathlib import Path

from PIL import Image, ImageFont


def find_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which knows most scripts, from the system or from matplotlib; Pillow's own where there is none."""
    matplotlib = importlib.util.find_spec("matplotlib")
    places = ["DejaVuSans.ttf"]
    if matplotlib is not None and matplotlib.origin:
        places.append(str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"))
    for place in places:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(place, size)
    return ImageFont.load_default(size)


def enlarged(image: Image.Image, least_width: int) -> tuple[Image.Image, int]:
    """The image, so many times as large that it has this width, and that number; large ones stay as they are."""
    scale = max(1, -(-least_width // image.width))
    if scale == 1:
        return image.copy(), 1
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST), scale
