"""The part of a card with this project's own numbers: what is in results/, with device and date, and nothing else."""

import csv
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from vertebra.tools._accuracy import Row as AccuracyRow
from vertebra.tools._benchmark.claims import Row as ClaimRow
from vertebra.tools._benchmark.demos import Row as DemoRow
from vertebra.tools._benchmark.memory import Row as MemoryRow
from vertebra.tools._cards import facts, measured, zoo
from vertebra.tools._cards.facts import families
from vertebra.tools._cards.index import index
from vertebra.tools._cards.speed import speeds
from vertebra.tools._export.table import Row as ExportRow
from vertebra.tools._results import columns
from vertebra.tools.benchmark import Row as ModelRow

FAMILIES = {family.key: family for family in families()}
NOT_EVALUATED = "No published weights of this family were evaluated by this project."


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


def write(folder: Path, file: str, kind: type, *rows: Mapping[str, object]) -> None:
    """Write a results file with the columns of its own rows; what is not given is empty, or where it was measured."""
    place = {"device": "cpu", "device_name": "Some CPU", "threads": 2, "torch": "2.0", "timm": "1.0"}
    place |= {"vertebra": "0", "commit": "abc", "date": "2026-01-02"}
    names = columns(kind)
    assert [key for row in rows for key in row if key not in names] == []
    with (folder / file).open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows(place | {**row} for row in rows)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(facts, "RESULTS", tmp_path)
    return tmp_path


def test_what_was_not_measured_is_not_there(results: Path) -> None:
    said = measured.measured(FAMILIES["van"])
    assert said.startswith("Not measured: accuracy on ImageNet")
    assert NOT_EVALUATED in said
    assert "###" not in said
    assert "| not measured |" in measured.kernels(FAMILIES["van"])
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
    said = measured.measured(FAMILIES["van"])
    line = "| `van_b0` | reference operators | forward, batch 8 | Some CPU, 2 threads | 10 | 20 | 1.50 (1.40–1.60) |"
    assert line in said
    assert "median of the rounds' own ratios" in said
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
    said = measured.kernels(FAMILIES["van"])
    assert "2.00 to 2.00 times as fast as the fastest other way, 1 case (Some CPU, 2026-01-02)" in said


@pytest.mark.parametrize("key", FAMILIES)
def test_every_kernel_of_a_family_has_a_case_to_be_measured_by(key: str) -> None:
    for operator in FAMILIES[key].card["kernels"]:
        cases = import_module(f"vertebra.kernels.{operator}.cases").CASES
        assert [case for case in cases if case.startswith(f"{key}_")], operator


def test_scores_come_with_their_weights_and_data_and_take_the_place_of_the_sentence_that_there_is_none(
    results: Path,
) -> None:
    row = {"model": "van_b0", "config": "van_b0", "weights": "pretrained", "data": "imagenet", "options": "--tta"}
    row |= {"metric": "top1", "unit": "share", "images": 50000}
    write(results, "accuracy.csv", AccuracyRow, row | {"value": 0.5}, row | {"value": 0.75431})
    said = measured.measured(FAMILIES["van"])
    assert "| `van_b0` | `van_b0` | pretrained | imagenet --tta | top1 | 50000 | 75.43 |" in said
    assert "50.00" not in said
    assert NOT_EVALUATED not in said
    assert not said.startswith("Not measured: accuracy")
    assert NOT_EVALUATED in measured.measured(FAMILIES["cswin"])


@pytest.mark.parametrize(
    ("model", "weights", "published"),
    [
        ("van_b0", "epoch_30.pth", False),
        ("van_b0", "van_b0.pth", False),
        ("cswin_tiny", "cswin_tiny_224.pth", True),
        ("biformer_tiny", "biformer_tiny.pth", True),
    ],
)
def test_scores_of_ones_own_weights_say_nothing_of_the_published_ones(
    results: Path, model: str, weights: str, published: bool
) -> None:
    row = {"model": model, "config": model, "data": "imagenet", "metric": "top1", "images": 1, "value": 1}
    write(results, "accuracy.csv", AccuracyRow, row | {"weights": weights})
    assert (NOT_EVALUATED not in measured.measured(FAMILIES[model.partition("_")[0]])) is published


