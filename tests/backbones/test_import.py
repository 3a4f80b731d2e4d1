"""Importing vertebra is quick and quiet, brings little along, and takes nothing away from timm."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import vertebra

ROOT = Path(vertebra.__file__).parent
LAYERS = ("kernels", "backbones", "engine", "tools")  # each may import those before it


# timm first, then vertebra, in one interpreter: what differs between the two moments is what vertebra does
WATCH = """
import json, sys, time, warnings
started = time.process_time()
import timm
with_timm = time.process_time()
from timm.models import get_pretrained_cfg
def registry():
    names = timm.list_models() + timm.list_models(include_tags=True)
    return {name: [id(timm.model_entrypoint(name)), str(get_pretrained_cfg(name))] for name in names}
before, modules = registry(), set(sys.modules)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    then = time.process_time()
    import vertebra
    cost = time.process_time() - then
after = registry()
print(json.dumps({
    "cost": cost / (with_timm - started),
    "warnings": [str(warning) for warning in caught],
    "modules": sorted({name.partition(".")[0] for name in set(sys.modules) - modules}),
    "ours": vertebra.backbones.model_names(),
    "added": sorted({name.partition(".")[0] for name in set(after) - set(before)}),
    "changed": [name for name in before if after.get(name) != before[name]],
    "timm's": sorted(before),
}))
"""


@pytest.fixture(scope="module")
def watched() -> dict[str, Any]:
    """What importing vertebra changed in a fresh interpreter, outside the repository."""
    command = [sys.executable, "-P", "-c", WATCH]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=sys.prefix)
    return json.loads(done.stdout)


def test_timm_keeps_every_name_tag_and_cfg_it_had(watched: dict[str, Any]) -> None:
    assert len(watched["timm's"]) > 1000
    assert watched["changed"] == []


def test_timm_gains_our_names_and_no_other(watched: dict[str, Any]) -> None:
    assert watched["added"] == sorted(watched["ours"])
    assert "van_b0" in watched["added"]


def test_no_name_of_ours_is_one_of_timms(watched: dict[str, Any]) -> None:
    assert set(watched["ours"]).isdisjoint(watched["timm's"])


def test_importing_warns_about_nothing(watched: dict[str, Any]) -> None:
    assert watched["warnings"] == []


def test_importing_brings_no_package_along_that_timm_does_not(watched: dict[str, Any]) -> None:
    assert [name for name in watched["modules"] if not name.startswith("__editable__")] == ["vertebra"]


def test_importing_costs_at_most_15_percent_more_than_importing_timm(watched: dict[str, Any]) -> None:
    assert watched["cost"] <= 0.15


def imported_layers(path: Path) -> set[str]:
    """The layers of vertebra that a source file imports, wherever in it."""
    inside = ["vertebra", *path.relative_to(ROOT).parent.parts]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            names += [f"{stem}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("vertebra.")} & set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer: str) -> None:
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    wrong = {
        str(path.relative_to(ROOT)): sorted(imported_layers(path) - allowed)
        for path in sorted((ROOT / layer).rglob("*.py"))
        if imported_layers(path) - allowed
    }
    assert wrong == {}


def test_the_walk_over_imports_sees_relative_and_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    source = tmp_path / "backbones" / "x.py"
    source.parent.mkdir()
    lines = ["from ..kernels import a", "from . import b", "def f():", "    import vertebra.engine.c"]
    source.write_text("\n".join([*lines, "    from vertebra import tools"]))
    assert imported_layers(source) == {"kernels", "backbones", "engine", "tools"}
