"""The recipes of ImageNet: every published set of weights has one, and it is what the authors did.

RECIPES is written from the specifications of the families, not from the configs. What a specification does not give is
named by `Head.open`, and the head of the leaf has to say so.
"""

import csv
import math
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import vertebra.engine  # noqa: F401  registers what the configs name
import yaml
from mmengine.config import Config
from small_images import write_images
from vertebra.backbones import model_names
from vertebra.backbones._checkpoint import load_weights
from vertebra.engine.classifier import TimmClassifier
from vertebra.engine.config import build_runner, check_model, config_names, find_config, read_config
from vertebra.engine.hooks import UnreadableImagesHook
from vertebra.engine.samples import transform_arguments

ROOT = Path(__file__).parents[2]
CARDS = yaml.safe_load((ROOT / "model_cards" / "cards.yml").read_text(encoding="utf-8"))
GPUS = 8


@dataclass(frozen=True)
class Head:
    """What the comment above a recipe has to say, beside what every one says."""

    open: tuple[str, ...] = ()  # values that the specification does not give: each is named where that is said
    tells: tuple[str, ...] = ()  # facts without which the recipe would mislead
    no_score: str = "no top-1 is published"  # where the card has none
    compiled: bool = False  # whether the authors train through torch.compile


@dataclass(frozen=True)
class Recipe:
    """What trains one set of weights: rates are those of the total batch, lengths are in epochs."""

    tag: str
    drop_path: float = 0.0
    lr: float = 1e-3
    batch: int = 1024
    epochs: int = 300
    warm_up: int = 5
    first: float | None = 1e-6  # rate at which the warm-up begins
    last: float | None = 1e-5  # of the cosine; None for a constant rate
    cool_down: int = 0  # epochs at the last rate
    decay: float = 0.05
    names: tuple[tuple[str, float], ...] = ()  # parts of names, and what multiplies their rate
    clip: tuple[str, float] | None = None
    ema: float | None = None
    mixup: tuple[float, float] | None = (0.8, 1.0)  # alpha of mixup and of cutmix
    erasing: float = 0.25
    augment: str = "rand-m9-mstd0.5-inc1"
    copies: int = 1  # repeated augmentation
    interpolation: str = "bicubic"  # of training images
    crop: float | str = 0.875  # share of the shorter side that is tested, or "squash": the whole image
    size: int = 224
    classes: int = 1000
    weights: str | None = None
    head: Head = Head()


def _van() -> dict[str, Recipe]:
    usual = Recipe("van_b0.in1k", 0.1, epochs=310, cool_down=10, last=1e-6, interpolation="random", crop=0.9)
    rows = {f"van_b{n}": replace(usual, tag=f"van_b{n}.in1k", drop_path=0.1) for n in (0, 1, 2)}
    rows["van_b3"] = replace(usual, tag="van_b3.in1k", drop_path=0.2)
    rows["van_b4"] = replace(usual, tag="van_b4.in1k", drop_path=0.2, head=Head(("drop path",)))
    usual = replace(usual, cool_down=0, interpolation="bicubic", crop=0.875)
    theirs = Head(("decay", "first and last rates", "augmentation"))
    whole = replace(usual, lr=4e-3, batch=8192, epochs=90, drop_path=0.1, classes=21841, head=theirs)
    tuned = replace(usual, lr=5e-5, batch=512, epochs=30, warm_up=0, first=None, decay=1e-8, mixup=None)
    tuned = replace(tuned, head=Head(("last rate", "RandAugment", "erasing")))
    for n, drop in ((4, 0.2), (5, 0.2), (6, 0.3)):
        name, start = f"van_b{n}", f"van_b{n}.in22k"
        ours = replace(tuned, drop_path=drop, weights=start)
        rows[f"{name}_22k"] = replace(whole, tag=start)
        rows[f"{name}_ft"] = replace(ours, tag=f"{start}_ft_in1k")
        rows[f"{name}_384_ft"] = replace(ours, tag=f"{start}_ft_in1k_384", crop="squash", size=384)
    return rows


