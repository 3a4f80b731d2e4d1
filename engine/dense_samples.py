"""One sample of mmdet's or mmseg's data sets: what makes it unusable, and what happens then.

In training     an image or mask that cannot be read, or does not belong together, is skipped: another sample is drawn
                in its place, from the same seed in every run
In evaluation   it is replaced by a black image that no metric counts
In both         pixels of a label that no class has are ignored, as 255 is

What is found travels with a sample as metadata (`skipped`, `ignored`, `unreadable`) to the main process, where
`UnreadableImagesHook` counts it and ends the run when it is too much.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.registry import TRANSFORMS
from PIL import Image

from ..backbones._errors import UserError

_TRIES = 100  # samples in a row that may be unusable
_SIDE = 64  # of the black image in the place of one that cannot be read
_INDEXED = ("1", "L", "P")  # Pillow's modes of one number from 0 to 255 a pixel


class Unusable(Exception):
    """Why a sample cannot be used, in words."""


class Notes(list):
    """What was found while one sample was prepared; copies of the sample share it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Notes":
        return self


class CheckedSteps(Compose):
    """A data set's pipeline, which says of a sample that it cannot be used instead of ending the run.

    Args:
        steps: the pipeline.
        samples: whose it is: a data set of mmengine's kind.
        training: whether another sample takes the place of one that cannot be used.
    """

    def __init__(self, steps: Compose, samples: Any, training: bool) -> None:
        self.transforms, self.training = steps.transforms, training
        self.classes = len(samples.metainfo.get("classes") or ()) or 256
        self.ignored = getattr(samples, "ignore_index", 255)
        self.backend_args = getattr(samples, "backend_args", None)
        self.waiting: list[str] = []  # why samples were skipped, for the next one to tell
        self.row = 0  # samples skipped in a row

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """A packed sample; None where another is to be drawn in its place.

        Raises:
            UserError: too many in a row cannot be used.
        """
        notes = Notes()
        told = {**data, "notes": notes, "classes": self.classes, "ignored": self.ignored}
        try:
            packed = super().__call__({**told})
            if packed is not None:
                check_size(data, packed)
        except Unusable as reason:
            return self._skip(told, str(reason))
        except Exception:
            reason = fault(data, self.backend_args)
            if reason is None:  # the pipeline is at fault
                raise
            return self._skip(told, reason)
        self.row = 0
        if packed is not None:
            self._tell(packed, notes, unreadable=False)
        return packed

    def _skip(self, data: dict[str, Any], reason: str) -> dict[str, Any] | None:
        if reason not in self.waiting:
            self.waiting.append(reason)
        self.row += 1
        if self.training and self.row >= _TRIES:
            raise UserError(f"none of {self.row} samples in a row can be used, the last because {reason}")
        if self.training:
            return None
        packed = self._blank(data)
        self._tell(packed, data["notes"], unreadable=True)
        return packed

    def _blank(self, data: dict[str, Any]) -> dict[str, Any]:
        """The sample with a black image and nothing in it."""
        size = (_SIDE, _SIDE)
        data = {**data, "instances": [], "seg_fields": [], "blank": True, "height": _SIDE, "width": _SIDE}
        data |= {"img": np.zeros((*size, 3), np.uint8), "img_shape": size, "ori_shape": size}
        for step in self.transforms:
            if not type(step).__name__.startswith("LoadImage"):
                data = step(data)
        return data

    def _tell(self, packed: dict[str, Any], notes: Notes, unreadable: bool) -> None:
        """Write down what was found, where the main process looks for it."""
        samples = _listed(packed.get("data_samples"))
        for sample in samples:
            sample.set_metainfo({"skipped": self.waiting, "ignored": list(notes), "unreadable": unreadable})
        if not samples:  # half a pipeline, whose images are mixed before they are packed
            for reason in (*self.waiting, *notes):
                MMLogger.get_current_instance().warning(reason)
        self.waiting = []


def check_size(data: Mapping[str, Any], packed: Mapping[str, Any]) -> None:
    """Refuse a sample whose image is not of the size that its annotations are for.

    Raises:
        Unusable: names both sizes.
    """
    for sample in _listed(packed.get("data_samples")):
        reason = _other_size(data, sample.metainfo.get("ori_shape"))
        if reason is not None:
            raise Unusable(reason)


