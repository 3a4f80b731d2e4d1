"""Every layout of a checkpoint loads into every use of a model; what does not fit is refused, and its keys named."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

Weights = dict[str, Tensor]
Build = Callable[..., nn.Module]


def load(build: Build, name: str, checkpoint: dict[str, Any], **options: Any) -> nn.Module:
    """Load through timm as a download does: its loader hands the file's content to our filter as it is."""
    return build(name, pretrained=True, pretrained_cfg_overlay={"state_dict": checkpoint}, **options)


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def classifier(name: str) -> str:
    """The prefix of the classifier's keys: what stands in a head before it belongs to the trunk's file."""
    return f"{timm.get_pretrained_cfg(name).classifier}."


def zeros(weights: Weights) -> Weights:
    return {key: torch.zeros_like(value) for key, value in weights.items()}


def assert_same(model: nn.Module, expected: Weights, parts: str = "") -> None:
    given = {key: value for key, value in model.state_dict().items() if key.startswith(parts)}
    assert given
    for key, value in given.items():
        assert torch.equal(value, expected[key]), key


def drawn(model: nn.Module) -> Weights:
    """Weights of a model that no initialisation gives, so that what was not loaded shows."""
    generator = torch.Generator().manual_seed(7)
    return {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }


# --- layouts ---

LAYOUTS: dict[str, Callable[[Weights], dict[str, Any]]] = {
    "flat": lambda w: w,
    "model": lambda w: {"model": w, "epoch": 3},
    "state_dict": lambda w: {"state_dict": w, "meta": {"epoch": 3}},
    "model_ema": lambda w: {"model_ema": w},
    "state_dict_ema": lambda w: {"state_dict_ema": w},
    "module.": lambda w: prefixed(w, "module."),
    "model, module.": lambda w: {"model": prefixed(w, "module.")},
    "model_ema before model": lambda w: {"model": zeros(w), "model_ema": w},
    "state_dict_ema before all": lambda w: {
        "model": zeros(w),
        "state_dict": zeros(w),
        "model_ema": zeros(w),
        "state_dict_ema": w,
    },
    "backbone. with the head in it": lambda w: {"state_dict": prefixed(w, "backbone."), "meta": {}},
    "module.backbone.": lambda w: {"state_dict": prefixed(w, "module.backbone.")},
}


def in_every_run(*layouts: str) -> list[Any]:
    """All layouts; those that are not named follow in `make test-all`."""
    return [pytest.param(layout, marks=() if layout in layouts else pytest.mark.all) for layout in LAYOUTS]


@pytest.mark.all  # test_golden.py loads them in one layout
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_authors_keys_load_in_every_layout(
    golden: Callable[[str], Any], stem: str, golden_name: str, layout: str
) -> None:
    weights = golden(stem).weights()
    expected = load(timm.create_model, golden_name, weights).state_dict()  # right by test_golden.py
    trunk = "stages." if golden(stem).dense else ""  # a dense file leaves the head as drawn
    assert_same(load(timm.create_model, golden_name, LAYOUTS[layout](weights)), expected, trunk)


@pytest.mark.parametrize("layout", in_every_run("flat", "model, module.", "state_dict_ema before all"))
def test_our_own_keys_load_in_every_layout(small: Build, family: str, layout: str) -> None:
    weights = drawn(small(family))
    assert_same(load(small, family, LAYOUTS[layout](weights)), weights)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_and_a_url_load_like_the_weights_themselves(
    small: Build, family: str, tmp_path: Path, suffix: str
) -> None:
    weights = drawn(small(family))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": weights}, path)
    else:
        save_file(weights, path)
    sources = [{"file": str(path)}]
    if suffix == ".pth":
        sources.append({"url": path.as_uri(), "hf_hub_id": None})
    for source in sources:
        model = small(family, pretrained=True, pretrained_cfg_overlay=source, cache_dir=tmp_path / "cache")
        assert_same(model, weights)


def test_counters_that_old_files_lack_do_not_matter(small: Build, family: str) -> None:
    weights = drawn(small(family))
    without = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    assert_same(load(small, family, without), weights)


# --- uses ---


def test_features_and_headless_models_take_the_trunk_of_a_classifiers_file(small: Build, family: str) -> None:
    weights = drawn(small(family))
    assert_same(load(small, family, weights, num_classes=0), weights)
    features = load(small, family, weights, features_only=True)
    assert_same(features, prefixed(weights, "model."))


@pytest.mark.parametrize("chans", [1, 4])
def test_the_first_convolution_is_adapted_to_the_images_channels(small: Build, family: str, chans: int) -> None:
    weights = drawn(small(family))
    model = load(small, family, weights, in_chans=chans)
    first = model.pretrained_cfg["first_conv"] + ".weight"
    given = model.state_dict()
    assert torch.equal(given.pop(first), adapt_input_conv(chans, weights[first]))
    assert all(torch.equal(value, weights[key]) for key, value in given.items())


@pytest.mark.parametrize("classes", [10, 21841])
def test_a_head_of_another_size_loads_where_the_model_has_that_size(small: Build, family: str, classes: int) -> None:
    weights = drawn(small(family, num_classes=classes))
    model = load(small, family, weights, num_classes=classes)
    assert_same(model, weights)
    assert model.pretrained_cfg["num_classes"] == classes


