"""Attention maps are true: what is drawn is what the operators compute, for every family and with padding."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional
from vertebra.backbones import cswin
from vertebra.kernels.linear_attention import linear_attention
from vertebra.kernels.neighborhood_pool_attention import neighborhood_pool_attention
from vertebra.kernels.routing_attention import routing_attention
from vertebra.kernels.window_attention import window_attention
from vertebra.tools._visualize.attention_maps import Call, has_map, record, weights

FOUR = (1, 1, 1, 1)
MODELS: dict[str, dict[str, Any]] = {
    "biformer_tiny": {"depths": FOUR},
    "biformer_stl": {"depths": FOUR},
    "biformer_stl_nchw": {"depths": FOUR},
    "cswin_tiny": {"depths": FOUR},
    "davit_tiny_fused": {"depths": FOUR},
    "l2vit_tiny": {"depths": (2, 1, 1, 1)},
    "litv2_small": {"depths": FOUR},
    "maxvit_pico_rw_256_fused": {"depths": FOUR},
    "shvit_s1_fused": {"depths": (1, 1, 1)},
    "transnext_micro": {"depths": FOUR},
}
SORTS = {
    "biformer_tiny": {"routing_attention", "global_attention"},
    "biformer_stl": {"routing_attention", "global_attention"},
    "biformer_stl_nchw": {"routing_attention", "global_attention"},
    "cswin_tiny": {"window_attention", "global_attention"},
    "davit_tiny_fused": {"window_attention", "channel_attention"},
    "l2vit_tiny": {"window_attention", "linear_attention"},
    "litv2_small": {"window_attention", "global_attention"},
    "maxvit_pico_rw_256_fused": {"window_attention, block", "window_attention, grid"},
    "shvit_s1_fused": {"global_attention"},
    "transnext_micro": {"neighborhood_pool_attention", "global_attention"},
}
SIZE = (75, 90)  # windows, regions, pooling: none of them divides its map


@cache
def calls_of(name: str) -> list[Call]:
    torch.manual_seed(0)
    model = timm.create_model(name, **MODELS[name]).eval()
    return record(model, torch.randn(1, 3, *SIZE))


def maps_of(name: str) -> list[Call]:
    return [call for call in calls_of(name) if has_map(call)]


def places_to_ask(call: Call) -> list[tuple[int, int]]:
    """The first token, one in the middle, and the last, which padding is nearest to."""
    height, width = call.size
    return [(0, 0), (height // 2, width // 3), (height - 1, width - 1)]


def with_values(call: Call, places: Tensor) -> dict[str, Any]:
    """The operator's arguments, its values replaced by what its family makes of values of the places, padding zero.

    `places`: (1, H, W, heads, D).
    """
    given = dict(call.arguments)
    height, width = call.size
    heads = places.shape[3]
    image = places.flatten(3).permute(0, 3, 1, 2)  # (1, heads * D, H, W)
    if call.operator is neighborhood_pool_attention:
        sides = (given["bias_rows"].shape[1], given["bias_columns"].shape[1])
        pooled = functional.adaptive_avg_pool2d(image, sides)
        return given | {"v": places, "pool_v": pooled.flatten(2).transpose(1, 2).unflatten(2, (heads, -1))}
    if call.operator is window_attention:
        pad = given.get("pad")
        zero = None if pad is None else torch.cat([pad[:2], torch.zeros_like(pad[2:])])
        return given | {"v": places, "pad": zero, "lepe_weight": None, "lepe_bias": None}
    if call.operator is routing_attention:
        below, right = (full - side for full, side in zip(given["v"].shape[1:3], (height, width), strict=True))
        return given | {"v": functional.pad(places, (0, 0, 0, 0, 0, right, 0, below))}
    if given["v"].shape[1] == height * width:
        return given | {"v": places.flatten(1, 2)}
    side = call.module.window
    filled = functional.pad(image, (0, -width % side, 0, -height % side))
    return given | {"v": functional.avg_pool2d(filled, side).flatten(2).transpose(1, 2).unflatten(2, (heads, -1))}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_token_gets_is_the_sum_of_the_places_by_their_weights(name: str) -> None:
    for call in maps_of(name):
        places = torch.randn(1, *call.size, call.heads, call.arguments["v"].shape[-1])
        out = call.operator(**with_values(call, places)).detach()
        for row, column in places_to_ask(call):
            found, _ = weights(call, row, column)
            at = out[0, row, column] if out.dim() == 4 else out[0, row * call.size[1] + column]
            summed = torch.einsum("hyx,yxhd->hd", found, places[0]).flatten()
            torch.testing.assert_close(summed, at, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_a_softmax_sum_to_1_with_those_of_padding(name: str) -> None:
    for call in maps_of(name):
        if call.operator is linear_attention:
            continue
        if call.operator is neighborhood_pool_attention:  # its learned tokens are added behind the softmax
            off = {key: torch.zeros_like(call.arguments[key]) for key in ("learnable_tokens", "learnable_bias")}
            call = replace(call, arguments=call.arguments | off)
        for row, column in places_to_ask(call):
            found, outside = weights(call, row, column)
            assert found.min() >= 0
            torch.testing.assert_close(found.sum((1, 2)) + outside, torch.ones(call.heads), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_sort_of_attention_of_a_family_is_noted(name: str) -> None:
    assert {call.kind for call in calls_of(name)} == SORTS[name]


def test_a_call_knows_its_module_its_stage_and_its_map() -> None:
    low, high, last = calls_of("litv2_small")
    assert [call.layer for call in (low, high, last)] == [
        "stages.2.blocks.0.attn.lo",
        "stages.2.blocks.0.attn.hi",
        "stages.3.blocks.0.attn.lo",
    ]
    assert (high.stage, high.stride, high.size) == ("stages.2", 16, (4, 5))


def test_attention_among_channels_has_no_map() -> None:
    assert [has_map(call) for call in calls_of("davit_tiny_fused")] == [True, False] * 4


def test_a_model_without_attention_has_no_calls() -> None:
    assert record(timm.create_model("van_b0", depths=FOUR).eval(), torch.randn(1, 3, 64, 64)) == []


def test_listening_leaves_nothing_behind_where_the_model_fails_too() -> None:
    model = timm.create_model("cswin_tiny", depths=FOUR).eval()
    model.stages[2].blocks[0].attn.heads = 5  # which does not divide its channels
    with pytest.raises(RuntimeError):
        record(model, torch.randn(1, 3, 64, 64))
    assert cswin.window_attention is window_attention
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