def test_exported_files_are_told_with_their_sizes_and_times(results: Path) -> None:
    row = {"name": "van_b0", "task": "classification", "nodes": 432, "megabytes": 16.53, "opset": 20, "free": True}
    row |= {"difference": 2.34e-6, "onnxruntime_ms": 30.12, "pytorch_ms": 41.0, "height": 224, "width": 224}
    row |= {"weights": "random"}
    others = {"weights": "pretrained"}, {"options": "--static 64x64", "free": False, "reason": "--static"}
    others = *others, {"device_name": "Other CPU", "task": "features", "passed_over": 2}
    write(results, "exports.csv", ExportRow, row | {"nodes": 1}, row, *(row | other for other in others))
    said, rest = measured.measured(FAMILIES["van"]), "20 | 432 | 16.5 | 2e-06 | 224 x 224 | 30.1 | 41.0 |"
    assert f"| `van_b0` | classification | random | Some CPU, 2 threads | free | {rest}" in said
    assert f"| `van_b0` | classification | pretrained | Some CPU, 2 threads | free | {rest}" in said
    static = "| `van_b0` | classification --static 64x64 | random | Some CPU, 2 threads | fixed: --static |"
    assert f"{static} {rest}" in said
    chosen = rest.replace("2e-06", "2e-06 (2)")
    assert f"| `van_b0` | features | random | Other CPU, 2 threads | free | {chosen}" in said
    assert "In brackets, how many random images were passed over" in said
    assert said.count("| `van_b0` |") == 4, "the newest of the same"
    missing = measured.measured(FAMILIES["cswin"]).partition("No published")[0]
    assert "ONNX files" in missing


SPEED = {"mode": "forward", "execution": "eager", "kernels": "auto", "batch": 8, "height": 224, "width": 224}
SPEED |= {"precision": "float32", "value": 10, "lowest": 9, "highest": 11}


def test_one_column_of_speeds_is_of_one_machine_and_batch(results: Path) -> None:
    rows = [{"model": "van_b0"}, {"model": "van_b1", "value": 5}, {"model": "van_b2", "value": 100, "batch": 64}]
    write(results, "models.csv", ModelRow, *(SPEED | row for row in rows))
    assert {name: speed.rate for (name, _, _), speed in speeds().items()} == {"van_b0": 10, "van_b1": 5}
    assert speeds()["van_b0", 224, "cpu"].said == "CPU: Some CPU, 2 threads, batch 8, float32, 2026-01-02."


def test_a_speed_is_that_of_the_size_in_the_row(results: Path) -> None:
    small, large = SPEED | {"model": "van_b4"}, SPEED | {"model": "van_b4", "height": 384, "width": 384, "value": 3}
    write(results, "models.csv", ModelRow, small, large, large | {"width": 640, "value": 1})
    cells = {line.split(" | ")[0]: line.split(" | ")[6] for line in index(families()).splitlines() if "van_b4" in line}
    rates = {name.partition("`")[2].partition("`")[0]: rate for name, rate in cells.items()}
    assert rates["van_b4.in22k_ft_in1k"] == "10.0"
    assert rates["van_b4.in22k_ft_in1k_384"] == "3.0"
    page = {model["name"]: model["cpu"] for model in zoo.models(families())}
    assert (page["van_b4.in1k"], page["van_b4.in22k_ft_in1k_384"], page["van_b0.in1k"]) == (10.0, 3.0, None)


def test_a_speed_of_one_set_of_weights_is_its_own(results: Path) -> None:
    """Classes differ between them."""
    write(results, "models.csv", ModelRow, SPEED | {"model": "van_b4"}, SPEED | {"model": "van_b4.in22k", "value": 8})
    rates = {model["name"]: model["cpu"] for model in zoo.models(families())}
    assert (rates["van_b4.in1k"], rates["van_b4.in22k"]) == (10, 8)


