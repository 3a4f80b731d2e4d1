"""timm's interface, row by row: for every name (`name`), each kind of network (`network`) or each family (`family`).

What a smaller set leaves out, `make test-all` takes.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import ClassifierHead, DropPath, NormMlpClassifierHead
from timm.models import get_pretrained_cfg, group_parameters
from timm.models._manipulate import reinit_non_persistent_buffers
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

Build = Callable[..., Any]


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 64, 64))


# --- forward and backward ---


@torch.no_grad()
def test_logits_have_one_value_a_class_and_are_finite(small: Build, network: str) -> None:
    model = small(network)
    logits = model(image())
    assert logits.shape == (2, model.num_classes or model.head_hidden_size)
    assert logits.isfinite().all()


def test_every_parameter_receives_a_gradient(small: Build, network: str) -> None:
    model = small(network, num_classes=42).train()
    model(image()).mean().backward()
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert without == []


@torch.no_grad()
def test_the_same_image_gives_the_same_logits(small: Build, family: str) -> None:
    model, x = small(family), image()
    assert torch.equal(model(x), model(x))


@torch.no_grad()
def test_an_image_has_the_same_logits_alone_and_in_a_batch(small: Build, family: str) -> None:
    model, x = small(family), image()
    torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-5)


def test_forward_is_the_head_on_the_features(small: Build, network: str) -> None:
    model, x = small(network), image()
    with torch.no_grad():
        assert torch.equal(model(x), model.forward_head(model.forward_features(x)))


# --- any size ---


@torch.no_grad()
def test_maps_of_any_size_have_the_stride_they_announce(small: Build, name: str) -> None:
    model = small(name, features_only=True, device="meta")
    for size in ((32, 32), (32, 97), (203, 333)):
        maps = model(torch.empty(1, 3, *size, device="meta"))
        for level, stride, channels in zip(
            maps, model.feature_info.reduction(), model.feature_info.channels(), strict=True
        ):
            height, width = level.shape[2:]
            assert level.shape[1] == channels, size
            assert {height - size[0] // stride, width - size[1] // stride} <= {0, 1}, size  # rounded down or up


@torch.no_grad()
def test_an_odd_image_runs(small: Build, family: str) -> None:
    assert small(family)(image(1, 3, 203, 333)).isfinite().all()


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_an_image_below_32_pixels_is_refused_in_a_sentence(small: Build, name: str, size: tuple[int, int]) -> None:
    model = small(name, device="meta")
    x = torch.empty(1, 3, *size, device="meta")
    for call in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} pixels is too small.*32"):
            call(x)


@torch.no_grad()
def test_an_empty_batch_gives_empty_logits_and_maps(small: Build, family: str) -> None:
    model = small(family)
    assert model(image(0, 3, 64, 64)).shape == (0, model.num_classes or model.head_hidden_size)
    assert all(len(level) == 0 for level in model.forward_intermediates(image(0, 3, 64, 64))[1])


# --- what the registry says of the weights ---


def test_every_tag_describes_its_weights_fully(name: str) -> None:
    for tagged in timm.list_models(f"{name}.*", include_tags=True) or [name]:
        cfg = get_pretrained_cfg(tagged)
        assert cfg.license
        assert cfg.paper_ids
        assert cfg.origin_url
        assert len(cfg.mean) == len(cfg.std) == 3
        assert cfg.interpolation == "bicubic"
        assert 0.8 < cfg.crop_pct <= 1


def test_the_default_tag_is_the_one_with_1000_classes_at_the_native_size(name: str) -> None:
    classes = 0 if "_fl_" in name else 21843 if "xlarge_tf_224" in name else 1000  # no other weights of theirs
    native = next((side for side in (224, 256, 384, 512) if f"_{side}" in name), 224)
    side = {"shvit_s4_fused": 256, "davit_base_fl_fused": 768, "davit_huge_fl_fused": 768}.get(name, native)
    cfg = get_pretrained_cfg(name)
    assert cfg.num_classes == classes
    assert cfg.input_size == (3, side, side)


def test_a_tagged_name_builds_the_model_its_tag_describes(small: Build, name: str) -> None:
    for tagged in timm.list_models(f"{name}.*", include_tags=True):
        model = small(tagged, device="meta")
        assert model.pretrained_cfg["tag"] == tagged.partition(".")[2]
        assert model.num_classes == get_pretrained_cfg(tagged).num_classes


@torch.no_grad()
def test_the_map_at_the_native_size_is_the_pool_size_of_the_cfg(small: Build, name: str) -> None:
    for tagged in timm.list_models(f"{name}.*", include_tags=True):
        model = small(tagged, device="meta")
        cfg = model.pretrained_cfg
        features = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta"))
        assert features.shape == (1, model.num_features, *cfg["pool_size"])


def test_first_conv_and_classifier_of_the_cfg_are_parameters(small: Build, name: str) -> None:
    model = small(name, device="meta")
    parts = ("first_conv", "classifier") if model.num_classes else ("first_conv",)
    for part in parts:
        assert isinstance(model.get_submodule(model.pretrained_cfg[part]).weight, nn.Parameter)


def test_hints_on_the_model_are_those_timm_reads(small: Build, name: str) -> None:
    model = small(name, device="meta", in_chans=4, num_classes=7, drop_rate=0.25)
    assert (model.in_chans, model.num_classes, model.drop_rate, model.grad_checkpointing) == (4, 7, 0.25, False)


# --- the head ---


@torch.no_grad()
def test_pre_logits_have_the_announced_width(small: Build, network: str) -> None:
    model = small(network)
    features = model.forward_features(image())
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("how", ["reset", "built"])
@torch.no_grad()
def test_without_classes_the_model_returns_what_stands_before_the_classifier(
    small: Build, network: str, how: str
) -> None:
    model = small(network) if how == "reset" else small(network, num_classes=0)
    if how == "reset":
        model.reset_classifier(0)
    x = image()
    assert model.num_classes == 0
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert not list(model.get_classifier().parameters())


@pytest.mark.parametrize("how", ["reset", "built"])
@torch.no_grad()
def test_without_classes_and_pooling_the_model_returns_the_map(small: Build, network: str, how: str) -> None:
    model = small(network) if how == "reset" else small(network, num_classes=0, global_pool="")
    if how == "reset":
        model.reset_classifier(0, "")
    x = image()
    features = model.forward_features(x)
    if isinstance(model.head, NormMlpClassifierHead):
        features = model.head.pre_logits(model.head.norm(features))
    assert model(x).ndim == 4
    assert torch.equal(model(x), features)


def test_classes_without_pooling_are_refused_in_a_sentence(small: Build, family: str) -> None:
    if isinstance(small(family, device="meta").head, NormMlpClassifierHead):
        assert small(family, num_classes=10, global_pool="")(image()).shape == (2, 10, 2, 2)  # classifies each place
        return
    with pytest.raises(ValueError, match=r"global_pool.*10"):
        small(family, num_classes=10, global_pool="", device="meta")
    with pytest.raises(ValueError, match=r"global_pool.*10"):
        small(family, device="meta").reset_classifier(10, "")


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", "fast"])
@torch.no_grad()
def test_every_pooling_of_timm_works_built_in_and_put_in_later(small: Build, family: str, pool: str) -> None:
    later = small(family, num_classes=0, global_pool="")
    if pool == "catavgmax" and not isinstance(later.head, ClassifierHead):
        with pytest.raises(ValueError, match="catavgmax"):  # the norm in these heads has the width of the map
            later.reset_classifier(10, pool)
        return
    later.reset_classifier(10, pool)
    for model in (small(family, num_classes=10, global_pool=pool), later):
        assert model(image()).shape == (2, 10)
        assert model.forward_head(model.forward_features(image()), pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("training", [True, False])
def test_a_new_classifier_has_the_dtype_and_mode_of_the_model(small: Build, network: str, training: bool) -> None:
    model = small(network, num_classes=0, dtype=torch.float64).train(training)
    model.reset_classifier(11)
    classifier = model.get_classifier()
    assert classifier.weight.dtype == torch.float64
    assert all(module.training == training for module in model.modules())
    assert model.num_classes == 11


def test_a_new_classifier_is_on_the_device_of_the_model(small: Build, name: str) -> None:
    model = small(name, device="meta")
    model.reset_classifier(11)
    assert model.get_classifier().weight.is_meta


def test_a_new_classifier_starts_as_one_built_with_the_model(small: Build, family: str) -> None:
    model = small(family, num_classes=2000)
    built = copy.deepcopy(model.get_classifier())
    model.reset_classifier(2000)
    new = model.get_classifier()
    assert new.weight.std().item() == pytest.approx(built.weight.std().item(), rel=0.05)
    assert new.bias.std().item() == pytest.approx(built.bias.std().item(), rel=0.05)


@torch.no_grad()
def test_dropout_before_the_classifier_acts_in_training_only(small: Build, family: str) -> None:
    model = small(family, num_classes=10, drop_rate=0.5)
    features = model.forward_features(image())
    assert torch.equal(model.forward_head(features), model.forward_head(features))
    model.train()
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


# --- training ---


def test_checkpointing_changes_neither_outputs_nor_gradients(small: Build, network: str) -> None:
    plain = small(network, num_classes=10).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    assert saving.grad_checkpointing
    x = image()
    outputs, gradients = [], []
    for model in (plain, saving):
        torch.manual_seed(1)  # MaxViT's position MLP drops
        final, maps = model.forward_intermediates(x)
        model(x).square().sum().backward()
        outputs.append([final, *maps])
        gradients.append([value.grad for value in model.parameters()])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_checkpointing_keeps_fewer_tensors_for_the_backward_pass(small: Build, family: str) -> None:
    model = small(family, num_classes=10).train()

    def kept() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(image())
        return sum(sizes)

    plain = kept()
    model.set_grad_checkpointing()
    saving = kept()
    model.set_grad_checkpointing(False)
    assert saving < plain / 2
    assert kept() == plain


@pytest.mark.parametrize("coarse", [False, True])
def test_every_parameter_falls_in_one_group_and_groups_follow_depth(small: Build, name: str, coarse: bool) -> None:
    model = small(name, device="meta")
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    assert sorted(key for keys in groups.values() for key in keys) == sorted(dict(model.named_parameters()))
    classifier = {f"{model.pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias")}
    if model.num_classes:
        assert classifier <= set(groups[max(groups)])  # what matches nothing lands with the classifier
    assert all(key.startswith(("head.", "norm.")) for key in groups[max(groups)])
    stages = [[int(key.split(".")[1]) for key in keys if key.startswith("stages.")] for keys in groups.values()]
    first = [min(numbers) for numbers in stages if numbers]
    assert first == sorted(first)
    assert len(set(first)) == len(model.stages)


def test_layer_decay_gives_the_stem_least_and_the_head_most(small: Build, name: str) -> None:
    model = small(name, device="meta", num_classes=10)
    groups = param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
    scale = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    parameters = list(model.parameters())
    assert len(scale) == len(parameters)
    assert scale[id(parameters[0])] == min(scale.values())
    assert scale[id(model.get_classifier().weight)] == 1
    assert len(set(scale.values())) >= 2 + sum(len(stage.blocks) for stage in model.stages)  # stem, blocks, head


def test_parameters_exempt_from_decay_exist_and_are_not_decayed(small: Build, name: str) -> None:
    model = small(name, device="meta")
    named = dict(model.named_parameters())
    exempt = model.no_weight_decay()
    assert exempt <= set(named)
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=exempt)
    decayed = {id(value) for group in groups if group["weight_decay"] for value in group["params"]}
    assert not any(id(named[key]) in decayed for key in exempt)


@pytest.mark.parametrize("depths", [3, (1, 1), (1, 1, 1, 0), (1, 1, 1.5, 1)], ids=str)
def test_depths_that_are_none_are_refused_in_a_sentence(family: str, depths: Any) -> None:
    with pytest.raises(ValueError, match=r"depths is .*; it takes . numbers of blocks, 1 or more each"):
        timm.create_model(family, depths=depths, device="meta")


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, "0.1"])
def test_a_drop_path_rate_that_is_no_share_is_refused_in_a_sentence(family: str, rate: Any) -> None:
    with pytest.raises(ValueError, match=f"drop_path_rate is {rate!r}; it takes a number from 0 up and below 1"):
        timm.create_model(family, drop_path_rate=rate, device="meta")


def test_drop_path_rises_from_0_to_its_rate_over_the_blocks(small: Build, name: str) -> None:
    model = small(name, drop_path_rate=0.3, device="meta")
    rates = [
        max((part.drop_prob for part in block.modules() if isinstance(part, DropPath)), default=0.0)
        for stage in model.stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0.3 * i / (len(rates) - 1) for i in range(len(rates))])


@pytest.mark.parametrize("training", [True, False])
def test_every_layer_is_called_where_something_watches_it(small: Build, network: str, training: bool) -> None:
    """What adapters, quantisers and pruners put in the place of a layer is used, and hooks see what passes."""
    model, called = small(network, num_classes=10).train(training), set()
    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.GELU)
    layers = {name: part for name, part in model.named_modules() if isinstance(part, kinds)}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.set_grad_enabled(training):
        model(image())
    assert called == set(layers)


@torch.no_grad()
def test_watching_changes_nothing(small: Build, network: str) -> None:
    model, x = small(network), image()
    expected = model(x)
    for part in model.modules():
        part.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


# --- devices, precisions, layouts ---


def test_a_model_is_built_in_the_dtype_asked_for(small: Build, name: str) -> None:
    tensors = small(name, dtype=torch.bfloat16, device="meta").state_dict()
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {torch.bfloat16}
    assert all(value.is_meta for value in tensors.values())


@torch.no_grad()
def test_a_model_made_without_memory_and_filled_later_is_the_same_model(small: Build, network: str) -> None:
    real, later = small(network), small(network, device="meta").to_empty(device="cpu")
    reinit_non_persistent_buffers(later)
    later.load_state_dict(real.state_dict())
    x = image()
    assert torch.equal(real(x), later(x))


@torch.no_grad()
def test_bfloat16_weights_give_finite_bfloat16_logits(small: Build, network: str) -> None:
    logits = small(network).to(torch.bfloat16)(image().bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_bfloat16_autocast_stays_close_and_trains(small: Build, family: str) -> None:
    model, x = small(family, num_classes=10), image()
    with torch.no_grad():
        expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert (logits - expected).abs().max() <= 0.1 * expected.std()
    logits.float().square().sum().backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())


@torch.no_grad()
def test_channels_last_gives_the_same_logits_and_maps(small: Build, network: str) -> None:
    model, x = small(network), image(2, 3, 64, 96)
    expected = model(x), model.forward_intermediates(x, intermediates_only=True)
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    given = model(x), model.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chans", [1, 4])
@torch.no_grad()
def test_images_may_have_another_number_of_channels(small: Build, network: str, chans: int) -> None:
    assert small(network, in_chans=chans)(image(2, chans, 64, 64)).isfinite().all()


@torch.no_grad()
def test_a_model_survives_copying_and_pickling(small: Build, family: str) -> None:
    model, x = small(family), image()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


def test_float16_autocast_gives_no_nan(small: Build, network: str) -> None:
    model = small(network, num_classes=10)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        logits, maps = model(3 * image()), model.forward_intermediates(3 * image(1, 3, 160, 192))[1]
    assert all(value.isfinite().all() for value in (logits, *maps))
