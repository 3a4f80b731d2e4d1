"""List the models: parameters, multiply-adds, published accuracy, source, licence and kernels."""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import vertebra
import yaml
from timm.models import get_arch_pretrained_cfgs, model_entrypoint
from vertebra.backbones._errors import UserError
from vertebra.backbones._names import did_you_mean
from vertebra.tools._common import make_parser, run_tool
from vertebra.tools._flops import count_multiply_adds
from vertebra.tools._results import read

ROOT = Path(vertebra.__file__).parent
COUNTS = ROOT / "results" / "complexity.csv"
TIMM = "https://github.com/huggingface/pytorch-image-models"
_BACKBONES = f"{vertebra.__name__}.backbones."
_LEGEND = (
    "gflops are 1e9 multiply-adds for one image of side `size`, counted here; top1 is percent on ImageNet-1K as the "
    "source published it, not measured here. What has no source has no published number."
)


@dataclass
class Row:
    """One name and tag, in the order and under the names of the columns."""

    name: str
    tag: str
    family: str
    params: int
    gflops: float
    size: int
    top1: float | None
    source: str | None
    licence: str | None
    kernels: list[str]
    url: str | None


@dataclass
class Entry:
    """A name and tag of the registry, and what timm says of it."""

    name: str
    tag: str
    family: str
    cfg: Any

    @property
    def full(self) -> str:
        """`name.tag`, the key of cards and counts; the name alone where there is no tag."""
        return f"{self.name}.{self.tag}" if self.tag else self.name


@cache
def cards() -> dict[str, dict[str, Any]]:
    """What authors published, by family: model_cards/cards.yml."""
    return yaml.safe_load((ROOT / "model_cards" / "cards.yml").read_text(encoding="utf-8"))


def entries() -> list[Entry]:
    """Every name that vertebra registers with each of its tags, the default tag first."""
    found = []
    for name in timm.list_models():
        if model_entrypoint(name).__module__.startswith(_BACKBONES):
            for cfg in get_arch_pretrained_cfgs(name).values():
                found.append(Entry(name, cfg.tag or "", name.partition("_")[0], cfg))
    return found


def select(pattern: str | None) -> list[Entry]:
    """The entries that a pattern means: wildcards as in a shell, else a name, else a part of one.

    Raises:
        UserError: none does; names the nearest.
    """
    everything = entries()
    if pattern is None:
        return everything
    wanted = pattern.lower()
    found = [e for e in everything if fnmatchcase(e.name, wanted) or fnmatchcase(e.full, wanted)]
    found = found or [e for e in everything if wanted in e.full or wanted == e.family]
    if not found:
        known = list(dict.fromkeys(name for e in everything for name in (e.name, e.full)))
        raise UserError(
            f"no model of vertebra matches {pattern!r}; `vertebra list` shows them all."
            + did_you_mean(wanted.strip("*?"), known)
        )
    return found


def stored_counts() -> dict[str, dict[str, str]]:
    """The rows of results/complexity.csv by model; empty where there is no such file."""
    return {row["model"]: row for row in read(COUNTS)}


def count(entry: Entry) -> dict[str, str]:
    """Build the model without memory for its weights and count: a row of results/complexity.csv."""
    chans, size, _ = entry.cfg.input_size
    model = timm.create_model(entry.full, device="meta")
    return {
        "model": entry.full,
        "size": str(size),
        "params": str(sum(parameter.numel() for parameter in model.parameters())),
        "multiply_adds": str(count_multiply_adds(model, size, chans)),
        "torch": torch.__version__.partition("+")[0],  # the count is the same in every build
        "timm": timm.__version__,
    }


