"""The plan of a training run: what its first line says before the first step."""

from typing import Any

from mmengine.optim import AmpOptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from .order import order_of
from .record import images_a_step

_WAYS = ("compiled", "grad_checkpointing", "norm_eval", "sync_bn", "channels_last")  # options of a model


def describe_plan(runner: Runner) -> str:
    """What a run is about to do, in one line: batch, rate, lengths, data, precision, weights to start from, options."""
    loader, wrapper, ranks = runner.train_dataloader, runner.optim_wrapper, runner.world_size
    images, group = images_a_step(loader), getattr(wrapper, "_accumulative_counts", 1)
    factors = [str(images // ranks), f"{ranks} processes" * (ranks > 1), f"{group} accumulated" * (group > 1)]
    product = " x ".join(filter(None, factors)) if ranks * group > 1 else ""
    endless = getattr(order_of(loader), "endless", False)
    steps = len(loader.dataset) // images if endless else len(loader)
    data = getattr(loader.dataset, "metainfo", {})
    model: Any = getattr(runner, "_bare_model", lambda: runner.model)()
    classes = len(data.get("classes") or ()) or getattr(getattr(model, "backbone", None), "num_classes", 0)
    of_amp = isinstance(wrapper, AmpOptimWrapper)  # which takes float16 where it is not told
    precision = getattr(wrapper, "cast_dtype", None) or ("float16" if of_amp else "float32")
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    parts = [
        f"plan  effective batch {images * group}" + (f" ({product})" if product else ""),
        f"lr {_highest_rate(wrapper):.2e}",
        f"{steps} steps per epoch" + (f" ({steps // group} optimizer steps)" if group > 1 else ""),
        f"{runner.max_epochs} epochs" if by_epoch else f"{runner.max_iters} steps",
        f"from step {runner.iter}" if runner.iter else "",
        f"{data.get('images', len(loader.dataset))} images",
        f"{classes} classes" if classes else "",
        str(precision).removeprefix("torch."),
        *origin_and_ways(getattr(runner, "cfg", None) or {}, bool(runner.iter)),
    ]
    return "  ".join(filter(None, parts))


def origin_and_ways(config: Any, resumed: bool) -> list[str]:
    """Of a config: the weights it starts from, and the options of its model that are on."""
    model = config.get("model") or {}
    published = "published weights" if model.get("pretrained") else ""
    weights = config.get("load_from") or model.get("weights") or published
    start = [f"starts from {weights}"] if weights and not resumed else []
    return start + [way for way in _WAYS if model.get(way)]


def _highest_rate(wrapper: Any) -> float:
    """The learning rate that the schedule starts from, after scaling: of the groups that layer decay leaves alone."""
    several = [each.optimizer for _, each in wrapper.items()] if hasattr(wrapper, "items") else [wrapper.optimizer]
    groups = [group for optimizer in several for group in optimizer.param_groups]
    return max(group.get("initial_lr", group["lr"]) for group in groups)
