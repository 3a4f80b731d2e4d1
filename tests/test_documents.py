"""README.md, docs/ and the tools' examples name configs that are there, and checkpoints that their runs end with."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mmengine")

from vertebra.engine.config import config_names, read_config
from vertebra.tools import demo

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "tools").glob("*.py"))]
TRAINED = re.compile(r"vertebra train (?P<config>[\w/-]+)(?=\s)[^\n]*?--work-dir work_dirs/(?P<folder>[\w-]+)")
CHECKPOINT = re.compile(r"work_dirs/(?P<folder>[\w-]+)/epoch_(?P<epoch>\d+)\.pth")


def configs_of_folders() -> dict[str, str]:
    """The config whose run fills a folder of work_dirs: the one of its name, or of the command that names it."""
    found = {Path(name).name: name for name in config_names()}
    for page in PAGES:
        found |= {run["folder"]: run["config"] for run in TRAINED.finditer(page.read_text(encoding="utf-8"))}
    return found | {"demo": demo.CONFIG}


def test_a_checkpoint_that_is_named_is_the_last_of_its_run() -> None:
    configs = configs_of_folders()
    seen = set()
    for page in PAGES:
        for named in CHECKPOINT.finditer(page.read_text(encoding="utf-8")):
            assert named["folder"] in configs, f"{page.name}: no command trains {named[0]}"
            last = read_config(configs[named["folder"]]).train_cfg.max_epochs
            assert int(named["epoch"]) == last, f"{page.name} names {named[0]}; {configs[named['folder']]} has {last}"
            seen.add(named["folder"])
    assert {"mask-rcnn_digits", "retinanet_digits", "mine", "demo"} <= seen


def test_configs_that_the_readme_names_are_there() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/.-])(?:demo|coco|ade20k|imagenet)/[\w/-]*\w", page))
    assert {name.partition("/")[0] for name in names} >= {"demo", "coco", "ade20k"}
    assert names <= set(config_names())
