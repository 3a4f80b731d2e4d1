"""benchmark demos: what stands in results/demos.csv, and the command that writes it."""

import csv
from pathlib import Path

import pytest
import timm
import vertebra
from vertebra.backbones import model_names
from vertebra.backbones._errors import UserError
from vertebra.engine.config import change, read_config
from vertebra.tools import benchmark
from vertebra.tools._benchmark import demos
from vertebra.tools._benchmark.demos import DEMOS, FAMILIES, SEEDS, Row, measure, table
from vertebra.tools._common import parse_changes

RESULTS = Path(vertebra.__file__).parent / "results"
LEARNING = RESULTS / "learning.csv"


def row(**changes: object) -> Row:
    facts = dict.fromkeys(Row.__dataclass_fields__, "x") | {"seed": 1, "value": 0.61, "aim": 0.5, "seconds": 200.0}
    return Row(**{**facts, **changes})


def stored(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_seed_of_every_detector_and_segmenter_reached_what_is_asked_within_ten_minutes() -> None:
    rows = stored(RESULTS / "demos.csv")
    measured = sorted((row["demo"], row["metric"], int(row["seed"])) for row in rows)
    dense = [name for name, demo in DEMOS.items() if "top1" not in demo.aims]
    assert measured == sorted((name, metric, seed) for name in dense for metric in DEMOS[name].aims for seed in SEEDS)
    for row in rows:
        assert float(row["value"]) >= float(row["aim"]) == DEMOS[row["demo"]].aims[row["metric"]]
        assert float(row["seconds"]) <= 600


def test_every_family_reached_what_is_asked_within_four_minutes_by_the_command_of_today() -> None:
    rows = stored(LEARNING)
    assert {row["demo"] for row in rows} == set(FAMILIES)
    for row in rows:
        demo = DEMOS[row["demo"]]
        assert (row["model"], row["options"]) == (demo.model, " ".join(demo.options))
        assert float(row["value"]) >= float(row["aim"]) == demo.aims[row["metric"]] == 0.95
        assert float(row["seconds"]) <= 240


@pytest.mark.parametrize("family", FAMILIES)
def test_a_demo_keeps_of_its_familys_recipe_what_can_be_scaled_down(family: str) -> None:
    demo = FAMILIES[family]
    published, scaled = read_config(f"imagenet/{family}/{demo.model}"), read_config(demo.config)
    change(scaled, parse_changes(demo.options))
    theirs, ours = published.optim_wrapper, scaled.optim_wrapper
    assert ours.optimizer.type == theirs.optimizer.type
    assert ours.optimizer.weight_decay == theirs.optimizer.weight_decay
    assert ours.get("paramwise_cfg") == theirs.get("paramwise_cfg")
    assert ours.clip_grad == theirs.get("clip_grad", {"max_norm": 1.0})
    assert scaled.model.label_smoothing == published.model.label_smoothing
    assert [part.type for part in scaled.param_scheduler] == [part.type for part in published.param_scheduler]


def test_every_family_has_a_model_that_learns() -> None:
    files = {timm.model_entrypoint(name).__module__ for name in model_names()}
    assert {timm.model_entrypoint(demo.model).__module__ for demo in FAMILIES.values()} == files
    assert len(FAMILIES) == len(files)


def test_the_training_counts_and_the_scores_are_those_of_the_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = iter([100.0, 350.5])
    said: list[tuple[str, ...]] = []

    def run(tool: str, *words: object) -> None:
        said.append((tool, *map(str, words)))
        if tool == "train":
            (tmp_path / "retinanet_7").mkdir()
            (tmp_path / "retinanet_7/last_checkpoint").write_text("epoch_5.pth")
        else:
            (tmp_path / "metrics.json").write_text('{"box_AP": 0.61234, "images": 3}')

    monkeypatch.setattr(demos, "_run", run)
    monkeypatch.setattr(demos.time, "perf_counter", lambda: next(clock))
    (found,) = measure("retinanet", 7, tmp_path / "digits", tmp_path)
    assert (found.metric, found.value, found.aim, found.seconds, found.seed) == ("box_AP", 0.6123, 0.5, 250.5, 7)
    assert said[0][:6] == ("train", "demo/retinanet_digits", "--data", str(tmp_path / "digits"), "--seed", "7")
    assert said[1][:3] == ("test", "demo/retinanet_digits", "epoch_5.pth")


def test_a_family_is_trained_and_tested_by_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[tuple[str, ...]] = []
    (tmp_path / "cswin_0").mkdir()
    (tmp_path / "cswin_0/last_checkpoint").write_text("epoch_9.pth")
    (tmp_path / "metrics.json").write_text('{"top1": 0.97}')
    monkeypatch.setattr(demos, "_run", lambda *words: said.append(tuple(map(str, words))))
    (found,) = measure("cswin", 0, tmp_path / "digits", tmp_path)
    assert said[0][:5] == ("train", "demo/family_digits", "--backbone", "cswin_tiny", "--cfg-options")
    assert said[0][5:][: len(FAMILIES["cswin"].options)] == FAMILIES["cswin"].options
    assert said[1][:3] == ("test", "cswin_tiny", "epoch_9.pth")
    assert (found.demo, found.model, found.options) == ("cswin", "cswin_tiny", " ".join(FAMILIES["cswin"].options))


def test_families_stands_for_all_of_them_each_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demos.make_dataset, "make_digits", lambda folder: None)
    monkeypatch.setattr(demos, "measure", lambda demo, seed, *_: [row(demo=demo, seed=seed)])
    file = tmp_path / "rows.csv"
    assert benchmark.main(["demos", "cswin", "families", "--seeds", "4", "--csv", str(file)]) == 0
    assert sorted(line["demo"] for line in stored(file)) == sorted(FAMILIES)


def test_a_training_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="train demo/none failed"):
        demos._run("train", "demo/none")


def test_the_table_says_seeds_and_aims() -> None:
    lines = table([row(demo="retinanet", model="van_b0", metric="box_AP")]).splitlines()
    assert lines[-1].split() == ["retinanet", "van_b0", "box_AP", "1", "0.610", "0.50", "200"]


@pytest.mark.parametrize(
    ("words", "said"), [(["maskrcnn"], "mask-rcnn"), (["family"], "families"), (["--device", "cuda"], "on the CPU")]
)
def test_a_mistake_is_one_sentence(words: list[str], said: str) -> None:
    line = [*words, "demos"] if words[0] == "--device" else ["demos", *words]
    with pytest.raises(UserError, match=said):
        benchmark.main(line)
