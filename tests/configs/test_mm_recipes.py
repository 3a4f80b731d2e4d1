"""Recipes of detectors and segmenters against the specifications of the models.

The rows were written from section (g) of each model's specification, norms of the maps from the section on its dense
code, and not from the configs. What a specification does not give is not here; a key without decay that no parameter
of the model has is left out too.
"""

import copy
import functools
from fnmatch import fnmatch
from typing import Any

import pytest

pytest.importorskip("mmengine")
from mmengine.config import Config
from vertebra.engine.config import config_names, find_config, read_config

Facts = dict[str, Any]
Rows = list[tuple[str, Facts, dict[str, float | None]]]

# --- what the specifications say ---
# A row is a leaf with {} for its size, what holds for all sizes, and the sizes with their drop path (None: not given).
# `warmup` is (iterations, factor at the start); `images` are those of one GPU, `batch` that of eight.

BETAS = (0.9, 0.999)
SIZES = dict(tiny=None, small=None, base=None)
ONE_X = dict(length=12, schedule=("MultiStepLR", 8, 11))
THREE_X = dict(length=36, schedule=("MultiStepLR", 27, 33))
# a line down to 0: where a specification says less than that, it names Swin's recipe or the poly schedule
UPERNET = dict(lr=6e-5, length=160_000, warmup=(1500, 1e-6), schedule=("PolyLR", 1.0, 0.0), batch=16, aux_stage=3)
UPERNET_HEADS = dict(channels=512, aux_channels=256, aux_weight=0.4)
FROM_STAGE_2 = dict(stages=(2, 3, 4))
ALL_STAGES = dict(stages=(1, 2, 3, 4))
ON_INPUT = FROM_STAGE_2 | dict(extra="on_input")
DETR_SIZES = dict(sizes=(480, 800, 1333), pad=32)
FP16_512 = dict(half="float16", loss_scale=512.0)

VAN_SIZES = dict(b0=None, b1=None, b2=None, b3=None)
VAN_COCO = dict(lr=1e-4, decay=0.05, batch=16)
VAN_FPN = dict(
    lr=2e-4, decay=1e-4, schedule=("PolyLR", 0.9, 0.0), length=40_000, batch=32, images=4, crop=(512, 512)
) | dict(head_norm="SyncBN", neck=(256, 4), channels=128, dropout=0.1, test=("whole",), multiple=32)
VAN_UPERNET = UPERNET | UPERNET_HEADS | dict(decay=0.01, betas=BETAS, spared={"norm"}, images=2)
VAN: Rows = [
    *[
        (f"coco/van/{head}_van_{{}}_fpn_1x", VAN_COCO | dict(length=12, multiscale=False), VAN_SIZES)
        for head in ("retinanet", "mask-rcnn")
    ],
    *[
        (f"coco/van/{head}_van_{{}}_fpn_3x", VAN_COCO | dict(length=36, multiscale=True), dict(b2=None))
        for head in ("mask-rcnn", "cascade-mask-rcnn", "atss", "gfl")
    ],
    ("ade20k/van/semantic-fpn_van_{}_40k", VAN_FPN, dict(b0=0.2, b1=0.2, b2=0.2, b3=0.3)),
    ("ade20k/van/upernet_van_{}_160k", VAN_UPERNET, dict(b0=0.1, b1=0.1, b2=0.1, b3=0.3, b4=0.4)),
    ("ade20k/van/upernet_van_{}_22k_160k", VAN_UPERNET, dict(b4=0.4, b5=0.4, b6=0.5)),
]

