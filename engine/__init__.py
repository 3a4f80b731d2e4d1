"""Everything that knows mmengine, mmdet or mmseg. Importing it registers all of it in mmengine's root registries."""

from . import operators

operators.install()  # before anything below can import mmcv.ops, which takes its operators once

from . import (  # noqa: E402
    atomic,
    classifier,
    data,
    dense,
    hooks,
    loading,
    loops,
    metrics,
    necks,
    optim,
    order,
    pyramid,
    runner,
    seeding,
    transforms,
    tta,
)

__all__ = [
    "atomic",
    "classifier",
    "data",
    "dense",
    "hooks",
    "loading",
    "loops",
    "metrics",
    "necks",
    "operators",
    "optim",
    "order",
    "pyramid",
    "runner",
    "seeding",
    "transforms",
    "tta",
]
