"""Do the links of the cards live? `make_cards --check-links` asks each and keeps what it saw in model_cards/links.csv.

A link is alive when it answers with success, and, where it should be a file of weights, with no web page: shares whose
file is gone answer with one. Nothing is downloaded but the head of the answer.
"""

import csv
import datetime
import http.client
import io
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from vertebra import __version__
from vertebra.backbones._files import write_whole
from vertebra.tools._results import read

NOT_CHECKED = "not checked"
_FILES = (".pth", ".tar", ".safetensors", ".pt", ".bin")
_SIGN_IN = {"accounts.google.com", "login.live.com", "login.microsoftonline.com", "login.microsoft.com"}
_SECONDS, _AT_ONCE, _PATIENCE = 20, 8, 3
NO_HOST = "no host of this name", ""
"""What a link answers whose host has no address; without a network that is so of every host."""


@dataclass(frozen=True)
class Seen:
    """What a link answered: `status` when last asked, `bytes` of the file, `alive` the date of its last success."""

    url: str
    status: str = NOT_CHECKED
    bytes: str = ""
    checked: str = ""
    alive: str = ""

    @property
    def said(self) -> str:
        """For a card: the date last seen alive, what it answered since, or that nobody could ask."""
        if not self.checked:
            return NOT_CHECKED
        if self.alive == self.checked:
            return self.alive
        return f"{self.alive or 'never'}; {self.status} on {self.checked}"

    @property
    def size(self) -> str:
        """In 1e6 bytes; nothing where it was not told."""
        return f"{int(self.bytes) / 1e6:.1f}" if self.bytes else ""


def found_in(text: str) -> list[str]:
    """The links of a Markdown page, those of its front matter and its BibTeX too."""
    return [link.rstrip(".,;:") for link in re.findall(r"https?://[^\s<>()\[\]{}\"'`]+", text)]


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


def check(links: Sequence[str], before: Mapping[str, Seen]) -> tuple[list[Seen], list[str]]:
    """Ask every link, several at a time.

    Returns:
        What is known of every link, and the links whose host cannot be reached: of these what was seen before stays
        as it is.
    """
    answered: dict[str, list[bool]] = {}

    def ask_patiently(link: str) -> tuple[str, str] | None:
        """A host that has let several links wait, and answered none, is asked no more."""
        said = answered.setdefault(link.removeprefix("https://").removeprefix("http://").partition("/")[0], [])
        answer = None if len(said) >= _PATIENCE and not any(said) else ask(link)
        said.append(answer is not None)
        return answer

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(ask_patiently, links))
    if all(answer in (None, NO_HOST) for answer in answers):
        answers = [None] * len(answers)
    today = datetime.date.today().isoformat()
    found, unreached = [], []
    for link, answer in zip(links, answers, strict=True):
        old = before.get(link) or Seen(link)
        if answer is None:
            found.append(old)
            unreached.append(link)
            continue
        status, size = answer
        alive = today if status == "alive" else old.alive
        found.append(Seen(link, status, size or old.bytes, today, alive))
    return found, unreached


def ask(link: str) -> tuple[str, str] | None:
    """`("alive", bytes)`, or `(what is wrong, "")`; without a web server `NO_HOST` or None, which may tell nothing."""
    said = None
    for method in ("HEAD", "GET"):  # some hosts answer the first one with an error
        try:
            request = Request(
                link, method=method, headers={"User-Agent": f"vertebra/{__version__}", "Range": "bytes=0-0"}
            )
            with urlopen(request, timeout=_SECONDS) as answer:
                return _judge(link, answer.url, answer.headers)
        except HTTPError as error:
            said = f"HTTP {error.code}", ""
            if error.code in (404, 410):
                break
        except http.client.InvalidURL:
            return "no address", ""
        except URLError as error:
            if isinstance(error.reason, socket.gaierror) and error.reason.errno == socket.EAI_NONAME:
                return NO_HOST
        except (OSError, http.client.HTTPException):
            continue  # no route, a proxy that refuses, a broken certificate; or a host that hangs up on HEAD only
        except ValueError:
            return "no address", ""
    return said


def _judge(link: str, reached: str, headers: Any) -> tuple[str, str]:
    if (urlparse(reached).hostname or "") in _SIGN_IN:
        return "a page to sign in", ""
    kind = headers.get("Content-Type", "").partition(";")[0]
    if kind == "text/html" and _is_file(link):
        return "a web page in the file's place", ""
    total = headers.get("Content-Range", "").rpartition("/")[2]
    size = total or headers.get("Content-Length", "")
    return "alive", size if size.isdecimal() and kind != "text/html" else ""


def _is_file(link: str) -> bool:
    """Whether a link should lead to a file and not to a page about one."""
    parts = urlparse(link)
    return parts.path.lower().endswith((*_FILES, "/root/content")) or "dl=1" in parts.query.split("&")
