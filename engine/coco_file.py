"""COCO's annotation file: what nothing can be learned from is refused, or left out and counted.

Refused   what is not the format, ids that occur twice, an annotation whose category `categories` does not have: a
          mistake in the file as a whole, which `check` says before anything is built; so are ids that are lists
Left out  annotations without a box of four numbers, or of images that are not listed; in training also boxes outside
          their image and boxes of less than a pixel. An evaluation keeps those, as COCO's own does
Mended    boxes that reach over the edge end there (training); `area` and `iscrowd` get their usual values where they
          are no numbers; ids start from 1, since COCO's evaluation takes 0 for "not found"
Ignored   an object without a mask where masks are wanted, or with one that cannot be decoded, as a crowd is: it is
          neither right nor wrong to find it
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones._errors import UserError

WITHOUT_MASK = "annotations without a mask, ignored"
_FAR = 10  # sides of its image; no point of a mask lies so far away
_BITS = 30  # of a number in a compressed mask, at most: pycocotools computes each digit in 32
_OVER = 1.0  # pixels that a box may reach over the edge without a word: COCO's are rounded
_NEEDED = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id"),
}


def read_coco(file: Path) -> dict[str, Any]:
    """The content of an annotation file that `check` accepts.

    Raises:
        UserError: it cannot be read, or is refused.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is no COCO annotation file: {type(error).__name__}: {error}") from error
    check(content, str(file))
    return content


