"""publish: folders that timm's own code loads back as the same model, or a sentence and no folder."""

import json
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from vertebra.backbones._errors import UserError
from vertebra.tools import publish
from vertebra.tools._classifier import Classifier, load_classifier
from vertebra.tools._common import run_tool
from vertebra.tools._hub_card import card

LABELS = ["ant", "bee", "cat", "dog"]
FILES = ["README.md", "config.json", "model.safetensors"]


def write_checkpoint(path: Path, name: str, **options: Any) -> Path:
    """A file as `train` describes it, of a model of four named classes, evaluated at 64 pixels."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **options)
    meta = {"model_name": name, "num_classes": 4, "options": options, "labels": LABELS}
    meta["transform"] = {"input_size": [3, 64, 64], "crop_pct": 1.0}
    save_file(model.state_dict(), path, metadata={"vertebra": json.dumps(meta)})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAN of one block a stage."""
    return write_checkpoint(tmp_path_factory.mktemp("van") / "w.safetensors", "van_b0", depths=[1, 1, 1, 1])


@pytest.fixture(scope="module")
def van(checkpoint: Path) -> Classifier:
    return load_classifier("van_b0", checkpoint)


@pytest.fixture(scope="module")
def published(van: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "new" / "van"
    publish.publish(van, out)
    return out


def load(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def front_matter(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


# ---- what comes back


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("van_b0", {"depths": [1, 1, 1, 1]}),
        ("shvit_s1_fused", {"depths": [1, 1, 1]}),
        ("biformer_tiny", {"depths": [1, 1, 1, 1], "n_win": 4}),  # which no weight tells of
    ],
)
def test_folder_loads_back_as_the_same_model_bit_for_bit(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    classifier = load_classifier(name, write_checkpoint(tmp_path / "w.safetensors", name, **options))
    publish.publish(classifier, tmp_path / "hub")
    again = load(tmp_path / "hub")
    for shape in ((2, 3, 64, 64), (1, 3, 77, 110)):
        with torch.inference_mode():
            assert torch.equal(again(noise(*shape)), classifier.model(noise(*shape)))


def test_labels_and_image_preparation_come_back(van: Classifier, published: Path) -> None:
    model = load(published)
    assert model.pretrained_cfg["label_names"] == LABELS
    found = timm.data.resolve_data_config({}, model=model)
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()} == van.data


def test_config_says_what_the_weights_are_and_not_that_they_are_published_ones(published: Path) -> None:
    config = json.loads((published / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("van_b0", 4)
    assert config["model_args"]["depths"] == [1, 1, 1, 1]
    assert config["pretrained_cfg"]["tag"] == ""
    assert "url" not in config["pretrained_cfg"]


def test_folder_can_be_fine_tuned_with_another_number_of_classes(published: Path) -> None:
    model = timm.create_model(f"local-dir:{published}", pretrained=True, num_classes=7)
    assert model(noise(2, 3, 64, 64)).shape == (2, 7)


def test_every_file_can_be_read_by_whom_the_folder_is_shared_with(published: Path) -> None:
    assert len({path.stat().st_mode for path in published.iterdir()}) == 1


# ---- the card


def test_code_of_the_card_runs(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 70), "red").save("image.jpg")
    said: list[Any] = []
    exec(code[1].replace("hf-hub:USER/REPOSITORY", f"local-dir:{published}"), {"print": lambda *x: said.extend(x)})
    assert said[0] in LABELS


def test_front_matter_is_what_the_hub_reads_and_holds_no_result_without_metrics(published: Path) -> None:
    assert front_matter(published) == {
        "library_name": "timm",
        "license": "apache-2.0",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "vertebra", "van"],
    }
    assert "## Results" not in (published / "README.md").read_text()


def test_metrics_stand_in_the_card_as_they_were_measured(van: Classifier, tmp_path: Path) -> None:
    metrics = {"top1": 0.8125, "top5": 1.0, "images": 360, "model": "van_b0", "checkpoint": "epoch_18.pth"}
    publish.publish(van, tmp_path / "hub", metrics, licence="MIT")
    (results,) = front_matter(tmp_path / "hub")["model-index"][0]["results"]
    assert [metric["value"] for metric in results["metrics"]] == [0.8125, 1.0]
    assert results["dataset"]["name"] == "360 images"
    assert front_matter(tmp_path / "hub")["license"] == "mit"
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "| top-1 accuracy | 81.25% |" in text
    assert "| checkpoint | epoch_18.pth |" in text


def test_published_weights_name_the_data_that_they_were_trained_on() -> None:
    name = "van_b4.in22k_ft_in1k"
    text = card(Classifier(name, timm.create_model(name, device="meta")), "apache-2.0", None)
    assert yaml.safe_load(text.split("---\n")[1])["datasets"] == ["imagenet-1k", "imagenet-22k"]


def test_model_of_timm_needs_no_vertebra_to_load(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    publish.publish(Classifier("test_resnet", model, LABELS, LABELS), tmp_path / "hub")
    assert "import vertebra" not in (tmp_path / "hub" / "README.md").read_text()
    assert "vertebra" not in front_matter(tmp_path / "hub")["tags"]


# ---- what is refused, and that nothing is lost


def test_command_writes_three_files_and_says_the_same_again(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hub"
    for said in ("loaded back with the same weights and answers", "there already and the same"):
        assert run_tool(publish.main, ["van_b0", str(checkpoint), str(out)]) == 0
        printed, warned = capfd.readouterr()
        assert warned == ""
        assert said in printed
        assert f"local-dir:{out}" in printed
        assert listing(out) == FILES
        assert listing(tmp_path) == ["hub"]


def test_another_model_is_not_written_over(van: Classifier, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    publish.publish(van, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="holds another model or card"):
        publish.publish(van, out, licence="other")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert listing(tmp_path) == ["hub"]


def test_model_that_would_come_back_different_is_not_published(
    van: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub").mkdir()

    def forget_a_weight(model: torch.nn.Module, folder: str, *args: Any, **options: Any) -> None:
        timm.models.save_for_hf(model, folder, *args, **options)
        weights = model.state_dict() | {"head.fc.bias": torch.ones(4)}
        save_file(weights, f"{folder}/model.safetensors")

    monkeypatch.setattr(publish, "save_for_hf", forget_a_weight)
    with pytest.raises(UserError, match="is another model: nothing was written"):
        publish.publish(van, tmp_path / "hub")
    assert listing(tmp_path / "hub") == []
    assert listing(tmp_path) == ["hub"]


def test_full_disk_leaves_no_folder(van: Classifier, tmp_path: Path) -> None:
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises((OSError, UserError), match=r"(?i)file too large"):
            publish.publish(van, tmp_path / "hub")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["van_b00", "w", "new"], "no model 'van_b00' in timm or vertebra. Did you mean van_b0"),
        (["van_b0", "gone.pth", "new"], "checkpoint gone.pth does not exist"),
        (["van_b0", "w", "full"], "full holds precious.txt: a new or empty folder is accepted"),
        (["van_b0", "w", "text.txt"], "text.txt is no folder"),
        (["van_b0", "w", "text.txt/new"], "text.txt is no folder"),
        (["van_b0", "w", "n" * 300], "cannot be written: File name too long"),
        (["van_b0", "w", "new", "--metrics", "gone.json"], "--metrics gone.json cannot be read: No such file"),
        (["van_b0", "w", "new", "--metrics", "text.txt"], "--metrics text.txt is no JSON"),
        (["van_b0", "w", "new", "--metrics", "dense.json"], "--metrics dense.json holds no top1"),
        (["van_b0", "w", "new", "--metrics", "other.json"], "--metrics other.json is of van_b1, not of van_b0"),
        (["van_b0", "w", "new", "--device", "toaster"], "--device toaster cannot be used here"),
    ],
)
def test_bad_input_is_one_sentence_and_touches_nothing(
    argv: list[str],
    sentence: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("precious")
    (tmp_path / "text.txt").write_text("precious")
    (tmp_path / "dense.json").write_text('{"box_AP": 0.4}')
    (tmp_path / "other.json").write_text('{"top1": 0.4, "model": "van_b1"}')
    before = listing(tmp_path)
    assert run_tool(publish.main, [str(checkpoint) if word == "w" else word for word in argv]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert sentence in message
    assert listing(tmp_path) == before
    assert listing(tmp_path / "full") == ["precious.txt"]


def test_help_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        publish.main(["--help"])
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("  vertebra publish van_b0")
