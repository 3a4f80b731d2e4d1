"""What is particular to BiFormer; its numbers are in test_golden.py, its interface in test_contract.py."""

import itertools
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional
from vertebra.backbones import biformer
from vertebra.backbones.biformer import FlooredRoutedAttention, GlobalAttention, RoutedAttention

PARAMETERS = {
    "biformer_tiny": 13_142_760,
    "biformer_small": 25_536_232,
    "biformer_base": 56_804_968,
    "biformer_stl": 28_372_552,
    "biformer_stl_nchw": 28_372_552,
}
FEW = (1, 1, 1, 1)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_variant_has_its_published_number_of_parameters(variant: str) -> None:
    model = timm.create_model(variant, device="meta")
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize("variant", PARAMETERS)
def test_the_only_tag_is_in1k_and_a_share_is_no_url(variant: str) -> None:
    assert timm.list_models(f"{variant}.*", include_tags=True) == [f"{variant}.in1k"]
    assert not timm.get_pretrained_cfg(variant).url


# --- routing and attention ---


def attention(kind: type[RoutedAttention] = RoutedAttention, top_k: int = 4, n_win: int = 7) -> RoutedAttention:
    """In float64, with biases that count: those of padded tokens are all they have."""
    module = kind(64, top_k, n_win, auto_pad=True, dtype=torch.float64)
    nn.init.normal_(module.qkv.bias)
    return module.eval()


