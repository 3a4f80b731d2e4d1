"""Optimizers: which parameters decay, how fast each learns, how gradients are clipped, mixed precision on the CPU."""

import copy
import math
from typing import Any

import pytest
import torch
import vertebra.engine  # noqa: F401  registers the constructor
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from vertebra.backbones._errors import UserError
from vertebra.engine.classifier import TimmClassifier
from vertebra.engine.optim import TimmParamGroups

SMALL: dict[str, Any] = {"model_name": "van_b0", "num_classes": 3, "depths": (1, 1, 1, 1)}
ON_CPU = {"type": "AnyDeviceAmpOptimWrapper", "dtype": "bfloat16", "device": "cpu"}


def build(model: TimmClassifier, optimizer: str = "AdamW", **changes: Any) -> OptimWrapper:
    cfg = {"type": "OptimWrapper", "constructor": "TimmParamGroups", **changes}
    cfg["optimizer"] = {"type": optimizer, "lr": 1.0, "weight_decay": 0.05}
    return build_optim_wrapper(model, cfg)


def groups(**changes: Any) -> tuple[TimmClassifier, list[dict]]:
    model = TimmClassifier(**SMALL)
    return model, build(model, **changes).optimizer.param_groups


def setting(model: TimmClassifier, parts: list[dict], name: str, key: str) -> float:
    parameter = model.get_parameter(f"backbone.{name}")
    return next(part[key] for part in parts if any(parameter is other for other in part["params"]))


def test_every_parameter_is_optimized_once() -> None:
    model, parts = groups()
    assert sum(len(part["params"]) for part in parts) == len(list(model.parameters()))


def test_vectors_do_not_decay_and_matrices_do() -> None:
    model, parts = groups()
    assert setting(model, parts, "stages.0.blocks.0.scale1", "weight_decay") == 0
    assert setting(model, parts, "head.fc.bias", "weight_decay") == 0
    assert setting(model, parts, "head.fc.weight", "weight_decay") == 0.05


def test_layer_decay_slows_what_lies_deeper() -> None:
    model, parts = groups(paramwise_cfg={"layer_decay": 0.5})
    rates = [setting(model, parts, f"stages.{stage}.blocks.0.mlp.fc1.weight", "lr") for stage in range(4)]
    assert rates == sorted(rates)
    assert rates[1] == pytest.approx(rates[0] * 2)
    assert setting(model, parts, "head.fc.weight", "lr") == 1.0


def test_bf16_on_the_cpu_trains_and_keeps_weights_in_float32() -> None:
    model = TimmClassifier(**SMALL)
    cfg = {"type": "AnyDeviceAmpOptimWrapper", "dtype": "bfloat16", "device": "cpu", "constructor": "TimmParamGroups"}
    wrapper = build_optim_wrapper(model, {**cfg, "optimizer": {"type": "SGD", "lr": 0.1}})
    before = model.backbone.head.fc.weight.clone()
    seen: list[torch.dtype] = []
    model.backbone.stages[1].downsample.conv.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    batch = {"inputs": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "targets": torch.tensor([0, 1])}
    model.train_step(batch, wrapper)
    assert seen[0] == torch.bfloat16
    assert model.backbone.head.fc.weight.dtype == torch.float32
    assert not torch.equal(before, model.backbone.head.fc.weight)


# --- every depth, and every name, its rate ---


@pytest.mark.parametrize("name", ["van_b0", "cswin_tiny", "shvit_s1_fused"])
def test_layer_decay_gives_each_depth_its_rate(name: str) -> None:
    from timm.models import group_parameters

    model = TimmClassifier(name, num_classes=3, device="meta")
    parts = build(model, paramwise_cfg={"layer_decay": 0.5}).optimizer.param_groups
    depths = group_parameters(model.backbone, model.backbone.group_matcher(coarse=False), reverse=True)
    last = max(depths.values())
    found = {key: setting(model, parts, key, "lr") for key in depths}
    assert found == pytest.approx({key: 0.5 ** (last - depth) for key, depth in depths.items()})
    assert len(set(found.values())) == last + 1