def check(content: Any, file: str) -> None:
    """Refuse a file that is not COCO's format, or whose parts do not belong together.

    Raises:
        UserError: the first fault, in one sentence.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{file} is no COCO annotation file: it holds a {type(content).__name__}, not a dictionary")
    for part, keys in _NEEDED.items():
        entries = content.get(part, [] if part == "annotations" else None)
        if not isinstance(entries, list):
            raise UserError(f"{file} is no COCO annotation file: it has no list of {part!r}")
        for number, entry in enumerate(entries):
            missing = [key for key in keys if key not in entry] if isinstance(entry, Mapping) else keys
            if missing:
                raise UserError(f"{file}: number {number} of its {part} has no {missing[0]!r}")
            for key in keys:
                if key.endswith("id") and isinstance(entry[key], list | dict):
                    has = f"number {number} of its {part} has the {key} {entry[key]!r}"
                    raise UserError(f"{file}: {has}; a number is taken")
        twice = _twice(entry["id"] for entry in entries)
        if twice is not None:
            raise UserError(f"{file} has two {part} of the id {twice!r}: every one needs an id of its own")
    if not content["categories"]:
        raise UserError(f"{file} has no categories")
    for image in content["images"]:
        if not all(isinstance(image[side], int | float) and image[side] > 0 for side in ("width", "height")):
            size = f"{image['width']!r} x {image['height']!r}"
            raise UserError(f"{file} says that {image['file_name']} is {size} pixels; width and height are numbers")
    known = {entry["id"] for entry in content["categories"]}
    strange = [entry["category_id"] for entry in content.get("annotations", ()) if entry["category_id"] not in known]
    if strange:
        ids, have = (_some(sorted(set(found), key=lambda i: (len(str(i)), str(i)))) for found in (strange, known))
        raise UserError(f"{file}: {len(strange)} annotations are of category {ids}, and its categories are {have}")


def mend(content: dict[str, Any], masks: bool, training: bool) -> dict[str, int]:
    """Change a checked file's content into what mmdet and pycocotools can work with.

    Args:
        content: of the file; its annotations are replaced.
        masks: whether masks are wanted.
        training: for training, in which boxes outside an image are of no use.

    Returns:
        What was found, in words for a sentence, and how often.
    """
    for category in content["categories"]:
        category["name"] = str(category["name"])  # data sets look for it by the text
    annotations = content.setdefault("annotations", [])
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    boxes = _boxes(annotations)  # (N, 4): x, y, width, height
    limits = np.array([sizes.get(entry["image_id"], (np.nan, np.nan)) for entry in annotations], float).reshape(-1, 2)
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    shapeless = ~np.isfinite(boxes).all(1) | (boxes[:, 2:] < 0).any(1)
    unlisted = np.isnan(limits[:, 0])
    found = {"of images that are not listed": unlisted, "without a box of four numbers": shapeless & ~unlisted}
    left_out = shapeless | unlisted
    if training:
        outside = ~left_out & ((start >= limits) | (end <= 0)).any(1)
        tiny = ~left_out & ~outside & (boxes[:, 2:] < 1).any(1)
        over = ~left_out & ~outside & ~tiny & ((start < -_OVER) | (end > limits + _OVER)).any(1)
        for i in np.flatnonzero(over):
            low, high = np.maximum(start[i], 0), np.minimum(end[i], limits[i])
            annotations[i]["bbox"] = [float(side) for side in (*low, *(high - low))]
        found |= {"outside their image": outside, "less than a pixel wide or high": tiny}
        left_out |= outside | tiny
    counts = {f"annotations {why}, left out": int(where.sum()) for why, where in found.items()}
    if training:
        counts["boxes over the edge of their image, clipped"] = int(over.sum())
    kept = [entry for entry, out in zip(annotations, left_out.tolist(), strict=True) if not out]
    if any(entry["id"] == 0 for entry in kept):
        for number, entry in enumerate(kept, start=1):
            entry["id"] = number
    for entry in kept:
        width, height = entry["bbox"][2:]
        crowd = entry.get("iscrowd")
        entry["iscrowd"] = int(crowd == "1" or (_is_number(crowd) and crowd > 0))
        area = entry.get("area")
        if not (_is_number(area) and area > 0):
            entry["area"] = width * height
    if masks:
        counts[WITHOUT_MASK] = sum(_ignore_without_mask(entry, sizes) for entry in kept)
    content["annotations"] = kept
    return {why: count for why, count in counts.items() if count}


def _ignore_without_mask(entry: dict[str, Any], sizes: Mapping[Any, tuple[float, float]]) -> bool:
    """Let an object without a usable mask count as a crowd with its box for a mask; whether it was one."""
    mask, (width, height) = entry.get("segmentation"), sizes[entry["image_id"]]
    good = False
    if isinstance(mask, list):
        mask = [part for part in mask if _is_polygon(part, _FAR * max(width, height))]
        good = bool(mask)
    elif isinstance(mask, Mapping):
        good = mask.get("size") == [height, width] and _are_runs(mask.get("counts"), height * width)
    if not good:
        x, y, w, h = entry["bbox"]  # in an evaluation it may lie anywhere
        left, right = (min(max(side, 0), width) for side in (x, x + w))
        top, bottom = (min(max(side, 0), height) for side in (y, y + h))
        entry.update(iscrowd=1, segmentation=[[left, top, right, top, right, bottom, left, bottom]])
    elif isinstance(mask, list):
        entry["segmentation"] = mask
    return not good


def _is_polygon(part: Any, far: float) -> bool:
    """Whether it is three points or more, x and y in turn; pycocotools ends the process at a NaN or a far point."""
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2 or not set(map(type, part)) <= {int, float}:
        return False
    return all(-far < side < far for side in part)


def _are_runs(counts: Any, pixels: float) -> bool:
    """Whether it is a run-length code, a list or compressed, whose runs fill the image."""
    runs = _decoded(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not set(map(type, runs)) <= {int}:
        return False
    return min(runs, default=-1) >= 0 and sum(runs) == pixels


def _decoded(code: str) -> list[int] | None:
    """The runs of COCO's compressed code; None where it is none.

    pycocotools does not check what it decodes: of a code that is cut off it reads beyond the end. A character is 48 and
    a digit of 5 bits, lowest first, with 32 more where another digit follows; the top bit of a number's last digit is
    its sign. From the fourth on, a number is the difference to the run two before.
    """
    runs: list[int] = []
    number = bits = 0
    for character in code:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or bits == _BITS:
            return None
        number |= (digit & 31) << bits
        bits += 5
        if digit & 32:
            continue
        if digit & 16:
            number -= 1 << bits
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = bits = 0
    return None if bits else runs


def _boxes(annotations: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Boxes (N, 4) of floats, NaN where an annotation has none."""
    nothing = [np.nan] * 4
    given = (entry.get("bbox") for entry in annotations)
    rows = [box if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) else nothing for box in given]
    return np.array(rows, float).reshape(-1, 4)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _twice(ids: Iterable[Any]) -> Any:
    """An id that occurs a second time, None if there is none."""
    seen: set[Any] = set()
    for i in ids:
        if i in seen:
            return i
        seen.add(i)
    return None


def _some(values: list[Any]) -> str:
    return ", ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")
