"""Attention in windows on Triton, whatever the windows, the map and the options."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vertebra.kernels import _triton
from vertebra.kernels.window_attention import launches, window_attention

HEADS, HEAD_DIM = 2, 20  # the kernel's tiles are 32 wide

SIZES = {  # window, map
    "packed": ((2, 3), (5, 7)),
    "one tile": ((7, 7), (9, 8)),
    "tiles": ((9, 8), (9, 11)),
    "stripes": ((17, 4), (16, 4)),
}
OPTIONS = {"packed": "bpl", "one tile": "bp", "tiles": "bpl", "stripes": "ol"}


@pytest.fixture(autouse=True)
def _tiles_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "WIDE_TILE", 32)


def drawn(
    window: tuple[int, int], size: tuple[int, int], names: str, batch: int = 1, heads: int = HEADS
) -> dict[str, Tensor]:
    """The tensors that learn; `names` are first letters of options."""
    every = {
        "b": {"bias_table": (heads, 2 * window[0] - 1, 2 * window[1] - 1)},
        "p": {"pad": (3, heads, HEAD_DIM)},
        "l": {"lepe_weight": (heads * HEAD_DIM, 1, 3, 3), "lepe_bias": (heads * HEAD_DIM,)},
        "o": {},
    }
    shapes = {"qkv": (batch, *size, 3, heads, HEAD_DIM)} | {k: v for name in names for k, v in every[name].items()}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def arguments(leaves: dict[str, Tensor]) -> dict[str, Any]:
    """q, k and v are views of one projection."""
    options = dict(leaves)
    q, k, v = options.pop("qkv").unbind(3)
    return {"q": q, "k": k, "v": v, **options}


@pytest.mark.parametrize(
    ("kind", "partition"),
    [*itertools.product(("packed", "one tile", "tiles"), ("block", "grid")), ("stripes", "block")],
)
def test_every_kind_of_window(kind: str, partition: str, dtype: torch.dtype, same: Callable[..., None]) -> None:
    window, size = SIZES[kind]
    fixed = {"window": window, "partition": partition, "pad_offset": (0, 1) if "o" in OPTIONS[kind] else (0, 0)}
    same(
        window_attention,
        drawn(window, size, OPTIONS[kind]),
        lambda leaves: arguments(leaves) | fixed,
        dtype,
    )


def test_half_of_the_heads_in_other_windows(dtype: torch.dtype, same: Callable[..., None]) -> None:
    fixed = {"window": (5, 2), "pad_offset": (0, 1), "cross_window": (2, 7), "cross_offset": (1, 0)}
    same(window_attention, drawn((5, 2), (5, 7), "pl"), lambda leaves: arguments(leaves) | fixed, dtype)


def test_bfloat16_with_tables_of_float32(same: Callable[..., None]) -> None:
    leaves = drawn((3, 4), (5, 6), "bpl", batch=2)
    wide = ("bias_table", "pad", "lepe_weight", "lepe_bias")
    same(window_attention, leaves, lambda own: arguments(own) | {"window": (3, 4), "scale": 0.5}, torch.bfloat16, wide)


def test_a_large_lepe_leaves_the_gradients_of_q_and_k_exact(same: Callable[..., None]) -> None:
    leaves = drawn((17, 4), (17, 4), "l", heads=1)  # of several tiles
    leaves["lepe_weight"] *= 20
    same(window_attention, leaves, lambda own: arguments(own) | {"window": (17, 4)}, torch.float16)


@pytest.mark.parametrize("layout", ["apart", "heads last", "a gap", "transposed"])
def test_any_strides(layout: str, same: Callable[..., None]) -> None:
    def views(leaves: dict[str, Tensor]) -> dict[str, Any]:
        x = leaves["qkv"]
        if layout == "apart":
            q, k, v = (part.clone() for part in x.unbind(3))
        elif layout == "heads last":
            q, k, v = x.transpose(4, 5).contiguous().transpose(4, 5).unbind(3)
        elif layout == "a gap":
            q, k, v = torch.stack([x, x], 4)[:, :, :, :, 1].unbind(3)
        else:
            q, k, v = x.transpose(1, 2).contiguous().transpose(1, 2).unbind(3)
        return {"q": q, "k": k, "v": v, "window": (3, 2)}

    same(window_attention, drawn((3, 2), (4, 5), ""), views, torch.float32)


def test_a_gradient_that_is_not_contiguous(device: str) -> None:
    qkv = torch.randn(1, 4, 5, 3, HEADS, HEAD_DIM, device=device, requires_grad=True)
    results = []
    for backend in ("triton", "reference"):
        out = window_attention(*qkv.unbind(3), (2, 2), backend=backend)
        ahead = torch.arange(out.numel(), device=device, dtype=out.dtype).view(1, 5, 4, -1).transpose(1, 2)
        results.append(torch.autograd.grad(out, qkv, ahead)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not _triton.INTERPRETED, reason="kernels take float64 in the interpreter only")
@pytest.mark.parametrize(("window", "size", "names"), [((1, 2), (3, 3), "bpl"), ((5, 7), (5, 6), "bp")])
def test_derivatives_of_float64(window: tuple[int, int], size: tuple[int, int], names: str) -> None:
    leaves = drawn(window, size, names, heads=1)

    def run(*values: Tensor) -> Tensor:
        given = arguments(dict(zip(leaves, values, strict=True)))
        return window_attention(**given, window=window, backend="triton")

    inputs = [x.requires_grad_() for x in leaves.values()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, check_undefined_grad=False)


def test_it_is_an_operator_that_compilers_understand(device: str) -> None:
    leaves = {k: v.float().to(device).requires_grad_() for k, v in drawn((2, 3), (3, 4), "bpl").items()}
    q, k, v = leaves["qkv"].unbind(3)
    given = (leaves["bias_table"], leaves["pad"], leaves["lepe_weight"], leaves["lepe_bias"])
    window_attention(q, k, v, (2, 3), backend="triton")  # registers it
    torch.library.opcheck(torch.ops.vertebra.window_attention, (q, k, v, *given, [2, 3, 0, 0], False, 0.3))
