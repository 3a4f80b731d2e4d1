"""`vertebra list`: every registered name and tag, counts that agree with the models and with what was published."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import vertebra
from timm.models import get_pretrained_cfg_value
from torch import nn
from torchvision.ops import deform_conv2d
from vertebra.backbones._errors import UserError
from vertebra.backbones._position_bias import PositionBias
from vertebra.tools import list as tool
from vertebra.tools._common import run_tool
from vertebra.tools._flops import count_gflops, count_multiply_adds

NEAR = 0.03  # of the published multiply-adds
EXPLAINED = {"cswin_large.in22k_ft_in1k": 1.052, "cswin_large_384.in22k_ft_in1k": 1.052}  # ours by theirs
FIRSTS = list({entry.family: entry.full for entry in reversed(tool.entries())}.values())  # of each family
Product = Callable[[torch.Tensor, Callable[..., torch.Tensor]], torch.Tensor]


@pytest.fixture(scope="module")
def rows() -> list[tool.Row]:
    return tool.make_rows(tool.select(None))


class Products(nn.Module):
    """A function of the image and of a maker of weights of any shape, so that the counter sees a single operation."""

    def __init__(self, function: Product) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.empty(1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, lambda *shape: self.weight[: math.prod(shape)].reshape(shape))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, w: F.conv2d(x, w(6, 3, 3, 3), w(6), padding=1), 6 * 3 * 9 * 64),
        (lambda x, w: F.conv2d(x, w(3, 1, 7, 7), padding=9, dilation=3, groups=3), 3 * 49 * 64),
        (lambda x, w: F.linear(x, w(5, 8), w(5)), 3 * 8 * 8 * 5),
        (lambda x, w: F.scaled_dot_product_attention(x, x, x), 2 * 3 * 8 * 8 * 8),
        (lambda x, w: F.scaled_dot_product_attention(x, x, x, attn_mask=x.new_zeros(8, 8)), 2 * 3 * 8 * 8 * 8),
        (lambda x, w: torch.einsum("bcij,bckj->bcik", x, x), 3 * 8 * 8 * 8),
        (lambda x, w: x @ x, 3 * 8 * 8 * 8),
        (lambda x, w: torch.baddbmm(x.new_zeros(1, 8, 8), x[0], x[0]), 3 * 8 * 8 * 8),
        (lambda x, w: deform_conv2d(x, x.new_zeros(1, 8, 4, 4), w(6, 3, 2, 2), stride=2), 6 * 3 * 4 * 16),
        (lambda x, w: F.linear(w(5, 4), w(3, 4)), 5 * 4 * 3),
        (lambda x, w: x.new_zeros(5, 4) @ w(4, 3), 5 * 4 * 3),
    ],
    ids=[
        "conv",
        "depthwise",
        "linear",
        "attention",
        "biased attention",
        "einsum",
        "matmul",
        "baddbmm",
        "deformable",
        "weights alone",
        "weights at coordinates",
    ],
)
def test_multiply_adds_of_each_kind_of_product_are_counted(function: Product, expected: int) -> None:
    assert count_multiply_adds(Products(function), 8) == expected


def test_pooling_written_as_a_product_is_not_counted() -> None:
    def pooled(x: torch.Tensor, weights: object) -> torch.Tensor:
        averages = torch.zeros(4, 8, device=x.device)
        averages[0, :2] = 0.5
        return averages @ x

    assert count_multiply_adds(Products(pooled), 8) == 0


def test_buffer_that_the_image_was_written_into_is_of_the_image() -> None:
    def attention(x: torch.Tensor, weights: object) -> torch.Tensor:
        keys = x.new_empty(1, 3, 8, 8)
        keys[:, :, :4] = x[:, :, :4]
        return x @ keys

    assert count_multiply_adds(Products(attention), 8) == 3 * 8 * 8 * 8


def test_operators_are_counted_in_the_form_that_defines_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", "eager")
    seen: list[str | None] = []
    count_multiply_adds(Products(lambda x, w: seen.append(os.environ.get("VERTEBRA_KERNELS")) or x), 8)
    assert seen == ["reference"]
    assert os.environ["VERTEBRA_KERNELS"] == "eager"


class Biased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = PositionBias(heads=3, unit=6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias(x, 8, 8, 8, 8)[0]


def test_network_of_position_biases_counts_once_for_every_distance() -> None:
    assert count_multiply_adds(Biased(), 8) == 15 * 15 * 512 * (2 + 3)


def test_counting_leaves_the_model_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    count_gflops(model, (16, 24))
    assert model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert int(model[1].num_batches_tracked) == 0


def test_only_names_of_vertebra_are_listed_and_all_of_them(rows: list[tool.Row]) -> None:
    ours = {n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith("vertebra.backbones.")}
    assert {row.name for row in rows} == ours
    assert {f"van_b{i}" for i in range(7)} <= ours


def test_default_tag_comes_first(rows: list[tool.Row]) -> None:
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.name, row.tag)
    assert first == {name: get_pretrained_cfg_value(name, "tag") or "" for name in first}


def test_every_listed_model_has_a_stored_count(rows: list[tool.Row]) -> None:
    missing = [entry.full for entry in tool.entries() if entry.full not in tool.stored_counts()]
    assert not missing, "run `vertebra list --recount`"


@pytest.mark.parametrize("name", FIRSTS)
def test_stored_count_is_what_counting_gives(name: str) -> None:
    check_stored(name)


@pytest.mark.all
@pytest.mark.parametrize("name", [entry.full for entry in tool.entries()])
def test_every_stored_count_is_what_counting_gives(name: str) -> None:
    check_stored(name)


def check_stored(name: str) -> None:
    (entry,) = tool.select(name)
    counted, stored = tool.count(entry), tool.stored_counts()[name]
    assert {key: stored[key] for key in ("size", "params", "multiply_adds")} == {
        key: counted[key] for key in ("size", "params", "multiply_adds")
    }, "run `vertebra list --recount`"


def test_published_multiply_adds_are_reproduced() -> None:
    published = {
        name: entry["gflops"]
        for card in tool.cards().values()
        for name, entry in card["models"].items()
        if "gflops" in entry
    }
    counted = {name: int(row["multiply_adds"]) / 1e9 for name, row in tool.stored_counts().items()}
    off = {name: round(counted[name] / gflops, 3) for name, gflops in published.items()}
    assert len(published) >= 60
    assert {name: ratio for name, ratio in off.items() if abs(ratio - 1) > NEAR} == pytest.approx(EXPLAINED, abs=0.002)


@pytest.mark.parametrize("name", EXPLAINED)
def test_difference_to_published_multiply_adds_is_explained_in_the_card(name: str) -> None:
    (entry,) = tool.select(name)
    assert entry.name.removesuffix("_384") in tool.cards()[entry.family]["flops_note"]


def test_model_without_a_stored_count_is_counted_when_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "COUNTS", tmp_path / "none.csv")
    (row,) = tool.make_rows(tool.select("van_b0"))
    assert (row.params, row.gflops) == (4105800, pytest.approx(0.864224))


def test_recount_writes_the_counts_and_keeps_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "results" / "complexity.csv"
    kept = tool.stored_counts()["van_b1.in1k"]
    counts.parent.mkdir()
    counts.write_text(f"{','.join(kept)}\n{','.join(kept.values())}\nvan_gone.in1k,224,1,1,0,0\n")
    monkeypatch.setattr(tool, "COUNTS", counts)
    assert tool.main(["van_b0", "--recount"]) == 0
    stored = tool.stored_counts()
    assert list(stored) == ["van_b0.in1k", "van_b1.in1k"]
    assert (stored["van_b0.in1k"]["params"], stored["van_b1.in1k"]) == ("4105800", kept)


def test_cards_have_every_registered_name_and_tag_and_no_other() -> None:
    known = {entry.full: entry.family for entry in tool.entries()}
    assert {name: family for family, card in tool.cards().items() for name in card["models"]} == known


def test_cards_agree_with_the_registry_on_links_papers_and_licences() -> None:
    for entry in tool.entries():
        card = tool.cards()[entry.family]
        arxiv = card["models"][entry.full].get("arxiv", card["paper"]["arxiv"])
        assert f"arXiv:{arxiv}" == entry.cfg.paper_ids, entry.full
        if entry.name.endswith("_fused"):  # timm's entry has the link
            assert "url" not in card["models"][entry.full], entry.full
            assert entry.cfg.license in f"{card['licence']} {card['licence_note']}".lower(), entry.full
        else:
            assert card["models"][entry.full].get("url", "") == entry.cfg.url, entry.full
            assert card["licence"].lower() == entry.cfg.license, entry.full


def test_weights_that_timm_hosts_are_linked_where_it_loads_them_from() -> None:
    (row,) = tool.make_rows(tool.select("shvit_s1_fused.in1k"))
    assert row.url == "https://huggingface.co/timm/shvit_s1.in1k"


def test_json_has_numbers_as_numbers_and_null_for_the_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["van_b4", "--json"]) == 0
    by_tag = {row["tag"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(by_tag) == ["in1k", "in22k", "in22k_ft_in1k", "in22k_ft_in1k_384"]
    assert by_tag["in1k"] == {
        "name": "van_b4",
        "tag": "in1k",
        "family": "van",
        "params": 60283176,
        "gflops": pytest.approx(12.143756),
        "size": 224,
        "top1": 84.2,
        "source": "Table 7 of arXiv:2202.09741",
        "licence": "Apache-2.0",
        "kernels": ["depthwise_conv"],
        "url": None,
    }
    assert by_tag["in22k"]["top1"] is None
    assert by_tag["in22k_ft_in1k_384"]["size"] == 384


def test_a_source_is_named_where_something_was_published_and_nowhere_else(rows: list[tool.Row]) -> None:
    sources = {(row.name, row.tag): row.source for row in rows}
    assert sources["van_b0", "in1k"] == "Table 7 of arXiv:2202.09741, README of the code"
    assert sources["maxvit_nano_rw_256_fused", "sw_in1k"] == "timm's notes on its weights"
    for bare in [("van_b4", "in22k"), ("davit_huge_fused", ""), ("maxvit_pico_rw_256_fused", "untrained")]:
        assert sources[bare] is None
    assert [row for row in rows if row.source is None and row.top1 is not None] == []


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("van_b[01]", ["van_b0", "van_b1"]),
        ("van*_384", ["van_b4", "van_b5", "van_b6"]),
        ("van_b4.in1k", ["van_b4"]),
        ("B0", ["van_b0"]),
    ],
    ids=["wildcards on names", "wildcards on tags", "name with tag", "part of a name, in any case"],
)
def test_pattern_selects(pattern: str, names: list[str]) -> None:
    assert [entry.name for entry in tool.select(pattern)] == names


def test_whole_name_does_not_select_longer_names() -> None:
    assert [entry.tag for entry in tool.select("van_b4.in22k")] == ["in22k"]


def test_pattern_without_a_match_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(tool.main, ["vna_b0"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "'vna_b0'" in captured.err
    assert "Did you mean van_b0" in captured.err


def test_wildcards_without_a_match_are_an_error() -> None:
    with pytest.raises(UserError, match="no model of vertebra matches"):
        tool.select("swin_*")


def test_text_is_aligned_and_names_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["van_*"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "name",
        "tag",
        "family",
        "params",
        "gflops",
        "size",
        "top1",
        "source",
        "licence",
        "kernels",
    ]
    assert {line.index("depthwise_conv") for line in lines} == {header.index("kernels")}
    assert len({line.index(" M ") for line in lines}) == 1


def pretend_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Make standard output look like a terminal; called in the test itself, since capsys changes it in between."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))


def test_wide_terminal_gets_a_table_that_explains_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_terminal(monkeypatch, columns=160)
    tool.show(tool.make_rows(tool.select("van_b4")))
    text = capsys.readouterr().out
    assert "in22k_ft_in1k_384" in text
    assert "60.28 M" in text
    assert "1e9 multiply-adds" in text


@pytest.mark.parametrize("lacking", ["rich", "width"])
def test_terminal_without_rich_or_too_narrow_gets_plain_text(
    lacking: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_terminal(monkeypatch, columns=80 if lacking == "width" else 160)
    if lacking == "rich":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    rows = tool.make_rows(tool.select("van_b0"))
    tool.show(rows)
    assert capsys.readouterr().out == tool.plain_table(rows) + "\n"


def test_script_prints_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(vertebra.__file__).parent / "tools" / "list.py"
    done = subprocess.run([sys.executable, str(script), "van_b0"], capture_output=True, text=True, check=True)
    assert tool.main(["van_b0"]) == 0
    assert done.stdout == capsys.readouterr().out


def test_help_ends_with_an_example() -> None:
    assert tool.build_parser().format_help().rstrip().endswith("example:\n  vertebra list 'van_*' --json")
