"""docs/zoo/index.html: all models as one page that sorts, filters and plots, from docs/zoo/source and the cards' facts.

The page holds its style, its script and all data, so that it opens from the file system and works anywhere; its links
to cards need the clone around it. Without JavaScript its table still stands.
"""

import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vertebra.tools._cards.facts import ROOT, Family, as_published, decimals, full_name
from vertebra.tools._cards.speed import KINDS, speed_of, speeds
from vertebra.tools.list import Row

SOURCE = ROOT / "docs" / "zoo" / "source"


@dataclass(frozen=True)
class Column:
    """A column of the table: the key of its data, its heading, and what makes text of a number (None for words)."""

    key: str
    heading: str
    text: Callable[[float | None], str] | None = None


COLUMNS = (
    Column("name", "model"),
    Column("title", "family"),
    Column("size", "pixels a side", partial(decimals, digits=0)),
    Column("params", "parameters, M", partial(decimals, digits=2)),
    Column("gflops", "GFLOPs", partial(decimals, digits=2)),
    Column("top1", "top-1, %", as_published),
    Column("cpu", "images/s, CPU", partial(decimals, digits=1)),
    Column("gpu", "images/s, GPU", partial(decimals, digits=1)),
    Column("licence", "licence of the code"),
    Column("source", "published in"),
)
RANGES = {"params": "Parameters, M", "gflops": "GFLOPs", "top1": "Top-1, %"}
AXES = {
    "params": "parameters",
    "gflops": "GFLOPs",
    "cpu": "images a second, CPU",
    "gpu": "images a second, GPU",
}


def models(families: Sequence[Family]) -> list[dict[str, Any]]:
    """What the page knows of each model; None is unknown."""
    found = speeds()

    def rates(row: Row) -> dict[str, float | None]:
        measured = (speed_of(row, kind, found) for kind in KINDS)
        return dict(zip(("cpu", "gpu"), (speed and speed.rate for speed in measured), strict=True))

    return [
        {
            "name": full_name(row),
            "family": family.key,
            "title": family.title,
            "size": row.size,
            "params": row.params / 1e6,
            "gflops": round(row.gflops, 6),
            "top1": row.top1,
            **rates(row),
            "licence": row.licence or "not stated",
            "source": family.published_in(row),
        }
        for family in families
        for row in family.rows
    ]


def page(families: Sequence[Family]) -> str:
    """The whole page."""
    found = models(families)
    measured = " ".join(dict.fromkeys(speed.said for speed in speeds().values()))
    parts = {
        "style": _source("zoo.css"),
        "script": _source("zoo.js"),
        "about": "Hierarchical vision backbones for timm. A model's name leads to its family's card, with sources, "
        'licences, weights and what was measured. <a href="../../model_cards/README.md">The same table as text</a>.',
        "families": "\n".join(_family(i, family) for i, family in enumerate(families)),
        "ranges": "\n".join(_range(key, heading) for key, heading in RANGES.items()),
        "axes": "\n".join(_axis(key, name, found) for key, name in AXES.items()),
        "count": f"{len(found)} models",
        "caption": "Parameters and GFLOPs (1e9 multiply-adds of one image of that size) are counted here. Top-1 is as "
        "published, on ImageNet-1K. Images a second were measured here, of each name once: its tags differ in their "
        "number of classes alone. Empty cells are unknown. " + html.escape(measured),
        "head": "".join(_heading(column) for column in COLUMNS),
        "rows": "\n".join(_row(model) for model in found),
        "data": json.dumps(found, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/"),
    }
    # in one pass, so that nothing put in is taken for a place itself
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]].strip(), _source("page.html"))


def _axis(key: str, name: str, found: Sequence[dict[str, Any]]) -> str:
    if any(model[key] is not None for model in found):
        return f'<option value="{key}">{name}</option>'
    return f'<option value="{key}" disabled>{name} (not measured)</option>'


def _source(name: str) -> str:
    return (SOURCE / name).read_text(encoding="utf-8")


def _family(i: int, family: Family) -> str:
    shape = _shapes()[i % len(_shapes())]
    mark = f'<svg viewBox="-8 -8 16 16" aria-hidden="true"><path d="{shape}" fill="var(--f{i % 9})"/></svg>'
    box = f'<input type="checkbox" name="family" value="{family.key}" checked>'
    return f"<label>{box}{mark}{html.escape(family.title)}</label>"


def _shapes() -> list[str]:
    """The marks of families, which the script holds."""
    listed = re.search(r"const SHAPES = \[(.*?)\];", _source("zoo.js"), re.DOTALL)
    return re.findall(r'"(.*?)"', listed[1]) if listed else []


def _range(key: str, heading: str) -> str:
    ends = "".join(
        f'<label>{word} <input type="number" name="{key}-{end}" step="any" min="0" inputmode="decimal"></label> '
        for end, word in (("low", "from"), ("high", "to"))
    )
    return f'<fieldset class="range"><legend>{heading}</legend>{ends.strip()}</fieldset>'


def _heading(column: Column) -> str:
    word = ' class="word"' if column.text is None else ""
    button = f'<button type="button" value="{column.key}">{column.heading}</button>'
    return f'<th scope="col" aria-sort="none"{word}>{button}</th>'


def _row(model: dict[str, Any]) -> str:
    card = f"../../model_cards/{model['family']}.md"
    cells = [f'<th scope="row"><a href="{card}">{html.escape(model["name"])}</a></th>']
    for column in COLUMNS[1:]:
        value = model[column.key]
        if column.text is None:
            cells.append(f'<td class="word">{html.escape(value)}</td>')
        else:
            cells.append(f"<td>{column.text(value)}</td>")
    return f"<tr>{''.join(cells)}</tr>"
