"""The picture of each family's block: what it is made of, and which pixels one pixel sees.

In the maps orange is a pixel and blue what it attends to; a small square stands for the mean of the pixels around it.
"""

from itertools import product

from vertebra.tools._cards.svg import Branch, Column, Marks, draw

SIDE = 14
"""Pixels a side of the third stage's map at an image of 224; the maps show that stage where they say no other."""

_MLP = Branch(("LayerNorm", "linear, GELU, linear"))
_EVERYWHERE = frozenset(product(range(SIDE), range(SIDE)))
_POOLED = frozenset((row, column, 2) for row, column in product(range(0, SIDE, 2), range(0, SIDE, 2)))


def window(query: tuple[int, int], height: int, width: int) -> frozenset[tuple[int, int]]:
    """The pixels of the query's window of `height` x `width`, in a map that windows cover from its first corner on."""
    top, left = query[0] - query[0] % height, query[1] - query[1] % width
    return frozenset(product(range(top, top + height), range(left, left + width)))


def grid(query: tuple[int, int], size: int) -> frozenset[tuple[int, int]]:
    """The `size` x `size` pixels, evenly spread over the map, that the query's grid holds."""
    step = SIDE // size
    return frozenset(product(range(query[0] % step, SIDE, step), range(query[1] % step, SIDE, step)))


def _around(query: tuple[int, int], reach: int, step: int = 1) -> frozenset[tuple[int, int]]:
    spread = range(-reach, reach + 1, step)
    return frozenset((query[0] + down, query[1] + right) for down, right in product(spread, spread))


def _regions(*places: tuple[int, int]) -> frozenset[tuple[int, int]]:
    """Pixels of the listed regions of 2 x 2."""
    return frozenset().union(*(window((2 * row, 2 * column), 2, 2) for row, column in places))


def _block(title: str, *branches: Branch) -> Column:
    return Column(title, branches)


_PIXEL = (5, 8)
_CHOSEN = ((0, 1), (0, 2), (1, 1), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5))
_CHOSEN += ((3, 4), (4, 0), (4, 1), (5, 1), (5, 5), (5, 6), (6, 1), (6, 5))
"""Regions of 2 x 2 pixels, (row, column): as many as stage 3 chooses; which they are is made up."""

COLUMNS: dict[str, tuple[Column, ...]] = {
    "van": (
        _block(
            "block",
            Branch(("BatchNorm", "1×1, GELU", "gate", "1×1, plus the norm's output", "scale")),
            Branch(("BatchNorm", "1×1", "3×3 depthwise, GELU", "1×1", "scale")),
        ),
        _block(
            "gate",
            Branch(("5×5 depthwise", "7×7 depthwise, gaps of 3", "1×1", "times the gate's input"), residual=False),
        ),
    ),
    "biformer": (
        _block(
            "block",
            Branch(("3×3 depthwise",)),
            Branch(("LayerNorm", "routed attention", "plus 5×5 depthwise of values", "linear")),
            _MLP,
        ),
        _block(
            "routing",
            Branch(
                ("mean query, key of each region", "products of all pairs", "best K regions a region"), residual=False
            ),
        ),
    ),
    "transnext": (
        _block(
            "block",
            Branch(("LayerNorm", "one softmax: near and pooled", "linear")),
            Branch(("LayerNorm", "linear, in two halves", "3×3 depthwise, GELU of one", "times the other, linear")),
        ),
    ),
    "litv2": (
        _block("stages 1 and 2", Branch(("LayerNorm", "linear, 3×3 depthwise", "GELU, linear"))),
        _block(
            "stage 3",
            Branch(("LayerNorm", ("few: windows", "most: pooled"), "each a linear, then joined")),
            Branch(("LayerNorm", "linear, 3×3 depthwise", "GELU, linear")),
        ),
        _block(
            "stage 4",
            Branch(("LayerNorm", "attention among all pixels", "linear")),
            Branch(("LayerNorm", "linear, 3×3 depthwise", "GELU, linear")),
        ),
    ),
    "cswin": (
        _block(
            "block",
            Branch(
                (
                    "LayerNorm",
                    ("half: columns", "half: rows"),
                    "plus 3×3 depthwise of values",
                    "linear",
                )
            ),
            _MLP,
        ),
    ),
    "l2vit": (
        _block(
            "local block",
            Branch(("3×3 depthwise",)),
            Branch(("LayerNorm", "7×7 windows")),
            Branch(("3×3 depthwise",)),
            _MLP,
        ),
        _block(
            "global block",
            Branch(("3×3 depthwise",)),
            Branch(("LayerNorm", "linear attention")),
            Branch(("LayerNorm", "two 7×7 depthwise")),
            _MLP,
        ),
    ),
    "davit": (
        _block(
            "block of pixels",
            Branch(("3×3 depthwise",)),
            Branch(("LayerNorm", "7×7 windows")),
            Branch(("3×3 depthwise",)),
            _MLP,
        ),
        _block(
            "block of channels",
            Branch(("3×3 depthwise",)),
            Branch(("LayerNorm", "attention among channels")),
            Branch(("3×3 depthwise",)),
            _MLP,
        ),
    ),
    "maxvit": (
        _block(
            "block: first",
            Branch(("1×1, four times as wide", "3×3 depthwise", "squeeze and excite", "1×1")),
        ),
        _block("then", Branch(("LayerNorm", "7×7 windows, bias")), _MLP),
        _block("then", Branch(("LayerNorm", "7×7 grid, bias")), _MLP),
    ),
    "shvit": (
        _block("stage 1", Branch(("3×3 depthwise",)), Branch(("1×1, ReLU, 1×1",))),
        _block(
            "stages 2 and 3",
            Branch(("3×3 depthwise",)),
            Branch(("a fifth of the channels", "norm, one head of attention", "with the rest, ReLU, 1×1")),
            Branch(("1×1, ReLU, 1×1",)),
        ),
    ),
}

