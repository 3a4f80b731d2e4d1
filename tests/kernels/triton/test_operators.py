"""What `register` promises of every operator, tried on one: compilers, counters and checkpoints see one operator."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from vertebra.kernels import dispatch
from vertebra.kernels.window_attention import window_attention


class Attention(nn.Module):
    """A projection and its attention in windows, as models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.table = nn.Parameter(torch.randn(2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(3, (3, 2, 8)).unbind(3)
        return window_attention(q, k, v, (2, 2), bias_table=self.table)


@pytest.fixture
def attention(device: str, monkeypatch: pytest.MonkeyPatch) -> Attention:
    """The module, on the device where kernels run, with VERTEBRA_KERNELS=triton."""
    monkeypatch.setenv("VERTEBRA_KERNELS", "triton")
    return Attention().to(device)


@pytest.fixture
def x(device: str) -> Tensor:
    """A map (B, H, W, C) that windows do not fill."""
    return torch.randn(1, 3, 5, 16, device=device)


def gradients(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    """The result, and the gradients of x and of every parameter."""
    x = x.clone().requires_grad_()
    out = run(x)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *module.parameters()])]


def test_the_variable_takes_triton_and_the_reference_agrees(
    attention: Attention, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = torch.zeros(1, 2, 2, 3, 2, 8, device=x.device).unbind(3)
    assert dispatch.explain(window_attention, q, k, v, (2, 2)) == {"backend": "triton", "refused": {}}
    ours = gradients(attention, attention, x)
    monkeypatch.setenv("VERTEBRA_KERNELS", "reference")
    torch.testing.assert_close(ours, gradients(attention, attention, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_graph_is_whole(attention: Attention, x: Tensor, dynamic: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in (x, x[:, :, :4]):
        torch.testing.assert_close(gradients(compiled, attention, size), gradients(attention, attention, size))


def test_a_checkpoint_computes_again(attention: Attention, x: Tensor) -> None:
    again = gradients(lambda y: checkpoint(attention, y, use_reentrant=False), attention, x)
    torch.testing.assert_close(again, gradients(attention, attention, x))


def test_autocast_hands_over_16_bits_and_float32_tables(attention: Attention, x: Tensor) -> None:
    with torch.autocast(x.device.type, torch.bfloat16):
        out, *grads = gradients(attention, attention, x)
    assert out.dtype == torch.bfloat16
    assert [g.dtype for g in grads] == [torch.float32] * 4
    torch.testing.assert_close([out.float(), *grads], gradients(attention, attention, x), rtol=0.05, atol=0.05)


def test_operations_are_counted_both_ways(attention: Attention, x: Tensor) -> None:
    attention(x)  # the operator exists from its first call on
    counter = FlopCounterMode(display=False)
    with counter:
        attention(x).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    forward = 2 * 3 * 4 * 2 * 8 * 4 * 4  # windows, tokens, heads x head_dim, two products with 4 keys
    assert counted[torch.ops.vertebra.window_attention] == forward
    assert counted[torch.ops.vertebra.window_attention_backward] == 2.5 * forward


def test_a_second_derivative_is_refused_in_one_sentence(attention: Attention, x: Tensor) -> None:
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(attention(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"window_attention .*VERTEBRA_KERNELS=eager"):
        gradient.sum().backward()


def test_the_same_bits_every_time(attention: Attention, x: Tensor) -> None:
    first, second = gradients(attention, attention, x), gradients(attention, attention, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_batch_of_none(attention: Attention, x: Tensor) -> None:
    out, *grads = gradients(attention, attention, x[:0])
    assert out.shape == (0, 3, 5, 16)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


def test_exports_and_transformations_see_plain_pytorch(attention: Attention, x: Tensor) -> None:
    program = torch.export.export(attention, (x,))
    traced = torch.jit.trace(attention, x)
    assert "vertebra::" not in str(program.graph).replace("vertebra.", "vertebra::")
    assert "vertebra::" not in str(traced.inlined_graph)
    torch.testing.assert_close(program.module()(x), attention(x), rtol=1e-4, atol=1e-4)
    torch.func.vmap(attention)(x[None])  # a kernel has no rule for it


def test_copies_and_frozen_parameters_train(attention: Attention, x: Tensor) -> None:
    model = copy.deepcopy(attention)
    model.table.requires_grad_(False)
    model(x).sum().backward()
    assert model.table.grad is None
    assert model.qkv.weight.grad is not None
