"""The suffixes of a segmenter's images and masks, found in their folders where the config's are not there."""

import re
from collections import Counter
from typing import Any

from mmengine.fileio import list_dir_or_file
from mmengine.logging import MMLogger

from ..backbones._errors import UserError

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_MASKS = (".png", ".bmp", ".tif", ".tiff", ".gif")
_PLAIN = re.compile(r"\.\w+")  # not "_leftImg8bit.png", which says more than a format


def settle_suffixes(samples: Any, annotated: bool) -> None:
    """Give a data set of mmseg's kind the suffixes that its files have, and count files that have no partner.

    Args:
        samples: the data set, before it has read its folders.
        annotated: whether masks are wanted.

    Raises:
        UserError: a folder holds no such file, or files of several kinds.
    """
    images = samples.data_prefix.get("img_path")
    masks = samples.data_prefix.get("seg_map_path") if annotated else None
    if samples.backend_args or not images:
        return
    in_images = _files(images)
    samples.img_suffix = _suffix("images", images, in_images, samples.img_suffix, _IMAGES, "img_suffix")
    if not masks:
        return
    in_masks = _files(masks)
    samples.seg_map_suffix = _suffix("masks", masks, in_masks, samples.seg_map_suffix, _MASKS, "seg_map_suffix")
    if not samples.ann_file:
        stems = {name.removesuffix(samples.img_suffix) for name in in_images if name.endswith(samples.img_suffix)}
        ends = samples.seg_map_suffix
        alone = sum(name.endswith(ends) and name.removesuffix(ends) not in stems for name in in_masks)
        if alone:
            MMLogger.get_current_instance().warning(f"{masks}: {alone} masks have no image in {images}")


def _files(folder: str) -> list[str]:
    try:
        return list(list_dir_or_file(folder, list_dir=False, recursive=True))
    except OSError as error:
        raise UserError(f"folder {folder} does not exist, or cannot be read ({error.strerror})") from error


def _suffix(what: str, folder: str, files: list[str], given: str, kinds: tuple[str, ...], option: str) -> str:
    """The suffix that is `given` where files have it, else the one that all images of the folder have."""
    counts = Counter(found[0] for name in files if (found := re.search(r"\.\w+$", name)) and found[0].lower() in kinds)
    fitting = sum(name.endswith(given) for name in files)
    others = sum(counts.values()) - fitting
    logger = MMLogger.get_current_instance()
    if fitting:
        if others > 0 and _PLAIN.fullmatch(given):
            logger.warning(f"{folder}: {others} {what} that do not end with {given} are left out")
        return given
    if not counts:
        seen = f"; it holds {files[0]} ..." if files else ""
        raise UserError(f"folder {folder} holds no {what} ({', '.join(kinds)}){seen}")
    if len(counts) > 1 or not _PLAIN.fullmatch(given):
        kinds_there = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        raise UserError(
            f"none of the {what} in {folder} ends with {given}, {option} of the data set; it has {kinds_there}"
        )
    return next(iter(counts))
