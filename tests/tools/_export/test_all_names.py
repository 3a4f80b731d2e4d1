"""export_onnx --all: a table of what was exported, and what was not is told at the end."""

import csv
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from export_processes import replace_processes
from vertebra.backbones import model_names
from vertebra.tools import export_onnx
from vertebra.tools._common import run_tool
from vertebra.tools._export import all_names
from vertebra.tools._export.all_names import choose_names


def rows(table: Path) -> list[dict[str, str]]:
    with table.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def asked() -> list[list[str]]:
    """The commands that were run."""
    return []


@pytest.fixture
def fates(monkeypatch: pytest.MonkeyPatch, asked: list[list[str]]) -> dict[str, str]:
    """What becomes of names, as `stand_in` has it."""
    fate: dict[str, str] = {}
    replace_processes(monkeypatch, fate, asked)
    return fate


def test_every_name_gets_a_file_and_a_row(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "files"
    assert run_tool(export_onnx.main, ["--all", "--out", str(out)]) == 0
    assert [line["name"] for line in rows(out / "exports.csv")] == choose_names(None, None)
    of_maps = {"davit_base_fl_fused", "davit_huge_fl_fused"}  # they have no classes
    wanted = [f"{name}_features" if name in of_maps else name for name in model_names()]
    assert sorted(path.stem for path in out.glob("*.onnx")) == sorted(wanted)
    assert {command[1] for command in asked if "--features" in command} == of_maps
    assert len(list(out.iterdir())) == 1 + len(asked) == 73
    said = capsys.readouterr().out
    assert f"72 files in {out}; rows in {out / 'exports.csv'}" in said
    assert said.count("maps, since it has no classes: ") == len(of_maps)


def test_families_and_patterns_choose_names(fates: dict[str, str], asked: list[list[str]], tmp_path: Path) -> None:
    argv = ["*_small*", "--all", "--family", "van,cswin,litv2", "--out", str(tmp_path), "--features", "--opset", "18"]
    assert run_tool(export_onnx.main, argv) == 0
    assert [command[1] for command in asked] == ["cswin_small", "litv2_small"]
    assert all("--features" in command and command[command.index("--opset") + 1] == "18" for command in asked)


def test_maps_stand_beside_classifiers_and_neither_takes_the_others_place(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path
) -> None:
    argv = ["van_b0", "--all", "--out", str(tmp_path)]
    assert run_tool(export_onnx.main, argv) == run_tool(export_onnx.main, [*argv, "--features"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exports.csv", "van_b0.onnx", "van_b0_features.onnx"]
    assert [line["task"] for line in rows(tmp_path / "exports.csv")] == ["classification", "features"]


def test_name_without_free_sizes_gets_its_own_size_and_the_reason_is_told(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fates["cswin_base_384"] = "fixed"
    assert run_tool(export_onnx.main, ["cswin_base_384", "--all", "--out", str(tmp_path)]) == 0
    assert ["--static" in command for command in asked] == [False, True]
    assert asked[1][-2:] == ["--static", "384x384"]
    assert "of fixed size only: no free size; --static HxW may do" in capsys.readouterr().out
    (line,) = rows(tmp_path / "exports.csv")
    assert (line["free"], line["reason"], line["options"]) == ("False", "no free size; --static HxW may do", "")
    assert run_tool(export_onnx.main, ["cswin_base_384", "--all", "--out", str(tmp_path)]) == 0
    assert len(asked) == 2  # nobody asked for that size: it need not be done again


def test_name_that_fails_or_is_killed_ends_nothing_else_and_is_told(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fates |= {"van_b1": "broken", "van_b3": "killed", "van_b5": "hopeless"}
    assert run_tool(export_onnx.main, ["--all", "--family", "van", "--out", str(tmp_path)]) == 2
    printed, warned = capsys.readouterr()
    assert "van_b1  FAILED: no classifier\n" in printed
    assert "FAILED: ONNX Runtime differs at a free size; at 224x224: ONNX Runtime differs at a fixed size" in printed
    assert [command[1] for command in asked].count("van_b1") == 1  # no size would help
    assert "van_b3  FAILED: its process ended with code -9; -9 mostly means that memory ran out" in printed
    assert warned == (
        "no --checkpoint given, the files get fresh, random weights\n"
        "error: 3 of 7 names could not be exported: van_b1, van_b3, van_b5\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "exports.csv",
        *(f"van_b{i}.onnx" for i in (0, 2, 4, 6)),
    ]


@pytest.fixture
def _heeding() -> Iterator[None]:
    """Ctrl-C as in a terminal: what a shell starts in the background does not hear it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heeding")
@pytest.mark.parametrize(
    ("signum", "to", "code"),
    [(signal.SIGKILL, "os.getpid()", 2), (signal.SIGTERM, "os.getppid()", 143), (signal.SIGINT, "os.getppid()", 130)],
    ids=["child killed", "terminated", "Ctrl-C"],
)
def test_processes_that_are_ended_leave_nothing_in_the_folder(
    signum: int, to: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes and signals; only what the process of a name does is made up: it has begun a file."""
    half = "import os, sys, time; from pathlib import Path; out = Path(sys.argv[sys.argv.index('--out') + 1]); "
    half += "hidden = out.with_name('.export_onnx_half'); hidden.mkdir(); (hidden / 'm.onnx').write_bytes(b'half'); "
    monkeypatch.setattr(all_names, "_TOOL", half + f"os.kill({to}, {signum.value}); time.sleep(60)")
    assert run_tool(export_onnx.main, ["van_b0", "--all", "--out", str(tmp_path)]) == code
    assert not list(tmp_path.iterdir())


def test_file_of_someone_elses_is_not_replaced(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "van_b0.onnx").write_text("precious")
    assert run_tool(export_onnx.main, ["van_b0", "--all", "--out", str(tmp_path)]) == 2
    assert "van_b0.onnx exists and is no ONNX file" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["van_b0.onnx"]
    assert not asked


def test_folders_that_were_made_for_nothing_are_gone(
    fates: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fates["van_b0"] = "broken"
    argv = ["van_b0", "--all", "--out", str(tmp_path / "new/files")]
    for more in ([], ["--csv", str(tmp_path / "other/new/t.csv")]):
        assert run_tool(export_onnx.main, [*argv, *more]) == 2
        assert not list(tmp_path.iterdir())


def test_folder_whose_table_cannot_be_written_is_called_by_the_option_that_was_given(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exports.csv").mkdir()
    assert run_tool(export_onnx.main, ["van_b0", "--all", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path}: exports.csv cannot be appended to: ")
    assert not asked


def test_what_a_killed_run_left_is_named_and_stays(
    fates: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".export_onnx_old").mkdir()
    assert run_tool(export_onnx.main, ["van_b0", "--all", "--out", str(tmp_path)]) == 0
    assert f"{tmp_path} has leftovers of exports that were killed, or still run: .export_onnx_old\n" in (
        capsys.readouterr().err
    )
    assert (tmp_path / ".export_onnx_old").is_dir()


def test_without_out_the_table_alone_remains(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(export_onnx.main, ["van_b*", "--all", "--csv", str(tmp_path / "t.csv")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert not any(Path(command[command.index("--out") + 1]).exists() for command in asked)
    assert "checked and removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--all"], "--all needs --out DIR for the files, or --csv F"),
        (["--all", "--out", "text.txt"], "--out text.txt is no folder"),
        (["--all", "--out", "text.txt/d"], "--out text.txt/d cannot be written: Not a directory"),
        (["--all", "--out", "d" * 300], "cannot be written: File name too long"),
        (["--all", "--out", "d", "--family", "vans"], "--family vans: known are biformer, .* Did you mean van"),
        (["--all", "--out", "d", "vam_b0"], "no model of vertebra matches 'vam_b0'"),
        (["--all", "--out", "d", "--family", "van", "cswin_tiny"], "no model of van matches 'cswin_tiny'"),
        (["--all", "--out", "d", "--fp16"], "--fp16 takes one NAME"),
        (["--all", "--out", "d", "--checkpoint", "w.pth"], "--checkpoint w.pth is of one model"),
        (["--all", "--out", "d", "--csv", "text.txt"], "--csv text.txt has other columns than name, task"),
        (["van_b0", "--out", "m.onnx", "--family", "van"], "--family van chooses names for --all"),
        (["van_b0"], "export_onnx needs a NAME and --out F"),
    ],
)
def test_bad_input_is_one_sentence_and_runs_nothing(
    argv: list[str],
    sentence: str,
    fates: dict[str, str],
    asked: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("precious\n")
    assert run_tool(export_onnx.main, argv) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, message)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    assert not asked


@pytest.mark.all
def test_real_processes_write_real_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.csv"
    assert run_tool(export_onnx.main, ["shvit_s1_*", "--all", "--out", str(tmp_path), "--csv", str(table)]) == 0
    assert (tmp_path / "shvit_s1_fused.onnx").stat().st_size > 20e6
    with table.open() as file:
        (line,) = csv.DictReader(file)
    assert (line["name"], line["free"], line["opset"]) == ("shvit_s1_fused", "True", "20")
    assert float(line["difference"]) <= 1e-4
    assert "1/1  shvit_s1_fused  " in capfd.readouterr().out
