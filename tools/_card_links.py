"""Do the links of the cards live? `make_cards --check-links` asks each and keeps what it saw in model_cards/links.csv.

A link is alive when it answers with success, and, where it should be a file of weights, with no web page: shares whose
file is gone answer with one. Nothing is downloaded but the head of the answer.
"""

import csv
import datetime
import http.client
import io
import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from vertebra import __version__
from vertebra.backbones._files import write_whole
from vertebra.tools._results import read
from vertebra.tools.list import Row

NOT_CHECKED = "not checked"
_FILES = (".pth", ".tar", ".safetensors", ".pt", ".bin")
_SECONDS, _AT_ONCE = 20, 8


@dataclass(frozen=True)
class Seen:
    """What a link answered: `status` when last asked, `bytes` of the file, `alive` the date of its last success."""

    url: str
    status: str = ""
    bytes: str = ""
    checked: str = ""
    alive: str = ""

    @property
    def said(self) -> str:
        """For a card: the date last seen alive, what it answers since, or that nobody asked."""
        if not self.checked:
            return f"{self.alive}, since then {NOT_CHECKED}" if self.alive else NOT_CHECKED
        if self.alive == self.checked:
            return self.alive
        return f"{self.alive or 'never'}; {self.status} on {self.checked}"

    @property
    def size(self) -> str:
        """In 1e6 bytes; nothing where it was not told."""
        return f"{int(self.bytes) / 1e6:.1f}" if self.bytes else ""


class NoNetworkError(OSError):
    """Not one name of a host could be resolved, or no host reached."""


def weights_links(row: Row, published: Mapping[str, Any]) -> list[str]:
    """Of a model's weights: the link that they load from, "" where there is none, and then all other places."""
    return [row.url or "", *published.get("mirrors", [])]


def load(path: Path) -> dict[str, Seen]:
    """The rows of a links.csv by link; empty where there is no such file."""
    names = [field.name for field in fields(Seen)]
    return {row["url"]: Seen(**{name: row[name] for name in names}) for row in read(path)}


def save(path: Path, seen: Iterable[Seen]) -> None:
    """Write them, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Seen)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in seen)
    write_whole(path, text.getvalue().encode())


def check(links: Sequence[str], before: Mapping[str, Seen]) -> list[Seen]:
    """Ask every link, several at a time.

    What was seen before stays where nothing can be learnt: without a network each link is `not checked`, with the date
    that it was last alive.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(ask, links))
    if all(answer is None for answer in answers):
        return [replace(before.get(link, Seen(link)), status=NOT_CHECKED, checked="") for link in links]
    today = datetime.date.today().isoformat()
    found = []
    for link, answer in zip(links, answers, strict=True):
        old = before.get(link, Seen(link))
        status, size = answer or ("no answer", "")
        alive = today if status == "alive" else old.alive
        found.append(Seen(link, status, size or old.bytes, today, alive))
    return found


def ask(link: str) -> tuple[str, str] | None:
    """`("alive", bytes)`, or `(what is wrong, "")`; None where the host cannot be reached."""
    for method in ("HEAD", "GET"):  # some hosts answer the first one with an error
        try:
            request = Request(
                link, method=method, headers={"User-Agent": f"vertebra/{__version__}", "Range": "bytes=0-0"}
            )
            with urlopen(request, timeout=_SECONDS) as answer:
                return _judge(link, answer.headers)
        except HTTPError as error:
            if method == "GET" or error.code in (404, 410):
                return f"HTTP {error.code}", ""
        except URLError as error:
            return (
                None
                if isinstance(error.reason, (socket.gaierror, ConnectionError, TimeoutError))
                else (_why(error), "")
            )
        except (OSError, http.client.HTTPException, ValueError) as error:
            return _why(error), ""
    return None


def _judge(link: str, headers: Any) -> tuple[str, str]:
    kind = headers.get("Content-Type", "").partition(";")[0]
    if kind == "text/html" and urlparse(link).path.lower().endswith(_FILES):
        return "a web page in the file's place", ""
    total = headers.get("Content-Range", "").rpartition("/")[2]
    size = total or headers.get("Content-Length", "")
    return "alive", size if size.isdecimal() and kind != "text/html" else ""


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).splitlines()[0] if str(reason) else type(error).__name__
