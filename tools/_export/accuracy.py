"""What smaller numbers cost: two ONNX files side by side on a folder of images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, create_transform
from torch import Tensor
from vertebra.backbones._errors import UserError
from vertebra.backbones._folders import with_classes
from vertebra.tools._classifier import Classifier
from vertebra.tools._export.checks import first_line, noise
from vertebra.tools._export.onnx_graph import answers
from vertebra.tools.infer import find_images, read_images

_BATCH = 8
CALIBRATION = 128
"""Images that scales are taken from, at most: a range is seen within some dozens."""


@dataclass(frozen=True)
class Sample:
    """An image file, and the index of its class where its folder is one that the model knows."""

    path: Path
    target: int | None


@dataclass(frozen=True)
class Accuracy:
    """How the answers of a smaller file differ from the float32 file's on the same images.

    `agreement` is a share of the images, `top1` and `top1_float32` are shares of the `labelled` ones, whose class is
    known; None for maps, and top-1 also without classes.
    `difference` is the root mean square of the outputs' differences in standard deviations of the output.
    """

    images: int
    difference: float
    agreement: float | None = None
    top1: float | None = None
    top1_float32: float | None = None
    labelled: int = 0

    def __str__(self) -> str:
        parts = [f"typical difference {self.difference:.1e} of the output's standard deviation"]
        if self.agreement is not None:
            parts.insert(0, f"the same class for {self.agreement:.2%} of {self.images} images")
        else:
            parts.append(f"{self.images} images")
        if self.top1 is not None and self.top1_float32 is not None:
            change = 100 * (self.top1 - self.top1_float32)
            of = f" of the {self.labelled} with a class" if self.labelled < self.images else ""
            parts.insert(1, f"top-1 {self.top1:.2%} against {self.top1_float32:.2%} ({change:+.2f} points){of}")
        elif self.agreement is not None:
            parts.append("no top-1, since no image lies in a folder of a class that the model knows")
        return ", ".join(parts)


def find_samples(folder: Path, split: str, classifier: Classifier, option: str) -> list[Sample]:
    """The images of `folder`, of its sub-folder `split` where it has one, in the order of their names.

    The OUT folder of `make_dataset` is taken too, and of it the part with classes.

    Raises:
        UserError: there is no such folder, it has another split alone, or no image is in it; names the `option`.
    """
    if not folder.is_dir():
        raise UserError(f"{option} {folder} is no folder; a folder of images is accepted")
    root = with_classes(folder)
    other = {"train": "val", "val": "train"}[split]
    if (root / split).is_dir():
        root = root / split
    elif (root / other).is_dir():
        raise UserError(f"{option} {folder} has {other}/ and no {split}/; {option} {root / other} takes that one")
    classes = class_indices(classifier)
    return [
        Sample(path, classes.get(place.parts[0]) if len(place.parts) > 1 else None)
        for path, place in find_images([str(root)]).items()
    ]


def class_indices(classifier: Classifier) -> dict[str, int]:
    """Class folders by the index of the model's answer: its checkpoint's own, or ImageNet's synsets; else none."""
    if classifier.folders:
        return {name: index for index, name in enumerate(classifier.folders)}
    if classifier.model.num_classes == 1000:
        return {name: index for index, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return {}


def share_out(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples to calibrate on and, every fourth one, others to measure on; UserError for fewer than two."""
    if len(samples) < 2:
        raise UserError(f"--calibrate has {len(samples)} image; 2 or more are accepted, or --data DIR to measure on")
    return [sample for place, sample in enumerate(samples) if place % 4], list(samples[::4])


def spread(samples: Sequence[Sample], most: int = CALIBRATION) -> list[Sample]:
    """At most so many of the samples, spread over all of them, so that every class has a part."""
    step = max(1.0, len(samples) / most)
    return [samples[int(place * step)] for place in range(min(most, len(samples)))]


def batches(
    samples: Sequence[Sample], classifier: Classifier, input_size: tuple[int, int, int]
) -> Iterator[tuple[Tensor, list[int | None]]]:
    """Images (B, 3, H, W), prepared as the model is evaluated but at `input_size` (3, H, W), and their classes.

    Files that cannot be read are named on stderr and left out.
    """
    transform: Any = create_transform(**{**classifier.data, "input_size": input_size}, is_training=False)
    targets = {sample.path: sample.target for sample in samples}
    images = read_images(list(targets))
    while batch := list(islice(images, _BATCH)):
        yield torch.stack([transform(image) for _, image in batch]), [targets[path] for path, _ in batch]


def measure(
    reference: Path, reduced: Path, prepared: Iterator[tuple[Tensor, list[int | None]]], maps: bool
) -> Accuracy:
    """Compare two files on batches of images and classes; `maps` where the outputs are no classes.

    Raises:
        UserError: no image can be read, or the reduced file's answers are not all numbers.
    """
    first, second = answers(reference), answers(reduced)
    differences: list[float] = []
    votes: list[tuple[int, int, int | None]] = []
    for images, targets in prepared:
        expected, found = first(images), second(images)
        _check_finite(found)
        differences += [max(map(typical_difference, found, expected))] * len(images)
        if not maps:
            votes += zip(expected[0].argmax(1).tolist(), found[0].argmax(1).tolist(), targets, strict=True)
    if not differences:
        raise UserError("none of the images that were to be compared can be read")
    return Accuracy(len(differences), sum(differences) / len(differences), **_shares(votes))


def check_numbers(path: Path, shape: tuple[int, ...]) -> None:
    """UserError where ONNX Runtime cannot run a file on images (B, C, H, W) of noise, or its answers overflow."""
    try:
        found = answers(path)(noise(shape))
    except Exception as error:  # ONNX Runtime raises classes of its own, without a common base
        raise UserError(f"ONNX Runtime cannot run the reduced file: {first_line(error)}") from error
    _check_finite(found)


def _check_finite(outputs: Sequence[Tensor]) -> None:
    if not all(output.isfinite().all() for output in outputs):
        raise UserError("the smaller numbers overflow, and answers are no numbers: nothing was written")


def typical_difference(found: Tensor, expected: Tensor) -> float:
    """The root mean square of the differences, in standard deviations of `expected`."""
    return ((found - expected).square().mean().sqrt() / expected.std(correction=0).clamp(min=1e-30)).item()


def _shares(votes: Sequence[tuple[int, int, int | None]]) -> dict[str, Any]:
    """Agreement and top-1 from classes chosen before, chosen after, and right; what cannot be known is left out."""
    if not votes:
        return {}
    shares: dict[str, Any] = {"agreement": sum(before == after for before, after, _ in votes) / len(votes)}
    known = [vote for vote in votes if vote[2] is not None]
    if known:
        shares["labelled"] = len(known)
        shares["top1"] = sum(after == target for _, after, target in known) / len(known)
        shares["top1_float32"] = sum(before == target for before, _, target in known) / len(known)
    return shares
