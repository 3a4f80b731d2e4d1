"""What is particular to CSWin; its numbers are in test_golden.py, its interface in test_contract.py."""

import math
from itertools import product
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from vertebra.backbones.cswin import CrossAttention, MapAttention, checkpoint_filter_fn

PARAMETERS = {
    "cswin_tiny": 22_320_552,
    "cswin_small": 34_643_304,
    "cswin_base": 77_382_184,
    "cswin_large": 173_262_664,
    "cswin_base_384": 77_382_184,
    "cswin_large_384": 173_262_664,
}
FEW = (1, 1, 1, 1)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_variant_has_its_published_number_of_parameters(variant: str) -> None:
    model = timm.create_model(variant, device="meta")
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize(
    ("variant", "depths", "heads"),
    [
        ("cswin_tiny", [1, 2, 21, 1], [2, 4, 8, 16]),
        ("cswin_small", [2, 4, 32, 2], [2, 4, 8, 16]),
        ("cswin_base", [2, 4, 32, 2], [4, 8, 16, 32]),
        ("cswin_large", [2, 4, 32, 2], [6, 12, 24, 24]),
        ("cswin_base_384", [2, 4, 32, 2], [4, 8, 16, 32]),
        ("cswin_large_384", [2, 4, 32, 2], [6, 12, 24, 24]),
    ],
)
def test_every_variant_has_its_published_depths_heads_and_stripes(
    variant: str, depths: list[int], heads: list[int]
) -> None:
    model = timm.create_model(variant, device="meta")
    attentions = [[block.attn for block in stage.blocks] for stage in model.stages]
    assert [len(stage) for stage in attentions] == depths
    assert [{attn.heads for attn in stage} for stage in attentions] == [{number} for number in heads]
    stripes = (1, 2, 12) if variant.endswith("_384") else (1, 2, 7)
    assert [{attn.stripe for attn in stage} for stage in attentions[:3]] == [{stripe} for stripe in stripes]
    assert {type(attn) for stage in attentions[:3] for attn in stage} == {CrossAttention}
    assert {type(attn) for attn in attentions[3]} == {MapAttention}


def test_weights_come_by_direct_links_with_the_crop_of_their_test() -> None:
    def facts(tagged: str) -> tuple[str, int, tuple[int, ...], float]:
        cfg = timm.get_pretrained_cfg(tagged)
        return cfg.url.rpartition("/")[2], cfg.num_classes, cfg.input_size, cfg.crop_pct

    tags = [tagged for variant in PARAMETERS for tagged in timm.list_models(f"{variant}.*", include_tags=True)]
    assert {tagged: facts(tagged) for tagged in tags} == {
        "cswin_tiny.in1k": ("cswin_tiny_224.pth", 1000, (3, 224, 224), 0.9),
        "cswin_small.in1k": ("cswin_small_224.pth", 1000, (3, 224, 224), 0.9),
        "cswin_base.in1k": ("cswin_base_224.pth", 1000, (3, 224, 224), 0.9),
        "cswin_large.in22k_ft_in1k": ("cswin_large_224.pth", 1000, (3, 224, 224), 0.9),
        "cswin_large.in22k": ("cswin_large_22k_224.pth", 21841, (3, 224, 224), 0.9),
        "cswin_base_384.in1k": ("cswin_base_384.pth", 1000, (3, 384, 384), 1.0),
        "cswin_large_384.in22k_ft_in1k": ("cswin_large_384.pth", 1000, (3, 384, 384), 1.0),
    }


# --- attention ---


def drawn(module: nn.Module) -> nn.Module:
    """In float64, with biases that count and scores that a softmax does not level."""
    for value in module.double().parameters():
        nn.init.normal_(value)
    return module


