"""benchmark demos: what stands in results/demos.csv, and the command that writes it."""

import csv
from pathlib import Path

import pytest
import vertebra
from vertebra.backbones._errors import UserError
from vertebra.tools import _demos, benchmark
from vertebra.tools._demos import AIMS, SEEDS, Row, measure, table

STORED = Path(vertebra.__file__).parent / "results" / "demos.csv"


def row(**changes: object) -> Row:
    facts = dict.fromkeys(Row.__dataclass_fields__, "x") | {"seed": 1, "value": 0.61, "aim": 0.5, "seconds": 200.0}
    return Row(**{**facts, **changes})


def test_every_seed_of_every_detector_and_segmenter_reached_what_is_asked_within_ten_minutes() -> None:
    with STORED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    measured = sorted((row["demo"], row["metric"], int(row["seed"])) for row in rows)
    dense = [name for name in AIMS if name != "van_b0"]
    assert measured == sorted((name, metric, seed) for name in dense for metric in AIMS[name] for seed in SEEDS)
    for row in rows:
        assert float(row["value"]) >= float(row["aim"]) == AIMS[row["demo"]][row["metric"]]
        assert float(row["seconds"]) <= 600


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

    monkeypatch.setattr(_demos, "_run", run)
    monkeypatch.setattr(_demos.time, "perf_counter", lambda: next(clock))
    (found,) = measure("retinanet", 7, tmp_path / "digits", tmp_path)
    assert (found.metric, found.value, found.aim, found.seconds, found.seed) == ("box_AP", 0.6123, 0.5, 250.5, 7)
    assert said[0][:6] == ("train", "demo/retinanet_digits", "--data", str(tmp_path / "digits"), "--seed", "7")
    assert said[1][:3] == ("test", "demo/retinanet_digits", "epoch_5.pth")


def test_a_training_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="train demo/none failed"):
        _demos._run("train", "demo/none")


def test_the_table_says_seeds_and_aims() -> None:
    lines = table([row(demo="retinanet", metric="box_AP")]).splitlines()
    assert lines[-1].split() == ["retinanet", "box_AP", "1", "0.610", "0.50", "200"]


@pytest.mark.parametrize(("words", "said"), [(["maskrcnn"], "mask-rcnn"), (["--device", "cuda"], "on the CPU")])
def test_a_mistake_is_one_sentence(words: list[str], said: str) -> None:
    line = [*words, "demos"] if words[0] == "--device" else ["demos", *words]
    with pytest.raises(UserError, match=said):
        benchmark.main(line)
