"""The feature maps of any timm model: which modules they leave, and how their tensors are laid out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vertebra.backbones._errors import UserError


@dataclass(frozen=True)
class FeatureMap:
    """A module whose result is a map."""

    layer: str
    """Name of the module."""
    channels: int
    stride: int
    """Pixels of the image between pixels of the map."""


def feature_maps(model: nn.Module) -> dict[str, FeatureMap]:
    """The maps that timm's `feature_info` lists, fine ones first, by the name of their module.

    Raises:
        UserError: the model lists none.
    """
    listed: Any = getattr(model, "feature_info", None) or []
    entries = listed.get_dicts() if hasattr(listed, "get_dicts") else listed
    modules = dict(model.named_modules())
    found = {
        entry["module"]: FeatureMap(entry["module"], entry["num_chs"], entry["reduction"])
        for entry in entries
        if entry["module"] in modules
    }
    if not found:
        raise UserError(
            f"{type(model).__name__} lists no feature maps; models that timm gives `feature_info` are taken"
        )
    return found


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What leaves modules of these names while the context lasts, as it leaves them."""
    results: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, given, result: results.__setitem__(name, result)

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield results
    finally:
        for hook in hooks:
            hook.remove()


def as_map(model: nn.Module, feature: FeatureMap, result: Tensor, images: Tensor) -> Tensor:
    """A module's result as (B, C, h, w), whether it leaves as a map with channels first or last, or as tokens.

    Raises:
        UserError: it is none of these.
    """
    channels = feature.channels
    reroll: Any = getattr(model, "reroll", None)
    if isinstance(result, Tensor) and result.dim() == 3 and reroll:  # Hiera's tokens lie window by window
        block = feature.layer.removeprefix("blocks.")
        if not block.isdecimal():
            raise UserError(f"layer {feature.layer} has no order in rows; of this network blocks.0, blocks.1 ... have")
        result = reroll(result, int(block))
    if isinstance(result, Tensor) and result.dim() == 4:
        last = result.shape[3] == channels
        if result.shape[1] == channels and not (last and getattr(model, "output_fmt", "NCHW") == "NHWC"):
            return result
        if last:
            return result.permute(0, 3, 1, 2)
    if isinstance(result, Tensor) and result.dim() == 3 and result.shape[2] == channels:
        height, width = (-(-side // feature.stride) for side in images.shape[-2:])
        tokens = result[:, getattr(model, "num_prefix_tokens", 0) :]
        if tokens.shape[1] == height * width:
            return tokens.transpose(1, 2).unflatten(2, (height, width))
    shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    raise UserError(f"{feature.layer} gives {shape}, which is no map of {channels} channels")
