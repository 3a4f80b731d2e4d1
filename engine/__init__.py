"""Everything that knows mmengine, mmdet or mmseg. Importing it registers all of it in mmengine's root registries."""

from . import operators

operators.install()  # before anything below can import mmcv.ops, which takes its operators once

from . import (  # noqa: E402
    atomic,
    classifier,
    data,
    dense,
    flexible,
    hooks,
    loading,
    loops,
    metrics,
    nan_guard,
    necks,
    optim,
    order,
    pyramid,
    runner,
    schedule,
    seeding,
    statistics,
    transforms,
    tta,
)

__all__ = [
    "atomic",
    "classifier",
    "data",
    "dense",
    "flexible",
    "hooks",
    "loading",
    "loops",
    "metrics",
    "nan_guard",
    "necks",
    "operators",
    "optim",
    "order",
    "pyramid",
    "runner",
    "schedule",
    "seeding",
    "statistics",
    "transforms",
    "tta",
]
