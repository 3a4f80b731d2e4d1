"""What there is to look at in a model, and what of it was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.kernels.routing_attention import routing_attention
from vertebra.kernels.window_attention import window_attention
from vertebra.tools._visualize.attention_maps import Call, has_map, record
from vertebra.tools._visualize.feature_maps import FeatureMap, feature_maps

KINDS = {
    "attention": "what the token at --at takes of every place",
    "routes": "the regions that BiFormer takes keys from",
    "windows": "the windows of attention",
    "cam": "Grad-CAM of --class",
    "erf": "the effective receptive field",
}
_NEEDS = {
    "attention": "an attention of vertebra's families over places",
    "routes": "BiFormer's routed regions",
    "windows": "windows of vertebra's families",
    "cam": "a classifier",
    "erf": "a feature map",
}
_WINDOWED = ("davit", "maxvit")
"""Of the models that timm has, those with windows of attention."""


@dataclass(frozen=True)
class Inside:
    """What there is to look at in a model: for each kind, its layers by name."""

    layers: Mapping[str, Mapping[str, Call | FeatureMap]]
    channels: Sequence[str]
    """Attentions among channels, which have no map."""


def look_inside(model: nn.Module, images: Tensor, name: str) -> Inside:
    """Find everything in a model that can be drawn.

    Args:
        model: a timm model in eval mode.
        images: (1, 3, H, W), which it looks at.
        name: the model's.

    Raises:
        UserError: the model lists no feature maps, or its answers are no numbers.
    """
    features, calls = feature_maps(model), record(model, images, name)
    layers = {
        "attention": {call.layer: call for call in calls if has_map(call)},
        "routes": {call.layer: call for call in calls if call.operator is routing_attention},
        "windows": {call.layer: call for call in calls if call.operator is window_attention},
        "cam": features if getattr(model, "num_classes", 0) else {},
        "erf": features,
    }
    return Inside(layers, [call.layer for call in calls if not has_map(call)])


def choose(inside: Inside, name: str, kinds: Sequence[str] | None, asked: Sequence[str] | None) -> dict[str, list[Any]]:
    """The layers to draw, by kind.

    Args:
        inside: what the model has.
        name: the model's.
        kinds: None for all that it has.
        asked: modules; what is in them counts. None takes few of each stage.

    Raises:
        UserError: a kind that the model does not have, or a layer that is none of the kinds'.
    """
    chosen: dict[str, list[Any]] = {}
    for kind in kinds or [kind for kind, layers in inside.layers.items() if layers]:
        layers = inside.layers[kind]
        if not layers:
            raise UserError(_lacking(inside, name, kind))
        chosen[kind] = _default(layers) if asked is None else [layers[name] for name in layers if _within(name, asked)]
    for layer in asked or ():
        names = [name for kind in chosen for name in inside.layers[kind]]
        if not any(_within(name, [layer]) for name in names):
            raise UserError(_no_layer(inside, layer, names))
    for kind in kinds or ():
        if not chosen[kind]:
            raise UserError(f"--kind {kind} draws {few(list(inside.layers[kind]))}; --layer names none of these")
    return {kind: layers for kind, layers in chosen.items() if layers}


def _within(name: str, asked: Sequence[str]) -> bool:
    return any(name == layer or name.startswith(f"{layer}.") for layer in asked)


def _default(layers: Mapping[str, Call | FeatureMap]) -> list[Call | FeatureMap]:
    """Of each stage, the last attention of its sort; the last feature map."""
    sorts = {(x.stage, type(x.module), x.kind) if isinstance(x, Call) else None: x for x in layers.values()}
    return list(sorts.values())


def few(names: Sequence[str]) -> str:
    """Some of the names, in one line."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _lacking(inside: Inside, name: str, kind: str) -> str:
    has = ", ".join(kind for kind, layers in inside.layers.items() if layers)
    fused = f"{name.split('.')[0]}_fused"
    more = kind == "attention" or (kind == "windows" and name.startswith(_WINDOWED))
    hint = f" ({fused} is the same model with more to look at)" if more and fused in timm.list_models() else ""
    return f"--kind {kind} needs {_NEEDS[kind]}, and {name} has none; it takes {has}{hint}"


def _no_layer(inside: Inside, layer: str, names: Sequence[str]) -> str:
    if any(_within(name, [layer]) for name in inside.channels):
        return f"--layer {layer} weighs channels and not places, so there is no map to draw; it takes {few(names)}"
    return f"--layer {layer} is none to draw; it takes {few(names)}, or what is around them"