def test_a_head_of_another_size_is_left_out_and_said(
    small: Build, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    classes = small(family).num_classes or 1000  # some are built without a classifier
    weights = drawn(small(family, num_classes=7))
    model = load(small, family, weights, num_classes=classes)
    assert_same(model, weights, "stages.")
    assert_same(model, small(family, num_classes=classes).state_dict(), classifier(family))
    assert f"head has 7 classes, the model's {classes};" in caplog.text


def test_transfer_to_other_classes_keeps_the_trunk_and_is_no_warning(
    small: Build, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    published = small(family)
    weights = drawn(published)
    with caplog.at_level(logging.WARNING):
        model = load(small, family, weights, num_classes=10)
    assert_same(model, weights, "stages.")
    assert_same(model, small(family, num_classes=10).state_dict(), classifier(family))
    assert (caplog.text == "") == (published.num_classes > 0)  # of a file that never had a head, that is said


def test_loading_leaves_the_registered_cfg_alone(small: Build, family: str) -> None:
    before = timm.get_pretrained_cfg(family).num_classes
    load(small, family, drawn(small(family, num_classes=10)), num_classes=10)
    assert timm.get_pretrained_cfg(family).num_classes == before != 10


# --- detectors' files ---


def detector(weights: Weights) -> dict[str, Any]:
    """A detector's file: the trunk under `backbone.`, and parts of which the model knows nothing."""
    trunk = {key: value for key, value in weights.items() if not key.startswith(("head.", "norm."))}
    others = {"neck.fpn_convs.0.conv.weight": torch.zeros(1), "bbox_head.fc_cls.weight": torch.zeros(1)}
    return {"state_dict": prefixed(trunk, "backbone.") | others, "meta": {}}


def test_a_detectors_file_gives_the_trunk_and_leaves_the_head_as_built(
    small: Build, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = drawn(small(family))
    model = load(small, family, detector(weights))
    assert_same(model, weights, "stages.")
    assert_same(model, small(family).state_dict(), "head.")
    assert ("head" in caplog.text) == (model.num_classes > 0)
    assert "as initialised" in caplog.text


def test_a_detectors_file_is_not_worth_a_word_where_there_is_no_head(
    small: Build, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = drawn(small(family))
    with caplog.at_level(logging.WARNING):
        assert_same(load(small, family, detector(weights), features_only=True), prefixed(weights, "model."))
    assert "head" not in caplog.text


# --- what does not fit ---

USES = [{}, {"features_only": True}, {"num_classes": 10}, {"num_classes": 0}, {"in_chans": 1}]


@pytest.mark.parametrize("use", USES, ids=str)
def test_another_familys_file_is_refused_by_the_names_of_its_keys(
    small: Build, family: str, use: dict[str, Any]
) -> None:
    foreign = timm.create_model("resnet10t").state_dict()
    with pytest.raises(
        ValueError, match=rf"does not fit {family}: .* missing keys \(.* unknown keys \(conv1\.0\.weight"
    ):
        load(small, family, foreign, **use)


@pytest.mark.parametrize("use", USES, ids=str)
def test_a_file_without_one_key_of_the_trunk_is_refused_by_its_name(
    small: Build, family: str, use: dict[str, Any]
) -> None:
    weights = drawn(small(family))
    lost = [key for key in weights if key.startswith("stages.2.") and "num_batches" not in key][-1]
    del weights[lost]
    with pytest.raises(ValueError, match=rf": 1 missing key \({lost}\)$"):
        load(small, family, weights, **use)


@pytest.mark.parametrize("use", USES, ids=str)
def test_a_file_with_one_key_too_many_is_refused_by_its_name(small: Build, family: str, use: dict[str, Any]) -> None:
    weights = drawn(small(family)) | {"stages.2.blocks.9.gamma": torch.zeros(1)}
    with pytest.raises(ValueError, match=r": 1 unknown key \(stages\.2\.blocks\.9\.gamma\)$"):
        load(small, family, weights, **use)


@pytest.mark.parametrize("use", USES, ids=str)
def test_a_file_with_another_width_is_refused_by_key_and_shape(small: Build, family: str, use: dict[str, Any]) -> None:
    weights = drawn(small(family))
    wide = next(key for key in weights if key.startswith("stages.1.blocks"))
    shape = tuple(weights[wide].shape)
    weights[wide] = torch.zeros(2 * shape[0], *shape[1:])
    with pytest.raises(ValueError, match=rf"1 wrongly shaped key \({wide} \({2 * shape[0]},.*for \({shape[0]},"):
        load(small, family, weights, **use)


def test_a_file_of_another_variant_is_refused(small: Build, family: str) -> None:
    few = [len(stage.blocks) for stage in small(family).stages]
    deeper = drawn(small(family, depths=(*few[:-1], few[-1] + 1)))
    with pytest.raises(ValueError, match=rf"unknown keys \(stages\.{len(few) - 1}\.blocks\.{few[-1]}"):
        load(small, family, deeper)


@pytest.mark.parametrize("checkpoint", [{"model": {}}, {"epoch": 3}], ids=str)
def test_a_file_without_weights_is_refused(small: Build, family: str, checkpoint: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no weights"):
        load(small, family, checkpoint)
