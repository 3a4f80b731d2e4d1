"""Configs: found by path or by name, changed from the command line, checked before anything is built.

A config is a classic mmengine file. Names are paths under `configs/` without `.py`, in a clone and in a wheel alike.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    RUNNERS,
    VISBACKENDS,
)
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from ..backbones._errors import UserError
from ..backbones._folders import with_classes
from ..backbones._names import check_model_name
from . import dense_config
from .dense_fit import check_fit
from .quiet import import_quietly
from .ranks import naming_lost_peers
from .slide import complete_slide

_FURTHER_KEYS = {"custom_imports", "runner_type", "compile", "labels", "sync_bn", "find_unused_parameters"}
_FURTHER_KEYS |= {"pretraining"}  # read by `train`
_FURTHER_KEYS |= {"strategy", "model_wrapper_cfg", "activation_checkpointing", "efficient_conv_bn_eval"}
KNOWN_KEYS = (set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}) | _FURTHER_KEYS
_BESIDE = {"tta_model", "tta_pipeline"}  # no misspellings of them are sought: configs call variables test_pipeline

_OF_MMCV_1 = {
    "optimizer": "optim_wrapper.optimizer",
    "optimizer_config": "optim_wrapper.clip_grad",
    "lr_config": "param_scheduler",
    "evaluation": "val_cfg and val_evaluator",
    "checkpoint_config": "default_hooks.checkpoint",
    "log_config": "default_hooks.logger and visualizer",
    "total_epochs": "train_cfg.max_epochs",
}


def configs_folder() -> Path:
    """Where this installation keeps its configs."""
    return Path(__file__).parents[1] / "configs"


def config_names() -> list[str]:
    """Every config that can be run, by name."""
    folder = configs_folder()
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*.py")))
    return [path.with_suffix("").as_posix() for path in files if not path.parts[0].startswith("_")]


def find_config(name: str) -> Path:
    """The file of a config given by path or by name.

    Raises:
        UserError: there is none; near matches are offered.
    """
    for path in (Path(name), configs_folder() / name, configs_folder() / f"{name}.py"):
        if path.is_file():
            return path
    names = config_names()
    near = get_close_matches(name.removesuffix(".py"), names, n=3, cutoff=0.5)
    beside = [other for other in names if "/" in name and other.startswith(f"{name.partition('/')[0]}/")]
    near = near or beside[:5]
    hint = f"did you mean {', '.join(near)}?" if near else f"names begin with {', '.join(names[:3])} ..."
    raise UserError(f"there is no config {name!r}, neither as a file nor under configs/; {hint}")


def read_config(name: str) -> Config:
    """Read a config by path or name.

    Raises:
        UserError: no such config, or its file cannot be run.
    """
    path = find_config(name)
    if path.suffix != ".py":
        raise UserError(f"{path} is no config: a Python file (.py) or a name under configs/ is accepted")
    try:
        with _named_bases_resolved(path) as readable:
            config = Config.fromfile(str(readable))
        object.__setattr__(config, "_filename", str(path))  # its own __setattr__ would make an entry of it
    except UserError:
        raise
    except Exception as error:  # whatever the user's Python file raises
        reason = str(error).splitlines()[-1] if str(error) else type(error).__name__
        raise UserError(f"config {path} cannot be read: {type(error).__name__}: {reason}") from error
    check_keys(config, str(path))
    if config.get("default_scope") in ("mmdet", "mmseg"):
        import_quietly(config.default_scope)
    return config


@contextmanager
def _named_bases_resolved(path: Path) -> Iterator[Path]:
    """The file to read: `path` itself, or a copy whose `_base_` names of shipped configs have become paths.

    mmengine looks for bases beside the file that names them; a config in a user's own folder should be able to say
    `_base_ = "demo/van_b0_digits"`, as the command line does.
    """
    source = path.read_text(encoding="utf-8")
    bases = next(
        (
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_base_"
        ),
        None,
    )
    given = _literal(bases.value) if bases is not None else []
    given = [given] if isinstance(given, str) else list(given)
    found = [_base_path(path.parent, base) for base in given]
    if bases is None or [str(base) for base in found] == given or not any(map(_is_shipped, found)):
        yield path
        return
    lines = source.splitlines()
    lines[bases.lineno - 1 : bases.end_lineno] = [f"_base_ = {[str(base) for base in found]!r}"]
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text("\n".join(lines), encoding="utf-8")
        yield copy


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:  # computed: mmengine's to evaluate
        return []


def _base_path(folder: Path, base: str) -> Path | str:
    beside = (folder / base).resolve()
    if beside.is_file() or "::" in base:
        return beside if beside.is_file() else _of_package(base)
    return find_config(base).resolve()


def _of_package(base: str) -> Path | str:
    """`mmseg::upernet/x.py` as a path: mmengine wants a distribution "mmsegmentation", and forks have other names."""
    package, _, rest = base.partition("::")
    found = find_spec(package)
    file = Path(found.origin or "").parent / ".mim" / "configs" / rest if found else None
    return file if file and file.is_file() else base


def _is_shipped(base: Path | str) -> bool:
    return isinstance(base, Path) and (base.is_relative_to(configs_folder().resolve()) or ".mim" in base.parts)


def check_keys(config: Mapping[str, Any], where: str) -> None:
    """Refuse top-level keys that look like misspelled ones, and entries without `type` where one is needed.

    Raises:
        UserError: names the key and what was probably meant.
    """
    for key in config:
        if key in _OF_MMCV_1 and not isinstance(config[key], str) and _is_unread(key, config, where):
            raise UserError(f"{where}: {key!r} is a name of mmcv 1; mmengine reads {_OF_MMCV_1[key]}")
        near = get_close_matches(key, KNOWN_KEYS, n=1, cutoff=0.85)
        if key not in KNOWN_KEYS | _BESIDE and near:
            raise UserError(f"{where}: there is no key {key!r}; did you mean {near[0]!r}?")
    missing = [key for key in ("model",) if key not in config]
    if missing:
        raise UserError(f"{where} has no {missing[0]!r}: is it a config of a model?")


def _is_unread(key: str, config: Mapping[str, Any], where: str) -> bool:
    """Whether nothing reads an old name: mmseg's schedules keep a part of `optim_wrapper` under one."""
    today = re.findall(r"\w+", _OF_MMCV_1[key])[0]
    lines = ast.parse(Path(where).read_text(encoding="utf-8")).body
    own = {getattr(line.targets[0], "id", "") for line in lines if isinstance(line, ast.Assign)}
    return today not in config or (key in own and today not in own)


