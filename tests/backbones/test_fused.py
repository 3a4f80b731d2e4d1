"""`fuse_attention`, and what our DaViT, MaxViT and SHViT share: they are timm's networks, computed otherwise."""

import copy
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.layers import RelPosBias, pos_embed_rel
from timm.models import davit, group_parameters, maxxvit, shvit
from torch import Tensor, nn
from vertebra import fuse_attention
from vertebra.backbones import model_names
from vertebra.backbones._fused import _SWAPS

NAMES = [name.removesuffix("_fused") for name in model_names() if name.endswith("_fused")]
KINDS = (  # names of timm's that differ in more than sizes
    "davit_tiny",
    "davit_base_fl",
    "maxvit_pico_rw_256",
    "maxvit_rmlp_pico_rw_256",
    "maxvit_rmlp_small_rw_224",
    "maxvit_tiny_tf_224",
    "maxvit_tiny_pm_256",
    "shvit_s1",
)


def few(name: str, **options: Any) -> dict[str, Any]:
    """Options that cut a model of timm's down: few blocks, windows of 2 x 2, narrow where it takes that."""
    if name.startswith("shvit"):
        return {"depth": (1, 1, 2)} | options
    if name.startswith("maxvit"):
        return {"depths": (1, 1, 2, 1), "embed_dim": (32, 64, 96, 128), "img_size": 64} | options
    return {"depths": (1, 1, 2, 1), "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)} | options


def plain(name: str, **options: Any) -> nn.Module:
    """timm's model of that name with few blocks, in eval mode, and with weights that make every part of it count."""
    model = timm.create_model(name, **few(name, **options)).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.8, 1.5)
            elif value.ndim > 1:
                value.normal_(std=1 if "table" in key else value[0].numel() ** -0.5)
            elif value.is_floating_point():
                value.normal_(1 if key.endswith(("weight", "gamma")) else 0, 0.2)
    return model


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 64, 128))


def assert_close(given: Tensor | Iterable[Tensor], expected: Tensor | Iterable[Tensor], relative: float = 1e-5) -> None:
    """Equal up to `relative` of the largest number."""
    pairs = [(given, expected)] if isinstance(given, Tensor) else zip(given, expected, strict=True)
    for a, b in pairs:
        assert a.shape == b.shape
        assert (a - b).abs().max() <= relative * b.abs().max()


