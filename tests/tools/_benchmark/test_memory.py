"""benchmark memory: what a process of its own reports, and that detection images fit into the memory they may take."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import vertebra
from vertebra.backbones._errors import UserError
from vertebra.tools import benchmark
from vertebra.tools._benchmark import memory
from vertebra.tools._benchmark.memory import measure, rows_of, table
from vertebra.tools._common import run_tool

LIMITS = {  # GiB at most for one image of 800x1333, float32, two threads: Python, PyTorch, weights and run together
    "biformer_small": 1.7,
    "transnext_tiny": 2.5,
    "maxvit_small_tf_224_fused": 2.2,
    "cswin_small": 1.25,
    "van_b2": 1.35,
    "l2vit_small": 1.4,
    "davit_small_fused": 1.4,
    "shvit_s4_fused": 0.9,
    "litv2_small": 1.4,
}
SLACK = 1.1
STORED = Path(vertebra.__file__).parent / "results" / "memory.csv"


@pytest.fixture(scope="module")
def tiny() -> dict[str, float]:
    return measure("van_b0", (32, 64), threads=1, repeats=2)


def test_peak_holds_the_process_and_is_no_lower_than_what_was_there_before(tiny: dict[str, float]) -> None:
    assert 0.1 < tiny["before"] < tiny["peak"] < 2
    assert tiny["cpu_seconds"] > 0
    assert 0 < tiny["seconds"] < 10


def test_memory_of_the_measuring_process_does_not_count(tiny: dict[str, float]) -> None:
    ballast = bytearray(b"x" * (1 << 30))
    assert measure("van_b0", (32, 64), threads=1, repeats=1)["peak"] == pytest.approx(tiny["peak"], abs=0.2)
    assert len(ballast) == 1 << 30


@pytest.mark.all
def test_larger_image_takes_more(tiny: dict[str, float]) -> None:
    large = measure("van_b0", (400, 667), threads=1, repeats=1)
    assert large["peak"] - tiny["peak"] > 400 * 667 / 16 * 32 * 4 / 2**30  # one map of the first stage


def test_model_that_cannot_run_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"van_b0 at 16x64: .*no side may be below 32"):
        measure("van_b0", (16, 64), threads=1, repeats=1)


def canned(peak: Callable[[int], float], seconds: Callable[[int], float]) -> list[memory.Row]:
    rows = []
    for size in ((100, 100), (200, 200)):
        pixels = size[0] * size[1]
        its = {
            "peak": peak(pixels),
            "repeated": peak(pixels),
            "before": 0.5,
            "seconds": seconds(pixels),
            "cpu_seconds": seconds(pixels),
        }
        rows += rows_of("a", size, its, threads=2)
    return rows


def test_rows_hold_one_number_each_with_its_unit_and_where_it_was_measured() -> None:
    row = canned(lambda pixels: 1.5, lambda pixels: 2.0)[0]
    assert (row.model, row.height, row.width, row.quantity, row.value, row.unit) == ("a", 100, 100, "peak", 1.5, "GiB")
    assert (row.device, row.threads, row.precision, row.vertebra) == ("cpu", 2, "float32", vertebra.__version__)


def test_growth_is_of_what_the_run_added_and_of_cpu_time() -> None:
    text = table(canned(lambda pixels: 0.5 + pixels / 40000, lambda pixels: (pixels / 10000) ** 1.5))
    assert text.splitlines()[-1] == "growth of a: 4.0 x pixels, 4.0 x memory, 8.0 x time"


def test_command_measures_each_size_and_keeps_the_rows_of_models_that_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(name: str, size: tuple[int, int], threads: int, repeats: int) -> dict[str, float]:
        if name == "resnet18":
            raise UserError("resnet18 at 64x64: out of memory")
        return {"before": 0.5, "peak": 0.5 + size[0] / 100, "repeated": 2.0, "seconds": 1.0, "cpu_seconds": 1.0}

    monkeypatch.setattr(memory, "measure", fake)
    path = tmp_path / "memory.csv"
    argv = ["memory", "van_b0", "resnet18", "--sizes", "64x64", "32x32", "--csv", str(path)]
    assert run_tool(benchmark.main, argv) == 2
    assert "resnet18 at 64x64: out of memory" in capsys.readouterr().err
    with path.open(newline="") as file:
        found = [(row["model"], row["height"], row["quantity"]) for row in csv.DictReader(file)]
    quantities = ("peak", "repeated", "before", "seconds", "cpu_seconds")
    assert found == [("van_b0", height, quantity) for height in ("64", "32") for quantity in quantities]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["vna_b0"], "Did you mean"),
        (["van_b0", "--sizes", "64"], "'64' is not a size"),
        (["van_b0", "--threads", "0"], "must be 1 or more"),
    ],
    ids=["name", "size", "threads"],
)
def test_bad_input_is_one_sentence_before_anything_is_measured(
    argv: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "measure", lambda *_: pytest.fail("measured"))
    assert run_tool(benchmark.main, ["memory", *argv]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert sentence in message


def test_memory_of_another_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(benchmark.main, ["--device", "cuda", "memory", "van_b0"]) == 2
    assert "memory is measured on the CPU" in capsys.readouterr().err


def test_models_that_are_measured_by_default_have_a_limit() -> None:
    assert set(memory.MODELS) == set(LIMITS)


def stored() -> dict[tuple[str, str, str], float]:
    """The newest stored number of each model, height and quantity."""
    with STORED.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["threads"] == "2"]
    return {(row["model"], row["height"], row["quantity"]): float(row["value"]) for row in rows}


@pytest.mark.parametrize("name", LIMITS)
def test_stored_peak_of_a_detection_image_is_within_the_limit(name: str) -> None:
    assert stored()[name, "800", "peak"] <= LIMITS[name]


@pytest.mark.parametrize("name", LIMITS)
def test_stored_memory_grows_no_faster_than_the_image(name: str) -> None:
    numbers = stored()
    small, large = (numbers[name, height, "peak"] - numbers[name, height, "before"] for height in ("400", "800"))
    assert large / small <= 4.4  # for 4 times the pixels


@pytest.mark.all
@pytest.mark.parametrize("name", LIMITS)
def test_detection_image_fits_into_its_memory(name: str) -> None:
    assert measure(name, (800, 1333), threads=2, repeats=0)["peak"] <= SLACK * LIMITS[name]
