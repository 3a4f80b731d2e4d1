"""What is particular to the fused DaViT; what it shares is in test_fused.py, its numbers are in test_golden.py."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import davit, group_parameters
from torch import Tensor, nn
from vertebra import fuse_attention
from vertebra.backbones.davit_fused import FusedChannelAttention, FusedWindowAttention, checkpoint_filter_fn

FEW = {"depths": (1, 1, 2, 1), "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)}


def drawn(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with biases that count: those of padded tokens are all they have."""
    for value in model.double().eval().parameters():
        nn.init.normal_(value, std=value[0].numel() ** -0.5 if value.ndim > 1 else 0.5)
    return model


def twins(**options: Any) -> tuple[nn.Module, nn.Module]:
    """Our model and timm's, with the same weights."""
    theirs = drawn(timm.create_model("davit_tiny", **FEW, **options))
    ours = timm.create_model("davit_tiny_fused", **FEW, **options).double().eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


# --- attention ---


@pytest.mark.parametrize("size", [(7, 14), (5, 9), (1, 1), (15, 3)])
@torch.no_grad()
def test_padded_tokens_of_a_window_are_keys_whose_projection_is_the_bias(size: tuple[int, int]) -> None:
    attn = drawn(davit.WindowAttention(32, (7, 7), 4))
    attn.__class__ = FusedWindowAttention
    x = torch.randn(1, *size, 32, dtype=torch.float64)
    height, width = (-(-side // 7) * 7 for side in size)
    qkv = attn.qkv.bias.repeat(height, width, 1)
    qkv[: size[0], : size[1]] = attn.qkv(x[0])
    out = torch.empty(height, width, 32, dtype=torch.float64)
    for row in range(0, height, 7):
        for column in range(0, width, 7):
            place = (slice(row, row + 7), slice(column, column + 7))
            q, k, v = qkv[place].reshape(49, 3, 4, 8).unbind(1)
            weights = torch.einsum("qhd,khd->hqk", q, k).mul(8**-0.5).softmax(-1)
            out[place] = torch.einsum("hqk,khd->qhd", weights, v).reshape(7, 7, 32)
    torch.testing.assert_close(attn(x)[0], attn.proj(out[: size[0], : size[1]]))


@torch.no_grad()
def test_channels_attend_over_the_whole_map_and_not_over_padding() -> None:
    attn = drawn(davit.ChannelAttention(32, 4, qkv_bias=True))
    attn.__class__ = FusedChannelAttention
    x = torch.randn(2, 5, 9, 32, dtype=torch.float64)
    q, k, v = attn.qkv(x).reshape(2, 45, 3, 4, 8).unbind(2)
    matrix = torch.einsum("bnhi,bnhj->bhij", k * 8**-0.5, v).softmax(-1)
    out = torch.einsum("bhij,bnhj->bnhi", matrix, q).reshape(2, 5, 9, 32)
    torch.testing.assert_close(attn(x), attn.proj(out))


@pytest.mark.parametrize(
    "options",
    [
        {"window_size": 12},
        {"window_size": 3},
        {"cpe_act": True},
        {"head_norm_first": True},
        {"down_kernel_size": 3},
        {"qkv_bias": False},
        {"channel_attn_v2": True},
        {"named_blocks": True},
        {"attn_types": ("spatial",)},
        {"attn_types": ("channel", "spatial")},
        {"mlp_ratio": 2.0},
        {"norm_eps": 0.1},
        {"num_classes": 0},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_option_of_timms_gives_what_it_gives_there(options: dict[str, Any]) -> None:
    ours, theirs = twins(**options)
    x = torch.randn(2, 3, 77, 98, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("size", [(200, 300), (97, 131), (33, 34)])
@torch.no_grad()
def test_maps_of_sizes_that_no_window_fills_are_timms(size: tuple[int, int]) -> None:
    ours, theirs = twins(num_classes=0)
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    given, expected = (model.forward_intermediates(x, norm=True) for model in (ours, theirs))
    torch.testing.assert_close(given, expected)


def test_blocks_of_a_subclass_that_nobody_here_knows_stay_as_they_are() -> None:
    class Own(davit.WindowAttention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model = drawn(timm.create_model("davit_tiny", **FEW))
    model.stages[1].blocks[0][0].attn.__class__ = Own
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        fuse_attention(model)
        torch.testing.assert_close(model(x), expected)
    assert type(model.stages[1].blocks[0][0]) is davit.SpatialBlock
    assert type(model.stages[1].blocks[0][0].attn) is Own
    assert type(model.stages[0].blocks[0][0]) is not davit.SpatialBlock


# --- head and training ---


def test_the_norm_in_the_head_goes_where_that_is_asked_for() -> None:
    x = torch.randn(2, 3, 64, 64)
    model = timm.create_model("davit_tiny_fused", **FEW).eval()
    with torch.no_grad():
        nn.init.normal_(model.head.norm.weight)
        model.reset_classifier(0, "")
        assert not torch.equal(model(x), model.forward_features(x))
        model.reset_classifier(0, "", reset_other=True)
        assert torch.equal(model(x), model.forward_features(x))


def test_both_blocks_of_a_pair_are_dropped_at_one_rate() -> None:
    model = timm.create_model("davit_tiny_fused", **FEW, drop_path_rate=0.4, device="meta")
    rates = [
        [getattr(part, "drop_prob", 0.0) for block in pair for part in (block.drop_path1, block.drop_path2)]
        for stage in model.stages
        for pair in stage.blocks
    ]
    assert rates == [pytest.approx([0.1 * i] * 4) for i in range(5)]


def test_all_but_vectors_is_decayed() -> None:
    assert timm.create_model("davit_tiny_fused", device="meta").no_weight_decay() == set()


def test_a_final_norm_before_pooling_is_in_the_last_blocks_group() -> None:
    model = timm.create_model("davit_tiny_fused", **FEW, head_norm_first=True, device="meta")
    groups = group_parameters(model, model.group_matcher())
    of_key = {key: number for number, keys in groups.items() for key in keys}
    assert of_key["norm_pre.weight"] == of_key["stages.3.blocks.0.1.mlp.fc2.weight"]
    assert of_key["stages.3.downsample.conv.weight"] == of_key["stages.3.blocks.0.0.norm1.weight"]
    assert of_key["head.fc.weight"] > of_key["norm_pre.weight"]
    assert of_key["stem.norm.weight"] == 0


# --- weights ---


def authors(key: str) -> str:
    """timm's key -> the authors'."""
    key = re.sub(r"^stem\.", "patch_embeds.0.", key)
    key = re.sub(r"^stages\.(\d)\.downsample\.", r"patch_embeds.\1.", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", r"main_blocks.\1.", key)
    key = re.sub(r"^(patch_embeds\.\d)\.conv\.", r"\1.proj.", key)
    key = re.sub(r"\.cpe([12])\.", lambda found: f".cpe.{int(found[1]) - 1}.", key)
    return key.replace("head.norm.", "norms.").replace("head.fc.", "head.")


def florence(key: str) -> str:
    """timm's key -> Florence-2's."""
    key = re.sub(r"^stem\.", "convs.0.", key)
    key = re.sub(r"^stages\.(\d)\.downsample\.", r"convs.\1.", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", r"blocks.\1.", key)
    key = re.sub(r"^(convs\.\d)\.conv\.", r"\1.proj.", key)
    key = re.sub(r"\.(spatial|channel)_block\.norm1\.", lambda m: f".{m[1]}_block.{ATTENTION[m[1]]}.norm.", key)
    key = re.sub(r"\.(spatial|channel)_block\.attn\.", lambda m: f".{m[1]}_block.{ATTENTION[m[1]]}.fn.", key)
    key = re.sub(r"\.cpe([12])\.proj\.", r".conv\1.fn.dw.", key)
    return "vision_tower." + key.replace(".norm2.", ".ffn.norm.").replace(".mlp.", ".ffn.fn.net.")


ATTENTION = {"spatial": "window_attn", "channel": "channel_attn"}


def numbered(model: nn.Module, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """A file with the renamed keys of `model`, and another number in each."""
    items = enumerate(model.state_dict().items())
    return {rename(key): torch.full(value.shape, float(i)) for i, (key, value) in items}


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "huge", "giant"])
def test_the_authors_keys_are_timms_one_by_one(size: str) -> None:
    model = timm.create_model(f"davit_{size}_fused", depths=(1, 1, 2, 1), device="meta")
    file = {authors(key): value for key, value in model.state_dict().items()}
    assert len(file) == len(model.state_dict())
    assert not set(file) & set(model.state_dict())
    given = checkpoint_filter_fn(file, model)
    assert all(given[key] is file[authors(key)] for key in model.state_dict())


def test_the_keys_of_the_authors_own_file_are_read_as_timm_reads_them(golden: Callable[[str], Any]) -> None:
    file = golden("davit_tiny.official").weights()
    assert {"patch_embeds.0.proj.weight", "main_blocks.2.1.0.cpe.1.proj.bias", "norms.weight"} <= set(file)
    model = timm.create_model("davit_tiny_fused", device="meta")
    given, expected = checkpoint_filter_fn(file, model), davit.checkpoint_filter_fn(dict(file), model)
    assert set(given) == set(expected)
    assert all(given[key] is expected[key] for key in expected)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_output_norms_of_a_detector_are_left_out(prefix: str) -> None:
    model = timm.create_model("davit_tiny_fused", **FEW, num_classes=0)
    trunk = {
        prefix + key: value for key, value in numbered(model, authors).items() if not key.startswith(("norms.", "head"))
    }
    norms = {f"{prefix}norm{i}.{part}": torch.ones(8) for i in range(4) for part in ("weight", "bias")}
    given = checkpoint_filter_fn({"state_dict": trunk | norms}, model)
    assert set(given) == set(model.state_dict())
    assert all(given[key] is trunk[prefix + authors(key)] for key in given if not key.startswith("head."))


@pytest.mark.parametrize("size", ["base", "huge"])
def test_florence_2s_whole_file_gives_its_image_tower_as_timm_reads_it(size: str) -> None:
    model = timm.create_model(f"davit_{size}_fl_fused", depths=(1, 1, 2, 1), device="meta")
    tower = {florence(key): value for key, value in model.state_dict().items() if not key.startswith("head.")}
    assert "vision_tower.blocks.2.1.channel_block.channel_attn.fn.qkv.weight" in tower
    assert "vision_tower.blocks.0.0.spatial_block.ffn.fn.net.fc1.weight" in tower
    others = {"language_model.model.shared.weight": torch.ones(3), "image_proj_norm.weight": torch.ones(3)}
    given = checkpoint_filter_fn(tower | others, model)
    expected = davit.checkpoint_filter_fn(tower | others, model)
    assert set(given) == set(model.state_dict())
    assert len(expected) == len(tower)
    assert all(given[key] is expected[key] for key in expected)


def test_a_window_without_pixels_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="window_size is 0; it takes a whole number of pixels, 1 or more"):
        timm.create_model("davit_tiny_fused", window_size=0, device="meta")


@torch.no_grad()
def test_windows_may_have_two_sides() -> None:
    model = timm.create_model("davit_tiny_fused", **FEW, window_size=(3, 5)).eval()
    theirs = timm.create_model("davit_tiny", **FEW, window_size=(3, 5)).eval()
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=1e-5)
