"""The front matter of a card, as the Hugging Face Hub reads it: licence, tags, data sets, and the published results."""

import re

from huggingface_hub import CardData, EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index
from vertebra.tools._card_facts import Family, arxiv, full_name
from vertebra.tools._detection_docs import Leaf

_DATA = {"in1k": "imagenet-1k", "in12k": "imagenet-12k", "in21k": "imagenet-21k", "in22k": "imagenet-22k"}


def header(family: Family) -> str:
    """The YAML block between its lines of dashes."""
    data = CardData(
        license=family.card["licence"].lower(),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["vertebra", "timm", "image-classification", "image-feature-extraction", "backbone", family.key],
        datasets=data_sets(family),
        **({"base_model": bases} if (bases := base_models(family)) else {}),
        **{"model-index": model_index(family)},
    )
    return f"---\n{data.to_yaml()}\n---"


def data_sets(family: Family) -> list[str]:
    """What the weights were trained on, by their tags, and what the configs' scores are of."""
    found = {_DATA[part] for row in family.rows for part in row.tag.split("_") if part in _DATA}
    scored = {"coco": family.detectors, "ade20k": family.segmenters}
    return sorted(found) + [name for name, leaves in scored.items() if leaves]


def base_models(family: Family) -> list[str]:
    """The repositories on the Hub whose weights the models load; none for weights of other places."""
    return list(dict.fromkeys(entry.cfg.hf_hub_id for entry in family.entries if entry.cfg.hf_hub_id))


def model_index(family: Family) -> list[dict]:
    """A model for each published accuracy, and one for each published score of a config; nothing measured here."""
    found = []
    for row in family.rows:
        if row.top1 is not None:
            result = EvalResult(
                task_type="image-classification",
                dataset_type="imagenet-1k",
                dataset_name="ImageNet-1K",
                dataset_split="validation",
                metric_type="accuracy",
                metric_name="top-1 accuracy in percent, as published",
                metric_value=row.top1,
                source_name=row.source,
                source_url=arxiv(family.published(row).get("arxiv", family.card["paper"]["arxiv"])),
            )
            found += eval_results_to_model_index(full_name(row), [result])
    for leaf in [*family.detectors, *family.segmenters]:
        results = scores(leaf)
        if results:
            found += eval_results_to_model_index(leaf.path.stem, results)
    return found


def scores(leaf: Leaf) -> list[EvalResult]:
    """The published scores of a config; none that are unknown or not verified."""
    if not re.fullmatch(r"[\d.]+( / [\d.]+| ms)?", leaf.score):
        return []
    source = {"source_name": f"arXiv:{leaf.source}", "source_url": arxiv(leaf.source)}
    if leaf.path.parents[1].name == "ade20k":
        value, _, scales = leaf.score.partition(" ")
        where = {"task_type": "image-segmentation", "dataset_type": "scene_parse_150", "dataset_name": "ADE20K"}
        how = "at many scales, " if scales else ""
        kinds = [("mean_iou", f"mIoU, {how}as published", value)]
    else:
        box, _, mask = leaf.score.partition(" / ")
        where = {"task_type": "object-detection", "dataset_type": "coco", "dataset_name": "COCO 2017"}
        kinds = [("map", "box AP, as published", box), ("map", "mask AP, as published", mask)]
    return [
        EvalResult(
            **where, dataset_split="validation", metric_type=kind, metric_name=name, metric_value=float(value), **source
        )
        for kind, name, value in kinds
        if value
    ]
