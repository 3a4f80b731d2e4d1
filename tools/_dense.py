"""A detector or segmenter from a config and a checkpoint: what it finds in an image, and a picture of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import draw_segmentation_masks
from vertebra.backbones._checkpoint import described, read_checkpoint
from vertebra.backbones._errors import UserError
from vertebra.tools._common import need
from vertebra.tools._pictures import enlarged, find_font

_SHARE = 0.005
"""Classes that cover less of an image are not in the legend."""

_WIDTH = 512
"""Pixels that a drawing is wide at least."""


@dataclass
class Boxes:
    """What a detector found, in pixels of the image."""

    corners: Tensor
    """(N, 4): x0, y0, x1, y1."""
    scores: Tensor
    """(N,), from 0 to 1."""
    labels: Tensor
    """(N,), the numbers of the classes."""
    masks: Tensor | np.ndarray | None = None
    """(N, height, width) of the image, true inside; None for a detector without masks."""


@dataclass
class Dense:
    """A built detector or segmenter in eval mode, the names of its classes, and what prepares an image for it."""

    model: Any
    labels: list[str]
    palette: list[tuple[int, int, int]]
    prepare: Any
    segments: bool
    steps: list[dict[str, Any]] = field(default_factory=list)
    """What `prepare` is composed of, as a config has it."""

    def boxes(self, image: Image.Image) -> Boxes:
        """What a detector finds in an image."""
        found = self.predict(image).pred_instances.cpu()
        return Boxes(found.bboxes, found.scores, found.labels, found.masks if "masks" in found else None)

    def classes(self, image: Image.Image) -> Tensor:
        """The number of each pixel's class (height, width), as a segmenter sees it."""
        return self.predict(image).pred_sem_seg.data[0].cpu()

    @torch.inference_mode()
    def predict(self, image: Image.Image) -> Any:
        """mmdet's or mmseg's data sample with what was found, in the coordinates of the image."""
        prepared = self.prepare({"img": np.ascontiguousarray(np.asarray(image)[:, :, ::-1]), "img_id": 0})
        batch = {"inputs": [prepared["inputs"]], "data_samples": [prepared["data_samples"]]}
        return self.model.test_step(batch)[0]

    def label(self, index: int) -> str:
        """The class's name, or its number where no names are known."""
        return self.labels[index] if index < len(self.labels) else str(index)

    def colour(self, index: int) -> tuple[int, int, int]:
        """What the class is drawn in."""
        return self.palette[index % len(self.palette)]


def load_dense_target(config: Any, checkpoint: str | None, device: torch.device) -> Dense:
    """Build the model of a config, and load its weights; names of classes come from the checkpoint, else the data set.

    Args:
        config: of a detector or segmenter; changed in place.
        checkpoint: a file; None leaves fresh, random weights.
        device: where the model is put.

    Raises:
        UserError: a name in the place of a file, or a checkpoint that does not fit.
    """
    from mmengine.dataset import Compose
    from mmengine.registry import MODELS, init_default_scope
    from vertebra.engine.dense import load_dense
    from vertebra.engine.dense_config import names_of_config, palette_of_config, set_class_count
    from vertebra.engine.record import follow_backbone
    from vertebra.engine.slide import complete_slide

    if checkpoint is not None and not Path(checkpoint).suffix:
        raise UserError(f"a {config.model.type} has no published weights: name a checkpoint file")
    read = read_checkpoint(checkpoint) if checkpoint else {}
    known = described(read)
    scope = config.get("default_scope")
    init_default_scope(scope)
    complete_slide(config.model)
    follow_backbone(config, known, str(checkpoint))
    labels = list(known.get("labels") or names_of_config(config) or ())
    palette = palette_of_config(config, len(labels))
    if known.get("labels"):
        set_class_count(config.model, len(labels))
    for part in (config.model.backbone, config.model):
        part.pop("pretrained", None)
    model = MODELS.build(config.model)
    if checkpoint is None:
        _init_quietly(model)
    for sentence in load_dense(model, read, checkpoint, training=False) if checkpoint else ():
        print(sentence)
    steps = steps_for_pixels(config.test_dataloader.dataset, f"{scope}.LoadImageFromNDArray")
    return Dense(model.to(device).eval(), labels, palette, Compose(steps), scope == "mmseg", steps)


def _init_quietly(model: Any) -> None:
    """mmengine would tell of every parameter how it was initialised."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def steps_for_pixels(dataset: Mapping[str, Any], loader: str) -> list[dict[str, Any]]:
    """What prepares an image that is read already: the steps of a test data set without its annotations.

    Args:
        dataset: its config; of several that are joined, the first one's steps are taken.
        loader: the type that takes the place of the step that loads an image, and keeps its options.

    Raises:
        UserError: no step loads an image.
    """
    from vertebra.engine.dense_config import walk

    pipeline = next((entry["pipeline"] for entry in walk(dataset) if entry.get("pipeline")), ())
    steps = [
        dict(step) for step in pipeline if not ("Annotation" in step_name(step) and step_name(step).startswith("Load"))
    ]
    place = next((i for i, step in enumerate(steps) if step_name(step).startswith("LoadImage")), None)
    if place is None:
        found = ", ".join(map(step_name, steps)) or "no step"
        raise UserError(f"the pipeline of test_dataloader's data has {found}; `infer` wants one with LoadImageFromFile")
    steps[place]["type"] = loader
    return steps


def step_name(step: Mapping[str, Any]) -> str:
    """The type of a step, a class or a string, without what it is registered in: LoadAnnotations."""
    kind = step["type"]
    return kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]


# --- what is written ---


def boxes_of(dense: Dense, found: Boxes, least: float) -> list[dict[str, Any]]:
    """Boxes of at least this score, best first: corners in pixels, label, score and COCO's encoding of a mask."""
    order = found.scores.argsort(descending=True)
    order = order[found.scores[order] >= least]
    return [
        {
            "box": [round(side, 2) for side in box],
            "label": dense.label(index),
            "index": index,
            "score": round(score, 6),
            "mask": None if found.masks is None else _encoded(found.masks[place]),
        }
        for place, box, index, score in zip(
            order.tolist(),
            found.corners[order].tolist(),
            found.labels[order].tolist(),
            found.scores[order].tolist(),
            strict=True,
        )
    ]


