"""What is particular to VAN; its numbers are in test_golden.py, its interface in test_contract.py."""

import math
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerNorm2d
from timm.optim import param_groups_weight_decay
from torch import nn
from vertebra.backbones.van import LargeKernelGate

PARAMETERS = {
    "van_b0": 4_105_800,
    "van_b1": 13_861_800,
    "van_b2": 26_578_472,
    "van_b3": 44_765_608,
    "van_b4": 60_283_176,
    "van_b5": 89_967_688,
    "van_b6": 199_829_416,
}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_variant_has_its_published_number_of_parameters(variant: str) -> None:
    model = timm.create_model(variant, device="meta")
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize(
    ("variant", "tags"),
    [
        *((f"van_b{i}", ["in1k"]) for i in range(4)),
        ("van_b4", ["in1k", "in22k", "in22k_ft_in1k", "in22k_ft_in1k_384"]),
        *((f"van_b{i}", ["in22k_ft_in1k", "in22k", "in22k_ft_in1k_384"]) for i in (5, 6)),
    ],
)
def test_tags_are_the_published_trainings_and_the_first_is_the_default(variant: str, tags: list[str]) -> None:
    listed = timm.list_models(f"{variant}.*", include_tags=True)
    assert sorted(listed) == sorted(f"{variant}.{tag}" for tag in tags)
    assert timm.get_pretrained_cfg(variant).tag == tags[0]


def test_tags_carry_classes_sizes_and_crops_of_their_training() -> None:
    def facts(tag: str) -> tuple[int, tuple[int, ...], float, str]:
        cfg = timm.get_pretrained_cfg(f"van_b4.{tag}")
        return cfg.num_classes, cfg.input_size, cfg.crop_pct, cfg.crop_mode

    assert facts("in1k") == (1000, (3, 224, 224), 0.9, "center")
    assert facts("in22k") == (21841, (3, 224, 224), 0.875, "center")
    assert facts("in22k_ft_in1k") == (1000, (3, 224, 224), 0.875, "center")
    assert facts("in22k_ft_in1k_384") == (1000, (3, 384, 384), 1.0, "squash")


def test_only_direct_links_stand_as_urls() -> None:
    urls = {variant: timm.get_pretrained_cfg(variant).url for variant in PARAMETERS}
    assert all(urls[f"van_b{i}"].endswith(".pth.tar") for i in range(4))
    assert not any(urls[f"van_b{i}"] for i in (4, 5, 6))


def test_b6_has_384_channels_in_its_third_stage() -> None:
    model = timm.create_model("van_b6", depths=(1, 1, 1, 1), features_only=True, device="meta")
    assert model.feature_info.channels() == [96, 192, 384, 768]


def test_norm_eps_is_that_of_the_classifiers_unless_the_detectors_is_asked_for() -> None:
    def found(**options: float) -> set[float]:
        model = timm.create_model("van_b0", device="meta", **options)
        return {part.eps for part in model.modules() if isinstance(part, LayerNorm2d)}

    assert found() == {1e-6}
    assert found(norm_eps=1e-5) == {1e-5}


def test_the_gate_sees_23_pixels_each_way_and_one_channel_alone() -> None:
    gate = LargeKernelGate(2)
    nn.init.ones_(gate.near.weight)
    nn.init.ones_(gate.far.weight)
    gate.mix.weight.data = torch.eye(2)[:, :, None, None]
    x = torch.ones(1, 2, 49, 49, requires_grad=True)
    gate(x)[0, 0, 24, 24].backward()
    rows, columns = x.grad[0, 0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (13, 35, 13, 35)
    assert x.grad[0, 1].count_nonzero() == 0


def test_weights_start_as_the_authors_start_theirs() -> None:
    model = timm.create_model("van_b0")
    for part in model.modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 5000:
            fan_out = math.prod(part.kernel_size) * part.out_channels / part.groups
            assert part.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
        if isinstance(part, nn.Conv2d):
            assert part.bias.count_nonzero() == 0
    assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    scales = [value for key, value in model.named_parameters() if "scale" in key]
    assert len(scales) == 2 * 13
    assert all((value == 0.01).all() for value in scales)


@pytest.mark.parametrize("value", [0, -1.0, "1e-6", float("nan"), True])
def test_an_epsilon_that_is_none_is_refused_in_a_sentence(value: Any) -> None:
    with pytest.raises(ValueError, match=f"norm_eps is {value!r}; it takes a number above 0 and below 1"):
        timm.create_model("van_b0", norm_eps=value, device="meta")


def test_scales_of_the_branches_are_exempt_from_weight_decay() -> None:
    model = timm.create_model("van_b0", device="meta")
    exempt, decayed = param_groups_weight_decay(model, 0.05)
    named = {id(value): key for key, value in model.named_parameters()}
    assert all(value.ndim <= 1 for value in exempt["params"])
    assert not any("scale" in named[id(value)] for value in decayed["params"])
