"""Attention among channels: the fast way against the reference, the reference against sums written out."""

import math

import pytest
import torch
from torch import Tensor
from vertebra.kernels.channel_attention import channel_attention


def qkv(tokens: int, heads: int = 2, dim: int = 5, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v (B, N, heads, D), views of one projection's output."""
    packed = torch.randn(batch, tokens, 3, heads, dim, dtype=dtype, requires_grad=True)
    return list(packed.unbind(2))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("tokens", "scale"), [(1, None), (7, None), (49, 0.3)])
@pytest.mark.parametrize("batch", [0, 2])
def test_eager_is_the_reference_and_so_are_its_gradients(
    tokens: int, scale: float | None, batch: int, transposed: bool
) -> None:
    tensors, results = qkv(tokens, batch=batch), []
    for backend in ("eager", "reference"):
        out = channel_attention(*tensors, scale, transposed, backend=backend)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), tensors)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("transposed", [False, True])
def test_the_reference_mixes_the_channels_of_each_head_by_sums_over_all_tokens(transposed: bool) -> None:
    tokens, heads, dim = 6, 2, 3
    q, k, v = (x.detach() for x in qkv(tokens, heads, dim, batch=1))
    out = channel_attention(q, k, v, transposed=transposed, backend="reference").unflatten(2, (heads, dim))
    left, right, mixed = (q, k, v) if transposed else (k, v, q)
    scale = (tokens if transposed else dim) ** -0.5
    for head in range(heads):
        for row in range(dim):
            scores = [
                scale * sum(left[0, n, head, row] * right[0, n, head, column] for n in range(tokens))
                for column in range(dim)
            ]
            total = sum(math.exp(score) for score in scores)
            expected = sum(math.exp(score) / total * mixed[0, :, head, column] for column, score in enumerate(scores))
            torch.testing.assert_close(out[0, :, head, row], expected)


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("transposed", [False, True])
def test_sums_that_float16_cannot_hold_stay_finite(backend: str, transposed: bool) -> None:
    q, k, v = (torch.full((1, 66800, 1, 4), 3.0, dtype=torch.float16) for _ in range(3))
    out = channel_attention(q, k, v, scale=1.0, transposed=transposed, backend=backend)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, torch.full_like(out, 3.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_touch_the_sums(dtype: torch.dtype) -> None:
    q, k, v = (x.detach() for x in qkv(500, dtype=torch.float32))
    expected = channel_attention(q, k, v)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(channel_attention(q, k, v), expected)


def test_a_script_gives_the_same() -> None:
    q, k, v = (x.detach() for x in qkv(9))
    scripted = torch.jit.script(channel_attention)
    for transposed in (False, True):
        expected = channel_attention(q, k, v, transposed=transposed)
        torch.testing.assert_close(scripted(q, k, v, None, transposed), expected)


def test_a_backend_that_does_not_exist_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="cuda"):
        channel_attention(*qkv(3), backend="cuda")
