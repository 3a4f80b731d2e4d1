"""What each attention of a model was asked, and how much a query took of every place in the map.

A model's families call the operators of `kernels`, so one place can listen to all of them: while a model runs once, the
operators' names in the families stand for functions that note their arguments. The models themselves hold nothing of
this. Every operator is linear in its values once queries and keys are given, so the weight that a query gives a token
is the derivative of the query's result by the token's value; the operator's reference itself says what it is.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vertebra.backbones._errors import UserError
from vertebra.kernels.channel_attention import channel_attention
from vertebra.kernels.global_attention import global_attention
from vertebra.kernels.linear_attention import linear_attention
from vertebra.kernels.neighborhood_pool_attention import neighborhood_pool_attention
from vertebra.kernels.routing_attention import routing_attention
from vertebra.kernels.window_attention import window_attention
from vertebra.tools._classifier import require_numbers
from vertebra.tools._visualize.feature_maps import feature_maps

OPERATORS: tuple[Callable[..., Tensor], ...] = (
    window_attention,
    routing_attention,
    neighborhood_pool_attention,
    global_attention,
    linear_attention,
    channel_attention,
)


@dataclass(frozen=True)
class Call:
    """One attention of a model at work."""

    layer: str
    """Name of the module that called the operator."""
    stage: str
    """Name of the module around it whose result is a feature map."""
    module: nn.Module
    operator: Callable[..., Tensor]
    arguments: dict[str, Any]
    """The operator's, by name."""
    size: tuple[int, int]
    """Height and width of the map, without padding."""
    stride: int
    """Pixels of the image between tokens."""

    @property
    def heads(self) -> int:
        """The number of heads."""
        return self.arguments["v"].shape[-2]

    @property
    def kind(self) -> str:
        """The operator, and for windows how they lie: "window_attention, grid"."""
        name, partition = self.operator.__name__, self.arguments.get("partition")
        return f"{name}, {partition}" if partition else name


def record(model: nn.Module, images: Tensor, name: str = "the model") -> list[Call]:
    """Run a model, and note every attention in it, in order.

    Args:
        model: a vertebra model, or a timm one that `fuse_attention` took, in eval mode.
        images: (1, 3, H, W).
        name: the model's, for what is said of it.

    Returns:
        The calls; none of a model without attention, or with one that is not ours.

    Raises:
        UserError: the model lists no feature maps, an attention is in none of them, or its answers are no numbers.
    """
    features = feature_maps(model)
    running: list[str] = []
    sizes: dict[str, tuple[int, int]] = {}
    noted: list[tuple[str, Callable[..., Tensor], dict[str, Any]]] = []

    def enter(layer: str) -> Any:
        return lambda module, given: running.append(layer)

    def leave(layer: str) -> Any:
        def note(module: nn.Module, given: Any, result: Any) -> None:
            running.pop()
            if layer in features:
                sizes[layer] = tuple(result.shape[-2:])

        return note

    # a layer without children is left alone: some are not called as modules where nobody watches them
    watched = [(layer, module) for layer, module in model.named_modules() if next(module.children(), None) is not None]
    hooks = [module.register_forward_pre_hook(enter(layer)) for layer, module in watched]
    hooks += [module.register_forward_hook(leave(layer)) for layer, module in watched]
    try:
        with torch.no_grad(), _listening(lambda operator, given: noted.append((running[-1], operator, given))):
            answers = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    require_numbers(name, answers)
    calls = []
    for layer, operator, given in noted:
        stage = next((stage for stage in features if layer.startswith(f"{stage}.")), None)
        if stage is None:
            raise UserError(f"{name}: {layer} attends outside of the modules that give maps, {', '.join(features)}")
        module, stride = model.get_submodule(layer), features[stage].stride
        calls.append(Call(layer, stage, module, operator, given, sizes[stage], stride))
    return calls


