"""Attention over a whole map: the fast way against the reference, its memory, half precision, scripts and exports."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vertebra.kernels.global_attention import eager, global_attention

HEADS = 2


def qkv(n: int, m: int, d: int, e: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q (B, N, heads, D) with gaps in its last dimension, k and v (B, M, heads, D or E) views of one projection."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, HEADS, d, n, dtype=dtype, generator=generator).requires_grad_().permute(0, 3, 1, 2)
    packed = torch.randn(batch, m, HEADS, d + e, dtype=dtype, generator=generator).requires_grad_()
    return [q, *packed.split([d, e], -1)]


def biases(n: int, m: int) -> list[Tensor | None]:
    """None, and a learned bias of every shape that models use."""
    shapes = [(2, HEADS, n, m), (HEADS, n, m), (n, m), (1, HEADS, 1, m)]
    return [None, *(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)]


@pytest.mark.parametrize(("d", "e"), [(8, 8), (4, 12), (12, 4)])
@pytest.mark.parametrize(("n", "m"), [(9, 9), (30, 7), (1, 5), (7, 1)])
@pytest.mark.parametrize("ways", [{}, {"_PIECE": 50}, {"_KEPT": 0}], ids=["as it is", "in pieces", "long"])
def test_eager_is_the_reference_and_so_are_its_gradients(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, d: int, e: int, ways: dict[str, int]
) -> None:
    for constant, value in ways.items():
        monkeypatch.setattr(eager, constant, value)
    tensors = qkv(n, m, d, e)
    for bias in biases(n, m):
        learned = [*tensors, *([] if bias is None else [bias])]
        results = []
        for backend in ("eager", "reference"):
            out = global_attention(*tensors, scale=0.3, bias=bias, backend=backend)
            weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
            results.append([out, *torch.autograd.grad((out * weights).sum(), learned)])
            with torch.no_grad():
                torch.testing.assert_close(global_attention(*tensors, scale=0.3, bias=bias, backend=backend), out)
        torch.testing.assert_close(results[0], results[1])


def test_the_reference_is_a_mean_of_v_weighed_by_the_softmax_of_the_scores() -> None:
    q, k, v = (x.detach() for x in qkv(5, 3, 4, 6))
    bias = torch.randn(HEADS, 5, 3, dtype=torch.float64)
    out = global_attention(q, k, v, bias=bias, backend="reference").unflatten(-1, (HEADS, 6))
    for image in range(2):
        for head in range(HEADS):
            for query in range(5):
                scores = [
                    q[image, query, head] @ k[image, key, head] * 0.5 + bias[head, query, key] for key in range(3)
                ]
                shares = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
                torch.testing.assert_close(out[image, query, head], shares @ v[image, :, head])


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize(("d", "e"), [(8, 8), (4, 12)])
def test_an_empty_batch_gives_an_empty_result(d: int, e: int, backend: str) -> None:
    assert global_attention(*qkv(6, 6, d, e, batch=0), backend=backend).shape == (0, 6, HEADS * e)


class Largest(TorchDispatchMode):
    """Remembers the most elements that any operator's result had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d", "e", "learned_bias"), [(8, 8, False), (8, 8, True), (4, 12, False)])
@torch.no_grad()
def test_inference_never_holds_all_scores(
    monkeypatch: pytest.MonkeyPatch, d: int, e: int, learned_bias: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(eager, "_PIECE", 2**14)
    n = 500
    tensors = qkv(n, n, d, e, dtype=dtype)
    bias = torch.zeros(1, HEADS, 1, n, requires_grad=True) if learned_bias else None
    with Largest() as largest:
        global_attention(*tensors, bias=bias)
    assert 0 < largest.elements < 2 * HEADS * n * n / 4


def test_training_over_long_maps_never_holds_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "_KEPT", 1000)
    n = 500
    tensors = qkv(n, n, 4, 12, dtype=torch.float32)
    with Largest() as largest:
        global_attention(*tensors).sum().backward()
    assert 0 < largest.elements < 2 * HEADS * n * n / 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("d", "e"), [(16, 16), (16, 48)])
def test_half_precision_rounds_the_result_not_the_scores(d: int, e: int, dtype: torch.dtype) -> None:
    q, k, v = (x.detach().to(dtype) for x in qkv(40, 40, d, e))
    q, k = q * 8, k * 8  # scores so large that rounding them would change which key wins
    exact = global_attention(*(x.double() for x in (q, k, v)), backend="reference")
    out = global_attention(q, k, v)
    assert out.dtype == dtype
    assert (out - exact).abs().max() < 4 * torch.finfo(dtype).eps * v.abs().max()


@pytest.mark.parametrize(("d", "e"), [(16, 16), (16, 48)])
def test_autocast_rounds_the_inputs_and_not_the_scores(d: int, e: int) -> None:
    q, k, v = (x.detach().float() for x in qkv(40, 40, d, e))
    with torch.autocast("cpu", torch.bfloat16):
        out = global_attention(q * 8, k * 8, v)
    rounded = ((q * 8).bfloat16(), (k * 8).bfloat16(), v.bfloat16())
    torch.testing.assert_close(out, global_attention(*rounded), rtol=0, atol=0)


def wrapped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return global_attention(q, k, v, bias=bias)


class Wrapped(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return wrapped(q, k, v)


def exported(sizes: list[Tensor]) -> Callable[..., Tensor]:
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 1: free},) * 3
    return torch.export.export(Wrapped(), tuple(sizes), dynamic_shapes=shapes).module()


@pytest.mark.parametrize("how", ["script", "compile", "export"])
@pytest.mark.parametrize(("d", "e"), [(8, 8), (4, 12)])
@torch.no_grad()
def test_graphs_give_the_same_at_another_size(how: str, d: int, e: int) -> None:
    first, second = (
        [x.detach().contiguous() for x in qkv(n, m, d, e, batch)] for n, m, batch in ((9, 6, 2), (5, 8, 3))
    )
    graph = {
        "script": lambda: torch.jit.script(wrapped),
        "compile": lambda: torch.compile(wrapped, backend="aot_eager", fullgraph=True),
        "export": lambda: exported(first),
    }[how]()
    for tensors in (first, second):
        torch.testing.assert_close(graph(*tensors), global_attention(*tensors, backend="reference"))
