"""Linear attention: the fast way against the reference, and the reference against attention written out in full."""

from typing import Any

import pytest
import torch
from torch import Tensor
from vertebra.kernels.linear_attention import linear_attention

HEADS, HEAD_DIM = 3, 4
SMALLEST = 10.0  # between the small and the large denominators of 40 such tokens


def qkv(tokens: int, heads: int = HEADS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v (2, N, heads, D), views of one projection's output."""
    packed = torch.randn(2, tokens, 3, heads, HEAD_DIM, dtype=dtype, requires_grad=True)
    return list(packed.unbind(2))


def temperature(heads: int = HEADS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(heads, dtype=dtype, requires_grad=True)


def written_out(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, min_denominator: float) -> Tensor:
    """Every weight of every pair of tokens."""
    weights = torch.einsum("bnhd,bmhd->bhnm", q.relu(), k.relu())
    denominators = weights.sum(-1, keepdim=True).clamp(min=min_denominator)
    return torch.einsum("bhnm,bmhd->bnhd", weights / denominators * temperature[:, None, None], v).flatten(2)


@pytest.mark.parametrize(("tokens", "heads"), [(40, HEADS), (1, HEADS), (7, 1), (1, 1), (0, HEADS)])
def test_eager_is_the_reference_and_so_are_its_gradients(tokens: int, heads: int) -> None:
    learned = [*qkv(tokens, heads), temperature(heads)]
    results = []
    for backend in ("eager", "reference"):
        out = linear_attention(*learned, min_denominator=SMALLEST, backend=backend)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), learned)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_each_token_averages_all_values_with_its_denominator_raised_where_it_is_small(backend: str) -> None:
    q, k, v = qkv(40)
    share = temperature()
    denominators = torch.einsum("bnhd,bmhd->bnh", q.relu(), k.relu())
    assert (denominators < SMALLEST).any()
    assert (denominators > SMALLEST).any()
    given = linear_attention(q, k, v, share, SMALLEST, backend=backend)
    torch.testing.assert_close(given, written_out(q, k, v, share, SMALLEST))


def test_denominators_are_raised_to_100_unless_another_number_is_given() -> None:
    tensors = [*qkv(60), temperature()]
    torch.testing.assert_close(linear_attention(*tensors), written_out(*tensors, min_denominator=100))


def test_first_and_second_derivatives_are_right() -> None:
    tensors = [x.detach().requires_grad_() for x in qkv(5, heads=2)]

    def call(*inputs: Tensor) -> Tensor:
        return linear_attention(*inputs, min_denominator=3)

    assert torch.autograd.gradcheck(call, (*tensors, temperature(2)), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (*tensors, temperature(2)), fast_mode=True)


@pytest.mark.parametrize(("tokens", "heads"), [(6, 1), (1, 1), (6, HEADS)])
def test_inputs_stay_as_they_were(tokens: int, heads: int) -> None:
    tensors = [x.detach().contiguous() for x in qkv(tokens, heads)]
    before = [x.clone() for x in tensors]
    linear_attention(*tensors, temperature(heads))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_sums_over_a_detectors_map_are_exact_where_half_precision_ends(dtype: torch.dtype, backend: str) -> None:
    (q, k, v), share = (x.to(dtype) for x in qkv(67_200, heads=1)), temperature(1)
    k = 4 * k
    assert k.relu().double().sum(1).max() > torch.finfo(torch.float16).max
    given = linear_attention(q, k, v, share, backend=backend)
    expected = linear_attention(q.double(), k.double(), v.double(), share, backend=backend)
    assert given.dtype == dtype
    assert (given - expected).abs().max() <= 0.01 * expected.std()


@torch.no_grad()
def test_autocast_does_not_reach_the_sums() -> None:
    tensors = [*qkv(50, dtype=torch.float32), temperature(dtype=torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        given = linear_attention(*tensors)
    assert torch.equal(given, linear_attention(*tensors))


def test_gradients_under_autocast_are_those_without() -> None:
    tensors = [*qkv(50, dtype=torch.float32), temperature(dtype=torch.float32)]

    def gradients(enabled: bool) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = linear_attention(*tensors)
        return torch.autograd.grad(out.square().sum(), tensors)

    torch.testing.assert_close(gradients(True), gradients(False), rtol=0, atol=0)


@torch.no_grad()
def test_a_scripted_attention_is_the_same() -> None:
    tensors = [*qkv(30, dtype=torch.float32), temperature(dtype=torch.float32)]
    torch.testing.assert_close(torch.jit.script(linear_attention)(*tensors), linear_attention(*tensors))
