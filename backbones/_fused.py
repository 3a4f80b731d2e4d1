"""What our DaViT, MaxViT and SHViT share: timm's own networks, with their attention on the operators of `kernels`.

A fused model is timm's model whose modules changed class after construction: the parameters, their names and what they
mean stay timm's. `fuse_attention` does that to a model that is already built, and `FusedNetwork` adds what timm's
classes lack of the interface that every model here has.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import ClassifierHead, NormMlpClassifierHead
from timm.models import DefaultCfg, PretrainedCfg
from torch import Tensor, nn

from ._errors import UserError
from ._features import MIN_SIZE, FeatureMaps
from ._pyramid import build

_logger = logging.getLogger(__name__)

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _Swap(NamedTuple):
    fused: type[nn.Module]
    prepare: Callable[[Any], bool] | None
    attends: bool


_SWAPS: dict[type[nn.Module], _Swap] = {}


def fused_form_of(
    plain: type[nn.Module], prepare: Callable[[Any], bool] | None = None, attends: bool = False
) -> Callable[[type[ModuleT]], type[ModuleT]]:
    """Mark a class as what modules of timm's class `plain` become: a subclass that adds no parameter and no buffer.

    Args:
        plain: timm's class; its subclasses stay as they are.
        prepare: is called with the module first, sets what the new class needs, and may say no with False.
        attends: whether the module holds an attention; a model without one is none that `fuse_attention` takes.
    """

    def mark(fused: type[ModuleT]) -> type[ModuleT]:
        _SWAPS[plain] = _Swap(fused, prepare, attends)
        return fused

    return mark


def fuse_attention(model: ModuleT) -> ModuleT:
    """Put the attention of a built timm DaViT, MaxViT or SHViT on the operators of `vertebra.kernels`, in place.

    Weights, state-dict keys and results stay; what is new is that MaxViT takes any image from 32 pixels a side up.
    Feature extractors (`features_only=True`) and models in larger ones are taken too.

    Returns:
        `model` itself.

    Raises:
        UserError: there is no attention of these families in it. Where there is only such as the operators cannot do,
            a warning says so.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"fuse_attention takes a built network, and this is a {type(model).__name__}")
    attention = tuple(cls for plain, swap in _SWAPS.items() if swap.attends for cls in (plain, swap.fused))
    if not any(isinstance(module, attention) for module in model.modules()):
        name = type(model).__name__
        raise UserError(f"fuse_attention takes timm's DaViT, MaxViT and SHViT; {name} holds no attention of theirs")
    swap_modules(model)
    fused = tuple(swap.fused for swap in _SWAPS.values() if swap.attends)
    if not any(isinstance(module, fused) for module in model.modules()):
        why = "it drops weights in training, or has a position bias that the operators lack"
        _logger.warning("fuse_attention leaves the attention of this %s as it is: %s", type(model).__name__, why)
    return model


def swap_modules(model: nn.Module) -> None:
    """Give every module inside, and `model` itself, the class that `fused_form_of` marked for it."""
    for module in list(model.modules()):
        swap = _SWAPS.get(type(module))
        if swap is not None and (swap.prepare is None or swap.prepare(module)):
            module.__class__ = swap.fused


def prepare_network(model: Any) -> bool:
    """For `fused_form_of`: say on a network, where every model here says it, that its stages are checkpointed."""
    model.grad_checkpointing = any(stage.grad_checkpointing for stage in model.stages)
    return True


class FusedNetwork(FeatureMaps):
    """timm's interface as `Pyramid` has it, over a network of timm: comes before timm's class among the bases."""

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, **options: Any) -> None:
        """Put a fresh classifier in place, initialised as at build, on the model's device, dtype and mode.

        Args:
            num_classes: 0 for none: the model then returns pooled features (B, head_hidden_size).
            global_pool: None keeps the pooling; "" returns the map.
            options: `reset_other=True` takes the norm in the head of DaViT and MaxViT out as well.

        Raises:
            UserError: the head cannot do that.
        """
        pooling = getattr(self.head, "global_pool", None) or self.global_pool  # SHViT's stands beside its head
        pool = pooling.pool_type if global_pool is None else global_pool
        head = self.head
        check_pooling(num_classes, pool, isinstance(head, NormMlpClassifierHead), isinstance(head, ClassifierHead))
        super().reset_classifier(num_classes, global_pool, **options)

    @torch.jit.ignore()
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: keep the input of each block and run it again in the backward pass."""
        super().set_grad_checkpointing(enable)
        self.grad_checkpointing = enable

    @torch.jit.ignore()
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns for layer decay: one group a block, or one a stage with `coarse`; the head comes last."""
        stage = r"^stages\.(\d+)"
        fine = [(stage + r"\.downsample", (0,)), (stage + r"\.blocks\.(\d+)", None)]
        blocks = [*([(stage, None)] if coarse else fine), (r"^norm", (99999,))]
        return {"stem": r"^(?:stem|patch_embed)\.", "blocks": blocks}


def check_pooling(num_classes: int, global_pool: str, classifies_maps: bool, widens: bool) -> None:
    """Refuse what timm's head of that kind would fail at later, or with an assertion.

    Raises:
        UserError: classes without pooling, or a pooling that doubles the channels, in a head that cannot have it.
    """
    if num_classes and not global_pool and not classifies_maps:
        raise UserError(f"global_pool='' leaves a map, which the classifier of num_classes={num_classes} cannot take")
    if global_pool == "catavgmax" and not widens:
        raise UserError("global_pool='catavgmax' doubles the channels, which the norm in this head cannot take")


def fused_cfgs(
    of_timm: Mapping[str, DefaultCfg], prefix: str, stride: int, facts: Callable[[str, str], dict[str, Any]]
) -> dict[str, DefaultCfg]:
    """timm's descriptions of weights under our names, with its tags and hub ids, and with what is missing there.

    Args:
        of_timm: `default_cfgs` of timm's module.
        prefix: of the names to take.
        stride: of the last map.
        facts: from timm's name and a tag to licence, papers and origin.
    """

    def ours(name: str, tag: str, cfg: PretrainedCfg) -> PretrainedCfg:
        hub_id = f"timm/{name}.{tag}" if cfg.hf_hub_id == "timm/" else cfg.hf_hub_id
        return replace(
            cfg,
            hf_hub_id=hub_id,
            min_input_size=(3, MIN_SIZE, MIN_SIZE),
            fixed_input_size=False,
            pool_size=tuple(-(-side // stride) for side in cfg.input_size[1:]),
            **facts(name, tag),
        )

    return {
        f"{name}_fused": DefaultCfg(
            deque(entry.tags), {tag: ours(name, tag, cfg) for tag, cfg in entry.cfgs.items()}, entry.is_pretrained
        )
        for name, entry in of_timm.items()
        if name.startswith(prefix)
    }


def build_fused(
    cls: Callable[..., ModuleT],
    name: str,
    pretrained: bool,
    checkpoint_filter_fn: Callable[[Mapping[str, Any], ModuleT], dict[str, Tensor]],
    levels: int,
    **kwargs: Any,
) -> ModuleT:
    """`build` for a network with `levels` maps."""
    if kwargs.get("features_only"):
        kwargs.setdefault("out_indices", tuple(range(levels)))
    return build(cls, name, pretrained, checkpoint_filter_fn, **kwargs)
