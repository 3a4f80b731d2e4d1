"""Draw the curves of training runs side by side: loss, metrics, gradient norm and learning rate."""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vertebra.backbones._errors import UserError
from vertebra.backbones._files import write_whole
from vertebra.tools._common import make_parser, need, run_tool
from vertebra.tools._places import check_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_LOGS = ("*/vis_data/scalars.json", "vis_data/scalars.json")
_METRICS = {
    "top1": "top-1 accuracy",
    "box_AP": "box AP",
    "bbox_mAP": "box AP",
    "mask_AP": "mask AP",
    "segm_mAP": "mask AP",
    "mIoU": "mean IoU",
}
# mmseg logs percent; all else, as metrics.json, is in fractions
_OF_100 = ("mIoU", "mAcc", "aAcc", "mDice", "mFscore", "mPrecision", "mRecall")
_TITLES = {**_METRICS, "loss": "training loss", "grad_norm": "gradient norm", "lr": "learning rate"}
_NO_METRIC = {
    "step",
    "epoch",
    "iter",
    "time",
    "data_time",
    "memory",
    "lr",
    "base_lr",
    "by_step",
    "loss",
    "images",
    "unreadable",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by all eyes
_LINES = ("-", "--", ":", "-.")
_FEW = 40  # points, up to which each gets a marker

Curve = tuple[list[float], list[float]]  # positions and values


@dataclass
class Run:
    """The log of one work dir: the history that led to its newest state, without what a resume threw away."""

    path: Path
    train: list[dict[str, float]] = field(default_factory=list)
    """Rows with `step`, `loss`, `lr` and `epoch`, which older logs of runs by steps do without; steps ascend."""
    val: list[dict[str, float]] = field(default_factory=list)
    """Rows with metrics and `step`: the epoch in runs that count epochs, else the training step."""

    @property
    def by_epoch(self) -> bool:
        """Whether the run counts epochs, and so numbers its evaluations."""
        return all("epoch" in row and "by_step" not in row for row in self.train)

    @property
    def steps_per_epoch(self) -> float:
        """From the first rows of the first and last epoch: within a logging interval over the epochs between."""
        first, last = self.train[0], self.train[-1]
        enough = max(row["step"] / row["epoch"] for row in self.train)  # or a row would lie behind its own epoch
        if first["epoch"] == last["epoch"]:
            return enough
        begin = next(row["step"] for row in self.train if row["epoch"] == last["epoch"])
        return max(enough, (begin - first["step"]) / (last["epoch"] - first["epoch"]))

    def metrics(self) -> list[str]:
        """The metrics worth a panel: the main ones of the task, else the first three of the log."""
        names = list(dict.fromkeys(name for row in self.val for name in row if name not in _NO_METRIC))
        return [name for name in names if _last(name) in _METRICS] or names[:3]

    def curve(self, name: str, epochs: bool, validation: bool = False) -> Curve:
        """Positions (in epochs, or in steps) and values of one quantity."""
        rows = [row for row in (self.val if validation else self.train) if name in row]
        scale = 1.0
        if self.by_epoch and validation != epochs:  # rows of training stand at steps, those of validation at epochs
            scale = 1 / self.steps_per_epoch if epochs else self.steps_per_epoch
        return [row["step"] * scale for row in rows], [row[name] for row in rows]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def read_run(work_dir: Path) -> Run:
    """Read the log that training left in a work dir; half-written lines of killed runs are passed over.

    A resumed run has one log for each start. Where a log goes back to an earlier step, what was logged behind that step
    before belongs to work that the resume threw away, and is dropped.

    Raises:
        UserError: no such folder; no log in it; a log without a training step.
    """
    if not work_dir.is_dir():
        raise UserError(f"there is no folder {work_dir}; a work dir of `vertebra train` is wanted")
    logs = sorted(file for pattern in _LOGS for file in work_dir.glob(pattern))
    if not logs:
        raise UserError(
            f"{work_dir} has no training log: a work dir of `vertebra train` has TIME/vis_data/scalars.json"
        )
    rows = [row for log in logs for row in _rows(log)]
    whole = Run(work_dir, [row for row in rows if "lr" in row], [row for row in rows if "lr" not in row])
    if not whole.train:
        raise UserError(f"the log of {work_dir} has no training step yet")
    place = "epoch" if whole.by_epoch else "step"
    train: dict[float, dict[str, float]] = {}
    val: dict[float, dict[str, float]] = {}
    for row in rows:
        if "lr" not in row:
            val[row["step"]] = row
            continue
        if train and row["step"] <= next(reversed(train)):
            train = {step: old for step, old in train.items() if step < row["step"]}
            val = {step: old for step, old in val.items() if step < row[place]}
        train[row["step"]] = row
    return Run(work_dir, list(train.values()), [row for step, row in sorted(val.items()) if step > 0])


def _rows(log: Path) -> Iterator[dict[str, float]]:
    """The numbers of each whole line, metrics as fractions."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            numbers = {str(name): float(value) for name, value in row.items() if isinstance(value, int | float)}
            numbers |= {name: value / 100 for name, value in numbers.items() if _last(name) in _OF_100}
            if "base_lr" in numbers:
                numbers["lr"] = numbers["base_lr"]  # before layer decay
            yield numbers


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: as many last parts of its path as tell it from the others."""
    paths = [run.path.resolve() for run in runs]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return [name if len(name) <= 50 else f"…{name[-49:]}" for name in names]


def draw(runs: Sequence[Run], out: Path) -> None:
    """Draw the curves of the runs into one picture, which replaces an older one when it is whole.

    Raises:
        UserError: the suffix is not .png, .svg or .pdf; `out` is a folder; matplotlib is not installed.
    """
    check_out(out)
    figure = _figure(runs)
    data = io.BytesIO()
    figure.savefig(data, format=out.suffix.lower().removeprefix("."), dpi=150)
    write_whole(out, data.getvalue())


def check_out(out: Path) -> None:
    """Refuse a path that no picture can be written to, before anything is read."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out} has the suffix {out.suffix!r}; a picture ends in {', '.join(SUFFIXES)}")
    check_file(out, f"--out {out}", "curves.png")


def _figure(runs: Sequence[Run]) -> "Figure":
    figure_class = need("matplotlib.figure", extra="train").Figure  # without pyplot: no window, no global state
    names = labels(runs)
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics()))
    epochs = all(run.by_epoch for run in runs)
    norm = ["grad_norm"] if any("grad_norm" in row for run in runs for row in run.train) else []
    panels = ["loss", *metrics, *norm, "lr"]
    figure = figure_class(figsize=(4.4 * len(panels), 3.6 + 0.22 * len(runs)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    grid = figure.subplots(1, len(panels), sharex=True)
    for axes, name in zip(grid, panels, strict=True):
        _panel(axes, [run.curve(name, epochs, validation=name in metrics) for run in runs], name)
        axes.set_xlabel("epoch" if epochs else "training step")
    grid[0].set_xlim(left=0)
    grid[0].xaxis.get_major_locator().set_params(integer=True)
    for line, run, name in zip(grid[0].lines, runs, names, strict=True):
        line.set_label(name + _best(run, metrics, epochs))
    figure.legend(handles=grid[0].lines, loc="outside lower center", frameon=False)
    return figure


def _panel(axes: "Axes", curves: Sequence[Curve], name: str) -> None:
    """One quantity of all runs; fractions of a metric as percent."""
    values = [y for _, ys in curves for y in ys]
    percent = _is_fraction(name, values)
    for index, (xs, ys) in enumerate(curves):
        style = {"linestyle": _LINES[index // len(_COLOURS) % len(_LINES)], "linewidth": 1.4}
        marker = {"marker": "o", "markersize": 3} if len(xs) <= _FEW else {}
        shown = [100 * y for y in ys] if percent else ys
        axes.plot(xs, shown, color=_COLOURS[index % len(_COLOURS)], **style, **marker)
    axes.set_ylabel(_TITLES.get(_last(name), name) + (" (%)" if percent else ""))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if name in ("loss", "grad_norm") and _spans_decades(values):
        axes.set_yscale("log")
    elif name == "lr":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _is_fraction(name: str, values: Sequence[float]) -> bool:
    return _last(name) in _METRICS and all(0 <= value <= 1 for value in values if math.isfinite(value))


def _spans_decades(values: Sequence[float]) -> bool:
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > 100


def _best(run: Run, metrics: Sequence[str], epochs: bool) -> str:
    """': best top-1 accuracy 97.50 % at epoch 16', or nothing where the first metric is unknown."""
    if not metrics or _last(metrics[0]) not in _METRICS:
        return ""
    xs, ys = run.curve(metrics[0], epochs, validation=True)
    if not ys:
        return ""
    best = max(range(len(ys)), key=lambda i: ys[i] if math.isfinite(ys[i]) else -math.inf)
    value = f"{100 * ys[best]:.2f} %" if _is_fraction(metrics[0], ys) else f"{ys[best]:.4g}"
    return f": best {_TITLES[_last(metrics[0])]} {value} at {'epoch' if epochs else 'step'} {xs[best]:.0f}"


def build_parser() -> argparse.ArgumentParser:
    """The command line of `plot`."""
    parser = make_parser(
        "plot",
        "Draw the curves of training runs side by side: loss, metrics, gradient norm and learning rate.",
        "vertebra plot work_dirs/van_b0 work_dirs/van_b1 --out curves.png",
    )
    parser.add_argument("work_dirs", nargs="+", type=Path, metavar="WORK_DIR", help="what `train` wrote its run to")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help=f"the picture: {', '.join(SUFFIXES)}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `plot`."""
    args = build_parser().parse_args(argv)
    check_out(args.out)
    runs = [read_run(work_dir) for work_dir in args.work_dirs]
    draw(runs, args.out)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
