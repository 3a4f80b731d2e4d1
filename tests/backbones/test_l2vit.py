"""What is particular to L2ViT; its numbers are in test_golden.py, its interface in test_contract.py.

Models here have two blocks in every stage, one of each kind: with fewer, a stage has windows alone.
"""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.optim import param_groups_weight_decay
from torch import nn
from vertebra.backbones.l2vit import GlobalBlock, LinearAttention, WindowAttention, WindowBlock

PARAMETERS = {
    "l2vit_tiny": 28_596_781,
    "l2vit_small": 50_199_157,
    "l2vit_base": 88_577_188,
    "l2vit_base_384": 88_577_188,
}
BOTH = (2, 2, 2, 2)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_variant_has_the_authors_number_of_parameters(variant: str) -> None:
    model = timm.create_model(variant, device="meta")
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS[variant]


@pytest.mark.parametrize(
    ("variant", "tags"),
    [
        ("l2vit_tiny", ["in1k"]),
        ("l2vit_small", ["in1k"]),
        ("l2vit_base", ["in1k", "in22k", "in22k_ft_in1k"]),
        ("l2vit_base_384", ["in22k_ft_in1k"]),
    ],
)
def test_tags_are_the_published_trainings_and_the_first_is_the_default(variant: str, tags: list[str]) -> None:
    listed = timm.list_models(f"{variant}.*", include_tags=True)
    assert sorted(listed) == sorted(f"{variant}.{tag}" for tag in tags)
    assert timm.get_pretrained_cfg(variant).tag == tags[0]
    assert all(timm.get_pretrained_cfg(tagged).url.endswith(".pth") for tagged in listed)


def test_tags_carry_classes_sizes_and_crops_of_their_training() -> None:
    def facts(tagged: str) -> tuple[int, tuple[int, ...], float, str]:
        cfg = timm.get_pretrained_cfg(tagged)
        return cfg.num_classes, cfg.input_size, cfg.crop_pct, cfg.crop_mode

    assert facts("l2vit_base.in1k") == (1000, (3, 224, 224), 0.875, "center")
    assert facts("l2vit_base.in22k") == (21841, (3, 224, 224), 0.875, "center")
    assert facts("l2vit_base_384.in22k_ft_in1k") == (1000, (3, 384, 384), 1.0, "squash")


def windows(**options: Any) -> set[tuple[int, int]]:
    name = options.pop("name", "l2vit_tiny")
    model = timm.create_model(name, device="meta", **options)
    return {part.window for part in model.modules() if isinstance(part, WindowAttention)}


def test_windows_are_7_wide_in_the_384_model_12_and_otherwise_as_asked_for() -> None:
    assert windows() == {(7, 7)}
    assert windows(name="l2vit_base_384") == {(12, 12)}
    assert windows(name="l2vit_base_384", window_size=7) == {(7, 7)}
    assert windows(window_size=3) == {(3, 3)}


def test_blocks_of_windows_and_of_the_whole_map_take_turns_in_every_stage() -> None:
    model = timm.create_model("l2vit_tiny", depths=(1, 2, 3, 4), device="meta")
    for stage in model.stages:
        assert [type(block) for block in stage.blocks] == [WindowBlock, GlobalBlock, WindowBlock, GlobalBlock][
            : len(stage.blocks)
        ]


@torch.no_grad()
def test_a_window_over_the_edge_sees_there_what_a_projection_makes_of_zeros() -> None:
    attention, whole = WindowAttention(64, 7), WindowAttention(64, 7)
    whole.load_state_dict(attention.state_dict())
    x = torch.randn(2, 10, 5, 64)
    padded = nn.functional.pad(x, (0, 0, 0, 2, 0, 4))
    torch.testing.assert_close(attention(x), whole(padded)[:, :10, :5])


