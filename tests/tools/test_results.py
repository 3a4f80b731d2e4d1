"""Tables of measurements: what their rows say of the code, and that damage does not spread."""

import shutil
import subprocess
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from vertebra.backbones._errors import UserError
from vertebra.tools import _results
from vertebra.tools._results import Origin, append, check_csv, columns, commit, origin, read


@dataclass(frozen=True)
class Row:
    """Two columns."""

    name: str
    value: int


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in the place of vertebra's."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    (tmp_path / "results").mkdir()
    for name in ("__init__.py", "results/t.csv"):
        (tmp_path / name).write_text("first\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(_results, "vertebra", types.SimpleNamespace(__file__=str(tmp_path / "__init__.py")))
    return tmp_path


def test_tables_that_grow_are_no_change_of_the_code_and_everything_else_is(clone: Path) -> None:
    plain = commit()
    assert len(plain) == 10
    (clone / "results/t.csv").write_text("first\nsecond\n")
    assert commit() == plain
    (clone / "__init__.py").write_text("second\n")
    assert commit() == plain + "+"


def test_what_is_no_clone_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_results, "vertebra", types.SimpleNamespace(__file__=str(tmp_path / "__init__.py")))
    assert commit() == ""


def test_row_that_was_cut_off_is_not_read_and_takes_no_other_with_it(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    append(table, [Row("a", 1)])
    with table.open("a") as file:
        file.write("b")
    assert read(table) == [{"name": "a", "value": "1"}]
    append(table, [Row("c", 3)])
    assert read(table) == [{"name": "a", "value": "1"}, {"name": "c", "value": "3"}]
    assert table.read_text() == "name,value\na,1\nb\nc,3\n"


def test_whole_tables_grow_line_by_line(tmp_path: Path) -> None:
    for value in (1, 2):
        append(tmp_path / "t.csv", [Row("a", value)])
    assert (tmp_path / "t.csv").read_text() == "name,value\na,1\na,2\n"


def test_tables_are_refused_by_the_option_that_named_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("other\n")
    for asked, said in ((None, f"--csv {tmp_path / 't.csv'}"), ("--out d: t.csv", "--out d: t.csv")):
        with pytest.raises(UserError) as refused:
            check_csv(tmp_path / "t.csv", Row, asked)
        assert str(refused.value).startswith(f"{said} has other columns than name, value")


def test_a_check_leaves_no_empty_table_behind(tmp_path: Path) -> None:
    check_csv(tmp_path / "t.csv", Row)
    assert not list(tmp_path.iterdir())


def test_columns_of_the_place_of_a_measurement_come_last() -> None:
    @dataclass(frozen=True)
    class Measured(Origin):
        name: str
        value: int

    assert columns(Measured) == ["name", "value", *origin("cpu", 1)]
