"""Kernels that run: in Triton's interpreter on a CPU (TRITON_INTERPRET=1), else on a GPU, else not at all."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from vertebra.kernels import _triton

Leaves = dict[str, Tensor]
SMALL: dict[str, dict[str, Any]] = {  # one of each family, and options beyond one block a stage
    "biformer_tiny": {"n_win": 3},
    "cswin_tiny": {},
    "davit_tiny_fused": {},
    "l2vit_tiny": {"depths": (2, 2, 2, 2)},  # windows and linear attention take turns
    "litv2_small": {},
    "maxvit_pico_rw_256_fused": {},
    "shvit_s1_fused": {},
    "transnext_micro": {},
    "van_b0": {},
}
SLOW = ("davit_tiny_fused", "l2vit_tiny", "transnext_micro", "van_b0")  # half a minute each in the interpreter
EPS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Errors, by their root mean square relative to the tensor's, that rounding alone explains."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests with an argument `dtype` in every one that kernels take, `family_model` for one name of each family.

    In the interpreter bfloat16 is not among them: single tests see to it.
    """
    if "family_model" in metafunc.fixturenames:
        slow = SLOW if _triton.INTERPRETED else ()
        metafunc.parametrize(
            "family_model", [pytest.param(name, marks=pytest.mark.all if name in slow else ()) for name in SMALL]
        )
    marked = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "dtype" in metafunc.fixturenames and not any("dtype" in names for names in marked):
        interpreted = [torch.float32, torch.float16]
        metafunc.parametrize("dtype", interpreted if _triton.INTERPRETED else _triton.DTYPES)


@pytest.fixture
def device() -> str:
    """Where kernels run."""
    if _triton.INTERPRETED:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1 for Triton's interpreter")


@pytest.fixture
def build(device: str) -> Callable[..., nn.Module]:
    """`build(name)`: a network of few blocks and three classes, where kernels run."""

    def make(name: str, **options: Any) -> nn.Module:
        stages = len(timm.create_model(name, device="meta").stages)
        return timm.create_model(name, num_classes=3, **{"depths": (1,) * stages} | SMALL[name] | options).to(device)

    return make


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN: what a kernel forgets to write then shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def same(device: str) -> Callable[..., None]:
    """`same(function, leaves, arguments, dtype)`: Triton gives the reference's result, and every gradient.

    function    an operator
    leaves      the tensors that gradients are taken of
    arguments   makes the operator's keyword arguments of them
    dtype       of the leaves. Errors are measured against the reference in float64, of the same rounded numbers; in 16
                bits they are no more than twice those of the reference in that dtype.
    wide        names of leaves that stay float32
    """

    def check(
        function: Callable[..., Tensor],
        leaves: Leaves,
        arguments: Callable[[Leaves], dict[str, Any]],
        dtype: torch.dtype,
        wide: tuple[str, ...] = (),
    ) -> None:
        kinds = {name: torch.float32 if name in wide else dtype for name in leaves}
        rounded = {name: x.to(device, kinds[name]) for name, x in leaves.items()}

        def run(backend: str, kind: torch.dtype | None = None) -> list[Tensor]:
            own = {name: x.to(kind or x.dtype).detach().requires_grad_() for name, x in rounded.items()}
            out = function(**arguments(own), backend=backend)
            ahead = torch.cos(torch.arange(out.numel(), device=device)).view_as(out)
            gradients = torch.autograd.grad(out, list(own.values()), ahead.to(out.dtype), materialize_grads=True)
            for x, gradient in zip(own.values(), gradients, strict=True):
                assert gradient.shape == x.shape
                assert gradient.dtype == x.dtype
                assert gradient.isfinite().all()
            return [out, *gradients]

        exact, ours = run("reference", torch.float64), run("triton")
        plain = run("reference", dtype) if dtype.itemsize == 2 else exact
        for name, a, b, c in zip(["result", *leaves], exact, ours, plain, strict=True):
            size = a.square().mean().sqrt()
            error, usual = ((x.double() - a).square().mean().sqrt() for x in (b, c))
            assert error <= 2 * usual + EPS[dtype] * size, f"{name}: {error:.2e} of {size:.2e}, PyTorch {usual:.2e}"

    return check