@torch.no_grad()
def test_linear_attention_sees_the_whole_map_and_a_window_only_itself() -> None:
    def changed(part: nn.Module) -> torch.Tensor:
        x = torch.randn(1, 14, 14, 64)
        moved = x.clone()
        moved[:, 0, 0] += 5
        return (part(x) != part(moved)).any(-1)[0]

    attention = LinearAttention(64)
    nn.init.normal_(attention.qkv.weight)  # large features: no denominator is raised to 100
    assert changed(attention).all()
    seen = changed(WindowAttention(64, 7))
    assert seen[:7, :7].all()
    assert not seen[7:].any()
    assert not seen[:, 7:].any()


def test_every_parameter_of_both_kinds_of_block_receives_a_gradient() -> None:
    model = timm.create_model("l2vit_tiny", depths=BOTH, num_classes=10)
    model(torch.randn(2, 3, 77, 96)).square().sum().backward()
    assert [key for key, value in model.named_parameters() if not value.grad.count_nonzero()] == []


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (203, 333)])
def test_sides_are_rounded_up_at_every_step(size: tuple[int, int]) -> None:
    model = timm.create_model("l2vit_tiny", depths=BOTH, features_only=True).eval()
    for level, stride in zip(model(torch.randn(1, 3, *size)), (4, 8, 16, 32), strict=True):
        assert level.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
        assert level.isfinite().all()


def test_drop_path_is_drawn_once_a_branch_at_the_rate_of_its_block() -> None:
    model = timm.create_model("l2vit_tiny", depths=BOTH, drop_path_rate=0.7, device="meta")
    rates = [part.drop_prob for part in model.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0.1 * i for i in range(1, 8)])


OTHER_PREFIXES = [pytest.param(one, marks=pytest.mark.all) for one in ("", "encoder.", "backbone.")]


@pytest.mark.parametrize("prefix", ["module.encoder.", *OTHER_PREFIXES])
def test_a_detectors_file_loads_without_its_output_norms(golden: Callable[[str], Any], prefix: str) -> None:
    weights = golden("l2vit_tiny").weights()
    trunk = {key: value for key, value in weights.items() if not key.startswith(("head.", "norm."))}
    norms = {f"norm{i}.{part}": torch.zeros(96 * 2**i) for i in range(4) for part in ("weight", "bias")}
    dense = {prefix + key: value for key, value in (trunk | norms).items()}
    loaded, expected = (
        timm.create_model(
            "l2vit_tiny", pretrained=True, features_only=True, pretrained_cfg_overlay={"state_dict": checkpoint}
        ).state_dict()
        for checkpoint in ({"state_dict": dense}, {"model": weights})
    )
    trunk_keys = [key for key in expected if ".stages." in key]
    assert len(trunk_keys) == len(trunk)
    assert all(torch.equal(loaded[key], expected[key]) for key in trunk_keys)


def test_weights_start_as_the_authors_start_theirs() -> None:
    model = timm.create_model("l2vit_tiny", depths=BOTH)
    for part in model.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            assert part.bias.count_nonzero() == 0
            if part.weight.numel() > 5000:
                assert part.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(part, LinearAttention):
            assert (part.temperature == 32**-0.5).all()


def test_temperatures_are_decayed_as_the_authors_decay_them() -> None:
    model = timm.create_model("l2vit_tiny", depths=BOTH, device="meta")
    named = {id(value): key for key, value in model.named_parameters()}
    exempt, decayed = (
        {named[id(value)] for value in group["params"]} for group in param_groups_weight_decay(model, 0.05)
    )
    assert sum(key.endswith("temperature") for key in decayed) == 4
    assert all(key.endswith((".weight", ".bias")) for key in exempt)


@torch.no_grad()
def test_the_references_of_the_operators_give_the_same_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = timm.create_model("l2vit_tiny", depths=BOTH, features_only=True).eval(), torch.randn(1, 3, 97, 130)
    maps = model(x)
    monkeypatch.setenv("VERTEBRA_KERNELS", "reference")
    torch.testing.assert_close(model(x), maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [0, -7, 3.5])
def test_a_window_without_pixels_is_refused(side: Any) -> None:
    with pytest.raises(ValueError, match=rf"window_size is {side}; it takes a whole number of pixels, 1 or more"):
        timm.create_model("l2vit_tiny", window_size=side, device="meta")