def classes(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


# --- names, keys and weights ---


def test_each_of_timms_names_has_a_fused_one() -> None:
    prefixes = ("davit_", "maxvit_", "shvit_")
    theirs = {name for name in timm.list_models() if name.startswith(prefixes) and not name.endswith("_fused")}
    assert set(NAMES) == theirs
    assert len(NAMES) == 39


@pytest.mark.parametrize("timms", NAMES)
def test_a_fused_model_is_timms_class_with_timms_keys_and_shapes(timms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maxxvit, "named_apply", lambda *_: None)  # nothing to initialise without memory
    monkeypatch.setattr(pos_embed_rel, "generate_lookup_tensor", lambda n, **dd: torch.empty(n, n, 2 * n - 1, **dd))
    theirs, ours = (timm.create_model(which, device="meta") for which in (timms, f"{timms}_fused"))
    assert isinstance(ours, type(theirs))
    states = [[(key, value.shape) for key, value in model.state_dict().items()] for model in (ours, theirs)]
    assert states[0] == states[1]
    named = [[(key, value.shape) for key, value in model.named_parameters()] for model in (ours, theirs)]
    assert named[0] == named[1]
    assert sum(value.numel() for value in ours.parameters()) == sum(value.numel() for value in theirs.parameters())


@pytest.mark.parametrize("timms", NAMES)
def test_tags_and_what_they_say_of_the_weights_are_timms(timms: str) -> None:
    tags = [tagged.partition(".")[2] for tagged in timm.list_models(f"{timms}.*", include_tags=True)]
    assert [tagged.partition(".")[2] for tagged in timm.list_models(f"{timms}_fused.*", include_tags=True)] == tags
    for suffix in ("", *(f".{tag}" for tag in tags)):
        theirs, ours = timm.get_pretrained_cfg(timms + suffix), timm.get_pretrained_cfg(f"{timms}_fused{suffix}")
        assert ours.hf_hub_id == theirs.hf_hub_id
        others = {"architecture", "min_input_size", "fixed_input_size", "pool_size"}  # what is different here
        others |= {"paper_ids", "paper_name", "origin_url"}
        same = {key: getattr(theirs, key) for key in others}
        assert replace(ours, **same) == theirs


def test_weights_are_fetched_from_timms_place_on_the_hub() -> None:
    assert timm.get_pretrained_cfg("davit_tiny_fused").hf_hub_id == "timm/davit_tiny.msft_in1k"
    assert timm.get_pretrained_cfg("maxvit_base_tf_384_fused").hf_hub_id == "timm/maxvit_base_tf_384.in1k"
    assert timm.get_pretrained_cfg("shvit_s4_fused").hf_hub_id == "timm/shvit_s4.in1k"
    assert timm.get_pretrained_cfg("davit_huge_fl_fused").hf_hub_id == "microsoft/Florence-2-large"


@pytest.mark.parametrize("timms", KINDS)
@torch.no_grad()
def test_weights_of_timm_load_into_ours_and_back(timms: str) -> None:
    theirs, options = plain(timms), few(timms)
    ours = timm.create_model(f"{timms}_fused", **options).eval()
    ours.load_state_dict(theirs.state_dict())
    back = timm.create_model(timms, **options).eval()
    back.load_state_dict(ours.state_dict())
    x = image()
    assert_close(ours(x), theirs(x))
    assert torch.equal(back(x), theirs(x))


@pytest.mark.parametrize("timms", KINDS)
@torch.no_grad()
def test_a_fused_model_answers_what_timms_does_at_sizes_that_timm_takes(timms: str) -> None:
    theirs = plain(timms).double()
    ours = timm.create_model(f"{timms}_fused", **few(timms)).eval().double()
    ours.load_state_dict(theirs.state_dict())
    sizes = [(64, 64), (192, 64)] if timms.startswith("maxvit") else [(97, 131), (224, 224)]
    for size in sizes:
        x = image(2, 3, *size).double()
        torch.testing.assert_close(ours(x), theirs(x))
        given, expected = (model.forward_intermediates(x, intermediates_only=True) for model in (ours, theirs))
        torch.testing.assert_close(given, expected)


# --- fuse_attention ---


@pytest.mark.parametrize("timms", KINDS)
@torch.no_grad()
def test_fusing_keeps_the_object_its_parameters_and_its_logits(timms: str) -> None:
    model, x = plain(timms), image()
    expected, parameters = model(x), dict(model.named_parameters())
    keys = list(model.state_dict())
    assert fuse_attention(model) is model
    assert type(model) is type(timm.create_model(f"{timms}_fused", **few(timms), device="meta"))
    assert list(model.state_dict()) == keys
    assert all(value is parameters[key] for key, value in model.named_parameters())
    assert_close(model(x), expected)


@pytest.mark.parametrize("timms", KINDS)
def test_a_fused_model_has_the_classes_of_one_built_under_our_name(timms: str) -> None:
    fused = fuse_attention(timm.create_model(timms, **few(timms), device="meta"))
    assert classes(fused) == classes(timm.create_model(f"{timms}_fused", **few(timms), device="meta"))


@pytest.mark.parametrize("feature_cls", ["list", "getter", "hook"])
@pytest.mark.parametrize("timms", ["davit_tiny", "maxvit_pico_rw_256", "shvit_s1"])
@torch.no_grad()
def test_fusing_a_feature_extractor_keeps_its_maps(timms: str, feature_cls: str) -> None:
    model, x = plain(timms, features_only=True, feature_cls=feature_cls), image()
    expected = model(x)
    assert fuse_attention(model) is model
    assert_close(model(x), expected)
    assert len({swap.fused for swap in _SWAPS.values() if swap.attends} & set(classes(model))) > 0


@pytest.mark.parametrize("timms", KINDS)
@torch.no_grad()
def test_fusing_reaches_a_model_inside_a_larger_one(timms: str) -> None:
    inner, x = plain(timms, num_classes=7), image()
    model = nn.Sequential(inner, nn.Linear(7, 3))
    expected = model(x)
    assert fuse_attention(model) is model
    assert type(model) is nn.Sequential
    assert model[0] is inner
    assert classes(inner) == classes(fuse_attention(plain(timms, num_classes=7)))
    assert_close(model(x), expected)


@pytest.mark.parametrize("timms", KINDS)
@torch.no_grad()
def test_fusing_twice_is_fusing_once(timms: str) -> None:
    model, x = fuse_attention(plain(timms)), image()
    expected, before = model(x), classes(model)
    assert fuse_attention(model) is model
    assert classes(model) == before
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("timms", KINDS)
def test_a_fused_model_trains_as_timms_does(timms: str) -> None:
    drops = {} if timms.startswith("shvit") else {"drop_path_rate": 0.4}
    theirs = plain(timms, num_classes=10, drop_rate=0.2, **drops).double().train()
    ours = fuse_attention(copy.deepcopy(theirs))
    assert all(module.training for module in ours.modules())
    x, weights = image(4, 3, 64, 64).double(), torch.linspace(-1, 1, 4).double()
    for model in (theirs, ours):
        torch.manual_seed(1)  # dropout, drop path and MaxViT's position MLP draw the same
        (model(x) * weights[:, None]).square().sum().backward()
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda said, key=key: f"{key}: {said}")
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))


