"""Try on a CPU what papers claim of speed, and what our fast operators gain over the plain ones.

hilo      attention of LITv2's third stage (14 x 14 tokens, 384 channels, 12 heads) against spatial-reduction attention
          as in PVT and window attention as in Swin, layer against layer
shvit     shvit_s4_fused against timm's mobilevitv2_100, both at 256 x 256
FAMILY    a model of the family against itself with VERTEBRA_KERNELS=reference, forward and training; the `_fused` ones
          against timm's own model too

The two sides take turns, one run each a round, and a round's gain is the other side's time over ours: CPU time of this
process, so that a busy machine disturbs little. Given are the median of the rounds, the lowest and the highest. Numbers
are float32, images and weights random.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.backbones._names import did_you_mean
from vertebra.kernels.dispatch import VARIABLE
from vertebra.kernels.window_attention import window_attention
from vertebra.tools._results import Origin, align, append, check_csv, describe, origin

MODELS = {
    "van": "van_b0",
    "biformer": "biformer_tiny",
    "transnext": "transnext_micro",
    "litv2": "litv2_small",
    "cswin": "cswin_tiny",
    "l2vit": "l2vit_tiny",
    "davit": "davit_tiny_fused",
    "maxvit": "maxvit_tiny_tf_224_fused",
    "shvit": "shvit_s4_fused",
}
BATCH, ROUNDS, THREADS = 8, 7, 1
Step = Callable[[], Any]


@dataclass(frozen=True)
class Trial:
    """Two sides of a comparison; `claimed` is the gain that the paper has, None where the comparison is ours alone."""

    ours: str
    other: str
    what: str
    claimed: float | None
    steps: Callable[[int], tuple[Step, Step]]
    """Batch -> what one run of ours and one of the other do."""


@dataclass(frozen=True)
class Row(Origin):
    """One line of the table and of the CSV file: `value` is the time of `other` over that of `ours`."""

    ours: str
    other: str
    what: str
    claimed: float | None
    value: float
    unit: str
    lowest: float
    highest: float
    ours_ms: float
    other_ms: float
    rounds: int
    batch: int
    precision: str


class SpatialReduction(nn.Module):
    """All tokens attend to the tokens of a map `ratio` times coarser, as in PVT: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.reduce, self.norm = nn.Conv2d(dim, dim, ratio, ratio), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        coarse = self.norm(self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        q = self.q(x).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(coarse).flatten(1, 2).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class Windows(nn.Module):
    """Attention in windows with a relative position bias, as in Swin: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.zeros(heads, 2 * side - 1, 2 * side - 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(3)
        return self.proj(window_attention(q, k, v, (self.side, self.side), bias_table=self.bias_table))


def trials(claim: str) -> Iterator[Trial]:
    """The comparisons of one of `claims()`."""
    if claim == "hilo":
        yield from _hilo()
        return
    name = MODELS[claim]
    if claim == "shvit":
        yield _forward(name, "mobilevitv2_100", 8.1)
    if name.endswith("_fused"):
        for mode in (_forward, _training):
            yield mode(name, name.removesuffix("_fused"), None)
    for mode in (_forward, _training):
        yield mode(name, None, None)


def claims() -> list[str]:
    """Everything that can be tried."""
    return ["hilo", *MODELS]


def _hilo() -> Iterator[Trial]:
    from vertebra.backbones.litv2 import HiLo

    dim, heads, side = 384, 12, 14
    for other, claimed in ((SpatialReduction(dim, heads, 2), 1.4), (Windows(dim, heads, 7), 1.6)):

        def steps(batch: int, other: nn.Module = other) -> tuple[Step, Step]:
            x, ours = torch.randn(batch, side, side, dim), HiLo(dim, heads, 2)
            return _run(ours.eval(), x), _run(other.eval(), x)

        yield Trial("HiLo", type(other).__name__, "layer forward", claimed, steps)


def _forward(name: str, other: str | None, claimed: float | None) -> Trial:
    def steps(batch: int) -> tuple[Step, Step]:
        ours, theirs, images = _pair(name, other, batch)
        return _run(ours.eval(), images), _as_side(other, _run(theirs.eval(), images))

    return Trial(name, other or "reference operators", "forward", claimed, steps)


def _training(name: str, other: str | None, claimed: float | None) -> Trial:
    def steps(batch: int) -> tuple[Step, Step]:
        ours, theirs, images = _pair(name, other, batch)
        return _train(ours.train(), images), _as_side(other, _train(theirs.train(), images))

    return Trial(name, other or "reference operators", "training", claimed, steps)


def _pair(name: str, other: str | None, batch: int) -> tuple[nn.Module, nn.Module, Tensor]:
    ours: Any = timm.create_model(name)
    theirs = timm.create_model(other or name)
    return ours, theirs, torch.randn(batch, *ours.pretrained_cfg["input_size"])


def _as_side(other: str | None, step: Step) -> Step:
    """The step as it is for another model, with the reference operators for our own."""
    return step if other else _with_reference(step)


def _with_reference(step: Step) -> Step:
    def run() -> None:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = "reference"
        try:
            step()
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before

    return run


def _run(model: nn.Module, x: Tensor) -> Step:
    def run() -> None:
        with torch.inference_mode():
            model(x)

    return run


def _train(model: nn.Module, x: Tensor) -> Step:
    """Forward and backward."""

    def run() -> None:
        model(x).square().mean().backward()
        model.zero_grad()

    return run


def measure(trial: Trial, batch: int = BATCH, rounds: int = ROUNDS, threads: int = THREADS) -> Row:
    """Let the two sides take turns; one round before the first does not count."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, other = trial.steps(batch)
        times = [(_seconds(ours), _seconds(other)) for _ in range(1 + rounds)][1:]
    finally:
        torch.set_num_threads(before)
    gains = [b / a for a, b in times]
    return Row(
        ours=trial.ours,
        other=trial.other,
        what=trial.what,
        claimed=trial.claimed,
        value=round(statistics.median(gains), 3),
        unit="x",
        lowest=round(min(gains), 3),
        highest=round(max(gains), 3),
        ours_ms=round(1e3 * statistics.median(a for a, _ in times), 2),
        other_ms=round(1e3 * statistics.median(b for _, b in times), 2),
        rounds=rounds,
        batch=batch,
        precision="float32",
        **origin("cpu", threads),
    )


def _seconds(step: Step) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def table(rows: Sequence[Row]) -> str:
    """The rows as text, what they have in common first."""
    lines = [("ours", "other", "what", "gain", "lowest", "highest", "claimed", "ours ms", "other ms")]
    for row in rows:
        gains = (f"{gain:.2f} x" for gain in (row.value, row.lowest, row.highest))
        claimed = f"{row.claimed:.1f} x" if row.claimed else ""
        lines.append((row.ours, row.other, row.what, *gains, claimed, f"{row.ours_ms:.1f}", f"{row.other_ms:.1f}"))
    head = f"{describe(rows[0])}; {rows[0].precision}, batch {rows[0].batch}, median of {rows[0].rounds} rounds"
    return f"{head}\n{align(lines, left=3)}"


def add_parser(kinds: argparse._SubParsersAction, epilog: str) -> None:
    """Add `claims` to the kinds of benchmark."""
    parser = kinds.add_parser(
        "claims",
        help="what papers claim of speed on a CPU, and our operators against the plain ones",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="CLAIM", help=f"{', '.join(claims())} (default: all)")
    add("--batch", type=int, default=BATCH, metavar="N", help=f"images a run (default: {BATCH})")
    add("--repeats", type=int, default=ROUNDS, metavar="N", help=f"rounds (default: {ROUNDS})")
    add("--threads", type=int, default=THREADS, metavar="N", help=f"threads of PyTorch (default: {THREADS})")
    add("--csv", type=Path, metavar="F", help="append the rows to this file, results/claims.csv say")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `benchmark claims`; the rows of each claim are written as soon as it was tried."""
    if args.device not in (None, "cpu"):
        raise UserError(f"--device {args.device}: claims are tried on the CPU; `benchmark models` has other devices")
    for name in args.names:
        if name not in claims():
            raise UserError(f"{name!r} is no claim; known are {', '.join(claims())}." + did_you_mean(name, claims()))
    if args.csv:
        check_csv(args.csv, Row)
    everything = []
    for name in args.names or claims():
        torch.manual_seed(0)
        rows = [measure(trial, args.batch, args.repeats, args.threads) for trial in trials(name)]
        everything += rows
        if args.csv:
            append(args.csv, rows)
    print(table(everything))
    return 0
