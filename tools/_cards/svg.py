"""Pictures of blocks as SVG text: columns of boxes with their residuals, and maps that show what a pixel attends to.

Colours follow the reader's scheme, light or dark, and stand on a ground of their own, so that a page whose scheme is
another than the system's shows them readable too.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

BOX, HEIGHT, GAP, ARC, MARGIN = 196, 26, 12, 18, 16
MAP, CAPTION, LINE = 154, 22, 15
"""Side of a map in pixels, letters in a line of its caption, and a line's height."""

_LIGHT = {
    "ground": "#ffffff",
    "text": "#1f2328",
    "line": "#57606a",
    "box": "#eef2f6",
    "edge": "#8c959f",
    "cell": "#f3f5f7",
    "grid": "#d0d7de",
    "weak": "#bcd9f2",
    "key": "#2a6fae",
    "query": "#d55e00",
}
_DARK = {
    "ground": "#0d1117",
    "text": "#e6edf3",
    "line": "#9198a1",
    "box": "#1b222b",
    "edge": "#59636e",
    "cell": "#161b22",
    "grid": "#30363d",
    "weak": "#1d4468",
    "key": "#4a94d4",
    "query": "#ff9a4d",
}


@dataclass(frozen=True)
class Branch:
    """Boxes from top to bottom, two side by side where they share the work; with `residual`, what enters is added to
    what leaves.
    """

    boxes: tuple[str | tuple[str, str], ...]
    residual: bool = True


@dataclass(frozen=True)
class Column:
    """A block."""

    title: str
    branches: tuple[Branch, ...]

    @property
    def height(self) -> int:
        """In pixels, with the title."""
        boxes = sum(len(branch.boxes) for branch in self.branches)
        return LINE * 2 + boxes * (HEIGHT + GAP) + sum(22 for branch in self.branches if branch.residual)


@dataclass(frozen=True)
class Marks:
    """What a pixel attends to in a map of `side` x `side`: (row, column), or (row, column, size) of what is pooled."""

    caption: str
    side: int
    query: tuple[int, int]
    keys: frozenset[tuple[int, ...]]
    weak: frozenset[tuple[int, ...]] = frozenset()

    @property
    def height(self) -> int:
        """In pixels, with the caption."""
        return MAP + LINE * (len(_lines(self.caption)) + 1)


def draw(title: str, columns: Sequence[Column], maps: Sequence[Marks]) -> str:
    """The picture: columns side by side, maps one below the other to their right."""
    step = BOX + 2 * ARC + MARGIN
    width = MARGIN + len(columns) * step + MAP + MARGIN
    height = max(*(column.height for column in columns), sum(each.height for each in maps)) + 2 * MARGIN
    body = [part for i, column in enumerate(columns) for part in _column(column, MARGIN + ARC + i * step, MARGIN)]
    top = MARGIN
    for each in maps:
        body += _map(each, MARGIN + len(columns) * step, top)
        top += each.height
    words = "; ".join(f"{each.title}: {', then '.join(_said(branch) for branch in each.branches)}" for each in columns)
    seen = "; ".join(each.caption for each in maps)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" aria-labelledby="title words" font-family="sans-serif" font-size="12">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="words">{escape(words)}. Maps: {escape(seen)}.</desc>',
            f"<style>{_style(_LIGHT)} @media (prefers-color-scheme: dark) {{ {_style(_DARK)} }}</style>",
            f'<rect class="ground" width="{width}" height="{height}" rx="6"/>',
            *body,
            "</svg>\n",
        ]
    )


def _style(colours: dict[str, str]) -> str:
    fills = " ".join(f".{name} {{ fill: {colours[name]} }}" for name in ("ground", "text", "weak", "key", "query"))
    return (
        f"{fills} .line {{ stroke: {colours['line']}; fill: none }} "
        f".box {{ fill: {colours['box']}; stroke: {colours['edge']} }} "
        f".reach {{ stroke: {colours['key']}; fill: none }} "
        f".cell {{ fill: {colours['cell']} }} .grid {{ stroke: {colours['grid']}; fill: none }}"
    )


