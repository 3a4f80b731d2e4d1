"""The generated part of docs/learning.md: what a model of each family reached on the digits, and how long it took.

`python -c "from vertebra.tools._docs import learning as docs; docs.write()"` in a clone writes it anew.
"""

from pathlib import Path

import vertebra
from vertebra.tools._docs.parts import put_parts
from vertebra.tools._results import read

ROOT = Path(vertebra.__file__).parent
PAGE = ROOT / "docs" / "learning.md"
LEARNING = ROOT / "results" / "learning.csv"


def rows() -> list[dict[str, str]]:
    """The rows of results/learning.csv; none where nothing was measured yet."""
    return read(LEARNING)


def learning() -> str:
    """A Markdown table of results/learning.csv: a row for each family, with what every seed reached."""
    lines = ["| family | model | options | top-1 asked for | reached | seconds |", "|---|---|---|---|---|---|"]
    for family in sorted({row["demo"] for row in rows()}):
        own = sorted((row for row in rows() if row["demo"] == family), key=lambda row: int(row["seed"]))
        values = ", ".join(f"{float(row['value']):.1%}" for row in own)
        seconds = ", ".join(f"{float(row['seconds']):.0f}" for row in own)
        options = " ".join(f"`{option}`" for option in own[0]["options"].split())
        model, aim = own[0]["model"], float(own[0]["aim"])
        lines.append(f"| {family} | `{model}` | {options} | {aim:.0%} | {values} | {seconds} |")
    places = dict.fromkeys(
        f"{row['device_name']}, {row['threads']} threads; torch {row['torch']}, commit {row['commit']}, {row['date']}"
        for row in rows()
    )
    return "\n".join([*lines, "", *(f"Measured on {place}." for place in places)]).rstrip()


def filled(page: str) -> str:
    """The page with its generated part between its markers. UserError if it has lost one."""
    return put_parts(page, PAGE.name, "tools/_docs/learning.py", {"learning": learning})


def write() -> None:
    """Write the page's generated part anew."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