BIFORMER_DECAY = dict(spared={"norm"}, decaying={"downsample"})  # norms between stages do not have it in their names
BIFORMER_MASK = (
    ONE_X
    | BIFORMER_DECAY
    | dict(lr=1e-4, betas=BETAS, decay=0.05, batch=16, images=2, warmup=(500, 1e-3))
    | dict(half="float16", n_win=16, auto_pad=True, norm_eval=True)
)
BIFORMER_RETINANET = ON_INPUT | FP16_512 | dict(lr=1e-4, decay=1e-4, spared=set(), length=12, n_win=16)
BIFORMER_FPN = dict(
    lr=2e-4, decay=1e-4, schedule=("CosineAnnealingLR", 1e-8), warmup=(1000, 0.1), length=80_000
) | dict(batch=32, images=4, n_win=8, auto_pad=True, multiple=32)
BIFORMER_UPERNET = UPERNET | FP16_512 | BIFORMER_DECAY | dict(decay=0.01, images=2, n_win=8)
BIFORMER: Rows = [
    ("coco/biformer/mask-rcnn_biformer_{}_fpn_1x", BIFORMER_MASK, dict(small=0.2, base=0.3)),
    ("coco/biformer/retinanet_biformer_{}_fpn_1x", BIFORMER_RETINANET, dict(small=0.2, base=0.3)),
    ("ade20k/biformer/semantic-fpn_biformer_{}_80k", BIFORMER_FPN, dict(small=0.15, base=0.3)),
    ("ade20k/biformer/upernet_biformer_{}_160k", BIFORMER_UPERNET, dict(small=0.3, base=0.4)),
]

SPARED = {"query_embedding", "relative_pos_bias_local", "cpb", "temperature", "norm"}
INTERPOLATION = dict(position_bias="interpolation")
TRANSNEXT_MASK = (
    ONE_X
    | ALL_STAGES
    | dict(lr=1e-4, decay=0.05, batch=16, clip=None, spared=SPARED, sizes=(1333, 800), pad=32)
    | INTERPOLATION
    | dict(bias_size=800, pretrain_size=224)
)
# that those words spare the backbone from decay here too is tested on built models
TRANSNEXT_DINO = dict(
    lr=1e-4, backbone_lr=0.1, decay=0.05, spared_kinds={"bias", "norm", "flat"}, clip=0.1, length=12
) | dict(batch=16, images=1, accumulated=2)
TRANSNEXT_UPERNET = (
    UPERNET
    | dict(decay=0.05, spared=SPARED, crop=(512, 512), test=("slide", (512, 512), (341, 341)))
    | INTERPOLATION
    | dict(bias_size=512)
)
TRANSNEXT_MASK2FORMER = dict(length=160_000, crop=(512, 512), backbone_lr=0.1, bias_size=512)
TRANSNEXT: Rows = [
    ("coco/transnext/mask-rcnn_transnext_{}_fpn_1x", TRANSNEXT_MASK | dict(half=None), dict(tiny=0.4, small=0.6)),
    ("coco/transnext/mask-rcnn_transnext_{}_fpn_1x", TRANSNEXT_MASK | FP16_512, dict(base=0.7)),
    ("coco/transnext/dino-4scale_transnext_{}_mapper_12e", TRANSNEXT_DINO | FROM_STAGE_2, dict(tiny=0.3)),
    (
        "coco/transnext/dino-5scale_transnext_{}_mapper_12e",
        TRANSNEXT_DINO | ALL_STAGES | dict(neck=(256, 5)),
        dict(tiny=0.3, small=0.5, base=0.6),
    ),
    ("ade20k/transnext/upernet_transnext_{}_160k", TRANSNEXT_UPERNET, dict(tiny=0.4, small=0.6, base=0.7)),
    ("ade20k/transnext/mask2former_transnext_{}_160k", TRANSNEXT_MASK2FORMER, dict(tiny=0.3, small=0.5, base=0.6)),
]

