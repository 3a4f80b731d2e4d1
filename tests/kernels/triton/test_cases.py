"""Kernels on a GPU, at the sizes of our models, in every dtype: no worse than PyTorch, the same bits each time."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import vertebra
from torch import Tensor
from vertebra.kernels import _triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_triton.INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU"),
]

FOLDER = Path(vertebra.__file__).parent / "kernels"
CASES = [
    (path.parent.name, case)
    for path in sorted(FOLDER.glob("*/cases.py"))
    for case in import_module(f"vertebra.kernels.{path.parent.name}.cases").CASES
]


def results(function: Any, given: dict[str, Any], backend: str, ahead: Tensor | None = None) -> list[Tensor]:
    """The result, and the gradient of every argument that learns; `ahead`: the result's gradient."""
    learned = [x for x in given.values() if isinstance(x, Tensor) and x.requires_grad]
    out = function(**given, backend=backend)
    ahead = torch.ones_like(out) if ahead is None else ahead.to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, learned, ahead)]


@pytest.mark.parametrize(("operator", "case"), CASES)
def test_real_sizes(operator: str, case: str, dtype: torch.dtype) -> None:
    package = import_module(f"vertebra.kernels.{operator}")
    function = getattr(package, operator)
    given = import_module(f"vertebra.kernels.{operator}.cases").CASES[case]("cuda", dtype)
    wide = {
        name: x.detach().float().requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for name, x in given.items()
    }
    exact = results(function, wide, "eager")
    ours, again = results(function, given, "triton"), results(function, given, "triton")
    plain = results(function, given, "eager")
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    for a, b, c in zip(exact, ours, plain, strict=True):
        size = a.square().mean().sqrt()
        error, usual = ((x.float() - a).square().mean().sqrt() for x in (b, c))
        assert error <= 2 * usual + (1e-5 if dtype == torch.float32 else 1e-3) * size
