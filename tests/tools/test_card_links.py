"""`make_cards --check-links`: what a link answers is told apart, kept, and never lost where there is no network."""

import datetime
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from vertebra.tools import _card_links, make_cards
from vertebra.tools._card_links import NOT_CHECKED, Seen, ask, check, load, save

TODAY = datetime.date.today().isoformat()


class Site(BaseHTTPRequestHandler):
    """A file, a share whose file is gone, a host that refuses HEAD, a page, and nothing else."""

    def do_HEAD(self) -> None:
        if self.path == "/no_head.pth":
            self.send_error(405)
        else:
            self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        if self.path == "/gone.pth":
            self.send_error(404)
            return
        self.send_response(206 if self.path == "/no_head.pth" else 200)
        html = self.path in ("/share/lost.pth", "/page")
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
    monkeypatch.setattr(_card_links, "ask", lambda link: None)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/file.pth", ("alive", "1234")),
        ("/no_head.pth", ("alive", "4321")),
        ("/unknown_size.pth", ("alive", "")),
        ("/page", ("alive", "")),
        ("/gone.pth", ("HTTP 404", "")),
        ("/share/lost.pth", ("a web page in the file's place", "")),
    ],
)
def test_an_answer_is_told(site: str, path: str, answer: tuple[str, str]) -> None:
    assert ask(f"{site}{path}") == answer


def test_a_host_that_cannot_be_reached_is_no_answer(site: str) -> None:
    assert ask("http://127.0.0.1:9/file.pth") is None
    assert ask("http://[broken/file.pth") not in (None, ("alive", ""))


def test_the_date_last_alive_outlives_a_failure(site: str) -> None:
    old = {f"{site}/gone.pth": Seen(f"{site}/gone.pth", "alive", "77", "2026-01-02", "2026-01-02")}
    gone, alive = check([f"{site}/gone.pth", f"{site}/file.pth"], old)
    assert gone == Seen(f"{site}/gone.pth", "HTTP 404", "77", TODAY, "2026-01-02")
    assert gone.said == f"2026-01-02; HTTP 404 on {TODAY}"
    assert alive == Seen(f"{site}/file.pth", "alive", "1234", TODAY, TODAY)
    assert alive.said == TODAY


def test_without_a_network_nothing_is_claimed_and_nothing_lost(no_host: None) -> None:
    known, new = check(["a", "b"], {"a": Seen("a", "alive", "77", "2026-01-02", "2026-01-02")})
    assert known == Seen("a", NOT_CHECKED, "77", "", "2026-01-02")
    assert known.said == "2026-01-02, since then not checked"
    assert new.said == NOT_CHECKED


def test_links_are_kept_as_they_are(tmp_path: Path) -> None:
    seen = [Seen("a,b", "HTTP 404", "", "2026-01-02", ""), Seen("c")]
    save(tmp_path / "links.csv", seen)
    assert [*load(tmp_path / "links.csv").values()] == seen
    assert load(tmp_path / "none.csv") == {}


def test_every_link_of_every_card_is_asked_and_the_outcome_said(
    no_host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_cards, "LINKS", tmp_path / "links.csv")
    make_cards.check_links()
    links = {*load(tmp_path / "links.csv")}
    assert "not checked, no host can be reached" in capsys.readouterr().out
    for family in make_cards.families():
        assert {family.card["code"], family.paper} <= links
        for row in family.rows:
            assert {*filter(None, _card_links.weights_links(row, family.published(row)))} <= links