LITV2_DROP = dict(small=0.2, medium=0.2, base=0.3)
LITV2_COCO = ONE_X | dict(decay=1e-4, batch=16, images=2, half="float16", clip=None)
LITV2_FPN = dict(
    lr=1e-4, decay=1e-4, schedule=("PolyLR", 0.9, 1e-6), warmup=None, length=80_000, batch=16, crop=(512, 512)
) | dict(channels=128, neck=(256, 4), test=("whole",))
LITV2: Rows = [
    *[
        (f"coco/litv2/{head}_litv2_{{}}{name}_fpn_1x", LITV2_COCO | own | dict(hilo_window=window), LITV2_DROP)
        for head, own in (
            ("mask-rcnn", dict(lr=2e-4, spared={"norm"})),
            ("retinanet", FROM_STAGE_2 | dict(lr=1e-4, spared=set())),
        )
        for name, window in (("", 2), ("_ws4", 4))
    ],
    ("ade20k/litv2/semantic-fpn_litv2_{}_80k", LITV2_FPN, LITV2_DROP),
]

CSWIN_UPERNET = (
    UPERNET
    | UPERNET_HEADS
    | dict(decay=0.01, betas=BETAS, spared={"norm"}, images=2)
    | dict(head_norm="SyncBN", test=("whole",))
)
CSWIN: Rows = [
    ("coco/cswin/mask-rcnn_cswin_{}_fpn_1x", dict(length=12), SIZES),
    ("coco/cswin/mask-rcnn_cswin_{}_fpn_3x", dict(length=36), SIZES),
    ("coco/cswin/cascade-mask-rcnn_cswin_{}_fpn_3x", dict(length=36), SIZES),
    ("ade20k/cswin/semantic-fpn_cswin_{}_80k", dict(length=80_000), SIZES),
    ("ade20k/cswin/upernet_cswin_{}_160k", CSWIN_UPERNET | dict(crop=(512, 512)), dict(tiny=0.3, small=0.4, base=0.6)),
    ("ade20k/cswin/upernet_cswin_{}_22k_640_160k", CSWIN_UPERNET | dict(crop=(640, 640)), dict(base=None, large=None)),
]

L2VIT_COCO = DETR_SIZES | dict(lr=1e-4, decay=0.05, spared=set(), clip=None, half=None)
L2VIT_UPERNET = UPERNET | dict(decay=0.01, crop=(512, 512), head_norm="BN", test=("whole",))
L2VIT: Rows = [
    *[
        (f"coco/l2vit/{head}_l2vit_{{}}_fpn_{name}", L2VIT_COCO | maps | times, dict(tiny=low, small=low, base=high))
        for head, maps in (("retinanet", ON_INPUT), ("mask-rcnn", ALL_STAGES))
        for name, times, low, high in (("1x", dict(length=12), 0.1, 0.2), ("3x", THREE_X, 0.2, 0.3))
    ],
    ("ade20k/l2vit/upernet_l2vit_{}_160k", L2VIT_UPERNET, dict(tiny=0.3, small=0.3, base=0.3)),
]

DAVIT_COCO = (
    DETR_SIZES
    | dict(lr=1e-4, betas=BETAS, decay=0.05, spared=set(), clip=None, warmup=(500, 1e-3))
    | dict(batch=16, images=2, before_crop=(400, 500, 600), crop=(384, 600))
)
DAVIT_UPERNET = (
    UPERNET
    | dict(decay=0.01, images=2, crop=(512, 512), channels=512, aux_weight=0.4)
    | dict(head_norm="BN", test=("whole",))
)
DAVIT: Rows = [
    *[
        (f"coco/davit/{head}_davit_{{}}_fpn_{name}", DAVIT_COCO | maps | times, SIZES | dict(tiny=drop))
        for head, maps in (("retinanet", ON_INPUT | dict(neck=(256, 5))), ("mask-rcnn", ALL_STAGES))
        for name, times, drop in (("1x", ONE_X, 0.1), ("3x", THREE_X, 0.2))
    ],
    ("ade20k/davit/upernet_davit_{}_160k", DAVIT_UPERNET, SIZES | dict(tiny=0.3)),
]

MAXVIT_COCO = dict(crop=(896, 896), test_size=(896, 896))
MAXVIT: Rows = [("coco/maxvit/cascade-mask-rcnn_maxvit_{}_tf_224_fpn_3x", MAXVIT_COCO, SIZES)]

