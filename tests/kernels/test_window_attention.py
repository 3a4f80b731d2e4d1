"""Attention in windows: the fast way against the reference, and the reference against windows cut by hand."""

import itertools

import pytest
import torch
from torch import Tensor
from vertebra.kernels.window_attention import window_attention

HEADS, HEAD_DIM = 2, 4


def qkv(height: int, width: int, batch: int = 2) -> list[Tensor]:
    """q, k, v (B, H, W, heads, D) in float64, views of one projection's output."""
    packed = torch.randn(batch, height, width, 3, HEADS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    return list(packed.unbind(3))


def options(window: tuple[int, int], names: str) -> dict[str, Tensor | tuple[int, int]]:
    """Some of the operator's keywords, by their first letters."""
    dim = HEADS * HEAD_DIM

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    table = drawn(HEADS, 2 * window[0] - 1, 2 * window[1] - 1)
    every = {
        "b": {"bias_table": table},
        "p": {"pad": drawn(3, HEADS, HEAD_DIM)},
        "o": {"pad_offset": (1, 2)},
        "l": {"lepe_weight": drawn(dim, 1, 3, 3), "lepe_bias": drawn(dim)},
    }
    return {key: value for name in names for key, value in every[name].items()}


CASES = [
    (window, size, partition, names)
    for window, size in (((3, 2), (6, 4)), ((3, 2), (7, 5)), ((1, 5), (6, 5)), ((6, 1), (6, 3)), ((7, 7), (5, 6)))
    for partition, names in (("block", ""), ("block", "bp"), ("block", "ol"), ("grid", ""), ("grid", "bp"))
]


@pytest.mark.parametrize(("window", "size", "partition", "names"), CASES)
def test_eager_is_the_reference_and_so_are_its_gradients(
    window: tuple[int, int], size: tuple[int, int], partition: str, names: str
) -> None:
    tensors, keywords = qkv(*size), options(window, names)
    learned = [*tensors, *(value for value in keywords.values() if isinstance(value, Tensor))]
    results = []
    for backend in ("eager", "reference"):
        out = window_attention(*tensors, window, partition, backend=backend, **keywords)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), learned, allow_unused=True)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("partition", ["block", "grid"])
def test_the_reference_attends_among_the_tokens_of_each_window(partition: str) -> None:
    q, k, v = (x.detach() for x in qkv(4, 6))
    out = window_attention(q, k, v, (2, 3), partition, backend="reference")
    for row, column in itertools.product(range(2), range(2)):
        if partition == "block":
            place = (slice(None), slice(2 * row, 2 * row + 2), slice(3 * column, 3 * column + 3))
        else:
            place = (slice(None), slice(row, None, 2), slice(column, None, 2))
        a, b, c = (x[place].flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        expected = (a @ b.mT * HEAD_DIM**-0.5).softmax(-1) @ c
        torch.testing.assert_close(out[place].flatten(1, 2), expected.transpose(1, 2).flatten(2))
