"""Write the model cards, their index, their pictures and the zoo page, from cards.yml, the configs and results/."""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vertebra.backbones._errors import UserError
from vertebra.backbones._files import write_whole
from vertebra.tools._cards import links, zoo
from vertebra.tools._cards.facts import LINKS, ROOT, families
from vertebra.tools._cards.figures import figure
from vertebra.tools._cards.index import index
from vertebra.tools._cards.page import page
from vertebra.tools._common import make_parser, run_tool

STALE = 1
"""Exit code of --check where a page is not what it would be."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `make_cards`."""
    parser = make_parser("make_cards", __doc__ or "", "vertebra make_cards --check")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--check", action="store_true", help="write nothing; say which pages are stale, by exit code too"
    )
    kinds.add_argument(
        "--check-links", action="store_true", help="ask every link first, and keep what it saw in model_cards/links.csv"
    )
    return parser


def pages() -> dict[Path, str]:
    """Every generated file, below the root of the clone, and what it should hold."""
    seen = links.load(LINKS)
    found = {}
    for family in families():
        found[Path("model_cards") / f"{family.key}.md"] = page(family, seen)
        found[Path("docs/figures") / f"{family.key}.svg"] = figure(family.key, family.title)
    found[Path("model_cards/README.md")] = index(families())
    found[Path("docs/zoo/index.html")] = zoo.page(families())
    return found


def stale(wanted: Mapping[Path, str]) -> list[Path]:
    """Of these files those that are missing or hold something else."""
    return [path for path, text in wanted.items() if _held(ROOT / path) != text]


def check_links() -> None:
    """Ask every link of the cards and write links.csv anew."""
    texts = [text for path, text in pages().items() if path.suffix == ".md"]
    asked = dict.fromkeys(link for text in texts for link in links.found_in(text))
    seen, unreached = links.check(list(asked), links.load(LINKS))
    if len(unreached) == len(seen):
        print(f"{len(seen)} links: not checked, no host can be reached from here; what was seen before stays")
        return
    links.save(LINKS, seen)
    answered = [each for each in seen if each.url not in unreached]
    dead = [each for each in answered if each.status != "alive"]
    print(f"{len(answered) - len(dead)} of {len(answered)} links are alive")
    for each in dead:
        print(f"  {each.url}: {each.said}")
    for link in unreached:
        print(f"  {link}: its host cannot be reached from here")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    if not (ROOT / "docs").is_dir():
        raise UserError(
            f"make_cards writes pages in a clone, and {ROOT} has no folder docs: it is an installed package"
        )
    if args.check_links:
        check_links()
    wanted = pages()
    old = stale(wanted)
    if args.check:
        print(
            "\n".join([*(f"stale: {path}" for path in old), "vertebra make_cards writes it anew" if old else "current"])
        )
        return STALE if old else 0
    for path in old:
        write_whole(ROOT / path, wanted[path].encode())
        print(f"wrote {path}")
    if not old:
        print("all pages are current")
    return 0


def _held(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(run_tool(main))
