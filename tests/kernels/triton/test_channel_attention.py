"""Attention among channels on Triton, in one kernel and in chunks of tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vertebra.kernels import _triton
from vertebra.kernels.channel_attention import channel_attention
from vertebra.kernels.dispatch import BackendError

HEADS, HEAD_DIM = 2, 20  # the kernel's tiles are 32 wide
TOKENS = 150  # in tiles of 64


def drawn(tokens: int = TOKENS, head_dim: int = HEAD_DIM, batch: int = 2, heads: int = HEADS) -> dict[str, Tensor]:
    """The tensor that learns: q, k and v in one."""
    return {"qkv": torch.randn(batch, tokens, 3, heads, head_dim, dtype=torch.float64)}


def arguments(leaves: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    """q, k and v are views of one projection."""
    return dict(zip("qkv", leaves["qkv"].unbind(2), strict=True)) | options


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few programs that each has several tiles of several chunks."""
    monkeypatch.setattr("vertebra.kernels._state.PROGRAMS", 8)


@pytest.mark.parametrize("transposed", [False, True])
def test_tokens_of_one_chunk(
    transposed: bool, dtype: torch.dtype, same: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vertebra.kernels._state.PROGRAMS", 1)
    same(channel_attention, drawn(), lambda own: arguments(own, transposed=transposed), dtype)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("transposed", [False, True])
def test_tokens_in_chunks(transposed: bool, dtype: torch.dtype, same: Callable[..., None]) -> None:
    same(channel_attention, drawn(), lambda own: arguments(own, transposed=transposed), dtype)


def test_more_programs_than_tiles(same: Callable[..., None]) -> None:
    same(channel_attention, drawn(batch=1), lambda own: arguments(own, scale=0.3), torch.float32)


def test_bfloat16(same: Callable[..., None]) -> None:
    same(channel_attention, drawn(), arguments, torch.bfloat16)


@pytest.mark.parametrize("head_dim", [1, 32, 64])
def test_heads_of_any_width_up_to_64(head_dim: int, same: Callable[..., None]) -> None:
    same(channel_attention, drawn(40, head_dim), lambda own: arguments(own, scale=0.1), torch.float32)


def test_wider_heads_are_refused_with_the_reason(device: str) -> None:
    q, k, v = torch.zeros(1, 4, 3, 1, 65, device=device).unbind(2)
    with pytest.raises(BackendError, match="65 wide"):
        channel_attention(q, k, v, backend="triton")


@pytest.mark.parametrize("layout", ["apart", "channels first", "a gap", "heads first"])
def test_any_strides(layout: str, same: Callable[..., None]) -> None:
    def views(leaves: dict[str, Tensor]) -> dict[str, Any]:
        x = leaves["qkv"]
        if layout == "apart":
            return {name: part.clone() for name, part in arguments(leaves).items()}
        if layout == "channels first":
            x = x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
        elif layout == "a gap":
            x = torch.stack([x, x], 5)[..., 1]
        else:
            x = x.transpose(1, 3).contiguous().transpose(1, 3)
        return arguments({"qkv": x})

    same(channel_attention, drawn(70), views, torch.float32)


def test_a_gradient_that_is_not_contiguous(device: str) -> None:
    qkv = torch.randn(2, 9, 3, HEADS, HEAD_DIM, device=device, requires_grad=True)
    results = []
    for backend in ("triton", "reference"):
        out = channel_attention(*qkv.unbind(2), backend=backend)
        ahead = torch.linspace(-1, 1, out.numel(), device=device).view(2, -1, 9).transpose(1, 2)
        results.append(torch.autograd.grad(out, qkv, ahead)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_sums_that_float16_cannot_hold_stay_finite(transposed: bool, device: str) -> None:
    qkv = torch.full((1, 100, 3, 1, 4), 60.0, dtype=torch.float16, device=device, requires_grad=True)
    out = channel_attention(*qkv.unbind(2), scale=1.0, transposed=transposed, backend="triton")
    torch.testing.assert_close(out, torch.full_like(out, 60.0))
    (gradient,) = torch.autograd.grad(out, qkv, torch.full_like(out, 40.0))
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0)])
def test_nothing_gives_nothing(batch: int, tokens: int, device: str) -> None:
    qkv = torch.randn(batch, tokens, 3, HEADS, HEAD_DIM, device=device, requires_grad=True)
    out = channel_attention(*qkv.unbind(2), transposed=True, backend="triton")
    assert out.shape == (batch, tokens, HEADS * HEAD_DIM)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


@pytest.mark.skipif(not _triton.INTERPRETED, reason="kernels take float64 in the interpreter only")
@pytest.mark.parametrize("transposed", [False, True])
def test_derivatives_of_float64(transposed: bool) -> None:
    leaf = drawn(9, 5)["qkv"].requires_grad_()

    def run(qkv: Tensor) -> Tensor:
        return channel_attention(**arguments({"qkv": qkv}, transposed=transposed), backend="triton")

    assert torch.autograd.gradcheck(run, leaf, fast_mode=True, check_undefined_grad=False)


def test_it_is_an_operator_that_compilers_understand(device: str) -> None:
    qkv = drawn(9)["qkv"].float().to(device).requires_grad_()
    q, k, v = qkv.unbind(2)
    channel_attention(q, k, v, backend="triton")  # registers it
    torch.library.opcheck(torch.ops.vertebra.channel_attention, (q, k, v, None, True))