def recount(chosen: Sequence[Entry]) -> None:
    """Count `chosen` afresh and write results/complexity.csv in the registry's order; other models keep their rows."""
    rows = stored_counts() | {entry.full: count(entry) for entry in chosen}
    ordered = [rows[entry.full] for entry in entries() if entry.full in rows]
    COUNTS.parent.mkdir(exist_ok=True)
    with COUNTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(ordered[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)


def make_rows(chosen: Sequence[Entry]) -> list[Row]:
    """What is known of each entry; a model whose count is not stored is counted now."""
    stored = stored_counts()
    rows = []
    for entry in chosen:
        size = entry.cfg.input_size[1]
        counted = stored.get(entry.full, {})
        if counted.get("size") != str(size):
            counted = count(entry)
        card = cards().get(entry.family, {})
        published = card.get("models", {}).get(entry.full, {})
        rows.append(
            Row(
                name=entry.name,
                tag=entry.tag,
                family=entry.family,
                params=int(counted["params"]),
                gflops=int(counted["multiply_adds"]) / 1e9,
                size=size,
                top1=published.get("top1"),
                source=", ".join(what for what, _ in sources(card, published)) or None,
                licence=card.get("licence") or entry.cfg.license,
                kernels=list(card.get("kernels", [])),
                url=published.get("url") or _link(entry.cfg),
            )
        )
    return rows


def _link(cfg: Any) -> str | None:
    """Where timm loads the weights from: their place on the Hugging Face hub, else the file."""
    return f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url or None


def sources(card: dict[str, Any], published: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the published numbers of a model stand, and the link there; nothing where none were published.

    Args:
        card: its family's part of cards.yml.
        published: its own.
    """
    if "source" not in published:
        return []
    number = published.get("arxiv", card["paper"]["arxiv"])
    links = {"README of the code": card["code"], "timm's notes on its weights": TIMM}
    return [
        (part, links[part]) if part in links else (f"{part} of arXiv:{number}", arxiv(number))
        for part in published["source"].split(", ")
    ]


def arxiv(number: str) -> str:
    """The link to a paper."""
    return f"https://arxiv.org/abs/{number}"


def weights_licence(card: dict[str, Any], published: dict[str, Any]) -> str | None:
    """The Hub's identifier of the licence that is stated of a model's weights; None where none is.

    What cards.yml says of a model goes before what it says of the family.
    """
    return {**card, **published}.get("weights_spdx")


_TEXT = {
    "params": lambda value: f"{value / 1e6:.2f} M",
    "gflops": lambda value: f"{value:.2f}",
    "top1": lambda value: "-" if value is None else f"{value:.1f}",
    "kernels": lambda value: ", ".join(value) or "none",
}
_NUMBERS = {"params", "gflops", "size", "top1"}
_COLUMNS = [field.name for field in fields(Row) if field.name != "url"]  # too long for a line: --json has it


def _cells(row: Row) -> list[str]:
    return [_TEXT.get(column, lambda value: str(value or "-"))(getattr(row, column)) for column in _COLUMNS]


def plain_table(rows: Sequence[Row]) -> str:
    """Columns aligned by spaces, numbers to the right."""
    lines = [_COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
            for cell, width, column in zip(line, widths, _COLUMNS, strict=True)
        ).rstrip()
        for line in lines
    )


def show(rows: Sequence[Row]) -> None:
    """rich's table on a terminal that is wide enough, where rich is installed; the plain one otherwise."""
    plain = plain_table(rows)
    if not sys.stdout.isatty() or not _show_rich(rows, width=max(map(len, plain.splitlines()))):
        print(plain)


def _show_rich(rows: Sequence[Row], width: int) -> bool:
    """False, and nothing printed, without rich or on a terminal narrower than `width`."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    console = Console()
    if console.width < width:
        return False
    table = Table(caption=_LEGEND, caption_justify="left", box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    return True


def build_parser() -> argparse.ArgumentParser:
    """The command line of `list`."""
    parser = make_parser(
        "list",
        f"List the models of vertebra, one line a name and tag, the default tag first.\n{_LEGEND}",
        "vertebra list 'van_*' --json",
    )
    parser.add_argument("pattern", nargs="?", help="a name, a part of one, or wildcards in quotes; default: all models")
    parser.add_argument("--json", action="store_true", help="a list of objects, with the links to the weights too")
    parser.add_argument(
        "--recount", action="store_true", help="for a new or changed model: count afresh into results/complexity.csv"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `list`."""
    args = build_parser().parse_args(argv)
    chosen = select(args.pattern)
    if args.recount:
        recount(chosen)
    rows = make_rows(chosen)
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
