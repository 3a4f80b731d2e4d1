"""Attention to routed regions on Triton, whatever the regions, the map and the lists."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vertebra.kernels import _triton
from vertebra.kernels.routing_attention import routing_attention, triton

HEADS, HEAD_DIM = 2, 20  # the kernel's tiles are 32 wide

LISTS = {  # map, regions, picks
    "one token each": ((2, 3), (2, 3), 2),
    "part of a tile of 16": ((6, 10), (2, 2), 3),
    "part of a tile of 32": ((10, 6), (2, 1), 2),
    "part of a tile of 64": ((12, 7), (2, 1), 2),
    "several tiles": ((9, 16), (1, 2), 1),
    "one region": ((3, 5), (1, 1), 1),
}
MASKS = {
    "regions of 2 x 3": ((8, 12), (4, 4), 7),
    "regions of 1 x 2, 64 of them": ((8, 16), (8, 8), 5),
    "one token each": ((5, 7), (5, 7), 3),
    "one region": ((3, 5), (1, 1), 1),
}


@pytest.fixture(params=["list", "mask"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How kernels find the keys; small regions allow both."""
    if request.param == "list":
        monkeypatch.setattr(triton, "_BITS", 0)
    return request.param


def drawn(size: tuple[int, int], batch: int = 1, heads: int = HEADS) -> dict[str, Tensor]:
    """One projection's output."""
    return {"qkv": torch.randn(batch, *size, 3, heads, HEAD_DIM, dtype=torch.float64)}


def routes(regions: tuple[int, int], picks: int, batch: int = 1) -> Tensor:
    """Lists (B, regions, K) that all name the first region."""
    count = regions[0] * regions[1]
    wanted = torch.rand(batch, count, count)
    wanted[..., 0] = 1
    return wanted.topk(picks)[1]


def arguments(
    leaves: dict[str, Tensor], index: Tensor, regions: tuple[int, int], scale: float | None = None
) -> dict[str, Any]:
    """q, k and v are views of one projection."""
    q, k, v = leaves["qkv"].unbind(3)
    return {"q": q, "k": k, "v": v, "index": index.to(q.device), "scale": scale, "regions": regions}


@pytest.mark.parametrize("case", LISTS)
def test_keys_by_a_list(
    case: str, dtype: torch.dtype, same: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "_BITS", 0)
    size, regions, picks = LISTS[case]
    index = routes(regions, picks)
    same(routing_attention, drawn(size), lambda leaves: arguments(leaves, index, regions), dtype)


@pytest.mark.parametrize("case", MASKS)
def test_keys_behind_a_mask(case: str, dtype: torch.dtype, same: Callable[..., None]) -> None:
    size, regions, picks = MASKS[case]
    index = routes(regions, picks)
    same(routing_attention, drawn(size), lambda leaves: arguments(leaves, index, regions), dtype)


def test_a_mask_is_for_small_regions_of_which_many_are_routed() -> None:
    def masked(side: int, regions: int, picks: int) -> bool:
        q, index = torch.empty(1, side, side, 1, 32), torch.empty(1, regions**2, picks)
        return triton._Plan(q, index, regions, regions).masked

    assert masked(14, 7, 16)
    assert masked(21, 7, 16)
    assert not masked(28, 7, 4)
    assert not masked(56, 7, 1)
    assert not masked(32, 16, 16)  # 256 regions


def test_bfloat16_and_a_scale(way: str, same: Callable[..., None]) -> None:
    index = routes((3, 2), 4, batch=2)
    leaves = drawn((6, 8), 2, 1)
    same(routing_attention, leaves, lambda own: arguments(own, index, (3, 2), 0.5), torch.bfloat16)


