"""benchmark models: what is measured, how the cases take turns, and what a row says."""

import csv
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import vertebra
from vertebra.tools import benchmark
from vertebra.tools._benchmark.worker import Case, Ready
from vertebra.tools._common import run_tool
from vertebra.tools.benchmark import Row, append, find_names, main, measure, table, why_not_compiled


def case(mode: str = "forward", size: tuple[int, int] | None = None, threads: int | None = 1) -> Case:
    return Case("test_vit", mode, False, 16, size, "cpu", threads)


@pytest.fixture(scope="module")
def measured() -> tuple[list[Row], list[str]]:
    """Three cases, of which the last cannot run: 97 pixels are no multiple of the patches' 16."""
    return measure([case("forward"), case("training"), case(size=(97, 128))], repeats=2, seconds=0.01)


def test_every_row_says_device_threads_versions_commit_and_date(measured: tuple[list[Row], list[str]]) -> None:
    for row, mode in zip(measured[0], ("forward", "training"), strict=True):
        assert (row.model, row.mode, row.execution, row.unit) == ("test_vit", mode, "eager", "images/s")
        assert (row.batch, row.height, row.width, row.repeats) == (16, 160, 160, 2)
        assert (row.device, row.threads, row.precision) == ("cpu", 1, "float32")
        assert (row.torch, row.timm, row.vertebra) == (torch.__version__, timm.__version__, vertebra.__version__)
        assert row.device_name
        assert len(row.date) == len("2026-01-31")


def test_rate_is_the_median_between_lowest_and_highest(measured: tuple[list[Row], list[str]]) -> None:
    for row in measured[0]:
        assert 0 < row.lowest <= row.value <= row.highest


@pytest.mark.all
def test_training_takes_more_memory_than_forward(measured: tuple[list[Row], list[str]]) -> None:
    forward, training = measured[0]
    assert forward.peak_memory_mb is not None
    assert training.peak_memory_mb is not None
    assert 16 * 3 * 160 * 160 * 4 / 1e6 < forward.peak_memory_mb < training.peak_memory_mb < 2000


def test_case_that_cannot_run_is_a_sentence_and_the_others_are_measured(
    measured: tuple[list[Row], list[str]],
) -> None:
    rows, failures = measured
    assert len(rows) == 2
    assert len(failures) == 1
    assert failures[0].startswith("test_vit, forward: AssertionError: Input height (97)")


def test_process_that_is_killed_is_a_sentence() -> None:
    worker = benchmark._Worker(case())
    worker.process.kill()
    worker.repeat(0.01)
    worker.repeat(0.01)
    worker.close()
    assert worker.failure is not None
    assert "ended with code -9" in worker.failure


def test_cases_take_turns_and_all_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Fake(benchmark._Worker):
        def __init__(self, case: Case) -> None:
            self.case, self.failure, self.rates, self.memory = case, None, [], None
            self.ready = Ready((8, 8), 1)
            log.append(f"start {case.mode}")

        def repeat(self, seconds: float) -> None:
            self.rates.append(float(len(log)))
            log.append(self.case.mode)

        def finish(self) -> None:
            log.append(f"finish {self.case.mode}")

        def close(self) -> None:
            log.append(f"close {self.case.mode}")

    monkeypatch.setattr(benchmark, "_Worker", Fake)
    rows, failures = measure([case("forward"), case("training")], repeats=3)
    assert log[:2] == ["start forward", "start training"]
    assert log[2:8] == ["forward", "training"] * 3
    assert log[8:] == ["finish forward", "finish training", "close forward", "close training"]
    assert [(row.lowest, row.value, row.highest) for row in rows] == [(2, 4, 6), (3, 5, 7)]
    assert failures == []


def row(**entries: Any) -> Row:
    known = {field.name: "1" if field.type is str else 1 for field in fields(Row)} | {"peak_memory_mb": None}
    return Row(**(known | entries))


def test_rows_are_appended_under_one_header(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    append(path, [row(model="a")])
    append(path, [row(model="b"), row(model="c, with a comma")])
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [entry["model"] for entry in found] == ["a", "b", "c, with a comma"]
    assert found[0]["peak_memory_mb"] == ""
    assert list(found[0])[:4] == ["model", "mode", "execution", "value"]


def test_table_says_the_common_facts_once_and_leaves_unknown_memory_blank() -> None:
    lines = table([row(model="a", peak_memory_mb=12.6), row(model="long_name")]).splitlines()
    assert "torch 1, timm 1, vertebra 1" in lines[0]
    assert lines[2].split()[-1] == "13"
    assert lines[3].startswith("long_name")
    assert len({len(line) for line in lines[1:]}) == 1


def test_names_are_taken_once_and_patterns_resolved() -> None:
    assert find_names(["van_b1", "van_b*", "resnet18"])[0] == "van_b1"
    assert find_names(["van_b1", "van_b*", "van_b1"]).count("van_b1") == 1
    assert set(find_names(["van_b*"])) == {f"van_b{i}" for i in range(7)}
    assert "van_b0" in find_names([])


def test_without_a_compiler_the_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "C++ compiler (no-such-compiler)" in str(why_not_compiled("cpu"))
    assert "C compiler (no-such-compiler)" in str(why_not_compiled("cuda"))


def test_command_without_a_compiler_measures_eager_and_says_why_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: nothing is written where no --csv asks for it."""
    asked: list[Case] = []

    def fake(cases: list[Case], repeats: int) -> tuple[list[Row], list[str]]:
        asked.extend(cases)
        return [row(model="test_vit")], []

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(benchmark, "measure", fake)
    argv = ["models", "test_vit", "--compile", "--device", "cpu", "--size", "64x96", "--threads", "3", "--batch", "5"]
    assert run_tool(main, argv) == 0
    assert asked == [Case("test_vit", mode, False, 5, (64, 96), "cpu", 3) for mode in ("forward", "training")]
    said = capsys.readouterr()
    assert "not measured: compiled models, because there is no C++ compiler" in said.err
    assert "test_vit" in said.out
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["van_b00"], "there is no model 'van_b00' in timm or vertebra. Did you mean van_b0"),
        (["zzz*"], "has a name like 'zzz*'"),
        (["test_vit", "--batch", "0"], "--batch is 0, but must be 1 or more"),
        (["test_vit", "--threads", "-1"], "--threads is -1, but must be 1 or more"),
        (["test_vit", "--repeats", "0"], "--repeats is 0, but must be 1 or more"),
        (["test_vit", "--size", "64"], "'64' is not a size"),
        (["test_vit", "--device", "toaster"], "--device toaster cannot be used here"),
        (["test_vit", "--csv", "."], "--csv . cannot be appended to"),
        (["test_vit", "--csv", "other.csv"], "--csv other.csv has other columns than model, mode"),
        (["test_vit", "--csv", "other.csv/a.csv"], "--csv other.csv/a.csv cannot be appended to"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_measured(
    argv: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("measured"))
    assert run_tool(main, ["models", *argv]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert sentence in message
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_failed_case_ends_the_command_with_its_sentence_after_the_others_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda *_: ([row(model="a")], ["b, forward: out of memory"]))
    assert run_tool(main, ["models", "test_vit", "--device", "cpu", "--csv", str(tmp_path / "m.csv")]) == 2
    assert "b, forward: out of memory" in capsys.readouterr().err
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("argv", [["--help"], ["models", "--help"]])
def test_help_ends_with_an_example(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("  vertebra benchmark models van_b0")
