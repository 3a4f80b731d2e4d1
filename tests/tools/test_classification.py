"""From training to prediction: the tools agree with each other about one small run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from PIL import Image
from small_images import write_images
from tool_processes import Started, start_tool
from vertebra.backbones._checkpoint import read_checkpoint
from vertebra.kernels.dispatch import BackendError
from vertebra.tools._classifier import load_classifier
from vertebra.tools._results import read
from vertebra.tools.test import build_parser, prepare
from vertebra.tools.train import leaving_no_litter

SMALL = ["model.num_classes=4", "model.depths=(1,1,1,1)"]
SHORT = [
    "train_cfg.max_epochs=2",
    "train_cfg.val_interval=1",
    "train_dataloader.batch_size=8",
    "default_hooks.checkpoint.interval=1",
    *(f"{part}_dataloader.num_workers=0" for part in ("train", "val", "test")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run and all that follows from it lies."""
    path = tmp_path_factory.mktemp("classification")
    write_images(path / "data")
    return path


def tool(folder: Path, name: str, *argv: object) -> Started:
    """Run a tool to its end, which has to be a good one."""
    done = start_tool(folder, name, [str(word) for word in argv], folder / f"{name}.txt").wait()
    assert done.code == 0, done.said
    return done


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """The work dir of a short training of the demo's config."""
    where = ["--data", "data", "--work-dir", "wd"]
    tool(folder, "train", "demo/van_b0_digits", *where, "--seed", 3, "--cfg-options", *SMALL, *SHORT)
    return folder / "wd"


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for path in run.glob("*/vis_data/scalars.json") for line in path.read_text().splitlines()]


def test_a_run_leaves_checkpoints_curves_and_logs(run: Path) -> None:
    assert {path.name for path in run.glob("epoch_*.pth")} == {"epoch_1.pth", "epoch_2.pth"}
    assert list(run.glob("best_top1_*.pth"))
    assert Path((run / "last_checkpoint").read_text()) == run / "epoch_2.pth"
    assert Image.open(run / "curve.png").width > 300
    assert list(run.glob("*/vis_data/events.out.tfevents*"))


def test_the_log_has_a_line_of_json_with_what_can_be_plotted(run: Path) -> None:
    training = [line for line in logged(run) if "loss" in line]
    assert training
    assert all({"step", "epoch", "loss", "lr", "time", "memory"} <= line.keys() for line in training)


def test_the_run_prints_a_line_an_epoch_and_a_summary_into_a_file(run: Path, folder: Path) -> None:
    said = (folder / "train.txt").read_text()
    assert [line.split()[:2] for line in said.splitlines() if line.startswith("epoch ")] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]
    assert "\r" not in said
    assert "img/s" in said
    assert "checkpoint" in said.splitlines()[-2]


def test_the_checkpoint_says_what_rebuilds_and_names_the_model(run: Path) -> None:
    known = read_checkpoint(run / "epoch_2.pth")["meta"]["vertebra"]
    assert known["model_name"] == "van_b0"
    assert known["num_classes"] == 4
    assert known["labels"] == ["class0", "class1", "class2", "class3"]
    assert tuple(known["options"]["depths"]) == (1, 1, 1, 1)


def evaluate_by_config(run: Path, folder: Path, out: str) -> None:
    where = ["--data", "data", "--out", out]
    tool(folder, "test", "demo/van_b0_digits", run / "epoch_2.pth", *where, "--cfg-options", *SMALL)


def test_testing_the_saved_file_gives_the_number_of_the_training(run: Path, folder: Path) -> None:
    evaluate_by_config(run, folder, "m.json")
    metrics = json.loads((folder / "m.json").read_text())
    assert metrics["top1"] == [line["top1"] for line in logged(run) if "top1" in line][-1]
    assert metrics["images"] == 12
    assert {"top1", "top5", "images", "seconds", "model", "config", "checkpoint", "versions"} <= metrics.keys()
    assert all(isinstance(value, int | float | str) for value in metrics.values())


def test_a_name_and_a_file_are_enough_to_test(run: Path, folder: Path) -> None:
    evaluate_by_config(run, folder, "a.json")
    said = ["--out", "b.json", "--csv", "accuracy.csv"]
    tool(folder, "test", "van_b0", run / "epoch_2.pth", "--data", "data", *said)
    by_config, by_name = (json.loads((folder / name).read_text()) for name in ("a.json", "b.json"))
    assert by_name["top1"] == by_config["top1"]
    assert by_name["images"] == 12
    rows = {row["metric"]: row for row in read(folder / "accuracy.csv")}
    assert float(rows["top1"]["value"]) == by_name["top1"]
    assert {"model": "van_b0", "weights": "epoch_2.pth", "data": "data", "images": "12"}.items() <= rows["top1"].items()
    assert rows.keys() == {"top1", "top5"}


