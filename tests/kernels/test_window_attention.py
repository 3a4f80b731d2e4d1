"""Attention in windows: the fast way against the reference, and the reference against windows cut by hand."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from vertebra.kernels.window_attention import eager, window_attention

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
        results.append([out, *torch.autograd.grad((out * weights).sum(), learned, materialize_grads=True)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("at_once", [1, 500, 3000, 10**6])  # one window, some columns, some rows, all images
@pytest.mark.parametrize(("window", "size", "partition", "names"), CASES)
@torch.no_grad()
def test_eager_is_the_reference_however_few_windows_are_cut_at_once(
    window: tuple[int, int],
    size: tuple[int, int],
    partition: str,
    names: str,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eager, "_CUT_AT_ONCE", at_once)
    tensors, keywords = qkv(*size), options(window, names)
    fast, plain = (
        window_attention(*tensors, window, partition, backend=backend, **keywords) for backend in ("eager", "reference")
    )
    torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("layout", ["apart", "other order", "heads last", "a gap"])
@torch.no_grad()
def test_q_k_and_v_may_lie_anywhere_in_memory(layout: str) -> None:
    q, k, v = qkv(6, 4)
    if layout == "apart":
        q, k, v = q.clone(), k.clone(), v.clone()
    elif layout == "other order":
        q, k, v = v, q, k
    elif layout == "heads last":
        q, k, v = (x.transpose(3, 4).contiguous().transpose(3, 4) for x in (q, k, v))
    else:
        q, k, v = torch.randn(2, 6, 4, 7, HEADS, HEAD_DIM, dtype=torch.float64)[:, :, :, ::3].unbind(3)
    fast, plain = (window_attention(q, k, v, (3, 2), backend=backend) for backend in ("eager", "reference"))
    torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("names", ["", "bp", "ol"])
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_one_and_none_keep_their_shape(names: str, batch: int) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out = window_attention(*qkv(7, 5, batch), (3, 2), **options((3, 2), names))
        assert out.shape == (batch, 7, 5, HEADS * HEAD_DIM)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("names", ["", "bp", "ol"])
def test_scores_beyond_16_bits_neither_overflow_nor_lose_the_sum(dtype: torch.dtype, names: str) -> None:
    tensors, keywords = qkv(14, 14), options((7, 7), names)
    small = [x.detach().to(dtype).requires_grad_() for x in tensors]
    fewer = {key: value.to(dtype) if isinstance(value, Tensor) else value for key, value in keywords.items()}
    exact = window_attention(
        *(x.double() for x in small),
        (7, 7),
        scale=30.0,
        **{key: value.double() if isinstance(value, Tensor) else value for key, value in fewer.items()},
    )
    out = window_attention(*small, (7, 7), scale=30.0, **fewer)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.05 if dtype == torch.bfloat16 else 0.01)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.float().sum(), small))


class Projected(nn.Module):
    """A projection and its attention, as a model calls it."""

    def __init__(self, partition: str) -> None:
        super().__init__()
        self.partition = partition
        self.qkv = nn.Linear(HEADS * HEAD_DIM, 3 * HEADS * HEAD_DIM)
        self.table = nn.Parameter(torch.randn(HEADS, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(3, (3, 2, 4)).unbind(3)
        pad = self.qkv.bias.reshape(3, 2, 4)
        return window_attention(q, k, v, (3, 2), self.partition, bias_table=self.table, pad=pad, pad_offset=(1, 0))


SIZES = [(1, 5, 9), (3, 2, 2), (1, 2, 1), (2, 6, 8)]


@pytest.mark.parametrize("partition", ["block", "grid"])
@pytest.mark.parametrize("taken_from", [(2, 2, 2), (2, 5, 4)])  # one window; several
@torch.no_grad()
def test_an_exported_program_takes_any_number_of_windows(partition: str, taken_from: tuple[int, ...]) -> None:
    model = Projected(partition)
    free = dict.fromkeys((0, 1, 2), torch.export.Dim.DYNAMIC)
    x = torch.randn(*taken_from, HEADS * HEAD_DIM)
    program = torch.export.export(model, (x,), dynamic_shapes=(free,)).module()
    for size in SIZES:
        x = torch.randn(*size, HEADS * HEAD_DIM)
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("partition", ["block", "grid"])
@torch.no_grad()
def test_a_script_gives_the_same(partition: str) -> None:
    model = Projected(partition)
    scripted = torch.jit.script(model)
    for size in SIZES:
        x = torch.randn(*size, HEADS * HEAD_DIM)
        torch.testing.assert_close(scripted(x), model(x))


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


def test_an_unknown_partition_is_refused() -> None:
    q = torch.zeros(1, 4, 4, 1, 2)
    with pytest.raises(ValueError, match=r"partition is 'windows'; it takes 'block' or 'grid'"):
        window_attention(q, q, q, (2, 2), partition="windows")


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_a_cross_window_is_for_the_second_half_of_the_heads(backend: str) -> None:
    tensors, keywords = qkv(7, 5), options((3, 2), "pl")
    out = window_attention(
        *tensors, (3, 2), pad_offset=(1, 0), cross_window=(2, 4), cross_offset=(0, 1), backend=backend, **keywords
    )
    for i, (window, offset) in enumerate((((3, 2), (1, 0)), ((2, 4), (0, 1)))):
        heads, channels = slice(i, i + 1), slice(i * HEAD_DIM, (i + 1) * HEAD_DIM)
        mine = {key: value[:, heads] if key == "pad" else value[channels] for key, value in keywords.items()}
        q, k, v = (x[:, :, :, heads] for x in tensors)
        expected = window_attention(q, k, v, window, pad_offset=offset, backend=backend, **mine)
        torch.testing.assert_close(out[..., channels], expected)


def test_a_cross_window_that_cannot_be_is_refused() -> None:
    q = torch.zeros(1, 4, 4, 3, 2)
    with pytest.raises(ValueError, match="there are 3 heads; a cross_window takes half"):
        window_attention(q, q, q, (2, 2), cross_window=(4, 1))
    with pytest.raises(ValueError, match="a cross_window and a bias_table"):
        window_attention(q, q, q, (2, 2), cross_window=(4, 1), bias_table=torch.zeros(3, 3, 3))
