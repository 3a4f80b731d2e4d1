"""The front matter of a card, as the Hugging Face Hub reads it: licence, tags, data sets, and the published results."""

import re

from huggingface_hub import CardData, EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index
from vertebra.tools._cards.facts import Family, full_name
from vertebra.tools._cards.hub import data_of_tag
from vertebra.tools._docs.detection import Leaf, sources_of


def header(family: Family) -> str:
    """The YAML block between its lines of dashes."""
    data = CardData(
        **licence(family),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["vertebra", "timm", "image-classification", "image-feature-extraction", "backbone", family.key],
        datasets=data_sets(family),
        **({"base_model": bases} if (bases := base_models(family)) else {}),
        **{"model-index": model_index(family)},
    )
    return f"---\n{data.to_yaml()}\n---"


def licence(family: Family) -> dict[str, str]:
    """Of the weights, for that is what the Hub takes it for; the card's text says that of the code.

    The Hub has one for a page, so that one with several is of another: the table of weights has each.
    """
    stated = {family.weights_licence(row) for row in family.rows if family.has_weights(row)}
    if len(stated) > 1:
        return {"license": "other", "license_name": "differs-by-model"}
    one = next(iter(stated), None)
    return {"license": one} if one else {"license": "other", "license_name": "not-stated"}


def data_sets(family: Family) -> list[str]:
    """What the weights were trained on, by their tags; the data that scores are of stands with the scores."""
    return sorted({name for row in family.rows for name in data_of_tag(row.tag)})


def base_models(family: Family) -> list[str]:
    """The repositories on the Hub whose weights the models load; none for weights of other places."""
    found = [entry.cfg.hf_hub_id or _repository(entry.cfg.url or "") for entry in family.entries]
    return list(dict.fromkeys(filter(None, found)))


def _repository(link: str) -> str:
    """Of a file on the Hub, where it lies there: owner/name; nothing for a file elsewhere."""
    found = re.match(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/", link)
    return found[1] if found else ""


def model_index(family: Family) -> list[dict]:
    """One model, the family, with every published accuracy and score, each with its source; nothing measured here.

    Readers keep the name of one model only, so that the names of variants stand in those of the metrics.
    """
    found = []
    for row in family.rows:
        if row.top1 is not None:
            sources = family.sources(row)
            result = EvalResult(
                task_type="image-classification",
                dataset_type="imagenet-1k",
                dataset_name="ImageNet-1K",
                dataset_split="validation",
                metric_type="accuracy",
                metric_name=f"{full_name(row)}: top-1 accuracy in percent, as published",
                metric_value=row.top1,
                source_name=", ".join(what for what, _ in sources),
                source_url=sources[0][1],
            )
            found += _results([result])
    for leaf in [*family.detectors, *family.segmenters]:
        found += _results(scores(leaf))
    return [{"name": family.title, "results": found}]


def _results(those: list[EvalResult]) -> list[dict]:
    """Of one source, as the Hub has them; together they would all get the first one's."""
    return [result for model in eval_results_to_model_index("", those) for result in model["results"]]


def scores(leaf: Leaf) -> list[EvalResult]:
    """The published scores of a config; none that are unknown or not verified."""
    if not re.fullmatch(r"[\d.]+( ms)?( / [\d.]+( ms)?)?", leaf.score):
        return []
    ((name, url),) = sources_of(leaf)
    source = {"source_name": name, "source_url": url}
    if leaf.path.parents[1].name == "ade20k":
        where = {"dataset_type": "scene_parse_150", "dataset_name": "ADE20K"}
        found = (score.partition(" ") for score in leaf.score.split(" / "))
        kinds = [
            ("image-segmentation", "mean_iou", f"mIoU, {'at many scales, ' if many else ''}as published", value)
            for value, _, many in found
        ]
    else:
        box, _, mask = leaf.score.partition(" / ")
        where = {"dataset_type": "coco", "dataset_name": "COCO 2017"}
        kinds = [
            ("object-detection", "map", "box AP, as published", box),
            ("instance-segmentation", "map", "mask AP, as published", mask),
        ]
    return [
        EvalResult(
            **where,
            task_type=task,
            dataset_split="validation",
            metric_type=kind,
            metric_name=f"{leaf.path.stem}: {what}",
            metric_value=float(value),
            **source,
        )
        for task, kind, what, value in kinds
        if value
    ]
