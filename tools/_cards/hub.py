"""The README of a published classifier: front matter that the Hugging Face Hub reads, and what a user must know."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import timm
import vertebra
from huggingface_hub import EvalResult, ModelCardData
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import versions
from vertebra.tools.list import cards, weights_licence

_SHOWN = 12  # labels; config.json has them all
_METRICS = {"top1": "top-1", "top5": "top-5"}
_DATA = {"in1k": "imagenet-1k", "in12k": "imagenet-12k", "in21k": "imagenet-21k", "in22k": "imagenet-22k"}


def facts(name: str) -> dict[str, Any]:
    """What cards.yml has of the model's family; {} for a model that is not vertebra's."""
    return cards().get(name.partition("_")[0], {}) if is_ours(name) else {}


def is_ours(name: str) -> bool:
    """Whether a reader has to import vertebra before timm knows the name."""
    return timm.models.model_entrypoint(name.split(".")[0]).__module__.startswith(f"{vertebra.__name__}.")


def data_of_tag(tag: str) -> list[str]:
    """The Hub's names of what weights of this tag were trained on, as far as the tag says."""
    return sorted({_DATA[part] for part in tag.split("_") if part in _DATA})


def published_licence(classifier: Classifier) -> str | None:
    """The Hub's identifier of what published weights are under; None for weights of a file, and where none is stated.

    That of the code says nothing of the weights, and what is stated of a family may not hold for each of its models.
    """
    if not classifier.published:
        return None
    cfg: Any = classifier.model.pretrained_cfg or {}
    if not is_ours(classifier.name):
        return cfg.get("license")
    family, name = facts(classifier.name), classifier.name.partition(".")[0]
    full = f"{name}.{cfg['tag']}" if cfg.get("tag") else name
    return weights_licence(family, family.get("models", {}).get(full, {}))


def card(classifier: Classifier, licence: str | None, metrics: Mapping[str, Any] | None) -> str:
    """The text of README.md.

    Args:
        classifier: what is published.
        licence: the Hub's identifier, such as apache-2.0; None where none is stated, and the card says so.
        metrics: what `test --out` wrote, with `top1` as a fraction; None for no results.
    """
    parts = [f"---\n{_front_matter(classifier, licence, metrics)}---", f"# {classifier.name}", _summary(classifier)]
    parts += ["## Use", _usage(classifier), "## Input and classes", _table(_inputs(classifier))]
    if metrics:
        parts += ["## Results", _results(metrics)]
    parts += ["## Source", _source(classifier, licence)]
    return "\n\n".join(parts) + "\n"


def _front_matter(classifier: Classifier, licence: str | None, metrics: Mapping[str, Any] | None) -> str:
    name = classifier.name
    tags = ["image-classification", "timm", *(["vertebra", name.partition("_")[0]] if is_ours(name) else [])]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=" ".join(filter(None, [str(metrics.get("images") or ""), "images of the publisher"])),
            metric_type="accuracy",
            metric_name=f"{said} accuracy in percent",
            metric_value=round(100 * metrics[key], 3),
        )
        for key, said in _METRICS.items()
        if metrics and key in metrics
    ]
    data = ModelCardData(
        license=licence or "other",
        license_name=None if licence else "not-stated",  # as in the families' cards
        library_name="timm",
        pipeline_tag="image-classification",
        tags=tags,
        datasets=_datasets(classifier),
        model_name=name if results else None,  # it names a list of results
        eval_results=results or None,
    )
    return data.to_yaml() + "\n"


def _datasets(classifier: Classifier) -> list[str] | None:
    """What published weights were trained on; of others a file does not say."""
    cfg: Any = classifier.model.pretrained_cfg or {}
    return data_of_tag(str(cfg.get("tag") or "")) or None if classifier.published else None


