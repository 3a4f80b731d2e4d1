"""The operators of `benchmark kernels` at the sizes of models: their arguments, and what they take at the least."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import vertebra
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from vertebra.backbones._errors import UserError
from vertebra.backbones._names import did_you_mean

Arguments = dict[str, Any]
DTYPES = ("bfloat16", "float16", "float32")
_OF_IMAGES = ("q", "k", "v", "pool_k", "pool_v", "index", "x", "gate", "residual")
"""Arguments whose first dimension counts images."""


@dataclass(frozen=True)
class Work:
    """What one call takes at the least: floating-point operations, and bytes moved between memory and the chip.

    Bytes are those of inputs and result; training adds those of inputs, result, its gradient and all other gradients,
    once each: a backward pass cannot begin before its forward pass has left the chip.
    """

    flops: int
    bytes: int


def operators() -> list[str]:
    """Those that have a kernel."""
    return sorted(path.parent.name for path in (Path(vertebra.__file__).parent / "kernels").glob("*/cases.py"))


def find_cases(asked: Sequence[str], pattern: str = "") -> list[tuple[str, str]]:
    """(operator, case) for the operators asked for, or all, and the cases that have `pattern` in their names.

    Raises:
        UserError: an operator without kernels, or no such case; says which there are.
    """
    known = operators()
    for name in asked:
        if name not in known:
            sentence = f"{name!r} is no operator with kernels; those are {', '.join(known)}."
            raise UserError(sentence + did_you_mean(name, known))
    every = [(name, case) for name in dict.fromkeys(asked or known) for case in _cases(name)]
    found = [(name, case) for name, case in every if fnmatch.fnmatchcase(case, f"*{pattern}*")]
    if not found:
        names = "; ".join(case for _, case in every)
        raise UserError(f"--cases {pattern}: no case has a name like that; there are {names}")
    return found


def find_dtypes(asked: str) -> list[torch.dtype]:
    """Names of dtypes, separated by commas. UserError if kernels do not take one."""
    for name in asked.split(","):
        if name not in DTYPES:
            raise UserError(f"--dtype {name}: kernels take {', '.join(DTYPES)}")
    return [getattr(torch, name) for name in dict.fromkeys(asked.split(","))]


def make(operator: str, case: str, device: str, dtype: torch.dtype, images: int | None = None) -> Arguments:
    """The keyword arguments of a case, random and the same each time; of `images` images if it has more."""
    torch.manual_seed(0)
    arguments = _cases(operator)[case](device, dtype)
    return arguments if images is None else cut(arguments, images)


def cut(arguments: Arguments, images: int) -> Arguments:
    """The arguments for the first images alone; tensors keep their strides, and one that stands twice stays one."""
    parts: dict[int, Tensor] = {}
    for name in _OF_IMAGES:
        x = arguments.get(name)
        if x is not None and id(x) not in parts:
            parts[id(x)] = x[:images]
    return {name: parts.get(id(x), x) if name in _OF_IMAGES else x for name, x in arguments.items()}


def cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """The arguments with all floating-point tensors in `dtype`, as autocast would have them."""
    return {
        name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in arguments.items()
    }


def main_input(arguments: Arguments) -> Tensor:
    """The tensor that gives the result its dtype."""
    return next(x for x in arguments.values() if isinstance(x, Tensor))


def learned(arguments: Arguments) -> list[Tensor]:
    """The tensors that gradients are taken of, each once."""
    found = {id(x): x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad}
    return list(found.values())


def shape_class(operator: str, arguments: Arguments) -> str:
    """The name of the class of shapes that dispatch looks measurements up for."""
    name = import_module(f"vertebra.kernels.{operator}")._shape
    return name(**{key: arguments[key] for key in signature(name).parameters})


def work(operator: str, case: str, dtype: torch.dtype, images: int | None = None) -> dict[str, Work]:
    """What a case takes at the least, for "forward" and "training"; nothing is computed."""
    arguments = make(operator, case, "meta", dtype, images)
    run = getattr(import_module(f"vertebra.kernels.{operator}.triton"), operator)
    with FlopCounterMode(display=False) as counter:
        out = run(**arguments)
        forward = counter.get_total_flops()
        torch.autograd.grad(out, learned(arguments), torch.empty_like(out), materialize_grads=True)
    inputs = {id(x): x for x in arguments.values() if isinstance(x, Tensor)}
    moved = _bytes([*inputs.values(), out])
    return {
        "forward": Work(forward, moved),
        "training": Work(counter.get_total_flops(), 2 * moved + _bytes([out, *learned(arguments)])),
    }


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _cases(operator: str) -> dict[str, Any]:
    return import_module(f"vertebra.kernels.{operator}.cases").CASES
