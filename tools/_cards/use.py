"""The part of a card that says how to load, fine-tune, evaluate, detect, segment and export; a test runs it."""

from vertebra.tools._cards.facts import Family
from vertebra.tools._docs.detection import Leaf

_HEADS = ("mask-rcnn", "semantic-fpn", "retinanet", "upernet")
"""Which config stands for a family: the first of these that it has."""

EPOCHS = 30
"""Of the fine-tuning that is shown."""

_TRAINED = f"work_dirs/mine/epoch_{EPOCHS}.pth"


def use(family: Family) -> str:
    """Python and command lines, for the family's example."""
    note = f" `{family.weights_word}` is the authors' file, which you fetch by hand: see [Weights](#weights)."
    said = [
        f"Load it, as a classifier and as a pyramid of features.{'' if family.linked else note}",
        _load(family),
        "Evaluate and predict with the published weights; fine-tune on seven classes of your own, in folders "
        "`my_folder/train/<class>` and `my_folder/val/<class>`, starting from them; evaluate that.",
        _classify(family),
        "Look inside, and put what was trained on the Hugging Face Hub: `hub` is a folder to upload.",
        _after(family.example.name),
        "Detect and segment: train, evaluate, predict. COCO and ADE20K lie as "
        "[docs/detection.md](../docs/detection.md) says, which also has "
        "data of your own; any head takes any of the family's names by `--backbone`.",
        _shell([*_dense(family.detectors, "coco"), *_dense(family.segmenters, "ade20k")]),
        "Export, with free batch, height and width; ONNX Runtime's answers are compared with PyTorch's. "
        "[docs/export.md](../docs/export.md) has other formats, fewer bits, detectors and segmenters.",
        _export(family.example.name),
    ]
    return "\n\n".join(said)


def _load(family: Family) -> str:
    name, size = family.example.name, family.example.size
    weights = "pretrained=True" if family.linked else "pretrained=True, pretrained_cfg_overlay=weights"
    lines = [
        "```python",
        "import timm",
        "import torch",
        "import vertebra  # registers the names",
        "",
        *([] if family.linked else [f'weights = dict(file="{family.weights_word}")', ""]),
        f'model = timm.create_model("{name}", {weights}).eval()',
        f"logits = model(torch.randn(1, 3, {size}, {size}))",
        "",
        f'backbone = timm.create_model("{name}", {weights}, features_only=True)',
        "for features in backbone(torch.randn(1, 3, 203, 333)):",
        "    print(features.shape)",
        "```",
    ]
    return "\n".join(lines)


def _classify(family: Family) -> str:
    name, word = family.example.name, family.weights_word
    start = f"{name}.{family.example.tag}" if family.linked else word
    options = f"model.num_classes=7 model.weights={start} train_cfg.max_epochs={EPOCHS}"
    recipe = f"imagenet/{family.key}/{name} --data my_folder --work-dir work_dirs/mine"
    return _shell(
        [
            f"vertebra test {name} {word} --data data/imagenet",
            f"vertebra infer {name} {word} pictures --out predictions",
            f"vertebra train {recipe} --cfg-options {options} optim_wrapper.optimizer.lr=1e-4",
            f"vertebra test {name} {_TRAINED} --data my_folder",
        ]
    )


def _export(name: str) -> str:
    start = f"vertebra export_onnx {name} --checkpoint {_TRAINED}"
    return _shell(
        [
            f"{start} --out {name}.onnx",
            f"vertebra infer {name}.onnx pictures --out predictions_onnx",
            f"{start} --features --out {name}_features.onnx",
        ]
    )


def _after(name: str) -> str:
    return _shell(
        [
            f"vertebra visualize {name} photo.jpg --out inside --checkpoint {_TRAINED}",
            f"vertebra publish {name} {_TRAINED} hub",
        ]
    )


def _dense(found: list[Leaf], data: str) -> list[str]:
    """Commands of one config, none where the family has no config on that data."""
    ranked = sorted(found, key=lambda leaf: _HEADS.index(leaf.head) if leaf.head in _HEADS else len(_HEADS))
    lines = []
    for leaf in ranked[:1]:
        config = f"{data}/{leaf.family}/{leaf.path.stem}"
        lines = [
            f"vertebra train {config} --data data/{data}",
            f"vertebra test {config} {_last(leaf)} --data data/{data}",
            f"vertebra infer {config} {_last(leaf)} pictures --out predictions_{data}",
        ]
    return lines


def _last(leaf: Leaf) -> str:
    """The file that its training ends with, by the end of the config's name."""
    schedule = leaf.rest.rpartition("_")[2]
    epochs = {"1x": 12, "3x": 36}
    step = f"iter_{schedule[:-1]}000" if schedule.endswith("k") else f"epoch_{epochs.get(schedule) or schedule[:-1]}"
    return f"work_dirs/{leaf.path.stem}/{step}.pth"


def _shell(lines: list[str]) -> str:
    return "\n".join(["```bash", *lines, "```"])