def change(config: Config, changes: Mapping[str, Any]) -> None:
    """Apply `--cfg-options`: dotted keys to values, each of which must exist or be an argument of what it belongs to.

    Raises:
        UserError: a key that nothing would read.
    """
    for dotted, value in changes.items():
        _check_option(config, dotted)
        try:
            config.merge_from_dict({dotted: value})
        except (KeyError, TypeError, IndexError, AssertionError) as error:
            raise UserError(f"--cfg-options {dotted}={value} cannot be applied: {error}") from error


def _check_option(config: Config, dotted: str) -> None:
    *parents, last = dotted.split(".")
    place: Any = dict(config.items())
    for part in parents:
        if isinstance(place, list | tuple) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, Mapping) and part in place:
            place = place[part]
        elif isinstance(place, Mapping) and part in (_accepted(place) or ()):
            return  # nothing stands there yet: what is built of it says what it reads
        else:
            raise UserError(f"--cfg-options {dotted}: there is no {part!r} there; known are {_some(place)}")
    known = set(place) if isinstance(place, Mapping) else set()
    if last in known or not isinstance(place, Mapping):
        return
    accepted = _accepted(place) if parents else KNOWN_KEYS | _BESIDE
    if accepted is None or last in accepted:
        return
    near = get_close_matches(last, known | accepted, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {_some(sorted(known | accepted))}"
    raise UserError(f"--cfg-options {dotted}: nothing reads {last!r} there; {hint}")


_REGISTRIES = (MODELS, LOOPS, HOOKS, DATASETS, OPTIMIZERS, OPTIM_WRAPPERS, PARAM_SCHEDULERS, METRICS, VISBACKENDS)


def _accepted(place: Mapping[str, Any]) -> set[str] | None:
    """The arguments of the class that `place` builds; None where that cannot be known or anything goes."""
    if "type" not in place:
        return None
    for registry in _REGISTRIES:
        found = registry.get(place["type"]) if isinstance(place["type"], str) else place["type"]
        if found is not None:
            parameters = inspect.signature(found).parameters
            if registry is OPTIM_WRAPPERS:
                own = inspect.signature(OptimWrapper).parameters  # which others hand on as keywords
                return {*parameters, *own, "constructor", "paramwise_cfg"}
            if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                return None
            return set(parameters)
    return None


def _some(names: Any) -> str:
    names = [str(name) for name in names] if isinstance(names, Mapping | list | tuple | set) else []
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") if names else "none"


def check_model(config: Config) -> None:
    """Refuse a model name that timm does not know, and a neck or heads that do not fit the model's maps.

    Data sets are told which model they prepare images for.

    Raises:
        UserError: unknown name, with near matches; windows of a slide test that cannot be; or what does not fit.
    """
    complete_slide(config.model)
    name = config.model.get("model_name") or (config.model.get("backbone") or {}).get("model_name")
    if name is None:
        return
    check_model_name(name)
    if dense_config.is_dense(config):
        check_fit(config.model)
    for part in ("train", "val", "test"):
        dataset = (config.get(f"{part}_dataloader") or {}).get("dataset", {})
        if dataset.get("type") == "TimmDataset":
            dataset.setdefault("model_name", name)


def use_data(config: Config, folder: str) -> None:
    """Put another folder in the place of the data root, make_dataset's OUT folder included.

    Raises:
        UserError: the folder of a detector's or segmenter's data does not exist.
    """
    if dense_config.is_dense(config):
        dense_config.use_data(config, folder)
        return
    root = with_classes(folder)
    for part in ("train", "val", "test"):
        dataset = (config.get(f"{part}_dataloader") or {}).get("dataset", {})
        if "root" in dataset:
            dataset["root"] = str(root)


def build_runner(config: Config) -> Runner:
    """The runner that a config describes.

    Raises:
        UserError: an entry that what it is meant for does not take.
    """
    kind = RUNNERS.get(config.get("runner_type", "VertebraRunner"))
    if kind is None:
        raise UserError(f"runner_type is {config.runner_type!r}; mmengine knows no such runner")
    with explaining(lambda: True), naming_lost_peers(), _closing_logs():
        return kind.from_cfg(config)


@contextmanager
def _closing_logs() -> Iterator[None]:
    """After an error, close the logs that were opened: TensorBoard's thread would write into a folder that is gone."""
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # none has been opened
            Visualizer.get_current_instance().close()
        raise


@contextmanager
def explaining(building: Callable[[], bool]) -> Iterator[None]:
    """Turn an error into one sentence for who wrote the config: while it is built, the config is what is at fault.

    Args:
        building: whether what the config describes is still being built.
    """
    try:
        yield
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError, AssertionError) as error:
        known = _as_user_error(error)
        if known is None and building():
            reason = str(error).splitlines()[0] if str(error) else "no more is said"
            known = UserError(f"this config cannot be built: {type(error).__name__}: {reason}")
        raise known or error from error


def _as_user_error(error: Exception) -> UserError | None:
    """What a registry's error about an entry of the config means for its author; None if it is something else."""
    text = str(error)
    argument = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", text)
    if argument:
        return UserError(f"the config gives {argument[2]!r} to {argument[1]}, which takes no such argument")
    unknown = re.search(r"'?(\w+) is not in the ([\w:]+) registry", text)
    if unknown:
        return UserError(f"the config names {unknown[1]!r}, which is not registered among mmengine's {unknown[2]}s")
    return None
