"""Which implementation of an operator runs: the argument `backend`, else VERTEBRA_KERNELS, else the fast plain PyTorch.

Every operator has two today:

reference   a few plain lines that define the operator; the tests compare everything else with it
eager       fast PyTorch for any device, dtype, export and compiler
"""

import os

BACKENDS = ("reference", "eager")
VARIABLE = "VERTEBRA_KERNELS"


def is_reference(backend: str | None) -> bool:
    """Whether the reference is asked for, by the argument or by the environment.

    Raises:
        ValueError: a backend that does not exist; names those that do.
    """
    if backend is not None:
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}; it takes None, {' or '.join(map(repr, BACKENDS))}")
        return backend == "reference"
    return os.environ.get(VARIABLE) == "reference"
