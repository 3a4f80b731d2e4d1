"""Exported files come whole, with their weights beside them or without, and take the place of older exports alone."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from vertebra.backbones._errors import UserError
from vertebra.tools._export.files import check_target, is_whole, new_file, tell_leftovers


def write(path: Path, outside: bool) -> None:
    """A model of one weight, in the file or beside it."""
    weight = onnx.numpy_helper.from_array(np.ones(300, np.float32), "w")
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["w"], ["y"])], "g", [], [], [weight]))
    onnx.save_model(model, path, save_as_external_data=outside, location=f"{path.name}.data", size_threshold=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_weights_of_an_older_export_are_gone_with_it(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    for outside in (True, True, False):
        check_target(out)
        with new_file(out) as temporary:
            write(temporary, outside)
        assert names(tmp_path) == ["m.onnx", "m.onnx.data"][: 1 + outside]
        assert len(onnx.load(out).graph.initializer[0].raw_data) == 1200


def test_weights_take_their_place_before_the_model_that_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process that is killed in between leaves a model that cannot be read."""
    replaced, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (replaced.append(Path(new).name), replace(old, new)))
    with new_file(tmp_path / "m.onnx") as temporary:
        write(temporary, outside=True)
    assert replaced == ["m.onnx.data", "m.onnx"]


def test_a_file_is_whole_with_every_file_that_it_names(tmp_path: Path) -> None:
    write(tmp_path / "old.onnx", outside=True)
    assert is_whole(tmp_path / "old.onnx")
    (tmp_path / "old.onnx").rename(tmp_path / "new.onnx")  # its weights are where they were, by their old name
    assert is_whole(tmp_path / "new.onnx")
    (tmp_path / "old.onnx.data").unlink()
    assert not is_whole(tmp_path / "new.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    assert not is_whole(tmp_path / "text.onnx")


def test_leftovers_are_named_and_nothing_else_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell_leftovers(tmp_path / "gone")
    write(tmp_path / "m.onnx", outside=False)
    tell_leftovers(tmp_path)
    assert capsys.readouterr().err == ""
    for name in ("b", "a"):
        (tmp_path / f".export_onnx_{name}").mkdir()
    tell_leftovers(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path} has leftovers of exports that were killed, or still run: .export_onnx_a, ")


@pytest.mark.parametrize("older", [True, False], ids=["beside an ONNX file", "alone"])
def test_someone_elses_file_where_weights_would_go_is_refused(older: bool, tmp_path: Path) -> None:
    if older:
        write(tmp_path / "m.onnx", outside=False)
    (tmp_path / "m.onnx.data").write_text("precious")
    with pytest.raises(UserError, match=r"m\.onnx\.data exists, where weights would go, and is not m\.onnx's"):
        check_target(tmp_path / "m.onnx")


def test_files_beside_other_formats_stay(tmp_path: Path) -> None:
    (tmp_path / "m.pt2.data").write_text("precious")
    check_target(tmp_path / "m.pt2", lambda _: True, "program")
    with new_file(tmp_path / "m.pt2") as temporary:
        temporary.write_bytes(b"program")
    assert names(tmp_path) == ["m.pt2", "m.pt2.data"]


def test_folders_that_were_made_are_gone_after_a_failure_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for folder in ("new/inner", "old"):
        with pytest.raises(ZeroDivisionError), new_file(tmp_path / folder / "m.onnx"):
            raise ZeroDivisionError
    assert names(tmp_path) == ["old"]
    with new_file(tmp_path / "new/inner/m.onnx") as temporary:
        write(temporary, outside=False)
    assert names(tmp_path / "new/inner") == ["m.onnx"]