@pytest.mark.parametrize(("picks", "most"), [(1, 2), (2, 4), (1, 3)])
def test_a_list_that_is_cut(picks: int, most: int, same: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_QUERIES", most * 6)
    monkeypatch.setattr(triton, "_BITS", 0)
    index = routes((3, 3), picks, batch=2)
    slots, _ = triton._pieces(triton._turned_round(index)[1], most, 18)
    assert slots[1] > 1  # the first region's list is three pieces or more
    same(routing_attention, drawn((6, 9), 2, 1), lambda leaves: arguments(leaves, index, (3, 3)), torch.float32)


def test_a_list_turned_round_names_who_asks_for_a_region() -> None:
    index = routes((3, 3), 4, batch=2)
    order, ends = triton._turned_round(index)
    for image in range(2):
        for region in range(9):
            asking = order[image, ends[image, region] : ends[image, region + 1]] // 4
            assert asking.tolist() == (index[image] == region).any(1).nonzero().flatten().tolist()


def test_pieces_of_lists_have_a_slot_each() -> None:
    lengths = torch.tensor([[0, 7, 2], [9, 3, 0]])
    ends = torch.nn.functional.pad(lengths.cumsum(1), (1, 0)).int()
    slots, owners = triton._pieces(ends, 2, 10)  # after the first two entries
    assert slots.tolist() == [0, 0, 3, 3, 7, 8, 8]
    assert owners.tolist() == [1, 1, 1, 3, 3, 3, 3, 4, 6, 6]


@pytest.mark.parametrize("layout", ["apart", "heads last", "a gap", "transposed"])
def test_any_strides(layout: str, same: Callable[..., None]) -> None:
    index = routes((2, 2), 2).mT.contiguous().mT

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
        return {"q": q, "k": k, "v": v, "index": index.to(q.device), "regions": (2, 2)}

    same(routing_attention, drawn((4, 6)), views, torch.float32)


def test_lists_of_short_integers(way: str, device: str) -> None:
    q, k, v = torch.randn(1, 4, 6, 3, 1, HEAD_DIM, device=device).unbind(3)
    index = routes((2, 2), 2).to(device)
    results = [routing_attention(q, k, v, x, backend="triton") for x in (index, index.int(), index.to(torch.uint8))]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_gradient_that_is_not_contiguous(way: str, device: str) -> None:
    qkv = torch.randn(1, 4, 6, 3, HEADS, HEAD_DIM, device=device, requires_grad=True)
    index = routes((2, 2), 2).to(device)
    results = []
    for backend in ("triton", "reference"):
        out = routing_attention(*qkv.unbind(3), index, backend=backend)
        ahead = torch.arange(out.numel(), device=device, dtype=out.dtype).view(1, 6, 4, -1).transpose(1, 2)
        results.append(torch.autograd.grad(out, qkv, ahead)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_a_region_that_nobody_asks_for_has_no_gradient(way: str, device: str) -> None:
    k, v = (torch.randn(1, 2, 4, 1, HEAD_DIM, device=device, requires_grad=True) for _ in "kv")
    index = torch.tensor([[[0], [0]]], device=device)
    out = routing_attention(torch.randn_like(k), k, v, index, regions=(1, 2), backend="triton")
    for gradient in torch.autograd.grad(out.sum(), [k, v]):
        assert gradient[:, :, :2].ne(0).any()
        assert gradient[:, :, 2:].eq(0).all()


def test_an_empty_batch(device: str) -> None:
    qkv = torch.randn(0, 4, 6, 3, HEADS, HEAD_DIM, device=device, requires_grad=True)
    out = routing_attention(*qkv.unbind(3), routes((2, 2), 1, batch=0).to(device), backend="triton")
    assert out.shape == (0, 4, 6, HEADS * HEAD_DIM)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


@pytest.mark.skipif(not _triton.INTERPRETED, reason="kernels take float64 in the interpreter only")
def test_derivatives_of_float64(way: str) -> None:
    index = routes((2, 2), 2)

    def run(qkv: Tensor) -> Tensor:
        return routing_attention(**arguments({"qkv": qkv}, index, (2, 2)), backend="triton")

    inputs = [x.requires_grad_() for x in drawn((4, 6), heads=1).values()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_it_is_an_operator_that_compilers_understand(device: str) -> None:
    q, k, v = drawn((2, 4), heads=1)["qkv"].float().to(device).requires_grad_().unbind(3)
    index = routes((1, 2), 1).to(device)
    routing_attention(q, k, v, index, regions=(1, 2), backend="triton")  # registers it
    torch.library.opcheck(torch.ops.vertebra.routing_attention, (q, k, v, index, 1, 2, 0.3))
