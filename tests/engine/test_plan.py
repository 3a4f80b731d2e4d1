"""The plan that a run says before its first step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from line_runs import line_runner
from mmengine.runner import IterBasedTrainLoop
from vertebra.engine.plan import describe_plan, origin_and_ways
from vertebra.engine.runner import VertebraRunner


def test_a_run_says_its_plan_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = dict(type="LinearLR", start_factor=0.01, end=2, by_epoch=False)
    made = line_runner(tmp_path, dict(accumulative_counts=3), param_scheduler=schedule)
    monkeypatch.setattr(VertebraRunner, "world_size", 2)
    monkeypatch.setattr("vertebra.engine.record.get_world_size", lambda: 2)
    made.optim_wrapper = made.build_optim_wrapper(made.optim_wrapper)
    made.scale_lr(made.optim_wrapper, dict(enable=True, base_batch_size=12))
    made._train_loop = made.build_train_loop(made._train_loop)
    made.param_schedulers = made.build_param_scheduler(made.param_schedulers)
    made.call_hook("before_train")
    said = "effective batch 24 (4 x 2 processes x 3 accumulated)  lr 2.00e-03  6 steps per epoch (2 optimizer steps)"
    assert f"plan  {said}  2 epochs  24 images  float32\n" in capsys.readouterr().out
    assert said in next(tmp_path.glob("*/*.log")).read_text()


def test_a_run_of_steps_in_mixed_precision_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    amp = dict(type="AnyDeviceAmpOptimWrapper", dtype="bfloat16", device="cpu")
    line_runner(tmp_path, amp, train_cfg=dict(by_epoch=False, max_iters=3)).train()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "plan  effective batch 4  lr 1.00e-03  6 steps per epoch  3 steps  24 images  bfloat16"
    assert said[-1].startswith("step 3/3")


def test_an_order_without_end_has_an_epoch_of_its_images_and_layer_decay_leaves_the_rate_alone() -> None:
    """As of a detector: 20 images in batches of four, resumed, with the rate that the head has."""
    groups = [{"lr": 1e-5, "initial_lr": rate} for rate in (0.01, 0.1)]
    order = SimpleNamespace(skip=0, endless=True, batches=SimpleNamespace(batch_size=4))
    loader = SimpleNamespace(batch_sampler=order, sampler=None, batch_size=None, dataset=range(20))
    runner: Any = SimpleNamespace(
        train_dataloader=loader,
        optim_wrapper=SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups)),
        world_size=1,
        train_loop=object.__new__(IterBasedTrainLoop),
        model=None,
        iter=7,
        max_iters=50,
    )
    said = "plan  effective batch 4  lr 1.00e-01  5 steps per epoch  50 steps  from step 7  20 images  float32"
    assert describe_plan(runner) == said


@pytest.mark.parametrize(
    ("config", "step", "said"),
    [
        (dict(model=dict(weights="mine.pth", channels_last=True)), 0, ["starts from mine.pth", "channels_last"]),
        (dict(model=dict(weights="mine.pth", norm_eval=True, sync_bn=False)), 7, ["norm_eval"]),
        (dict(model=dict(pretrained=True), load_from=None), 0, ["starts from published weights"]),
        (dict(model=dict(type="RetinaNet"), load_from="mine.pth"), 0, ["starts from mine.pth"]),
        (dict(model=dict(compiled=True, grad_checkpointing=True)), 0, ["compiled", "grad_checkpointing"]),
    ],
    ids=["weights", "resumed", "published", "a detector's", "ways"],
)
def test_the_plan_names_the_weights_it_starts_from_and_what_the_model_was_asked(
    config: dict[str, Any], step: int, said: list[str]
) -> None:
    assert origin_and_ways(config, resumed=bool(step)) == said
