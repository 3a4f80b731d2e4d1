"""Several processes train as one, end together, and notice that one is gone. All of them meet over gloo on the CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_processes import Started, free_port
from vertebra.backbones._checkpoint import read_checkpoint
from vertebra.backbones._errors import UserError
from vertebra.engine import ranks
from vertebra.engine.watch import grace_seconds

# --- two processes, or batches that accumulate, are one process with the same total batch ---

PLAIN = """
_base_ = [
    "{configs}/_base_/models/classifier.py",
    "{configs}/_base_/datasets/digits.py",
    "{configs}/_base_/schedules/adamw_300e.py",
    "{configs}/_base_/runtime/default.py",
]
model = dict(num_classes=4, depths=(1, 1, 1, 1), label_smoothing=0.1, {model})
whole = dict(input_size=(3, 32, 32), scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=None)
train_dataloader = dict(dataset=dict(root="{data}", transform=whole), batch_size=8, num_workers=0)
val_dataloader = dict(dataset=dict(root="{data}", transform=dict(input_size=(3, 32, 32))), batch_size=5, num_workers=0)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=3, val_interval=3)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=2e-3, momentum=0.9, weight_decay=1e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, eta_min_ratio=1e-2, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.1, update_buffers=True)]
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""
MODELS = {
    "cswin": 'model_name="cswin_tiny"',
    "van": 'model_name="van_b0", norm_eval=True',  # whose BatchNorm would see other batches
}


@pytest.fixture(params=["cswin", pytest.param("van", marks=pytest.mark.all)])
def plain(request: pytest.FixtureRequest, images: Path, tmp_path: Path) -> Path:
    """A config without any draw inside the model, whose loss is smooth enough to be compared to rounding."""
    configs = Path(__file__).parents[2] / "configs"
    text = PLAIN.replace("{configs}", str(configs)).replace("{data}", str(images))
    path = tmp_path / "plain.py"
    path.write_text(text.replace("{model}", MODELS[request.param]))
    return path


def losses(work_dir: Path, accumulated: int = 1) -> torch.Tensor:
    """The logged losses, a mean for each step of the optimizer."""
    rows = [json.loads(line) for path in work_dir.glob("*/vis_data/scalars.json") for line in path.open()]
    found = torch.tensor([row["loss"] for row in rows if "loss" in row], dtype=torch.float64)
    return found.view(-1, accumulated).mean(1)


def weights(work_dir: Path) -> dict[str, torch.Tensor]:
    """Weights, averaged weights and the optimizer's momentum at the end."""
    checkpoint = read_checkpoint(work_dir / "epoch_3.pth")
    state = {f"averaged {key}": value for key, value in checkpoint["state_dict"].items()}
    state |= {key: value for key, value in checkpoint["ema_state_dict"].items() if key != "steps"}
    slots = checkpoint["optimizer"]["state"].items()
    return state | {f"momentum {key}": slot["momentum_buffer"] for key, slot in slots}


def test_two_processes_or_two_batches_that_accumulate_train_as_one(
    run: Callable, start_together: Callable, plain: Path, tmp_path: Path
) -> None:
    done = run("train", plain, "--work-dir", "one")
    assert done.code == 0, done.said
    half = ("--cfg-options", "train_dataloader.batch_size=4")
    done = run("train", plain, "--work-dir", "accumulated", *half, "optim_wrapper.accumulative_counts=2")
    assert done.code == 0, done.said
    for process in start_together(2, "train", plain, "--work-dir", "two", *half):
        assert process.wait().code == 0, process.said

    expected = losses(tmp_path / "one")
    assert len(expected) == 18
    assert expected[-1] < 0.9 * expected[0], "nothing was learned, so nothing is compared"
    torch.testing.assert_close(losses(tmp_path / "two"), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses(tmp_path / "accumulated", 2), expected, rtol=1e-4, atol=0)
    found = weights(tmp_path / "one")
    for other in ("two", "accumulated"):
        torch.testing.assert_close(weights(tmp_path / other), found, rtol=1e-3, atol=2e-5, msg=lambda text: text)


