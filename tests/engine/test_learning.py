"""Every family learns the digits from nothing: two a little in each run of the tests, all by the whole recipe."""

import json
import resource
import time
from pathlib import Path

import pytest
from vertebra.tools import train
from vertebra.tools._benchmark.demos import FAMILIES, measure
from vertebra.tools.make_dataset import make_digits

QUICK = {  # the two fastest, made faster still
    "van": ["model.depths=[1,1,1,1]", "train_dataloader.num_batches=26"],
    "shvit": ["model.depths=[1,1,1]", "train_dataloader.num_batches=40"],
}
BRISK = [
    "train_cfg.max_epochs=2",
    "train_cfg.val_interval=2",
    "optim_wrapper.optimizer.lr=2e-3",
    "param_scheduler.0.end=1",
    "param_scheduler.1.begin=1",
    "custom_hooks.0.momentum=0.1",  # of the averaged weights: the config's looks back over more steps than there are
    *(f"{part}_dataloader.num_workers=0" for part in ("train", "val", "test")),
]
SECONDS = 30  # of the processor, whatever else runs
CORES, MINUTES = 2, 4  # for the whole recipe: counted in seconds of the processor, whatever else runs
LOWER_BAR = 0.5  # of 360 digits; guesses would get 0.1


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_digits(folder, scenes=1)
    return folder


@pytest.mark.parametrize("family", QUICK)
def test_a_few_passes_bring_a_family_far_above_chance(digits: Path, tmp_path: Path, family: str) -> None:
    demo = FAMILIES[family]
    where = ["--data", str(digits), "--work-dir", str(tmp_path / "wd"), "--device", "cpu"]
    began = time.process_time()
    assert train.main([demo.config, *where, *demo.changes, *QUICK[family], *BRISK]) == 0
    assert time.process_time() - began <= SECONDS
    (log,) = (tmp_path / "wd").glob("*/vis_data/scalars.json")
    scores = [line["top1"] for line in map(json.loads, log.read_text().splitlines()) if "top1" in line]
    assert scores[-1] >= LOWER_BAR


@pytest.mark.all
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reaches_what_is_asked(digits: Path, tmp_path: Path, family: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    (row,) = measure(family, 0, digits, tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert row.value >= row.aim
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= CORES * MINUTES * 60
