"""docs/learning.md: its table is the one that results/learning.csv gives."""

import csv
from pathlib import Path

import pytest
from vertebra.backbones._errors import UserError
from vertebra.tools._benchmark.demos import Row
from vertebra.tools._docs import learning as docs


def test_the_table_is_up_to_date() -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    assert docs.filled(page) == page, "write it anew: see tools/_docs/learning.py"


def test_a_family_has_one_line_with_all_its_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = dict.fromkeys(Row.__dataclass_fields__, "x") | {"aim": "0.95", "options": "a=1 b=[1,2]"}
    given = [("van", "1", "0.96", "80.4"), ("van", "0", "0.9722", "91.0"), ("shvit", "0", "0.95", "60.0")]
    with (tmp_path / "learning.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, shared)
        writer.writeheader()
        for demo, seed, value, seconds in given:
            writer.writerow(shared | {"demo": demo, "seed": seed, "value": value, "seconds": seconds})
    monkeypatch.setattr(docs, "LEARNING", tmp_path / "learning.csv")
    lines = docs.learning().splitlines()
    assert lines[2:4] == [
        "| shvit | `x` | `a=1` `b=[1,2]` | 95% | 95.0% | 60 |",
        "| van | `x` | `a=1` `b=[1,2]` | 95% | 97.2%, 96.0% | 91, 80 |",
    ]
    assert lines[-1] == "Measured on x, x threads; torch x, commit x, x."


def test_a_page_without_its_markers_is_named() -> None:
    with pytest.raises(UserError, match=r"docs/learning\.md has lost its markers"):
        docs.filled("# Every family learns")
