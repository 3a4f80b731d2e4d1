"""publish: folders that timm's own code loads back as the same model, with a card that says what is known of it."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from small_networks import one_per_family
from vertebra.tools import publish
from vertebra.tools._classifier import Classifier, load_classifier

LABELS = ["ant", "bee", "cat", "dog"]


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


def front_matter(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


# ---- what comes back


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("van_b0", {"depths": [1, 1, 1, 1]}),
        ("shvit_s1_fused", {"depths": [1, 1, 1]}),
        ("biformer_tiny", {"depths": [1, 1, 1, 1], "n_win": 4}),  # which no weight tells of
        *(pytest.param(name, {}, marks=pytest.mark.all) for name in one_per_family()),
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


def test_timms_own_code_for_the_hub_would_push_the_same_model(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        """In the place of the Hub: keeps what would be sent."""

        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return SimpleNamespace(repo_id=repo_id)

        def file_exists(self, **_: Any) -> bool:
            return True  # the card that `hf upload` sent before

        def upload_folder(self, *, folder_path: str, **_: Any) -> None:
            shutil.copytree(folder_path, tmp_path / "sent")

    monkeypatch.setattr("timm.models._hub.HfApi", Api)
    monkeypatch.setattr("timm.models._hub.has_hf_hub", lambda necessary=False: True)
    model = load(published)
    timm.models.push_to_hf_hub(model, "me/van", safe_serialization=True)
    again = load(tmp_path / "sent")
    with torch.inference_mode():
        assert torch.equal(again(noise(2, 3, 77, 110)), model(noise(2, 3, 77, 110)))
    ours, theirs = (dict(each.pretrained_cfg) for each in (model, again))
    assert theirs | {"file": ""} == ours | {"file": ""}


# ---- the card


def test_code_of_the_card_runs(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 70), "red").save("image.jpg")
    said: list[Any] = []
    exec(code[1].replace("hf-hub:USER/REPOSITORY", f"local-dir:{published}"), {"print": lambda *x: said.extend(x)})
    assert said[0] in LABELS


def test_front_matter_of_own_weights_has_no_licence_no_data_and_no_result_that_nobody_stated(published: Path) -> None:
    assert front_matter(published) == {
        "license": "other",
        "license_name": "not-stated",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "vertebra", "van"],
    }
    assert "## Results" not in (published / "README.md").read_text()


def test_metrics_stand_in_the_card_as_they_were_measured(van: Classifier, tmp_path: Path) -> None:
    metrics = {"top1": 0.8125, "top5": 1.0, "images": 360, "model": "van_b0", "checkpoint": "mine/epoch_18.pth"}
    publish.publish(van, tmp_path / "hub", metrics, licence="MIT")
    (results,) = front_matter(tmp_path / "hub")["model-index"][0]["results"]
    assert [metric["value"] for metric in results["metrics"]] == [81.25, 100.0]
    assert results["dataset"]["name"] == "360 images of the publisher"
    assert front_matter(tmp_path / "hub")["license"] == "mit"
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "| top-1 accuracy | 81.25% |" in text
    assert "| checkpoint | epoch_18.pth |" in text


def test_bare_file_is_said_to_be_of_no_data_no_licence_and_no_tag(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    publish.publish(load_classifier("test_resnet", tmp_path / "w.safetensors"), tmp_path / "hub")
    said = front_matter(tmp_path / "hub")
    assert (said["license"], said["license_name"], "datasets" in said) == ("other", "not-stated", False)
    said = json.loads((tmp_path / "hub/config.json").read_text())["pretrained_cfg"]
    assert (said["tag"], said["license"]) == ("", None)


@pytest.mark.parametrize(("asked", "licence"), [(None, "cc-by-nc-4.0"), ("MIT", "mit")])
def test_licence_of_published_weights_is_kept_until_another_is_asked_for(
    asked: str | None, licence: str, tmp_path: Path
) -> None:
    model = timm.create_model("test_resnet", pretrained_cfg_overlay={"license": "cc-by-nc-4.0"})
    publish.publish(Classifier("test_resnet", model, published=True), tmp_path / "hub", licence=asked)
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert config["pretrained_cfg"]["license"] == front_matter(tmp_path / "hub")["license"] == licence
    assert "license_name" not in front_matter(tmp_path / "hub")
    assert f"Licence of these weights: {licence}" in (tmp_path / "hub/README.md").read_text()


@pytest.mark.parametrize("name", ["davit_tiny_fused", "maxvit_pico_rw_256_fused", "shvit_s1_fused"])
def test_timms_own_network_takes_the_weights_as_the_card_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load_classifier(name, write_checkpoint(tmp_path / "w.safetensors", name))
    publish.publish(classifier, tmp_path / "hub")
    monkeypatch.chdir(tmp_path / "hub")
    (line,) = [line for line in Path("README.md").read_text().splitlines() if line.startswith("model = timm.")][1:]
    plain = eval(line.removeprefix("model = "), {"timm": timm}).eval()
    assert type(plain).__module__.startswith("timm.")
    images = noise(1, *timm.get_pretrained_cfg(name).input_size)
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), classifier.model(images), rtol=1e-4, atol=1e-4)


def test_model_of_timm_needs_no_vertebra_to_load(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    publish.publish(Classifier("test_resnet", model, LABELS, LABELS), tmp_path / "hub")
    assert "import vertebra" not in (tmp_path / "hub" / "README.md").read_text()
    assert "vertebra" not in front_matter(tmp_path / "hub")["tags"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {"in_chans": 4}),
        ("test_resnet", {"global_pool": "max"}),
        ("van_b0", {"in_chans": 1, "depths": [1, 1, 1, 1]}),
        ("maxvit_pico_rw_256_fused", {"img_size": [64, 64], "depths": [1, 1, 1, 1]}),
    ],
)
def test_options_of_a_model_come_back(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = timm.create_model(name, num_classes=4, **options)
    meta = {"model_name": name, "num_classes": 4, "options": options}
    save_file(made.state_dict(), tmp_path / "w.safetensors", metadata={"vertebra": json.dumps(meta)})
    classifier = load_classifier(name, tmp_path / "w.safetensors")
    publish.publish(classifier, tmp_path / "hub")
    images = noise(1, *classifier.data["input_size"])
    assert images.shape[1] == options.get("in_chans", 3)
    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "hub")(images), made.eval()(images))


# ---- the command line


def test_help_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        publish.main(["--help"])
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("  vertebra publish van_b0")
