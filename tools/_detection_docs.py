"""The generated parts of docs/detection.md: what the demos reached, which configs there are, and their heads' scores.

`python -c "from vertebra.tools import _detection_docs as docs; docs.write()"` in a clone writes it anew.
"""

import csv
import re
from pathlib import Path

import vertebra
from vertebra.backbones._errors import UserError
from vertebra.tools._doc_parts import put_parts

ROOT = Path(vertebra.__file__).parent
PAGE = ROOT / "docs" / "detection.md"
DEMOS = ROOT / "results" / "demos.csv"

_LEAF = r"(?P<head>[a-z0-9-]+)_{family}_(?P<size>\w+?)_(?P<rest>(?:fpn|mapper)_\w+|\d+k)"


def demos() -> str:
    """A Markdown table of results/demos.csv: a row for each score, with what every seed reached."""
    with DEMOS.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["demo"] != "van_b0"]
    lines = ["| config | score | asked for | reached, seed by seed | minutes |", "|---|---|---|---|---|"]
    for demo, metric in dict.fromkeys((row["demo"], row["metric"]) for row in rows):
        own = sorted(
            (row for row in rows if (row["demo"], row["metric"]) == (demo, metric)), key=lambda row: row["seed"]
        )
        values = ", ".join(f"{float(row['value']):.3f}" for row in own)
        minutes = ", ".join(f"{float(row['seconds']) / 60:.1f}" for row in own)
        lines.append(f"| `demo/{demo}_digits` | {metric} | {float(own[0]['aim']):.2f} | {values} | {minutes} |")
    places = dict.fromkeys(
        f"{row['device_name']}, {row['threads']} threads; torch {row['torch']}, commit {row['commit']}, {row['date']}"
        for row in rows
    )
    return "\n".join([*lines, "", *(f"Measured on {place}." for place in places)])


def configs() -> str:
    """Markdown tables of all leaves of COCO and ADE20K: a row for each family and head, sizes with their scores."""
    tables = []
    for data, scores in (("coco", "box AP / mask AP"), ("ade20k", "mIoU")):
        rows: dict[str, list[str]] = {}
        sources: dict[str, str] = {}
        for path in sorted((ROOT / "configs" / data).glob("*/*.py"), key=_by_size):
            parts = re.fullmatch(_LEAF.format(family=path.parent.name), path.stem)
            text = head_of(path)
            source = re.search(r"arXiv ([\d.]+\d)", text)
            if parts is None or source is None:
                raise UserError(f"{path} is not named <head>_<model>_<neck, schedule>.py, or names no arXiv number")
            name = f"{data}/{path.parent.name}/{parts['head']}_{path.parent.name}_*_{parts['rest']}"
            rows.setdefault(name, []).append(f"{parts['size']} {score_of(text)}")
            sources.setdefault(name, source[1])
        lines = [f"| config | `*` and {scores} | source |", "|---|---|---|"]
        lines += [
            f"| `{name}` | {' · '.join(rows[name])} | [{sources[name]}](https://arxiv.org/abs/{sources[name]}) |"
            for name in sorted(rows)
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def head_of(path: Path) -> str:
    """The comment at the head of a config, as one line."""
    lines = path.read_text(encoding="utf-8").split("_base_ =")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines)


def score_of(head: str) -> str:
    """The score in a config's head: `46.4 / 41.8`, `41.1 ms` for many scales, `46.7?` where it was not verified."""
    if "score published" in head and "no score" in head.lower():
        return "–"
    if "which was not read" in head:
        return "…"
    boxes = re.search(r"([\d.]+) box AP(?:, ([\d.]+) mask AP)?", head)
    segments = re.search(r"([\d.]+) mIoU( at many scales)?", head)
    if boxes:
        score = " / ".join(filter(None, boxes.groups()))
    elif segments:
        score = segments[1] + (" ms" if segments[2] else "")
    else:
        raise UserError(f"no score in {head!r}")
    return score + ("?" if re.search(r"\(arXiv [\d.]+; not verified\)", head) else "")


def filled(page: str) -> str:
    """The page with its generated parts between their markers. UserError if it has lost one."""
    return put_parts(page, PAGE.name, "tools/_detection_docs.py", {"demos": demos, "configs": configs})


def write() -> None:
    """Write the page's generated parts anew."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def _by_size(path: Path) -> tuple[str, int, str]:
    """Sizes in the order of the papers: tiny, small, medium, base, large; b0, b1 and so on are in theirs already."""
    sizes = ("tiny", "small", "medium", "base", "large")
    found = next((i for i, size in enumerate(sizes) if f"_{size}_" in path.stem), 0)
    return str(path.parent), found, path.stem
