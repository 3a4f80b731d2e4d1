"""`vertebra infer` with a classifier: which images are read, what is drawn over them and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from small_networks import write_weights
from vertebra.backbones._errors import UserError
from vertebra.tools import infer
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import run_tool
from vertebra.tools._pictures import enlarged

RED = (220, 20, 20)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a small network with four classes."""
    return write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


def run(weights: Path, *words: str | Path) -> int:
    return run_tool(infer.main, ["test_resnet", str(weights), *map(str, words), "--device", "cpu"])


def listed(out: Path) -> list[str]:
    """The names of the images in results.json; each has its picture."""
    results = json.loads((out / "results.json").read_text())
    assert len(list(out.rglob("*.png"))) == len(results)
    return [Path(result["image"]).name for result in results]


def test_pictures_of_any_mode_and_size_are_predicted(weights: Path, tmp_path: Path) -> None:
    modes = {"L": (40, 30), "I;16": (40, 30), "RGBA": (40, 30), "P": (40, 30), "1": (1, 1), "RGB": (1, 3000)}
    for number, (mode, size) in enumerate(modes.items()):
        Image.new(mode, size).save(tmp_path / f"{number}.png")
    assert run(weights, tmp_path, "--out", tmp_path / "out") == 0
    assert listed(tmp_path / "out") == [f"{number}.png" for number in range(len(modes))]


@pytest.mark.parametrize("size", [(100, 1000), (1, 3000), (40, 30), (700, 20)])
def test_a_sheet_has_room_for_classes_below_a_picture_of_any_shape(size: tuple[int, int]) -> None:
    picture, _ = enlarged(Image.new("RGB", size, RED), 256)
    sheet = infer.draw(Image.new("RGB", size, RED), [{"label": "owl", "score": 0.5}])
    assert sheet.width == max(picture.width, 256)
    assert sheet.crop((0, 0, *picture.size)).tobytes() == picture.tobytes()
    strip = np.asarray(sheet.convert("L"))[picture.height :]
    middle = sheet.width // 2
    assert strip[:, :middle].min() < 50  # the label
    assert strip[:, middle:].min() < 50  # the score
    bar = np.asarray(sheet)[picture.height + 5]
    assert (bar[middle - 1].tolist(), bar[middle + 2].tolist()) == ([0xCF, 0xE3, 0xF5], [255, 255, 255])


def test_pictures_of_the_run_before_are_not_predicted(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    for said in ("", f"left out: 2 of the images in {tmp_path}, since they lie in --out {tmp_path}/sub/out\n"):
        assert run(weights, tmp_path, "--out", tmp_path / "sub/out") == 0
        assert listed(tmp_path / "sub/out") == ["a.png", "b.png"]
        assert capsys.readouterr().err == said


def test_images_of_ones_own_in_out_are_predicted(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    assert run(weights, tmp_path, "--out", tmp_path / "sub") == 0
    assert listed(tmp_path / "sub") == ["a.jpg", "b.jpg"]


def test_images_of_ones_own_in_out_are_not_drawn_over(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/a.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    before = (tmp_path / "sub/a.png").read_bytes()
    assert run(weights, tmp_path, "--out", tmp_path / "sub") == 2
    assert "sub would overwrite " in capsys.readouterr().err
    assert (tmp_path / "sub/a.png").read_bytes() == before


def test_a_folder_with_nothing_but_pictures_of_the_run_before_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "out/a.png")
    (tmp_path / "out/results.json").write_text("[]")
    with pytest.raises(UserError, match=r"holds no image beside 1 that an earlier run wrote to .*out \(.*\.png"):
        infer.find_images([str(tmp_path)], tmp_path / "out")


def test_pictures_may_lie_beside_the_images(weights: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    assert run(weights, tmp_path, "--out", tmp_path) == 0
    assert listed(tmp_path) == ["a.jpg"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"poison": float("nan")}, "test_resnet answers with NaN or infinity; weights that give finite numbers"),
        ({"in_chans": 4}, "test_resnet takes 4 channels; a model that takes pictures, with 3, is accepted"),
    ],
)
def test_weights_that_cannot_predict_are_one_sentence_and_no_picture(
    change: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    file = write_weights(tmp_path / "w.safetensors", **change)
    assert run(file, tmp_path / "a.png", "--out", tmp_path / "out") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert sentence in message
    assert not (tmp_path / "out").exists()


def test_a_model_without_classes_predicts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headless = Classifier("test_resnet", timm.create_model("test_resnet", num_classes=0).eval())
    monkeypatch.setattr(infer, "load_target", lambda *_: headless)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"test_resnet has no classes \(num_classes is 0\)"):
        infer.main(["test_resnet", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_is_one_sentence(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "out").write_text("precious")
    assert run(weights, tmp_path / "a.png", "--out", tmp_path / "out") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert "out" in message
    assert (tmp_path / "out").read_text() == "precious"


def test_both_files_of_a_segmenter_have_names_of_their_own() -> None:
    places = {Path(f"{name}.jpg"): Path(name) for name in ("x", "x.classes", "y.classes", "y")}
    names = infer.picture_names(places)
    files = [file for name in names.values() for file in (name, infer.classes_name(name))]
    assert len(set(files)) == 8
    assert (files[:2], names[Path("x.classes.jpg")]) == (["x.png", "x.classes.png"], "x.classes_2.png")
