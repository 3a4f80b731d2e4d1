"""What the runner makes of a config's optimizer: no mixed precision without a GPU, and the rate for a step's images."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from line_runs import Line
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from torch import nn
from torch.utils.data import DataLoader
from vertebra.backbones._errors import UserError
from vertebra.engine import runner as module
from vertebra.engine.config import read_config
from vertebra.engine.runner import VertebraRunner


def runner(folder: Path, wrapper: dict[str, Any], **options: Any) -> VertebraRunner:
    """One epoch of two batches of four."""
    data = [{"inputs": torch.tensor(number)} for number in range(8)]
    return VertebraRunner(
        Line(),
        str(folder),
        train_dataloader=DataLoader(data, batch_size=4),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=wrapper,
        experiment_name=folder.name,
        default_hooks=dict(checkpoint=None, logger=None),
        **options,
    )


# --- several processes ---


def test_slurms_processes_meet_as_mmengine_has_them_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each has a GPU; here the meeting itself is left out."""
    met: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(module, "get_device", lambda: "cuda")
    monkeypatch.setattr("mmengine.runner.runner.init_dist", lambda launcher, **cfg: met.append((launcher, cfg)))
    wrapper = dict(optimizer=dict(type="SGD", lr=0.1))
    made = runner(tmp_path, wrapper)
    made._launcher, made._distributed = "slurm", True
    made.setup_env({"dist_cfg": {"backend": "nccl"}})
    assert met == [("slurm", {"backend": "nccl"})]