def test_throughput_has_a_row_for_each_machine_and_size(results: Path) -> None:
    first = SPEED | {"model": "van_b0", "peak_memory_mb": 512.4}
    write(results, "models.csv", ModelRow, first, first | {"value": 20}, first | {"device_name": "Other CPU"})
    said = measured.throughput(FAMILIES["van"])
    how = "| `van_b0` | forward, eager, auto, float32"
    assert f"{how} | Some CPU, 2 threads | 8 x 224 x 224 | 20.0 (9.0–11.0) | 512 |" in said
    assert f"{how} | Other CPU, 2 threads | 8 x 224 x 224 | 10.0 (9.0–11.0) | 512 |" in said
    assert said.count("| `van_b0` |") == 2
    assert "cswin" not in said


def test_memory_of_two_machines_or_settings_is_never_one_row(results: Path) -> None:
    case = {"model": "van_b2", "height": 400, "width": 667, "precision": "float32"}
    one = [
        case | {"quantity": name, "value": value} for name, value in (("peak", 1.0), ("before", 0.5), ("seconds", 2))
    ]
    peak = {"quantity": "peak", "value": 3.0}
    others = [case | peak | other for other in ({"device_name": "Other CPU"}, {"threads": 8}, {"precision": "bf16"})]
    write(results, "memory.csv", MemoryRow, *one, *others)
    said = measured.memory(FAMILIES["van"])
    assert "| `van_b2` | 400 x 667 | float32 | Some CPU, 2 threads | 1.00 | 0.50 | 2.00 |" in said
    assert "| `van_b2` | 400 x 667 | float32 | Other CPU, 2 threads | 3.00 |  |  |" in said
    assert "| `van_b2` | 400 x 667 | float32 | Some CPU, 8 threads | 3.00 |  |  |" in said
    assert "| `van_b2` | 400 x 667 | bf16 | Some CPU, 2 threads | 3.00 |  |  |" in said


def test_digits_learnt_on_two_machines_are_two_rows(results: Path) -> None:
    row = {"demo": "van_b0", "model": "van_b0", "metric": "top1", "seed": 0, "value": 0.9}
    write(results, "demos.csv", DemoRow, row, row | {"seed": 1, "value": 0.8}, row | {"device_name": "B", "value": 0.7})
    said = measured.digits(FAMILIES["van"])
    assert "| Some CPU, 2 threads | top1 | 0.900, 0.800 |" in said
    assert "| B, 2 threads | top1 | 0.700 |" in said


@pytest.mark.parametrize("other", [{"threads": 8}, {"options": "x=1"}, {"model": "van_b1"}], ids=str)
def test_digits_learnt_otherwise_are_another_row(results: Path, other: Mapping[str, object]) -> None:
    row = {"demo": "van", "model": "van_b0", "options": "x=2", "metric": "top1", "seed": 0, "value": 0.9}
    write(results, "learning.csv", DemoRow, row, row | {"value": 0.95}, row | {"value": 0.7} | other)
    said = measured.digits(FAMILIES["van"])
    assert "| 0.950 |" in said
    assert "| 0.700 |" in said
    assert "0.900" not in said, "the newest of the same"


def test_a_family_without_a_link_is_evaluated_from_a_file(results: Path) -> None:
    for key, asked in (("biformer", "biformer_tiny biformer_tiny.pth"), ("van", "van_b0 pretrained")):
        said = measured.measured(FAMILIES[key])
        assert f"`vertebra test {asked} --data DIR --csv results/accuracy.csv`" in said


def test_words_of_other_layers_stand_where_these_were_measured(results: Path) -> None:
    rows = [
        {"ours": "HiLo", "other": "Windows", "what": "layer forward", "value": 1.5},
        {"ours": "van_b0", "other": "x"},
    ]
    write(
        results,
        "claims.csv",
        ClaimRow,
        *(dict.fromkeys(("ours_ms", "other_ms", "lowest", "highest"), 1) | r for r in rows),
    )
    assert "`Windows` is one as in Swin" in measured.comparisons(FAMILIES["litv2"])
    assert "SpatialReduction" not in measured.comparisons(FAMILIES["litv2"])
    assert "HiLo" not in measured.comparisons(FAMILIES["van"])