def test_an_evaluation_by_three_processes_counts_each_image_once(
    run: Callable, start_together: Callable, tiny: Path, images: Path, tmp_path: Path
) -> None:
    """Eleven images in batches of three, so that shares of equal size would count one twice."""
    shutil.copytree(images, tmp_path / "eleven")
    next((tmp_path / "eleven" / "val").rglob("*.png")).unlink()
    short = ("--cfg-options", "train_cfg.max_epochs=1", "train_dataloader.batch_size=2", "val_dataloader.batch_size=3")
    processes = start_together(3, "train", tiny, "--data", "eleven", "--work-dir", "three", *short)
    for process in processes:
        assert process.wait().code == 0, process.said
    rows = [json.loads(line) for path in tmp_path.glob("three/*/vis_data/scalars.json") for line in path.open()]
    found = next(row for row in rows if "top1" in row)
    assert found["images"] == 11
    done = run("test", tiny, "three/epoch_1.pth", "--data", "eleven", "--out", "alone.json")
    assert done.code == 0, done.said
    alone = json.loads((tmp_path / "alone.json").read_text())
    assert alone["images"] == 11
    assert alone["top1"] == pytest.approx(found["top1"])


# --- signals ---

HALF = ("--cfg-options", "train_dataloader.batch_size=4")  # so two processes make the steps of one
LAST = "epoch_4.pth"


def end_state(work_dir: Path) -> dict[str, torch.Tensor]:
    """Weights, averaged ones and optimizer at the end; running statistics are each process's own within an epoch."""
    checkpoint = read_checkpoint(work_dir / LAST)
    state = {key: value for key, value in checkpoint["ema_state_dict"].items() if "running" not in key}
    state |= {f"averaged {key}": value for key, value in checkpoint["state_dict"].items() if "running" not in key}
    slots = checkpoint["optimizer"]["state"].items()
    return state | {f"{number}.{key}": torch.as_tensor(value) for number, slot in slots for key, value in slot.items()}


_undisturbed: dict[str, dict[str, torch.Tensor]] = {}


