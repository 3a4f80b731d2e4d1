"""Measure whether the data or the model holds a classifier's training up.

loader    images per second that the config's training loader gives on its own, augmentation and batching included
training  images per second of the model's training step alone, on one batch that stays in memory: what is done to the
          batch on the device, forward, backward and the optimizer's step

Both are warm, and measured one after the other in this process; a training on a CPU shares its cores between them. The
verdict is for one process: of several on a machine, each has its part of the cores, so divide the loader's rate.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vertebra.backbones._errors import UserError
from vertebra.tools._common import need, pick_device, usable_cores
from vertebra.tools._results import Origin, align, append, check_csv, describe, origin

SECONDS = 10.0
LEAST = 3  # batches or steps that are timed at least


@dataclass(frozen=True)
class Row(Origin):
    """One line of the table and of the CSV file; `part` is loader or training, which has no `workers`."""

    config: str
    part: str
    workers: int | None
    value: float
    unit: str
    batch: int
    height: int
    width: int
    model: str
    precision: str


def prepare(name: str, data: str | None, batch: int | None, amp: str | None = None, device: str = "cpu") -> Any:
    """The config, with data folder, batch size and mixed precision in their places; its model has fresh weights.

    Raises:
        UserError: no such config or model, or one that trains no classifier.
    """
    from vertebra.engine import config as configs
    from vertebra.engine.dense_config import is_dense

    config = configs.read_config(name)
    if is_dense(config):
        raise UserError(
            f"{name} is a {config.model.type}, and `benchmark data` measures classifiers; of others the log of a run "
            "has data_time beside time, in seconds a step"
        )
    missing = [key for key in ("train_dataloader", "optim_wrapper") if not config.get(key)]
    if missing:
        raise UserError(f"{name} cannot be trained: it has no {', '.join(missing)}")
    if data:
        configs.use_data(config, data)
    if batch:
        config.train_dataloader.batch_size = batch
    if amp:
        from vertebra.engine.optim import use_amp

        use_amp(config.optim_wrapper, amp, device)
    config.model.update(pretrained=False, weights=None)
    configs.check_model(config)
    return config


def measure(config: Any, workers: Sequence[int], device: torch.device, seconds: float = SECONDS) -> list[tuple]:
    """(part, workers, images per second, batch): the loader with each number of workers, then the training step."""
    found, batch = [], None
    for number in workers:
        rate, batch = loader_rate(config, number, seconds)
        found.append(("loader", number, rate, batch))
    return [*found, ("training", None, training_rate(config, batch, device, seconds), batch)]


def loader_rate(config: Any, workers: int, seconds: float) -> tuple[float, dict[str, torch.Tensor]]:
    """Images per second of the training loader, and one of its batches."""
    from vertebra.engine.data import build_loader, end_workers

    arguments = dict(config.train_dataloader, num_workers=workers)
    loader = build_loader(**arguments, seed=(config.get("randomness") or {}).get("seed", 0))
    try:
        batches = _endless(loader)
        batch = next(batches)
        for _ in range(2 * workers):  # what was fetched ahead does not count
            next(batches)
        return _rate(lambda: len(next(batches)["targets"]), seconds), batch
    finally:
        end_workers(loader)


def _endless(loader: Any) -> Iterator[dict[str, torch.Tensor]]:
    for epoch in itertools.count():
        for order in (loader.sampler, loader.dataset):
            if hasattr(order, "set_epoch"):
                order.set_epoch(epoch)
        yield from loader


def training_rate(config: Any, batch: dict[str, torch.Tensor], device: torch.device, seconds: float) -> float:
    """Images per second of training steps on one batch; its classes are taken modulo the model's."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS
    from vertebra.engine.optim import asks_for_amp, without_amp

    model = MODELS.build(config.model).to(device).train()
    wrapper = config.optim_wrapper
    if device.type != "cuda" and asks_for_amp(wrapper):
        wrapper = without_amp(wrapper)
    wrapper = build_optim_wrapper(model, wrapper)
    batch = {**batch, "targets": batch["targets"] % model.backbone.num_classes}

    def step() -> int:
        model.train_step(batch, wrapper)
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        return len(batch["targets"])

    for _ in range(2):
        step()
    return _rate(step, seconds)


