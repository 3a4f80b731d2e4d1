"""README.md, docs/ and the tools' examples name configs that are there, and checkpoints that their runs end with."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mmengine")

from vertebra.engine.config import config_names, read_config
from vertebra.tools import demo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "tools").glob("*.py"))]
TRAINED = re.compile(r"vertebra train (?P<config>[\w/-]+)(?=\s)[^\n]*?--work-dir work_dirs/(?P<folder>[\w-]+)")
CHECKPOINT = re.compile(r"work_dirs/(?P<folder>[\w-]+)/epoch_(?P<epoch>\d+)\.pth")


LENGTH = re.compile(r"train_cfg\.max_epochs=(\d+)")


def last_epochs() -> dict[str, Callable[[], int]]:
    """The length of the run that fills a folder of work_dirs: of the config of its name, or as a command says."""
    found = {Path(name).name: length_of(name) for name in config_names()}
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            for run in TRAINED.finditer(line):
                given = LENGTH.search(line)
                found.setdefault(run["folder"], length_of(run["config"], int(given[1]) if given else None))
    return found | {"demo": length_of(demo.CONFIG)}


def length_of(config: str, given: int | None = None) -> Callable[[], int]:
    """The epochs of a config, read when they are asked for."""
    return lambda: given or read_config(config).train_cfg.max_epochs


def test_a_checkpoint_that_is_named_is_the_last_of_its_run() -> None:
    lengths = last_epochs()
    seen = set()
    for page in PAGES:
        for named in CHECKPOINT.finditer(page.read_text(encoding="utf-8")):
            assert named["folder"] in lengths, f"{page.name}: no command trains {named[0]}"
            last = lengths[named["folder"]]()
            assert int(named["epoch"]) == last, f"{page.name} names {named[0]}, and that run has {last} epochs"
            seen.add(named["folder"])
    assert {"mask-rcnn_digits", "retinanet_digits", "mine", "demo"} <= seen


def test_configs_that_the_readme_names_are_there() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/.-])(?:demo|coco|ade20k|imagenet)/[\w/-]*\w", page))
    assert {name.partition("/")[0] for name in names} >= {"demo", "coco", "ade20k"}
    assert names <= set(config_names())