def _summary(classifier: Classifier) -> str:
    known, model = facts(classifier.name), classifier.model
    arxiv, title = (known.get("paper") or {}).get("arxiv"), known.get("title", classifier.name)
    named = f"[{title}](https://arxiv.org/abs/{arxiv})" if arxiv else title
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = "x".join(map(str, classifier.data["input_size"][1:]))
    others = "; it takes any size from 32x32 up" if known else ""
    return (
        f"An image classifier: {named}, {model.num_classes:,} classes, {parameters / 1e6:.2f} M parameters, evaluated "
        f"at {size} pixels{others}."
    )


def _usage(classifier: Classifier) -> str:
    ours = "import vertebra  # a package to install, which brings the name\n" if is_ours(classifier.name) else ""
    return f"""```python
import timm
import torch
{ours}from PIL import Image
from timm.data import create_transform, resolve_data_config

# of a folder on this machine: local-dir:FOLDER
model = timm.create_model("hf-hub:USER/REPOSITORY", pretrained=True).eval()
transform = create_transform(**resolve_data_config({{}}, model=model))
image = Image.open("image.jpg").convert("RGB")
with torch.inference_mode():
    scores = model(transform(image)[None]).softmax(1)[0]
best = int(scores.argmax())
names = model.pretrained_cfg.get("label_names") or range(len(scores))
print(names[best], float(scores[best]))
```{_without_vertebra(classifier)}"""


def _without_vertebra(classifier: Classifier) -> str:
    """How timm alone builds a model whose network is timm's own; nothing for others, or where options are ours."""
    plain = classifier.name.split(".")[0].removesuffix("_fused")
    if not is_ours(classifier.name) or plain not in timm.list_models() or is_ours(plain) or classifier.options:
        return ""
    classes = f"num_classes={classifier.model.num_classes}"
    code = f'timm.create_model("{plain}", {classes}, checkpoint_path="model.safetensors")'
    return f"\n\nWithout vertebra, timm's own network takes the weights too:\n\n```python\nmodel = {code}\n```"


def _inputs(classifier: Classifier) -> dict[str, str]:
    data, labels = classifier.data, classifier.folders
    numbers = {key: ", ".join(f"{value:g}" for value in data[key]) for key in ("mean", "std")}
    rows = {
        "image": "x".join(map(str, data["input_size"])) + f", {data['interpolation']}",
        "crop": f"{data['crop_mode']}, {data['crop_pct']:.1%} of the resized image's side",
        "mean": numbers["mean"],
        "standard deviation": numbers["std"],
    }
    if labels:
        more = f" ... ({len(labels)} in `config.json`)" if len(labels) > _SHOWN else ""
        rows["classes"] = ", ".join(label.replace("|", "\\|") for label in labels[:_SHOWN]) + more
    return rows


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _results(metrics: Mapping[str, Any]) -> str:
    rows = {f"{said} accuracy": f"{metrics[key]:.2%}" for key, said in _METRICS.items() if key in metrics}
    # folders are the publisher's own
    known = {**metrics, "checkpoint": PurePath(metrics.get("checkpoint") or "").name}
    rows |= {key: str(known[key]) for key in ("images", "checkpoint", "versions") if known.get(key)}
    return "Measured by `vertebra test`.\n\n" + _table(rows)


def _source(classifier: Classifier, licence: str | None) -> str:
    known = facts(classifier.name)
    paper, lines = known.get("paper") or {}, []
    if paper:
        arxiv = f", arXiv:{paper['arxiv']}" if paper.get("arxiv") else ""
        lines.append(f"Paper: {paper.get('authors')}, *{paper.get('title')}*, {paper.get('year')}{arxiv}")
    if known.get("code"):
        lines.append(f"Code of the authors: {known['code']}")
    if known.get("licence"):
        note = known.get("licence_note", "").strip() if classifier.published else ""
        lines.append(f"Licence that the authors gave their code: {known['licence']}. {note}".strip())
    lines.append(f"Licence of these weights: {licence or 'not stated'}")
    if not classifier.published:
        lines.append("How these weights were trained, and what they are not for: not stated")
    lines.append(f"Written by {versions()}")
    return "\n".join(f"- {line}" for line in lines)
