"""The generated parts of docs/detection.md: what the demos reached, which configs there are, and their heads' scores.

`python -c "from vertebra.tools._docs import detection as docs; docs.write()"` in a clone writes it anew.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import vertebra
from vertebra.backbones._errors import UserError
from vertebra.tools._docs.parts import put_parts
from vertebra.tools._results import read
from vertebra.tools.list import arxiv, cards

ROOT = Path(vertebra.__file__).parent
PAGE = ROOT / "docs" / "detection.md"
DEMOS = ROOT / "results" / "demos.csv"

SCORES = {"coco": "box AP / mask AP", "ade20k": "mIoU"}
_LEAF = r"(?P<head>[a-z0-9-]+)_{family}_(?P<size>\w+?)_(?P<rest>(?:fpn|mapper)_\w+|\d+k)"


@dataclass(frozen=True)
class Leaf:
    """A config of a published row: its parts of the name, and what its head says."""

    path: Path
    family: str
    head: str
    size: str
    rest: str
    text: str
    source: str

    @property
    def score(self) -> str:
        """As `score_of` reads it."""
        return score_of(self.text)

    @property
    def parameters(self) -> str:
        """Millions, as the head has them: published, or counted as built here; nothing where it has none."""
        found = re.search(r"([\d.]+) M parameters( as built here)?(?: \(([\d.]+) M as built here\))?", self.text)
        if found is None:
            return ""
        published, counted = (None, found[1]) if found[2] else (found[1], found[3])
        doubt = "?" if self.score.endswith("?") else ""
        parts = [f"{published}{doubt}" if published else "", f"{counted} counted" if counted else ""]
        return ", ".join(filter(None, parts))

    @property
    def place(self) -> str:
        """The file of the authors' code that the score stands in, where the head names one and not the paper."""
        found = re.search(r" in (\S+\.md) of the authors' code", self.text)
        return found[1] if found else ""

    @property
    def warning(self) -> str:
        """That the config cannot start from the weights of the score, where the head says so."""
        found = re.search(r"[^.]+: it starts from ImageNet-1K\.", self.text)
        return found[0].strip() if found else ""


def demos() -> str:
    """A Markdown table of results/demos.csv: a row for each score, with what every seed reached."""
    rows = [row for row in read(DEMOS) if row["demo"] != "van_b0"]
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
    for data, scores in SCORES.items():
        rows: dict[str, list[str]] = {}
        sources: dict[str, list[str]] = {}
        for leaf in leaves(data):
            name = f"{data}/{leaf.family}/{leaf.head}_{leaf.family}_*_{leaf.rest}"
            rows.setdefault(name, []).append(f"{leaf.size} {leaf.score}")
            sources.setdefault(name, []).extend(f"[{what}]({link})" for what, link in sources_of(leaf))
        lines = [f"| config | `*` and {scores} | source |", "|---|---|---|"]
        lines += [
            f"| `{name}` | {' · '.join(rows[name])} | {', '.join(dict.fromkeys(sources[name]))} |"
            for name in sorted(rows)
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def leaves(data: str, family: str = "*") -> list[Leaf]:
    """The configs of published rows of a data set, `coco` or `ade20k`, of all families or of one, by family and size.

    Raises:
        UserError: one is not named as the others are, or its head names no paper.
    """
    found = []
    for path in sorted((ROOT / "configs" / data).glob(f"{family}/*.py"), key=_by_size):
        parts = re.fullmatch(_LEAF.format(family=path.parent.name), path.stem)
        text = head_of(path)
        source = re.search(r"arXiv ([\d.]+\d)", text)
        if parts is None or source is None:
            raise UserError(f"{path} is not named <head>_<model>_<neck, schedule>.py, or names no arXiv number")
        found.append(Leaf(path, path.parent.name, parts["head"], parts["size"], parts["rest"], text, source[1]))
    return found


def sources_of(leaf: Leaf) -> list[tuple[str, str]]:
    """Where a config's score stands, and the link there: a file of the authors' code, or else the paper.

    Nothing where no score was published.
    """
    if leaf.score == "–":
        return []
    if leaf.place:
        return [(f"{leaf.place} of the code", cards()[leaf.family]["code"])]
    doubt = ", not checked" if leaf.score.endswith("?") else ""
    return [(f"arXiv:{leaf.source}{doubt}", arxiv(leaf.source))]


def head_of(path: Path) -> str:
    """The comment at the head of a config, as one line."""
    lines = path.read_text(encoding="utf-8").split("_base_ =")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines)


def score_of(head: str) -> str:
    """The score in a config's head: `46.4 / 41.8` of boxes and masks, `51.1 / 52.2 ms` at one and at many scales.

    `46.7?` was not verified, `–` not published, `…` not read.
    """
    if "score published" in head and "no score" in head.lower():
        return "–"
    if "which was not read" in head:
        return "…"
    boxes = re.search(r"([\d.]+) box AP(?:, ([\d.]+) mask AP)?", head)
    segments = [
        re.search(r"([\d.]+) mIoU(?! at many scales)", head),
        re.search(r"([\d.]+)(?: mIoU)? at many scales", head),
    ]
    if boxes:
        score = " / ".join(filter(None, boxes.groups()))
    elif any(segments):
        score = " / ".join(found[1] + sign for found, sign in zip(segments, ("", " ms"), strict=True) if found)
    else:
        raise UserError(f"no score in {head!r}")
    return score + ("?" if re.search(r"\(arXiv [\d.]+; not verified\)", head) else "")


def filled(page: str) -> str:
    """The page with its generated parts between their markers. UserError if it has lost one."""
    return put_parts(page, PAGE.name, "tools/_docs/detection.py", {"demos": demos, "configs": configs})


def write() -> None:
    """Write the page's generated parts anew."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def _by_size(path: Path) -> tuple[str, int, str]:
    """Sizes in the order of the papers: tiny, small, medium, base, large; b0, b1 and so on are in theirs already."""
    sizes = ("tiny", "small", "medium", "base", "large")
    found = next((i for i, size in enumerate(sizes) if f"_{size}_" in path.stem), 0)
    return str(path.parent), found, path.stem
