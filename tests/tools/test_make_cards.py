"""Model cards: they are current, say what cards.yml says, and their commands are commands."""

import argparse
import importlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import EvalResult
from small_images import write_images
from vertebra.backbones._errors import UserError
from vertebra.tools import _card_facts, make_cards
from vertebra.tools import list as tool
from vertebra.tools._card_facts import ROOT, families
from vertebra.tools._card_header import scores
from vertebra.tools._card_links import Seen
from vertebra.tools._card_weights import citation, weights
from vertebra.tools._common import run_tool
from vertebra.tools._detection_docs import Leaf

FAMILIES = {family.key: family for family in families()}
KEYS = [*FAMILIES]


def text(key: str) -> str:
    return (ROOT / "model_cards" / f"{key}.md").read_text(encoding="utf-8")


def blocks(key: str, language: str) -> str:
    """The code of a card in one language."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text(key), re.MULTILINE | re.DOTALL))


def commands(key: str) -> Sequence[Sequence[str]]:
    return [shlex.split(line)[1:] for line in blocks(key, "bash").splitlines() if line]


# --- the pages ---


def test_every_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_cards.main(["--check"]) == 0, f"run `make cards`: {capsys.readouterr().out}"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose pages are two short texts."""
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(make_cards, "ROOT", tmp_path)
    monkeypatch.setattr(make_cards, "pages", lambda: {Path("model_cards/a.md"): "a\n", Path("docs/b.svg"): "b\n"})
    return tmp_path