SHVIT_COCO = (
    ONE_X
    | dict(lr=1e-4, betas=BETAS, decay=0.05, spared=set(), clip=None, warmup=(500, 1e-3), batch=16, images=2)
    | dict(sizes=(1333, 800), pad=32, frozen=-1, norm_eval=True, stages=(1, 2, 3), neck=(256, 5))
)
SHVIT: Rows = [
    ("coco/shvit/retinanet_shvit_{}_fpn_1x", SHVIT_COCO | dict(finer_levels=1), dict(s4=None)),
    ("coco/shvit/mask-rcnn_shvit_{}_fpn_1x", SHVIT_COCO | dict(finer_levels=2), dict(s4=None)),
]

# what the authors' dense code does to the maps, whatever the head
NORMS: dict[str, Facts] = {
    "*/van/*": dict(norms=None, norm_eps=1e-5),
    "*/biformer/*": dict(norms=("LN", 1e-6), bare=()),
    "*/transnext/*": dict(norms=None),
    "coco/litv2/mask-rcnn*": dict(norms=("LN", 1e-5), bare=(1,)),
    "coco/litv2/retinanet*": dict(norms=("LN", 1e-5), bare=()),
    "ade20k/litv2/*": dict(norms=("LN", 1e-5), bare=()),
    "*/cswin/*": dict(norms=("LN", 1e-5), bare=()),
    "*/l2vit/*": dict(norms=("LN", 1e-5), bare=()),
    "*/davit/*": dict(norms=("LN", 1e-5), bare=()),
    "*/shvit/*": dict(norms=None),
}

LEAVES = [name for name in config_names() if name.startswith(("coco/", "ade20k/")) and name.count("/") == 2]
RECIPES = {
    leaf.format(size): facts if drop is None else facts | dict(drop_path=drop)
    for leaf, facts, sizes in (*VAN, *BIFORMER, *TRANSNEXT, *LITV2, *CSWIN, *L2VIT, *DAVIT, *MAXVIT, *SHVIT)
    for size, drop in sizes.items()
}


def said_of(leaf: str) -> Facts:
    """All that the specification gives for a leaf."""
    norms = [facts for pattern, facts in NORMS.items() if fnmatch(leaf, pattern)]
    return RECIPES.get(leaf, {}) | (norms[0] if norms else {})


# --- what a config says ---

# under which key, and what holds where the config is silent
PLACES: dict[str, tuple[str, Any]] = {
    "lr": ("optim_wrapper.optimizer.lr", None),
    "decay": ("optim_wrapper.optimizer.weight_decay", None),
    "betas": ("optim_wrapper.optimizer.betas", BETAS),
    "clip": ("optim_wrapper.clip_grad.max_norm", None),
    "backbone_lr": ("optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult", 1.0),
    "half": ("optim_wrapper.dtype", None),
    "loss_scale": ("optim_wrapper.loss_scale", None),
    "accumulated": ("optim_wrapper.accumulative_counts", 1),
    "images": ("train_dataloader.batch_size", None),
    "drop_path": ("model.backbone.drop_path_rate", None),
    "norm_eval": ("model.backbone.norm_eval", False),
    "frozen": ("model.backbone.frozen_stages", -1),
    "norm_eps": ("model.backbone.norm_eps", 1e-6),
    "n_win": ("model.backbone.n_win", 7),
    "auto_pad": ("model.backbone.auto_pad", True),
    "position_bias": ("model.backbone.position_bias", "extrapolation"),
    "bias_size": ("model.backbone.bias_size", None),
    "pretrain_size": ("model.backbone.pretrain_size", 224),
    "hilo_window": ("model.backbone.hilo_window", 2),
    "extra": ("model.neck.add_extra_convs", None),
    "finer_levels": ("model.neck.extra_levels", None),
    "channels": ("model.decode_head.channels", None),
    "dropout": ("model.decode_head.dropout_ratio", None),
    "aux_channels": ("model.auxiliary_head.channels", None),
    "aux_weight": ("model.auxiliary_head.loss_decode.loss_weight", None),
    "pad": ("model.data_preprocessor.pad_size_divisor", None),
}


