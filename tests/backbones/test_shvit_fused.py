"""What is particular to the fused SHViT; what it shares is in test_fused.py, its numbers are in test_golden.py."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import shvit
from torch import Tensor, nn
from vertebra import fuse_attention
from vertebra.backbones.shvit_fused import DropResidual, FusedSHSA, checkpoint_filter_fn

VARIANTS = ("shvit_s1", "shvit_s2", "shvit_s3", "shvit_s4")
FEW = (1, 1, 2)


def drawn(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with weights that none of the branches starts with: they all start with 0."""
    for key, value in model.double().eval().state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.8, 1.5)
        elif value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
        elif value.is_floating_point():
            value.normal_(1 if key.endswith("weight") else 0, 0.2)
    return model


# --- attention ---


@pytest.mark.parametrize("size", [(4, 7), (1, 1), (13, 2)])
@torch.no_grad()
def test_one_head_attends_on_the_first_channels_over_the_whole_map(size: tuple[int, int]) -> None:
    attn = drawn(shvit.SHSA(20, 4, 6))
    attn.__class__ = FusedSHSA
    x = torch.randn(2, 20, *size, dtype=torch.float64)
    first = nn.functional.layer_norm(x[:, :6], (6, *size)) * attn.pre_norm.weight[:, None, None]
    q, k, v = attn.qkv(first + attn.pre_norm.bias[:, None, None]).flatten(2).split([4, 4, 6], 1)
    weights = torch.einsum("bdi,bdj->bij", q, k).mul(4**-0.5).softmax(-1)
    mixed = torch.einsum("bij,bdj->bdi", weights, v).reshape(2, 6, *size)
    expected = attn.proj[1](torch.cat([mixed, x[:, 6:]], 1).relu())
    torch.testing.assert_close(attn(x), expected)


@pytest.mark.parametrize("size", [(33, 50), (200, 296), (800, 64)])
@torch.no_grad()
def test_logits_at_any_size_are_timms(size: tuple[int, int]) -> None:
    theirs = drawn(timm.create_model("shvit_s2", depth=FEW))
    ours = timm.create_model("shvit_s2_fused", depths=FEW).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


# --- options ---


def test_depths_may_have_timms_name_too() -> None:
    models = [timm.create_model("shvit_s1_fused", **{key: FEW}, device="meta") for key in ("depth", "depths")]
    assert [[len(stage.blocks) for stage in model.stages] for model in models] == [[1, 1, 2]] * 2


def test_the_first_stage_has_no_attention() -> None:
    model = timm.create_model("shvit_s1_fused", device="meta")
    found = [[isinstance(part, FusedSHSA) for part in stage.modules()].count(True) for stage in model.stages]
    assert found == [0, 4, 5]


@pytest.mark.parametrize("fused_after", [True, False])
@torch.no_grad()
def test_norms_folded_into_convolutions_by_timms_fuse_change_no_logit(fused_after: bool) -> None:
    model = drawn(timm.create_model("shvit_s1" if fused_after else "shvit_s1_fused", depth=FEW))
    x = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    expected = model(x)
    model.fuse()
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    if fused_after:
        fuse_attention(model)
    assert any(isinstance(part, FusedSHSA) for part in model.modules())
    torch.testing.assert_close(model(x), expected)


# --- drop path ---


def test_without_drop_path_all_residuals_are_timms() -> None:
    model = timm.create_model("shvit_s1_fused", device="meta")
    assert not any(isinstance(part, DropPath | DropResidual) for part in model.modules())


def test_drop_path_is_in_every_residual_of_a_block_and_not_where_the_map_shrinks() -> None:
    model = timm.create_model("shvit_s1_fused", depths=FEW, drop_path_rate=0.3, device="meta")
    rates = {
        key.removesuffix(".drop_path"): part.drop_prob
        for key, part in model.named_modules()
        if isinstance(part, DropPath)
    }
    assert rates == pytest.approx(
        {
            f"stages.{block}.{part}": rate
            for block, rate in (("1.blocks.0", 0.1), ("2.blocks.0", 0.2), ("2.blocks.1", 0.3))
            for part in ("conv", "mixer", "ffn")
        }
    )


def test_drop_path_skips_residuals_of_some_images_in_training_only() -> None:
    model = drawn(timm.create_model("shvit_s1_fused", depths=FEW, drop_path_rate=0.5))
    plain = timm.create_model("shvit_s1_fused", depths=FEW).double().eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(model(x), plain(x))
    residual = model.stages[2].blocks[1].ffn.train()
    x = torch.randn(64, 320, 1, 1, dtype=torch.float64)
    residual.m.eval()
    moved = residual(x) - x
    skipped = (moved == 0).flatten(1).all(1)
    assert 16 < skipped.sum() < 48
    torch.testing.assert_close(moved[~skipped], 2 * residual.m(x)[~skipped])


# --- training ---


def test_checkpointing_covers_what_shrinks_the_map_where_timms_does_not() -> None:
    model = timm.create_model("shvit_s1", depth=FEW).train()
    model.set_grad_checkpointing()
    x, runs = torch.randn(2, 3, 64, 64), []
    model.stages[1].downsample[2].register_forward_pre_hook(lambda *_: runs.append(1))
    model(x).sum().backward()
    assert len(runs) == 1
    fuse_attention(model)
    assert model.grad_checkpointing
    model(x).sum().backward()
    assert len(runs) == 3  # forward, and again in the backward pass


# --- head ---


def test_a_model_without_classes_has_an_identity_for_a_classifier() -> None:
    model = timm.create_model("shvit_s1_fused", depths=FEW, device="meta")
    assert model.get_classifier() is model.head.l
    model.reset_classifier(0)
    assert type(model.get_classifier()) is nn.Identity


# --- weights ---


def authors(key: str) -> str:
    """timm's key -> the authors', who count what shrinks the map as the first three blocks of a stage."""
    found = re.match(r"stages\.(\d)\.(blocks|downsample)\.(\d+)\.", key)
    if found is None:
        return key
    stage, part, number = int(found[1]), found[2], int(found[3])
    if part == "blocks":
        place = str(number if stage == 0 else number + 3)
    else:
        place = ("0.0", "0.1", "1", "2.0", "2.1")[number]
    return f"blocks{stage + 1}.{place}.{key[found.end() :]}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_authors_keys_are_timms_one_by_one(variant: str) -> None:
    model = timm.create_model(f"{variant}_fused", device="meta")
    own = timm.create_model(variant, device="meta").state_dict()
    file: dict[str, Tensor] = {authors(key): torch.empty_like(value) for key, value in own.items()}
    assert len(file) == len(own)
    assert not any(key.startswith("stages.") for key in file)
    given = checkpoint_filter_fn({"model": file}, model)
    assert set(given) == set(own)
    assert all(given[key] is file[authors(key)] for key in own)


def test_the_authors_own_file_has_those_keys(golden: Callable[[str], Any]) -> None:
    own = timm.create_model("shvit_s1", device="meta").state_dict()
    shapes = {key: shape for key, shape, *_ in golden("shvit_s1.official").keys}
    assert shapes == {authors(key): list(value.shape) for key, value in own.items()}
