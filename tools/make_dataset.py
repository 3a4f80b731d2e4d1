"""Make a small, real data set for each task: handwritten digits to classify, detect and segment.

`digits` turns the 1797 digits that come with scikit-learn into three sets, without a network:

OUT/imagenet   {train,val}/<digit>/digit_<source>.png: each source digit once, on a canvas of 64x64
OUT/coco       {train,val}2017/*.jpg: scenes of 128x128 with 2-5 digits; annotations/instances_{train,val}2017.json:
               boxes tight round the visible ink, masks as uncompressed RLE (polygons cannot have the hole of a 0, and
               readers that send every mask through pycocotools' frPyObjects take no other RLE), and `source`, the
               index in load_digits
OUT/ade20k     images/{training,validation}/*.jpg, the same scenes; annotations/{training,validation}/*.png: 1 canvas,
               2-11 the digits 0-9, 0 (ignored in training and scores) the soft rim of ink that is neither

The same seed gives the same bytes with the same Pillow. No digit of val is drawn anywhere in train, whatever the seeds.
"""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from vertebra.backbones._errors import UserError
from vertebra.tools import _digits as digits
from vertebra.tools._common import make_parser, run_tool

FORMAT = 1  # counts changes of the drawing or of the files: sets of another number are made again
MARKER = ".vertebra-digits.json"
_HALF_MARKER = MARKER + ".tmp"
_OURS = re.compile(
    r"imagenet/(train|val)/\d/digit_\d{4}\.png"
    r"|coco/(train|val)2017/\d{12}\.jpg"
    r"|coco/annotations/instances_(train|val)2017\.json"
    r"|ade20k/images/(training|validation)/ADE_(train|val)_\d{8}\.jpg"
    r"|ade20k/annotations/(training|validation)/ADE_(train|val)_\d{8}\.png"
)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `make_dataset`."""
    parser = make_parser(
        "make_dataset",
        "Make small data sets of handwritten digits: an ImageNet-style, a COCO-style and an ADE20K-style one.",
        "vertebra make_dataset digits data/digits",
    )
    parser.add_argument("kind", choices=["digits"], help="what to make")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder, or one made by this tool")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default: 0)")
    parser.add_argument(
        "--scenes", type=int, default=800, metavar="N", help="N training scenes and N/4 for validation (default: 800)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    make_digits(args.out, args.seed, args.scenes)
    return 0


def make_digits(out: Path, seed: int = 0, scenes: int = 800) -> None:
    """Make the three digit sets in `out`: `scenes` training scenes and a quarter as many, at least 1, for validation.

    A complete set of the same seed and number of scenes is left as it is; another one, or one whose making was cut
    short, is replaced. UserError for a folder that holds anything which this tool did not make (nothing is touched),
    for one that cannot be written, for numbers out of range, and where scikit-learn is missing.
    """
    out, began = Path(out), time.perf_counter()
    _check_number("--seed", seed, 0)
    _check_number("--scenes", scenes, 1)
    files = digits.SOURCES + 3 * (scenes + _val_scenes(scenes)) + 2
    wanted = {"kind": "digits", "format": FORMAT, "seed": seed, "scenes": scenes, "files": files}
    try:
        marker = _read_marker(out)
        ours, foreign = _inventory(out)
        if marker == wanted | {"complete": True} and len(ours) == files:
            print(f"{out} is complete already (seed {seed}, {scenes} training scenes): nothing to do")
            return
        if foreign:
            raise UserError(
                f"{out} holds {foreign[0]}, which make_dataset did not make: choose a new or empty folder, or move that"
            )
        sources = digits.load_sources()
        out.mkdir(parents=True, exist_ok=True)
        _write_marker(out, wanted | {"complete": False})
        for path in ours:
            (out / path).unlink(missing_ok=True)
        lines = [_make_split(out, split, sources[split], seed, scenes) for split in digits.SPLITS]
        _write_marker(out, wanted | {"complete": True})
    except OSError as error:
        raise UserError(
            f"{out} cannot be made: {error.strerror or error} ({error.filename or 'in writing'})"
        ) from error
    print(f"{out}: imagenet, coco and ade20k of seed {seed} in {time.perf_counter() - began:.1f} s", *lines, sep="\n  ")


def _val_scenes(scenes: int) -> int:
    return max(1, scenes // 4)


def _check_number(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} is {value!r}, but must be a whole number, {least} or more")


def _read_marker(out: Path) -> dict[str, Any] | None:
    """What the marker in `out` says, or None if `out` is free to use; UserError if something else is there."""
    if not out.exists() and not out.is_symlink():
        return None
    if not out.is_dir():
        raise UserError(f"{out} is not a folder, but make_dataset needs a new or empty one")
    strangers = sorted(set(os.listdir(out)) - {_HALF_MARKER})
    if not strangers:
        return None
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        marker = None
    if not isinstance(marker, dict):
        raise UserError(
            f"{out} is not empty ({strangers[0]} ...) and was not made by make_dataset: choose a new or empty folder"
        )
    return marker


def _write_marker(out: Path, marker: dict[str, Any]) -> None:
    (out / _HALF_MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
    os.replace(out / _HALF_MARKER, out / MARKER)


def _inventory(out: Path) -> tuple[list[str], list[str]]:
    """The files in `out` that this tool makes, and whatever else is there; markers are in neither list."""
    ours, foreign = [], []
    for folder, subfolders, files in os.walk(out):
        # os.walk does not enter links to folders: what they point to is not ours
        links = [name for name in subfolders if (Path(folder) / name).is_symlink()]
        for path in sorted((Path(folder) / name).relative_to(out).as_posix() for name in files + links):
            if path not in (MARKER, _HALF_MARKER):
                (ours if _OURS.fullmatch(path) else foreign).append(path)
    return ours, foreign


def _make_split(out: Path, split: str, sources: digits.Sources, seed: int, scenes: int) -> str:
    """Make one split of all three sets; returns a line that counts what is in it."""
    long = {"train": "training", "val": "validation"}[split]
    _make_cards(out / "imagenet" / split, split, sources, seed)
    images, masks = (_folder(out / "ade20k" / kind / long) for kind in ("images", "annotations"))
    pictures = _folder(out / "coco" / f"{split}2017")
    first, number = (1, scenes) if split == "train" else (1 + scenes, _val_scenes(scenes))
    coco = _empty_coco()
    for i in range(number):
        scene = digits.draw_scene(sources, digits.make_rng(seed, split, "scene", i))
        name = f"{first + i:012d}.jpg"
        # full-resolution colour, or JPEG bleeds it over the rims of the digits
        Image.fromarray(scene.image).save(pictures / name, quality=95, subsampling=0)
        stem = f"ADE_{split}_{i + 1:08d}"
        (images / f"{stem}.jpg").write_bytes((pictures / name).read_bytes())
        Image.fromarray(scene.labels).save(masks / f"{stem}.png")
        height, width = scene.labels.shape
        coco["images"].append({"id": first + i, "file_name": name, "width": width, "height": height, "license": 1})
        coco["annotations"].extend(_annotations(scene, first + i))
    for i, annotation in enumerate(coco["annotations"], start=1):
        annotation["id"] = i  # not 0, which COCO's evaluation takes for "no match"
    target = _folder(out / "coco" / "annotations") / f"instances_{split}2017.json"
    target.write_text(json.dumps(coco, separators=(",", ":")), encoding="utf-8")
    return f"{split:<6}{len(sources)} single digits, {number} scenes with {len(coco['annotations'])} digits"


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _make_cards(folder: Path, split: str, sources: digits.Sources, seed: int) -> None:
    for index, label, grey in zip(sources.index, sources.label, sources.grey, strict=True):
        card = digits.draw_card(grey, digits.make_rng(seed, split, "card", int(index)))
        Image.fromarray(card).save(_folder(folder / str(label)) / f"digit_{index:04d}.png", compress_level=1)


def _empty_coco() -> dict[str, Any]:
    source = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
    licence = {"id": 1, "name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}
    return {
        "info": {"description": "Scenes of handwritten digits", "url": source, "version": str(FORMAT)},
        "licenses": [licence],
        "images": [],
        "annotations": [],
        "categories": [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)],
    }


def _annotations(scene: digits.Scene, image_id: int) -> Iterator[dict[str, Any]]:
    """COCO's entries for the digits of a scene, with `id` left for the caller."""
    for digit in scene.digits:
        rows, columns = np.flatnonzero(digit.mask.any(axis=1)), np.flatnonzero(digit.mask.any(axis=0))
        top, left = int(rows[0]), int(columns[0])
        yield {
            "id": None,
            "image_id": image_id,
            "category_id": digit.label + 1,
            "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
            "area": int(digit.mask.sum()),
            "segmentation": _rle(digit.mask),
            "iscrowd": 0,
            "source": digit.source,
        }


def _rle(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask (H, W): column by column, a run of zeros (it may be empty) first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0).tolist()}


if __name__ == "__main__":
    sys.exit(run_tool(main))
