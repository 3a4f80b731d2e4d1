"""Kernels compiled for GPUs that are not here, at the sizes of our models: what they take must fit, without spills."""

from importlib import import_module
from pathlib import Path

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
SPREAD = 12
"""One in so many runs in `make test`, the rest in `make test-all`."""


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
        assert kernel.spills == 0, kernel
        assert kernel.shared <= SHARED_MEMORY[int(target.removeprefix("sm_"))], kernel