def test_the_longest_part_of_a_name_that_fits_sets_rate_and_decay() -> None:
    keys = {"backbone.": {"lr_mult": 0.1}, "backbone.head.": {"lr_mult": 2.0, "decay_mult": 0.5}}
    model, parts = groups(paramwise_cfg={"custom_keys": keys})
    assert sum(len(part["params"]) for part in parts) == len(list(model.parameters()))
    assert setting(model, parts, "stages.0.blocks.0.mlp.fc1.weight", "lr") == pytest.approx(0.1)
    assert setting(model, parts, "stages.0.blocks.0.mlp.fc1.weight", "weight_decay") == 0.05
    assert setting(model, parts, "stages.0.blocks.0.mlp.fc1.bias", "weight_decay") == 0
    assert setting(model, parts, "head.fc.weight", "lr") == 2.0
    assert setting(model, parts, "head.fc.bias", "weight_decay") == pytest.approx(0.025)


def test_names_and_depths_multiply() -> None:
    keys = {"mlp.fc1.weight": {"lr_mult": 0.1}}
    model, parts = groups(paramwise_cfg={"layer_decay": 0.5, "custom_keys": keys})
    slow, usual = (setting(model, parts, f"stages.0.blocks.0.mlp.{part}.weight", "lr") for part in ("fc1", "fc2"))
    assert slow == pytest.approx(0.1 * usual)
    assert usual < 0.5


@pytest.mark.parametrize(
    ("paramwise", "sentence"),
    [
        ({"custom_keys": {"offset": {"lr_mult": 0.1}}}, "custom_keys has 'offset', which is in no parameter's name"),
        ({"custom_keys": {"head": {"lr": 0.1}}}, r"custom_keys\['head'\] has 'lr'.*lr_mult, decay_mult are accepted"),
        ({"norm_decay_mult": 0.0}, "has 'norm_decay_mult', which nothing reads; layer_decay, custom_keys"),
    ],
    ids=["no such name", "no such multiplier", "no such rule"],
)
def test_a_rule_that_nothing_follows_is_refused(paramwise: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        groups(paramwise_cfg=paramwise)


# --- clipping ---


def with_gradients(name: str, **options: Any) -> TimmClassifier:
    """A model whose gradients are far larger than its weights in most units and small in others."""
    torch.manual_seed(0)
    model = TimmClassifier(name, num_classes=3, **options)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn_like(parameter) * (10.0 if number % 2 else 1e-4)
    return model


@pytest.mark.parametrize(("name", "options"), [("van_b0", {"depths": (1, 1, 1, 1)}), ("shvit_s1_fused", {})])
@pytest.mark.parametrize("wrapper", [{}, ON_CPU, {**ON_CPU, "dtype": "float16"}], ids=["float32", "bf16", "fp16"])
def test_adaptive_clipping_is_that_of_timms_script(name: str, options: dict[str, Any], wrapper: dict[str, Any]) -> None:
    model = with_gradients(name, **options)
    theirs = copy.deepcopy(model.backbone)
    for ours, parameter in zip(model.parameters(), theirs.parameters(), strict=True):
        parameter.grad = ours.grad.clone()
    untouched = [parameter.grad.clone() for parameter in theirs.parameters()]
    dispatch_clip_grad(model_parameters(theirs, exclude_head=True), 0.02, mode="agc")
    made = build(model, "SGD", clip_grad={"type": "agc", "clip_factor": 0.02}, **wrapper)
    if "float16" in wrapper.values():  # what a backward pass leaves is multiplied, and clipped once it is divided again
        for parameter in model.parameters():
            parameter.grad *= made.loss_scaler.scale(torch.ones(()))
    made.step()
    for ours, parameter in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, parameter.grad)
    pairs = zip(theirs.parameters(), untouched, strict=True)
    assert sum(not torch.equal(parameter.grad, before) for parameter, before in pairs) > 5
    norm = torch.stack([gradient.norm() for gradient in untouched]).norm().item()
    assert MessageHub.get_current_instance().get_scalar("train/grad_norm").current() == pytest.approx(norm, rel=1e-4)


