"""Windows and regions as they are drawn are those that the models use."""

from typing import Any

import pytest
import timm
import torch
from vertebra.backbones import biformer
from vertebra.tools._visualize.attention_maps import Call, record
from vertebra.tools._visualize.regions import cuts, members, routes

FOUR = (1, 1, 1, 1)


def window_calls(name: str, size: tuple[int, int]) -> list[Call]:
    depths = (2, 1, 1, 1) if name == "l2vit_tiny" else FOUR  # its windows are in every other block
    model = timm.create_model(name, depths=depths).eval()
    calls = record(model, torch.randn(1, 3, *size))
    return [call for call in calls if call.operator.__name__ == "window_attention"]


def cell(edges: list[int], at: int) -> int:
    """The number of the cell between edges."""
    return sum(edge <= at for edge in edges)


@pytest.mark.parametrize(
    "name", ["cswin_tiny", "davit_tiny_fused", "l2vit_tiny", "litv2_small", "maxvit_pico_rw_256_fused"]
)
def test_lines_are_where_windows_end(name: str) -> None:
    calls = window_calls(name, (107, 170))
    assert calls
    for call in calls:
        row, column = call.size[0] // 2, call.size[1] // 3
        for cut, inside in zip(cuts(call), members(call, row, column), strict=True):
            cells = [(cell(cut.rows, y), cell(cut.columns, x)) for y, x in inside.nonzero().tolist()]
            own = (cell(cut.rows, row), cell(cut.columns, column))
            if call.arguments.get("partition") == "grid":  # one token of each cell, those on padding apart
                assert len(cells) == len(set(cells))
                assert own in cells
            else:
                everywhere = [
                    (cell(cut.rows, y), cell(cut.columns, x)) for y, x in torch.ones(call.size).nonzero().tolist()
                ]
                assert set(cells) == {own}
                assert len(cells) == everywhere.count(own)


def test_half_of_the_heads_of_cswin_has_stripes_the_other_way() -> None:
    columns, rows = cuts(window_calls("cswin_tiny", (64, 64))[1])
    assert (columns.rows, columns.columns) == ([], [2, 4, 6])
    assert (rows.rows, rows.columns) == ([2, 4, 6], [])


def test_routes_are_those_that_the_model_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    route = biformer._route

    def noting(*given: Any) -> torch.Tensor:
        used.append(route(*given))
        return used[-1]

    monkeypatch.setattr(biformer, "_route", noting)
    model = timm.create_model("biformer_tiny", depths=FOUR, n_win=3).eval()
    calls = record(model, torch.randn(1, 3, 96, 144))[:3]
    for call, index in zip(calls, used, strict=True):
        tall, wide = (-(-side // 3) for side in call.size)
        for region in range(9):
            row, column = region // 3 * tall, region % 3 * wide
            found = routes(call, min(row, call.size[0] - 1), min(column, call.size[1] - 1))
            assert (found.region, found.tokens, found.regions) == (divmod(region, 3), (tall, wide), (3, 3))
            assert [3 * y + x for y, x in found.routed] == index[0, region].tolist()
