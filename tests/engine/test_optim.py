"""Optimizers: which parameters decay, how fast each depth learns, and mixed precision on the CPU."""

import pytest
import torch
import vertebra.engine  # noqa: F401  registers the constructor
from mmengine.optim import build_optim_wrapper
from vertebra.engine.classifier import TimmClassifier

SMALL = {"model_name": "van_b0", "num_classes": 3, "depths": (1, 1, 1, 1)}


def groups(**changes: object) -> tuple[TimmClassifier, list[dict]]:
    model = TimmClassifier(**SMALL)
    cfg = {"type": "OptimWrapper", "constructor": "TimmParamGroups", **changes}
    cfg["optimizer"] = {"type": "AdamW", "lr": 1.0, "weight_decay": 0.05}
    return model, build_optim_wrapper(model, cfg).optimizer.param_groups


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