def look_up(config: Any, path: str, default: Any = None) -> Any:
    """The value at a path in a config, lists as tuples; None on the way ends it too."""
    value = config
    for key in path.split("."):
        if not value or key not in value:
            return default
        value = value[key]
    return tuple(value) if isinstance(value, list) else value


def optimisation_of(config: Config) -> Facts:
    """Facts about parameter groups, batch and schedule."""
    wrapper, train = config.optim_wrapper, config.train_dataloader
    paramwise = wrapper.get("paramwise_cfg", {})
    keys = {key: entry.get("decay_mult") for key, entry in paramwise.get("custom_keys", {}).items()}
    kinds = {kind for kind in ("bias", "norm", "flat") if paramwise.get(f"{kind}_decay_mult", 1.0) == 0}
    facts: Facts = dict(
        spared={key for key, factor in keys.items() if factor == 0} | {f"every {kind}" for kind in kinds},
        spared_kinds=kinds,
        decaying={key for key, factor in keys.items() if factor == 1},
        batch=8 * train.batch_size * wrapper.get("accumulative_counts", 1),
        length=config.train_cfg.get("max_epochs", config.train_cfg.get("max_iters")),
        warmup=None,
    )
    if wrapper.type != "AmpOptimWrapper":
        facts["half"] = facts["loss_scale"] = None
    for entry in config.param_scheduler:
        if entry.type == "LinearLR":
            facts["warmup"] = (entry.end, entry.start_factor) if entry.get("by_epoch") is False else entry
        else:
            names = ("milestones", "power", "eta_min", "eta_min_ratio", "begin", "end")
            given = [look_up(entry, name) for name in names if name in entry]
            flat = [value for values in given for value in (values if isinstance(values, tuple) else (values,))]
            facts["schedule"] = (entry.type, *flat)
    return facts


def maps_of(config: Config) -> Facts:
    """Facts about the maps that leave the backbone; stages count from 1."""
    backbone, neck = config.model.backbone, config.model.get("neck", {})
    count = 3 if backbone.model_name.startswith("shvit") else 4  # no row says anything of MaxViT's five
    leaving = sorted(i % count for i in backbone.out_indices)
    norms = backbone.get("out_norms")
    normed = norms.get("indices", leaving) if norms else ()
    return dict(
        stages=tuple(i + 1 for i in leaving if i >= neck.get("start_level", 0) + leaving[0]),
        norms=(norms.type, norms.get("eps", 1e-5)) if norms else None,
        bare=tuple(i + 1 for i in leaving if i not in normed),
        neck=(neck.get("out_channels"), neck.get("num_outs")),
    )


def data_of(config: Config) -> Facts:
    """Facts about sizes of images."""
    train = {step.type: step for step in config.train_dataloader.dataset.pipeline}
    tested = {step.type: step for step in config.test_dataloader.dataset.pipeline}
    facts: Facts = dict(
        sizes=tuple(train["Resize"].scale) if "Resize" in train else None,
        crop=tuple(train["RandomCrop"].crop_size) if "RandomCrop" in train else None,
        test_size=tuple(tested["Resize"].scale),
        multiple=tested["ResizeToMultiple"].size_divisor if "ResizeToMultiple" in tested else None,
        multiscale="RandomChoice" in train,
    )
    if "RandomChoice" in train:
        (whole,), (before, crop, after) = train["RandomChoice"].transforms
        sides = [side for side, _ in whole.scales]
        facts["sizes"] = (min(sides), max(sides), whole.scales[0][1]) if after == whole else None
        facts["before_crop"], facts["crop"] = tuple(side for side, _ in before.scales), tuple(crop.crop_size)
    return facts