def _said(branch: Branch) -> str:
    said = (box if isinstance(box, str) else f"({' beside '.join(box)})" for box in branch.boxes)
    return " - ".join(said) + (" (added to its input)" if branch.residual else "")


def _text(x: float, y: float, text: str, anchor: str = "middle", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text class="text" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _path(*steps: str) -> str:
    return f'<path class="line" d="{" ".join(steps)}"/>'


def _column(column: Column, left: int, top: int) -> list[str]:
    middle, y = left + BOX / 2, top + LINE
    parts = [_text(middle, y, column.title, bold=True)]
    y += 8
    for branch in column.branches:
        start = y + 4
        for box in branch.boxes:
            parts += _boxes((box,) if isinstance(box, str) else box, left, y)
            y += GAP + HEIGHT
        if branch.residual:
            y += 22
            parts += [
                _path(f"M{middle:g} {y - 22:g}", f"V{y - 14:g}"),
                f'<circle class="line" cx="{middle:g}" cy="{y - 7:g}" r="7"/>',
                _path(f"M{middle - 4:g} {y - 7:g}", "h8", f"M{middle:g} {y - 11:g}", "v8"),
                _path(f"M{middle:g} {start:g}", f"H{left - ARC}", f"V{y - 7:g}", f"H{middle - 7:g}"),
            ]
    return [*parts, _path(f"M{middle:g} {y:g}", f"V{y + GAP:g}")]


def _boxes(words: Sequence[str], left: int, y: float) -> list[str]:
    """Boxes side by side with the lines that lead into them; those of more than one join again below."""
    middle, width, parts = left + BOX / 2, (BOX - GAP * (len(words) - 1)) / len(words), []
    for i, word in enumerate(words):
        x = left + i * (width + GAP)
        centre = x + width / 2
        parts.append(_path(f"M{middle:g} {y:g}", f"V{y + 4:g}", f"H{centre:g}", f"V{y + GAP:g}"))
        parts.append(f'<rect class="box" x="{x:g}" y="{y + GAP:g}" width="{width:g}" height="{HEIGHT}" rx="4"/>')
        parts.append(_text(centre, y + GAP + 17, word))
        if len(words) > 1:
            parts.append(_path(f"M{centre:g} {y + GAP + HEIGHT:g}", "v3", f"H{middle:g}"))
    return parts


def _map(marks: Marks, left: int, top: int) -> list[str]:
    cell = MAP / marks.side
    steps = [f"M{left + i * cell:.2f} {top}v{MAP}" for i in range(marks.side + 1)]
    steps += [f"M{left} {top + i * cell:.2f}h{MAP}" for i in range(marks.side + 1)]
    parts = [
        f'<rect class="cell" x="{left}" y="{top}" width="{MAP}" height="{MAP}"/>',
        f'<path class="grid" stroke-width="0.6" d="{"".join(steps)}"/>',
    ]
    shown = [("weak", marks.weak), ("key", marks.keys), ("query", frozenset({marks.query}))]
    for name, places in shown:
        for row, column, *size in sorted(places):
            side = cell * (size[0] if size else 1)
            inset = side * 0.14 if size else 0.3  # what is pooled stands apart, a square for each mean
            x, y, side = left + column * cell + inset, top + row * cell + inset, side - 2 * inset
            parts.append(f'<rect class="{name}" x="{x:.2f}" y="{y:.2f}" width="{side:.2f}" height="{side:.2f}"/>')
    if marks.weak:
        (top_row, low_row), (first, last) = (
            (min(places), max(places) + 1) for places in list(zip(*marks.weak, strict=True))[:2]
        )
        x, y, wide, high = (value * cell for value in (first, top_row, last - first, low_row - top_row))
        parts.append(
            f'<rect class="reach" stroke-width="1.5" x="{left + x:.2f}" y="{top + y:.2f}" width="{wide:.2f}" '
            f'height="{high:.2f}"/>'
        )
    for i, line in enumerate(_lines(marks.caption)):
        parts.append(_text(left, top + MAP + LINE * (i + 1), line, anchor="start"))
    return parts


def _lines(caption: str) -> list[str]:
    return textwrap.wrap(caption, CAPTION)
