"""Another backbone in a detector's or segmenter's config: neck and heads follow the maps that it gives.

Any config will do, of ours or of mmdet and mmseg. A former backbone that does not say what maps it gives is built and
shown an image. Three cases fit:

- the new model has maps of the same strides: those are taken, and whoever names channels of the old gets the new;
- it has coarser maps, or fewer, and the neck is a feature pyramid: the pyramid grows the levels that are missing;
- everything else is refused in a sentence that names both sides.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from timm.data import resolve_data_config

from ..backbones._errors import UserError

_KEPT = ("frozen_stages", "norm_eval", "with_cp")
_HEADS = ("decode_head", "auxiliary_head", "panoptic_head")  # which may take maps without a neck
_SIDE = 128  # of the image that a backbone is shown; every stride in use divides it

_OF_PYRAMID_NECK = {"type", "in_channels", "out_channels", "num_outs", "extra_levels", "init_cfg"}
_OF_PYRAMID_NECK |= {"add_extra_convs", "norm_cfg", "relu_before_extra_convs"}
_NO_DIFFERENCE = {"start_level": 0, "end_level": -1, "upsample_cfg": {"mode": "nearest"}}  # None and False make none


@dataclass
class Maps:
    """Channels and strides of the maps that a backbone gives, finest first."""

    channels: list[int]
    strides: list[int]

    def __str__(self) -> str:
        return f"{len(self.strides)} maps (strides {', '.join(map(str, self.strides))})"


def use_backbone(config: Config, name: str) -> None:
    """Put another timm model in the place of the config's, with neck and heads for its maps.

    Weights are the new model's published ones where the config named any; colours are normalised as it wants them.

    Raises:
        UserError: an unknown model, or one whose maps do not suit the config's heads; says what would.
    """
    model, before = config.model, config.model.backbone
    neck = _first_neck(model)
    old = _without_unused(neck, maps_of(config))
    backbone = {"type": "TimmPyramid", "model_name": name, **{key: before[key] for key in _KEPT if key in before}}
    whole = _build_pyramid(backbone)
    strides = _choose_strides(name, Maps(whole.out_channels, whole.strides), old, neck)
    place = {stride: i for i, stride in enumerate(whole.strides)}  # the deepest, where several have one stride
    new = Maps([whole.out_channels[place[stride]] for stride in strides], strides)
    indices = tuple(whole.out_indices[place[stride]] for stride in strides)
    model.backbone = {**backbone, "out_indices": indices, "pretrained": _takes_weights(model, before)}
    if new.strides != old.strides:
        _fit_neck(model, old, new)
    fit_channels(model, old, new)
    _fit_colours(model, name)


def _takes_weights(model: Any, backbone: Mapping[str, Any]) -> bool:
    """Whether the former backbone began with weights, in any of the ways to say so."""
    init = backbone.get("init_cfg")
    pretrained = (model.pop("pretrained", None), backbone.get("pretrained"))
    return any(pretrained) or (isinstance(init, Mapping) and init.get("type") == "Pretrained")


# --- the maps on both sides ---


def maps_of(config: Config) -> Maps:
    """What the config's backbone gives: a `TimmPyramid` says it, any other is built and shown an image.

    Raises:
        UserError: it cannot be built, or takes no image by itself.
    """
    backbone = {**config.model.backbone}
    if backbone.get("type") == "TimmPyramid":
        pyramid = _build_pyramid(backbone)
        return Maps(pyramid.out_channels, pyramid.strides)
    unloaded = {key: None for key in ("pretrained", "init_cfg") if key in backbone}
    try:
        with MODELS.switch_scope_and_registry(config.get("default_scope")) as registry, torch.no_grad():
            body = registry.build({**backbone, **unloaded})
            body.eval()
            maps = body(torch.zeros(1, 3, _SIDE, _SIDE))
        shapes = [tuple(x.shape) for x in maps]
        return Maps([shape[1] for shape in shapes], [round(_SIDE / shape[3]) for shape in shapes])
    except UserError:
        raise
    except Exception as error:  # whatever a backbone of any origin raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--backbone cannot see which maps the config's own backbone, {backbone.get('type')}, gives: {reason}"
        ) from error


def _build_pyramid(backbone: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return MODELS.build({**backbone, "pretrained": False, "init_cfg": None})


def _first_neck(model: Any) -> Any:
    neck = model.get("neck")
    return neck[0] if isinstance(neck, list | tuple) else neck


def _is_pyramid(neck: Any) -> bool:
    return neck is not None and str(neck.get("type")).rpartition(".")[2] in ("FPN", "PyramidNeck")


def _without_unused(neck: Any, maps: Maps) -> Maps:
    """The maps that a feature pyramid uses; those before its `start_level` need not be made at all."""
    if not _is_pyramid(neck) or not neck.get("start_level") or neck.get("end_level", -1) != -1:
        return maps
    start = neck.pop("start_level")
    neck["in_channels"] = list(neck["in_channels"])[start:]
    return Maps(maps.channels[start:], maps.strides[start:])


def _choose_strides(name: str, has: Maps, old: Maps, neck: Any) -> list[int]:
    """The strides of the model's maps that neck and heads can work with."""
    grown = neck is not None and neck.get("extra_levels")
    if not grown and set(old.strides) <= set(has.strides) and len(set(old.strides)) == len(old.strides):
        return old.strides
    if _is_pyramid(neck) and _doubles(old.strides):
        levels = _levels(neck, old)
        found = [stride for stride in levels if stride in has.strides]
        if found and _doubles(found):
            return found
    raise UserError(
        f"{name} gives {has}, and this config's neck and heads are made for {old}: take a config with a feature "
        "pyramid (FPN), or another model"
    )