def _biformer() -> dict[str, Recipe]:
    beside = Head(tells=("0.99996", "so none are kept"))  # the published weights are the plain ones
    usual = Recipe("", epochs=310, cool_down=10, copies=3, head=beside)
    drops = {"tiny": 0.1, "small": 0.15, "base": 0.4, "stl": 0.1, "stl_nchw": 0.1}
    rows = {f"biformer_{key}": replace(usual, tag=f"biformer_{key}.in1k", drop_path=x) for key, x in drops.items()}
    for name in ("biformer_tiny", "biformer_base"):
        rows[name] = replace(rows[name], head=replace(beside, open=("drop path",)))
    return rows


def _transnext() -> dict[str, Recipe]:
    usual = Recipe("", clip=("norm", 1.0), copies=3, head=Head(compiled=True))
    drops = {"micro": 0.15, "tiny": 0.25, "small": 0.45, "base": 0.6, "micro_aaaa_256": 0.15}
    rows = {f"transnext_{key}": replace(usual, tag=f"transnext_{key}.in1k", drop_path=x) for key, x in drops.items()}
    rows["transnext_micro_aaaa_256"] = replace(rows["transnext_micro_aaaa_256"], size=256)
    tuned = replace(usual, lr=1e-5, epochs=5, warm_up=0, first=None, last=None, mixup=(0.8, 0.0), crop="squash")
    tuned = replace(tuned, size=384, head=Head(("batch",), compiled=True))
    for size, drop in (("small", 0.7), ("base", 0.8)):
        tag, start = f"transnext_{size}_384.in1k", f"transnext_{size}.in1k"
        rows[f"transnext_{size}_384_ft"] = replace(tuned, tag=tag, drop_path=drop, weights=start)
    return rows


def _litv2() -> dict[str, Recipe]:
    slow = (("downsample.offset.weight", 0.01),)
    usual = Recipe("", warm_up=20, clip=("norm", 5.0), names=slow)
    drops = {"small": 0.2, "medium": 0.3, "base": 0.5}
    rows = {f"litv2_{key}": replace(usual, tag=f"litv2_{key}.in1k", drop_path=x) for key, x in drops.items()}
    tuned = replace(usual, lr=4e-5, epochs=30, warm_up=5, first=4e-8, last=4e-7, decay=1e-8, crop="squash", size=384)
    rows["litv2_base_384_ft"] = replace(tuned, tag="litv2_base_384.in1k", drop_path=0.5, weights="litv2_base.in1k")
    return rows


def _cswin() -> dict[str, Recipe]:
    usual = Recipe(
        "cswin_tiny.in1k",
        0.2,
        lr=2e-3,
        batch=2048,
        epochs=310,
        cool_down=10,
        warm_up=20,
        ema=0.99984,
        crop=0.9,
        interpolation="random",
    )
    base = replace(usual, tag="cswin_base.in1k", drop_path=0.5, lr=1e-3, batch=1024, decay=0.1, ema=0.99992)
    tuned = replace(usual, warm_up=0, first=None, last=5e-7, epochs=30, decay=1e-8, crop=1.0, size=384)
    return {
        "cswin_tiny": usual,
        "cswin_small": replace(usual, tag="cswin_small.in1k", drop_path=0.4),
        "cswin_base": base,
        "cswin_base_384_ft": replace(
            tuned,
            tag="cswin_base_384.in1k",
            drop_path=0.7,
            lr=5e-6,
            batch=256,
            mixup=(0.1, 0.1),
            ema=0.9998,
            weights="cswin_base.in1k",
            head=Head(("RandAugment", "erasing", "interpolation")),
        ),
    } | _cswin_large(tuned)


def _cswin_large(tuned: Recipe) -> dict[str, Recipe]:
    large = replace(
        tuned,
        lr=2.5e-4,
        batch=512,
        cool_down=0,
        mixup=(0.01, 0.3),
        ema=0.9996,
        weights="cswin_large.in22k",
        names=(("backbone.", 0.05), ("backbone.head.", 1.0)),
        interpolation="bicubic",
    )
    taken = Head(("RandAugment", "erasing"))
    return {
        "cswin_large_22k": Recipe(
            "cswin_large.in22k",
            0.2,
            batch=4096,
            epochs=90,
            classes=21841,
            crop=0.9,
            interpolation="random",
            head=Head(("how the authors trained it",)),
        ),
        "cswin_large_ft": replace(large, tag="cswin_large.in22k_ft_in1k", crop=0.9, size=224, head=taken),
        "cswin_large_384_ft": replace(
            large, tag="cswin_large_384.in22k_ft_in1k", head=Head(("how the authors trained it at 384",))
        ),
    }


