"""`mmcv._ext` without a compiler: what answers to that name where mmcv has no compiled operators.

Use        `install()`, before mmcv.ops is imported; `import vertebra.engine` calls it first of all
Provided   the operators of `PROVIDED`, on PyTorch and torchvision, CPU and CUDA
Refused    any other operator that mmcv asks for: it is there, and raises one sentence when it is called
Compiled   a real `mmcv._ext` is found by Python before ours is asked, and nothing of it is replaced

mmcv.ops takes its operators from this module when it is imported and keeps them, so whoever puts a stand-in of their
own there first keeps it: `install()` refuses to come too late. mmcv's Python calls our functions as it calls the
compiled ones, by the same argument names, and has them write into outputs that it allocates.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import NoReturn

from ...backbones._errors import UserError

EXTENSION = "mmcv._ext"
PROVIDED = {  # operator of mmcv -> the file here that has a function of that name
    "nms": "nms",
    "softnms": "nms",
    "nms_match": "nms",
    "bbox_overlaps": "overlaps",
    "sigmoid_focal_loss_forward": "focal_loss",
    "sigmoid_focal_loss_backward": "focal_loss",
    "softmax_focal_loss_forward": "focal_loss",
    "softmax_focal_loss_backward": "focal_loss",
    "roi_align_forward": "roi",
    "roi_align_backward": "roi",
    "roi_pool_forward": "roi",
    "roi_pool_backward": "roi",
    "deform_conv_forward": "deform_conv",
    "deform_conv_backward_input": "deform_conv",
    "deform_conv_backward_parameters": "deform_conv",
    "modulated_deform_conv_forward": "deform_conv",
    "modulated_deform_conv_backward": "deform_conv",
    "ms_deform_attn_forward": "deform_attention",
    "ms_deform_attn_backward": "deform_attention",
}


def install() -> None:
    """Answer to `mmcv._ext` from now on, unless a compiled one is found; imports nothing, and twice is once."""
    bound = [sys.modules.get(EXTENSION), getattr(sys.modules.get("mmcv.ops.nms"), "ext_module", None)]
    for module in bound:
        file = getattr(module, "__file__", None)
        if module is not None and not _is_ours(module) and not _is_compiled(file):
            raise UserError(
                f"mmcv's operators are already bound to a stand-in for {EXTENSION} that is not vertebra's "
                f"({file or 'made in memory'}): import vertebra.engine before it is put there and before mmcv.ops, "
                "mmdet or mmseg are imported"
            )
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)  # at the end, so that Python finds a compiled one first


def live() -> dict[str, str]:
    """What serves mmcv's operators, without importing mmcv: its `source`, its `file` and what is `provided` by us.

    `source` is "compiled", "vertebra", "other" (somebody's stand-in) or "none" (mmcv or its ops are not installed).
    """
    module, found = sys.modules.get(EXTENSION), _find_in_mmcv("_ext")
    file = getattr(module, "__file__", None) if module else found.origin if found else None
    if module and _is_ours(module):
        source = "vertebra"
    elif module or found:
        source = "compiled" if _is_compiled(file) else "other"
    else:
        source = "vertebra" if _find_in_mmcv("ops") else "none"
    return {"source": source, "file": file or "", "provided": ", ".join(sorted(PROVIDED))}


def get_compiler_version() -> str:
    """Stands in environment reports as "MMCV Compiler"."""
    return "none (operators of vertebra.engine)"


def get_compiling_cuda_version() -> str:
    """Stands in environment reports as "MMCV CUDA Compiler"; the words of an mmcv compiled without CUDA."""
    return "not available"


def _is_ours(module: ModuleType) -> bool:
    return getattr(getattr(module, "__spec__", None), "origin", None) == __name__


def _is_compiled(file: str | None) -> bool:
    return file is not None and file.endswith(tuple(EXTENSION_SUFFIXES))


def _find_in_mmcv(name: str) -> ModuleSpec | None:
    """Find a module of mmcv by its file, since asking Python for `mmcv.name` would import mmcv."""
    mmcv = sys.modules["mmcv"].__spec__ if "mmcv" in sys.modules else find_spec("mmcv")
    folders = mmcv.submodule_search_locations if mmcv else None
    return PathFinder.find_spec(f"mmcv.{name}", folders) if folders else None


class _Finder(MetaPathFinder, Loader):
    """Makes `mmcv._ext` for `import`, and for `find_spec`, by which mmcv asks whether it has operators."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, origin=__name__) if fullname == EXTENSION else None

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = __doc__
        module.get_compiler_version = get_compiler_version
        module.get_compiling_cuda_version = get_compiling_cuda_version
        module.__getattr__ = partial(_operator, module)


def _operator(module: ModuleType, name: str) -> Callable:
    """What `module.name` is: imported when first asked for, so that importing the engine stays quick."""
    if name.startswith("_"):
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
    if name in PROVIDED:
        function = getattr(importlib.import_module(f".{PROVIDED[name]}", __name__), name)
    else:
        function = partial(_refuse, name)
    setattr(module, name, function)
    return function


def _refuse(name: str, *args: object, **kwargs: object) -> NoReturn:
    raise UserError(
        f"mmcv's operator {name} needs compiled operators and vertebra has none for it: install an mmcv with compiled "
        "operators (a wheel built for your torch, or built from source with a compiler), which is then used"
    )


_FINDER = _Finder()
