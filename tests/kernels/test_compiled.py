"""Kernels compiled for GPUs that are not here, at the sizes of our models: what they take must fit, without spills.

In float32 the assembler now and then leaves 8 bytes of a thread on the stack where it has registers to spare.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import vertebra
from torch import Tensor
from torch.torch_version import TorchVersion
from vertebra.kernels import _triton
from vertebra.kernels._compile_only import SHARED_MEMORY, Compiled, compile_only

PINNED = TorchVersion(pytest.importorskip("triton").__version__) >= "3.8"
"""Older versions, which bring another assembler, leave some bytes on the stack in 16 bits, too."""
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
        assert kernel.spills <= (64 if not PINNED else 8 if dtype == torch.float32 else 0), kernel
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


def test_a_width_of_64_fits_every_gpu() -> None:
    """The widest heads that kernels take, on GPUs with less shared memory than a data centre's."""
    q = torch.empty(1, 9, 9, 2, 64, device="meta", dtype=torch.bfloat16)
    run = import_module("vertebra.kernels.window_attention.triton").window_attention
    with compile_only("sm_86") as kernels:
        run(q, q, q, (9, 9))
    assert all(kernel.shared <= 99 * 1024 for kernel in kernels)


def test_image_sizes_compile_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multi-scale training would wait for a compiler at every new size."""
    kinds: dict[str, set[Any]] = {}

    def note(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        free = [not parameter.do_not_specialize for parameter in kernel.params[: len(arguments)]]
        seen = [(x == 1, x % 16 == 0) for x, is_free in zip(arguments, free, strict=True) if is_free and type(x) is int]
        kinds.setdefault(f"{kernel.fn.__module__}.{kernel.fn.__name__}", set()).add((*seen, str(constants)))

    monkeypatch.setattr(_triton, "compiler", note)
    neighbours = import_module("vertebra.kernels.neighborhood_pool_attention.triton").neighborhood_pool_attention
    convolve = import_module("vertebra.kernels.depthwise_conv.triton").depthwise_conv
    windows = import_module("vertebra.kernels.window_attention.triton").window_attention

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    for height, width in ((120, 200), (128, 168), (136, 216), (152, 240), (200, 336)):
        q, k, v = empty(2, height, width, 3, 3, 24, dtype=torch.bfloat16).unbind(3)
        ph, pw = height // 8, width // 8
        pool_k, pool_v = empty(2, ph * pw, 2, 3, 24, dtype=torch.bfloat16).unbind(2)
        parameters = [empty(3, *shape) for shape in ((1, 24), (1, 1), (9,), (24, 9), (1, 9))]
        table = empty(3, height + 8 * (ph - 1), width + 8 * (pw - 1))
        places = (empty(side, count, dtype=torch.int64) for side, count in ((height, ph), (width, pw)))
        neighbours(q, k, v, pool_k, pool_v, *parameters, table, *places)
        convolve(empty(2, height, width, 64, dtype=torch.bfloat16).permute(0, 3, 1, 2), empty(64, 1, 7, 7), dilation=3)
        windows(q, k, v, (7, 7), pad=empty(3, 3, 24))
    assert {name: len(found) for name, found in kinds.items() if len(found) > 4} == {}
