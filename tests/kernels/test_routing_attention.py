"""Attention to routed regions: every fast way against the reference, and the reference against regions cut by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from vertebra.kernels.routing_attention import eager, routing_attention

HEADS, HEAD_DIM = 2, 4


def drawn(size: tuple[int, int], regions: tuple[int, int], picks: int, batch: int = 2) -> tuple[list[Tensor], Tensor]:
    """q, k, v (B, H, W, heads, D) in float64, views of one projection's output, and an index of distinct regions."""
    packed = torch.randn(batch, *size, 3, HEADS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    count = regions[0] * regions[1]
    return list(packed.unbind(3)), torch.rand(batch, count, count).topk(picks, -1)[1]


CASES = [
    (size, regions, picks)
    for size, regions in (((4, 9), (2, 3)), ((6, 2), (6, 1)), ((3, 5), (3, 5)), ((2, 3), (1, 1)), ((14, 21), (7, 7)))
    for picks in {1, min(3, regions[0] * regions[1]), regions[0] * regions[1]}
]


@pytest.mark.parametrize("way", ["mask", "gather"])
@pytest.mark.parametrize(("size", "regions", "picks"), CASES)
def test_both_fast_ways_are_the_reference_and_so_are_their_gradients(
    size: tuple[int, int], regions: tuple[int, int], picks: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "_mask_is_cheaper", lambda *_: way == "mask")
    tensors, index = drawn(size, regions, picks)
    results = []
    for backend in ("eager", "reference"):
        out = routing_attention(*tensors, index, 0.7, regions, backend)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), tensors)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("part", [1, 5000, 10**9])
@pytest.mark.parametrize(("size", "regions", "picks"), CASES)
@torch.no_grad()
def test_without_gradients_a_few_regions_at_a_time_give_the_same(
    size: tuple[int, int], regions: tuple[int, int], picks: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "_mask_is_cheaper", lambda *_: False)
    monkeypatch.setattr(eager, "_PART", part)
    tensors, index = drawn(size, regions, picks)
    out = routing_attention(*tensors, index, regions=regions)
    torch.testing.assert_close(out, routing_attention(*tensors, index, regions=regions, backend="reference"))


@torch.no_grad()
def test_without_gradients_no_more_keys_are_gathered_at_once_than_the_limit_and_one_region(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eager, "_PART", 10_000)
    gathered = []
    attend = eager._attend

    def watched(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float | None) -> Tensor:
        gathered.append(2 * index.numel() * k[0].nbytes)
        return attend(q, k, v, index, scale)

    monkeypatch.setattr(eager, "_attend", watched)
    tensors, index = drawn((28, 28), (7, 7), 1)
    routing_attention(*tensors, index)
    region = 2 * 16 * HEADS * HEAD_DIM * 8
    assert sum(gathered) == 2 * 49 * region
    assert max(gathered) <= 10_000 + region


def test_a_mask_is_used_for_few_tokens_or_many_routed_regions() -> None:
    def chosen(side: int, picks: int, learns: bool = False) -> bool:
        return eager._mask_is_cheaper(torch.empty(1, side, side, 1, 1), torch.empty(1, 49, picks), learns)

    assert chosen(14, 16)
    assert not chosen(14, 1)
    assert not chosen(28, 16)
    assert chosen(28, 16, learns=True)
    assert not chosen(56, 49)  # a mask of all pairs would be too large, though it would hide nothing


def test_the_reference_attends_to_the_tokens_of_the_routed_regions() -> None:
    (q, k, v), index = drawn((4, 9), (2, 3), 2)
    out = routing_attention(q, k, v, index, 0.3, (2, 3), "reference")

    def region(x: Tensor, image: int, number: int) -> Tensor:  # (T, heads, D)
        row, column = divmod(number, 3)
        return x[image, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].flatten(0, 1)

    for image in range(2):
        for number in range(6):
            keys, values = (torch.cat([region(x, image, int(i)) for i in index[image, number]]) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", region(q, image, number), keys) * 0.3
            expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
            torch.testing.assert_close(region(out[..., None], image, number)[..., 0], expected.flatten(1))


@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_regions_are_square_and_the_scale_that_of_a_head_unless_said_otherwise(backend: str) -> None:
    tensors, index = drawn((6, 9), (3, 3), 2)
    explicit = routing_attention(*tensors, index, HEAD_DIM**-0.5, (3, 3), backend)
    assert torch.equal(routing_attention(*tensors, index, backend=backend), explicit)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (28, 28)])
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_an_empty_batch_gives_an_empty_map(size: tuple[int, int], backend: str, learns: bool) -> None:
    tensors, index = drawn(size, (2, 2), 1, batch=0)
    with torch.set_grad_enabled(learns):
        assert routing_attention(*tensors, index, backend=backend).shape == (0, *size, HEADS * HEAD_DIM)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("picks", [1, 16])
@torch.no_grad()
def test_half_precision_stays_near_the_reference(dtype: torch.dtype, picks: int) -> None:
    tensors, index = drawn((14, 14), (7, 7), picks)
    out = routing_attention(*(x.to(dtype) for x in tensors), index)
    assert out.dtype == dtype
    expected = routing_attention(*tensors, index, backend="reference")
    assert (out - expected).abs().max() < 0.02 * expected.abs().max()


class _Attention(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> Tensor:
        return routing_attention(q, k, v, index, 0.5, (2, 3))


class _PaddedAttention(nn.Module):
    def forward(self, packed: Tensor, index: Tensor) -> Tensor:
        height, width = packed.shape[1:3]
        tall, wide = (height + 1) // 2, (width + 2) // 3
        packed = functional.pad(packed, (0, 0, 0, 0, 0, 0, 0, 3 * wide - width, 0, 2 * tall - height))
        return routing_attention(*packed.unbind(3), index, 0.5, (2, 3))


@torch.no_grad()
def test_a_program_exported_with_regions_of_one_token_takes_any_others() -> None:
    def inputs(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        packed = torch.randn(batch, height, width, 3, HEADS, HEAD_DIM)
        return packed, torch.rand(batch, 6, 6).topk(2, -1)[1]

    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 1: free, 2: free}, {0: free})
    program = torch.export.export(_PaddedAttention(), inputs(2, 2, 3), dynamic_shapes=shapes).module()
    for size in ((2, 2, 3), (3, 8, 3), (1, 5, 7), (1, 2, 9)):
        given = inputs(*size)
        torch.testing.assert_close(program(*given), _PaddedAttention()(*given))


@torch.no_grad()
def test_a_script_gives_the_same() -> None:
    scripted = torch.jit.script(_Attention())
    for size in ((2, 3), (8, 9)):
        tensors, index = drawn(size, (2, 3), 4)
        expected = routing_attention(*tensors, index, 0.5, (2, 3), "reference")
        torch.testing.assert_close(scripted(*tensors, index), expected)
