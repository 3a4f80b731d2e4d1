"""`make_cards`: pages are written where they are stale, and those of this clone are current."""

from pathlib import Path

import pytest
from vertebra.backbones._errors import UserError
from vertebra.tools import make_cards


def test_every_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_cards.main(["--check"]) == 0, f"run `make cards`: {capsys.readouterr().out}"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose pages are two short texts."""
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(make_cards, "ROOT", tmp_path)
    monkeypatch.setattr(make_cards, "pages", lambda: {Path("model_cards/a.md"): "a\n", Path("docs/b.svg"): "b\n"})
    return tmp_path


def test_pages_are_written_and_then_left_alone(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_cards.main([]) == 0
    assert (clone / "model_cards/a.md").read_text() == "a\n"
    assert "wrote docs/b.svg" in capsys.readouterr().out
    assert make_cards.main([]) == 0
    assert capsys.readouterr().out == "all pages are current\n"


def test_check_names_a_stale_page_and_writes_nothing(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cards.main([])
    (clone / "docs/b.svg").write_text("old")
    assert make_cards.main(["--check"]) == make_cards.STALE != 0
    assert "stale: docs/b.svg" in capsys.readouterr().out
    assert (clone / "docs/b.svg").read_text() == "old"


def test_an_installed_package_has_no_pages_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_cards, "ROOT", tmp_path)
    with pytest.raises(UserError, match="writes pages in a clone"):
        make_cards.main([])
