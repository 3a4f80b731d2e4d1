"""What `export_onnx` wrote, run by ONNX Runtime: classifiers, segmenters and detectors, without any mm* package.

Everything beside the graph comes from the file's metadata: names and colours of classes, how an image is resized and
normalised, how a mask is told from its values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from vertebra.backbones._errors import UserError
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import need
from vertebra.tools._dense import Boxes, Dense
from vertebra.tools._export.checks import first_line
from vertebra.tools._export.model import read_metadata
from vertebra.tools._resize import resize

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_NEEDED = {
    "classification": ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    "segmentation": ("palette", "resize", "channels", "mean", "std", "align_corners"),
    "detection": ("palette", "resize", "channels", "mean", "std"),
}


def is_onnx_target(target: str) -> bool:
    """Whether what `infer` is given is an exported file, by its name."""
    return target.lower().endswith(".onnx")


def load_onnx(target: str, device: str | None = None) -> "Classifier | OnnxDense":
    """An exported model, ready to predict.

    Args:
        target: a file of `export_onnx`.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where this ONNX Runtime has support for it.

    Raises:
        UserError: no such file, no ONNX, not of `export_onnx`, feature maps, or a device that cannot be had.
    """
    if not Path(target).is_file():
        raise UserError(f"{target} does not exist: infer takes a file that `vertebra export_onnx` wrote")
    network = _Network(target, device)
    known = read_metadata(network.session.get_modelmeta().custom_metadata_map)
    task = known.get("task")
    if task == "features":
        raise UserError(f"{target} holds feature maps, which predict nothing: export it without --features")
    lacking = [key for key in ("labels", *_NEEDED.get(str(task), ("task",))) if key not in known]
    if lacking:
        raise UserError(
            f"{target} lacks {', '.join(lacking)} in its metadata: infer takes a file that `vertebra export_onnx` wrote"
        )
    name = known.get("model_name", Path(target).stem)
    if task == "classification":
        options = {key: _tuple(known[key]) for key in _NEEDED[task]}
        return Classifier(name, network.eval(), known["labels"], changes=options)
    palette = [tuple(colour) for colour in known["palette"]]
    return OnnxDense(network, known["labels"], palette, None, task == "segmentation", known=known)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class _Network(nn.Module):
    """An exported file in the place of a model: images (B, C, H, W) -> its first output."""

    def __init__(self, file: str, device: str | None) -> None:
        super().__init__()
        runtime = need("onnxruntime", extra="export")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        providers = _providers(device, runtime.get_available_providers())
        try:
            self.session = runtime.InferenceSession(file, options, providers=providers)
        except Exception as error:  # ONNX Runtime raises classes of its own, without a common base
            raise UserError(f"{file} is no ONNX file that ONNX Runtime can run: {first_line(error)}") from error
        self.file, self.size = file, self.session.get_inputs()[0].shape[2:]
        width = self.session.get_outputs()[0].shape[-1]
        self.num_classes = width if isinstance(width, int) else 0

    def run(self, images: Tensor) -> list[Tensor]:
        """Every output for images (B, C, H, W)."""
        name = self.session.get_inputs()[0].name
        try:
            return [torch.from_numpy(x) for x in self.session.run(None, {name: images.cpu().numpy()})]
        except Exception as error:
            size = "x".join(map(str, images.shape[2:]))
            raise UserError(f"{self.file} cannot run on an image of {size}: {first_line(error)}") from error

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)[0]


def _providers(device: str | None, available: Sequence[str]) -> list[Any]:
    """What ONNX Runtime is to run on, the CPU for what a GPU cannot."""
    kind, _, number = (device or "").partition(":")
    if kind == "cuda" and _CUDA not in available:
        raise UserError(
            f"--device {device}: this ONNX Runtime has no CUDA; cpu is accepted, or install onnxruntime-gpu"
        )
    if kind not in ("", "cpu", "cuda") or (number and not number.isdigit()):
        raise UserError(f"--device {device}: an ONNX file runs on cpu, cuda or cuda:N")
    gpu = [(_CUDA, {"device_id": int(number or 0)})] if kind != "cpu" and _CUDA in available else []
    return [*gpu, _CPU]


@dataclass
class OnnxDense(Dense):
    """An exported detector or segmenter; `model` is its network, `known` its metadata."""

    known: dict[str, Any] = field(default_factory=dict)

    def boxes(self, image: Image.Image) -> Boxes:
        """What the detector finds in an image."""
        prepared, size = self._prepare(image)
        corners, scores, labels, *masks = self.model.run(prepared)
        height, width = size
        scale = torch.tensor([width / image.width, height / image.height] * 2)
        # a file of a fixed size has black margins, and boxes may reach into them
        corners = torch.minimum(corners, torch.tensor([width, height] * 2)) / scale
        inside = (corners[:, 2:] > corners[:, :2]).all(1)  # a box within the margins has no area left
        corners, scores, labels, *masks = (part[inside] for part in (corners, scores, labels, *masks))
        pasted = None
        if masks:
            pasted = paste(masks[0][:, 0], corners, (image.height, image.width), self.known["mask_threshold"])
        return Boxes(corners, scores, labels, pasted)

    def classes(self, image: Image.Image) -> Tensor:
        """The number of each pixel's class (height, width), as the segmenter sees it."""
        prepared, (height, width) = self._prepare(image)
        logits = self.model(prepared)[:, :, :height, :width]
        align = self.known["align_corners"]
        logits = F.interpolate(logits, (image.height, image.width), mode="bilinear", align_corners=align)[0]
        if len(logits) == 1:
            return (logits[0].sigmoid() > self.known["threshold"]).long()
        return logits.argmax(0)

    def _prepare(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        height, width = self.model.size
        fixed = (height, width) if isinstance(height, int) else None
        return prepare(image, self.known, fixed)


def prepare(
    image: Image.Image, known: Mapping[str, Any], fixed: tuple[int, int] | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """Resize and normalise an image as a file's metadata says.

    Args:
        image: in RGB.
        known: `resize`, `channels`, `mean` and `std` of the file.
        fixed: height and width that the file takes, if it takes no other: a larger image is shrunk until it fits, and
            margins are filled with the mean.

    Returns:
        The image (1, 3, H, W), and the height and width that it has therein.
    """
    resized = np.asarray(image)
    for step in known["resize"]:
        resized = resize(resized, *_next_size(step, *resized.shape[:2]))
    height, width = resized.shape[:2]
    if fixed:
        shrink = min(1.0, fixed[0] / height, fixed[1] / width)
        height, width = int(height * shrink + 0.5), int(width * shrink + 0.5)
        resized = resize(resized, height, width)
    pixels = torch.tensor(resized).permute(2, 0, 1)[None].float()
    if known["channels"] == "BGR":
        pixels = pixels.flip(1)
    mean, std = (torch.tensor(known[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = (pixels / 255 - mean) / std
    if fixed:
        pixels = F.pad(pixels, (0, fixed[1] - width, 0, fixed[0] - height))
    return pixels, (height, width)


def _next_size(step: Mapping[str, Any], height: int, width: int) -> tuple[int, int]:
    """Height and width after one step of `resize`, rounded as mm rounds them."""
    if "multiple" in step:
        multiple = step["multiple"]
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple
    if not step["keep_ratio"]:
        return step["scale"][1], step["scale"][0]
    short, long = sorted(step["scale"])
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def paste(masks: Tensor, corners: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Masks within boxes -> masks of an image.

    Args:
        masks: (N, h, w), values 0 to 1 that fill the box.
        corners: (N, 4) of the boxes, x0, y0, x1, y1 in pixels of the image.
        size: height and width of the image.
        threshold: the least value inside.

    Returns:
        (N, height, width), true where the bilinear value at a pixel's centre is `threshold` or more.
    """
    image = torch.zeros(len(masks), *size, dtype=torch.bool)
    for whole, mask, (x0, y0, x1, y1) in zip(image, masks, corners.tolist(), strict=True):
        if x1 <= x0 or y1 <= y0:
            continue
        top, left = max(int(y0) - 1, 0), max(int(x0) - 1, 0)
        bottom, right = max(top, min(int(y1) + 2, size[0])), max(left, min(int(x1) + 2, size[1]))
        if bottom == top or right == left:  # it lies outside of the image
            continue
        y = (torch.arange(top, bottom) + 0.5 - y0) / (y1 - y0) * 2 - 1
        x = (torch.arange(left, right) + 0.5 - x0) / (x1 - x0) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]  # (1, rows, columns, 2: x, y)
        whole[top:bottom, left:right] = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= threshold
    return image
