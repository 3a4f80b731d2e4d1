"""`vertebra infer`: photographs are seen upright, and the steps that prepare them follow from the test data."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from vertebra.backbones._errors import UserError
from vertebra.tools import infer
from vertebra.tools._classifier import Classifier
from vertebra.tools._dense import Dense

RED, BLUE = (220, 20, 20), (20, 20, 220)
TURNED = 6  # EXIF's number for a camera that was held upright: stored pixels are to be turned by 90 degrees


def two_halves() -> Image.Image:
    """40 x 20 pixels as the camera stores them: the left half red, which is above where the image is upright."""
    image = Image.new("RGB", (40, 20), BLUE)
    image.paste(RED, (0, 0, 20, 20))
    return image


def photograph(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_halves().save(path, quality=95, subsampling=0, exif=exif)
    return path


def near(pixel: Any, colour: tuple[int, ...]) -> bool:
    return abs(np.array(pixel, int) - colour).max() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_read_as_mm_reads_those_of_detectors_and_segmenters(tmp_path: Path, orientation: int) -> None:
    cv2 = pytest.importorskip("cv2")
    path = photograph(tmp_path / "photograph.jpg", orientation)
    ((_, image),) = infer.read_images([path])
    expected = cv2.imread(str(path))[:, :, ::-1]
    assert (image.height, image.width) == expected.shape[:2]
    assert abs(np.asarray(image).astype(int) - expected).mean() < 3


def test_other_entries_of_an_exif_may_be_malformed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = TURNED
    exif[0x8769] = {0x9003: "2020:01:01"}
    malformed = exif.tobytes().replace(b":01:01", b":0\xad:01")  # no ASCII; Pillow cannot write this entry
    two_halves().save(tmp_path / "photograph.jpg", exif=malformed)
    ((_, image),) = infer.read_images([tmp_path / "photograph.jpg"])
    assert image.size == (20, 40)


def test_what_is_no_exif_is_passed_over(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "photograph.jpg", dpi=(72, 72), exif=b"Exif\x00\x00 and nothing that is one")
    ((_, image),) = infer.read_images([tmp_path / "photograph.jpg"])
    assert image.size == (40, 20)


def test_an_image_that_breaks_off_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole.getvalue()[:800])
    assert list(infer.read_images([tmp_path / "half.jpg"])) == []
    assert "half.jpg cannot be read" in capsys.readouterr().err


class Detector(Dense):
    """Finds the upper half of what it is given."""

    def predict(self, image: Image.Image) -> Any:
        """A sample with one box, where the image is red above."""
        from mmengine.structures import InstanceData

        assert near(image.getpixel((image.width // 2, 2)), RED)
        box = torch.tensor([[0.0, 0.0, image.width, image.height / 2]])
        return SimpleNamespace(pred_instances=InstanceData(bboxes=box, labels=torch.tensor([0]), scores=torch.ones(1)))


def predicted(model: Any, path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict, Image.Image]:
    """What results.json says of an image, and its picture."""
    monkeypatch.setattr(infer, "load_target", lambda *_: model)
    assert infer.main(["demo/some", str(path), "--out", str(out), "--device", "cpu"]) == 0
    (result,) = json.loads((out / "results.json").read_text())
    return result, Image.open(out / "photograph.png")


def test_boxes_and_size_are_those_of_the_upright_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mmengine")
    model = Detector(None, ["red"], [(0, 250, 0)], None, segments=False)
    path = photograph(tmp_path / "photograph.jpg", TURNED)
    result, picture = predicted(model, path, tmp_path / "out", monkeypatch)
    assert result["size"] == [40, 20]
    assert result["boxes"][0]["box"] == [0, 0, 20, 20]
    assert picture.size == (520, 1040)
    assert near(picture.getpixel((260, 400)), RED)
    assert near(picture.getpixel((260, 1000)), BLUE)


def test_photographs_are_classified_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Classifier("test_vit", timm.create_model("test_vit", num_classes=4).eval())
    path = photograph(tmp_path / "photograph.jpg", TURNED)
    result, picture = predicted(model, path, tmp_path / "out", monkeypatch)
    assert result["size"] == [40, 20]
    assert picture.width == 260
    assert near(picture.getpixel((130, 100)), RED)
    assert near(picture.getpixel((130, 500)), BLUE)
    upright = Image.open(path).transpose(Image.Transpose.ROTATE_270)
    assert infer.classify(model, [upright])[0] == result["classes"]


# --- the steps that prepare an image ---

PACK = {"type": "PackSegInputs"}


@pytest.mark.parametrize("scope", ["", "mmseg.", "mmseg.datasets.transforms."])
@pytest.mark.parametrize("kind", ["LoadAnnotations", "LoadPanopticAnnotations"])
def test_annotations_are_left_out_however_their_type_is_written(scope: str, kind: str) -> None:
    pytest.importorskip("mmengine")
    from vertebra.tools._dense import steps_for_pixels

    load = {"type": f"{scope}LoadImageFromFile", "to_float32": True}
    steps = steps_for_pixels({"pipeline": [load, {"type": f"{scope}{kind}"}, PACK]}, "loader")
    assert steps == [{"type": "loader", "to_float32": True}, PACK]
    assert load["type"] == f"{scope}LoadImageFromFile"  # the config is as it was


def test_the_type_of_a_step_may_be_a_class() -> None:
    transforms = pytest.importorskip("mmcv.transforms")
    from vertebra.tools._dense import steps_for_pixels

    pipeline = [{"type": transforms.LoadImageFromFile}, {"type": transforms.LoadAnnotations}, PACK]
    assert steps_for_pixels({"pipeline": pipeline}, "loader") == [{"type": "loader"}, PACK]


def test_the_step_that_loads_an_image_need_not_be_the_first() -> None:
    pytest.importorskip("mmengine")
    from vertebra.tools._dense import steps_for_pixels

    pipeline = [{"type": "LoadAnnotations"}, {"type": "Own"}, {"type": "LoadImageFromFile"}, PACK]
    assert steps_for_pixels({"pipeline": pipeline}, "loader") == [{"type": "Own"}, {"type": "loader"}, PACK]


def test_joined_test_data_gives_the_steps_of_its_first_part() -> None:
    pytest.importorskip("mmengine")
    from vertebra.tools._dense import steps_for_pixels

    parts = [{"pipeline": [{"type": "LoadImageFromFile"}, {"type": kind}]} for kind in ("First", "Second")]
    joined = {"type": "ConcatDataset", "datasets": parts}
    assert steps_for_pixels(joined, "loader") == [{"type": "loader"}, {"type": "First"}]


@pytest.mark.parametrize(("pipeline", "found"), [([PACK], "PackSegInputs"), ([], "no step")])
def test_data_that_loads_no_image_is_refused_in_a_sentence(pipeline: list[dict], found: str) -> None:
    pytest.importorskip("mmengine")
    from vertebra.tools._dense import steps_for_pixels

    with pytest.raises(UserError, match=f"has {found}; `infer` wants one with LoadImageFromFile"):
        steps_for_pixels({"pipeline": pipeline}, "loader")
