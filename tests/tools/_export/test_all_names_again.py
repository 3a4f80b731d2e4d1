"""export_onnx --all, once more: what its table tells of the same file is not done again, and anything else is."""

import dataclasses
from pathlib import Path

import pytest
from export_processes import replace_processes, row
from vertebra.tools import _results, export_onnx
from vertebra.tools._common import run_tool
from vertebra.tools._results import append, read


@pytest.fixture
def asked() -> list[list[str]]:
    """The commands that were run."""
    return []


@pytest.fixture(autouse=True)
def fates(monkeypatch: pytest.MonkeyPatch, asked: list[list[str]]) -> dict[str, str]:
    """What becomes of names, as `stand_in` has it."""
    fate: dict[str, str] = {}
    replace_processes(monkeypatch, fate, asked)
    return fate


def export(*argv: str | Path) -> None:
    assert run_tool(export_onnx.main, ["van_b0", "--all", *map(str, argv)]) == 0


def test_same_command_goes_on_where_another_one_ended(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lost file and a name that failed are exported again."""
    argv = ["--all", "--family", "van", "--out", str(tmp_path)]
    fates["van_b6"] = "killed"
    assert run_tool(export_onnx.main, argv) == 2
    (tmp_path / "van_b2.onnx").unlink()
    fates.clear()
    asked.clear()
    capsys.readouterr()
    assert run_tool(export_onnx.main, argv) == 0
    assert [command[1] for command in asked] == ["van_b2", "van_b6"]
    assert f"1/7  van_b0  skipped: {tmp_path / 'exports.csv'} has it" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["commit", "torch", "onnxruntime", "vertebra", "device_name", "weights", "options"])
def test_rows_of_other_code_packages_or_options_do_not_count(
    column: str, asked: list[list[str]], tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    append(table, [dataclasses.replace(row("van_b0", True), **{column: "other"})])
    export("--csv", table)
    assert len(asked) == 1
    export("--csv", table)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["--opset", "18"], []),
        (["--opset", "18"], ["--opset", "20"]),
        (["--static", "64x64"], []),
        (["--static", "64x64"], ["--static", "96x96"]),
        (["--checkpoint", "pretrained"], []),
    ],
    ids=" ".join,
)
def test_what_a_folder_holds_is_its_newest_row(
    first: list[str], second: list[str], asked: list[list[str]], tmp_path: Path
) -> None:
    """An older row tells of a file that another one has taken the place of."""
    for count, options in enumerate((first, second, first), 1):
        export("--out", tmp_path, *options)
        assert len(asked) == count
    export("--out", tmp_path, *first)
    assert len(asked) == 3


def test_without_files_any_row_of_a_table_counts(asked: list[list[str]], tmp_path: Path) -> None:
    for options in ([], ["--opset", "18"], ["--static", "64x64"]) * 2:
        export("--csv", tmp_path / "t.csv", *options)
    assert len(asked) == 3


def test_row_of_another_folder_tells_nothing_of_a_file(asked: list[list[str]], tmp_path: Path) -> None:
    common = ["--csv", tmp_path / "t.csv", "--out"]
    export(*common, tmp_path / "a", "--opset", "18")
    export(*common, tmp_path / "b")
    export(*common, tmp_path / "a")
    assert len(asked) == 3
    export(*common, tmp_path / "a")
    assert len(asked) == 3


def test_code_with_changes_beside_its_commit_never_counts(
    asked: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two such trees may differ from each other as well."""
    for count, commit in enumerate(("abc+", "abc+", "abc"), 1):
        monkeypatch.setattr(_results, "commit", lambda commit=commit: commit)
        export("--out", tmp_path)
        assert len(asked) == count


def test_row_that_a_full_disk_cut_off_is_left_aside(asked: list[list[str]], tmp_path: Path) -> None:
    export("--out", tmp_path)
    table = tmp_path / "exports.csv"
    with table.open("a") as file:
        file.write("van_b0,classification,random")
    export("--out", tmp_path)
    assert len(asked) == 1
    export("--out", tmp_path, "--opset", "18")
    assert [line["options"] for line in read(table)] == ["", "--opset 18"]


def test_weights_beside_a_file_come_with_it_and_are_missed(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path
) -> None:
    fates["van_b0"] = "large"
    for count in (1, 2):
        export("--out", tmp_path)
        export("--out", tmp_path)
        assert len(asked) == count
        assert sorted(path.name for path in tmp_path.iterdir()) == ["exports.csv", "van_b0.onnx", "van_b0.onnx.data"]
        (tmp_path / "van_b0.onnx.data").unlink()
