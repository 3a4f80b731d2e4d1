"""`make_cards --check-links`: what a link answers is told apart, kept, and never lost where there is no network."""

import datetime
import errno
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request

import pytest
from vertebra.tools import make_cards
from vertebra.tools._cards import links
from vertebra.tools._cards.links import NOT_CHECKED, Seen, ask, check, found_in, load, save
from vertebra.tools._docs.detection import sources_of

TODAY = datetime.date.today().isoformat()


class Site(BaseHTTPRequestHandler):
    """A file, shares whose file is gone or wants a sign-in, hosts that refuse HEAD or hang up on it, and a page."""

    def do_HEAD(self) -> None:
        if self.path == "/no_head.pth":
            self.send_error(405)
        elif self.path == "/hangs_up.pth":
            self.close_connection = True
        else:
            self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        if self.path == "/gone.pth":
            self.send_error(404)
            return
        if self.path == "/view":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/signin")
            self.end_headers()
            return
        self.send_response(206 if self.path == "/no_head.pth" else 200)
        html = self.path in ("/share/lost.pth", "/page", "/signin", "/shares/x/root/content", "/f/x/?dl=1")
        self.send_header("Content-Type", "text/html; charset=utf-8" if html else "application/octet-stream")
        if self.path == "/no_head.pth":
            self.send_header("Content-Range", "bytes 0-0/4321")
            self.send_header("Content-Length", "1")
        elif self.path != "/unknown_size.pth":
            self.send_header("Content-Length", "1234")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "ask", lambda link: None)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/file.pth", ("alive", "1234")),
        ("/no_head.pth", ("alive", "4321")),
        ("/unknown_size.pth", ("alive", "")),
        ("/page", ("alive", "")),
        ("/gone.pth", ("HTTP 404", "")),
        ("/share/lost.pth", ("a web page in the file's place", "")),
        ("/shares/x/root/content", ("a web page in the file's place", "")),
        ("/f/x/?dl=1", ("a web page in the file's place", "")),
        ("/view", ("a page to sign in", "")),
        ("/hangs_up.pth", ("alive", "1234")),
    ],
)
def test_an_answer_is_told(site: str, path: str, answer: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_SIGN_IN", {"localhost"})
    assert ask(f"{site}{path}") == answer


def test_a_host_that_cannot_be_reached_is_no_answer(site: str) -> None:
    assert ask("http://127.0.0.1:9/file.pth") is None
    assert ask("http://[broken/file.pth") == ("no address", "")


@pytest.mark.parametrize(
    "error",
    [
        URLError(OSError(errno.ENETUNREACH, "Network is unreachable")),
        URLError(OSError(errno.EHOSTUNREACH, "No route to host")),
        URLError(ssl.SSLCertVerificationError("certificate verify failed")),
        OSError("Tunnel connection failed: 403 Forbidden"),
        TimeoutError("timed out"),
        http.client.RemoteDisconnected("Remote end closed connection without response"),
    ],
    ids=str,
)
def test_only_an_answer_of_a_web_server_is_one(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: object, timeout: float) -> None:
        raise error

    monkeypatch.setattr(links, "urlopen", fail)
    assert ask("https://host/file.pth") is None


@pytest.mark.parametrize("code", [403, 405, 500])
def test_a_refusal_is_an_answer_though_the_second_try_gets_none(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_and_hang(request: Request, timeout: float) -> None:
        if request.get_method() == "HEAD":
            raise HTTPError(request.full_url, code, "refused", Message(), None)
        raise TimeoutError("timed out")

    monkeypatch.setattr(links, "urlopen", refuse_and_hang)
    assert ask("https://host/file.pth") == (f"HTTP {code}", "")


@pytest.mark.parametrize("host", ["accounts.google.com", "login.live.com"])
def test_pages_to_sign_in_of_the_shares_in_the_cards_are_known(host: str) -> None:
    assert links._judge("https://host/file.pth", f"https://{host}/x", {}) == ("a page to sign in", "")


def test_the_date_last_alive_outlives_a_failure(site: str) -> None:
    old = {f"{site}/gone.pth": Seen(f"{site}/gone.pth", "alive", "77", "2026-01-02", "2026-01-02")}
    (gone, alive), unreached = check([f"{site}/gone.pth", f"{site}/file.pth"], old)
    assert unreached == []
    assert gone == Seen(f"{site}/gone.pth", "HTTP 404", "77", TODAY, "2026-01-02")
    assert gone.said == f"2026-01-02; HTTP 404 on {TODAY}"
    assert alive == Seen(f"{site}/file.pth", "alive", "1234", TODAY, TODAY)
    assert alive.said == TODAY


def test_without_a_network_nothing_is_claimed_and_nothing_lost(no_host: None) -> None:
    before = [
        Seen("a", "alive", "77", "2026-01-02", "2026-01-02"),
        Seen("b", "HTTP 404", "", "2026-01-03", "2026-01-01"),
    ]
    found, unreached = check(["a", "b", "c"], {each.url: each for each in before})
    assert found == [*before, Seen("c")]
    assert [each.said for each in found] == ["2026-01-02", "2026-01-01; HTTP 404 on 2026-01-03", NOT_CHECKED]
    assert unreached == ["a", "b", "c"]


def test_a_host_that_is_gone_is_told_where_another_answers_and_not_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_no_host(request: Request, timeout: float) -> None:
        raise URLError(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))

    monkeypatch.setattr(links, "urlopen", find_no_host)
    assert check(["https://gone/a.pth"], {}) == ([Seen("https://gone/a.pth")], ["https://gone/a.pth"])
    answered = {"https://gone/a.pth": links.NO_HOST, "https://there/b.pth": ("alive", "5")}
    monkeypatch.setattr(links, "ask", answered.get)
    (gone, _), unreached = check([*answered], {})
    assert unreached == []
    assert gone.said == f"never; no host of this name on {TODAY}"


def test_a_host_that_never_answers_is_not_waited_for_with_every_link(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(link: str) -> tuple[str, str] | None:
        asked.append(link)
        return ("alive", "1") if link == "https://moody/1" else None

    monkeypatch.setattr(links, "_AT_ONCE", 1)
    monkeypatch.setattr(links, "ask", answer)
    silent, moody = ([f"https://{host}/{i}" for i in range(6)] for host in ("silent", "moody"))
    assert check([*silent, *moody], {})[1] == [*silent, moody[0], *moody[2:]]
    assert asked == [*silent[:3], *moody]


def test_a_host_that_cannot_be_reached_does_not_touch_what_was_seen_of_it(site: str) -> None:
    dead = Seen("http://127.0.0.1:9/file.pth", "HTTP 404", "", "2026-01-03", "2026-01-01")
    found, unreached = check([dead.url, f"{site}/file.pth"], {dead.url: dead})
    assert found[0] == dead
    assert unreached == [dead.url]
    assert found[1].status == "alive"


def test_links_are_kept_as_they_are(tmp_path: Path) -> None:
    seen = [Seen("a,b", "HTTP 404", "", "2026-01-02", ""), Seen("c")]
    save(tmp_path / "links.csv", seen)
    assert [*load(tmp_path / "links.csv").values()] == seen
    assert load(tmp_path / "none.csv") == {}


def test_links_are_found_in_front_matter_prose_and_bibtex() -> None:
    text = "source:\n  url: https://a.org/x\n---\n[b](https://b.org/y?z=1), see https://c.org. `https://d.org`\n  url = {https://e.org},"
    assert found_in(text) == [
        "https://a.org/x",
        "https://b.org/y?z=1",
        "https://c.org",
        "https://d.org",
        "https://e.org",
    ]


def test_every_link_of_every_card_is_asked_and_the_outcome_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_cards, "LINKS", tmp_path / "links.csv")
    answers = {"https://github.com/rayleizhu/BiFormer": None, "https://github.com/ysj9909/SHViT": ("HTTP 404", "")}
    monkeypatch.setattr(links, "ask", lambda link: answers.get(link, ("alive", "")))
    make_cards.check_links()
    kept = {*load(tmp_path / "links.csv")}
    said = capsys.readouterr().out
    assert f"{len(kept) - 2} of {len(kept) - 1} links are alive" in said
    assert f"ysj9909/SHViT: never; HTTP 404 on {TODAY}" in said
    assert "rayleizhu/BiFormer: its host cannot be reached from here" in said
    for family in make_cards.families():
        assert {family.card["code"], family.paper} <= kept
        for row in family.rows:
            assert {*filter(None, [*family.links(row), family.folder(row)])} <= kept
            assert {link for _, link in family.sources(row)} <= kept
        assert {*family.heads.values()} <= kept
        for leaf in [*family.detectors, *family.segmenters]:
            assert {link for _, link in sources_of(leaf)} <= kept


def test_without_a_network_the_file_of_links_stays(
    no_host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_cards, "LINKS", tmp_path / "links.csv")
    save(tmp_path / "links.csv", [Seen("an old link", "HTTP 404", "", "2026-01-02", "")])
    make_cards.check_links()
    assert "not checked, no host can be reached" in capsys.readouterr().out
    assert [*load(tmp_path / "links.csv")] == ["an old link"]