def _other_size(data: Mapping[str, Any], size: Any) -> str | None:
    expected = (data.get("height"), data.get("width"))
    if size is None or None in expected or tuple(size[:2]) == expected:
        return None
    name = data.get("img_path", data.get("img_id"))
    return f"image {name} is {size[1]} x {size[0]} pixels, and its annotations are for {expected[1]} x {expected[0]}"


def fault(data: Mapping[str, Any], backend_args: dict[str, Any] | None = None) -> str | None:
    """What is wrong with the image of a sample that could not be prepared; None where it is good, or in no file."""
    import mmcv  # the pipelines read images by it; nothing else of the engine needs it

    path = data.get("img_path")
    if path is None:
        return None
    try:
        image = mmcv.imread(path, backend_args=backend_args)
        if image is None:
            raise OSError("it cannot be decoded")
    except Exception as error:  # whatever a decoder raises
        return f"image {path} cannot be read ({_reason(error, path)})"
    return _other_size(data, image.shape)


def _reason(error: Exception, path: Any) -> str:
    """An error's first line without the path, which is told beside it."""
    return str(error).split("\n")[0].replace(f" {str(path)!r}", "").rstrip(":") or type(error).__name__


def _listed(samples: Any) -> list[Any]:
    """The data samples of a packed sample: one, or one for each view of test-time augmentation."""
    return samples if isinstance(samples, list) else [] if samples is None else [samples]


class CheckedMask:
    """mmseg's LoadAnnotations for masks that fit their image; a label that no class has becomes "ignored".

    Args:
        load: config of the LoadAnnotations.
    """

    def __init__(self, load: dict[str, Any]) -> None:
        self.load: Callable[[dict[str, Any]], dict[str, Any]] = TRANSFORMS.build(load)
        self.decoder = getattr(self.load, "imdecode_backend", None)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the mask `gt_seg_map` (H, W) of class numbers.

        Raises:
            Unusable: the file cannot be read, is no picture of numbers, or has another size than the image.
        """
        ignored = results.get("ignored", 255)
        if results.get("blank"):
            results["gt_seg_map"] = np.full(results["img_shape"], ignored, np.uint8)
            results["seg_fields"].append("gt_seg_map")
            return results
        path = results["seg_map_path"]
        # a header is read at once; files that are not on the disk, or not for Pillow, have to do without
        if self.decoder in ("pillow", "cv2") and os.path.exists(path):
            self._check_header(path)
        try:
            results = self.load(results)
        except AssertionError:  # the step and the data set contradict each other
            raise
        except Exception as error:  # whatever a decoder raises
            raise Unusable(f"mask {path} cannot be read ({_reason(error, path)})") from error
        labels = results["gt_seg_map"]
        if labels.ndim != 2:
            raise Unusable(f"mask {path} has {labels.shape[2]} numbers a pixel; one is taken")
        if labels.shape != tuple(results["ori_shape"][:2]):
            raise Unusable(
                f"mask {path} is {labels.shape[1]} x {labels.shape[0]} pixels, and its image {results['img_path']} "
                f"{results['ori_shape'][1]} x {results['ori_shape'][0]}"
            )
        unknown = (labels >= results.get("classes", 256)) & (labels != ignored)
        if unknown.any():
            shift = bool(results.get("reduce_zero_label"))
            first, last = int(labels[unknown].min()) + shift, results["classes"] - 1 + shift
            results["notes"].append(
                f"mask {path} holds the label {first}, and the classes end with {last} ({ignored} is for what has none)"
            )
            labels[unknown] = ignored
        return results

    @staticmethod
    def _check_header(path: str) -> None:
        try:
            with Image.open(path) as mask:
                mode = mask.mode
        except Exception as error:  # whatever a decoder raises
            raise Unusable(f"mask {path} cannot be read ({_reason(error, path)})") from error
        if mode not in _INDEXED:
            raise Unusable(
                f"mask {path} is an image of Pillow's mode {mode}; a mask has a number of 8 bits a pixel (mode L or P)"
            )