@pytest.fixture
def undisturbed(start_together: Callable, tiny: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """The end of two processes that were left alone, computed once in this process."""
    if not _undisturbed:
        for process in start_together(2, "train", tiny, "--work-dir", "undisturbed", *HALF):
            assert process.wait().code == 0, process.said
        _undisturbed["state"] = end_state(tmp_path / "undisturbed")
    return _undisturbed["state"]


def finish(start_together: Callable, tiny: Path, work_dir: Path, expected: dict[str, torch.Tensor]) -> None:
    """Resume, and compare bits: nothing was lost or done twice."""
    processes = start_together(2, "train", tiny, "--work-dir", work_dir, "--resume", *HALF)
    for process in processes:
        assert process.wait().code == 0, process.said
    assert "starting from the beginning" not in processes[0].said
    found = end_state(work_dir)
    assert found.keys() == expected.keys()
    different = [key for key, value in expected.items() if not torch.equal(found[key], value)]
    assert not different, f"{len(different)} of {len(expected)} tensors differ: {different[:5]}"


@pytest.mark.parametrize(
    "asked",
    [pytest.param((0,), marks=pytest.mark.all), (1,), pytest.param((0, 1), marks=pytest.mark.all)],
    ids=["the first", "the second", "both"],
)
def test_a_signal_to_any_process_ends_all_after_the_same_step_with_a_checkpoint(
    start_together: Callable, tiny: Path, tmp_path: Path, undisturbed: dict, asked: tuple[int, ...]
) -> None:
    processes = start_together(2, "train", tiny, "--work-dir", "stopped", *HALF)
    processes[0].wait_until(lambda: "epoch 1/4" in processes[0].said)
    began = time.monotonic()
    for rank in asked:
        processes[rank].send_to_all(signal.SIGTERM)
    for process in processes:
        assert process.wait(grace_seconds() + 20).code == 143, process.said
    assert time.monotonic() - began < grace_seconds() + 10
    assert "is saved, and --resume carries on" in processes[0].said.splitlines()[-1]
    assert "Traceback" not in processes[0].said + processes[1].said
    assert "Warning" not in processes[0].said + processes[1].said
    finish(start_together, tiny, tmp_path / "stopped", undisturbed)


@pytest.mark.all
def test_a_second_signal_of_a_launcher_does_not_keep_the_run_from_saving(
    start_together: Callable, tiny: Path, tmp_path: Path
) -> None:
    """A scheduler signals every process, and torchrun passes on the one that it got itself."""
    processes = start_together(2, "train", tiny, "--work-dir", "stopped", *HALF, slow_disk=0.3)
    processes[0].wait_until(lambda: "epoch 1/4" in processes[0].said)
    for _ in range(2):
        for process in processes:
            process.send_to_all(signal.SIGTERM)
        time.sleep(0.1)
    assert [process.wait().code for process in processes] == [143, 143]
    assert "is saved, and --resume carries on" in processes[0].said


@pytest.fixture
def evaluating(tiny: Path, tmp_path: Path) -> Path:
    """The tiny config with evaluations of three seconds in each of two processes, after every epoch."""
    path = tmp_path / "evaluating.py"
    path.write_text(EVALUATING.replace("{tiny}", str(tiny)))
    return path


EVALUATING = """
_base_ = "{tiny}"
custom_imports = dict(imports=["vertebra.engine", "slow_evaluation"])
custom_hooks = [dict(type="SlowEvaluationHook")]
train_cfg = dict(val_interval=1)
train_dataloader = dict(batch_size=4)
val_dataloader = dict(batch_size=1)
"""


def test_a_signal_within_an_evaluation_ends_it_for_all(
    start_together: Callable, evaluating: Path, tmp_path: Path
) -> None:
    processes = start_together(2, "train", evaluating, "--work-dir", "stopped")
    processes[0].wait_until(lambda: "evaluating" in processes[0].said)
    processes[1].send_to_all(signal.SIGTERM)
    assert [process.wait().code for process in processes] == [143, 143]
    assert "stopped/epoch_1.pth is saved, and --resume carries on" in processes[0].said.splitlines()[-1]
    assert "evaluated" not in processes[0].said


@pytest.mark.all
@pytest.mark.parametrize("killed", [1, 0], ids=["the second", "the first, which keeps the store"])
def test_a_process_that_is_killed_within_an_evaluation_ends_the_others(
    start_together: Callable, evaluating: Path, killed: int
) -> None:
    """No collective call is in progress there that could fail."""
    soon = {"VERTEBRA_PEER_SECONDS": "4"}
    processes = start_together(2, "train", evaluating, "--work-dir", "killed", variables=soon)
    processes[0].wait_until(lambda: "evaluating" in processes[0].said)
    processes[killed].kill()
    other = processes[1 - killed]
    assert other.wait(60).code == 2
    assert "another process of this run is gone (" in other.said
    assert killed == 0 or "nothing was heard of process 1" in other.said
    assert "Traceback" not in other.said


@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.all)], ids=["the second", "the first"])
def test_a_killed_process_ends_the_others_with_a_sentence_and_the_run_goes_on_from_its_checkpoint(
    start_together: Callable, tiny: Path, tmp_path: Path, undisturbed: dict, killed: int
) -> None:
    processes = start_together(2, "train", tiny, "--work-dir", "killed", *HALF)
    processes[0].wait_until((tmp_path / "killed/epoch_1.pth").exists)
    processes[killed].kill()
    other = processes[1 - killed]
    assert other.wait(60).code == 2, other.said
    assert "another process of this run is gone" in other.said
    assert "Traceback" not in other.said
    finish(start_together, tiny, tmp_path / "killed", undisturbed)


