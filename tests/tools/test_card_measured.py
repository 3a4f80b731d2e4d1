"""The part of a card with this project's own numbers: what is in results/, with device and date, and nothing else."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest
from vertebra.tools import _card_facts, _card_measured
from vertebra.tools._card_facts import families
from vertebra.tools._card_speed import speeds

FAMILIES = {family.key: family for family in families()}


def put(folder: Path, file: str, **columns: Sequence[object]) -> None:
    """Write a results file whose other columns are those of where a number was measured."""
    count = len(next(iter(columns.values())))
    place = {"device": "cpu", "device_name": "Some CPU", "threads": "2", "torch": "2.0", "timm": "1.0"}
    rest = place | {"vertebra": "0", "commit": "abc", "date": "2026-01-02"}
    names = {key: [value] * count for key, value in rest.items()} | columns
    with (folder / file).open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(names)
        writer.writerows(zip(*names.values(), strict=True))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_card_facts, "RESULTS", tmp_path)
    return tmp_path


def test_what_was_not_measured_is_not_there(results: Path) -> None:
    said = _card_measured.measured(FAMILIES["van"])
    assert said.startswith("Not measured: accuracy")
    assert "###" not in said
    assert "| not measured |" in _card_measured.kernels(FAMILIES["van"])
    assert speeds() == {}


def test_numbers_come_with_their_device_and_date_and_the_last_one_counts(results: Path) -> None:
    values = {"value": ["2.0", "1.5", "9.0"], "lowest": ["1", "1.4", "8"], "highest": ["3", "1.6", "10"]}
    put(
        results,
        "claims.csv",
        ours=["van_b0", "van_b0", "cswin_tiny"],
        other=["reference operators"] * 3,
        what=["forward"] * 3,
        ours_ms=["10"] * 3,
        other_ms=["20"] * 3,
        batch=["8"] * 3,
        **values,
    )
    said = _card_measured.measured(FAMILIES["van"])
    assert "| `van_b0` | reference operators | forward, batch 8 | 10 | 20 | 1.50 (1.40–1.60) |" in said
    assert "2.00" not in said
    assert "cswin" not in said
    assert "Measured on Some CPU, 2 threads; torch 2.0, timm 1.0; commit abc; 2026-01-02." in said


def test_a_kernels_effect_is_that_of_the_familys_own_cases_on_a_gpu(results: Path) -> None:
    cases = [("van_b2 far", "cuda:0", way, ms) for way, ms in (("triton", "1"), ("eager", "3"), ("compiled", "2"))]
    cases += [("l2vit_tiny conv1", "cuda:0", way, ms) for way, ms in (("triton", "1"), ("eager", "7"))]
    cases += [("van_b2 near", "cpu", way, ms) for way, ms in (("triton", "1"), ("eager", "9"))]
    names, devices, ways, times = zip(*cases, strict=True)
    same = {"operator": "depthwise_conv", "dtype": "bfloat16", "mode": "forward", "checked": "True"}
    put(
        results,
        "kernels.csv",
        case=names,
        device=devices,
        way=ways,
        value=times,
        **{key: [value] * len(cases) for key, value in same.items()},
    )
    said = _card_measured.kernels(FAMILIES["van"])
    assert "2.00 to 2.00 times as fast as the fastest other way, 1 cases (Some CPU, 2026-01-02)" in said


def test_exported_files_are_told_with_their_sizes_and_times(results: Path) -> None:
    row = {"name": "van_b0", "task": "classifier", "nodes": 432, "megabytes": 16.53, "opset": 20, "free": True}
    row |= {"difference": 2.34e-6, "onnxruntime_ms": 30.12, "pytorch_ms": 41.0, "height": 224, "width": 224}
    put(results, "exports.csv", **{key: [value] for key, value in row.items()})
    line = "| `van_b0` | classifier | free | 432 | 16.5 | 2e-06 | 224 x 224 | 30.1 | 41.0 |"
    assert line in _card_measured.measured(FAMILIES["van"])
    missing = _card_measured.measured(FAMILIES["cswin"]).partition("No published")[0]
    assert "ONNX files" in missing


def test_one_column_of_speeds_is_of_one_machine_and_batch(results: Path) -> None:
    put(
        results,
        "models.csv",
        model=["van_b0", "van_b1", "van_b2"],
        mode=["forward"] * 3,
        execution=["eager"] * 3,
        kernels=["auto"] * 3,
        batch=["8", "8", "64"],
        precision=["float32"] * 3,
        value=["10", "5", "100"],
    )
    assert {name: speed.rate for (name, _), speed in speeds().items()} == {"van_b0": 10, "van_b1": 5}
