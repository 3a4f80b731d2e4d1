"""The module that answers to mmcv._ext: when it does, what it has, and what it says of what it has not."""

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import vertebra.engine
from vertebra.backbones._errors import UserError
from vertebra.engine import operators

ops = pytest.importorskip("mmcv.ops")
extension = sys.modules["mmcv._ext"]
pytestmark = pytest.mark.skipif(operators.live()["source"] != "vertebra", reason="this mmcv has compiled operators")


def run_fresh(script: str, *folders: Path) -> list[str]:
    """The lines that a new interpreter prints, with `operators` imported and `folders` first on its path.

    The packages around `operators` are left bare: importing them takes seconds, and it needs nothing of them.
    """
    lines = ["import sys, types", f"sys.path[:0] = {[*map(str, folders)]!r}", "def operators():"]
    for package in (vertebra, vertebra.backbones, vertebra.engine):
        lines.append(f"    module = sys.modules[{package.__name__!r}] = types.ModuleType({package.__name__!r})")
        lines.append(f"    module.__path__ = {list(package.__path__)!r}")
    lines += ["    from vertebra.engine import operators", "    return operators", script]
    command = [sys.executable, "-P", "-c", "\n".join(lines)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.splitlines()


@pytest.fixture
def small_mmcv(tmp_path: Path) -> Path:
    """A folder with an mmcv that has only `ops/nms.py`, whose operators come from `mmcv._ext`."""
    (tmp_path / "mmcv" / "ops").mkdir(parents=True)
    (tmp_path / "mmcv" / "__init__.py").write_text("")
    (tmp_path / "mmcv" / "ops" / "__init__.py").write_text("from . import nms")
    (tmp_path / "mmcv" / "ops" / "nms.py").write_text("from mmcv import _ext as ext_module")
    return tmp_path


# --- what the module has ---


@pytest.mark.parametrize("name", sorted(operators.PROVIDED))
def test_every_provided_operator_is_a_function_of_ours(name: str) -> None:
    function = getattr(extension, name)
    assert function.__name__ == name
    assert function.__module__ == f"vertebra.engine.operators.{operators.PROVIDED[name]}"


def test_every_other_operator_is_there_and_says_why_it_cannot_run() -> None:
    with pytest.raises(UserError, match=r"operator nms_rotated needs compiled operators .* install an mmcv"):
        ops.nms_rotated(torch.rand(3, 5), torch.rand(3), 0.5)


@pytest.mark.parametrize("name", ["__path__", "__wrapped__", "_private"])
def test_private_names_are_missing_as_in_any_module(name: str) -> None:
    assert not hasattr(extension, name)
    with pytest.raises(AttributeError, match=f"module 'mmcv._ext' has no attribute '{name}'"):
        getattr(extension, name)


def test_mmcv_says_of_itself_that_it_has_operators() -> None:
    spec = importlib.util.find_spec("mmcv._ext")
    assert spec is not None
    assert spec.loader is not None


def test_no_other_name_is_answered() -> None:
    assert importlib.util.find_spec("mmcv._ext2") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mmcv._ext.inside")


def test_environment_reports_get_their_words() -> None:
    assert ops.get_compiler_version() == "none (operators of vertebra.engine)"
    assert ops.get_compiling_cuda_version() == "not available"


# --- installing it ---


def test_installing_again_changes_nothing() -> None:
    before = list(sys.meta_path)
    operators.install()
    assert sys.meta_path == before


def test_the_finder_stands_behind_those_that_find_compiled_modules() -> None:
    finders = [type(finder).__module__ for finder in sys.meta_path]
    assert finders.index("vertebra.engine.operators") > sys.meta_path.index(importlib.machinery.PathFinder)


def test_installing_imports_nothing_but_python() -> None:
    script = "before = set(sys.modules); operators().install()\n"
    script += "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
    assert run_fresh(script + "print(names - sys.stdlib_module_names)") == ["{'vertebra'}"]


def test_a_compiled_one_is_used_and_nothing_is_replaced(small_mmcv: Path) -> None:
    """A file by the name of a compiled module is taken for one, and its failure to load is not hidden."""
    compiled = small_mmcv / "mmcv" / f"_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    compiled.write_text("not really compiled")
    said = run_fresh("ours = operators(); ours.install(); print(ours.live())\nimport mmcv.ops", small_mmcv)
    assert f"'source': 'compiled', 'file': '{compiled}'" in said[0]
    assert said[-1].startswith(f"ImportError: {compiled}")


def test_a_compiled_one_that_is_loaded_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = ModuleType("mmcv._ext")
    compiled.__file__ = f"/somewhere/mmcv/_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    monkeypatch.setattr(sys.modules["mmcv.ops.nms"], "ext_module", compiled)
    operators.install()
    assert sys.modules["mmcv._ext"] is compiled
    assert operators.live()["source"] == "compiled"


def test_a_stand_in_that_mmcv_already_uses_is_refused(small_mmcv: Path) -> None:
    (small_mmcv / "mmcv" / "_ext.py").write_text("nms = None")
    said = run_fresh("import mmcv.ops\noperators().install()", small_mmcv)[-1]
    assert said.startswith("vertebra.backbones._errors.UserError: mmcv's operators are already bound to a stand-in")
    assert f"({small_mmcv / 'mmcv' / '_ext.py'}): import vertebra.engine before" in said


@pytest.mark.parametrize("undo", ["", "del sys.modules['mmcv._ext']"])
def test_a_stand_in_made_in_memory_is_refused(small_mmcv: Path, undo: str) -> None:
    script = f"sys.modules['mmcv._ext'] = types.ModuleType('mmcv._ext')\nimport mmcv.ops\n{undo}\n"
    said = run_fresh(script + "operators().install()", small_mmcv)[-1]
    assert "not vertebra's (made in memory): import vertebra.engine before" in said


def test_mmcv_without_operators_may_be_imported_first(small_mmcv: Path) -> None:
    script = "try:\n    import mmcv.ops\nexcept ImportError as error:\n    print(error)\n"
    script += "ours = operators(); ours.install()\nimport mmcv.ops\nprint(ours.live()['source'])"
    said = run_fresh(script, small_mmcv)
    assert "_ext" in said[0]
    assert said[1:] == ["vertebra"]


# --- what it is for ---


def test_live_says_what_serves_mmcv() -> None:
    said = operators.live()
    assert said["source"] == "vertebra"
    assert said["file"] == ""
    assert said["provided"].split(", ") == sorted(operators.PROVIDED)


@pytest.mark.parametrize(("mmcv", "source"), [("without ops", "none"), ("", "vertebra"), ("with a stand-in", "other")])
def test_live_before_mmcv_is_imported(small_mmcv: Path, mmcv: str, source: str) -> None:
    if mmcv == "without ops":
        shutil.rmtree(small_mmcv / "mmcv" / "ops")
    if mmcv == "with a stand-in":
        (small_mmcv / "mmcv" / "_ext.py").write_text("nms = None")
    script = "ours = operators(); ours.install(); print(ours.live()['source'], 'mmcv' in sys.modules)"
    assert run_fresh(script, small_mmcv) == [f"{source} False"]


def test_mmdet_and_mmseg_import_and_report_their_environment() -> None:
    for name in ("mmdet", "mmseg"):
        pytest.importorskip(name)
    for name in ("mmdet.models", "mmdet.datasets", "mmseg.models", "mmseg.datasets"):
        importlib.import_module(name)
    from mmcv.utils import collect_env as mmcv_report
    from mmdet.utils import collect_env as mmdet_report

    assert mmcv_report()["MMCV Compiler"] == "none (operators of vertebra.engine)"
    assert "MMDetection" in mmdet_report()
