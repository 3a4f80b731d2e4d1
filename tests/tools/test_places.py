"""Places that cannot be written to are refused by name, in every tool that takes --out, before anything is computed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from vertebra.backbones._errors import UserError
from vertebra.tools import convert_checkpoint, infer, plot, test, visualize
from vertebra.tools._places import check_file, check_folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text file, a folder and a picture in it."""
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "folder").mkdir()
    (tmp_path / "photo.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("out", ["new", "new/deep", "folder", "folder/new"])
def test_a_folder_that_is_there_or_can_be_made_is_taken(out: str, here: Path) -> None:
    check_folder(Path(out), f"--out {out}")
    check_file(Path(out, "m.json"), f"--out {out}", "m.json")
    assert sorted(path.name for path in here.iterdir()) == ["folder", "photo.png", "text.txt"]


@pytest.mark.parametrize(
    ("check", "out", "said"),
    [
        (check_folder, "text.txt", "--out text.txt cannot be written: .*text.txt is no folder"),
        (check_folder, "text.txt/new", "--out text.txt/new cannot be written: .*text.txt is no folder"),
        pytest.param(
            *(check_folder, "/sys/new", "--out /sys/new cannot be written: /sys takes no files"),
            marks=pytest.mark.skipif(not Path("/sys").is_dir(), reason="/sys, where nobody makes files, is Linux's"),
        ),
        (check_folder, "n" * 300, "cannot be written: File name too long"),
        (check_file, "folder", "--out folder is a folder; the name of a file is accepted: folder/m.json, say"),
        (check_file, "text.txt/m", "--out text.txt/m cannot be written: .*text.txt is no folder"),
        (check_file, "n" * 300, "cannot be written: File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_named(check: Callable[..., None], out: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(Path(out), f"--out {out}", *(["m.json"] if check is check_file else []))


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (infer.main, ["van_b0", "w.pth", "photo.png", "--out", "text.txt"]),
        (visualize.main, ["van_b0", "photo.png", "--out", "text.txt/new"]),
        (test.main, ["van_b0", "w.pth", "--data", "folder", "--out", "text.txt/m.json"]),
        (plot.main, ["folder", "--out", "text.txt/m.png"]),
        (convert_checkpoint.main, ["van_b0", "w.pth", "text.txt/m.safetensors"]),
    ],
)
def test_tools_look_at_their_place_first(main: Callable[[list[str]], int], argv: list[str]) -> None:
    with pytest.raises(UserError, match=r"text.txt\S* cannot be written: .*text.txt is no folder"):
        main(argv)
