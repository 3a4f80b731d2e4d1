"""What a config gives to an export of its classifier."""

from pathlib import Path

import pytest
import torch
from vertebra.tools import export_onnx
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import run_tool

pytest.importorskip("mmengine")


def load(path: Path, text: str, *options: str) -> Classifier:
    """What `export_onnx` makes of a config with this text."""
    path.write_text(text)
    args = export_onnx.build_parser().parse_args([str(path), "--out", "m.onnx", *options])
    found = export_onnx._load(args, torch.device("cpu"))
    assert isinstance(found, Classifier)
    return found


def test_config_gives_its_labels_options_and_size_and_fetches_no_weights(tmp_path: Path) -> None:
    found = load(
        tmp_path / "mine.py",
        '_base_ = "demo/van_b0_digits"\n'
        'model = dict(weights="van_b0.in1k", pretrained=True, sync_bn=True, depths=(1, 1, 1, 1))\n'
        "labels = [str(i) for i in range(10)]\n",
    )
    assert (found.name, found.labels, found.options["depths"]) == ("van_b0", list("0123456789"), (1, 1, 1, 1))
    assert (found.data["input_size"], found.data["crop_pct"]) == ((3, 64, 64), 1.0)
    assert not found.model.training


def test_options_change_the_config(tmp_path: Path) -> None:
    options = ("--cfg-options", "model.depths=(1,1,1,1)", "model.num_classes=7")
    found = load(tmp_path / "mine.py", '_base_ = "imagenet/van/van_b0"\n', *options)
    assert (found.options["depths"], found.model.num_classes) == ((1, 1, 1, 1), 7)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["imagenet/van/van_b0", "--out", "m.onnx", "--cfg-options", "model.dephts=1"],
            "gives 'dephts' to VAN, which takes no such argument",
        ),
        (["imagenet/van/van_b0", "--out", "m.onnx", "--cfg-options", "depths"], "takes key=value, not 'depths'"),
        (
            ["imagenet/van/van_b0", "--out", "m.onnx", "--checkpoint", "w.pth", "--cfg-options", "model.num_classes=7"],
            "--cfg-options model.num_classes=7 would change nothing: with --checkpoint, a classifier is built as that",
        ),
        *(
            (["imagenet/van/van_b0", "--out", "m.onnx", "--cfg-options", option], f"{option[:-2]} is of a training")
            for option in ("model.weights=F", "train_cfg.max_epochs=3", "load_from=F")
        ),
        (
            ["ade20k/van/upernet_van_b2_160k", "--out", "m.onnx", "--cfg-options", "model.backbone.pretrained=F"],
            "model.backbone.pretrained is of a training and changes nothing in a file; weights come from",
        ),
        (["--all", "--out", "out", "--cfg-options", "model.num_classes=7"], "and --all has names of models"),
    ],
)
def test_options_that_go_nowhere_are_refused(
    options: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_tool(export_onnx.main, options) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_config_of_imagenet_names_its_classes_as_the_model_alone_does(tmp_path: Path) -> None:
    found = load(tmp_path / "mine.py", '_base_ = "imagenet/van/van_b0"\nmodel = dict(depths=(1, 1, 1, 1))\n')
    assert (len(found.labels), found.labels[0]) == (1000, "tench")
    assert found.folders == []  # of the data that a training would find, nothing is known


def test_preparation_that_is_a_list_of_steps_changes_nothing_of_the_models_own(tmp_path: Path) -> None:
    found = load(
        tmp_path / "mine.py",
        '_base_ = "demo/van_b0_digits"\n'
        "model = dict(depths=(1, 1, 1, 1))\n"
        'val_dataloader = dict(dataset=dict(transform=[dict(type="ToTensor")]))\n',
    )
    assert found.changes == {}
