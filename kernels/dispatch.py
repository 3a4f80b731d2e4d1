"""Which implementation of an operator runs: the argument `backend`, else VERTEBRA_KERNELS, else the fast plain PyTorch.

Every operator has two today:

reference   a few plain lines that define the operator; the tests compare everything else with it
eager       fast PyTorch for any device, dtype, export and compiler
"""

import os

import torch

from ._layout import is_transformed

BACKENDS = ("reference", "eager")
VARIABLE = "VERTEBRA_KERNELS"
_VALUES = ("", "auto", *BACKENDS)


def is_reference(backend: str | None) -> bool:
    """Whether the reference is asked for, by the argument or by the environment, or all that can be followed.

    Under `torch.func` and forward-mode differentiation it is, unless the argument says otherwise.

    Raises:
        ValueError: a backend that does not exist; names those that do.
    """
    if backend is not None:
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}; it takes None, {' or '.join(map(repr, BACKENDS))}")
        return backend == "reference"
    asked = os.environ.get(VARIABLE, "")
    if asked not in _VALUES:
        raise ValueError(f"{VARIABLE} is {asked!r}; it takes {', '.join(_VALUES[1:])}")
    return asked == "reference" or (not torch.compiler.is_compiling() and is_transformed())