def _l2vit() -> dict[str, Recipe]:
    # the warm-up begins at 0, which a factor cannot: one ten-thousandth of the rate stands for it
    usual = Recipe("", lr=4e-3, batch=4096, warm_up=20, first=4e-7, last=1e-6, ema=0.9999)
    images = ("augmentation", "mixing", "erasing")
    whole = Recipe("l2vit_base.in22k", 0.2, epochs=90, classes=21841, head=Head(images))
    tuned = replace(
        whole,
        lr=4e-5,
        epochs=30,
        first=4e-8,
        last=4e-7,
        decay=1e-8,
        ema=0.9999,
        classes=1000,
        head=Head(("decay of the averaged weights", *images)),
        weights="l2vit_base.in22k",
    )
    drop = Head(("drop path",))
    return {
        "l2vit_tiny": replace(usual, tag="l2vit_tiny.in1k", drop_path=0.1, head=drop),
        "l2vit_small": replace(usual, tag="l2vit_small.in1k", drop_path=0.2, head=drop),
        "l2vit_base": replace(usual, tag="l2vit_base.in1k", drop_path=0.3),
        "l2vit_base_22k": whole,
        "l2vit_base_ft": replace(tuned, tag="l2vit_base.in22k_ft_in1k"),
        "l2vit_base_384_ft": replace(tuned, tag="l2vit_base_384.in22k_ft_in1k", crop="squash", size=384),
    }


def _davit() -> dict[str, Recipe]:
    usual = Recipe("", epochs=310, cool_down=10, clip=("norm", 1.0), crop=0.9, head=Head(("drop path",)))
    drops = {"tiny": 0.1, "small": 0.2, "base": 0.4, "large": 0.4, "huge": 0.4, "giant": 0.4}
    tags = {size: f"davit_{size}_fused" + (".msft_in1k" if size in ("tiny", "small", "base") else "") for size in drops}
    rows = {f"davit_{key}_fused": replace(usual, tag=tags[key], drop_path=drop) for key, drop in drops.items()}
    more = {"large": (), "huge": ("ImageNet-22K or private data",), "giant": ("90.4 %", "1.5 billion pairs")}
    for key, tells in more.items():  # what is published of them was trained on more than ImageNet-1K
        head = Head(("recipe",), tells, "no top-1 of this training is published")
        rows[f"davit_{key}_fused"] = replace(rows[f"davit_{key}_fused"], head=head)
    return rows


def _maxvit() -> dict[str, Recipe]:
    drops = {"tiny": 0.2, "small": 0.3, "base": 0.4, "large": 0.6, "xlarge": 0.6}
    usual = Recipe(
        "",
        lr=3e-3,
        batch=4096,
        warm_up=32,
        first=3e-7,  # not given; a small one, as for L2ViT
        clip=("norm", 1.0),
        ema=0.9999,
        mixup=(0.8, 0.0),
        erasing=0.0,
        augment="rand-m15-mmax15-n2",
        head=Head(("first rate", "interpolation")),
    )
    whole = replace(usual, lr=1e-3, epochs=90, warm_up=3, first=1e-7, classes=21843)
    tuned = replace(usual, lr=5e-5, batch=512, epochs=30, warm_up=0, first=None, last=None, decay=1e-8)
    rows = {}
    for key, drop in drops.items():
        name, drop_too = f"maxvit_{key}_tf", ("drop path",) if key == "xlarge" else ()
        if key != "xlarge":
            rows[f"{name}_224_fused"] = replace(usual, tag=f"{name}_224_fused.in1k", drop_path=drop)
        if key in ("base", "large", "xlarge"):
            head = Head(("rate", "length", *drop_too))
            rows[f"{name}_224_fused_22k"] = replace(whole, tag=f"{name}_224_fused.in21k", drop_path=drop, head=head)
        head = Head(("augmentation", "clipping", "averaging") if key == "tiny" else ("fine-tuning", *drop_too))
        from_more = replace(head, tells=("88.7 %",), no_score="no top-1 in the README")
        for size in (384, 512):
            ours = replace(tuned, drop_path=drop, size=size, crop=size / (size + 32), head=head)
            if key != "xlarge":
                one = replace(ours, tag=f"{name}_{size}_fused.in1k", weights=f"{name}_224_fused.in1k")
                rows[f"{name}_{size}_fused_ft"] = one
            if key in ("base", "large", "xlarge"):
                two = replace(ours, tag=f"{name}_{size}_fused.in21k_ft_in1k", weights=f"{name}_224_fused.in21k")
                rows[f"{name}_{size}_fused_22k_ft"] = replace(two, head=from_more)
    return rows | _maxvit_of_timm()