def test_pages_are_written_and_then_left_alone(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_cards.main([]) == 0
    assert (clone / "model_cards/a.md").read_text() == "a\n"
    assert "wrote docs/b.svg" in capsys.readouterr().out
    assert make_cards.main([]) == 0
    assert capsys.readouterr().out == "all pages are current\n"


def test_check_names_a_stale_page_and_writes_nothing(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cards.main([])
    (clone / "docs/b.svg").write_text("old")
    assert make_cards.main(["--check"]) == make_cards.STALE != 0
    assert "stale: docs/b.svg" in capsys.readouterr().out
    assert (clone / "docs/b.svg").read_text() == "old"


def test_an_installed_package_has_no_pages_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_cards, "ROOT", tmp_path)
    with pytest.raises(UserError, match="writes pages in a clone"):
        make_cards.main([])


# --- what a card says ---


@pytest.mark.parametrize("key", KEYS)
def test_the_hub_reads_the_front_matter(key: str) -> None:
    data = ModelCard.load(ROOT / "model_cards" / f"{key}.md", ignore_metadata_errors=False).data
    assert (data.license, data.library_name) == (FAMILIES[key].card["licence"].lower(), "timm")
    assert "imagenet-1k" in data.datasets
    results = data.eval_results or []
    assert all(isinstance(result, EvalResult) and result.source_url and not result.verified for result in results)
    published = [row.top1 for row in FAMILIES[key].rows if row.top1 is not None]
    assert [each.metric_value for each in results if each.dataset_type == "imagenet-1k"] == published


@pytest.mark.parametrize(
    ("score", "data", "values"),
    [
        ("46.4 / 41.8", "coco", [46.4, 41.8]),
        ("44.0", "coco", [44.0]),
        ("50.1 ms", "ade20k", [50.1]),
        ("46.7?", "coco", []),
        ("…", "coco", []),
        ("–", "ade20k", []),
    ],
)
def test_only_scores_that_were_read_become_results(
    score: str, data: str, values: Sequence[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leaf, "score", score)
    leaf = Leaf(ROOT / "configs" / data / "van" / "x.py", "van", "x", "b0", "1x", "", "2202.09741")
    assert [result.metric_value for result in scores(leaf)] == values


@pytest.mark.parametrize("key", KEYS)
def test_a_card_names_every_model_config_and_operator(key: str) -> None:
    card, own = text(key), FAMILIES[key]
    configs = [*own.detectors, *own.segmenters]
    named = [f"`{_card_facts.full_name(row)}`" for row in own.rows] + [f"{leaf.path.stem}.py" for leaf in configs]
    assert [name for name in [*named, *own.card["operators"]] if name not in card] == []


@pytest.mark.parametrize("key", KEYS)
def test_operators_with_a_kernel_are_those_of_the_list(key: str) -> None:
    card = tool.cards()[key]
    assert {name for name in card["operators"] if (ROOT / "kernels" / name / "triton.py").exists()} == {
        *card["kernels"]
    }


def test_a_citation_is_a_whole_entry() -> None:
    entry = citation(FAMILIES["van"])
    assert entry.count("{") == entry.count("}")
    assert "@article{guo2022van," in entry
    assert "author = {Meng-Hao Guo and Cheng-Ze Lu and Zheng-Ning Liu and Ming-Ming Cheng and Shi-Min Hu}," in entry
    assert "eprint = {2202.09741}," in entry


def test_weights_say_what_a_link_answered() -> None:
    own = FAMILIES["van"]
    url = own.rows[0].url or ""
    table = weights(own, {url: Seen(url, "HTTP 404", "16432100", "2026-02-03", "2026-01-02")})
    row = next(line for line in table.splitlines() if line.startswith("| `van_b0.in1k`"))
    assert "[van_tiny_754.pth.tar]" in row
    assert "| 16.4 | 2026-01-02; HTTP 404 on 2026-02-03 |" in row
    assert "| not checked |" in next(line for line in table.splitlines() if line.startswith("| `van_b1.in1k`"))
    assert "| no direct link |" in next(line for line in table.splitlines() if line.startswith("| `van_b4.in1k`"))


# --- commands ---


@pytest.mark.parametrize("key", KEYS)
def test_commands_parse_and_name_configs_that_are_there(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_config = pytest.importorskip("vertebra.engine.config", reason="needs mmengine").find_config
    tools = []
    for name, *words in commands(key):
        parser: argparse.ArgumentParser = importlib.import_module(f"vertebra.tools.{name}").build_parser()
        monkeypatch.setattr(parser, "error", lambda message, words=words: pytest.fail(f"{words}: {message}"))
        parser.parse_args(words)
        if name == "train":
            find_config(words[0])
        else:
            timm.get_pretrained_cfg(words[0])
        tools.append(name)
    assert {"train", "test", "infer", "export_onnx"} <= {*tools}
    assert tools.count("train") == 3, "fine-tuning, detection, segmentation"


@pytest.mark.parametrize(
    "key", [key if key in ("van", "biformer", "shvit") else pytest.param(key, marks=pytest.mark.all) for key in KEYS]
)
def test_python_of_a_card_runs(key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = timm.create_model

    def fresh(name: str, pretrained: bool, pretrained_cfg_overlay: object = None, **options: object) -> torch.nn.Module:
        assert pretrained
        return made(name, **options)

    monkeypatch.setattr(timm, "create_model", fresh)
    with torch.device("meta"):
        exec(blocks(key, "python"), {})
    shapes = [[*map(int, re.findall(r"\d+", line))] for line in capsys.readouterr().out.splitlines()]
    strides = FAMILIES[key].card["strides"]
    assert [round(333 / width) for *_, width in shapes] == pytest.approx(strides, rel=0.2)
    assert len(shapes) == len(strides)


SMALLER = [
    "train_cfg.val_interval=30",
    "train_dataloader.batch_size=8",
    "train_dataloader.num_workers=0",
    "val_dataloader.num_workers=0",
    "train_dataloader.dataset.transform.input_size=[3,64,64]",
]


@pytest.mark.all
@pytest.mark.timeout(1500)
def test_the_commands_of_a_card_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder with seven classes; a file stands for published weights, and the training images are small."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("my_folder"), classes=7, train=4, val=2)
    write_images(Path("data/imagenet"), classes=7, train=1, val=2)
    Path("pictures").symlink_to("my_folder/val/class0")
    torch.save({"state_dict": timm.create_model("van_b0", num_classes=7).state_dict()}, "published.pth")
    stand_in = {"pretrained": "published.pth", "model.weights=van_b0.in1k": "model.weights=published.pth"}
    for name, *words in commands("van"):
        if name != "train" or words[0].startswith("imagenet/"):  # detectors need COCO; tests/engine trains those
            line = [stand_in.get(word, word) for word in words] + (SMALLER if name == "train" else [])
            assert run_tool(importlib.import_module(f"vertebra.tools.{name}").main, line) == 0, line
    assert Path("van_b0.onnx").stat().st_size > 1e6
    assert Path("van_b0_features.onnx").is_file()
    assert len(json.loads(Path("predictions/results.json").read_text())) == 2
