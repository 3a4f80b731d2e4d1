"""Optimizers as timm builds them: groups by decay, depth and name, clipping by norm or by AGC, AMP on any device."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from ..backbones._errors import UserError
from .classifier import DIVERGED

_CLIPPING = ("norm", "value", "agc")
_OF_AGC = ("clip_factor", "eps", "norm_type")  # arguments of timm's adaptive_clip_grad
_PARAMWISE = ("layer_decay", "custom_keys")
_MULTIPLIERS = ("lr_mult", "decay_mult")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmParamGroups:
    """Build an optimizer with timm's parameter groups.

    No decay for biases, other 1-D parameters and what the model's `no_weight_decay` names. Of `paramwise_cfg`:

    - `layer_decay=0.8`: the learning rate of each depth by the model's `group_matcher`.
    - `custom_keys={"offset.weight": dict(lr_mult=0.01, decay_mult=1.0)}`, as mmengine has it: parts of parameters'
      names (`backbone.` + timm's); the longest part that occurs in a name counts. `lr_mult` multiplies the rate,
      `decay_mult` the optimizer's weight decay; without it the decay stays as it would be.

    `clip_grad` is mmengine's, or `dict(type="agc", clip_factor=0.02)`: adaptive clipping of all but the classifier.
    Without it nothing is clipped, and the norm of the gradients is logged all the same.

    Raises:
        UserError: an entry that nothing reads, or a key that is in no parameter's name.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        self.clip_grad = _checked_clipping(self.wrapper_cfg.pop("clip_grad", None))
        paramwise = dict(paramwise_cfg or {})
        _check_entries("optim_wrapper.paramwise_cfg", paramwise, _PARAMWISE)
        self.layer_decay = paramwise.get("layer_decay")
        self.custom_keys = dict(paramwise.get("custom_keys") or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = model.module if is_model_wrapper(model) else model
        backbone: Any = model.backbone
        decay = self.optimizer_cfg.get("weight_decay", 0.0)
        if decay and not any(parameter.ndim > 1 for parameter in backbone.parameters()):
            raise UserError(
                "every parameter is a vector, as in shards of FSDP, so which of them decay cannot be told: take "
                'optim_wrapper.constructor="DefaultOptimWrapperConstructor"'
            )
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
        if self.custom_keys:
            groups = split_by_name(groups, dict(model.named_parameters()), self.custom_keys, decay)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": groups})
        return self._wrapped(optimizer, backbone)

    def _wrapped(self, optimizer: torch.optim.Optimizer, backbone: Any) -> OptimWrapper:
        adaptive = self.clip_grad.get("type") == "agc"
        cfg = {"type": "OptimWrapper", **self.wrapper_cfg}
        kind = OPTIM_WRAPPERS.get(cfg["type"]) if isinstance(cfg["type"], str) else cfg["type"]
        if not issubclass(kind or object, OptimWrapper):  # a strategy's own, which clips by itself
            if self.clip_grad:
                raise UserError(f"{cfg['type']} takes no clip_grad: clip by the strategy (gradient_clipping)")
            return OPTIM_WRAPPERS.build(cfg, default_args=dict(optimizer=optimizer))
        cfg["clip_grad"] = dict(self.clip_grad if self.clip_grad and not adaptive else {"max_norm": math.inf})
        wrapper = OPTIM_WRAPPERS.build(cfg, default_args=dict(optimizer=optimizer))
        scaler = getattr(wrapper, "loss_scaler", None)
        if adaptive:
            head = backbone.get_classifier() if hasattr(backbone, "get_classifier") else None
            exempt = frozenset(map(id, head.parameters())) if isinstance(head, nn.Module) else frozenset()
            wrapper.clip_func = partial(clip_adaptively, exempt=exempt)
            wrapper.clip_grad_kwargs = {key: value for key, value in self.clip_grad.items() if key != "type"}
        if scaler is None or not scaler.is_enabled():  # a scaled step may overflow: it is skipped, the scale lowered
            wrapper.clip_func = partial(clip_finite, clip=wrapper.clip_func)
        return wrapper


def split_by_name(
    groups: list[dict[str, Any]], names: Mapping[str, nn.Parameter], keys: Mapping[str, Any], decay: float
) -> list[dict[str, Any]]:
    """Parameter groups with the learning rates and decays of `custom_keys`, see `TimmParamGroups`.

    Args:
        groups: with `params`, `lr` and `weight_decay` each.
        names: every parameter under its name.
        keys: parts of names, each with `lr_mult`, `decay_mult` or both.
        decay: what `decay_mult` multiplies.

    Raises:
        UserError: a key that is in no name, or an entry that nothing reads.
    """
    for key, changes in keys.items():
        _check_entries(f"custom_keys[{key!r}]", changes, _MULTIPLIERS)
        if not any(key in name for name in names):
            raise UserError(
                f"custom_keys has {key!r}, which is in no parameter's name; names are such as {next(iter(names))}"
            )
    ordered = sorted(sorted(keys), key=len, reverse=True)  # mmengine's order
    name_of = {id(parameter): name for name, parameter in names.items()}
    made: dict[tuple[int, str | None], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            key = next((key for key in ordered if key in name_of[id(parameter)]), None)
            part = made.setdefault((number, key), {**group, "params": []})
            part["params"].append(parameter)
    for (_, key), part in made.items():
        changes = keys[key] if key is not None else {}
        part["lr"] = part["lr"] * changes.get("lr_mult", 1.0)
        if "decay_mult" in changes:
            part["weight_decay"] = decay * changes["decay_mult"]
    return list(made.values())


def clip_finite(params: Sequence[nn.Parameter], clip: Callable[..., Tensor | None], **options: Any) -> Tensor | None:
    """Clip gradients, and end the run before a step by some that are no numbers, which no checkpoint would survive.

    Args:
        params: with gradients.
        clip: of `params`, gives their norm before; None where it has none.
        options: of `clip`.

    Raises:
        UserError: the norm is NaN or Inf.
    """
    norm = clip(params, **options)
    if norm is not None and not math.isfinite(norm):
        raise UserError(DIVERGED.format(what=f"the norm of the gradients is {float(norm)}"))
    return norm


def clip_adaptively(params: Sequence[nn.Parameter], exempt: frozenset[int], **agc: float) -> Tensor:
    """timm's adaptive gradient clipping; the norm of the gradients as they were, for the log.

    Args:
        params: with gradients.
        exempt: `id` of the parameters that stay as they are: the classifier's, as in timm's training script.
        agc: `clip_factor`, `eps` and `norm_type`, see `timm.utils.agc`.
    """
    norm = torch.nn.utils.get_total_norm([part.grad for part in params if part.grad is not None])
    adaptive_clip_grad([part for part in params if id(part) not in exempt], **agc)
    return norm


def _checked_clipping(given: Mapping[str, Any] | None) -> dict[str, Any]:
    clipping = dict(given or {})
    kind = clipping.get("type", "norm")
    if kind not in _CLIPPING:
        raise UserError(f"optim_wrapper.clip_grad has the type {kind!r}; {', '.join(_CLIPPING)} are accepted")
    if kind == "agc":
        _check_entries("optim_wrapper.clip_grad of type 'agc'", clipping, ("type", *_OF_AGC))
    return clipping


def _check_entries(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise UserError(f"{where} has {unknown[0]!r}, which nothing reads; {', '.join(known)} are accepted")


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


def use_amp(wrapper: Any, name: str, device: str) -> None:
    """Put mixed precision, `bf16` or `fp16`, into the config of an optimizer, for the kind of device it will run on."""
    for key in ("loss_scale", "use_fsdp"):
        wrapper.pop(key, None)
    wrapper.update(type="AnyDeviceAmpOptimWrapper", dtype={"bf16": "bfloat16", "fp16": "float16"}[name], device=device)


def asks_for_amp(wrapper: Any) -> bool:
    """Whether the config of an optimizer asks for mmengine's own mixed precision, which asserts that there is a GPU."""
    kind = wrapper.get("type") if isinstance(wrapper, Mapping) else None
    return kind is AmpOptimWrapper or str(kind).removeprefix("mmengine.") == "AmpOptimWrapper"


def without_amp(wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """The same optimizer's config in float32."""
    of_amp = ("loss_scale", "dtype", "use_fsdp")
    return {**{key: value for key, value in wrapper.items() if key not in of_amp}, "type": "OptimWrapper"}