MAPS: dict[str, tuple[Marks, ...]] = {
    "van": (
        Marks(
            "the gate: 49 taps 3 apart, each of a 5×5, reach 23×23",
            27,
            (13, 13),
            _around((13, 13), 9, 3),
            _around((13, 13), 11),
        ),
    ),
    "biformer": (
        Marks("stages 1 to 3: the regions chosen, here stage 3's 16 of 49", SIDE, _PIXEL, _regions(*_CHOSEN)),
        Marks("stage 4: everything", SIDE, _PIXEL, _EVERYWHERE),
    ),
    "transnext": (
        Marks("sharp: its eight neighbours and itself", SIDE, _PIXEL, _around(_PIXEL, 1)),
        Marks("coarse: the pooled map", SIDE, _PIXEL, _POOLED),
    ),
    "litv2": (
        Marks("few heads: a window of 2×2", SIDE, _PIXEL, window(_PIXEL, 2, 2)),
        Marks("most heads: means of windows", SIDE, _PIXEL, _POOLED),
    ),
    "cswin": (
        Marks("half the heads: a stripe of columns, 7 wide in stage 3", SIDE, _PIXEL, window(_PIXEL, SIDE, 7)),
        Marks("half the heads: a stripe of rows, 7 high in stage 3", SIDE, _PIXEL, window(_PIXEL, 7, SIDE)),
    ),
    "l2vit": (
        Marks("local: a window of 7×7", SIDE, _PIXEL, window(_PIXEL, 7, 7)),
        Marks("global: everything, by sums", SIDE, _PIXEL, _EVERYWHERE),
    ),
    "davit": (
        Marks("pixels: a window of 7×7", SIDE, _PIXEL, window(_PIXEL, 7, 7)),
        Marks("channels: each is all pixels of the map", SIDE, _PIXEL, _EVERYWHERE),
    ),
    "maxvit": (
        Marks("first: a window of 7×7", SIDE, _PIXEL, window(_PIXEL, 7, 7)),
        Marks("then: a grid of 7×7 over the map", SIDE, _PIXEL, grid(_PIXEL, 7)),
    ),
    "shvit": (Marks("stages 2 and 3: everything, with one head", SIDE, _PIXEL, _EVERYWHERE),),
}


def figure(family: str, title: str) -> str:
    """The picture of a family, as SVG text. KeyError where none is described."""
    return draw(f"The block of {title}", COLUMNS[family], MAPS[family])
