"""Train the demo configs as a user would, one command each, and keep what they reach and how long they take.

Each seed is a process of its own that begins with nothing trained: a classifier that the config wants first counts into
its time, and so do the imports and the evaluations on the way. The scores are those of `test` on the last checkpoint.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from vertebra.backbones._errors import UserError
from vertebra.backbones._names import did_you_mean
from vertebra.tools import make_dataset
from vertebra.tools._results import Origin, align, append, check_csv, describe, origin


@dataclass(frozen=True)
class Demo:
    """A command of `train` and what is asked of it: the config, the backbone in the place of the config's, options."""

    config: str
    aims: dict[str, float]
    model: str = ""
    options: tuple[str, ...] = ()

    @property
    def changes(self) -> list[str]:
        """The words of the command line that make this of the config."""
        words = ["--backbone", self.model] if self.model else []
        return [*words, "--cfg-options", *self.options] if self.options else words


def _family(model: str, epochs: int, *options: str) -> Demo:
    return Demo("demo/family_digits", {"top1": 0.95}, model, (*options, f"train_cfg.max_epochs={epochs}"))


_SHALLOW = "model.depths=[1,1,2,1]"
_NARROW = {
    "l2vit": ("model.depths=[1,2,2,2]", "model.dims=[32,64,128,256]"),
    "davit": ("model.depths=[1,1,1,1]", "model.embed_dims=[48,96,192,384]", "model.num_heads=[2,4,8,16]"),
}
_PUBLISHED = {  # of the recipes in configs/imagenet, what is not in the demo's
    "litv2": (
        "optim_wrapper.clip_grad.max_norm=5.0",
        "optim_wrapper.paramwise_cfg.custom_keys={'downsample.offset.weight':{'lr_mult':0.01}}",
    ),
    "shvit": (
        "optim_wrapper.optimizer.weight_decay=0.025",
        "optim_wrapper.clip_grad={'_delete_':True,'type':'agc','clip_factor':0.02}",
    ),
}
_SMALL_STEPS = ("train_dataloader.batch_size=16", "optim_wrapper.optimizer.lr=1e-3")
_CHANNELS_LAST = "model.channels_last=True"
FAMILIES = {
    "van": _family("van_b0", 11, _SHALLOW, _CHANNELS_LAST),
    "biformer": _family("biformer_tiny", 12, _SHALLOW, "model.n_win=4", "optim_wrapper.optimizer.lr=8e-4"),
    "transnext": _family("transnext_micro", 8, _SHALLOW),
    "litv2": _family("litv2_small", 8, _SHALLOW, *_PUBLISHED["litv2"]),
    "cswin": _family("cswin_tiny", 14, "model.depths=[1,1,1,1]", "optim_wrapper.optimizer.lr=6e-4"),
    "l2vit": _family("l2vit_tiny", 11, *_NARROW["l2vit"], *_SMALL_STEPS),
    "davit": _family("davit_tiny_fused", 10, *_NARROW["davit"]),
    "maxvit": _family("maxvit_pico_rw_256_fused", 9, _SHALLOW),
    "shvit": _family("shvit_s1_fused", 12, _CHANNELS_LAST, *_PUBLISHED["shvit"]),
}
"""One model each: the smallest, made shallower, and narrower, where it would take more than four minutes on two cores.

What the published recipes share stands in the config; here is what they do not.
"""

DEMOS = {
    "van_b0": Demo("demo/van_b0_digits", {"top1": 0.97}),
    "retinanet": Demo("demo/retinanet_digits", {"box_AP": 0.50}),
    "mask-rcnn": Demo("demo/mask-rcnn_digits", {"box_AP": 0.60, "mask_AP": 0.50}),
    "semantic-fpn": Demo("demo/semantic-fpn_digits", {"mIoU": 0.55}),
} | FAMILIES
ALL_FAMILIES = "families"
KNOWN = (*DEMOS, ALL_FAMILIES)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row(Origin):
    """One line of the table and of the CSV file: a score of one training, and the seconds of that training."""

    demo: str
    model: str
    options: str
    seed: int
    metric: str
    value: float
    unit: str
    aim: float
    seconds: float


def measure(demo: str, seed: int, data: Path, folder: Path) -> list[Row]:
    """Train and test one demo in `folder`.

    Raises:
        UserError: one of the two failed; what it said is above.
    """
    asked, work_dir = DEMOS[demo], folder / f"{demo}_{seed}"
    began = time.perf_counter()
    _run("train", asked.config, *asked.changes, "--data", data, "--seed", seed, "--work-dir", work_dir)
    seconds = round(time.perf_counter() - began, 1)
    checkpoint = (work_dir / "last_checkpoint").read_text()
    _run("test", asked.model or asked.config, checkpoint, "--data", data, "--out", folder / "metrics.json")
    metrics = json.loads((folder / "metrics.json").read_text())
    what = (demo, asked.model or "van_b0", " ".join(asked.options), seed)
    where = origin("cpu", torch.get_num_threads())
    return [
        Row(*what, name, round(metrics[name], 4), "fraction", aim, seconds, **where) for name, aim in asked.aims.items()
    ]


def _run(tool: str, *words: object) -> None:
    script = Path(__file__).parents[1] / f"{tool}.py"
    line = [sys.executable, str(script), *map(str, words), "--device", "cpu"]
    if subprocess.run(line, env={**os.environ, "PYTHONUNBUFFERED": "1"}).returncode:
        raise UserError(f"{tool} {' '.join(map(str, words))} failed; why is said above")


def table(rows: Sequence[Row]) -> str:
    """The rows as text, what they have in common first."""
    lines = [("demo", "model", "metric", "seed", "value", "asked for", "seconds")]
    for row in rows:
        numbers = (str(row.seed), f"{row.value:.3f}", f"{row.aim:.2f}", f"{row.seconds:.0f}")
        lines.append((row.demo, row.model, row.metric, *numbers))
    return f"{describe(rows[0])}\n{align(lines, left=3)}"


def add_parser(kinds: argparse._SubParsersAction, epilog: str) -> None:
    """Add `demos` to the kinds of benchmark."""
    parser = kinds.add_parser(
        "demos",
        help="what the demo configs reach within minutes on a CPU",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="DEMO", help=f"{', '.join(KNOWN)} (default: all)")
    add("--seeds", nargs="+", type=int, default=SEEDS, metavar="N", help="a training each (default: 0 1 2)")
    add("--csv", type=Path, metavar="F", help="append the rows to this file, results/learning.csv say")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run `benchmark demos`; the rows of each training are written as soon as it was tested."""
    if args.device not in (None, "cpu"):
        raise UserError(f"--device {args.device}: the demos are measured on the CPU; `train` takes other devices")
    for name in args.names:
        if name not in KNOWN:
            raise UserError(f"{name!r} is no demo; known are {', '.join(KNOWN)}." + did_you_mean(name, list(KNOWN)))
    names = [one for name in args.names for one in (FAMILIES if name == ALL_FAMILIES else [name])]
    if args.csv:
        check_csv(args.csv, Row)
    everything = []
    with TemporaryDirectory() as folder:
        make_dataset.make_digits(Path(folder) / "digits")
        for demo in dict.fromkeys(names or DEMOS):
            for seed in args.seeds:
                rows = measure(demo, seed, Path(folder) / "digits", Path(folder))
                everything += rows
                if args.csv:
                    append(args.csv, rows)
    print(table(everything))
    return 0