def test_a_process_that_waits_in_vain_ends_after_the_time_of_grace(
    start_together: Callable, tiny: Path, tmp_path: Path
) -> None:
    """The other one neither answers nor is gone, as a machine that lost its network."""
    soon = {"VERTEBRA_GRACE_SECONDS": "1"}
    processes = start_together(2, "train", tiny, "--work-dir", "held", *HALF, variables=soon)
    processes[0].wait_until(lambda: "epoch 1/4" in processes[0].said)
    processes[1].send(signal.SIGSTOP)
    time.sleep(0.5)
    processes[0].send(signal.SIGTERM)
    try:
        assert processes[0].wait(30).code == 143
    finally:
        processes[1].send(signal.SIGCONT)
    assert "its step has not ended within 1 s" in processes[0].said


@pytest.mark.all
def test_a_full_disk_at_the_end_ends_all_and_keeps_the_older_checkpoint(
    start_together: Callable, tiny: Path, tmp_path: Path
) -> None:
    processes = start_together(2, "train", tiny, "--work-dir", "full", *HALF)
    processes[0].wait_until((tmp_path / "full/epoch_1.pth").exists)
    whole = (tmp_path / "full/epoch_1.pth").stat().st_size
    for process in processes:
        process.kill()
    kept = (tmp_path / "full/epoch_1.pth").read_bytes()
    processes = start_together(2, "train", tiny, "--work-dir", "full", "--resume", *HALF, largest_file=whole // 2)
    codes = [process.wait(60).code for process in processes]
    assert codes[0] == 2, processes[0].said
    assert codes[1] != 0, processes[1].said
    assert "file is larger than this process may write" in processes[0].said
    assert (tmp_path / "full/epoch_1.pth").read_bytes() == kept


ALONE = ("--nproc-per-node", 2, "--standalone")
ENDS = (  # of a process whose partner was killed: it misses it, or the launcher's signal comes first
    "another process of this run is gone",
    "is saved, and --resume carries on",
)


@pytest.fixture
def torchrun(tiny: Path, tmp_path: Path) -> Iterator[Callable[..., "Launched"]]:
    """`torchrun(*ALONE)` starts a run of two processes in `tmp_path / "launched"`."""
    started: list[Launched] = []

    def launch(*options: object) -> Launched:
        script = Path(ranks.__file__).parents[1] / "tools" / "train.py"
        line = [sys.executable, "-m", "torch.distributed.run", *map(str, options), str(script), str(tiny)]
        line += ["--device", "cpu", "--launcher", "pytorch", "--work-dir", "launched", "--resume", *HALF]
        started.append(Launched(line, tmp_path))
        return started[-1]

    yield launch
    for launched in started:
        launched.process.kill()


class Launched:
    """A launcher and what it says."""

    def __init__(self, line: list[str], folder: Path) -> None:
        self.said_in, self.work_dir = folder / "said.txt", folder / "launched"
        with self.said_in.open("a") as said:
            self.process = subprocess.Popen(line, cwd=folder, stdout=said, stderr=subprocess.STDOUT)

    def wait_for(self, name: str) -> None:
        """Until a file is there."""
        until = time.monotonic() + 200
        while not (self.work_dir / name).exists():
            assert self.process.poll() is None, self.said_in.read_text()
            assert time.monotonic() < until, self.said_in.read_text()
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """The processes that train."""
        told = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [pid for pid in map(int, told.split()) if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.all
def test_torchrun_starts_a_killed_run_again_and_it_ends_as_the_undisturbed_one(
    torchrun: Callable[..., Launched], undisturbed: dict
) -> None:
    launched = torchrun(*ALONE, "--max-restarts", 1)
    launched.wait_for("epoch_2.pth")
    os.kill(launched.workers()[-1], signal.SIGKILL)
    assert launched.process.wait(300) == 0, launched.said_in.read_text()
    said = launched.said_in.read_text()
    assert any(end in said for end in ENDS)
    assert said.count("starting from the beginning") == 1
    found = end_state(launched.work_dir)
    assert not [key for key, value in undisturbed.items() if not torch.equal(found[key], value)]


@pytest.mark.all
def test_two_nodes_start_a_killed_run_again_together(torchrun: Callable[..., Launched], undisturbed: dict) -> None:
    """Two launchers of this machine stand in for two machines; the process that is killed is one of the second's."""
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "van")
    each = ("--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 3, *meeting)
    nodes = [torchrun(*each), torchrun(*each)]
    nodes[0].wait_for("epoch_2.pth")
    os.kill(nodes[1].workers()[0], signal.SIGKILL)
    assert [node.process.wait(300) for node in nodes] == [0, 0], nodes[0].said_in.read_text()
    said = nodes[0].said_in.read_text()
    assert any(end in said for end in ENDS)
    assert said.count("starting from the beginning") == 1
    found = end_state(nodes[0].work_dir)
    assert not [key for key, value in undisturbed.items() if not torch.equal(found[key], value)]


@pytest.mark.all
def test_a_signal_to_torchrun_leaves_a_run_that_goes_on(torchrun: Callable[..., Launched], undisturbed: dict) -> None:
    launched = torchrun(*ALONE)
    launched.wait_for("epoch_1.pth")
    launched.process.send_signal(signal.SIGTERM)
    assert launched.process.wait(60) != 0
    assert "is saved, and --resume carries on" in launched.said_in.read_text()
    again = torchrun(*ALONE)
    assert again.process.wait(300) == 0, again.said_in.read_text()
    found = end_state(again.work_dir)
    assert not [key for key, value in undisturbed.items() if not torch.equal(found[key], value)]


# --- starting together ---


@pytest.mark.parametrize("launcher", ["slurm", "mpi"])
def test_launchers_that_give_each_process_a_gpu_are_refused_without_one(launcher: str) -> None:
    with pytest.raises(UserError, match=f"--launcher {launcher} needs a GPU"):
        ranks.meet_without_gpu(launcher)


def test_processes_that_do_not_meet_say_so(start: Callable[..., Started], tiny: Path) -> None:
    alone: dict[str, Any] = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="none", WORLD_SIZE="2", RANK="1", LOCAL_RANK="1")
    process = start("train", tiny, "--device", "cpu", "--launcher", "pytorch", variables=alone).wait()
    assert process.code == 2
    assert "process 1 did not meet the others at 127.0.0.1:none" in process.said


@pytest.mark.parametrize(
    ("launcher", "variables"),
    [
        ("pytorch", {"WORLD_SIZE": "2", "RANK": "0"}),
        ("slurm", {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}),
    ],
)
def test_processes_that_were_started_together_do_not_train_alone(
    start: Callable[..., Started], tiny: Path, launcher: str, variables: dict[str, str]
) -> None:
    process = start("train", tiny, variables=variables).wait()
    assert process.code == 2
    assert f"2 processes were started together: --launcher {launcher}" in process.said.splitlines()[-1]


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_one_process_speaks_before_they_have_met(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for other in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(other, raising=False)
    assert ranks.is_first()
    monkeypatch.setenv(variable, "1")
    assert not ranks.is_first()
    monkeypatch.setenv(variable, "0")
    assert ranks.is_first()


@pytest.mark.all
def test_a_loss_that_is_no_number_ends_all_with_the_same_sentence(
    start_together: Callable, tiny: Path, tmp_path: Path
) -> None:
    wild = ["param_scheduler=None", "optim_wrapper.clip_grad=None", "optim_wrapper.optimizer.lr=1e30"]
    processes = start_together(2, "train", tiny, "--work-dir", "wild", *HALF, *wild)
    assert [process.wait().code for process in processes] == [2, 2]
    for process in processes:
        assert "the loss is" in process.said.splitlines()[-1]
        assert "is gone" not in process.said
