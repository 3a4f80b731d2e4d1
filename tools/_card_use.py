"""The part of a card that says how to load, fine-tune, evaluate, detect, segment and export; a test runs it."""

from vertebra.tools._card_facts import Family
from vertebra.tools._detection_docs import Leaf

_HEADS = ("mask-rcnn", "semantic-fpn", "retinanet", "upernet")
"""Which config stands for a family: the first of these that it has."""

EPOCHS = 30
"""Of the fine-tuning that is shown."""

_TRAINED = f"work_dirs/mine/epoch_{EPOCHS}.pth"


def use(family: Family) -> str:
    """Python and command lines, for the family's example."""
    linked, file = family.example.url is not None, f"{family.example.name}.pth"
    note = "" if linked else f" `{file}` is the authors' file, which you fetch by hand: see [Weights](#weights)."
    said = [
        f"Load it, as a classifier and as a pyramid of features.{note}",
        _load(family, None if linked else file),
        "Evaluate and predict with the published weights; fine-tune on seven classes of your own, in folders "
        "`my_folder/train/<class>` and `my_folder/val/<class>`, starting from them; evaluate that.",
        _classify(family, None if linked else file),
        "Detect and segment. COCO and ADE20K lie as [docs/detection.md](../docs/detection.md) says, which also has "
        "data of your own; any head takes any of the family's names by `--backbone`.",
        _shell([*_dense(family.detectors, "coco"), *_dense(family.segmenters, "ade20k")]),
        "Export, with free batch, height and width; ONNX Runtime's answers are compared with PyTorch's.",
        _export(family.example.name),
    ]
    return "\n\n".join(said)


def _load(family: Family, file: str | None) -> str:
    """`file` holds the weights where no link leads to them."""
    name, size = family.example.name, family.example.size
    weights = "pretrained=True, pretrained_cfg_overlay=weights" if file else "pretrained=True"
    lines = [
        "```python",
        "import timm",
        "import torch",
        "import vertebra  # registers the names",
        "",
        *([f'weights = dict(file="{file}")', ""] if file else []),
        f'model = timm.create_model("{name}", {weights}).eval()',
        f"logits = model(torch.randn(1, 3, {size}, {size}))",
        "",
        f'backbone = timm.create_model("{name}", {weights}, features_only=True)',
        "for features in backbone(torch.randn(1, 3, 203, 333)):",
        "    print(features.shape)",
        "```",
    ]
    return "\n".join(lines)


def _classify(family: Family, file: str | None) -> str:
    name = family.example.name
    options = (
        f"model.num_classes=7 model.weights={file or f'{name}.{family.example.tag}'} train_cfg.max_epochs={EPOCHS}"
    )
    recipe = f"imagenet/{family.key}/{name} --data my_folder --work-dir work_dirs/mine"
    return _shell(
        [
            f"vertebra test {name} {file or 'pretrained'} --data data/imagenet",
            f"vertebra infer {name} {file or 'pretrained'} pictures --out predictions",
            f"vertebra train {recipe} --cfg-options {options} optim_wrapper.optimizer.lr=1e-4",
            f"vertebra test {name} {_TRAINED} --data my_folder",
        ]
    )


def _export(name: str) -> str:
    start = f"vertebra export_onnx {name} --checkpoint {_TRAINED}"
    return _shell([f"{start} --out {name}.onnx", f"{start} --features --out {name}_features.onnx"])


def _dense(found: list[Leaf], data: str) -> list[str]:
    """Commands of one config, none where the family has no config on that data."""
    ranked = sorted(found, key=lambda leaf: _HEADS.index(leaf.head) if leaf.head in _HEADS else len(_HEADS))
    return [f"vertebra train {data}/{leaf.family}/{leaf.path.stem} --data data/{data}" for leaf in ranked[:1]]


def _shell(lines: list[str]) -> str:
    return "\n".join(["```bash", *lines, "```"])
