"""What a card is made from: cards.yml, the registry, the configs, the links that were looked at, results/*.csv."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import vertebra
from vertebra.tools._docs.detection import Leaf, leaves
from vertebra.tools._results import read
from vertebra.tools.list import Entry, Row, arxiv, cards, entries, make_rows, sources, weights_licence

ROOT = Path(vertebra.__file__).parent
RESULTS = ROOT / "results"
LINKS = ROOT / "model_cards" / "links.csv"
_LAYERS = {"HiLo": "litv2"}
"""Layers that results/claims.csv has under names of their own."""


@dataclass
class Family:
    """A family: `key` is the first part of its names, `card` its part of cards.yml."""

    key: str
    card: dict[str, Any]
    entries: list[Entry]
    rows: list[Row]

    @property
    def title(self) -> str:
        """Its name in prose."""
        return self.card["title"]

    @property
    def paper(self) -> str:
        """The link to its paper."""
        return arxiv(self.card["paper"]["arxiv"])

    @property
    def example(self) -> Row:
        """The model of the commands: the first of the card, a small one."""
        first = next(iter(self.card["models"]))
        return next(row for row in self.rows if full_name(row) == first)

    @property
    def linked(self) -> bool:
        """Whether the example's published weights load by themselves, without a file that is fetched by hand."""
        return self.example.url is not None

    @property
    def weights_word(self) -> str:
        """What commands take for the example's published weights: a word, or that file."""
        return "pretrained" if self.linked else f"{self.example.name}.pth"

    @cached_property
    def detectors(self) -> list[Leaf]:
        """The configs on COCO."""
        return leaves("coco", self.key)

    @cached_property
    def segmenters(self) -> list[Leaf]:
        """The configs on ADE20K."""
        return leaves("ade20k", self.key)

    def published(self, row: Row) -> dict[str, Any]:
        """What cards.yml has of a model; nothing of one that a newer timm brings."""
        return self.card["models"].get(full_name(row), {})

    def sources(self, row: Row) -> list[tuple[str, str]]:
        """As `list` says them, with links."""
        return sources(self.card, self.published(row))

    def published_in(self, row: Row) -> str:
        """Where a model's top-1 stands, in words without links; nothing where none was published."""
        return "" if row.top1 is None else ", ".join(what for what, _ in self.sources(row))

    @cached_property
    def files(self) -> set[str]:
        """The names of published files of weights, as far as they are known."""
        links = [link for row in self.rows for link in self.links(row) if link]
        return {self.weights_word, *(PurePosixPath(urlparse(link).path).name for link in links)}

    def links(self, row: Row) -> list[str]:
        """Of a model's weights: where they load from, "" where there is no such place, and then the same file's others.

        timm's own repositories on the Hub lead to the file; of others the registry names no file, and the page stands.
        """
        cfg = next(entry for entry in self.entries if entry.full == full_name(row)).cfg
        first = row.url or ""
        file = cfg.hf_hub_filename or ("model.safetensors" if str(cfg.hf_hub_id).startswith("timm/") else None)
        if file and cfg.hf_hub_id and first.endswith(cfg.hf_hub_id):
            first += f"/resolve/main/{file}"
        return [first, *self.published(row).get("mirrors", [])]

    def folder(self, row: Row) -> str:
        """Where the authors say that a model's weights lie, without naming the file; "" where they name none."""
        return self.published(row).get("folder", "")

    def weights_licence(self, row: Row) -> str | None:
        """The Hub's identifier of what is stated of a model's weights."""
        return weights_licence(self.card, self.published(row))

    def has_weights(self, row: Row) -> bool:
        """Whether any place of them is known."""
        return any([*self.links(row), self.folder(row)])

    @property
    def heads(self) -> dict[str, str]:
        """Links to the authors' whole detectors and segmenters, by the config of the same row."""
        return self.card.get("heads", {})

    def measured(self, file: str, column: str) -> list[dict[str, str]]:
        """The rows of results/`file` whose `column` names a model of the family."""
        return [row for row in results(file) if family_of(row[column]) == self.key]


@cache
def families() -> tuple[Family, ...]:
    """All of them, in the order of cards.yml; of each the models in the order of the registry."""
    every = entries()
    found = []
    for key, card in cards().items():
        own = [entry for entry in every if entry.family == key]
        found.append(Family(key, card, own, make_rows(own)))
    return tuple(found)


def results(file: str) -> list[dict[str, str]]:
    """The rows of results/`file`; none where there is no such file."""
    return read(RESULTS / file)


def full_name(row: Row) -> str:
    """`name.tag`, the name alone where there is no tag."""
    return f"{row.name}.{row.tag}" if row.tag else row.name


def family_of(name: str) -> str:
    """The family of a model's name, or of a layer that was measured by itself."""
    return _LAYERS.get(name) or name.partition("_")[0]


def newest(rows: Iterable[dict[str, str]], *columns: str) -> list[dict[str, str]]:
    """Of the rows that agree in `columns`, the last one; files grow at their end."""
    return list({tuple(row[column] for column in columns): row for row in rows}.values())


def places(rows: Iterable[dict[str, str]]) -> str:
    """Where and when rows were measured, one sentence for each machine and version."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        key = tuple(row[column] for column in ("device", "device_name", "threads", "torch", "timm"))
        found.setdefault(key, []).append(row)
    said = []
    for (device, name, threads, torch, timm), own in found.items():
        commits = ", ".join(dict.fromkeys(row["commit"] for row in own if row["commit"]))
        where = machine({"device": device, "device_name": name, "threads": threads})
        when = span({row["date"] for row in own})
        plus = " (`+`: and changes that it does not hold)" if "+" in commits else ""
        of = f"commit {commits}{plus}; " if commits else ""
        said.append(f"Measured on {where}; torch {torch}, timm {timm}; {of}{when}.")
    return " ".join(said)


def machine(row: Mapping[str, str]) -> str:
    """Where a row was measured: a GPU, or a processor with its threads."""
    threads = f", {row['threads']} thread{'s' if row['threads'] != '1' else ''}" if row["device"] == "cpu" else ""
    return f"{row['device_name']}{threads}"


def span(dates: Collection[str]) -> str:
    """The first and the last of some dates; nothing for none."""
    return " to ".join(dict.fromkeys([min(dates), max(dates)])) if dates else ""


def as_published(value: float | None) -> str:
    """A published number, to four digits; one stands behind the point, as papers have it. Nothing for none."""
    return "" if value is None else f"{value:.4g}" if value % 1 else f"{value:.1f}"


def decimals(value: float | str | None, digits: int) -> str:
    """A number as text; nothing for what is unknown."""
    return "" if value is None or value == "" else f"{float(value):.{digits}f}"
