"""The parts of a card about where weights are, under which licence, whether their links live, and whom to cite."""

from pathlib import PurePosixPath
from urllib.parse import urlparse

from vertebra.tools._card_facts import Family, arxiv, full_name
from vertebra.tools._card_links import Seen, weights_links
from vertebra.tools._doc_parts import table


def weights(family: Family, seen: dict[str, Seen]) -> str:
    """A row for each name and tag: file, other places, size, hash, and when the link was last seen alive."""
    card, cells = family.card, []
    for row in family.rows:
        published = family.published(row)
        first, *mirrors = weights_links(row, published)
        answer = seen.get(first) or Seen(first)
        others = ", ".join(f"[{_place(link)}]({link}){_dead(seen.get(link))}" for link in mirrors)
        cells.append(
            [
                f"`{full_name(row)}`",
                f"[{_place(first)}]({first})" if first else "none public" if not mirrors else "no direct link",
                others,
                answer.size if first else "",
                answer.said if first else "",
                f"`{published['sha256']}`" if "sha256" in published else "",
            ]
        )
    names = ("model", "file", "other places", "MB", "last seen alive", "SHA-256")
    licence = f"Licence of the code: {card['licence']}. Licence of the weights: {card['weights_licence']}."
    checked = (
        "`vertebra make_cards --check-links` asks every link and writes what it saw into "
        "model_cards/links.csv; an empty cell is what is not known. Files are read without running anything in them, "
        "and one with another hash than the one given is refused."
    )
    notes = [
        f"{licence} {card['licence_note']}",
        card.get("weights_note", ""),
        table(names, cells, left=len(names)),
        checked,
    ]
    return "\n\n".join(filter(None, notes))


def citation(family: Family) -> str:
    """BibTeX of the paper."""
    paper = family.card["paper"]
    *_, last = paper["authors"].split(", ")[0].split()
    kind = "article" if "journal" in paper else "inproceedings" if "venue" in paper else "misc"
    fields = {
        "title": f"{{{paper['title']}}}",
        "author": paper["authors"].replace(", ", " and "),
        "year": str(paper.get("published", paper["year"])),
        "journal": paper.get("journal"),
        "booktitle": paper.get("venue"),
        "doi": paper.get("doi"),
        "eprint": paper["arxiv"],
        "archivePrefix": "arXiv",
        "url": arxiv(paper["arxiv"]),
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join(["```bibtex", f"@{kind}{{{last.lower()}{paper['year']}{family.key},", *lines, "}", "```"])


def _place(link: str) -> str:
    """What stands for a link: the file's name, or the site."""
    parts = urlparse(link)
    name = PurePosixPath(parts.path).name
    return name if "." in name and not parts.query else (parts.hostname or link).removeprefix("www.")


def _dead(answer: Seen | None) -> str:
    return f" ({answer.said})" if answer and (answer.checked or answer.alive) else ""
