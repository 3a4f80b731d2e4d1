"""What tools that read and draw pictures share: files, names, a font, and a size at which something can be read."""

import contextlib
import importlib.util
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import ExifTags, Image, ImageFont, ImageOps
from vertebra.backbones._errors import UserError
from vertebra.backbones._files import write_whole
from vertebra.backbones._images import as_rgb

MOST = 1600
"""Pixels of a side, from which on lines and captions of a fixed size are hard to see."""


def read_picture(path: str | Path) -> Image.Image:
    """The picture in a file, upright and in RGB.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return upright(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UserError(f"{path} cannot be read as an image: {reason}") from error


def upright(image: Image.Image) -> Image.Image:
    """The image in RGB, turned as its EXIF orientation says, as mmcv reads images too.

    Raises:
        OSError: the pixels cannot be read.
    """
    turned = as_rgb(image)
    turned.info = {}  # the orientation alone: Pillow also writes all other entries anew, and fails at malformed ones
    with contextlib.suppress(Exception):  # of an EXIF that is no EXIF; which error that is depends on what it is
        turned.getexif()[ExifTags.Base.Orientation] = image.getexif()[ExifTags.Base.Orientation]
    return ImageOps.exif_transpose(turned)


def refuse_overwriting(read: Iterable[str | Path], written: Iterable[str | Path], out: Path) -> None:
    """UserError if a file that is to be written below `out` would take the place of an image that is read."""
    clash = {Path(path).resolve() for path in read} & {(out / name).resolve() for name in written}
    if clash:
        raise UserError(f"--out {out} would overwrite {sorted(clash)[0]}, an image to be read: take another folder")


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG file that is whole or not there; its folder is made."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_whole(path, data.getvalue())


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
    """The image, so many times as large that it has this width, and that number.

    Large ones stay as they are, and narrow ones grow no higher than `MOST`.
    """
    scale = max(1, min(-(-least_width // image.width), MOST // image.height))
    if scale == 1:
        return image.copy(), 1
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST), scale


def fitted(image: Image.Image, least_width: int) -> Image.Image:
    """The image as something is drawn over it: `enlarged`, or shrunk to `MOST` pixels a side."""
    most = max(image.size)
    if most <= MOST:
        return enlarged(image, least_width)[0]
    width, height = (max(1, round(side * MOST / most)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
