"""Slide test of segmenters: `model.test_cfg.mode=slide` alone says it, what is left out follows from training."""

from typing import Any

from ..backbones._errors import UserError

_MODES = ("whole", "slide")


def complete_slide(model: Any) -> None:
    """Fill in the windows of a segmenter's config that slides: as large as its training crops, two thirds apart.

    Raises:
        UserError: another mode, or windows that are none or would leave gaps.
    """
    test = model.get("test_cfg")
    if test is None or "decode_head" not in model:
        return
    mode = test.get("mode", "whole")
    if mode not in _MODES:
        raise UserError(f"model.test_cfg.mode is {mode!r}; {' and '.join(_MODES)} are accepted")
    if mode == "whole":
        return
    crop, stride = test.get("crop_size"), test.get("stride")
    crop = (model.get("data_preprocessor") or {}).get("size") if crop is None else crop
    if crop is None:
        raise UserError("model.test_cfg.mode=slide needs model.test_cfg.crop_size, the height and width of its windows")
    test["crop_size"] = crop = _pair("crop_size", crop)
    test["stride"] = stride = _pair("stride", tuple(side * 2 // 3 for side in crop) if stride is None else stride)
    if stride[0] > crop[0] or stride[1] > crop[1]:
        raise UserError(f"model.test_cfg.stride {stride} is more than crop_size {crop}: windows would leave gaps")


def _pair(key: str, value: Any) -> tuple[int, int]:
    """A side, or height and width."""
    sides = (value, value) if isinstance(value, int) else value
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(isinstance(x, int) and x > 0 for x in sides):
        raise UserError(
            f"model.test_cfg.{key} is {value!r}; a height and a width in pixels, such as 512,512, are accepted"
        )
    return sides[0], sides[1]