def test_views_of_a_model_that_was_trained_without_flips_are_zoomed_alone(run: Path, folder: Path) -> None:
    tool(folder, "test", "van_b0", run / "epoch_2.pth", "--data", "data", "--out", "views.json", "--tta")
    metrics = json.loads((folder / "views.json").read_text())
    assert (metrics["tta"], metrics["views"], metrics["images"]) == (True, 3, 12)
    assert metrics["model"] == "van_b0"


def test_predictions_are_drawn_and_listed_with_the_data_sets_own_labels(run: Path, folder: Path) -> None:
    tool(folder, "infer", "van_b0", run / "epoch_2.pth", "data/val/class1", "data/val/class2/0.png", "--out", "out")
    results = json.loads((folder / "out/results.json").read_text())
    assert [Path(result["image"]).parent.name for result in results] == ["class1"] * 3 + ["class2"]
    for result in results:
        assert result["size"] == [40, 40]
        scores = [entry["score"] for entry in result["classes"]]
        assert scores == sorted(scores, reverse=True)
        assert abs(sum(scores) - 1) < 1e-4
        assert all(entry["label"] == f"class{entry['index']}" for entry in result["classes"])
    assert len(list((folder / "out").glob("*.png"))) == 4


def test_a_classifier_is_rebuilt_from_its_file_alone(run: Path) -> None:
    classifier = load_classifier("van_b0", run / "epoch_2.pth")
    assert classifier.model.num_classes == 4
    assert classifier.labels == ["class0", "class1", "class2", "class3"]
    assert tuple(classifier.data["input_size"]) == (3, 64, 64)
    assert classifier.data["crop_pct"] == 1.0


def test_timm_loads_the_file_of_a_run(run: Path) -> None:
    """No allow-list and no unsafe unpickling: the file holds tensors and plain values alone."""
    overlay = {"file": str(run / "epoch_2.pth")}
    options = {"num_classes": 4, "depths": (1, 1, 1, 1)}
    model = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(image), load_classifier("van_b0", run / "epoch_2.pth").model(image))


def test_a_refused_run_leaves_the_folder_of_a_good_one_as_it_was(run: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = [
        "demo/van_b0_digits",
        "--data",
        "data",
        "--work-dir",
        "wd",
        "--resume",
        "--cfg-options",
        "model.num_classes=5",
    ]
    refused = start_tool(folder, "train", words, folder / "refused.txt").wait()
    assert refused.code == 2, refused.said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_refused_run_leaves_no_folder_behind(run: Path, folder: Path) -> None:
    words = ["demo/van_b0_digits", "--data", "data", "--work-dir", "wd_bad"]
    refused = start_tool(folder, "train", words, folder / "refused2.txt").wait()
    assert refused.code == 2, refused.said
    assert not (folder / "wd_bad").exists()


def test_what_a_run_wrote_before_its_first_step_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = ("van.py", "20261122_000000/run.log", "epoch_1.pth", "notes.txt")

    def fail(folder: Path, steps: int) -> list[str]:
        def run() -> None:
            with leaving_no_litter(folder, "van.py") as hooks:
                hooks.append(SimpleNamespace(steps=steps))
                for name in names:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).touch()
                raise BackendError("refused")

        folder.mkdir()
        with pytest.raises(BackendError, match="refused"):
            run()
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    assert fail(tmp_path / "refused", steps=0) == ["epoch_1.pth", "notes.txt"]
    assert fail(tmp_path / "begun", steps=1) == ["20261122_000000", "epoch_1.pth", "notes.txt", "van.py"]


@pytest.mark.parametrize("source", ["pretrained", "mine.pth"])
def test_what_is_tested_takes_the_place_of_what_a_recipe_starts_from(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, "mine.pth")
    config = prepare(build_parser().parse_args(["imagenet/van/van_b4_ft", source]))
    assert config.model.get("weights") is None
    assert (config.model.get("pretrained", False), config.get("load_from")) == (
        (True, None) if source == "pretrained" else (False, source)
    )


@pytest.mark.parametrize(
    "option",
    [
        "train_cfg.max_epochs=abc",
        "train_cfg.max_epochs=0",
        "optim_wrapper.optimizer.type=Adamm",
        "optim_wrapper.optimizer.lr=-1",
        "train_dataloader.batch_size=0",
        "train_dataloader.num_workers=-1",
        "val_evaluator.type=Foo",
        "randomness.seed=abc",
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(folder: Path, run: Path, option: str) -> None:
    words = ["demo/van_b0_digits", "--data", "data", "--work-dir", "wd_value", "--cfg-options", *SMALL, option]
    refused = start_tool(folder, "train", words, folder / f"{option.split('=')[0]}_{option[-1]}.txt").wait()
    assert refused.code == 2, refused.said
    assert "Traceback" not in refused.said, refused.said
    assert sum(line.startswith("error: ") for line in refused.said.splitlines()) == 1