def test_checkpointing_that_was_on_before_fusing_stays_on() -> None:
    for name in ("davit_tiny", "maxvit_pico_rw_256", "shvit_s1"):
        model = timm.create_model(name, **few(name))
        model.set_grad_checkpointing()
        fuse_attention(model)
        assert all(stage.grad_checkpointing for stage in model.stages)


@pytest.mark.parametrize("timms", ["resnet10t", "coatnet_pico_rw_224", "swin_tiny_patch4_window7_224"])
def test_a_model_without_such_attention_is_refused_in_a_sentence_and_left_alone(timms: str) -> None:
    model = timm.create_model(timms, device="meta")
    before = classes(model)
    with pytest.raises(ValueError, match=rf"^fuse_attention takes .*DaViT, MaxViT and SHViT; {type(model).__name__} "):
        fuse_attention(model)
    assert classes(model) == before


def test_a_name_is_no_network_and_that_is_said() -> None:
    with pytest.raises(ValueError, match="fuse_attention takes a built network, and this is a str"):
        fuse_attention("davit_tiny")


def test_a_graph_is_refused_for_it_holds_the_operations_of_blocks_and_not_the_blocks() -> None:
    model = plain("shvit_s1", features_only=True, feature_cls="fx")
    with pytest.raises(ValueError, match="FeatureGraphNet holds no attention"):
        fuse_attention(model)


# --- what stays as timm's ---


class OwnBias(RelPosBias):
    """A position bias that nobody here knows."""

    def get_bias(self) -> Tensor:
        return super().get_bias().sin()


