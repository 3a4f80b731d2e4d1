"""benchmark data: what is measured of the loader and of the model, and what is said of the two."""

import csv
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_images import write_images

pytest.importorskip("mmengine", reason="the extra `train` is not installed")

from vertebra.engine.config import configs_folder
from vertebra.tools import benchmark
from vertebra.tools._benchmark import data_speed
from vertebra.tools._benchmark.data_speed import Row, verdict
from vertebra.tools._common import run_tool

CONFIG = """
_base_ = "{base}"
model = dict(num_classes=4, depths=(1, 1, 1, 1))
train_dataloader = dict(dataset=dict(transform=dict(input_size=(3, 32, 32))), batch_size=8, num_workers=1)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config of a tiny classifier."""
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(base=configs_folder() / "demo/van_b0_digits.py"))
    return path


def row(part: str, value: float, workers: int | None = None, device: str = "cpu") -> Row:
    facts = dict.fromkeys(Row.__dataclass_fields__, "x")
    return Row(**{**facts, "part": part, "value": value, "workers": workers, "device": device})


def test_loader_and_training_step_are_measured_and_kept(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, path = write_images(tmp_path / "images"), tmp_path / "data.csv"
    argv = ["data", str(config), "--data", str(data), "--workers", "0", "1", "--batch", "4", "--seconds", "0.01"]
    assert run_tool(benchmark.main, [*argv, "--device", "cpu", "--csv", str(path)]) == 0
    said = capsys.readouterr().out
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["part"], row["workers"]) for row in rows] == [("loader", "0"), ("loader", "1"), ("training", "")]
    assert all(float(row["value"]) > 0 for row in rows)
    assert {(row["batch"], row["height"], row["model"], row["precision"]) for row in rows} == {
        ("4", "32", "van_b0", "float32")
    }
    assert sum("is the bottleneck; " in line for line in said.splitlines()) == 1


def test_a_rate_counts_images_by_the_clock_and_a_few_calls_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0, 0.5)
    monkeypatch.setattr(data_speed.time, "perf_counter", lambda: next(clock))
    assert data_speed._rate(lambda: 8, seconds=5.0) == 8 / 0.5
    calls: list[int] = []
    data_speed._rate(lambda: calls.append(1) or 8, seconds=0.1)
    assert len(calls) == data_speed.LEAST


def test_batches_that_were_fetched_ahead_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for each worker, as PyTorch has it, behind the one that the model is measured with."""
    given: list[int] = []
    loader = SimpleNamespace(sampler=None, dataset=None)
    monkeypatch.setattr("vertebra.engine.data.build_loader", lambda **_: loader)
    monkeypatch.setattr(data_speed, "_endless", lambda _: (given.append(number) or number for number in range(99)))
    monkeypatch.setattr(data_speed, "_rate", lambda take, seconds: len(given))
    assert data_speed.loader_rate(SimpleNamespace(train_dataloader={}, get=lambda _: None), 3, 1.0) == (7, 0)


def test_a_small_data_set_is_read_in_one_epoch_after_the_other() -> None:
    epochs: list[int] = []

    class Loader:
        sampler, dataset = SimpleNamespace(set_epoch=epochs.append), None

        def __iter__(self) -> Any:
            return iter([{}, {}])

    assert len(list(itertools.islice(data_speed._endless(Loader()), 5))) == 5
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [row("loader", 300, 1), row("loader", 420, 2), row("training", 95)],
            "the loader gives 420 img/s with 2 workers, the model takes 95 img/s: the model is the bottleneck; a GPU",
        ),
        ([row("loader", 420, 2), row("training", 95, device="cuda")], "the model is the bottleneck; --amp bf16 or"),
        ([row("loader", 20, 0), row("training", 95)], "with no worker, .*: the loader is the bottleneck; more workers"),
        ([row("loader", 20, 10**6), row("training", 95)], "the loader is the bottleneck; smaller files, a faster disk"),
    ],
    ids=["model", "model on a GPU", "few workers", "many workers"],
)
def test_the_slower_of_the_two_is_the_bottleneck(rows: list[Row], sentence: str) -> None:
    said = verdict(rows)
    assert re.search(sentence, said)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["demo/van_b0_digit"], "did you mean demo/van_b0_digits"),
        (["demo/van_b0_digits", "--seconds", "0"], "--seconds is 0"),
        (["demo/van_b0_digits", "--workers", "2", "-1"], "--workers is -1"),
        (["demo/van_b0_digits", "--batch", "0"], "--batch is 0"),
        (["demo/van_b0_digits", "--data", "nowhere"], "data folder nowhere does not exist"),
    ],
    ids=["config", "seconds", "workers", "batch", "data"],
)
def test_bad_input_is_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(benchmark.main, ["data", *argv, "--device", "cpu"]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert sentence in message


def test_detectors_are_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "detector.py").write_text('model = dict(type="RetinaNet", backbone=dict(type="TimmPyramid"))')
    assert run_tool(benchmark.main, ["data", str(tmp_path / "detector.py"), "--device", "cpu"]) == 2
    assert "is a RetinaNet, and `benchmark data` measures classifiers" in capsys.readouterr().err
