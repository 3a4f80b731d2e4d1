"""docs/zoo/index.html in a headless Chromium: it sorts, filters and plots, and fits a narrow screen."""

import html
import json
import shutil
import subprocess
from typing import Any

import pytest
from html_reader import Reader, read
from vertebra.tools._cards import zoo
from vertebra.tools._cards.facts import ROOT, families

PAGE = ROOT / "docs" / "zoo" / "index.html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FILTERED = "#sort=top1&order=descending&family=van,cswin&params=20..90&axis=gflops"
VIEWS = {
    "filtered": (1200, FILTERED, ""),
    "clicked": (
        1200,
        "",
        """const find = (words) => document.querySelector(words);
        find("thead button[value=params]").click();
        find("thead button[value=params]").click();
        const low = find("input[name=top1-low]");
        low.value = "87";
        low.dispatchEvent(new Event("input", { bubbles: true }));""",
    ),
    "skipped": (
        1200,
        "#sort=top1&order=descending",
        """document.querySelector(".skip").click();
        document.title = `${location.hash} ${document.activeElement.id}`;""",
    ),
    "narrow": (400, "", "document.title = `${document.documentElement.scrollWidth} ${innerWidth}`;"),
}
"""Of the page: how many pixels wide, the end of its address, and what is done in it."""

COLLECT = """<script>
const found = {};
addEventListener("message", ({ data: [name, text] }) => {
    found[name] = text;
    document.querySelector("pre").textContent = JSON.stringify(found);
});
</script>"""


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """The documents of all views as one headless Chromium leaves them, each in a frame of its own."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser on this machine ({', '.join(BROWSERS)}); Debian has it as chromium")
    folder, frames = tmp_path_factory.mktemp("zoo"), []
    for name, (width, address, acts) in VIEWS.items():
        send = f"setTimeout(() => parent.postMessage(['{name}', document.documentElement.outerHTML], '*'), 500);"
        made = PAGE.read_text(encoding="utf-8").replace("</body>", f"<script>{acts}\n{send}</script></body>")
        (folder / f"{name}.html").write_text(made, encoding="utf-8")
        frames.append(f'<iframe src="{html.escape(name + ".html" + address)}" width="{width}" height="900"></iframe>')
    (folder / "all.html").write_text(f"<!doctype html><pre></pre>{COLLECT}{''.join(frames)}", encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1300,900", "--virtual-time-budget=3000", "--dump-dom", (folder / "all.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (sent,) = read(done.stdout).all("pre")
    return {name: read(text) for name, text in json.loads(sent["text"]).items()}


@pytest.fixture(scope="module")
def models() -> list[dict[str, Any]]:
    return zoo.models(families())


def shown(page: Reader) -> list[str]:
    return [each["text"] for each in page.all("th") if "tbody" in each["in"]]


def test_a_browser_sorts_filters_and_plots(views: dict[str, Reader], models: list[dict[str, Any]]) -> None:
    found = views["filtered"]
    wanted = [m for m in models if m["family"] in ("van", "cswin") and 20 <= m["params"] <= 90]
    known = [m for m in wanted if m["top1"] is not None]
    assert shown(found)[: len(known)] == [m["name"] for m in sorted(known, key=lambda m: -m["top1"])]
    assert len(shown(found)) == len(wanted)
    (count,) = [each["text"] for each in found.elements if each.get("id") == "count"]
    assert count == f"{len(wanted)} of {len(models)} models shown"
    marks = [each for each in found.all("title") if "svg" in each["in"]]
    assert len(marks) == len(known)
    (sorted_by,) = [each for each in found.all("th") if each.get("aria-sort") == "descending"]
    assert sorted_by["text"] == "top-1, %"


def test_clicks_and_typed_numbers_change_the_page(views: dict[str, Reader], models: list[dict[str, Any]]) -> None:
    best = [m for m in models if (m["top1"] or 0) >= 87]
    assert shown(views["clicked"]) == [m["name"] for m in sorted(best, key=lambda m: -m["params"])]


def test_the_way_to_the_table_keeps_the_view(views: dict[str, Reader]) -> None:
    assert views["skipped"].all("title")[0]["text"] == "#sort=top1&order=descending table"


def test_a_narrow_screen_does_not_scroll_sideways(views: dict[str, Reader]) -> None:
    width, screen = map(int, views["narrow"].all("title")[0]["text"].split())
    assert width <= screen == VIEWS["narrow"][0]