def with_own_bias(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if type(module) is RelPosBias:
            module.__class__ = OwnBias
    return model


def with_swins_mode(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "bias_act"):
            module.mode, module.bias_act, module.bias_gain = "swin", nn.Sigmoid(), 16
    return model


@pytest.mark.parametrize(
    ("timms", "options", "change"),
    [
        ("maxvit_pico_rw_256", {"transformer_attn_drop": 0.3}, lambda model: model),
        ("maxvit_tiny_pm_256", {"transformer_attn_drop": 0.3}, lambda model: model),
        ("maxvit_pico_rw_256", {}, with_own_bias),
        ("maxvit_rmlp_pico_rw_256", {}, with_swins_mode),
        ("davit_tiny", {"attn_types": ("channel",), "ffn": False}, lambda model: model),
    ],
    ids=["dropout", "dropout in parallel", "own bias", "swin's bias", "no MLP"],
)
def test_attention_that_the_operators_cannot_do_stays_as_timms(
    timms: str, options: dict[str, Any], change: Callable[[nn.Module], nn.Module]
) -> None:
    model, x = change(plain(timms, num_classes=10, **options)).train(), image()
    torch.manual_seed(1)
    expected = model(x)
    kinds = [plain for plain, swap in _SWAPS.items() if swap.attends]
    parts = [part for module in model.modules() if type(module) in kinds for part in module.modules()]
    before = [type(part) for part in parts if not isinstance(part, davit.ConvPosEnc)]
    assert fuse_attention(model) is model
    assert [type(part) for part in parts if not isinstance(part, davit.ConvPosEnc)] == before
    torch.manual_seed(1)
    assert_close(model(x), expected)


def test_a_model_of_which_nothing_could_be_fused_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = plain("davit_tiny", num_classes=10)
    fuse_attention(model)
    assert caplog.text == ""
    blocks = plain("maxvit_tiny_tf_224", num_classes=10)
    for part in blocks.modules():
        if isinstance(part, maxxvit.AttentionCl):
            part.attn_drop.p = 0.5
    fuse_attention(blocks)
    assert "leaves the attention of this" in caplog.text


@torch.no_grad()
def test_parallel_attention_of_which_one_half_cannot_be_fused_stays_whole() -> None:
    model, x = plain("maxvit_tiny_pm_256"), image()
    for module in model.modules():
        if isinstance(module, maxxvit.ParallelPartitionAttention):
            with_own_bias(module.attn_grid)
    expected = model(x)
    assert_close(fuse_attention(model)(x), expected)


@pytest.mark.parametrize("module", [davit, maxxvit, shvit])
def test_no_class_of_timm_is_changed_by_importing_vertebra(module: Any) -> None:
    own = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    assert len(own) > 5
    for cls in own:
        functions = [value for value in vars(cls).values() if inspect.isfunction(value)]
        assert {function.__module__.partition(".")[0] for function in functions} <= {"timm", "torch"}
        assert not cls.__module__.startswith("vertebra")


@pytest.mark.parametrize("timms", ["davit_tiny", "maxvit_tiny_tf_224", "shvit_s1"])
def test_a_model_of_timm_is_timms_alone_even_after_others_were_fused(timms: str) -> None:
    fuse_attention(timm.create_model(timms, **few(timms), device="meta"))
    model = timm.create_model(timms, **few(timms), device="meta")
    assert {cls.__module__.partition(".")[0] for cls in classes(model)} <= {"timm", "torch"}


# --- training ---


@pytest.mark.parametrize("timms", KINDS)
def test_coarse_groups_for_layer_decay_are_timms(timms: str) -> None:
    theirs, ours = (timm.create_model(which, **few(timms), device="meta") for which in (timms, f"{timms}_fused"))
    groups = [group_parameters(theirs, model.group_matcher(coarse=True)) for model in (ours, theirs)]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("timms", ["davit_tiny", "shvit_s1"])
def test_fine_groups_for_layer_decay_are_timms(timms: str) -> None:
    theirs, ours = (timm.create_model(which, **few(timms), device="meta") for which in (timms, f"{timms}_fused"))
    assert group_parameters(theirs, ours.group_matcher()) == group_parameters(theirs, theirs.group_matcher())


def test_fine_groups_of_maxvit_are_blocks_where_timms_are_stages() -> None:
    options = few("maxvit_pico_rw_256", device="meta")
    model = timm.create_model("maxvit_pico_rw_256_fused", **options)
    groups = group_parameters(model, model.group_matcher())
    blocks = [{".".join(key.split(".")[:4]) for key in keys if key.startswith("stages.")} for keys in groups.values()]
    assert [group for group in blocks if group] == [
        {f"stages.{stage}.blocks.{block}"} for stage, depth in enumerate((1, 1, 2, 1)) for block in range(depth)
    ]