def by_hand(qkv: Tensor, heads: int, lepe: nn.Module, window: tuple[int, int]) -> Tensor:
    """Attention with LePE of one map (H, W, 3, C) in windows, padded as the authors' dense code does."""
    (height, width, _, dim), (tall, wide) = qkv.shape, window
    below, right = -height % tall, -width % wide
    top, left = below // 2, right // 2
    padded = functional.pad(qkv, (0, 0, 0, 0, left, right - left, top, below - top))
    out = padded.new_zeros(padded.shape[0], padded.shape[1], dim)
    for row, column in product(range(0, padded.shape[0], tall), range(0, padded.shape[1], wide)):
        place = (slice(row, row + tall), slice(column, column + wide))
        q, k, v = padded[place].reshape(tall * wide, 3, heads, dim // heads).unbind(1)
        weights = torch.einsum("qhd,khd->hqk", q, k).mul((dim // heads) ** -0.5).softmax(-1)
        attended = torch.einsum("hqk,khd->qhd", weights, v).reshape(tall, wide, dim)
        image = padded[place][:, :, 2].permute(2, 0, 1)
        position = functional.conv2d(image[None], lepe.weight, lepe.bias, padding=1, groups=dim)[0]
        out[place] = attended + position.permute(1, 2, 0)
    return out[top : top + height, left : left + width]


@pytest.mark.parametrize("stripe", [1, 2, 7, 12])
@pytest.mark.parametrize("size", [(14, 24), (13, 20), (3, 33), (40, 5), (1, 1)])
@torch.no_grad()
def test_stripes_of_any_map_attend_as_the_authors_dense_code_does(size: tuple[int, int], stripe: int) -> None:
    attn, x = drawn(CrossAttention(32, 4, stripe)), torch.randn(2, *size, 32, dtype=torch.float64)
    for given, image in zip(attn(x), x, strict=True):
        qkv = attn.qkv(image).unflatten(2, (3, 32))
        columns = by_hand(qkv[..., :16], 2, attn.lepe[0], (size[0], stripe))
        rows = by_hand(qkv[..., 16:], 2, attn.lepe[1], (stripe, size[1]))
        torch.testing.assert_close(given, attn.proj(torch.cat([columns, rows], -1)))


@pytest.mark.parametrize("size", [(7, 7), (3, 10), (1, 1)])
@torch.no_grad()
def test_the_last_stage_attends_in_one_window_over_the_map(size: tuple[int, int]) -> None:
    attn, x = drawn(MapAttention(32, 4)), torch.randn(2, *size, 32, dtype=torch.float64)
    for given, image in zip(attn(x), x, strict=True):
        qkv = attn.qkv(image).unflatten(2, (3, 32))
        torch.testing.assert_close(given, attn.proj(by_hand(qkv, 4, attn.lepe[0], size)))


def test_half_of_the_heads_see_whole_columns_and_the_others_whole_rows() -> None:
    attn = drawn(CrossAttention(32, 4, stripe=2))
    nn.init.eye_(attn.proj.weight)

    def reach(channels: slice) -> list[list[int]]:
        """The tokens of a map of 4 x 6 that `channels` of the token at row 1, column 3 depend on."""
        x = torch.randn(1, 4, 6, 32, dtype=torch.float64, requires_grad=True)
        attn(x)[0, 1, 3, channels].square().sum().backward()
        return x.grad[0].abs().sum(-1).nonzero().tolist()

    assert reach(slice(0, 16)) == [[row, column] for row in range(4) for column in (2, 3)]
    assert reach(slice(16, 32)) == [[row, column] for row in (0, 1) for column in range(6)]


@torch.no_grad()
def test_the_position_encoding_takes_what_lies_beyond_a_stripe_for_zeros() -> None:
    attn, x = drawn(CrossAttention(32, 4, stripe=3)), torch.randn(1, 6, 9, 32, dtype=torch.float64)
    nn.init.eye_(attn.proj.weight)
    v = attn.qkv(x)[:, :, :, 64:].permute(0, 3, 1, 2)
    image = torch.cat(
        [conv(half) - conv.bias[:, None, None] for conv, half in zip(attn.lepe, v.chunk(2, 1), strict=True)], 1
    )
    of_image = image.permute(0, 2, 3, 1)  # what convolutions of the whole map would give
    given = attn(x)
    for conv in attn.lepe:
        nn.init.zeros_(conv.weight)
    given = given - attn(x)
    columns = torch.isclose(given, of_image)[0, :, :, :16].all(-1)
    rows = torch.isclose(given, of_image)[0, :, :, 16:].all(-1)
    assert columns.all(0).tolist() == [True, True, False, False, True, False, False, True, True]
    assert rows.all(1).tolist() == [True, True, False, False, True, True]


# --- options ---


@torch.no_grad()
def test_other_stripes_take_the_same_weights() -> None:
    model = timm.create_model("cswin_tiny", depths=FEW).eval()
    other = timm.create_model("cswin_tiny", depths=FEW, stripes=(1, 2, 12)).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 224, 224)
    a, b = (net.forward_intermediates(x, intermediates_only=True) for net in (model, other))
    assert torch.equal(a[1], b[1])
    assert not torch.allclose(a[2], b[2])


# --- weights ---


@pytest.mark.parametrize("variant", PARAMETERS)
def test_the_authors_keys_are_ours_one_by_one(variant: str) -> None:
    model = timm.create_model(variant, depths=FEW, device="meta")
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    linear = ("weight", "bias")
    theirs = {f"stage1_conv_embed.0.{part}": f"stages.0.downsample.conv.{part}" for part in linear}
    theirs |= {f"stage1_conv_embed.2.{part}": f"stages.0.downsample.norm.{part}" for part in linear}
    for stage, part in product((1, 2, 3), linear):
        theirs[f"merge{stage}.conv.{part}"] = f"stages.{stage}.downsample.conv.{part}"
        theirs[f"merge{stage}.norm.{part}"] = f"stages.{stage}.downsample.norm.{part}"
    for stage, part in product((1, 2, 3, 4), linear):
        block = f"stages.{stage - 1}.blocks.0"
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            theirs[f"stage{stage}.0.{name}.{part}"] = f"{block}.{name}.{part}"
        for name in ("qkv", "proj"):
            theirs[f"stage{stage}.0.{name}.{part}"] = f"{block}.attn.{name}.{part}"
        for branch in (0, 1) if stage < 4 else (0,):
            theirs[f"stage{stage}.0.attns.{branch}.get_v.{part}"] = f"{block}.attn.lepe.{branch}.{part}"
    theirs |= {f"norm.{part}": f"norm.{part}" for part in linear}
    theirs |= {f"head.{part}": f"head.fc.{part}" for part in linear}
    assert sorted(theirs.values()) == sorted(shapes)
    file = {key: torch.full(shapes[ours], float(i)) for i, (key, ours) in enumerate(theirs.items())}
    given = checkpoint_filter_fn(file, model)
    assert all(given[ours] is file[key] for key, ours in theirs.items())


@pytest.mark.parametrize("size", ["base", "large"])
def test_weights_of_224_and_384_pixels_fit_each_other(size: str) -> None:
    models = [timm.create_model(f"cswin_{size}{native}", depths=FEW, device="meta") for native in ("", "_384")]
    for model, other in (models, models[::-1]):
        model.load_state_dict(other.state_dict())


def test_weights_start_as_the_authors_start_theirs() -> None:
    model = timm.create_model("cswin_tiny", depths=FEW)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert part.bias.count_nonzero() == 0
        if isinstance(part, nn.Conv2d):
            bound = 1 / math.sqrt(part.weight[0].numel())  # torch's own: uniform up to 1 / sqrt(fan in)
            assert part.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
            assert part.bias.count_nonzero() > 0


@pytest.mark.parametrize("stripes", [(1, 2, 0), (1, 2), (1, 2, 7, 7), 1, (1, 2, 2.5)], ids=str)
def test_what_are_no_stripes_is_refused_in_a_sentence(stripes: Any) -> None:
    with pytest.raises(ValueError, match=r"stripes is .*; it takes 3 whole numbers of pixels, 1 or more each"):
        timm.create_model("cswin_tiny", stripes=stripes, device="meta")
