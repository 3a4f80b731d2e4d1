"""docs/detection.md: its tables are those that the configs give, and the configs that it names are there."""

import re

import pytest
from vertebra.backbones._errors import UserError
from vertebra.engine.config import find_config
from vertebra.tools._docs import detection as docs


def test_the_tables_are_up_to_date() -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    assert docs.filled(page) == page, "write them anew: see tools/_docs/detection.py"


@pytest.mark.parametrize(
    ("head", "score"),
    [
        ("VAN-B2, Mask R-CNN: 46.4 box AP, 41.8 mask AP as published (arXiv 2202.09741), 46.2 M", "46.4 / 41.8"),
        ("VAN-B0, UPerNet: 41.1 mIoU at many scales (--tta) as published (arXiv 2202.09741)", "41.1 ms"),
        ("CSWin-T, UPerNet: 49.3 mIoU, 50.7 at many scales (--tta) as published (arXiv 2107.00652)", "49.3 / 50.7 ms"),
        ("CSWin-T: 46.7 box AP in the paper's table (arXiv 2107.00652; not verified)", "46.7?"),
        ("SHViT-S4, UPerNet: no score published (arXiv 2401.16456)", "–"),
        ("L2ViT-T (arXiv 2501.16182): the score is in the paper's table, which was not read", "…"),
    ],
)
def test_a_score_is_read_from_a_configs_head(head: str, score: str) -> None:
    assert docs.score_of(head) == score


def test_every_score_at_many_scales_of_a_head_is_in_the_table() -> None:
    said = [leaf for leaf in docs.leaves("ade20k") if "at many scales" in leaf.text]
    assert said
    assert [leaf.path.stem for leaf in said if not leaf.score.endswith(" ms")] == []


def test_a_head_without_a_score_is_named() -> None:
    with pytest.raises(UserError, match="no score in 'VAN-B0, Mask R-CNN'"):
        docs.score_of("VAN-B0, Mask R-CNN")


def test_a_row_of_configs_says_where_its_scores_stand_and_nothing_where_none_was_published() -> None:
    rows = dict(re.findall(r"^\| `(\S+)` \| (.*) \|$", docs.configs(), re.MULTILINE))
    code = "https://github.com/ysj9909/SHViT"
    assert rows["coco/shvit/retinanet_shvit_*_fpn_1x"] == f"s4 38.8 | [downstream/README.md of the code]({code})"
    assert "[arXiv:2202.09741](https://arxiv.org/abs/2202.09741)" in rows["coco/van/retinanet_van_*_fpn_1x"]
    assert rows["coco/cswin/retinanet_cswin_*_fpn_1x"] == "tiny – | "
    leaves = [leaf for data in docs.SCORES for leaf in docs.leaves(data)]
    assert {leaf.score == "–" for leaf in leaves} == {True, False}
    assert [leaf.path.stem for leaf in leaves if (docs.sources_of(leaf) == []) != (leaf.score == "–")] == []


def test_configs_that_commands_name_are_there() -> None:
    pytest.importorskip("mmengine")
    page = docs.PAGE.read_text(encoding="utf-8")
    commands = [line for line in page.splitlines() if line.startswith(("vertebra ", "torchrun ", "srun "))]
    names = set(re.findall(r" ((?:coco|ade20k|demo)/[\w/-]+)", "\n".join(commands)))
    assert names
    for name in names:
        find_config(name)


def test_every_open_head_is_named() -> None:
    page = docs.PAGE.read_text(encoding="utf-8")
    heads = [path.stem for data in ("coco", "ade20k") for path in (docs.ROOT / "configs" / data).glob("*.py")]
    assert heads
    assert [head for head in heads if f"`{head}`" not in page] == []
