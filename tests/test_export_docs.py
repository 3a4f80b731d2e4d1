"""docs/export.md keeps its word: its Python runs on files made here, and its commands are understood."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from vertebra.backbones._checkpoint import create
from vertebra.tools import export_onnx, infer, publish
from vertebra.tools._benchmark.worker import why_not_compiled
from vertebra.tools._classifier import Classifier
from vertebra.tools._export import programs
from vertebra.tools._export.classifier import export

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TOOLS = {"export_onnx": export_onnx, "infer": infer, "publish": publish}
SLOW = "aoti_load_package"
"""In a block whose file takes minutes to compile."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page names, but for the package: a VAN of one block a stage, and a picture."""
    path = tmp_path_factory.mktemp("exports")
    classifier = build()
    export(classifier, path / "van_b0.onnx", static=(224, 224))
    programs.export(classifier, path / "van_b0.ts", "torchscript")
    programs.export(classifier, path / "van_b0.pt2", "exported", static=(224, 224))
    publish.publish(classifier, path / "hub/van_b0")
    Image.new("RGB", (50, 40), "teal").save(path / "photo.jpg")
    return path


def build() -> Classifier:
    torch.manual_seed(0)
    options = {"depths": (1, 1, 1, 1)}
    labels = ["cat", "dog", "owl"]
    return Classifier("van_b0", create("van_b0", num_classes=3, **options), labels, labels, options)


def test_the_page_has_a_block_for_every_format() -> None:
    wanted = ("InferenceSession", "torch.jit.load", "torch.export.load", SLOW, "read_metadata", "local-dir:")
    assert [[word for word in wanted if word in block] for block in BLOCKS] == [[word] for word in wanted]


@pytest.mark.parametrize("block", [block for block in BLOCKS if SLOW not in block])
def test_python_of_the_page_runs(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found: dict[str, object] = {}
    exec(block, found)
    if "logits" in found:
        assert found["logits"].shape == (1, 3)  # type: ignore[attr-defined]


@pytest.mark.all
@pytest.mark.timeout(1200)
def test_python_of_the_page_runs_a_compiled_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if lacking := why_not_compiled("cpu"):
        pytest.skip(lacking)
    programs.export(build(), tmp_path / "van_b0_aoti.pt2", "aoti", static=(224, 224))
    (block,) = [block for block in BLOCKS if SLOW in block]
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(block, found)
    assert found["logits"].shape == (1, 3)  # type: ignore[attr-defined]


def test_every_command_and_option_is_understood_by_its_tool() -> None:
    lines = [
        shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.split("\n")
    ]
    ours = [words[1:] for words in lines if words[:1] == ["vertebra"]]
    assert {words[0] for words in ours} == TOOLS.keys()
    for tool, *words in ours:
        TOOLS[tool].build_parser().parse_args(words)
    rows = re.findall(r"^\| `(--[^`]+)` \|", PAGE, re.MULTILINE) + re.findall(r"`(--out M[^`]+)`", PAGE)
    assert len(rows) > 10
    for row in rows:
        values = row.replace("DIR", "d").replace(" F", " f")
        export_onnx.build_parser().parse_args(["van_b0", *shlex.split(values)])