def test_the_norm_of_gradients_is_logged_where_nothing_is_clipped() -> None:
    model = with_gradients("van_b0", depths=(1, 1, 1, 1))
    before = [parameter.grad.clone() for parameter in model.parameters()]
    build(model, "SGD").step()
    assert all(torch.equal(part.grad, old) for part, old in zip(model.parameters(), before, strict=True))
    norm = torch.stack([gradient.norm() for gradient in before]).norm().item()
    assert MessageHub.get_current_instance().get_scalar("train/grad_norm").current() == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("given", [{"max_norm": 1.0}, {"type": "norm", "max_norm": 1.0}])
def test_gradients_are_clipped_by_their_norm(given: dict[str, Any]) -> None:
    model = with_gradients("van_b0", depths=(1, 1, 1, 1))
    build(model, "SGD", clip_grad=given).step()
    assert math.sqrt(sum(part.grad.square().sum().item() for part in model.parameters())) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("given", [None, {"max_norm": 1.0}, {"type": "agc", "clip_factor": 0.02}], ids=str)
def test_a_gradient_that_is_no_number_ends_the_run_before_the_step(given: dict[str, Any] | None) -> None:
    model = TimmClassifier(**SMALL)
    wrapper = build(model, "SGD", clip_grad=given)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.backbone.head.fc.weight.grad[0, 0] = torch.inf
    with pytest.raises(UserError, match="the norm of the gradients is inf: training has diverged"):
        wrapper.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_adaptive_clipping_waits_until_gradients_have_accumulated() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets, clipping, found = torch.arange(4) % 3, {"type": "agc", "clip_factor": 0.02}, []
    for group in (1, 2):
        torch.manual_seed(0)
        model = TimmClassifier(**SMALL, norm_eval=True).train()
        wrapper = build(model, "SGD", clip_grad=clipping, accumulative_counts=group)
        for part, target in zip(images.chunk(group), targets.chunk(group), strict=True):
            model.train_step({"inputs": part, "targets": target}, wrapper)
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("clipping", "sentence"),
    [
        ({"type": "agcc"}, "has the type 'agcc'; norm, value, agc are accepted"),
        ({"type": "agc", "max_norm": 1.0}, "of type 'agc' has 'max_norm', which nothing reads; type, clip_factor"),
    ],
)
def test_an_unknown_kind_of_clipping_is_refused(clipping: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        groups(clip_grad=clipping)


class StrategysOwn:
    """As DeepSpeed's wrapper in mmengine: it takes an optimizer, and no other argument."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_a_strategys_own_wrapper_gets_the_groups_and_no_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIM_WRAPPERS._module_dict, "StrategysOwn", StrategysOwn)
    given = dict(type="StrategysOwn", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05))
    model = TimmClassifier("van_b0", num_classes=4, depths=(1, 1, 1, 1))
    assert {group["weight_decay"] for group in TimmParamGroups(given)(model).optimizer.param_groups} == {0.0, 0.05}
    with pytest.raises(UserError, match="StrategysOwn takes no clip_grad"):
        TimmParamGroups({**given, "clip_grad": dict(max_norm=1.0)})(model)


def test_shards_that_do_not_show_what_decays_are_refused() -> None:
    model = TimmClassifier("van_b0", num_classes=4, depths=(1, 1, 1, 1))
    for parameter in model.parameters():
        parameter.data = parameter.data.flatten()
    with pytest.raises(UserError, match="every parameter is a vector, as in shards of FSDP"):
        TimmParamGroups(dict(optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05)))(model)
