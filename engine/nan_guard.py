"""On request: which module, or which parameter's gradient, is the first that is not finite."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..backbones._errors import UserError


@HOOKS.register_module()
class NanGuardHook(Hook):
    """Ends a run at the first NaN or infinity, in one sentence that says where it comes from.

    In training, the output of each module is looked at as soon as it is there, so the module that is named is the first
    and the innermost one; then the gradient of each parameter, from the loss backwards. While a scaler of fp16 looks
    for the right scale, gradients that are not finite are its business, and are left to it.

    It costs a pass over each output and gradient, and a wait for the device after each: it is for finding the fault of
    a run that diverges, with `--resume` from its last checkpoint, and not for every run.

    Raises:
        UserError: something is not finite; or the model runs through torch.compile, where modules do not show their
            outputs.
    """

    def __init__(self) -> None:
        self.watching = False
        self.step = 0
        self.handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Watch each module and each parameter that is trained."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if runner.cfg.get("compile") or any(module._compiled_call_impl is not None for module in model.modules()):
            raise UserError("NanGuardHook cannot look into a model that torch.compile has taken: leave out --compile")
        for name, module in model.named_modules():
            label = f"{name or 'the model'} ({type(module).__name__})"
            self.handles.append(module.register_forward_hook(self._module_check(label), with_kwargs=True))
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        if scaler is None or not scaler.is_enabled():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    self.handles.append(parameter.register_hook(self._gradient_check(name)))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Begin to watch: an evaluation is not looked at."""
        self.watching, self.step = True, runner.iter + 1

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Watch no more until the next step."""
        self.watching = False

    def after_train(self, runner: Runner) -> None:
        """Leave the model as it was."""
        self.close()

    def close(self) -> None:
        """Take every check away."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _module_check(self, label: str) -> Callable[..., None]:
        def check(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            kind = _not_finite(output) if self.watching else None
            if kind is None:
                return
            given, own = _not_finite((args, kwargs)), _not_finite(list(module.parameters()))
            inputs = f"hold {given}, from the batch or from the code around the module" if given else "are finite"
            raise UserError(
                f"step {self.step}: the output of {label} holds {kind}, the first of all modules to do so; its inputs "
                f"{inputs}, its parameters {f'hold {own}' if own else 'are finite'}"
            )

        return check

    def _gradient_check(self, name: str) -> Callable[[Tensor], None]:
        def check(gradient: Tensor) -> None:
            kind = _not_finite(gradient) if self.watching else None
            if kind is not None:
                raise UserError(
                    f"step {self.step}: the gradient of {name} holds {kind}, the first on the way back from the loss; "
                    "all modules' outputs were finite"
                )

        return check


def _not_finite(value: Any) -> str | None:
    """NaN or Inf, as the first of the tensors that is not finite holds it; None where all are."""
    for tensor in _tensors(value):
        low, high = torch.aminmax(tensor.detach())
        if torch.isnan(low):  # a NaN anywhere makes both of them NaN
            return "NaN"
        if torch.isinf(low) or torch.isinf(high):
            return "Inf"
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of floating point in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
