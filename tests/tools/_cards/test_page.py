"""Model cards say what cards.yml, the registry and the configs say, each number with its source."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from cards import FAMILIES, KEYS, text
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import EvalResult
from vertebra.tools import list as tool
from vertebra.tools._cards import facts
from vertebra.tools._cards import page as card_page
from vertebra.tools._cards.facts import ROOT, Family
from vertebra.tools._cards.header import base_models, licence, scores
from vertebra.tools._cards.hub import data_of_tag
from vertebra.tools._cards.links import Seen
from vertebra.tools._cards.page import page
from vertebra.tools._cards.weights import citation, weights
from vertebra.tools._docs.detection import Leaf, sources_of


@pytest.mark.parametrize("key", KEYS)
def test_the_hub_reads_the_front_matter_and_writes_it_again(key: str, tmp_path: Path) -> None:
    own, card = FAMILIES[key], ModelCard.load(ROOT / "model_cards" / f"{key}.md", ignore_metadata_errors=False)
    data, results = card.data, card.data.eval_results or []
    assert (data.model_name, data.library_name) == (own.title, "timm")
    trained_on = {name for row in own.rows for name in data_of_tag(row.tag)}
    assert "imagenet-1k" in trained_on
    assert data.datasets == sorted(trained_on), "what the weights saw; scores on other data have their place in results"
    assert all(isinstance(result, EvalResult) and result.source_url and not result.verified for result in results)
    published = {f"{facts.full_name(row)}: top-1": row.top1 for row in own.rows if row.top1 is not None}
    accuracy = {each.metric_name[: -len(" accuracy in percent, as published")]: each.metric_value for each in results}
    assert {name: value for name, value in accuracy.items() if name.endswith(": top-1")} == published
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
    assert again.text == card.text
    names = [sorted((each.metric_name, each.metric_value) for each in c.data.eval_results or []) for c in (card, again)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("key", "licence"),
    [
        ("shvit", ("mit", None)),
        ("cswin", ("other", "not-stated")),
        ("van", ("other", "differs-by-model")),
        ("davit", ("other", "differs-by-model")),
    ],
)
def test_the_hubs_licence_is_that_of_the_weights(key: str, licence: tuple[str, str | None]) -> None:
    data = ModelCard.load(ROOT / "model_cards" / f"{key}.md").data
    assert (data.license, data.get("license_name")) == licence
    assert f"Licence of the code: {FAMILIES[key].card['licence']}." in text(key)


@pytest.mark.parametrize("key", KEYS)
def test_the_licence_for_the_hub_is_the_one_in_words(key: str) -> None:
    card = FAMILIES[key].card
    words = card["weights_licence"]
    said = next((name for name in ("apache-2.0", "mit") if name in words.lower()), None)
    assert card["weights_spdx"] == (card["licence"].lower() if words.startswith("that of the code") else said)


def test_a_model_whose_licence_was_not_verified_says_so_and_one_without_weights_says_nothing() -> None:
    lines = {key: weights(FAMILIES[key], {}).splitlines() for key in ("van", "davit")}
    said = {
        name: next(line for line in lines[name.partition("_")[0]] if f"`{name}`" in line).split(" | ")[3]
        for name in ("van_b0.in1k", "van_b4.in1k", "davit_tiny_fused.msft_in1k", "davit_base_fl_fused.msft_florence2")
    }
    assert [*said.values()] == ["apache-2.0", "not verified", "apache-2.0", "not verified"]
    assert "| `davit_giant_fused` | none public |  |  |  |  |  |" in lines["davit"]


def test_models_without_weights_do_not_count_for_the_hubs_licence() -> None:
    own = FAMILIES["davit"]
    stated = {name: facts for name, facts in own.card["models"].items() if "florence" not in name}
    card = own.card | {"models": stated | {"davit_giant_fused": {"weights_spdx": None}}}
    rows = [row for row in own.rows if "_fl_" not in row.name]
    assert licence(Family(own.key, card, own.entries, rows)) == {"license": "apache-2.0"}


def sources(key: str, name: str) -> Sequence[tuple[str, str]]:
    return FAMILIES[key].sources(next(row for row in FAMILIES[key].rows if facts.full_name(row) == name))


def test_a_source_leads_to_where_the_number_stands() -> None:
    code, paper = FAMILIES["van"].card["code"], "https://arxiv.org/abs/2202.09741"
    assert sources("van", "van_b0.in1k") == [("Table 7 of arXiv:2202.09741", paper), ("README of the code", code)]
    assert sources("maxvit", "maxvit_nano_rw_256_fused.sw_in1k") == [("timm's notes on its weights", tool.TIMM)]
    for key, name in [("van", "van_b4.in22k"), ("maxvit", "maxvit_pico_rw_256_fused.untrained")]:
        assert sources(key, name) == [], "nothing is published of it"


@pytest.mark.parametrize("key", KEYS)
def test_every_published_number_has_a_source(key: str) -> None:
    models = FAMILIES[key].card["models"].values()
    assert [each for each in models if ("source" in each) != ("top1" in each or "gflops" in each)] == []


def test_scores_that_only_the_code_has_lead_there() -> None:
    (leaf,) = (leaf for leaf in FAMILIES["shvit"].detectors if leaf.head == "retinanet")
    assert sources_of(leaf) == [("downstream/README.md of the code", FAMILIES["shvit"].card["code"])]
    (result,) = scores(leaf)
    assert (result.metric_value, result.source_url) == (38.8, FAMILIES["shvit"].card["code"])


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("50.1 box AP, 24.5 M parameters, 9 GFLOPs.", "24.5"),
        ("50.1 box AP, 24.5 M parameters as built here.", "24.5 counted"),
        ("50.1 box AP, 60 M parameters (52.1 M as built here), 9 GFLOPs.", "60, 52.1 counted"),
        ("50.1 box AP (arXiv 1.2; not verified), 60 M parameters (52.1 M as built here).", "60?, 52.1 counted"),
        ("50.1 box AP.", ""),
    ],
)
def test_counted_parameters_are_told_from_published_ones(head: str, said: str) -> None:
    assert Leaf(Path("x.py"), "van", "x", "b0", "1x", head, "1.2").parameters == said


@pytest.mark.parametrize("key", KEYS)
def test_a_config_has_a_source_where_it_has_a_score(key: str) -> None:
    lines = text(key).splitlines()
    for leaf in [*FAMILIES[key].detectors, *FAMILIES[key].segmenters]:
        (line,) = [
            each for each in lines if each.startswith(f"| [`{leaf.path.parents[1].name}/{key}/{leaf.path.stem}`]")
        ]
        assert line.endswith("|  |") == (leaf.score == "–"), line


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (["24.5 M parameters as built here."], "Parameters are counted on the model as it is built here."),
        (["24.5 M parameters."], "Parameters are as published too."),
        (["24.5 M parameters.", "1.5 M parameters as built here."], "but for those marked `counted`"),
    ],
)
def test_whose_the_parameters_are_is_said_of_the_table_at_hand(heads: Sequence[str], said: str) -> None:
    leaves = [Leaf(Path("coco/van/x.py"), "van", "x", "b0", "1x", f"50.1 box AP, {head}", "1.2") for head in heads]
    assert said in card_page._rows("Detection", "coco", leaves)


def test_a_config_that_cannot_start_as_its_score_did_says_so() -> None:
    assert (
        "`upernet_cswin_base_22k_640_160k`: The authors' 22K weights of this size are not public: it starts from"
        in text("cswin")
    )
    assert ": it starts from" not in text("van")


def test_names_that_a_newer_timm_brings_stand_in_the_card_with_nothing_published() -> None:
    own = FAMILIES["davit"]
    new = dataclasses.replace(own.rows[-1], tag="new_tag", top1=None)
    entry = dataclasses.replace(own.entries[-1], tag="new_tag")
    grown = Family(own.key, own.card, [*own.entries, entry], [*own.rows, new])
    line = next(line for line in page(grown, {}).splitlines() if line.startswith(f"| `{new.name}.new_tag`"))
    assert line.endswith("|  |  |  |")


def test_links_lead_to_files_where_they_are_known_and_else_to_the_page_about_them() -> None:
    own = FAMILIES["davit"]
    links = {row.name: own.links(row) for row in own.rows}
    assert links["davit_tiny_fused"] == [
        "https://huggingface.co/timm/davit_tiny.msft_in1k/resolve/main/model.safetensors"
    ]
    assert links["davit_base_fl_fused"] == ["https://huggingface.co/microsoft/Florence-2-base"]


@pytest.mark.parametrize(
    ("score", "data", "values"),
    [
        ("46.4 / 41.8", "coco", [46.4, 41.8]),
        ("44.0", "coco", [44.0]),
        ("50.1 ms", "ade20k", [50.1]),
        ("49.3 / 50.7 ms", "ade20k", [49.3, 50.7]),
        ("46.7?", "coco", []),
        ("…", "coco", []),
        ("–", "ade20k", []),
    ],
)
def test_only_scores_that_were_read_become_results(
    score: str, data: str, values: Sequence[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leaf, "score", score)
    leaf = Leaf(ROOT / "configs" / data / "van" / "x.py", "van", "x", "b0", "1x", "", "2202.09741")
    assert [result.metric_value for result in scores(leaf)] == values


@pytest.mark.parametrize("key", KEYS)
def test_a_card_names_every_model_config_and_operator(key: str) -> None:
    card, own = text(key), FAMILIES[key]
    configs = [*own.detectors, *own.segmenters]
    named = [f"`{facts.full_name(row)}`" for row in own.rows] + [f"{leaf.path.stem}.py" for leaf in configs]
    assert [name for name in [*named, *own.card["operators"]] if name not in card] == []


@pytest.mark.parametrize("key", KEYS)
def test_operators_with_a_kernel_are_those_of_the_list(key: str) -> None:
    card = tool.cards()[key]
    assert {name for name in card["operators"] if (ROOT / "kernels" / name / "triton.py").exists()} == {
        *card["kernels"]
    }


def test_a_citation_is_a_whole_entry() -> None:
    entry = citation(FAMILIES["van"])
    assert entry.count("{") == entry.count("}")
    assert "@article{guo2022van," in entry
    assert "author = {Meng-Hao Guo and Cheng-Ze Lu and Zheng-Ning Liu and Ming-Ming Cheng and Shi-Min Hu}," in entry
    assert "eprint = {2202.09741}," in entry


@pytest.mark.parametrize("key", KEYS)
def test_every_family_is_cited_by_its_own_paper(key: str) -> None:
    entry = citation(FAMILIES[key])
    assert entry.count("{") == entry.count("}")
    assert f"eprint = {{{FAMILIES[key].card['paper']['arxiv']}}}" in text(key)


def test_base_models_are_the_repositories_on_the_hub_that_weights_load_from() -> None:
    found = {key: base_models(FAMILIES[key]) for key in ("van", "transnext", "davit", "cswin")}
    assert "Visual-Attention-Network/VAN-Base-original" in found["van"]
    assert {name.partition("/")[0] for name in found["transnext"]} == {"DaiShiResearch"}
    assert "timm/davit_tiny.msft_in1k" in found["davit"]
    assert found["cswin"] == []


def test_pictures_are_prepared_as_the_registry_says() -> None:
    (line,) = [line for line in text("van").splitlines() if line.startswith("| 384 x 384 |")]
    assert line.startswith("| 384 x 384 | 1 | squash | bicubic | 0.485, 0.456, 0.406 | 0.229, 0.224, 0.225 | ")
    assert "`van_b4.in22k_ft_in1k_384`" in line


def test_weights_say_what_a_link_answered() -> None:
    own = FAMILIES["van"]
    url = own.rows[0].url or ""
    table = weights(own, {url: Seen(url, "HTTP 404", "16432100", "2026-02-03", "2026-01-02")})
    row = next(line for line in table.splitlines() if line.startswith("| `van_b0.in1k`"))
    assert "[van_tiny_754.pth.tar]" in row
    assert "| 16.4 | 2026-01-02; HTTP 404 on 2026-02-03 |" in row
    assert "| not checked |" in next(line for line in table.splitlines() if line.startswith("| `van_b1.in1k`"))


def test_weights_of_a_mirror_only_say_what_that_answered() -> None:
    own = FAMILIES["biformer"]
    mirror = own.published(own.rows[0])["mirrors"][0]
    lines = weights(own, {mirror: Seen(mirror, "alive", "57000000", "2026-01-02", "2026-01-02")}).splitlines()
    assert next(line for line in lines if line.startswith("| `biformer_base.in1k`")).endswith(
        "| not stated | 57.0 | 2026-01-02 |  |"
    )
    other = next(line for line in lines if line.startswith("| `biformer_small.in1k`"))
    assert "| no direct link |" in other
    assert other.endswith("|  | not checked |  |")


def test_other_places_say_what_they_answered_too() -> None:
    own = FAMILIES["van"]
    first, second = own.published(own.rows[0])["mirrors"]
    table = weights(own, {first: Seen(first, "HTTP 404", "", "2026-02-03", "2026-01-02")})
    row = next(line for line in table.splitlines() if line.startswith("| `van_b0.in1k`"))
    assert f"]({first}) (2026-01-02; HTTP 404 on 2026-02-03)" in row
    assert f"]({second}) (not checked)" in row


def test_the_answer_of_a_folder_is_not_that_of_a_file() -> None:
    own = FAMILIES["van"]
    row = next(row for row in own.rows if row.name == "van_b5")
    folder = own.folder(row)
    table = weights(own, {folder: Seen(folder, "alive", "999", "2026-01-02", "2026-01-02")})
    line = next(line for line in table.splitlines() if line.startswith(f"| `{facts.full_name(row)}`"))
    assert line.endswith(f"| no direct link | [folder]({folder}) (answered 2026-01-02) | not verified |  |  |  |")


@pytest.mark.parametrize("key", KEYS)
def test_whole_detectors_of_the_authors_are_of_rows_that_are_here(key: str) -> None:
    own = FAMILIES[key]
    assert {*own.heads} <= {leaf.path.stem for leaf in [*own.detectors, *own.segmenters]}
    assert [link for link in own.heads.values() if f"]({link})" not in text(key)] == []
    assert ("Whole detectors" in text(key)) == bool(own.heads)


def test_a_known_hash_stands_by_its_file_and_says_what_it_is_for() -> None:
    own, value = FAMILIES["van"], "ab" * 32
    models = own.card["models"]
    card = own.card | {"models": models | {"van_b1.in1k": models["van_b1.in1k"] | {"sha256": value}}}
    said = weights(dataclasses.replace(own, card=card), {})
    (line,) = [line for line in said.splitlines() if value in line]
    assert line.startswith("| `van_b1.in1k` |")
    assert line.endswith(f"| `{value}` |")
    assert "has another hash is refused" in said
    assert "is refused" not in weights(own, {})


def test_a_family_of_which_no_weights_are_known_states_no_licence() -> None:
    own = dataclasses.replace(FAMILIES["van"], entries=[], rows=[])
    assert licence(own) == {"license": "other", "license_name": "not-stated"}
