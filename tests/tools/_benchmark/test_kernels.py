"""benchmark kernels: what is checked before it is timed, what a row says, and that docs/kernels.md is up to date."""

import csv
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from vertebra.kernels import _triton, dispatch
from vertebra.kernels.routing_attention import routing_attention
from vertebra.kernels.routing_attention.cases import _arguments as routing_arguments
from vertebra.kernels.window_attention import window_attention
from vertebra.tools import benchmark
from vertebra.tools._benchmark import kernel_cases, kernel_compiled, kernel_docs, kernel_peers, kernels
from vertebra.tools._benchmark.kernel_cases import cut, find_cases, learned, make, shape_class, work
from vertebra.tools._benchmark.kernel_timing import Rates, take_turns
from vertebra.tools._benchmark.worker import Case
from vertebra.tools._common import run_tool
from vertebra.tools._results import columns

CASE = ("channel_attention", "davit_tiny stage 4, 128 x 224")
RATES = Rates(copy=1e10, matmul=1e11)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the command wrote for one case, with a way that cannot run here."""
    path = tmp_path_factory.mktemp("kernels") / "kernels.csv"
    argv = ["channel_attention", "--cases", "tiny stage 4", "--ways", "triton,eager,reference", "--repeats", "2"]
    assert run_tool(benchmark.main, ["kernels", *argv, "--device", "cpu", "--csv", str(path)]) == 0
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_ways_that_can_run_are_timed_forward_and_training(measured: Path) -> None:
    rows = read(measured)
    ways = ("eager", "reference") if not _triton.INTERPRETED else ("triton", "eager", "reference")
    assert [(row["mode"], row["way"]) for row in rows] == [(m, way) for m in ("forward", "training") for way in ways]
    for row in rows:
        assert (row["operator"], row["case"], row["dtype"], row["unit"]) == (*CASE, "float32", "ms")
        assert 0 < float(row["lowest"]) <= float(row["value"]) <= float(row["highest"])
        assert (row["images"], row["repeats"], row["checked"], row["device"]) == ("1", "2", "True", "cpu")
        assert row["peak_memory_mb"] == ""


def test_rates_follow_from_time_and_least_work(measured: Path) -> None:
    tasks = work(*CASE, torch.float32, 1)
    for row in read(measured):
        seconds, task = float(row["value"]) / 1e3, tasks[row["mode"]]
        assert float(row["gb_per_s"]) == pytest.approx(task.bytes / seconds / 1e9, abs=0.06)
        assert float(row["tflops"]) == pytest.approx(task.flops / seconds / 1e12, abs=0.001)


def test_columns_are_those_that_dispatch_reads(measured: Path, tmp_path: Path) -> None:
    rows = [row for row in read(measured) if row["way"] == "eager"]
    for row in rows:
        row["device"], row["device_name"] = "cuda", "GPU X"
    ours = [row | {"way": "triton", "value": str(float(row["value"]) / 2)} for row in rows]
    path = tmp_path / "kernels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(kernels.Row))
        writer.writeheader()
        writer.writerows(rows + ours)
    assert dispatch.read_measured(path) == {("channel_attention", "narrow heads", "float32"): ("GPU X", 2.0, 2.0)}


@pytest.mark.parametrize("operator", sorted(kernel_cases.operators()))
def test_class_of_shapes_is_the_one_that_dispatch_asks_for(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def choose(operator: str, backend: Any, tensors: Any, unfit: Any, shape: Any) -> str:
        asked.append(shape())
        return "reference"

    monkeypatch.setattr(dispatch, "choose", choose)
    case = find_cases([operator])[0][1]
    arguments = kernel_cases.cast(make(operator, case, "meta", torch.float32), torch.float32)
    getattr(import_module(f"vertebra.kernels.{operator}"), operator)(**arguments)
    assert asked == [shape_class(operator, arguments)]


def test_least_bytes_are_inputs_and_result_and_in_training_all_gradients_too() -> None:
    tokens = 128 * 49 * 768 * 2  # bytes of q, of k, of v, or of the result
    assert {mode: task.bytes for mode, task in work(*CASE, torch.bfloat16).items()} == {
        "forward": 4 * tokens,
        "training": 12 * tokens,
    }


def test_first_images_keep_strides_and_what_stands_twice_stands_twice() -> None:
    x = torch.randn(3, 4, 5, 6).permute(0, 3, 1, 2)
    arguments = {"x": x, "weight": torch.randn(3, 1, 3, 3), "gate": None, "residual": x}
    few = cut(arguments, 2)
    assert few["x"].shape == (2, 6, 4, 5)
    assert few["x"].stride() == x.stride()
    assert few["residual"] is few["x"]
    assert few["weight"] is arguments["weight"]


def wrong(given: dict[str, Any], function: Any) -> Tensor:
    """The right result, and no gradient through v."""
    return function(**given | {"v": given["v"].detach() + 0 * given["v"]})


def test_way_with_a_wrong_gradient_is_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(operator: str, way: str, arguments: dict[str, Any]) -> Any:
        run = original(operator, "reference" if way == "sdpa" else way, arguments)
        return partial(wrong, function=lambda **given: run(given)) if way == "sdpa" else run

    original = kernel_peers.build
    monkeypatch.setattr(kernels, "build", build)
    rows, refused, failed = kernels.measure(*CASE, "cpu", torch.float32, ["eager", "sdpa"], 1, RATES)
    assert {row.way for row in rows} == {"eager"}
    assert refused == []
    assert len(failed) == 1
    assert failed[0].startswith("sdpa: the gradient of v is off by 1.0e+00 of its size")


def test_way_that_breaks_is_a_sentence_and_the_others_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(operator: str, way: str, arguments: dict[str, Any]) -> Any:
        if way == "flex":
            raise RuntimeError("out of\nluck")
        return original(operator, way, arguments)

    original = kernel_peers.build
    monkeypatch.setattr(kernels, "build", build)
    rows, _, failed = kernels.measure(*CASE, "cpu", torch.float32, ["flex", "eager"], 1, RATES)
    assert {row.way for row in rows} == {"eager"}
    assert failed == ["flex: RuntimeError: out of"]


def windows(**options: Any) -> dict[str, Any]:
    """Arguments for a map that windows of most sizes do not fill, with a value for every kind of option."""
    q, k, v = torch.randn(2, 15, 17, 3, 2, 16).unbind(3)
    (wh, ww) = options["window"]
    drawn = {
        "bias_table": torch.randn(2, 2 * wh - 1, 2 * ww - 1),
        "pad": torch.randn(3, 2, 16),
        "lepe_weight": torch.randn(32, 1, 3, 3),
        "lepe_bias": torch.randn(32),
    }
    own = {name: drawn[name] if value is True else value for name, value in options.items()}
    return {"q": q, "k": k, "v": v} | own


WINDOWS: dict[str, dict[str, Any]] = {
    "block, pad": {"window": (7, 7), "pad": True, "pad_offset": (1, 2)},
    "grid, bias": {"window": (5, 5), "bias_table": True, "pad": True, "partition": "grid"},
    "small": {"window": (2, 2), "scale": 0.3},
    "cross": {"window": (15, 2), "cross_window": (4, 17), "cross_offset": (1, 0), "pad": True},
    "lepe": {"window": (15, 2), "cross_window": (2, 17), "lepe_weight": True, "lepe_bias": True},
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", WINDOWS)
def test_other_ways_through_windows_are_the_operator(name: str) -> None:
    arguments = windows(**WINDOWS[name])
    expected = window_attention(**arguments, backend="reference")
    torch.testing.assert_close(kernel_peers.window_sdpa(**arguments), expected)
    if name != "lepe":
        found = kernel_peers.window_flex(**arguments, attend=flex_attention)
        torch.testing.assert_close(found, expected)


def test_other_way_through_regions_is_the_operator() -> None:
    arguments = routing_arguments(2, (8, 12), 2, 2, 3, "cpu", torch.float32)
    expected = routing_attention(**arguments, backend="reference")
    torch.testing.assert_close(kernel_peers.routing_sdpa(**arguments), expected)


def test_ways_take_turns() -> None:
    log: list[str] = []
    seconds = take_turns({"a": lambda: log.append("a"), "b": lambda: log.append("b")}, "cpu", 3)
    assert log == ["a", "b"] * 3
    assert {way: len(its) for way, its in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize("operator", kernel_cases.operators())
def test_every_operator_has_work_and_gradients(operator: str) -> None:
    operator, case = find_cases([operator])[0]
    tasks = work(operator, case, torch.bfloat16)
    assert 0 < tasks["forward"].flops < tasks["training"].flops
    assert 0 < tasks["forward"].bytes < tasks["training"].bytes
    assert learned(make(operator, case, "meta", torch.bfloat16))


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["window_atention"], "'window_atention' is no operator with kernels; those are channel_attention"),
        (["global_attention"], "'global_attention' is no operator with kernels"),
        (["--cases", "zzz"], "--cases zzz: no case has a name like that"),
        (["--device", "cpu", "--dtype", "float64"], "--dtype float64: kernels take bfloat16, float16, float32"),
        (["--device", "cpu", "--ways", "eager,magic"], "--ways magic: known are triton, eager"),
        (["--device", "toaster"], "--device toaster cannot be used here"),
        (["--device", "cpu", "--repeats", "0"], "--repeats is 0, but must be 1 or more"),
        (["--device", "cpu", "--csv", "other.csv"], "--csv other.csv has other columns than operator, case"),
        (["--compile-only", "--target", "sm_90,sm_12"], "--target sm_12: known are sm_80, sm_90"),
        (["--compile-only", "--dtype", "int8"], "--dtype int8: kernels take bfloat16"),
        (["--compile-only", "--csv", "other.csv"], "--csv other.csv has other columns than operator, case"),
        pytest.param([], "--compile-only", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")),
        pytest.param(
            ["--device", "cuda"],
            "--compile-only",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
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
    monkeypatch.setattr(kernels, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(kernel_compiled, "compile_case", lambda *_: pytest.fail("compiled"))
    assert run_tool(benchmark.main, ["kernels", *argv]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert sentence in message
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.skipif(_triton.INTERPRETED, reason="Triton's interpreter compiles nothing")
def test_compile_only_says_what_each_kernel_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    path = tmp_path / "compiled.csv"
    argv = ["kernels", "linear_attention", "--cases", "tiny stage 4", "--compile-only", "--csv", str(path)]
    for _ in range(2):  # the second time replaces the rows of the first
        assert run_tool(benchmark.main, argv) == 0
    rows, said = read(path), capsys.readouterr().out
    assert list(rows[0]) == columns(kernel_compiled.Row)
    assert len(rows) == len({row["kernel"] for row in rows}) >= 2
    for row in rows:
        assert (row["case"], row["dtype"], row["target"]) == ("l2vit_tiny stage 4, 128 x 224", "bfloat16", "sm_90")
        assert 16 <= int(row["registers"]) <= 255
        assert row["instructions"] in ("wgmma", "mma", "")
        assert row["kernel"] in said


def test_of_a_failed_compilation_the_last_line_is_said() -> None:
    class CompilationError(Exception):
        """As Triton's: the kernel's code, then what is wrong."""

    assert kernel_compiled.say(CompilationError("at 3:4:\ncode\n^\nx is unknown\n")) == "CompilationError: x is unknown"
    assert kernel_compiled.say(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert kernel_compiled.say(RuntimeError()) == "RuntimeError"


def test_table_says_how_many_times_the_kernels_time_a_way_takes() -> None:
    rows = kernels.measure(*CASE, "cpu", torch.float32, ["eager"], 1, RATES)[0]
    ours = replace(rows[0], way="triton", value=rows[0].value / 4)
    lines = kernels.table([rows[0], ours, rows[1]]).splitlines()
    assert "median of 1 calls" in lines[0]
    assert lines[2].split()[-1] == "4.00"
    assert lines[3].split()[-1] == "1.00"
    assert lines[4].split()[-1].endswith("%")  # of training no kernel was timed


def compiled(**entries: str) -> dict[str, str]:
    row = dict.fromkeys(columns(kernel_compiled.Row), "1")
    return row | {"operator": "a", "case": "c", "dtype": "bfloat16", "target": "sm_90", "kernel": "k"} | entries


def timed(way: str, value: str, **entries: str) -> dict[str, str]:
    row = dict.fromkeys(columns(kernels.Row), "1")
    row |= {"operator": "a", "case": "c", "dtype": "bfloat16", "mode": "forward", "device": "cuda", "checked": "True"}
    return row | {"way": way, "value": value} | entries


def test_page_shows_the_first_case_of_a_class_and_what_differs_as_a_range() -> None:
    rows = [
        compiled(registers="40", shared="2048", spills="0"),
        compiled(registers="100", shared="2048", spills="8"),
        compiled(case="of the same class"),
        compiled(case="of another", shape="2", target="sm_80", registers="77", spills="0"),
    ]
    text = kernel_docs.generate(rows, [])
    assert "| a | c | k | 1 |  |  |  | 40–100, spills 8 B | 2.0 | 1 |" in text
    assert "| a | of another | k | 1 | 77 |" in text
    assert "of the same class" not in text


def test_page_says_that_speed_is_unmeasured_and_the_command_that_measures_it() -> None:
    for rows in ([], [timed("triton", "1.0", device="cpu")], [timed("triton", "1.0", checked="False")]):
        text = kernel_docs.generate([], rows)
        assert "unmeasured: no GPU was at hand" in text
        assert kernel_docs.COMMAND in text


def test_page_compares_the_newest_times_with_the_best_other_way() -> None:
    rows = [timed("triton", "9.0"), timed("eager", "3.0"), timed("sdpa", "2.0"), timed("triton", "1.0", roofline="0.5")]
    text = kernel_docs.generate([], rows)
    assert "unmeasured" not in text
    assert "| a | c | bfloat16 | forward | sdpa | 2.000 | 1 | 1.000 | 1 | 50% | 2.00 |" in text


def test_picture_has_bounds_and_measured_points() -> None:
    pytest.importorskip("matplotlib")
    tasks = {("a", "c"): work(*CASE, torch.bfloat16)}
    figure = kernel_docs.draw(tasks, [timed("triton", "1.0", tflops="2.0", gb_per_s="1000")])
    bound, *_, points = figure.axes[0].collections
    (x, y), task = bound.get_offsets()[0], tasks["a", "c"]["forward"]
    assert x == pytest.approx(task.flops / task.bytes)
    assert y == pytest.approx(x * kernel_docs.COPY / 1e12)
    assert points.get_offsets().tolist() == [[2.0, 2.0]]


def test_committed_page_is_what_the_committed_rows_generate() -> None:
    page = kernel_docs.PAGE.read_text(encoding="utf-8")
    rows = (kernel_docs.read(path) for path in (kernel_docs.COMPILED, kernel_docs.MEASURED))
    generated = kernel_docs.generate(*rows)
    assert page == kernel_docs.put(page, generated), "run: vertebra benchmark kernels --docs"
    assert kernel_docs.PICTURE.is_file()


def test_page_names_every_operator_and_only_tests_that_exist() -> None:
    page = kernel_docs.PAGE.read_text(encoding="utf-8")
    for operator in kernel_cases.operators():
        assert f"| `{operator}` |" in page
        assert (kernel_docs.ROOT / "tests" / "kernels" / f"test_{operator}.py").is_file()


def test_models_are_measured_with_the_kernels_asked_for() -> None:
    cases = [Case("van_b0", "forward", False, 1, (32, 32), "cpu", 1, backend) for backend in ("eager", "triton")]
    rows, failures = benchmark.measure(cases, repeats=1, seconds=0.01)
    assert [row.kernels for row in rows][:1] == ["eager"]
    if not _triton.INTERPRETED:
        (failure,) = failures
        assert failure.startswith("van_b0, forward, VERTEBRA_KERNELS=triton: depthwise_conv cannot run on Triton")


def test_unknown_kernels_of_models_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(benchmark.main, ["models", "van_b0", "--kernels", "eager,cuda", "--device", "cpu"]) == 2
    assert "--kernels cuda: known are auto, reference, eager, triton" in capsys.readouterr().err
