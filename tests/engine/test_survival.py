"""Runs that are killed, stopped or find a corrupt file end as the run that was left alone: the same bits."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from vertebra.backbones._checkpoint import read_checkpoint

LAST = "epoch_4.pth"


def final_state(work_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: weights, EMA copy and optimizer."""
    checkpoint = read_checkpoint(work_dir / LAST)
    state = {f"ema.{key}": value for key, value in checkpoint["state_dict"].items()}
    state |= {f"plain.{key}": value for key, value in checkpoint["ema_state_dict"].items()}
    for number, slots in checkpoint["optimizer"]["state"].items():
        state |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in slots.items()}
    rates = [group["lr"] for group in checkpoint["optimizer"]["param_groups"]]
    return state | {"rates": torch.tensor(rates, dtype=torch.float64)}


def assert_same_bits(work_dir: Path, expected: dict[str, torch.Tensor]) -> None:
    found = final_state(work_dir)
    assert found.keys() == expected.keys()
    different = [key for key, value in expected.items() if not torch.equal(found[key], value)]
    assert not different, f"{len(different)} of {len(expected)} tensors differ: {different[:5]}"


_alone: dict[str, dict[str, torch.Tensor]] = {}


@pytest.fixture
def undisturbed(run: Callable, tiny: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """The end of the run that was left alone, computed once in this process."""
    if not _alone:
        done = run("train", tiny, "--work-dir", "alone")
        assert done.code == 0, done.said
        _alone["state"] = final_state(tmp_path / "alone")
    return _alone["state"]


def finish(run: Callable, tiny: Path, work_dir: Path) -> None:
    done = run("train", tiny, "--work-dir", work_dir, "--resume")
    assert done.code == 0, done.said


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.all)])
def test_killed_at_random_moments_it_ends_as_the_undisturbed_run(
    start: Callable, run: Callable, tiny: Path, tmp_path: Path, undisturbed: dict, seed: int
) -> None:
    """A checkpoint every four steps lies in the middle of epochs of six; SIGKILL falls anywhere after a new one."""
    draw = random.Random(seed)
    every = ["--cfg-options", "default_hooks.checkpoint.by_epoch=False", "default_hooks.checkpoint.interval=4"]
    for _ in range(2):
        before = set(tmp_path.glob("killed/*.pth"))
        tool = start("train", tiny, "--work-dir", "killed", "--resume", *every, slow_disk=0.2)
        tool.wait_until(lambda before=before: set(tmp_path.glob("killed/iter_*.pth")) - before)
        time.sleep(draw.uniform(0, 0.5))
        tool.kill()
    assert tool.code == -signal.SIGKILL
    finish(run, tiny, tmp_path / "killed")
    assert_same_bits(tmp_path / "killed", undisturbed)


def test_killed_while_a_checkpoint_is_written_it_ends_as_the_undisturbed_run(
    start: Callable, run: Callable, tiny: Path, tmp_path: Path, undisturbed: dict
) -> None:
    tool = start("train", tiny, "--work-dir", "killed", slow_disk=0.2)
    tool.wait_until(lambda: any(tmp_path.glob("killed/.epoch_2.pth.*.tmp")))
    tool.kill()
    assert tool.code == -signal.SIGKILL
    assert (tmp_path / "killed/epoch_1.pth").exists()
    finish(run, tiny, tmp_path / "killed")
    assert not list(tmp_path.glob("killed/.*.tmp")), "what was half written is still there"
    assert_same_bits(tmp_path / "killed", undisturbed)


def evaluations(work_dir: Path) -> list[str]:
    """The lines of the log that evaluations have written."""
    return [line for path in work_dir.glob("*/vis_data/scalars.json") for line in path.open() if "top1" in line]


EVALUATING = ["--cfg-options", "train_cfg.val_interval=1", "val_dataloader.batch_size=1"]


@pytest.mark.parametrize(
    ("signum", "code", "options"),
    [
        (signal.SIGINT, 130, []),
        pytest.param(signal.SIGTERM, 143, [], marks=pytest.mark.all),  # in every run while it evaluates
        (signal.SIGTERM, 143, EVALUATING),
    ],
    ids=["SIGINT", "SIGTERM", "SIGTERM while it evaluates"],
)
def test_a_signal_ends_a_run_with_a_checkpoint_and_a_sentence(
    start: Callable,
    run: Callable,
    tiny: Path,
    tmp_path: Path,
    undisturbed: dict,
    signum: int,
    code: int,
    options: list[str],
) -> None:
    tool = start("train", tiny, "--work-dir", "stopped", *options)
    tool.wait_until(lambda: "epoch 1/4" in tool.said)
    tool.send_to_all(signum)
    tool.wait()
    assert tool.code == code
    assert "is saved, and --resume carries on" in tool.said.splitlines()[-1]
    assert "Traceback" not in tool.said
    assert not options or not evaluations(tmp_path / "stopped"), "the evaluation was not left"
    assert list(tmp_path.glob("stopped/iter_*.pth")) or "epoch_" in tool.said.splitlines()[-1]
    finish(run, tiny, tmp_path / "stopped")
    assert not list(tmp_path.glob("stopped/iter_*.pth")), "the checkpoint of the interruption is superseded"
    assert_same_bits(tmp_path / "stopped", undisturbed)