def _encoded(mask: Tensor | np.ndarray) -> dict[str, Any]:
    coco = need("pycocotools.mask", extra="export")
    found = coco.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


def shares_of(dense: Dense, classes: Tensor) -> dict[str, float]:
    """The share of the image that each class covers, largest first; classes that are not there are left out."""
    counts = torch.bincount(classes.flatten(), minlength=len(dense.labels)).double() / classes.numel()
    order = counts.argsort(descending=True).tolist()
    return {dense.label(i): round(counts[i].item(), 6) for i in order if counts[i] > 0}


# --- what is drawn ---


def draw_boxes(dense: Dense, image: Image.Image, boxes: Sequence[dict[str, Any]]) -> Image.Image:
    """The image with its boxes, names and scores, and masks where there are any; the best on top.

    An image that is too tall to be made wide enough for names has room for them at its right.
    """
    picture, scale = enlarged(image, _WIDTH)
    for entry in reversed(boxes):
        if entry["mask"] is not None:
            picture = _with_mask(picture, entry["mask"], dense.colour(entry["index"]))
    sheet = Image.new("RGB", (max(picture.width, _WIDTH), picture.height), "white")
    sheet.paste(picture)
    picture = sheet
    pen = ImageDraw.Draw(picture)
    size = max(13, picture.width // 36)
    font, width = find_font(size), max(2, picture.width // 250)
    corners = [tuple(round(side * scale) for side in entry["box"]) for entry in boxes]
    for entry, corner in zip(reversed(boxes), reversed(corners), strict=True):
        pen.rectangle(corner, outline=dense.colour(entry["index"]), width=width)
    taken: list[tuple[float, ...]] = []
    for entry, corner in zip(boxes, corners, strict=True):
        colour, text = dense.colour(entry["index"]), f" {entry['label']} {entry['score']:.0%} "
        extent = pen.textbbox((0, 0), text, font=font)
        place = _free_place(corner, extent, picture.size, taken)
        taken.append(place)
        pen.rectangle(place, fill=colour)
        pen.text(
            (place[0] - extent[0], place[1] - extent[1]),
            text,
            fill="white" if sum(colour) < 384 else "black",
            font=font,
        )
    return picture


def _free_place(
    box: tuple[int, ...], text: tuple[float, ...], size: tuple[int, int], taken: Sequence[tuple[float, ...]]
) -> tuple[float, ...]:
    """Where the name of a box goes: above it, below or inside, wherever it lies in the picture and on no other name."""
    width, height = text[2] - text[0], text[3] - text[1]
    left, top, right, bottom = box
    rows = (top - height - 1, bottom + 1, top + 1, bottom - height - 1)
    places = [
        (x, y, x + width, y + height)
        for y in rows
        for x in (max(0, min(x, size[0] - width)) for x in (left, right - width))
        if 0 <= y <= size[1] - height
    ]
    free = [place for place in places if not any(_overlap(place, other) for other in taken)]
    return (free or places or [(left, max(top, 0), left + width, max(top, 0) + height)])[0]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _with_mask(picture: Image.Image, mask: dict[str, Any], colour: tuple[int, ...]) -> Image.Image:
    coco = need("pycocotools.mask", extra="export")
    inside = Image.fromarray(255 * coco.decode(mask)).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(Image.blend(picture, Image.new("RGB", picture.size, colour), 0.5), picture, inside)


def draw_segments(dense: Dense, image: Image.Image, classes: Tensor) -> Image.Image:
    """The image under the colours of its classes, above a legend that names those which cover some of it."""
    shares = {i: (classes == i).double().mean().item() for i in classes.unique().tolist()}
    least = min(_SHARE, max(shares.values()))  # of very many classes, all may be rare
    named = {i: f"{dense.label(i)}: {share:.1%}" for i, share in shares.items() if share >= least}
    entries = [(dense.colour(i), text) for i, text in named.items()]
    if len(named) < len(shares):
        entries.append((None, f"{len(shares) - len(named)} more below {least:.1%}"))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    masks = torch.stack([classes == i for i in shares])
    drawn = draw_segmentation_masks(pixels, masks, alpha=0.55, colors=[dense.colour(i) for i in shares])
    picture, _ = enlarged(Image.fromarray(drawn.permute(1, 2, 0).numpy()), _WIDTH)
    width = max(picture.width, _WIDTH)
    size = max(12, width // 32)
    font, row = find_font(size), round(size * 1.6)
    columns = max(1, width // (size * 11))
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (width, picture.height + rows * row + 8), "white")
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for place, (colour, text) in enumerate(entries):
        left = place % columns * (width // columns) + 6
        top = picture.height + 4 + place // columns * row
        if colour:
            pen.rectangle((left, top + 3, left + size, top + 3 + size), fill=colour)
        pen.text((left + size + 6, top + 1), text, fill="black", font=font)
    return sheet
