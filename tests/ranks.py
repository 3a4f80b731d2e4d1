"""Ranks of one job as processes on this machine, joined by gloo; a rank that waits for ever fails the test.

A module beside conftest.py, because the processes have to import what they run by name.
"""

import multiprocessing
import queue
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed


def run_ranks(job: Callable[..., Any], world: int, folder: Path, *arguments: Any, seconds: float = 60) -> list[Any]:
    """What `job(*arguments)` returns on each rank; an error's text in its place. The function stands in this file.

    `seconds` are those that the slowest rank may take; the jobs of this file take two or three, `train` a minute.
    """
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vertebra.engine", "vertebra.tools.train", "vertebra.tools.test"])
    answers = context.Queue()
    started = [
        context.Process(target=_rank, args=(job, rank, world, str(folder / "store"), seconds, answers, arguments))
        for rank in range(world)
    ]
    for process in started:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < world:
            rank, answer = answers.get(timeout=seconds)
            found[rank] = answer
    except queue.Empty:
        raise AssertionError(f"ranks {sorted(set(range(world)) - found.keys())} did not end; others: {found}") from None
    finally:
        for process in started:
            process.join(5 if len(found) == world else 0)
            process.kill()
    return [found[rank] for rank in range(world)]


def _rank(
    job: Callable[..., Any],
    rank: int,
    world: int,
    store: str,
    seconds: float,
    answers: Any,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=seconds / 2)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=patience)
    try:
        answer = job(*arguments)
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    answers.put((rank, answer))
    distributed.barrier()
    distributed.destroy_process_group()


def top_k(batches: list[list[tuple[list[int], int]]]) -> Any:
    """Evaluate this rank's batches, each (targets, class that is predicted): the metrics and the confusion's sum."""
    from vertebra.engine.metrics import TopK

    metric = TopK()
    for targets, predicted in batches[distributed.get_rank()]:
        logits = torch.nn.functional.one_hot(torch.full((len(targets),), predicted), 5).float()
        metric.process(None, [{"logits": logits, "targets": torch.tensor(targets)}])
    found = metric.evaluate(0)
    assert metric.confusion is not None
    return found, int(metric.confusion.sum())


def unreadable_images(shares: list[list[int]], limit: int) -> list[str]:
    """Meet this rank's unreadable images in an epoch: the names that were told."""
    from vertebra.engine.hooks import UnreadableImagesHook

    said: list[str] = []
    loader = SimpleNamespace(dataset=SimpleNamespace(filename=lambda index: f"{index}.png"))
    runner: Any = SimpleNamespace(iter=0, train_dataloader=loader, logger=SimpleNamespace(warning=said.append))
    hook = UnreadableImagesHook(limit)
    hook.after_train_iter(runner, 0, {"unreadable": torch.tensor(shares[distributed.get_rank()])})
    hook.after_train_epoch(runner)
    return [line.split()[2] for line in said]