def test_corrupt_checkpoints_are_passed_over_in_favour_of_the_one_before(
    start: Callable, run: Callable, tiny: Path, tmp_path: Path, undisturbed: dict
) -> None:
    tool = start("train", tiny, "--work-dir", "cut", slow_disk=0.5)
    tool.wait_until((tmp_path / "cut/epoch_3.pth").exists)
    tool.kill()
    assert not (tmp_path / "cut/epoch_4.pth").exists()
    newest, middle = (tmp_path / "cut" / name for name in ("epoch_3.pth", "epoch_2.pth"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    middle.write_bytes(middle.read_bytes()[: middle.stat().st_size // 2])
    done = run("train", tiny, "--work-dir", "cut", "--resume")
    assert done.code == 0, done.said
    assert "epoch_3.pth is damaged" in done.said
    assert "epoch_2.pth is truncated" in done.said
    assert "trying the one before" in done.said
    assert_same_bits(tmp_path / "cut", undisturbed)


def test_a_longer_run_moves_the_end_of_the_schedule_also_when_resumed(
    run: Callable, tiny: Path, tmp_path: Path
) -> None:
    """Two epochs, then on to four: the last rates are those of a run that meant to take four from the start."""
    short = run("train", tiny, "--work-dir", "longer", "--cfg-options", "train_cfg.max_epochs=2")
    assert short.code == 0, short.said
    finish(run, tiny, tmp_path / "longer")
    rates = final_state(tmp_path / "longer")["rates"]
    straight = run("train", tiny, "--work-dir", "straight")
    assert straight.code == 0, straight.said
    torch.testing.assert_close(rates, final_state(tmp_path / "straight")["rates"], rtol=1e-9, atol=0)


def test_a_resumed_run_keeps_the_seed_it_began_with(run: Callable, tiny: Path, tmp_path: Path) -> None:
    whole = run("train", tiny, "--work-dir", "whole", "--seed", 7)
    assert whole.code == 0, whole.said
    for name in ("epoch_2.pth", "epoch_3.pth"):
        assert (tmp_path / "whole" / name).exists()
    (tmp_path / "half").mkdir()
    (tmp_path / "whole/epoch_2.pth").rename(tmp_path / "half/epoch_2.pth")
    finish(run, tiny, tmp_path / "half")
    assert_same_bits(tmp_path / "half", final_state(tmp_path / "whole"))


def test_a_run_that_goes_on_in_a_new_folder_leaves_the_old_ones_best_alone(
    run: Callable, tiny: Path, tmp_path: Path
) -> None:
    best = ["default_hooks.checkpoint.save_best=top1", "train_cfg.val_interval=1"]
    first = run("train", tiny, "--work-dir", "old", "--cfg-options", *best, "train_cfg.max_epochs=1")
    assert first.code == 0, first.said
    (kept,) = tmp_path.glob("old/best_top1_*.pth")
    second = run("train", tiny, "--work-dir", "new", "--resume", "old/epoch_1.pth", "--cfg-options", *best)
    assert second.code == 0, second.said
    assert kept.exists()


def test_another_batch_size_goes_on_at_the_end_of_the_saved_epoch(run: Callable, tiny: Path, tmp_path: Path) -> None:
    """Two epochs of six steps, then epochs of four: the third is taken from its first batch."""
    short = run("train", tiny, "--work-dir", "wd", "--cfg-options", "train_cfg.max_epochs=2")
    assert short.code == 0, short.said
    wider = ["train_cfg.max_epochs=3", "train_dataloader.batch_size=12"]
    longer = run("train", tiny, "--work-dir", "wd", "--resume", "--cfg-options", *wider)
    assert longer.code == 0, longer.said
    assert "3 epochs, 12 steps" in longer.said
    assert read_checkpoint(tmp_path / "wd/epoch_3.pth")["meta"]["iter"] == 12


def test_the_last_checkpoints_and_the_best_are_kept(run: Callable, tiny: Path, tmp_path: Path) -> None:
    keep = ["default_hooks.checkpoint.max_keep_ckpts=2", "default_hooks.checkpoint.save_best=top1"]
    short = ["--cfg-options", *keep, "train_cfg.val_interval=1", "train_cfg.max_epochs=3"]
    done = run("train", tiny, "--work-dir", "kept", *short)
    assert done.code == 0, done.said
    assert sorted(path.name for path in tmp_path.glob("kept/epoch_*.pth")) == ["epoch_2.pth", "epoch_3.pth"]
    assert len(list(tmp_path.glob("kept/best_top1_epoch_*.pth"))) == 1
    done = run("train", tiny, "--work-dir", "kept", "--resume", *short[:-1], "train_cfg.max_epochs=4")
    assert done.code == 0, done.said
    assert sorted(path.name for path in tmp_path.glob("kept/epoch_*.pth")) == ["epoch_3.pth", "epoch_4.pth"]
    assert len(list(tmp_path.glob("kept/best_top1_epoch_*.pth"))) == 1


@pytest.mark.all
def test_a_killed_run_in_fp16_goes_on_with_its_loss_scale(
    start: Callable, run: Callable, tiny: Path, tmp_path: Path
) -> None:
    """The scale is halved by the first steps, whose gradients overflow, and is part of what they are divided by."""
    done = run("train", tiny, "--work-dir", "alone", "--amp", "fp16")
    assert done.code == 0, done.said
    tool = start("train", tiny, "--work-dir", "killed", "--amp", "fp16", slow_disk=0.3)
    tool.wait_until((tmp_path / "killed/epoch_2.pth").exists)
    tool.kill()
    done = run("train", tiny, "--work-dir", "killed", "--amp", "fp16", "--resume")
    assert done.code == 0, done.said
    scales = [read_checkpoint(tmp_path / folder / LAST)["optimizer"]["loss_scaler"] for folder in ("alone", "killed")]
    assert scales[0] == scales[1]
    assert scales[0]["_growth_tracker"] > 0
    assert_same_bits(tmp_path / "killed", final_state(tmp_path / "alone"))
