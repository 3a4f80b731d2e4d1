"""`vertebra visualize`: every kind is drawn over the picture and listed; what cannot be drawn is one sentence."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_networks import write_weights
from vertebra.backbones._errors import UserError
from vertebra.kernels.window_attention import window_attention
from vertebra.tools import infer, visualize
from vertebra.tools._classifier import Classifier, load_classifier
from vertebra.tools._common import run_tool
from vertebra.tools._visualize.attention_maps import Call
from vertebra.tools._visualize.inside import KINDS, Inside, choose
from vertebra.tools._visualize.looks import Subject
from vertebra.tools.visualize import class_index, main, make_subject

FOUR = (1, 1, 1, 1)


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block a stage, and images of 64 x 64 pixels, in models of ours."""
    monkeypatch.setattr(visualize, "load_classifier", load_shallow)


def load_shallow(name: str, checkpoint: str | None, device: torch.device) -> Classifier:
    labels = ["cat", "dog", "3", "fox"]
    if name.startswith("test_"):
        return Classifier(name, timm.create_model(name, num_classes=4).eval(), labels)
    model = timm.create_model(name, depths=FOUR[: 3 if name.startswith("shvit") else 4], num_classes=4).eval()
    return Classifier(name, model, labels, changes={"input_size": (3, 64, 64)})


