"""docs/zoo/index.html in a headless Chromium: it sorts, filters and plots, by keys alone too, in light and in dark."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSERS, Page, opened
from contrast import contrast
from vertebra.tools._cards import zoo
from vertebra.tools._cards.facts import ROOT, families, full_name
from vertebra.tools._cards.speed import Speed

PAGE = (ROOT / "docs" / "zoo" / "index.html").as_uri()
FILTERED = "#sort=top1&order=descending&family=van,cswin&params=20..90&axis=gflops"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("zoo")) as found:
        if found is None:
            pytest.skip(f"no browser on this machine ({', '.join(BROWSERS)}); Debian has it as chromium")
        yield found


@pytest.fixture(scope="module")
def models() -> list[dict[str, Any]]:
    return zoo.models(families())


def shown(page: Page) -> Sequence[str]:
    return page.run("[...document.querySelectorAll('tbody th')].map((cell) => cell.textContent)")


def focused(page: Page) -> str:
    return page.run("document.activeElement.outerHTML")


def reach(page: Page, wanted: str) -> None:
    """Press Tab until what fits a selector has the focus, as often as there are places for it."""
    for _ in range(80):
        page.press("Tab")
        if page.run(f"document.activeElement.matches({wanted!r})"):
            return
    pytest.fail(f"Tab does not reach {wanted}")


def test_a_browser_sorts_filters_and_plots(page: Page, models: list[dict[str, Any]]) -> None:
    page.open(PAGE + FILTERED)
    wanted = [m for m in models if m["family"] in ("van", "cswin") and 20 <= m["params"] <= 90]
    known = [m for m in wanted if m["top1"] is not None]
    assert shown(page)[: len(known)] == [m["name"] for m in sorted(known, key=lambda m: -m["top1"])]
    assert len(shown(page)) == len(wanted)
    count = f"{len(wanted)} of {len(models)} models shown"
    assert page.run("document.getElementById('count').textContent") == count
    assert page.run("document.querySelectorAll('svg title').length") == len(known)
    assert page.run("document.querySelector('th[aria-sort=descending]').textContent") == "top-1, %"


def test_keys_alone_sort_filter_and_reset(page: Page, models: list[dict[str, Any]]) -> None:
    page.open(PAGE)
    reach(page, "input[name=top1-low]")
    page.type("87")
    reach(page, "thead button[value=params]")
    page.press("Enter", times=2)
    best = [m for m in models if (m["top1"] or 0) >= 87]
    assert shown(page) == [m["name"] for m in sorted(best, key=lambda m: -m["params"])]
    assert page.run("document.activeElement.value") == "params"  # the focus stays where it was
    assert page.run("location.hash") == "#sort=params&order=descending&top1=87.."
    page.open(PAGE)
    reach(page, "input[name=model]")
    page.type("tiny 384")
    named = [m["name"] for m in models if "tiny" in m["name"] and "384" in m["name"]]
    assert shown(page) == named != []
    page.open(PAGE + "#family=van")
    reach(page, "input[value=cswin]")
    page.press("Space")
    left = shown(page)
    assert {m["family"] for m in models if m["name"] in left} == {"van", "cswin"}
    reach(page, "button[type=reset]")
    page.press("Enter")
    assert len(shown(page)) == len(models)


def test_keys_choose_the_axis_and_measured_speeds_are_plotted(
    page: Page, models: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {model["name"]: Speed(10.0 + i, "CPU: some.") for i, model in enumerate(models[:20])}
    monkeypatch.setattr(zoo, "speed_of", lambda row, kind, _: rates.get(full_name(row)) if kind == "cpu" else None)
    (tmp_path / "zoo.html").write_text(zoo.page(families()), encoding="utf-8")
    page.open((tmp_path / "zoo.html").as_uri())
    reach(page, "#axis")
    page.type("images")
    assert page.run("document.getElementById('axis').selectedOptions[0].textContent") == "images a second, CPU"
    assert page.run("location.hash") == "#axis=cpu"
    marks = page.run("[...document.querySelectorAll('#picture title')].map((title) => title.textContent)")
    known = [model for model in models[:20] if model["top1"] is not None]
    assert len(marks) == len(known) > 10
    for model in known:
        assert any(model["name"] in mark for mark in marks), model["name"]
    gpu = page.run("document.querySelector('#axis option[value=gpu]').outerHTML")
    assert gpu == '<option value="gpu" disabled="">images a second, GPU (not measured)</option>'
    page.open((tmp_path / "zoo.html").as_uri() + "#axis=gpu")
    assert page.run("document.querySelectorAll('#picture title').length") == 0


def test_the_way_to_the_table_comes_first_and_keeps_the_view(page: Page) -> None:
    page.open(PAGE + "#sort=top1&order=descending")
    page.press("Tab")
    assert 'class="skip"' in focused(page)
    assert page.run("document.querySelector('.skip').getBoundingClientRect().left") >= 0
    page.press("Enter")
    assert page.run("document.activeElement.id") == "table"
    assert page.run("location.hash") == "#sort=top1&order=descending"


def test_whatever_has_the_focus_shows_it(page: Page) -> None:
    page.open(PAGE)
    for wanted in (".skip", "input[type=checkbox]", "input[name=params-low]", "#axis", "#table", "thead button"):
        reach(page, wanted)
        assert page.run("getComputedStyle(document.activeElement).outlineWidth") == "3px", wanted


def test_a_screen_reader_is_told_what_every_part_is(page: Page, models: list[dict[str, Any]]) -> None:
    page.open(PAGE + FILTERED)
    told = page.spoken()
    roles = {role for role, _ in told}
    assert {"banner", "main", "form", "table", "columnheader", "rowheader", "checkbox", "button", "combobox"} <= roles
    named = "button checkbox combobox searchbox spinbutton link columnheader rowheader table"
    for role in named.split():
        names = [name for found, name in told if found == role]
        assert names, role
        assert all(name.strip() for name in names), role
    (said,) = [name for role, name in told if role in ("image", "img") and "models: from" in name]
    assert said.startswith(f"{page.run('document.querySelectorAll(`#picture title`).length')} models: from ")
    assert len([1 for role, _ in told if role == "rowheader"]) == len(shown(page)) < len(models)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_marks_stand_out_in_light_and_in_dark(dark: bool, page: Page) -> None:
    page.open(PAGE, dark=dark)
    ground, *inks = page.run(
        """(() => {
            const colour = (words, key) => getComputedStyle(document.querySelector(words))[key];
            const text = ["h1", "#said", "#count", "legend", "tbody th", "tbody td", "caption", "tbody a"];
            const marks = [...document.querySelectorAll("#picture .mark")];
            const fills = new Set(marks.map((mark) => getComputedStyle(mark).fill));
            return [colour("body", "backgroundColor"), text.map((words) => colour(words, "color")), [...fills]];
        })()"""
    )
    assert (_hexed(ground) < "#444444") is dark
    for colours, least in zip(inks, (4.5, 3.0), strict=True):
        assert len(colours) >= 8
        for colour in colours:
            assert contrast(_hexed(colour), _hexed(ground)) >= least, colour


def _hexed(colour: str) -> str:
    """#rrggbb of `rgb(1, 2, 3)`."""
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def test_a_narrow_screen_does_not_scroll_sideways(page: Page) -> None:
    page.open(PAGE, width=400)
    assert page.run("document.documentElement.scrollWidth") <= page.run("innerWidth") == 400