def _maxvit_of_timm() -> dict[str, Recipe]:
    """Nothing is published of how timm trained its own: the usual values, and timm's crops."""
    usual = Recipe("", clip=("norm", 1.0), ema=0.9999, crop=0.95, size=256, interpolation="random")
    usual = replace(usual, head=Head(("recipe",)))
    drops = {"pico": 0.1, "nano": 0.1, "tiny": 0.2, "small": 0.3}
    trained = ["nano_rw_256", "tiny_rw_224", "rmlp_pico_rw_256", "rmlp_nano_rw_256", "rmlp_tiny_rw_256"]
    trained += ["rmlp_small_rw_224"]
    rows = {}
    for key in (*trained, "pico_rw_256", "tiny_rw_256", "tiny_pm_256", "rmlp_small_rw_256"):
        tag = f"maxvit_{key}_fused." + ("sw_in1k" if key in trained else "untrained")
        crop = 0.9 if key == "rmlp_small_rw_224" else 0.95
        drop = drops[key.removeprefix("rmlp_").split("_")[0]]
        rows[f"maxvit_{key}_fused"] = replace(usual, tag=tag, drop_path=drop, size=int(key[-3:]), crop=crop)
    name = "maxvit_rmlp_base_rw"
    start = f"{name}_224_fused.sw_in12k"
    whole = replace(usual, drop_path=0.4, size=224, batch=4096, epochs=90, classes=11821, ema=None)
    rows[f"{name}_224_fused_12k"] = replace(whole, tag=start)
    tuned = replace(whole, lr=5e-5, batch=512, epochs=30, warm_up=0, first=None, last=1e-6, decay=1e-8, classes=1000)
    for size, crop in ((224, 0.95), (384, "squash")):
        ours = replace(tuned, tag=f"{name}_{size}_fused.sw_in12k_ft_in1k", size=size, crop=crop, weights=start)
        ours = replace(ours, head=Head(("recipe",), no_score="its top-1 is not verified"))
        rows[f"{name}_{size}_fused_ft"] = ours
    return rows


def _shvit() -> dict[str, Recipe]:
    usual = Recipe("", lr=4e-3, batch=2048, epochs=310, cool_down=10, clip=("agc", 0.02), copies=3)
    usual = replace(usual, head=Head(("interpolation",), ("averaged weights", "so none are kept")))
    decays = {"s1": 0.025, "s2": 0.032, "s3": 0.035, "s4": 0.03}
    rows = {f"shvit_{key}_fused": replace(usual, tag=f"shvit_{key}_fused.in1k", decay=x) for key, x in decays.items()}
    rows["shvit_s4_fused"] = replace(rows["shvit_s4_fused"], size=256)
    return rows


FAMILIES = {
    "van": _van(),
    "biformer": _biformer(),
    "transnext": _transnext(),
    "litv2": _litv2(),
    "cswin": _cswin(),
    "l2vit": _l2vit(),
    "davit": _davit(),
    "maxvit": _maxvit(),
    "shvit": _shvit(),
}
RECIPES = {f"imagenet/{family}/{name}": row for family, rows in FAMILIES.items() for name, row in rows.items()}
FIRST = [f"imagenet/{family}/{next(iter(rows))}" for family, rows in FAMILIES.items()]
NO_CLASSIFIER = {"davit_base_fl_fused", "davit_huge_fl_fused"}  # Florence-2's towers: no classes, no recipe

read = cache(read_config)


@cache
def counts() -> dict[str, int]:
    """Parameters of every tag, as `vertebra list` counted them."""
    with (ROOT / "results" / "complexity.csv").open(encoding="utf-8") as file:
        return {row["model"]: int(row["params"]) for row in csv.DictReader(file)}


