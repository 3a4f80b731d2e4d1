"""The bias by distance of TransNeXt, against the authors' way: every pair's distance, and `torch.unique`."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from vertebra.backbones import _position_bias
from vertebra.backbones._position_bias import PositionBias
from vertebra.kernels import _kept
from vertebra.kernels.neighborhood_pool_attention import position_bias

Build = Callable[..., Any]
Size = tuple[int, int]


def authors_coordinates(queries: Size, keys: Size, unit: int) -> tuple[Tensor, Tensor]:
    """The distinct distances of a map and its pooled map (T, 2) and the place of each pair, by `torch.unique`."""
    axes = []
    for side, count in zip(queries, keys, strict=True):
        place = torch.arange(side, dtype=torch.float32)
        axes.append((place, functional.adaptive_avg_pool1d(place.reshape(1, 1, -1), count).flatten()))
    (rows, key_rows), (columns, key_columns) = axes
    query = torch.cartesian_prod(rows, columns)
    key = torch.cartesian_prod(key_rows, key_columns)
    distance = ((query.unsqueeze(1) - key) / unit * 8).reshape(-1, 2)
    distance, places = distance.unique(dim=0, return_inverse=True)
    return distance.sign() * (distance.abs() + 1).log2() / 3, places.reshape(len(query), len(key))


def authors_bias(module: PositionBias, queries: Size, keys: Size) -> Tensor:
    """(heads, H * W, ph * pw)."""
    coordinates, places = authors_coordinates(queries, keys, module.unit)
    return module.fc2(module.fc1(coordinates.to(module.fc1.weight.dtype)).relu()).T[:, places]


AXES = [(56, 7), (14, 7), (7, 7), (7, 3), (25, 4), (5, 2), (9, 4), (1, 1), (2, 1), (3, 1), (16, 7)]


@pytest.mark.parametrize(("queries", "keys"), AXES)
def test_distances_along_an_axis_are_those_that_torch_unique_finds(queries: int, keys: int) -> None:
    distances, places = _position_bias._axis(queries, keys, 13, torch.device("cpu"))
    expected, pairs = authors_coordinates((queries, 1), (keys, 1), 13)
    torch.testing.assert_close(distances[places], expected[pairs, 0])
    assert places.min() >= 0
    assert len(distances) <= 4 * queries - 3
    if queries % keys == 0:
        torch.testing.assert_close(distances, expected[:, 0])  # none that does not occur


@pytest.mark.parametrize(("queries", "keys"), [((6, 8), (3, 4)), ((5, 7), (2, 3)), ((1, 9), (1, 2)), ((4, 4), (4, 4))])
@torch.no_grad()
def test_the_table_holds_the_bias_of_every_pair(queries: Size, keys: Size) -> None:
    module = PositionBias(3, 13)
    bias = position_bias(*module(torch.empty(0), *queries, *keys))
    torch.testing.assert_close(bias, authors_bias(module, queries, keys))


@pytest.mark.parametrize(
    ("size", "sides"), [(224, [104, 52, 26, 13]), (256, [120, 60, 30, 15]), (800, [392, 196, 98, 49])]
)
def test_tables_have_as_many_rows_as_there_are_distances(size: int, sides: list[int]) -> None:
    maps = [size >> 2, size >> 3, size >> 4, size >> 5]
    axes = [
        _position_bias._axis(side, side // 2**i, 1, torch.device("cpu"))[0]
        for side, i in zip(maps, (3, 2, 1, 0), strict=True)
    ]
    assert [len(axis) for axis in axes] == sides


def test_a_table_in_pieces_is_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = PositionBias(3, 13), torch.empty(0)
    whole = module(x, 6, 8, 3, 4)[0]
    monkeypatch.setattr(_position_bias, "_PIECE", 2 * 512 * 14)  # two rows at a time
    with torch.no_grad():
        torch.testing.assert_close(module(x, 6, 8, 3, 4)[0], whole)


def test_distances_are_computed_once_a_size_for_all_blocks_of_all_forwards(
    small: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = small("transnext_micro", depths=(2, 2, 3, 2)), []
    inner = _position_bias._axis

    def watched(*sizes: Any) -> tuple[Tensor, Tensor]:
        asked.append(sizes[:3])
        return inner(*sizes)

    monkeypatch.setattr(_position_bias, "_axis", watched)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(1, 3, 64, 96))
    expected = [(16, 2, 55), (24, 3, 55), (8, 2, 27), (12, 3, 27), (4, 2, 13), (6, 3, 13), (2, 2, 6), (3, 3, 6)]
    assert asked == expected


def test_what_inference_computed_serves_a_training_at_the_same_size(small: Build) -> None:
    model, x = small("transnext_micro"), torch.randn(1, 3, 64, 96)
    _kept._made.cache_clear()
    with torch.inference_mode():
        expected = model(x).clone()
    logits = model.train()(x)
    logits.sum().backward()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


# --- interpolation ---


@pytest.mark.parametrize(("queries", "keys"), [((6, 8), (3, 4)), ((5, 7), (2, 3)), ((3, 3), (1, 1)), ((12, 9), (6, 4))])
@torch.no_grad()
def test_interpolation_resizes_the_bias_of_all_pairs_first_by_keys_then_by_queries(queries: Size, keys: Size) -> None:
    module = PositionBias(3, 13, own_queries=8, own_keys=4)
    resize = {"mode": "bilinear", "align_corners": False}
    full = authors_bias(module, (8, 8), (4, 4))
    full = functional.interpolate(full.reshape(3, 64, 4, 4), keys, **resize)  # (3, 8 * 8, *keys)
    full = full.flatten(2).mT.reshape(3, -1, 8, 8)
    full = functional.interpolate(full, queries, **resize).flatten(2).mT  # (3, H * W, ph * pw)
    given = position_bias(*module(torch.empty(0), *queries, *keys))
    torch.testing.assert_close(given, full, rtol=1e-4, atol=1e-5)


def both_ways(small: Build, variant: str) -> tuple[Any, Any]:
    """Two models with the same weights, and a bias that shows: extrapolation, and interpolation from 96 pixels."""
    model, other = small(variant), small(variant, position_bias="interpolation", bias_size=96)
    for key, value in model.named_parameters():
        if ".cpb." in key:
            nn.init.normal_(value)
    other.load_state_dict(model.state_dict())
    return model, other


@pytest.mark.parametrize("variant", ["transnext_micro", "transnext_micro_aaaa_256"])
@torch.no_grad()
def test_interpolation_from_the_size_of_the_image_is_extrapolation_to_it(small: Build, variant: str) -> None:
    model, other = both_ways(small, variant)
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(other(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(128, 96), (64, 64)])
@torch.no_grad()
def test_elsewhere_interpolation_is_another_bias(small: Build, size: Size) -> None:
    x = torch.randn(1, 3, *size)
    maps = [model.forward_intermediates(x, intermediates_only=True) for model in both_ways(small, "transnext_micro")]
    assert all((a - b).abs().max() > 0.01 * a.std() for a, b in zip(*maps, strict=True))


def test_without_a_size_interpolation_is_from_that_of_pretraining() -> None:
    def sides(**options: Any) -> list[Size]:
        model = timm.create_model("transnext_micro", depths=(1, 1, 1, 1), device="meta", **options)
        tables = [stage.blocks[0].attn.cpb for stage in model.stages]
        return [(table.own_queries, table.own_keys) for table in tables]

    assert sides() == [(0, 0)] * 4
    assert sides(bias_size=320) == [(0, 0)] * 4
    assert sides(position_bias="interpolation") == [(56, 7), (28, 7), (14, 7), (7, 7)]
    assert sides(position_bias="interpolation", pretrain_size=256) == [(64, 8), (32, 8), (16, 8), (8, 8)]
    assert sides(position_bias="interpolation", bias_size=800) == [(200, 25), (100, 25), (50, 25), (25, 25)]
    fixed = sides(position_bias="interpolation", bias_size=800, fixed_pool_size=7)
    assert fixed == [(200, 7), (100, 7), (50, 7), (25, 25)]
