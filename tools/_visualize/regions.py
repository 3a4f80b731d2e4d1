"""The windows and regions that attention goes by: how they cut the map, and which of them a query looks into."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from vertebra.tools._visualize.attention_maps import Call, weights


@dataclass(frozen=True)
class Cut:
    """Where a map is cut: before these rows and columns, its outer edges left out."""

    rows: list[int]
    columns: list[int]

    @property
    def sides(self) -> tuple[list[int], list[int]]:
        """Rows and columns."""
        return self.rows, self.columns


def cuts(call: Call) -> list[Cut]:
    """How windows cut the map; two ways where half of the heads has other windows.

    A grid cuts it into cells instead, and one of its windows takes the same place of every cell.

    Args:
        call: of `window_attention`.
    """
    given = call.arguments
    kinds = [(given["window"], given.get("pad_offset", (0, 0)))]
    if given.get("cross_window") is not None:
        kinds.append((given["cross_window"], given.get("cross_offset", (0, 0))))
    grid = given.get("partition") == "grid"
    found = []
    for window, offset in kinds:
        steps = [-(-side // part) for side, part in zip(call.size, window, strict=True)] if grid else window
        rows, columns = (
            list(range(step - before, side, step)) for step, before, side in zip(steps, offset, call.size, strict=True)
        )
        found.append(Cut(rows, columns))
    return found


def members(call: Call, row: int, column: int) -> list[Tensor]:
    """The tokens in the window of a query: (H, W) of bool, for each of the `cuts`.

    Asked of the operator: with queries of zeros, all tokens of a window weigh the same.
    """
    alike = replace(call, arguments=call.arguments | {"q": torch.zeros_like(call.arguments["q"]), "bias_table": None})
    of_heads = weights(alike, row, column)[0] > 0
    return [of_heads[i * call.heads // len(cuts(call))] for i in range(len(cuts(call)))]


@dataclass(frozen=True)
class Routes:
    """What one region of a map is routed to."""

    region: tuple[int, int]
    """Row and column of the region among all regions."""
    routed: list[tuple[int, int]]
    """Rows and columns of those it attends to, best first."""
    tokens: tuple[int, int]
    """Rows and columns of tokens in a region."""
    regions: tuple[int, int]
    """Rows and columns of regions."""


def routes(call: Call, row: int, column: int) -> Routes:
    """Where the region of a token is routed to.

    Args:
        call: of `routing_attention`.
        row, column: the token.
    """
    index: Tensor = call.arguments["index"][0]
    rows, columns = call.arguments.get("regions") or (math.isqrt(len(index)),) * 2
    height, width = call.arguments["q"].shape[1:3]
    tall, wide = height // rows, width // columns
    region = (row // tall, column // wide)
    routed = [divmod(number, columns) for number in index[region[0] * columns + region[1]].tolist()]
    return Routes(region, routed, (tall, wide), (rows, columns))