def unless_first(name: str) -> Any:
    """The first leaf of each family in `make test`, the others in `make test-all`."""
    return name if name in FIRST else pytest.param(name, marks=pytest.mark.all)


# --- which there are ---


def test_every_published_set_of_weights_has_its_leaf() -> None:
    names = [name for name in model_names() if name not in NO_CLASSIFIER]
    tags = {tag for name in names for tag in timm.list_models(name, include_tags=True)}
    assert {row.tag for row in RECIPES.values()} == tags
    assert len(RECIPES) == len(tags)


def test_every_leaf_is_in_the_table() -> None:
    assert set(RECIPES) == {name for name in config_names() if name.count("/") == 2 and name.startswith("imagenet/")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_name_says_what_is_trained(name: str) -> None:
    model, _, tag = RECIPES[name].tag.partition(".")
    ending = name.rpartition("/")[2].removeprefix(model)
    assert re.fullmatch(r"(_22k|_12k)?(_384)?(_ft)?", ending)
    assert ending.endswith("_ft") is (RECIPES[name].weights is not None)
    assert ("_384" in ending) is tag.endswith("_384")
    assert (RECIPES[name].classes > 1000) is ending.endswith("2k")


# --- their heads ---


def head_of(name: str) -> list[str]:
    """The comment that a leaf begins with, one entry a line; a command on two lines is one entry."""
    text = find_config(name).read_text(encoding="utf-8").replace(" \\\n#    ", "")
    lines = text.splitlines()
    return lines[: next(place for place, line in enumerate(lines) if not line.startswith("#"))]


def notes_of(name: str) -> list[str]:
    """The sentences that follow the command."""
    text = " ".join(line.removeprefix("# ") for line in head_of(name)[3:])
    return re.split(r"(?<=\.) ", text) if text else []


def all_notes_of(name: str) -> list[str]:
    """The sentences of a leaf, and of the one that they refer to."""
    own = notes_of(name)
    found = re.search(r"See (\w+) for what is ", " ".join(own))
    return [*own, *(notes_of(f"{name.rpartition('/')[0]}/{found[1]}") if found else [])]


UNKNOWN = r"not (given|verified)|no recipe"
TAKEN = UNKNOWN + r"|values are taken|are those of|are usual ones"


def names(sentence: str, value: str) -> bool:
    return re.search(rf"\b{re.escape(value)}\b", sentence, re.IGNORECASE) is not None


@pytest.mark.parametrize("name", RECIPES)
def test_a_head_says_source_score_size_batch_and_command(name: str) -> None:
    row, lines = RECIPES[name], head_of(name)
    assert len(find_config(name).read_text(encoding="utf-8").splitlines()) < 30
    card = CARDS[name.split("/")[1]]
    top1 = (card["models"].get(row.tag) or {}).get("top1")
    assert f"arXiv {card['paper']['arxiv']}" in lines[0]
    assert (f": {top1} % top-1 as published (" if top1 else f": {row.head.no_score} (") in lines[0]
    assert f" at {row.size}:" in lines[0]
    assert f", {counts()[row.tag] / 1e6:.1f} M parameters." in lines[0]
    assert lines[1].startswith(f"# Total batch {row.batch}: {GPUS} processes x ")
    command = f"torchrun --nproc-per-node {GPUS} tools/train.py {name} --launcher pytorch"
    compiled = " --compile" if row.head.compiled else ""
    assert re.fullmatch(rf"#   {re.escape(command)}( --amp (fp16|bf16))?{compiled}", lines[2])


@pytest.mark.parametrize("name", [name for name, row in RECIPES.items() if row.head.open])
def test_a_head_names_each_value_that_the_specification_leaves_open(name: str) -> None:
    said = [sentence for sentence in all_notes_of(name) if re.search(TAKEN, sentence)]
    missing = [value for value in RECIPES[name].head.open if not any(names(sentence, value) for sentence in said)]
    assert not missing, said


@pytest.mark.parametrize("name", RECIPES)
def test_a_head_calls_nothing_open_that_the_specification_gives(name: str) -> None:
    said = [sentence for sentence in notes_of(name) if re.search(UNKNOWN, sentence)]
    opened = RECIPES[name].head.open
    wrong = [text for text in said if not any(names(text, value) for value in opened)]
    assert all(opened and text.startswith("See ") for text in wrong), wrong


@pytest.mark.parametrize("name", [name for name, row in RECIPES.items() if row.head.tells])
def test_a_head_tells_what_the_recipe_leaves_out(name: str) -> None:
    notes = " ".join(all_notes_of(name))
    assert not [fact for fact in RECIPES[name].head.tells if fact not in notes], notes


# --- what they do ---


def plain(value: Any) -> Any:
    """Numbers to six digits, for configs compute some of them."""
    if isinstance(value, tuple | list):
        return tuple(plain(entry) for entry in value)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def schedule_of(config: Config) -> dict[str, Any]:
    lr, schedules = config.optim_wrapper.optimizer.lr, list(config.param_scheduler)
    assert all(entry.convert_to_iter_based for entry in schedules)
    kinds = [entry.type for entry in schedules]
    if not kinds:
        return {"warm_up": 0, "first": None, "last": None, "cool_down": 0}
    assert kinds in (["LinearLR", "CosineAnnealingLR"], ["CosineAnnealingLR"])
    warm_up = schedules[0].end if len(kinds) == 2 else 0
    assert schedules[-1].get("begin", 0) == warm_up
    first = schedules[0].start_factor * lr if len(kinds) == 2 else None
    return {
        "warm_up": warm_up,
        "first": first,
        "last": schedules[-1].eta_min,
        "cool_down": -schedules[-1].get("end", 0),
    }


def clipping_of(config: Config) -> tuple[str, float] | None:
    given = config.optim_wrapper.get("clip_grad")
    if given is None:
        return None
    return ("agc", given.clip_factor) if given.get("type") == "agc" else ("norm", given.max_norm)


def averaging_of(config: Config) -> float | None:
    hooks = [hook for hook in config.custom_hooks if hook.type == "EMAHook"]
    if not hooks:
        return None
    assert (hooks[0].ema_type, hooks[0].update_buffers) == ("ExponentialMovingAverage", True)
    return 1 - hooks[0].momentum


def crop_of(config: Config) -> tuple[int, float | str]:
    assert config.test_dataloader.dataset == config.val_dataloader.dataset
    found = transform_arguments(config.model.model_name, config.val_dataloader.dataset.get("transform", {}))
    assert found["interpolation"] == "bicubic"
    return found["input_size"][-1], "squash" if found.get("crop_mode") == "squash" else found["crop_pct"]


def recipe_of(config: Config) -> Recipe:
    model, wrapper, loader = config.model, config.optim_wrapper, config.train_dataloader
    size, crop = crop_of(config)
    keys = (wrapper.get("paramwise_cfg") or {}).get("custom_keys", {})
    return Recipe(
        tag=str(timm.get_pretrained_cfg(model.model_name).tag or ""),
        drop_path=model.drop_path_rate,
        lr=wrapper.optimizer.lr,
        batch=loader.batch_size * GPUS * wrapper.get("accumulative_counts", 1),
        epochs=config.train_cfg.max_epochs,
        **schedule_of(config),
        decay=wrapper.optimizer.weight_decay,
        names=tuple((key, change["lr_mult"]) for key, change in keys.items()),
        clip=clipping_of(config),
        ema=averaging_of(config),
        mixup=(model.mixup.mixup_alpha, model.mixup.cutmix_alpha) if model.mixup else None,
        erasing=model.erasing.probability if model.erasing else 0.0,
        augment=loader.dataset.transform.auto_augment,
        copies=loader.get("repeats", 1),
        interpolation=loader.dataset.transform.interpolation,
        crop=crop,
        size=size,
        classes=model.num_classes,
        weights=model.get("weights"),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_is_what_the_specification_says(family: str) -> None:
    for name, row in FAMILIES[family].items():
        config = read(f"imagenet/{family}/{name}")
        _, _, tag = row.tag.partition(".")
        crop = row.crop
        if "_tf_" in name and isinstance(crop, float):  # given as a share that has no short decimal form
            crop = crop_of(config)[1]
            assert math.floor(row.size / float(crop)) == row.size + 32
        expected = replace(row, tag=tag, crop=crop, head=Head())
        found = {key: plain(value) for key, value in asdict(recipe_of(config)).items()}
        assert found == {key: plain(value) for key, value in asdict(expected).items()}, name
        assert config.model.model_name.split(".")[0] == row.tag.split(".")[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_rates_follow_the_total_batch_and_the_best_is_kept(family: str) -> None:
    for name, row in FAMILIES[family].items():
        config = read(f"imagenet/{family}/{name}")
        assert config.auto_scale_lr == {"enable": True, "base_batch_size": row.batch}
        assert config.default_hooks.checkpoint.save_best == "top1"
        assert (config.optim_wrapper.optimizer.type, config.optim_wrapper.constructor) == ("AdamW", "TimmParamGroups")
        assert config.model.label_smoothing == 0.1
        root = "data/imagenet" if row.classes == 1000 else "data/imagenet22k"
        assert {config[f"{part}_dataloader"].dataset.root for part in ("train", "val", "test")} == {root}


# --- what they build and train ---


@pytest.mark.parametrize("name", [unless_first(name) for name in RECIPES])
def test_its_model_can_be_built_with_every_option(name: str) -> None:
    options = {key: value for key, value in read(name).model.items() if key not in ("type", "weights")}
    model = TimmClassifier(**options, device="meta")
    assert model.backbone.num_classes == RECIPES[name].classes
    assert sum(part.numel() for part in model.parameters()) == counts()[RECIPES[name].tag]


@pytest.mark.all
@pytest.mark.parametrize("name", [name for name, row in RECIPES.items() if row.weights])
def test_the_weights_that_it_starts_from_fit_but_for_the_head(name: str) -> None:
    row = RECIPES[name]
    source = timm.create_model(row.weights, depths=(1, 1, 1, 1))
    model = timm.create_model(row.tag, depths=(1, 1, 1, 1))
    fresh = load_weights(model, {"state_dict": source.state_dict()}, str(row.weights))
    assert fresh == ([] if source.num_classes == model.num_classes else ["head.fc.bias", "head.fc.weight"])
    inside = next(key for key, _ in model.named_parameters() if key.startswith("stages.3") and key.endswith("weight"))
    assert torch.equal(model.get_parameter(inside), source.get_parameter(inside))


SMALLER: dict[str, dict[str, Any]] = {  # where a network is wide or takes one size alone
    "transnext": {"depths": (1, 1, 1, 1)},
    "maxvit": {"depths": (1, 1, 1, 1), "embed_dim": (32, 32, 64, 64), "img_size": 64},
    "shvit": {"depth": (1, 1, 1)},
}
STEPS = ["imagenet/shvit/shvit_s1_fused"]  # the one with a clipping of its own
MORE_STEPS = [*(name for name in FIRST if name not in STEPS), "imagenet/van/van_b4_ft"]
MORE_STEPS += ["imagenet/transnext/transnext_small_384_ft", "imagenet/cswin/cswin_base_384_ft"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of few small images of four classes."""
    return write_images(tmp_path_factory.mktemp("imagenet"), train=4, val=1)


@pytest.mark.parametrize("name", [*STEPS, *(pytest.param(name, marks=pytest.mark.all) for name in MORE_STEPS)])
def test_it_trains(name: str, images: Path, tmp_path: Path) -> None:
    config = read_config(name)
    config.model.update(num_classes=4, **SMALLER.get(name.split("/")[1], {"depths": (1, 1, 1, 1)}))
    config.model.pop("weights", None)
    for part in ("train", "val", "test"):
        loader = config[f"{part}_dataloader"]
        loader.update(batch_size=2, num_workers=0, num_batches=2)
        loader.dataset.update(
            root=str(images), transform={**loader.dataset.get("transform", {}), "input_size": (3, 64, 64)}
        )
    config.optim_wrapper.accumulative_counts = min(config.optim_wrapper.get("accumulative_counts", 1), 2)
    config.train_cfg.max_epochs, config.work_dir = 1, str(tmp_path)
    config.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    check_model(config)
    runner = build_runner(config)
    before = [parameter.detach().clone() for parameter in runner.model.parameters()]
    limits = [hook.limit for hook in runner.hooks if isinstance(hook, UnreadableImagesHook)]
    assert limits == [20], "docs/training.md: the 21st unreadable image ends the run"
    runner.train()
    assert runner.iter == 2
    pairs = zip(before, runner.model.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)
    assert runner.message_hub.get_scalar("train/grad_norm").current() > 0
    assert list(tmp_path.glob("best_top1_*.pth"))
