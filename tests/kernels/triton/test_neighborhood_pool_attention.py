"""Attention to neighbours and a pooled map on Triton, whatever the map, the pooled map and the layout."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vertebra.kernels.neighborhood_pool_attention import neighborhood_pool_attention, triton

HEAD_DIM = 24  # the kernel's tiles are 32 wide
Size = tuple[int, int]

SIZES = {  # map, pooled map
    "several patches": ((3, 9), (2, 3)),
    "one patch": ((8, 8), (1, 1)),
    "one pixel": ((1, 1), (1, 1)),
    "a column of pixels": ((5, 1), (4, 1)),
    "several tiles of pooled keys": ((3, 4), (5, 7)),
}
PARAMETERS = {
    "embedding_and_temperature": (1, HEAD_DIM + 1),  # errors of one number alone, a sum that cancels, say little
    "relative_pos_bias_local": (9,),
    "learnable_tokens": (HEAD_DIM, 9),
    "learnable_bias": (1, 9),
    "bias_table": (5, 7),
}


def drawn(size: Size, pool: Size, batch: int = 1, heads: int = 1) -> dict[str, Tensor]:
    """The tensors that learn."""
    shapes = {"qkv": (batch, *size, 3, heads, HEAD_DIM), "pool": (batch, pool[0] * pool[1], 2, heads, HEAD_DIM)}
    shapes |= {name: (heads, *shape) for name, shape in PARAMETERS.items()}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def arguments(size: Size, pool: Size, device: str = "cpu") -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    """Makes the arguments of what `drawn` returns: views of two projections, and random places in the table."""
    rows, columns = torch.randint(5, (size[0], pool[0])), torch.randint(7, (size[1], pool[1]))

    def make(leaves: dict[str, Tensor]) -> dict[str, Any]:
        given = dict(leaves)
        q, k, v = given.pop("qkv").unbind(3)
        pool_k, pool_v = given.pop("pool").unbind(2)
        embedding, temperature = given.pop("embedding_and_temperature").split([HEAD_DIM, 1], 2)
        places = {"bias_rows": rows.to(device), "bias_columns": columns.to(device)}
        given |= {"query_embedding": embedding, "temperature": temperature}
        return {"q": q, "k": k, "v": v, "pool_k": pool_k, "pool_v": pool_v} | given | places

    return make


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in SIZES),
        ("several patches", torch.float16),
        ("several tiles of pooled keys", torch.float16),
    ],
)
def test_every_kind_of_map(kind: str, dtype: torch.dtype, device: str, same: Callable[..., None]) -> None:
    leaves = drawn(*SIZES[kind], heads=1 + (kind == "several patches"))
    same(neighborhood_pool_attention, leaves, arguments(*SIZES[kind], device), dtype)


def test_bfloat16_with_parameters_of_float32(device: str, same: Callable[..., None]) -> None:
    sizes = ((3, 5), (2, 3))
    same(neighborhood_pool_attention, drawn(*sizes, batch=2), arguments(*sizes, device), torch.bfloat16, (*PARAMETERS,))


@pytest.mark.parametrize("layout", ["heads last", "a gap", "transposed"])
def test_any_strides(layout: str, device: str, same: Callable[..., None]) -> None:
    sizes = ((4, 5), (2, 2))
    usual = arguments(*sizes, device)

    def views(leaves: dict[str, Tensor]) -> dict[str, Any]:
        given = usual(leaves)
        for name in ("q", "k", "v", "pool_k", "pool_v"):
            x = given[name]
            if layout == "heads last":
                given[name] = x.transpose(-1, -2).contiguous().transpose(-1, -2)
            elif layout == "a gap":
                given[name] = torch.stack([x, x], -2).flatten(-2)[..., 1 : HEAD_DIM + 1]
            else:
                given[name] = x.transpose(0, 1).contiguous().transpose(0, 1)
        given["bias_rows"] = given["bias_rows"].t().contiguous().t()
        given["bias_table"] = given["bias_table"].transpose(1, 2).contiguous().transpose(1, 2)
        return given

    same(neighborhood_pool_attention, drawn(*sizes, heads=2), views, torch.float32)


def test_a_gradient_that_is_not_contiguous(device: str) -> None:
    sizes = ((4, 5), (2, 2))
    make = arguments(*sizes, device)
    leaves = {name: x.float().to(device).requires_grad_() for name, x in drawn(*sizes).items()}
    results = []
    for backend in ("triton", "reference"):
        out = neighborhood_pool_attention(**make(leaves), backend=backend)
        ahead = torch.arange(out.numel(), device=device, dtype=out.dtype).view(1, 5, 4, -1).transpose(1, 2).sin()
        results.append(torch.autograd.grad(out, list(leaves.values()), ahead))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_what_lies_around_a_map_in_memory_has_no_influence(device: str, same: Callable[..., None]) -> None:
    sizes = ((3, 4), (1, 2))
    usual = arguments(*sizes, device)

    def framed(leaves: dict[str, Tensor]) -> dict[str, Any]:
        given = usual(leaves)
        for name in ("q", "k", "v"):
            frame = given[name].new_full((3, 6, 7, 1, HEAD_DIM), torch.nan)
            frame[1:2, 1:4, 1:5] = given[name]
            given[name] = frame[1:2, 1:4, 1:5]
        return given

    same(neighborhood_pool_attention, drawn(*sizes), framed, torch.float32)


@pytest.mark.parametrize("name", ["qkv", "pool"])
def test_vectors_of_zeros_are_not_normalised(name: str, device: str, same: Callable[..., None]) -> None:
    sizes = ((2, 3), (1, 2))
    leaves = drawn(*sizes)
    leaves[name][0, 1] = 0
    same(neighborhood_pool_attention, leaves, arguments(*sizes, device), torch.float32)


def test_a_temperature_far_below_zero_keeps_its_digits(device: str, same: Callable[..., None]) -> None:
    sizes = ((2, 3), (1, 2))
    leaves = drawn(*sizes)
    leaves["embedding_and_temperature"][:, :, -1] = -20
    same(neighborhood_pool_attention, leaves, arguments(*sizes, device), torch.float32)


@torch.no_grad()
def test_a_temperature_far_above_zero_is_its_own_softplus(device: str) -> None:
    sizes = ((2, 3), (1, 2))
    leaves = {name: x.float().to(device) for name, x in drawn(*sizes).items()}
    leaves["embedding_and_temperature"][:, :, -1] = 200  # whose exponential is infinite
    given = arguments(*sizes, device)(leaves)
    out, expected = (neighborhood_pool_attention(**given, backend=backend) for backend in ("triton", "reference"))
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


def test_the_table_is_learnt_in_pieces_and_from_many_images(
    device: str, same: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "_PAIRS", 1)
    monkeypatch.setattr(triton, "_PROGRAMS", 4)
    sizes = ((9, 3), (2, 2))
    same(neighborhood_pool_attention, drawn(*sizes, batch=2), arguments(*sizes, device), torch.float32)


def test_two_runs_give_the_same_bits(device: str) -> None:
    sizes = ((2, 3), (2, 2)) if device == "cpu" else ((40, 60), (10, 15))  # only a GPU could mix up an order
    make = arguments(*sizes, device)
    leaves = {name: x.to(device, torch.float16).requires_grad_() for name, x in drawn(*sizes).items()}
    runs = []
    for _ in range(2):
        out = neighborhood_pool_attention(**make(leaves), backend="triton")
        runs.append([out, *torch.autograd.grad(out.float().square().sum(), list(leaves.values()))])
    assert all(map(torch.equal, *runs))


def test_an_interpolated_bias(device: str, same: Callable[..., None]) -> None:
    sizes = ((3, 4), (1, 2))
    usual = arguments(*sizes, device)
    rows, columns = torch.rand(3, 1, 5, device=device), torch.rand(4, 2, 7, device=device)

    def weighed(leaves: dict[str, Tensor]) -> dict[str, Any]:
        dtype = leaves["bias_table"].dtype
        return usual(leaves) | {"bias_rows": rows.to(dtype), "bias_columns": columns.to(dtype)}

    same(neighborhood_pool_attention, drawn(*sizes), weighed, torch.float32)


def test_derivatives_of_float64(device: str) -> None:
    if device != "cpu":
        pytest.skip("kernels take float64 in the interpreter only")
    sizes = ((2, 3), (1, 2))
    leaves, make = drawn(*sizes), arguments(*sizes)

    def run(*values: Tensor) -> Tensor:
        return neighborhood_pool_attention(**make(dict(zip(leaves, values, strict=True))), backend="triton")

    inputs = [x.requires_grad_() for x in leaves.values()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, check_undefined_grad=False)


def test_it_is_an_operator_that_compilers_understand(device: str) -> None:
    sizes = ((2, 3), (1, 2))
    leaves = {name: x.float().to(device).requires_grad_() for name, x in drawn(*sizes).items()}
    given = arguments(*sizes, device)(leaves)
    neighborhood_pool_attention(**given, backend="triton")  # registers it
    names = inspect.signature(triton.neighborhood_pool_attention).parameters
    torch.library.opcheck(torch.ops.vertebra.neighborhood_pool_attention, tuple(given[name] for name in names))