def by_hand(module: RoutedAttention, qkv: Tensor, counts: Tensor, tall: int, wide: int) -> Tensor:
    """Attention of one map (H, W, 3 C), which regions of tall x wide fill; `counts` (H, W): what is in the means."""
    height, width, dim = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    places = [
        (slice(row, row + tall), slice(column, column + wide))
        for row, column in itertools.product(range(0, height, tall), range(0, width, wide))
    ]
    regions = [qkv[place].reshape(tall * wide, 3, dim // 32, 32) for place in places]
    means = [qkv[place][counts[place]].mean(0) for place in places]
    out = qkv.new_zeros(height, width, dim)
    for place, region, mean in zip(places, regions, means, strict=True):
        scores = torch.stack([mean[:dim] @ other[dim : 2 * dim] for other in means])
        routed = torch.cat([regions[i] for i in scores.topk(min(module.top_k, len(regions)))[1]])
        weights = torch.einsum("qhd,khd->hqk", region[:, 0], routed[:, 1]).mul(dim**-0.5).softmax(-1)
        out[place] = torch.einsum("hqk,khd->qhd", weights, routed[:, 2]).reshape(tall, wide, dim)
    return out


@pytest.mark.parametrize("size", [(14, 21), (15, 20), (3, 33), (1, 1)])
@torch.no_grad()
def test_regions_of_a_padded_map_attend_as_the_authors_padded_code_does(size: tuple[int, int]) -> None:
    module, x = attention(), torch.randn(1, *size, 64, dtype=torch.float64)
    tall, wide = (-(-side // 7) for side in size)
    padded = functional.pad(x, (0, 0, 0, 7 * wide - size[1], 0, 7 * tall - size[0]))
    qkv = module.qkv(padded)
    out = by_hand(module, qkv[0], torch.ones(qkv.shape[1:3], dtype=torch.bool), tall, wide)
    lepe = functional.conv2d(
        qkv[..., 128:].permute(0, 3, 1, 2), module.lepe.weight, module.lepe.bias, padding=2, groups=64
    )
    expected = module.proj(out + lepe[0].permute(1, 2, 0))[: size[0], : size[1]]
    torch.testing.assert_close(module(x)[0], expected)


@pytest.mark.parametrize("size", [(14, 21), (15, 20), (13, 33), (3, 8), (1, 1)])
@torch.no_grad()
def test_floored_regions_attend_as_the_authors_second_code_does(size: tuple[int, int]) -> None:
    module, x = attention(FlooredRoutedAttention), torch.randn(1, *size, 64, dtype=torch.float64)
    tall, wide = (max(1, side // 7) for side in size)
    rows, columns = -(-size[0] // tall), -(-size[1] // wide)
    inner = module.qkv(x)
    edges = (0, columns * wide - size[1], 0, rows * tall - size[0])
    counts = functional.pad(torch.ones(size, dtype=torch.bool), edges)
    out = by_hand(module, functional.pad(inner, (0, 0, *edges))[0], counts, tall, wide)[: size[0], : size[1]]
    lepe = functional.conv2d(
        inner[..., 128:].permute(0, 3, 1, 2), module.lepe.weight, module.lepe.bias, padding=2, groups=64
    )
    torch.testing.assert_close(module(x)[0], module.proj(out + lepe[0].permute(1, 2, 0)))


@torch.no_grad()
def test_both_kinds_of_regions_are_one_where_they_divide_the_map() -> None:
    module, floored = attention(), attention(FlooredRoutedAttention)
    floored.load_state_dict(module.state_dict())
    x = torch.randn(2, 14, 28, 64, dtype=torch.float64)
    torch.testing.assert_close(floored(x), module(x))


@pytest.mark.parametrize("script", [False, True])
@torch.no_grad()
def test_autocast_does_not_change_where_regions_are_routed(script: bool) -> None:
    route = torch.jit.script(biformer._route) if script else biformer._route
    qkv = torch.randn(2, 14, 21, 192) * 1e-3 + torch.randn(192)
    expected = route(qkv.double(), (7, 7), 2, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(route(qkv, (7, 7), 2, 3, 4), expected)
    assert not torch.equal(route(qkv.bfloat16(), (7, 7), 2, 3, 4), expected)  # the regions are as close as that


def test_routing_sends_no_gradient() -> None:
    module = attention(top_k=1)
    x = torch.randn(1, 14, 14, 64, dtype=torch.float64, requires_grad=True)
    qkv = module.qkv(x)
    assert not biformer._route(qkv, (7, 7), 2, 2, 1).requires_grad
    qkv.retain_grad()
    module.attend(qkv, torch.zeros(1, 49, 1, dtype=torch.int64), (7, 7)).sum().backward()
    assert qkv.grad[:, 2:, 2:, 64:].count_nonzero() == 0  # only the first region was a key


@pytest.mark.parametrize("lepe_of_v", [False, True])
@torch.no_grad()
def test_the_last_stage_attends_with_8_heads_and_convolves_its_input_or_v(lepe_of_v: bool) -> None:
    module = GlobalAttention(64, lepe_of_v, dtype=torch.float64)
    assert module.qkv.bias is None
    x = torch.randn(2, 3, 5, 64, dtype=torch.float64)
    q, k, v = module.qkv(x).reshape(2, 15, 3, 8, 8).permute(2, 0, 3, 1, 4)
    out = ((q @ k.mT * 8**-0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 5, 64)
    convolved = v.transpose(1, 2).reshape(2, 3, 5, 64) if lepe_of_v else x
    lepe = functional.conv2d(convolved.permute(0, 3, 1, 2), module.lepe.weight, module.lepe.bias, padding=2, groups=64)
    torch.testing.assert_close(module(x), module.proj(out + lepe.permute(0, 2, 3, 1)))


# --- options and variants ---


@torch.no_grad()
def test_the_number_of_regions_changes_the_maps_and_not_the_weights() -> None:
    model = timm.create_model("biformer_tiny", depths=FEW).eval()
    x = torch.randn(1, 3, 128, 96)
    logits = model(x)
    for n_win in (1, 2, 8, 16):
        other = timm.create_model("biformer_tiny", depths=FEW, n_win=n_win).eval()
        other.load_state_dict(model.state_dict())
        assert other(x).isfinite().all()
        assert not torch.allclose(other(x), logits)


@pytest.mark.parametrize(("option", "value"), [("n_win", 0), ("n_win", 7.0), ("auto_pad", "no")])
def test_an_option_that_is_none_is_refused_in_a_sentence(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value!r}; it takes"):
        timm.create_model("biformer_tiny", **{option: value}, device="meta")


@pytest.mark.parametrize("variant", ["biformer_tiny", "biformer_stl", "biformer_stl_nchw"])
def test_without_padding_sizes_that_regions_do_not_fill_are_refused_in_a_sentence(variant: str) -> None:
    model = timm.create_model(variant, depths=FEW, auto_pad=False, device="meta")
    assert model(torch.empty(1, 3, 112, 224, device="meta")).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"auto_pad=False .* n_win=7 divides, and one is 28x32; .* multiples of 112 "):
        model(torch.empty(1, 3, 112, 128, device="meta"))


@torch.no_grad()
def test_padding_is_nothing_where_regions_fill_the_maps() -> None:
    model = timm.create_model("biformer_tiny", depths=FEW).eval()
    strict = timm.create_model("biformer_tiny", depths=FEW, auto_pad=False).eval()
    strict.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 112, 112)
    assert torch.equal(strict(x), model(x))


def test_stages_route_to_1_4_and_16_regions_and_the_last_does_not_route() -> None:
    model = timm.create_model("biformer_base", depths=FEW, device="meta")
    routed = [stage.blocks[0].attn for stage in model.stages]
    assert [(part.top_k, part.heads, part.scale) for part in routed[:3]] == [
        (1, 3, 96**-0.5),
        (4, 6, 192**-0.5),
        (16, 12, 384**-0.5),
    ]
    assert isinstance(routed[3], GlobalAttention)


@pytest.mark.parametrize("variant", ["biformer_stl", "biformer_stl_nchw"])
def test_swins_layout_has_no_convolution_before_attention_and_norms_before_it_shrinks(variant: str) -> None:
    model = timm.create_model(variant, depths=FEW, device="meta")
    assert not any("pos_embed" in key for key in model.state_dict())
    order = [[name for name, _ in stage.downsample.named_children()] for stage in model.stages]
    assert order == [["conv", "norm"]] + [["norm", "conv"]] * 3


# --- training ---


def test_all_matrices_and_kernels_are_decayed_and_nothing_else_is() -> None:
    model = timm.create_model("biformer_tiny", depths=FEW, device="meta")
    exempt, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert all(value.ndim <= 1 for value in exempt["params"])
    assert all(value.ndim > 1 for value in decayed["params"])


def test_weights_start_as_the_authors_start_theirs() -> None:
    torch.manual_seed(0)
    model = timm.create_model("biformer_tiny", depths=FEW)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert part.bias is None or part.bias.count_nonzero() == 0
        if isinstance(part, nn.Conv2d):
            bound = part.weight[0].numel() ** -0.5  # torch's own: uniform up to 1 / sqrt(fan in)
            assert part.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
            assert part.bias.count_nonzero() > 0
