"""Everything that knows mmengine, mmdet or mmseg. Importing it registers all of it in mmengine's root registries."""

from . import atomic, classifier, data, hooks, loops, metrics, optim, runner, seeding

__all__ = ["atomic", "classifier", "data", "hooks", "loops", "metrics", "optim", "runner", "seeding"]
