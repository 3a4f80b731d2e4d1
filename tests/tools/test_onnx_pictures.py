"""From a config and its checkpoint to a picture, by PyTorch and by the exported file: the commands of users."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from vertebra.tools import export_onnx, infer

pytest.importorskip("mmdet")

from mmengine.registry import MODELS, init_default_scope
from small_exports import spread
from vertebra.engine.config import read_config

CONFIG = """
_base_ = "demo/{base}"
pretraining = None
model = dict(backbone=dict(depths=(1, 1, 1, 1)))
"""


@pytest.fixture
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder to work in with mine.py, w.pth and two pictures: 1.png is of the size that the config's images have."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    Path("mine.py").write_text(CONFIG.format(base=request.param))
    config = read_config("mine.py")
    init_default_scope(config.default_scope)
    torch.manual_seed(0)
    torch.save({"state_dict": spread(MODELS.build(config.model)).state_dict()}, "w.pth")
    for name, size in (("1", (128, 128)), ("2", (140, 200))):
        pixels = np.random.default_rng(0).normal(128, 60, (*size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(f"pictures/{name}.png")
    return request.param


def results(out: str) -> list[dict[str, Any]]:
    return json.loads(Path(out, "results.json").read_text())


def alike(box: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same class and place, whatever the rank: scores may be equal to all digits that are kept."""
    near = abs(np.subtract(box["box"], other["box"])).max() < 0.5 and abs(box["score"] - other["score"]) < 1e-3
    return box["label"] == other["label"] and near


@pytest.mark.all
@pytest.mark.parametrize("files", ["retinanet_digits", "mask-rcnn_digits", "semantic-fpn_digits"], indirect=True)
def test_an_exported_file_draws_the_picture_that_its_config_and_checkpoint_draw(files: str) -> None:
    assert infer.main(["mine.py", "w.pth", "pictures", "--out", "pytorch"]) == 0
    assert export_onnx.main(["mine.py", "--checkpoint", "w.pth", "--out", "m.onnx"]) == 0
    assert infer.main(["m.onnx", "pictures", "--out", "onnx"]) == 0
    for name, ours, theirs in zip(("1", "2"), results("onnx"), results("pytorch"), strict=True):
        if files == "semantic-fpn_digits":
            assert ours["labels"] == pytest.approx(theirs["labels"], abs=1e-3)
            assert len(theirs["labels"]) > 1
        else:
            assert len(theirs["boxes"]) >= 10
            other = [box for box in ours["boxes"] if not any(alike(box, each) for each in theirs["boxes"])]
            assert len(other) <= 0.02 * len(theirs["boxes"])  # two of almost equal scores may change places
        pictures = [np.asarray(Image.open(f"{folder}/{name}.png").convert("RGB")) for folder in ("onnx", "pytorch")]
        assert pictures[0].shape == pictures[1].shape
        assert (pictures[0] != pictures[1]).any(2).mean() < 1e-3