# --- mixed precision without a GPU ---


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the logger warns of as to precision, on a machine without a GPU."""
    lines: list[str] = []
    monkeypatch.setattr(module, "get_device", lambda: "cpu")
    monkeypatch.setattr(MMLogger, "warning", lambda self, text: lines.append(text) if "precision" in text else None)
    return lines


@pytest.mark.parametrize("kind", ["AmpOptimWrapper", "mmengine.AmpOptimWrapper", AmpOptimWrapper], ids=str)
def test_mixed_precision_is_left_out_where_there_is_no_gpu(kind: Any, tmp_path: Path, said: list[str]) -> None:
    asked = dict(type=kind, dtype="float16", loss_scale=512.0, use_fsdp=False, clip_grad=dict(max_norm=1.0))
    made = runner(tmp_path, {**asked, "optimizer": dict(type="SGD", lr=0.1)})
    made.train()
    assert type(made.optim_wrapper) is OptimWrapper
    assert made.optim_wrapper.clip_grad_kwargs == {"max_norm": 1.0}
    assert made.model.weight.item() == pytest.approx(1 - 2 * 0.1)
    assert said == ["mixed precision of the config is left out: it needs a CUDA GPU, and this runs on cpu"]


@pytest.mark.parametrize(
    "name",
    [
        "coco/litv2/mask-rcnn_litv2_small_fpn_1x",
        "coco/biformer/mask-rcnn_biformer_small_fpn_1x",
        "coco/transnext/mask-rcnn_transnext_base_fpn_1x",
    ],
)
def test_a_shipped_config_with_mixed_precision_gets_its_optimizer(name: str, tmp_path: Path, said: list[str]) -> None:
    wrapper = read_config(name).optim_wrapper
    assert wrapper.type == "AmpOptimWrapper"
    built = runner(tmp_path, wrapper).build_optim_wrapper(wrapper)
    assert type(built) is OptimWrapper
    assert built.optimizer.defaults["lr"] == wrapper.optimizer.lr
    assert len(said) == 1


def test_an_optimizer_without_mixed_precision_is_built_as_it_is(tmp_path: Path, said: list[str]) -> None:
    made = runner(tmp_path, dict(optimizer=dict(type="SGD", lr=0.1)))
    built = made.build_optim_wrapper(made.optim_wrapper)
    assert made.build_optim_wrapper(built) is built
    assert said == []


@pytest.mark.parametrize("asked", ["high", None])
def test_matrices_are_multiplied_as_the_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", heard.append)
    runner(tmp_path, {}, env_cfg=dict(dist_cfg=dict(backend="gloo"), float32_matmul_precision=asked))
    assert heard == ([asked] if asked else [])


def test_a_precision_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="float32_matmul_precision is 'tf32'; highest, high and medium"):
        runner(tmp_path, {}, env_cfg=dict(dist_cfg=dict(backend="gloo"), float32_matmul_precision="tf32"))


# --- the rate for the images of a step ---


@pytest.mark.parametrize(
    ("processes", "batches", "rate"), [(1, 1, 0.4 * 4 / 16), (2, 1, 0.4 * 8 / 16), (1, 3, 0.4 * 12 / 16), (2, 4, 0.8)]
)
def test_the_rate_is_that_of_all_images_whose_mean_a_step_takes(
    processes: int, batches: int, rate: float, tmp_path: Path
) -> None:
    wrapper = dict(optimizer=dict(type="SGD", lr=0.4), accumulative_counts=batches)
    made = runner(tmp_path, wrapper, auto_scale_lr=dict(enable=True, base_batch_size=16))
    made._world_size = processes
    built = made.build_optim_wrapper(wrapper)
    made.scale_lr(built, made.auto_scale_lr)
    assert built.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize("given", [None, dict(enable=False, base_batch_size=16), dict(base_batch_size=16)])
def test_the_rate_is_the_configs_own_unless_that_is_asked_for(given: dict[str, Any] | None, tmp_path: Path) -> None:
    wrapper = dict(optimizer=dict(type="SGD", lr=0.4), accumulative_counts=2)
    made = runner(tmp_path, wrapper, auto_scale_lr=given)
    made.train()
    assert made.optim_wrapper.optimizer.param_groups[0]["lr"] == 0.4


def test_a_rule_without_the_batch_that_the_rate_is_for_is_refused(tmp_path: Path) -> None:
    wrapper = dict(optimizer=dict(type="SGD", lr=0.4))
    made = runner(tmp_path, wrapper, auto_scale_lr=dict(enable=True))
    with pytest.raises(UserError, match="auto_scale_lr needs base_batch_size"):
        made.train()


def test_the_rate_that_is_shown_where_groups_have_several_is_multiplied_too(tmp_path: Path) -> None:
    made = runner(tmp_path, {}, auto_scale_lr=dict(enable=True, base_batch_size=16))
    slow, fast = ({"params": [nn.Parameter(torch.ones(()))], "lr": rate} for rate in (0.1, 0.2))
    wrapper = OptimWrapper(torch.optim.SGD([slow, fast], lr=0.4), accumulative_counts=2)
    made.scale_lr(wrapper, made.auto_scale_lr)
    assert wrapper.get_lr()["base_lr"] == pytest.approx([0.4 * 8 / 16])
    assert [group["lr"] for group in wrapper.optimizer.param_groups] == pytest.approx([0.05, 0.1])


def test_training_multiplies_the_rate_before_schedules_see_it(tmp_path: Path) -> None:
    made = runner(
        tmp_path,
        dict(optimizer=dict(type="SGD", lr=0.4), accumulative_counts=2),
        auto_scale_lr=dict(enable=True, base_batch_size=16),
        param_scheduler=dict(type="ConstantLR", factor=0.5, by_epoch=True, begin=0, end=5),
    )
    made.train()
    (group,) = made.optim_wrapper.optimizer.param_groups
    assert group["initial_lr"] == pytest.approx(0.4 * 8 / 16)
    assert made.model.weight.item() == pytest.approx(1 - 0.5 * 0.2 * 3.5)  # one step, along the mean of 0 to 7


def test_each_of_several_optimizers_counts_its_own_batches(tmp_path: Path) -> None:
    made = runner(tmp_path, {}, auto_scale_lr=dict(enable=True, base_batch_size=4))
    wrappers = {
        name: OptimWrapper(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), accumulative_counts=batches)
        for name, batches in (("one", 1), ("three", 3))
    }
    made.scale_lr(OptimWrapperDict(**wrappers), made.auto_scale_lr)
    rates = [wrapper.optimizer.param_groups[0]["lr"] for wrapper in wrappers.values()]
    assert rates == pytest.approx([0.1, 0.3])


class Described(Line):
    """One that a checkpoint can say what it is."""

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"model_name": "line", "num_classes": 0}


class Numbers(list):
    """Samples with what a data set says of itself."""

    metainfo: ClassVar[dict[str, Any]] = {}


@pytest.mark.parametrize(("images", "batches", "rate"), [(4, 1, 0.4), (8, 1, 0.8), (4, 2, 0.8)])
def test_a_run_that_goes_on_with_another_total_batch_takes_its_rate(
    images: int, batches: int, rate: float, tmp_path: Path
) -> None:
    """Also by a schedule in epochs, whose lengths stay the same."""
    samples = Numbers({"inputs": torch.tensor(number)} for number in range(8))

    def trained(batch: int, batches: int, epochs: int, **options: Any) -> dict[str, Any]:
        made = VertebraRunner(
            Described(),
            str(tmp_path),
            train_dataloader=DataLoader(samples, batch_size=batch),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.8), accumulative_counts=batches),
            auto_scale_lr=dict(enable=True, base_batch_size=8),
            param_scheduler=dict(type="MultiStepLR", milestones=[1], gamma=0.1),
            experiment_name=f"{tmp_path.name} {epochs}",
            default_hooks=dict(logger=None, checkpoint=dict(type="CheckpointHook", interval=1)),
            **options,
        )
        made.train()
        return made.optim_wrapper.optimizer.param_groups[0]

    assert trained(4, 1, 1)["initial_lr"] == pytest.approx(0.4)
    group = trained(images, batches, 2, resume=True)
    assert group["initial_lr"] == pytest.approx(rate)
    assert group["lr"] == pytest.approx(0.1 * rate)
