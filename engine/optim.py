"""Optimizers as timm builds them: parameter groups from the model's own word on decay and depth, AMP on any device."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmParamGroups:
    """Build an optimizer with timm's parameter groups.

    No decay for biases, other 1-D parameters and what the model's `no_weight_decay` names; with
    `paramwise_cfg=dict(layer_decay=0.8)` the learning rate of each depth by the model's `group_matcher`.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        self.layer_decay = (paramwise_cfg or {}).get("layer_decay")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = model.module if is_model_wrapper(model) else model
        backbone: Any = model.backbone
        decay = self.optimizer_cfg.get("weight_decay", 0.0)
        exempt = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
        if self.layer_decay:
            groups = param_groups_layer_decay(
                backbone, decay, no_weight_decay_list=exempt, layer_decay=self.layer_decay
            )
        else:
            groups = param_groups_weight_decay(backbone, decay, no_weight_decay_list=exempt)
        for group in groups:
            # mmengine's schedules scale each group's own rate, where timm's scale a common one by lr_scale
            group["lr"] = self.optimizer_cfg["lr"] * group.pop("lr_scale", 1.0)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": groups})
        return OPTIM_WRAPPERS.build(
            {"type": "OptimWrapper", **self.wrapper_cfg}, default_args=dict(optimizer=optimizer)
        )


@OPTIM_WRAPPERS.register_module()
class AnyDeviceAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's AmpOptimWrapper where the CPU may take part: bf16 without, fp16 with a loss scale."""

    def __init__(self, dtype: str = "bfloat16", device: str = "cuda", **kwargs: Any) -> None:
        OptimWrapper.__init__(self, **kwargs)  # AmpOptimWrapper's own asserts that there is a GPU
        self._scale_update_param = None
        self.cast_dtype = getattr(torch, dtype)
        self.device = device
        self.loss_scaler = torch.amp.GradScaler(device=device, enabled=dtype == "float16")

    def optim_context(self, model: nn.Module) -> ExitStack:
        """Autocast on the device, and no gradient exchange while gradients accumulate."""
        stack = ExitStack()
        stack.enter_context(OptimWrapper.optim_context(self, model))
        stack.enter_context(torch.autocast(self.device, dtype=self.cast_dtype))
        return stack


def asks_for_amp(wrapper: Any) -> bool:
    """Whether the config of an optimizer asks for mmengine's own mixed precision, which asserts that there is a GPU."""
    kind = wrapper.get("type") if isinstance(wrapper, Mapping) else None
    return kind is AmpOptimWrapper or str(kind).removeprefix("mmengine.") == "AmpOptimWrapper"


def without_amp(wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """The same optimizer's config in float32."""
    of_amp = ("loss_scale", "dtype", "use_fsdp")
    return {**{key: value for key, value in wrapper.items() if key not in of_amp}, "type": "OptimWrapper"}