@contextmanager
def _listening(note: Callable[[Callable[..., Tensor], dict[str, Any]], None]) -> Iterator[None]:
    """Have every operator, wherever a family holds it, tell `note` what it is called with."""
    held = [
        (module, operator)
        for name, module in list(sys.modules.items())
        for operator in OPERATORS
        if name.startswith("vertebra.backbones.") and vars(module).get(operator.__name__) is operator
    ]

    def noting(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        signature = inspect.signature(operator)

        def run(*given: Any, **named: Any) -> Tensor:
            note(operator, dict(signature.bind(*given, **named).arguments))
            return operator(*given, **named)

        return run

    try:
        for module, operator in held:
            setattr(module, operator.__name__, noting(operator))
        yield
    finally:
        for module, operator in held:
            setattr(module, operator.__name__, operator)


def has_map(call: Call) -> bool:
    """Whether the attention weighs places; among channels there is none to draw."""
    return call.operator is not channel_attention


def weights(call: Call, row: int, column: int) -> tuple[Tensor, Tensor]:
    """What the query at a token of the map takes of the values of all tokens.

    With a softmax they sum to 1, together with what goes to padding. Where the value of a token is a mean (of a window,
    of a part of a pooled map), the tokens that it is the mean of share its weight. Position encodings, which CSWin adds
    to attention, are left out.

    Args:
        call: of any operator that `has_map`.
        row, column: the token.

    Returns:
        (heads, H, W) and, for tokens that lie outside of the map, (heads,).
    """
    arguments = dict(call.arguments)
    values = {name: arguments[name].detach().clone() for name in ("v", "pool_v") if name in arguments}
    heads, head_dim = values["v"].shape[-2:]
    if call.operator is window_attention:
        arguments |= {"lepe_weight": None, "lepe_bias": None}
        pad = arguments.get("pad")
        values["pad"] = values["v"].new_zeros(3, heads, head_dim) if pad is None else pad.detach().clone()
    for value in values.values():
        value.requires_grad_()
    with torch.enable_grad():
        out = call.operator(**{**arguments, **values, "backend": "reference"})
        query = out[0, row, column] if out.dim() == 4 else out[0, row * call.size[1] + column]
        # one channel of each head is enough: all of them weigh the tokens alike
        slopes = torch.autograd.grad(query.unflatten(0, (heads, -1))[:, 0].sum(), list(values.values()))
    found = torch.zeros(heads, *call.size, device=out.device, dtype=out.dtype)
    outside = found.new_zeros(heads)
    for name, slope in zip(values, slopes, strict=True):
        if name == "pad":
            outside += slope[2, :, 0]
        else:
            places = _places(call, name, slope[0, ..., 0])
            found += places[:, : call.size[0], : call.size[1]]
            outside += places[:, call.size[0] :].sum((1, 2)) + places[:, : call.size[0], call.size[1] :].sum((1, 2))
    return found.detach(), outside.detach()


def _places(call: Call, name: str, weight: Tensor) -> Tensor:
    """The weights of an operator's values, (H', W', heads) or (N, heads), where they lie: (heads, H', W')."""
    height, width = call.size
    if weight.dim() == 3:
        return weight.permute(2, 0, 1)
    weight = weight.transpose(0, 1)
    if name == "pool_v":
        rows, columns = call.arguments["bias_rows"].shape[1], call.arguments["bias_columns"].shape[1]
        shape = (height, width)
        return _spread(weight, (rows, columns), shape, lambda x: functional.adaptive_avg_pool2d(x, (rows, columns)))
    if weight.shape[1] == height * width:
        return weight.unflatten(1, (height, width))
    side: Any = call.module.window
    rows, columns = -(-height // side), -(-width // side)
    return _spread(weight, (rows, columns), (rows * side, columns * side), lambda x: functional.avg_pool2d(x, side))


def _spread(
    weight: Tensor, pooled: tuple[int, int], shape: tuple[int, int], pool: Callable[[Tensor], Tensor]
) -> Tensor:
    """The weights of means (heads, h w) among the tokens that `pool` makes them of: (heads, H, W)."""
    tokens = weight.new_zeros(1, len(weight), *shape).requires_grad_()
    with torch.enable_grad():
        (shares,) = torch.autograd.grad(pool(tokens)[0], tokens, weight.unflatten(1, pooled))
    return shares[0]
