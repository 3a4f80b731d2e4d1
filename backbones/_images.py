"""What training and prediction make of an image file's pixels alike."""

import numpy as np
from PIL import Image

_SIXTEEN = ("PPM", "PNG")
"""Formats whose grey is of 16 bits where Pillow gives 32; of PNG files, Pillow before 10.3 does."""


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB; of 16-bit grey the high byte, where Pillow's own conversion cuts values off at 255.

    Grey of 32 bits, whole numbers or not, has no range of its own: with values above 255 it is taken for 16-bit grey.

    Raises:
        OSError: the pixels cannot be read.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image))
        if values.max() > 255 or (image.mode == "I" and image.format in _SIXTEEN):
            values = values // 256
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