def _levels(neck: Any, old: Maps) -> list[int]:
    """Strides of the levels that a feature pyramid gives."""
    finest = old.strides[0] >> neck.get("extra_levels", 0)
    return [finest << i for i in range(neck["num_outs"])]


def _doubles(strides: list[int]) -> bool:
    return strides == [strides[0] << i for i in range(len(strides))]


# --- what follows from them ---


def _fit_neck(model: Any, old: Maps, new: Maps) -> None:
    """Let the feature pyramid grow finer levels where the new maps begin with a coarser one."""
    neck = _first_neck(model)
    finer = _levels(neck, old).index(new.strides[0])
    if not finer and neck["type"] != "PyramidNeck":
        return
    other = [
        key
        for key, value in neck.items()
        if key not in _OF_PYRAMID_NECK and value not in (None, False, _NO_DIFFERENCE.get(key))
    ]
    if other:
        raise UserError(
            f"the maps of the new backbone begin with stride {new.strides[0]}, and a PyramidNeck would grow the finer "
            f"levels, but it has nothing for {other[0]}={neck[other[0]]!r} of this config's {neck['type']}"
        )
    grown = {key: value for key, value in neck.items() if key in _OF_PYRAMID_NECK}
    grown |= {"type": "PyramidNeck", "extra_levels": finer}
    if grown.get("add_extra_convs") is True:
        grown["add_extra_convs"] = "on_input"
    if isinstance(model["neck"], list | tuple):
        model["neck"] = [grown, *model["neck"][1:]]
    else:
        model["neck"] = grown


def fit_channels(model: Any, old: Maps, new: Maps) -> None:
    """Replace the channels of the backbone's maps wherever neck or heads name them.

    Raises:
        UserError: they name none, or others than the former backbone has.
    """
    neck = _first_neck(model)
    parts = [("neck", neck)] if neck is not None else list(_heads(model))
    if not parts:
        raise UserError(
            f"this config's {model.get('type')} has no neck, and its heads are made for the former backbone alone: "
            "--backbone takes a config with a neck"
        )
    for where, part in parts:
        given = part.get("in_channels")
        given = list(given) if isinstance(given, list | tuple) else given
        index = part.get("in_index", None if isinstance(given, list) else -1)
        if given != _at(index, old.channels):
            raise UserError(
                f"{where}.in_channels of this config's {part.get('type')} is {given}, and the maps that it takes have "
                f"{_at(index, old.channels)}: --backbone cannot tell which belongs to which"
            )
        part["in_channels"] = _at(index, new.channels)


def _at(index: Any, channels: list[int]) -> list[int] | int:
    """The channels at one place or several; None stands for all."""
    if index is None:
        return list(channels)
    return [channels[i] for i in index] if isinstance(index, list | tuple) else channels[index]


def _heads(model: Any) -> Iterator[tuple[str, Any]]:
    """The heads of a model without a neck, and what to call them."""
    for where in _HEADS:
        given = model.get(where)
        for head in given if isinstance(given, list | tuple) else [given]:
            if head is not None:
                yield where, head


def colours_of(name: str) -> dict[str, list[float]]:
    """`mean` and `std` of colours that a model's weights were trained with: of red, green and blue, 0 to 255."""
    cfg = timm.get_pretrained_cfg(name)
    data = resolve_data_config(pretrained_cfg=cfg.to_dict() if cfg else {})
    return {key: [round(255 * value, 3) for value in data[key]] for key in ("mean", "std")}


def _fit_colours(model: Any, name: str) -> None:
    """Let a config normalise colours as the weights of its new backbone want them."""
    preprocessor = model.get("data_preprocessor") or {}
    if "mean" not in preprocessor:
        return
    preprocessor.update(colours_of(name))
    # images are read as BGR; one that turns them into it, "rgb_to_bgr", is given RGB
    preprocessor["bgr_to_rgb"] = not preprocessor.pop("rgb_to_bgr", False)
