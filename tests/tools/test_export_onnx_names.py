"""export_onnx for every name: one block a stage and ten classes, compared at two sizes that nothing was traced at."""

from pathlib import Path

import pytest
import timm
import torch
from onnx_files import assert_close, constant_bytes, free_axes, run
from small_networks import one_per_family
from vertebra.backbones import model_names
from vertebra.tools._classifier import Classifier
from vertebra.tools._export.classifier import OnnxReport, export

CLASSIFIERS = {"biformer_tiny", "litv2_small", "l2vit_tiny", "davit_tiny_fused"}
MAPS = {"transnext_micro", "cswin_tiny", "maxvit_pico_rw_256_fused", "shvit_s1_fused"}
"""What `make test` has the time for: one name a family, beside the VAN of test_export_onnx.py."""


def build(name: str, side: int = 64) -> Classifier:
    """One block a stage, with its own image size left aside: traces of small images are quicker."""
    torch.manual_seed(0)
    stages = len(timm.create_model(name, device="meta").stages)
    options = {"depths": (1,) * stages}
    model = timm.create_model(name, num_classes=10, **options)
    return Classifier(name, model, options=options, changes={"input_size": (3, side, side)})


def check(classifier: Classifier, path: Path, report: OnnxReport, most: float = 1.0) -> None:
    """Agreement, and constants of about the parameters' bytes, `most` times as many."""
    assert report.difference <= 1e-4
    own = sum(value.nbytes for value in classifier.model.state_dict().values())
    assert constant_bytes(path) <= most * own + 50_000


def names(spread: set[str]) -> list[object]:
    return [pytest.param(name, marks=[] if name in spread else [pytest.mark.all]) for name in model_names()]


@pytest.mark.parametrize("name", names(CLASSIFIERS))
def test_every_name_exports_with_free_sizes_and_no_needless_constants(name: str, tmp_path: Path) -> None:
    classifier = build(name)
    report = export(classifier, tmp_path / "m.onnx")
    assert free_axes(tmp_path / "m.onnx") == [0, 2, 3]
    check(classifier, tmp_path / "m.onnx", report)


@pytest.mark.all
@pytest.mark.parametrize("name", one_per_family())
def test_every_family_exports_from_the_size_that_users_trace_it_at(name: str, tmp_path: Path) -> None:
    """The windowed ones need no padding there, and do at all sizes that are compared."""
    side = timm.get_pretrained_cfg(name).input_size[1]
    classifier = build(name, side)
    report = export(classifier, tmp_path / "m.onnx")
    assert report.checks[-1].shape == (1, 3, side, side)
    check(classifier, tmp_path / "m.onnx", report)


@pytest.mark.all
@pytest.mark.parametrize("name", one_per_family())
def test_every_family_answers_at_the_least_size_and_a_little_above(name: str, tmp_path: Path) -> None:
    """Where maps have one pixel a side, or windows are mostly padding."""
    classifier = build(name)
    export(classifier, tmp_path / "m.onnx")
    for shape in ((1, 3, 32, 32), (2, 3, 33, 47)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            expected = classifier.model.eval()(images)
        assert_close(run(tmp_path / "m.onnx", images)[0], expected)


@pytest.mark.all
@pytest.mark.parametrize(
    ("name", "side", "most"),
    [("transnext_micro", 224, 1.1), ("maxvit_tiny_tf_224_fused", 224, 1.05), ("maxvit_rmlp_pico_rw_256_fused", 256, 1)],
)
def test_fixed_sizes_need_few_more_constants(name: str, side: int, most: float, tmp_path: Path) -> None:
    """All make tables of positions, which a fixed size could unfold, and does more the larger it is."""
    classifier = build(name, side)
    report = export(classifier, tmp_path / "m.onnx", static=(side, side))
    assert free_axes(tmp_path / "m.onnx") == [0]
    check(classifier, tmp_path / "m.onnx", report, most)


@pytest.mark.parametrize("name", names(MAPS))
def test_every_name_exports_its_maps(name: str, tmp_path: Path) -> None:
    classifier = build(name)
    report = export(classifier, tmp_path / "m.onnx", features=True)
    assert free_axes(tmp_path / "m.onnx") == [0, 2, 3]
    check(classifier, tmp_path / "m.onnx", report)
    maps = timm.create_model(name, features_only=True, device="meta", **classifier.options)
    assert list(report.outputs) == [f"stride{stride}" for stride in maps.feature_info.reduction()]
