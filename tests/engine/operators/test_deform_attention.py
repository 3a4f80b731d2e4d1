"""Multi-scale deformable attention through mmcv.ops, against a plain loop over queries, heads, levels and points."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from vertebra.engine.operators import deform_attention as module
from vertebra.engine.operators import live

ops = pytest.importorskip("mmcv.ops")
mmcv_module = pytest.importorskip("mmcv.ops.multi_scale_deform_attn")
pytestmark = pytest.mark.skipif(live()["source"] != "vertebra", reason="this mmcv has compiled operators")

SHAPES = torch.tensor([[5, 7], [3, 4], [1, 2]])
STARTS = torch.tensor([0, 35, 47])
BATCH, QUERIES, HEADS, DIM, POINTS = 2, 5, 2, 3, 2


def arguments(dtype: torch.dtype = torch.float64, batch: int = BATCH, queries: int = QUERIES) -> list[Tensor]:
    """Value, locations (some outside the maps) and weights."""
    value = torch.randn(batch, int(SHAPES.prod(1).sum()), HEADS, DIM, dtype=torch.float64)
    locations = torch.rand(batch, queries, HEADS, len(SHAPES), POINTS, 2, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(locations.shape[:-1], dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (value, locations, weights)]


def through_mmcv(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return mmcv_module.MultiScaleDeformableAttnFunction.apply(value, SHAPES, STARTS, locations, weights, 64)


def ours(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return module.deform_attention(value, SHAPES, locations, weights)


def by_definition(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    outputs = []
    for b in range(len(value)):
        for q in range(locations.shape[1]):
            for h in range(HEADS):
                total = value.new_zeros(DIM)
                for level, ((rows, columns), start) in enumerate(zip(SHAPES.tolist(), STARTS.tolist(), strict=True)):
                    for p in range(POINTS):
                        x, y = locations[b, q, h, level, p] * torch.tensor([columns, rows]) - 0.5
                        for row in (int(y.floor()), int(y.floor()) + 1):
                            for column in (int(x.floor()), int(x.floor()) + 1):
                                if 0 <= row < rows and 0 <= column < columns:
                                    share = (1 - (y - row).abs()) * (1 - (x - column).abs())
                                    pixel = value[b, start + row * columns + column, h]
                                    total = total + weights[b, q, h, level, p] * share * pixel
                outputs.append(total)
    return torch.stack(outputs).view(len(value), -1, HEADS * DIM)


WAYS = pytest.mark.parametrize("attention", [through_mmcv, ours])
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@WAYS
def test_outputs_and_gradients_by_their_definition(attention: Attention) -> None:
    given = arguments()
    found, expected = attention(*given), by_definition(*given)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, given, weights), torch.autograd.grad(expected, given, weights)
    )


def test_gradients_agree_with_finite_differences() -> None:
    assert torch.autograd.gradcheck(through_mmcv, arguments(queries=2), fast_mode=True)


def test_it_is_the_function_that_mmcv_calls_on_a_cpu() -> None:
    given = arguments(torch.float32, queries=50)
    found = ours(*given)
    expected = mmcv_module.multi_scale_deformable_attn_pytorch(given[0], SHAPES.tolist(), *given[1:])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sample_exactly_one_pixel_outside_has_no_gradient(axis: int) -> None:
    value, locations, weights = arguments(queries=1)
    with torch.no_grad():
        locations[:] = 0.4
        locations[..., axis] = -0.5 / SHAPES.flip(1)[:, None, axis]
    output = through_mmcv(value, locations, weights)
    assert not output.any()
    assert not any(grad.any() for grad in torch.autograd.grad(output.sum(), (value, locations, weights)))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e30])
def test_a_location_far_away_or_no_number_reads_nothing(number: float) -> None:
    value, locations, weights = arguments()
    with torch.no_grad():
        locations[0, 0] = number
    output = through_mmcv(value, locations, weights)
    grads = torch.autograd.grad(output.sum(), (value, locations, weights))
    assert not output[0, 0].any()
    assert output[0, 1:].all()
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][0, 0].any()


@WAYS
def test_queries_are_taken_in_parts(attention: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments()
    whole = attention(*given)
    weights = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, given, weights)
    monkeypatch.setattr(module, "_CORNERS", 3 * 4 * given[2][0, 0].numel())  # three queries; the second crosses images
    parts = attention(*given)
    assert torch.equal(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, given, weights), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@WAYS
def test_half_precision_is_rounded_once(attention: Attention, dtype: torch.dtype) -> None:
    given = arguments(dtype)
    found = attention(*given)
    assert found.dtype == dtype
    assert torch.equal(found, attention(*(x.float() for x in given)).to(dtype))
    assert all(x.dtype == dtype for x in torch.autograd.grad(found.sum(), given))


@WAYS
def test_memory_layout_does_not_matter(attention: Attention) -> None:
    given = arguments()
    strided = [x.detach().transpose(1, -1).contiguous().transpose(1, -1).requires_grad_() for x in given]
    found, expected = attention(*strided), attention(*given)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape[::-1], dtype=torch.float64).permute(2, 1, 0)
    grads = torch.autograd.grad(found, strided, weights), torch.autograd.grad(expected, given, weights)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("batch", "queries"), [(0, QUERIES), (BATCH, 0)])
@WAYS
def test_no_images_and_no_queries(attention: Attention, batch: int, queries: int) -> None:
    given = arguments(batch=batch, queries=queries)
    output = attention(*given)
    assert output.shape == (batch, queries, HEADS * DIM)
    assert not any(grad.any() for grad in torch.autograd.grad(output.sum(), given))


def test_the_backward_does_not_depend_on_chance() -> None:
    given = arguments(torch.float32, queries=200)
    first, second = (torch.autograd.grad(through_mmcv(*given).sum(), given) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_module_runs_and_trains() -> None:
    layer = ops.MultiScaleDeformableAttention(embed_dims=8, num_heads=2, num_levels=3, num_points=2, batch_first=True)
    query, value = torch.randn(2, 4, 8), torch.randn(2, 49, 8)
    points = torch.rand(2, 4, 3, 2)
    out = layer(query, value=value, reference_points=points, spatial_shapes=SHAPES, level_start_index=STARTS)
    out.square().sum().backward()
    assert out.shape == query.shape
    assert layer.value_proj.weight.grad.any()
    assert layer.sampling_offsets.weight.grad.any()