def _rate(take: Callable[[], int], seconds: float) -> float:
    """Images per second of a function that returns how many it took, called for so long."""
    images, began = 0, time.perf_counter()
    for number in itertools.count(1):
        images += take()
        passed = time.perf_counter() - began
        if passed >= seconds and number >= LEAST:
            return images / passed
    raise AssertionError


def verdict(rows: Sequence[Row]) -> str:
    """Which of the two holds the training up, and what would help, in one line."""
    loader = max((row for row in rows if row.part == "loader"), key=lambda row: row.value)
    model = next(row for row in rows if row.part == "training")
    workers = "no worker" if not loader.workers else f"{loader.workers} worker{'s' * (loader.workers > 1)}"
    said = f"the loader gives {loader.value:.0f} img/s with {workers}, the model takes {model.value:.0f} img/s"
    if loader.value >= model.value:
        faster = "a GPU" if model.device == "cpu" else "--amp bf16 or --compile"
        return f"{said}: the model is the bottleneck; {faster} would help, and more workers would not"
    if (loader.workers or 0) < usable_cores():
        return f"{said}: the loader is the bottleneck; more workers would help, up to the {usable_cores()} cores"
    return f"{said}: the loader is the bottleneck; smaller files, a faster disk or lighter augmentation would help"


def table(rows: Sequence[Row]) -> str:
    """The rows as text, what they have in common first."""
    first = rows[0]
    lines = [("part", "workers", "images/s")]
    lines += [(row.part, "" if row.workers is None else str(row.workers), f"{row.value:.1f}") for row in rows]
    head = f"{first.config}: {first.model}, {first.height}x{first.width}, batch {first.batch}, {first.precision}"
    return f"{describe(first)}\n{head}\n{align(lines, left=1)}\n{verdict(rows)}"


def add_parser(kinds: argparse._SubParsersAction, epilog: str) -> None:
    """Add `data` to the kinds of benchmark."""
    parser = kinds.add_parser(
        "data",
        help="whether the data or the model holds a classifier's training up",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a classifier's config, by path or by name")
    add("--data", metavar="DIR", help="the data folder, in the place of the config's")
    add("--workers", nargs="+", type=int, metavar="N", help="workers of the loader, each measured (default: config's)")
    add("--batch", type=int, metavar="N", help="images a step (default: the config's)")
    add("--amp", choices=("bf16", "fp16"), help="mixed precision, as of `train`")
    add("--seconds", type=float, default=SECONDS, metavar="S", help=f"for each measurement (default: {SECONDS:g})")
    add("--device", default=argparse.SUPPRESS, help="cpu, cuda, cuda:1, mps ... (default: cuda where there is one)")
    add("--csv", type=Path, metavar="F", help="append the rows to this file, results/data.csv say")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `benchmark data`."""
    if not args.seconds > 0:
        raise UserError(f"--seconds is {args.seconds:g}, but must be more than 0")
    if args.workers and min(args.workers) < 0:
        raise UserError(f"--workers is {min(args.workers)}, but must be 0 or more")
    device = pick_device(args.device)
    if args.csv:
        check_csv(args.csv, Row)
    need("mmengine", extra="train")
    need("cv2", extra="train")
    import vertebra.engine  # noqa: F401  registers what the configs name

    config = prepare(args.config, args.data, args.batch, args.amp, device.type)
    asked = args.workers or [config.train_dataloader.get("num_workers", 0)]
    rows = rows_of(args.config, config, measure(config, usable(asked), device, args.seconds), device)
    print(table(rows))
    if args.csv:
        append(args.csv, rows)
    return 0


def usable(asked: Sequence[int]) -> list[int]:
    """Numbers of workers, at most one a core, which is all that a training starts."""
    return list(dict.fromkeys(min(number, usable_cores()) for number in asked))


def rows_of(name: str, config: Any, measured: Sequence[tuple], device: torch.device) -> list[Row]:
    """The rows of what `measure` returned."""
    where = origin(str(device), torch.get_num_threads())
    wrapper = config.optim_wrapper
    precision = wrapper.get("dtype", "float16") if "Amp" in wrapper.get("type", "") else "float32"
    return [
        Row(
            config=name,
            part=part,
            workers=workers,
            value=round(value, 2),
            unit="images/s",
            batch=len(batch["inputs"]),
            height=batch["inputs"].shape[2],
            width=batch["inputs"].shape[3],
            model=config.model.model_name,
            precision=precision,
            **where,
        )
        for part, workers, value, batch in measured
    ]