def heads_of(config: Config) -> Facts:
    """Facts about a segmenter's heads."""
    heads = [config.model[name] for name in ("decode_head", "auxiliary_head") if name in config.model]
    norms = {look_up(head, "norm_cfg.type") for head in heads}
    facts: Facts = dict(head_norm=norms.pop() if len(norms) == 1 else norms)
    if "auxiliary_head" in config.model:
        facts["aux_stage"] = config.model.auxiliary_head.in_index + 1
    mode = look_up(config, "model.test_cfg.mode")
    sizes = [tuple(config.model.test_cfg[name]) for name in ("crop_size", "stride")] if mode == "slide" else []
    return facts | dict(test=(mode, *sizes))


def facts_of(config: Config) -> Facts:
    """All facts that a row may hold."""
    facts = {fact: look_up(config, path, default) for fact, (path, default) in PLACES.items()}
    return facts | optimisation_of(config) | maps_of(config) | data_of(config) | heads_of(config)


@functools.cache
def read(leaf: str) -> Config:
    return read_config(leaf)


def differences(config: Config, said: Facts) -> list[str]:
    """Where a config departs from its specification, a sentence each."""
    found = facts_of(config)
    return [
        f"{fact} is {found[fact]!r} in the config and {value!r} in the specification"
        for fact, value in said.items()
        if found[fact] != value
    ]


# --- tests ---


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if said_of(leaf)])
def test_a_recipe_is_that_of_the_specification(leaf: str) -> None:
    wrong = differences(read(leaf), said_of(leaf))
    assert not wrong, "; ".join(wrong)


def test_every_leaf_has_a_row_unless_its_head_says_that_nothing_was_published() -> None:
    silent = [leaf for leaf in LEAVES if leaf not in RECIPES]
    assert [leaf for leaf in silent if "no score published" not in find_config(leaf).read_text()] == []
    assert [leaf for leaf in RECIPES if leaf not in LEAVES] == []


@pytest.mark.parametrize(
    ("leaf", "path", "value", "fact"),
    [
        ("ade20k/van/semantic-fpn_van_b3_40k", "optim_wrapper.optimizer.lr", 1e-4, "lr"),
        ("coco/litv2/mask-rcnn_litv2_base_fpn_1x", "model.backbone.out_norms", None, "norms"),
        ("coco/litv2/mask-rcnn_litv2_base_fpn_1x", "model.backbone.out_norms.indices", (0, 1, 2, 3), "bare"),
        ("coco/davit/retinanet_davit_small_fpn_3x", "param_scheduler.1.milestones", [24, 33], "schedule"),
        ("ade20k/cswin/upernet_cswin_tiny_160k", "param_scheduler.0.end", 500, "warmup"),
        ("ade20k/cswin/upernet_cswin_tiny_160k", "param_scheduler.1.begin", 1500, "schedule"),
        ("ade20k/cswin/upernet_cswin_tiny_160k", "optim_wrapper.paramwise_cfg.norm_decay_mult", 0.0, "spared"),
        ("coco/shvit/mask-rcnn_shvit_s4_fpn_1x", "model.backbone.norm_eval", False, "norm_eval"),
        ("coco/transnext/mask-rcnn_transnext_base_fpn_1x", "optim_wrapper.type", "OptimWrapper", "half"),
        ("ade20k/transnext/upernet_transnext_tiny_160k", "model.test_cfg.stride", (340, 340), "test"),
        ("ade20k/davit/upernet_davit_base_160k", "model.auxiliary_head.norm_cfg.type", "SyncBN", "head_norm"),
        ("coco/l2vit/mask-rcnn_l2vit_base_fpn_1x", "model.backbone.drop_path_rate", 0.1, "drop_path"),
    ],
)
def test_a_departure_from_a_recipe_is_named(leaf: str, path: str, value: Any, fact: str) -> None:
    changed: Any = copy.deepcopy(read(leaf))
    *parents, last = path.split(".")
    inner = changed
    for key in parents:
        inner = inner[int(key) if key.isdigit() else key]
    inner[last] = value
    assert any(text.startswith(f"{fact} is ") for text in differences(changed, said_of(leaf)))
