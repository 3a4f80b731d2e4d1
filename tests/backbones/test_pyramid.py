"""The shared base, on a toy family that has what VAN lacks: blocks on tokens, a norm after the last stage."""

import logging
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm2d
from timm.models import group_parameters
from torch import Tensor, nn
from vertebra.backbones._features import prepare_image
from vertebra.backbones._keys import convert_keys
from vertebra.backbones._pyramid import (
    Pyramid,
    TokenStage,
    build,
    drop_path_ramp,
    init_conv_fan_out_,
    weights_cfg,
)

DIMS = (4, 8, 12, 16)


class TokenBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.zeros(1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x).tanh() + self.table


class Toy(Pyramid):
    def __init__(self, depths: tuple[int, ...] = (1, 1, 2, 1), **options: Any) -> None:
        stages = []
        for i, rates in enumerate(drop_path_ramp(0.0, depths)):
            conv = nn.Conv2d(DIMS[i - 1] if i else 3, DIMS[i], 4 if i == 0 else 2, 4 if i == 0 else 2)
            downsample = nn.Sequential()
            downsample.add_module("conv", conv)
            stages.append(TokenStage(downsample, [TokenBlock(DIMS[i]) for _ in rates]))
        super().__init__(stages, DIMS, norm=LayerNorm2d(DIMS[-1]), **options)

    def no_weight_decay(self) -> set[str]:
        return {key for key, _ in self.named_parameters() if key.endswith("table")}


def toy_filter(checkpoint: Mapping[str, Any], model: Toy) -> dict[str, Tensor]:
    return convert_keys(checkpoint, model, lambda key: None if key.startswith("norm3.") else key)


def make_toy(checkpoint: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    overlay = {"state_dict": checkpoint} if checkpoint else None
    return build(
        Toy,
        "toy",
        checkpoint is not None,
        toy_filter,
        pretrained_cfg=weights_cfg(),
        pretrained_cfg_overlay=overlay,
        **options,
    ).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 64, 96)


@torch.no_grad()
def test_the_final_norm_is_in_the_features_and_in_the_last_map_if_asked_for(image: Tensor) -> None:
    model = make_toy()
    final, plain = model.forward_intermediates(image)
    _, normed = model.forward_intermediates(image, norm=True)
    assert torch.equal(final, model.forward_features(image))
    assert torch.equal(model.norm(plain[-1]), final)
    assert torch.equal(normed[-1], final)
    assert all(torch.equal(a, b) for a, b in zip(normed[:-1], plain[:-1], strict=True))


@torch.no_grad()
def test_pruning_drops_the_final_norm_with_the_end_or_when_asked(image: Tensor) -> None:
    kept, dropped, cut = make_toy(), make_toy(), make_toy()
    kept.prune_intermediate_layers([3])
    dropped.prune_intermediate_layers([3], prune_norm=True)
    cut.prune_intermediate_layers([2])
    assert [len(list(model.norm.parameters())) for model in (kept, dropped, cut)] == [2, 0, 0]
    assert cut(image).shape == (2, 12, 4, 6)


def test_pruning_may_keep_a_head_that_still_fits() -> None:
    model = make_toy()
    model.prune_intermediate_layers([3], prune_head=False)
    assert model.get_classifier().out_features == 1000


@pytest.mark.parametrize("coarse", [False, True])
def test_the_final_norm_is_grouped_with_the_last_stage(coarse: bool) -> None:
    model = make_toy()
    groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    last = [number for key, number in groups.items() if key.startswith("stages.3")]
    assert groups["norm.weight"] == max(last)
    assert groups["head.fc.weight"] == max(last) + 1


def test_blocks_in_another_layout_are_checkpointed_too(image: Tensor) -> None:
    model = make_toy(num_classes=2).train()
    calls = []
    model.stages[2].blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    model(image).sum().backward()
    assert len(calls) == 1
    model.set_grad_checkpointing()
    model(image).sum().backward()
    assert len(calls) == 3  # forward, and again for the backward pass


def test_a_familys_own_exemptions_from_decay_are_parameters() -> None:
    model = make_toy()
    assert len(model.no_weight_decay()) == 5
    assert model.no_weight_decay() < set(dict(model.named_parameters()))


def detector_weights(model: nn.Module) -> dict[str, Any]:
    trunk = {f"backbone.{key}": value + 1 for key, value in model.state_dict().items() if key.startswith("stages")}
    return {"state_dict": trunk | {"backbone.norm3.weight": torch.zeros(16), "backbone.norm3.bias": torch.zeros(16)}}


def test_a_detectors_file_loses_its_output_norms_and_leaves_ours_as_built(caplog: pytest.LogCaptureFixture) -> None:
    weights = detector_weights(make_toy())
    with caplog.at_level(logging.WARNING):
        model = make_toy(weights)
    assert torch.equal(model.norm.weight, torch.ones(16))
    assert torch.equal(
        model.stages[0].downsample.conv.weight, weights["state_dict"]["backbone.stages.0.downsample.conv.weight"]
    )
    assert "toy: the checkpoint is a trunk alone; head and final norm as initialised" in caplog.text


def test_a_classifiers_file_without_its_final_norm_is_refused() -> None:
    weights = make_toy().state_dict()
    del weights["norm.weight"]
    with pytest.raises(ValueError, match=r"1 missing key \(norm\.weight\)"):
        make_toy(weights)


@pytest.mark.parametrize("depths", [(1, 1, 1), (1, 1, 1, 1, 1), (1, 0, 1, 1)])
def test_depths_that_are_no_depths_are_refused_in_a_sentence(depths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"depths is \(1, .*4 numbers"):
        drop_path_ramp(0.1, depths)


def test_the_drop_path_ramp_is_one_line_over_all_stages() -> None:
    assert drop_path_ramp(0.4, (1, 1, 2, 1)) == [pytest.approx(rates) for rates in ([0.0], [0.1], [0.2, 0.3], [0.4])]


def test_the_fan_out_of_a_grouped_convolution_is_divided_by_its_groups() -> None:
    conv = nn.Conv2d(512, 512, 5, groups=512)
    init_conv_fan_out_(conv)
    assert conv.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.05)
    assert conv.bias.count_nonzero() == 0


def test_the_size_check_is_silent_on_symbols() -> None:
    graph = torch.fx.symbolic_trace(make_toy())
    assert graph(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    with pytest.raises(ValueError, match="too small"):
        prepare_image(torch.zeros(1, 3, 31, 32))


def test_one_image_that_is_no_batch_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"images are \(B, C, H, W\), and this tensor is \(3, 64, 64\)"):
        make_toy()(torch.zeros(3, 64, 64))
