"""The parts of a card about where weights are, under which licence, whether their links live, and whom to cite."""

from pathlib import PurePosixPath
from urllib.parse import urlparse

from vertebra.tools._cards.facts import Family, arxiv, full_name
from vertebra.tools._cards.links import Seen
from vertebra.tools._docs.parts import table


def weights(family: Family, seen: dict[str, Seen]) -> str:
    """A row for each name and tag: file, other places, size, hash, and when the link was last seen alive."""
    card, cells = family.card, []
    for row in family.rows:
        published = family.published(row)
        first, *mirrors = family.links(row)
        leading = first or next(iter(mirrors), "")  # its answer has columns of its own, those of others stand by them
        answer, known = _seen(leading, seen), family.has_weights(row)
        unknown = "not verified" if "weights_spdx" in published else "not stated"
        others = [f"[{_place(link)}]({link})" + ("" if link == leading else _said(link, seen)) for link in mirrors]
        if folder := family.folder(row):  # an answer of its own says nothing of a file in it
            others.append(f"[folder]({folder}){_said(folder, seen)}")
        cells.append(
            [
                f"`{full_name(row)}`",
                f"[{_place(first)}]({first})" if first else "no direct link" if known else "none public",
                ", ".join(others),
                (family.weights_licence(row) or unknown) if known else "",
                answer.size if leading else "",
                answer.said if leading else "",
                f"`{published['sha256']}`" if "sha256" in published else "",
            ]
        )
    names = ("model", "file", "other places", "licence stated", "MB", "last seen alive", "SHA-256")
    licence = f"Licence of the code: {card['licence']}. Licence of the weights: {card['weights_licence']}."
    checked = (
        "`vertebra make_cards --check-links` asks every link and writes what it saw into "
        "model_cards/links.csv; an empty cell is what is not known. Files are read without running anything in them. "
        "Places other than the first have their answer in brackets."
    )
    if any("sha256" in family.published(row) for row in family.rows):
        checked += " A file that is fetched from the first place and has another hash is refused."
    notes = [
        f"{licence} {card['licence_note']}",
        card.get("weights_note", ""),
        table(names, cells, left=len(names)),
        checked,
        heads(family, seen),
    ]
    return "\n\n".join(filter(None, notes))


def heads(family: Family, seen: dict[str, Seen]) -> str:
    """The authors' files of whole detectors and segmenters; nothing where no link to one is known."""
    cells = []
    for config, link in family.heads.items():
        answer = _seen(link, seen)
        cells.append([f"`{config}`", f"[{_place(link)}]({link})", answer.size, answer.said])
    if not cells:
        return ""
    names = ("the same row as", "file", "MB", "last seen alive")
    said = (
        "Whole detectors and segmenters of the authors, for their own code. `--cfg-options load_from=FILE` takes what "
        "fits of a file and says what does not; none of these was tried here."
    )
    return f"{said}\n\n{table(names, cells, left=len(names))}"


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


def _seen(link: str, seen: dict[str, Seen]) -> Seen:
    return seen.get(link) or Seen(link)


def _said(link: str, seen: dict[str, Seen]) -> str:
    """What a place answered, in brackets."""
    answer = _seen(link, seen)
    alive = answer.status == "alive"
    return f" (answered {answer.said})" if alive else f" ({answer.said})"


def _place(link: str) -> str:
    """What stands for a link: the file's name, or the site."""
    parts = urlparse(link)
    name = PurePosixPath(parts.path).name
    return name if "." in name and not parts.query else (parts.hostname or link).removeprefix("www.")