@pytest.fixture
def real(shallow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models as the tool loads them."""
    monkeypatch.setattr(visualize, "load_classifier", load_classifier)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """400 x 300 pixels of noise."""
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def looks(photo: Path, name: str, *options: str) -> dict[str, dict[str, Any]]:
    """What results.json says of each picture, by kind and layer."""
    out = photo.parent / "out"
    assert main([name, str(photo), "--out", str(out), "--samples", "1", "--device", "cpu", *options]) == 0
    results = json.loads((out / "results.json").read_text())
    assert {result["picture"] for result in results} == {path.name for path in out.glob("*.png")}
    for result in results:
        with Image.open(out / result["picture"]) as picture:
            assert picture.width == 400
            assert picture.height > 300  # the caption
            assert picture.convert("RGB").getpixel((399, picture.height - 1)) == (255, 255, 255)
        assert result["size"] == [300, 400]
        assert result["image"] == str(photo)
    return {f"{result['kind']} {result['layer']}": result for result in results}


def test_every_kind_that_a_model_has_is_drawn_and_listed(photo: Path) -> None:
    found = looks(photo, "biformer_tiny")
    layers = {kind: [key.split()[1] for key in found if key.startswith(f"{kind} ")] for kind in KINDS}
    routed = [f"stages.{i}.blocks.0.attn" for i in range(3)]
    assert layers == {
        "attention": [*routed, "stages.3.blocks.0.attn"],
        "routes": routed,
        "windows": [],
        "cam": ["stages.3"],
        "erf": ["stages.3"],
    }
    assert len(found["routes stages.1.blocks.0.attn"]["routed"]) == 4
    assert found["erf stages.3"]["side"] > 0
    assert found["attention stages.0.blocks.0.attn"]["at"] == [200, 150]


def test_windows_of_a_family_and_the_heads_of_one_stage(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = looks(photo, "davit_tiny_fused", "--layer", "stages.1", "--kind", "windows", "attention", "--head", "5")
    assert set(found) == {"windows stages.1.blocks.0.0.attn", "attention stages.1.blocks.0.0.attn"}
    assert found["windows stages.1.blocks.0.0.attn"]["windows"] == [[7, 7]]
    assert found["attention stages.1.blocks.0.0.attn"]["head"] == 5
    assert "weigh channels and not places: stages.0.blocks.0.1.attn" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit3", "test_convnext"])
def test_any_timm_model_has_grad_cam_and_a_receptive_field(photo: Path, name: str) -> None:
    found = looks(photo, name, "--class", "fox")
    assert [result["kind"] for result in found.values()] == ["cam", "erf"]
    assert next(iter(found.values()))["class"]["index"] == 3


@pytest.mark.usefixtures("real")
def test_a_file_brings_its_weights_and_labels(photo: Path) -> None:
    file = write_weights(photo.parent / "w.safetensors")
    found = looks(photo, "test_resnet", "--checkpoint", str(file), "--kind", "cam", "--class", "owl")
    (result,) = found.values()
    said = infer.classify(load_classifier("test_resnet", file), [Image.open(photo)])[0]
    score = next(entry["score"] for entry in said if entry["label"] == "owl")
    assert result["class"] == {"label": "owl", "index": 3, "score": score}
    assert result["checkpoint"] == str(file)


@pytest.mark.usefixtures("real")
def test_fresh_weights_are_said_to_be_random(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = looks(photo, "test_resnet", "--checkpoint", "fresh", "--kind", "cam").values()
    assert result["checkpoint"] == "fresh"
    assert "test_resnet: weights are fresh and random" in capsys.readouterr().err


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("van_b0", {}, "is of test_resnet, not of van_b0"),
        ("test_resnet", {"in_chans": 4}, "test_resnet takes 4 channels; a model that takes pictures, with 3, is"),
        ("test_resnet", {"poison": float("nan")}, "^test_resnet answers with NaN or infinity; weights that give"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence_and_nothing_is_written(
    photo: Path, name: str, options: dict[str, Any], sentence: str
) -> None:
    file = write_weights(photo.parent / "w.safetensors", **options)
    with pytest.raises(UserError, match=sentence):
        main([name, str(photo), "--out", str(photo.parent / "out"), "--checkpoint", str(file)])
    assert not (photo.parent / "out").exists()


def test_a_model_without_classes_has_all_but_grad_cam(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headless = Classifier("test_resnet", timm.create_model("test_resnet", num_classes=0).eval())
    monkeypatch.setattr(visualize, "load_classifier", lambda *_, **__: headless)
    assert [result["kind"] for result in looks(photo, "test_resnet").values()] == ["erf"]
    for options in (["--kind", "cam"], ["--class", "3"]):
        with pytest.raises(UserError, match="classifier"):
            main(["test_resnet", str(photo), "--out", str(photo.parent / "new"), *options])
    assert not (photo.parent / "new").exists()


@pytest.mark.parametrize(
    ("mode", "size", "drawn"),
    [
        ("L", (40, 30), (400, 300)),
        ("I;16", (40, 30), (400, 300)),
        ("RGBA", (40, 30), (400, 300)),
        ("1", (1, 1), (384, 384)),
        ("RGB", (1, 2500), (1, 1600)),
        ("RGB", (3200, 1000), (1600, 500)),
    ],
)
def test_pictures_of_any_mode_and_size_are_drawn_over(
    tmp_path: Path, mode: str, size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    Image.new(mode, size).save(tmp_path / "photo.png")
    assert main(["test_resnet", str(tmp_path / "photo.png"), "--out", str(tmp_path / "out"), "--samples", "1"]) == 0
    for result in json.loads((tmp_path / "out/results.json").read_text()):
        assert result["size"] == [size[1], size[0]]
        with Image.open(tmp_path / "out" / result["picture"]) as picture:
            assert picture.width == max(drawn[0], 240)  # or there is no room for a caption
            assert drawn[1] < picture.height < 2 * drawn[1] + 300


def test_a_place_is_given_and_told_in_pixels_of_a_large_picture(tmp_path: Path) -> None:
    subject = make_subject(
        load_shallow("test_resnet", None, torch.device("cpu")), Image.new("RGB", (4000, 3000)), "900,93"
    )
    assert subject.picture.size == (1600, 1200)
    assert subject.at == (900, 93)
    assert subject.view.back(*subject.place) == pytest.approx((900 * 0.4, 93 * 0.4))


def test_the_whole_picture_is_seen_where_that_is_asked_for(photo: Path) -> None:
    cut, whole = (looks(photo, "van_b0", "--kind", "cam", "--layer", "stages.0", *given) for given in ([], ["--whole"]))
    assert cut["cam stages.0"]["map"] == [16, 16]
    assert whole["cam stages.0"]["map"] == [18, 24]  # 71 x 94: 64 by the share that the crop takes, and as oblong
    assert (cut["cam stages.0"]["whole"], whole["cam stages.0"]["whole"]) == (False, True)


def test_a_place_beside_the_centre_is_seen_in_the_whole_picture() -> None:
    classifier, image = load_shallow("test_resnet", None, torch.device("cpu")), Image.new("RGB", (90, 60))
    with pytest.raises(UserError, match="with --whole it sees all of the picture"):
        make_subject(classifier, image, "3,31")
    subject = make_subject(classifier, image, "3,31", whole=True)
    assert subject.view.back(*subject.place) == pytest.approx((3 * 5, 31 * 5))
    with pytest.raises(UserError, match=r"it takes x from 0 to 90, y 0 to 60$"):
        make_subject(classifier, image, "3,61", whole=True)


def test_out_that_is_a_file_is_one_sentence(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photo.parent / "out").write_text("precious")
    assert run_tool(main, ["test_resnet", str(photo), "--out", str(photo.parent / "out"), "--kind", "cam"]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert "out" in message
    assert (photo.parent / "out").read_text() == "precious"


OF_FAMILIES = {
    "biformer_tiny": {"attention", "routes"},
    "cswin_tiny": {"attention", "windows"},
    "davit_tiny_fused": {"attention", "windows"},
    "l2vit_tiny": {"attention", "windows"},
    "litv2_small": {"attention", "windows"},
    "maxvit_pico_rw_256_fused": {"attention", "windows"},
    "shvit_s1_fused": {"attention"},
    "transnext_micro": {"attention"},
    "van_b0": set(),
}


@pytest.mark.all
@pytest.mark.parametrize("name", OF_FAMILIES)
def test_everything_that_a_family_has_is_drawn(photo: Path, name: str) -> None:
    found = looks(photo, name, "--samples", "1")
    assert {key.partition(" ")[0] for key in found} == OF_FAMILIES[name] | {"cam", "erf"}


REFUSED = {
    "van_b0 --kind attention": "--kind attention needs an attention .*, and van_b0 has none; it takes cam, erf",
    "test_resnet --kind windows": "--kind windows needs windows of .*, and test_resnet has none; it takes cam, erf",
    "shvit_s1_fused --layer stages.9": "--layer stages.9 is none to draw; it takes stages.1.blocks.0.mixer.m, ",
    "shvit_s1_fused --layer stages.1.blocks --kind cam": "--layer stages.1.blocks is none to draw; it takes stages.0, ",
    "shvit_s1_fused --head 1": "--head is 1; stages.1.blocks.0.mixer.m has the heads 0 to 0",
    "litv2_small --head 5": "--head is 5; stages.2.* has the heads 0 to 1",  # the attention before has 10
    "test_vit --whole": "test_vit cannot run on an image of ",
    "van_b0 --at 20,150": "--at is 20,150, which the model does not see; it takes x from ",
    "van_b0 --at middle": "--at is 'middle'; it takes X,Y in pixels of the picture, 200,150 say",
    "van_b0 --class bird": "--class is 'bird'; van_b0 takes numbers from 0 to 3, or labels as 'cat'",
    "van_b0 --kind erf --head 1": "--head 1 is for --kind attention; drawn would be erf",
    "van_b0 --kind erf --class cat": "--class cat is for --kind cam; drawn would be erf",
    "van_b0 --at 200,150": "--at 200,150 is for --kind attention or routes or windows; drawn would be cam, erf",
    "van_b0 --samples 0": "--samples is 0; it takes 1 or more",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_drawn_is_one_sentence_and_nothing_is_written(photo: Path, line: str) -> None:
    name, *options = line.split()
    with pytest.raises(UserError, match=REFUSED[line]):
        main([name, str(photo), "--out", str(photo.parent / "out"), "--device", "cpu", *options])
    assert not (photo.parent / "out").exists()


@pytest.mark.usefixtures("real")
def test_where_published_weights_cannot_be_had_others_are_named(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"shvit_s1_fused cannot be had .*; --checkpoint takes a file too, or `fresh`"):
        main(["shvit_s1_fused", str(photo), "--out", str(photo.parent / "out")])


def test_a_label_of_two_classes_is_asked_for_by_number() -> None:
    classifier = load_shallow("test_resnet", None, torch.device("cpu"))
    classifier.labels = ["crane", "dog", "crane", "fox"]
    with pytest.raises(UserError, match="'crane', the label of 0 and 2; test_resnet takes one of these numbers"):
        class_index(classifier, "crane")
    assert class_index(classifier, "2") == 2


def test_channels_have_no_map_over_the_picture(photo: Path) -> None:
    options = ["--layer", "stages.0.blocks.0.1", "--kind", "attention"]
    with pytest.raises(UserError, match="weighs channels and not places, so there is no map to draw"):
        main(["davit_tiny_fused", str(photo), "--out", str(photo.parent / "out"), *options])


def test_a_plain_model_of_timms_is_told_of_ours() -> None:
    inside = Inside({"attention": {}, "cam": {"stages.3": None}}, [])
    with pytest.raises(UserError, match="davit_tiny_fused is the same model with more to look at"):
        choose(inside, "davit_tiny.msft_in1k", ["attention"], None)


@pytest.mark.parametrize(("name", "kind"), [("davit_tiny", "routes"), ("shvit_s1", "windows")])
def test_ours_is_not_named_for_what_it_has_not_either(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=f"{name} has none; it takes cam$"):
        choose(Inside({kind: {}, "cam": {"stages.3": None}}, []), name, [kind], None)


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(UserError, match=r"photo\.png cannot be read as an image"):
        main(["van_b0", str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"none\.png cannot be read as an image: no such file"):
        main(["van_b0", str(tmp_path / "none.png"), "--out", str(tmp_path / "out")])


def test_the_users_picture_is_not_overwritten(photo: Path) -> None:
    own = photo.rename(photo.with_name("cam_stages.3.png"))
    before = own.read_bytes()
    with pytest.raises(UserError, match="would overwrite"):
        main(["van_b0", str(own), "--out", str(own.parent), "--kind", "cam"])
    assert own.read_bytes() == before


def test_a_class_is_known_by_its_label_first() -> None:
    classifier = load_shallow("test_resnet", None, torch.device("cpu"))
    assert [class_index(classifier, asked) for asked in ("dog", "3", "0", None)] == [1, 2, 0, None]


def small_subject(at: str) -> Subject:
    classifier = load_shallow("test_resnet", None, torch.device("cpu"))
    return make_subject(classifier, Image.new("RGB", (90, 60)), at)


@pytest.mark.parametrize("at", ["44,31", "20,3", "70.5,57"])
def test_the_token_asked_lies_over_the_place(at: str) -> None:
    subject = small_subject(at)
    layer = torch.nn.Identity()
    call = Call("", "", layer, window_attention, {}, (40, 40), 4)
    chosen = torch.zeros(40, 40)
    chosen[subject.token(call)] = 1
    x, y = (float(side) for side in at.split(","))
    assert subject.picture.size == (90 * 5, 60 * 5)
    assert subject.view.lay(chosen, 4)[int(y * 5), int(x * 5)] == 1
    assert subject.at == (x, y)
