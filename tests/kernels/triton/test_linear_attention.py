"""Linear attention on Triton, in one kernel and in chunks of tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vertebra.kernels import _triton
from vertebra.kernels.dispatch import BackendError
from vertebra.kernels.linear_attention import linear_attention

HEADS, HEAD_DIM = 2, 20  # the kernel's tiles are 32 wide
TOKENS = 150  # in tiles of 64
SMALLEST = 470.0  # in the middle of the denominators of so many tokens


def drawn(tokens: int = TOKENS, head_dim: int = HEAD_DIM, batch: int = 2, heads: int = HEADS) -> dict[str, Tensor]:
    """The tensors that learn; q, k and v are one."""
    qkv = torch.randn(batch, tokens, 3, heads, head_dim, dtype=torch.float64)
    return {"qkv": qkv, "temperature": torch.rand(heads, dtype=torch.float64)}


def arguments(leaves: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    """q, k and v are views of one projection."""
    views = dict(zip("qkv", leaves["qkv"].unbind(2), strict=True))
    return views | {"temperature": leaves["temperature"], "min_denominator": SMALLEST} | options


def test_denominators_of_these_tests_lie_on_both_sides() -> None:
    q, k, _ = (x.relu() for x in drawn()["qkv"].unbind(2))
    raised = torch.einsum("bnhd,bmhd->bnh", q, k) < SMALLEST
    assert 0.2 < raised.double().mean() < 0.8


@pytest.mark.parametrize("programs", [1, 8], ids=["one chunk", "chunks"])
def test_tokens_in_one_chunk_or_some(
    dtype: torch.dtype, programs: int, same: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vertebra.kernels._state.PROGRAMS", programs)
    same(linear_attention, drawn(), arguments, dtype, ("temperature",))


def test_more_programs_than_tiles(same: Callable[..., None]) -> None:
    same(linear_attention, drawn(batch=1), arguments, torch.float32)


def test_bfloat16_with_a_temperature_of_float32(same: Callable[..., None]) -> None:
    same(linear_attention, drawn(), arguments, torch.bfloat16, ("temperature",))


@pytest.mark.parametrize("head_dim", [1, 32, 64])
def test_heads_of_any_width_up_to_64(head_dim: int, same: Callable[..., None]) -> None:
    same(linear_attention, drawn(40, head_dim), lambda own: arguments(own, min_denominator=5.0), torch.float32)


def test_wider_heads_are_refused_with_the_reason(device: str) -> None:
    q, k, v = torch.zeros(1, 4, 3, 1, 65, device=device).unbind(2)
    with pytest.raises(BackendError, match="65 wide"):
        linear_attention(q, k, v, torch.ones(1, device=device), backend="triton")


@pytest.mark.parametrize("layout", ["apart", "channels first", "a gap", "heads first"])
def test_any_strides(layout: str, same: Callable[..., None]) -> None:
    def views(leaves: dict[str, Tensor]) -> dict[str, Any]:
        x, share = leaves["qkv"], leaves["temperature"]
        if layout == "apart":
            return {name: x.clone() if isinstance(x, Tensor) else x for name, x in arguments(leaves).items()}
        if layout == "channels first":
            x = x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
        elif layout == "a gap":
            x, share = torch.stack([x, x], 5)[..., 1], torch.stack([share, share], 1)[:, 1]
        else:
            x = x.transpose(1, 3).contiguous().transpose(1, 3)
        return arguments({"qkv": x, "temperature": share})

    same(linear_attention, drawn(70), views, torch.float32)


def test_a_gradient_that_is_not_contiguous(device: str) -> None:
    leaves = {name: x.float().to(device).requires_grad_() for name, x in drawn(9).items()}
    results = []
    for backend in ("triton", "reference"):
        out = linear_attention(**arguments(leaves, min_denominator=10.0), backend=backend)
        ahead = torch.linspace(-1, 1, out.numel(), device=device).view(2, -1, 9).transpose(1, 2)
        results.append(torch.autograd.grad(out, list(leaves.values()), ahead))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_denominator_at_the_limit_and_a_feature_at_zero_have_no_gradient(device: str) -> None:
    q = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], device=device)
    k, v = torch.tensor([[3.0, 0.0], [1.0, 2.0], [-1.0, 0.0]], device=device), torch.ones(3, 2, device=device)
    leaves = [x.view(1, 3, 1, 2).requires_grad_() for x in (q, k, v)]  # denominators are 4, 4 and 0
    out = linear_attention(*leaves, torch.ones(1, device=device), min_denominator=4.0, backend="triton")
    ahead = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]], device=device)
    dq, dk, _ = (x[0, :, 0].tolist() for x in torch.autograd.grad(out, leaves, ahead))
    assert dq == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert dk == [[0.25, 0.0], [0.25, 1.0], [0.0, 0.0]]


def test_sums_that_float16_cannot_hold_are_exact(same: Callable[..., None]) -> None:
    def far(leaves: dict[str, Tensor]) -> dict[str, Any]:
        return arguments({**leaves, "qkv": 100 * leaves["qkv"]})

    same(linear_attention, drawn(), far, torch.float16, ("temperature",))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_what_is_no_number_is_not_hidden(name: str, device: str) -> None:
    given = arguments({name: x.float().to(device) for name, x in drawn(9).items()})
    given[name][0, 3, 0, 1] = torch.nan
    ours, theirs = (linear_attention(**given, backend=backend).isnan() for backend in ("triton", "reference"))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("batch", "tokens"), [(0, 5), (2, 0)])
def test_nothing_gives_nothing(batch: int, tokens: int, device: str) -> None:
    leaves = [x.float().to(device).requires_grad_() for x in drawn(tokens, batch=batch).values()]
    out = linear_attention(*leaves[0].unbind(2), leaves[1], backend="triton")
    assert out.shape == (batch, tokens, HEADS * HEAD_DIM)
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert gradients[0].shape == leaves[0].shape
    assert not gradients[1].any()


@pytest.mark.skipif(not _triton.INTERPRETED, reason="kernels take float64 in the interpreter only")
def test_derivatives_of_float64() -> None:
    leaves = drawn(9, 5)

    def run(qkv: Tensor, temperature: Tensor) -> Tensor:
        given = arguments({"qkv": qkv, "temperature": temperature}, min_denominator=6.0)
        return linear_attention(**given, backend="triton")

    inputs = [x.requires_grad_() for x in leaves.values()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, check_undefined_grad=False)


def test_it_is_an_operator_that_compilers_understand(device: str) -> None:
    leaves = {name: x.float().to(device).requires_grad_() for name, x in drawn(9).items()}
    given = tuple(arguments(leaves).values())
    linear_attention(*given, backend="triton")  # registers it
    torch.library.opcheck(torch.ops.vertebra.linear_attention, given)
