"""What is particular to the fused MaxViT; what it shares is in test_fused.py, its numbers are in test_golden.py."""

import math
from itertools import product
from typing import Any

import pytest
import timm
import torch
from timm.layers.pool2d_same import AvgPool2dSame
from timm.models import maxxvit
from timm.models.maxxvit import MaxxVitTransformerCfg
from torch import Tensor, nn
from torch.nn import functional
from vertebra import fuse_attention
from vertebra.backbones import _mbconv_fused, model_names
from vertebra.backbones._mbconv_fused import FusedAvgPool2d, FusedAvgPool2dSame, FusedConv2dSame
from vertebra.backbones.maxvit_fused import checkpoint_filter_fn

NAMES = [name for name in model_names() if name.startswith("maxvit_")]
KINDS = {
    "rw": "maxvit_pico_rw_256",
    "rmlp": "maxvit_rmlp_pico_rw_256",
    "tf": "maxvit_tiny_tf_224",
    "pm": "maxvit_tiny_pm_256",
}
FEW = {"depths": (1, 1, 2, 1), "embed_dim": (32, 64, 96, 128)}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")


def drawn(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with tables and biases that count."""
    for key, value in model.double().eval().state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.8, 1.5)
        elif value.ndim > 1:
            value.normal_(std=1 if "table" in key else value[0].numel() ** -0.5)
        elif value.is_floating_point():
            value.normal_(1 if key.endswith("weight") else 0, 0.2)
    return model


# --- sizes ---


@pytest.mark.parametrize("variant", NAMES)
def test_windows_are_the_native_size_over_32(variant: str) -> None:
    model = timm.create_model(variant, depths=(1, 1, 1, 1), device="meta")
    side = int(variant.removesuffix("_fused").rpartition("_")[2]) // 32
    sizes = [part.partition_size for part in model.modules() if hasattr(part, "partition_size")]
    assert sizes == [(side, side)] * (4 if "_pm_" in variant else 8)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_image_that_timm_refuses_runs_once_attention_is_fused(kind: str) -> None:
    model = drawn(timm.create_model(KINDS[kind], **FEW)).float()
    x = torch.randn(1, 3, 203, 333)
    with pytest.raises((AssertionError, RuntimeError), match=r"divisible|must match"):
        model(x)
    assert fuse_attention(model)(x).isfinite().all()
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [tuple(level.shape[2:]) for level in maps] == [(102, 167), (51, 84), (26, 42), (13, 21), (7, 11)]


@pytest.mark.parametrize("size", [(224, 448), (223, 223)])
@torch.no_grad()
def test_an_odd_image_that_timm_takes_has_timms_logits_with_padding_as_tensorflows(size: tuple[int, int]) -> None:
    theirs = drawn(timm.create_model("maxvit_tiny_tf_224", **FEW))
    ours = timm.create_model("maxvit_tiny_tf_224_fused", **FEW).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@torch.no_grad()
def test_windows_follow_img_size_and_may_be_wider_than_tall() -> None:
    options = {"img_size": (64, 96), **FEW}
    for kind in KINDS.values():
        theirs = drawn(timm.create_model(kind, **options))
        ours = timm.create_model(f"{kind}_fused", **options).double().eval()
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, 3, 128, 96, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_timms_set_input_size_changes_the_windows_of_a_fused_model(kind: str) -> None:
    theirs = drawn(timm.create_model(KINDS[kind], img_size=64, **FEW))
    ours = timm.create_model(f"{KINDS[kind]}_fused", img_size=64, **FEW).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    ours(x)
    for model in (ours, theirs):
        model.set_input_size((96, 128))
    torch.testing.assert_close(ours(x), theirs(x))


# --- attention on maps that windows do not fill ---


def position_bias(rel_pos: nn.Module, tall: int, wide: int, heads: int) -> Tensor:
    """(heads, T, T): what the kind of `rel_pos` adds to the score of a query (row) and a key (column)."""
    tokens = list(product(range(tall), range(wide)))
    bias = torch.empty(heads, len(tokens), len(tokens), dtype=torch.float64)
    for (q, (qh, qw)), (k, (kh, kw)) in product(enumerate(tokens), enumerate(tokens)):
        if isinstance(rel_pos, maxxvit.RelPosBiasTf):
            bias[:, q, k] = rel_pos.relative_position_bias_table[:, kh - qh + tall - 1, kw - qw + wide - 1]
        elif isinstance(rel_pos, maxxvit.RelPosBias):
            row = (qh - kh + tall - 1) * (2 * wide - 1) + qw - kw + wide - 1
            bias[:, q, k] = rel_pos.relative_position_bias_table[row]
        else:
            away = torch.tensor([qh - kh, qw - kw], dtype=torch.float64)
            bias[:, q, k] = rel_pos.mlp(away.sign() * away.abs().log1p())
    return bias


def by_hand(attn: nn.Module, x: Tensor, window: tuple[int, int], grid: bool) -> Tensor:
    """Attention of one normed map (H, W, C): rows and columns of zeros fill it up, and are tokens like others."""
    (tall, wide), (height, width) = window, x.shape[:2]
    qkv = attn.qkv(functional.pad(x, (0, 0, 0, -width % wide, 0, -height % tall)))
    rows, columns = qkv.shape[0] // tall, qkv.shape[1] // wide
    heads = attn.num_heads
    order = (heads, 3, 32) if attn.head_first else (3, heads, 32)
    bias = position_bias(attn.rel_pos, tall, wide, heads)
    out = qkv.new_empty(*qkv.shape[:2], heads * 32)
    for a, b in product(range(rows), range(columns)):
        if grid:
            place = (slice(a, None, rows), slice(b, None, columns))
        else:
            place = (slice(a * tall, (a + 1) * tall), slice(b * wide, (b + 1) * wide))
        q, k, v = qkv[place].reshape(tall * wide, *order).unbind(2 if attn.head_first else 1)
        weights = (torch.einsum("qhd,khd->hqk", q, k) * 32**-0.5 + bias).softmax(-1)
        out[place] = torch.einsum("hqk,khd->qhd", weights, v).reshape(tall, wide, heads * 32)
    return attn.proj(out[:height, :width])


@pytest.mark.parametrize("size", [(4, 9), (5, 7), (1, 1), (3, 10)])
@pytest.mark.parametrize(("rel_pos_type", "head_first"), [("bias", True), ("bias_tf", False), ("mlp", True)])
@torch.no_grad()
def test_windows_and_grids_of_any_map_follow_the_rule_for_padding(
    rel_pos_type: str, head_first: bool, size: tuple[int, int]
) -> None:
    cfg = MaxxVitTransformerCfg(rel_pos_type=rel_pos_type, head_first=head_first, window_size=(2, 3), grid_size=(2, 3))
    model = nn.ModuleDict({kind: maxxvit.PartitionAttentionCl(64, kind, cfg) for kind in ("block", "grid")})
    model["parallel"] = maxxvit.ParallelPartitionAttention(128, cfg)
    fuse_attention(drawn(model))
    x = torch.randn(2, *size, 128, dtype=torch.float64)
    for kind in ("block", "grid"):
        given = model[kind]._partition_attn(x[..., :64])
        expected = [by_hand(model[kind].attn, image[..., :64], (2, 3), kind == "grid") for image in x]
        torch.testing.assert_close(given, torch.stack(expected))
    parts = [
        torch.stack([by_hand(attn, image, (2, 3), grid) for image in x])
        for attn, grid in ((model["parallel"].attn_block, False), (model["parallel"].attn_grid, True))
    ]
    torch.testing.assert_close(model["parallel"]._partition_attn(x), torch.cat(parts, -1))


def test_the_zeros_that_fill_a_map_come_behind_the_norm() -> None:
    cfg = MaxxVitTransformerCfg(window_size=(2, 3), grid_size=(2, 3))
    model = fuse_attention(drawn(maxxvit.PartitionAttentionCl(64, "grid", cfg)))
    x = torch.randn(1, 5, 7, 64, dtype=torch.float64)
    attended = x[0] + by_hand(model.attn, model.norm1(x[0]), (2, 3), grid=True)
    torch.testing.assert_close(model(x)[0], attended + model.mlp(model.norm2(attended)))


@torch.no_grad()
def test_a_halving_pool_is_the_mean_of_the_pixels_there_are_and_tensorflows_counts_zeros() -> None:
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    kept, same = nn.AvgPool2d(2), AvgPool2dSame(2, 2)
    kept.__class__, same.__class__ = FusedAvgPool2d, FusedAvgPool2dSame
    assert kept(x).tolist() == [[[[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]]]
    assert same(x).tolist() == [[[[3.0, 5.0, 3.25], [5.25, 6.25, 3.5]]]]


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (8, 5), (1, 3)])
@torch.no_grad()
def test_a_halving_convolution_pads_as_tensorflow_does(size: tuple[int, int]) -> None:
    conv, x = maxxvit.create_conv2d(3, 4, 3, stride=2, padding="same", bias=True), torch.randn(2, 3, *size)
    expected = conv(x)
    conv.__class__ = FusedConv2dSame
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_that_halves_the_map_has_a_form_for_odd_ones(kind: str) -> None:
    model = timm.create_model(f"{KINDS[kind]}_fused", **FEW, device="meta")
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)]
    pools = [part for part in model.modules() if isinstance(part, nn.AvgPool2d)]
    assert len(convolutions) == 5
    assert len(pools) == 4
    assert {type(part) for part in pools} == {FusedAvgPool2dSame if kind == "tf" else FusedAvgPool2d}
    assert {type(part) for part in convolutions} == {FusedConv2dSame if kind == "tf" else nn.Conv2d}


# --- training ---


def test_the_mlp_of_a_position_bias_drops_in_training_only() -> None:
    model = timm.create_model("maxvit_rmlp_pico_rw_256_fused", img_size=64, **FEW)
    rel_pos = model.stages[0].blocks[0].attn_block.attn.rel_pos
    assert not torch.equal(rel_pos.table(), rel_pos.table())
    rel_pos.eval()
    assert torch.equal(rel_pos.table(), rel_pos.table())


@pytest.mark.parametrize("kind", KINDS)
def test_position_biases_are_not_decayed(kind: str) -> None:
    model = timm.create_model(f"{KINDS[kind]}_fused", **FEW, device="meta")
    assert model.no_weight_decay() == {key for key, _ in model.named_parameters() if "rel_pos" in key}
    assert len(model.no_weight_decay()) == 10 * (4 if kind == "rmlp" else 1)


# --- weights ---


def with_tables(options: dict[str, Any], kind: str) -> tuple[dict[str, Tensor], nn.Module]:
    """The weights of a model with windows of 2 x 2, and a model of ours built with other options."""
    weights = drawn(timm.create_model(KINDS[kind], img_size=64, **FEW)).float().state_dict()
    return weights, timm.create_model(f"{KINDS[kind]}_fused", **FEW, **options)


@pytest.mark.parametrize("img_size", [128, (96, 128)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tables_are_resized_to_other_windows_as_timm_does(kind: str, img_size: int | tuple[int, int]) -> None:
    weights, model = with_tables({"img_size": img_size}, kind)
    given, expected = checkpoint_filter_fn(weights, model), maxxvit.checkpoint_filter_fn(weights, model)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], expected[key]) for key in expected)
    resized = [key for key in given if given[key].shape != weights[key].shape]
    assert len(resized) == (0 if kind == "rmlp" else 10)
    assert all(key.endswith("relative_position_bias_table") for key in resized)
    model.load_state_dict(given)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_tables_are_resized_in_a_detectors_file_too(prefix: str) -> None:
    weights, model = with_tables({"img_size": 128}, "tf")
    trunk = {prefix + key: value for key, value in weights.items() if not key.startswith("head.")}
    given = checkpoint_filter_fn(trunk, model)
    expected = maxxvit.checkpoint_filter_fn(weights, model)
    assert all(torch.equal(given[key], expected[key]) for key in given if key.startswith("stages."))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_that_fit_stay_as_they_are_in_windows_that_are_not_square_too(kind: str) -> None:
    model = timm.create_model(f"{KINDS[kind]}_fused", img_size=(64, 96), **FEW)
    weights = drawn(model).float().state_dict()
    given = checkpoint_filter_fn(weights, model)
    assert all(given[key] is weights[key] for key in weights)


def test_linear_layers_take_weights_of_pointwise_convolutions() -> None:
    weights, model = with_tables({"img_size": 64}, "tf")
    layers = [key for key in weights if key.endswith((".qkv.weight", ".proj.weight", ".fc1.weight", ".fc2.weight"))]
    linear = [key for key in layers if ".attn_" in key]
    file = weights | {key: weights[key][:, :, None, None] for key in linear}
    given = checkpoint_filter_fn(file, model)
    assert len(linear) == 40
    assert all(torch.equal(given[key], weights[key]) for key in weights)


def test_a_table_of_another_number_of_heads_is_refused_by_key() -> None:
    weights, model = with_tables({"img_size": 64}, "tf")
    key = "stages.1.blocks.0.attn_grid.attn.rel_pos.relative_position_bias_table"
    weights[key] = torch.zeros(5, 3, 3)
    with pytest.raises(ValueError, match=rf"wrongly shaped key.* \({key} "):
        checkpoint_filter_fn(weights, model)


@pytest.mark.parametrize("fused", ["maxvit_tiny_tf_224_fused", "maxvit_rmlp_pico_rw_256_fused"])
@torch.no_grad()
def test_wide_maps_made_in_pieces_are_the_same(fused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = timm.create_model(fused, depths=(1, 1, 1, 1)).eval(), torch.randn(1, 3, 75, 96)
    monkeypatch.setattr(_mbconv_fused, "_WIDE", math.inf)
    expected = model(x)
    called = []
    for block in model.modules():
        if isinstance(block, _mbconv_fused.FusedMbConvBlock):
            inner = block._in_pieces
            monkeypatch.setattr(block, "_in_pieces", lambda x, inner=inner: called.append(1) or inner(x))
    monkeypatch.setattr(_mbconv_fused, "_WIDE", 0)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert len(called) == 4
