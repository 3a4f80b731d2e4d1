"""Kernels compiled for GPUs that are not here, at the sizes of our models: what they take must fit, without spills.

In float32 the assembler now and then leaves 8 bytes of a thread on the stack where it has registers to spare.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import vertebra
from vertebra.kernels import _triton
from vertebra.kernels._compile_only import SHARED_MEMORY, Compiled, compile_only

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(_triton.INTERPRETED, reason="Triton's interpreter compiles nothing")

FOLDER = Path(vertebra.__file__).parent / "kernels"
OPERATORS = sorted(path.parent.name for path in FOLDER.glob("*/cases.py"))
ALL = [
    (operator, case, dtype, target)
    for operator in OPERATORS
    for case in import_module(f"vertebra.kernels.{operator}.cases").CASES
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
    for target in ("sm_80", "sm_90")
]
SPREAD = 13
"""One in so many runs in `make test`, the rest in `make test-all`; a prime, so that every operator and dtype is met."""


def compiled(operator: str, case: str, dtype: torch.dtype, target: str) -> list[Compiled]:
    """What both passes of a case take."""
    arguments = import_module(f"vertebra.kernels.{operator}.cases").CASES[case]("meta", dtype)
    run = getattr(import_module(f"vertebra.kernels.{operator}.triton"), operator)
    with compile_only(target) as kernels:
        run(**arguments)
    return kernels


@pytest.mark.parametrize(
    ("operator", "case", "dtype", "target"),
    [pytest.param(*each, marks=[] if i % SPREAD == 0 else pytest.mark.all) for i, each in enumerate(ALL)],
)
def test_every_kernel_fits(operator: str, case: str, dtype: torch.dtype, target: str) -> None:
    kernels = compiled(operator, case, dtype, target)
    assert len({kernel.name for kernel in kernels}) >= 2  # forward and backward
    for kernel in kernels:
        assert kernel.spills <= (8 if dtype == torch.float32 else 0), kernel
        assert kernel.shared <= SHARED_MEMORY[int(target.removeprefix("sm_"))], kernel


@pytest.mark.parametrize("operator", OPERATORS)
def test_matrix_instructions_are_used_where_matrices_are_multiplied(operator: str) -> None:
    module = import_module(f"vertebra.kernels.{operator}.cases")
    kernels = compiled(operator, next(iter(module.CASES)), torch.bfloat16, "sm_90")
    multiplying = [kernel for kernel in kernels if kernel.instructions]
    assert bool(multiplying) == (operator != "depthwise_conv")
    if multiplying:
        assert any(kernel.instructions == "wgmma" for kernel in kernels)


SINGLE: dict[str, dict[str, Any]] = {
    "window_attention": {"window": (1, 1)},
    "routing_attention": {"index": torch.zeros(1, 1, 1, dtype=torch.int64, device="meta")},
    "channel_attention": {},
    "linear_attention": {"temperature": torch.empty(1, device="meta")},
}


@pytest.mark.parametrize("operator", SINGLE)
def test_sizes_of_one_compile(operator: str) -> None:
    """Triton makes a constant of every number that is 1, and constants have no methods."""
    tokens = (1, 1) if operator in ("window_attention", "routing_attention") else (1,)
    q = torch.empty(1, *tokens, 1, 32, device="meta", dtype=torch.bfloat16)
    run = getattr(import_module(f"vertebra.kernels.{operator}.triton"), operator)
    with compile_only("sm_90") as kernels:
        run(q, q, q, **SINGLE[operator])
    assert len(kernels) >= 2


def test_a_target_that_is_none_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="target is 'hopper'; it takes sm_80, sm_90 and the like"),
        compile_only("hopper"),
    ):
        pass
