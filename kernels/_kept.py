"""Tables of numbers that depend on sizes alone: made once, not in every block of every forward."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ._layout import is_eager

Made = TypeVar("Made")


def kept(x: Tensor, make: Callable[..., Made], *sizes: Any) -> Made:
    """`make(*sizes)`: one or several tensors that nobody changes; in eager mode, the same ones for the same sizes.

    Args:
        x: any tensor of the forward; tells whether sizes are numbers and tensors hold any.
        make: a function of a module, not a closure.
        sizes: numbers, dtypes, devices.
    """
    if is_eager(x) and type(x) is Tensor:  # a fake tensor is of another type
        return _made(make, *sizes)
    return make(*sizes)


@functools.lru_cache(maxsize=64)
def _made(make: Callable[..., Any], *sizes: Any) -> Any:
    with torch.inference_mode(False):  # tensors made in inference mode could not serve in training later
        return make(*sizes)
