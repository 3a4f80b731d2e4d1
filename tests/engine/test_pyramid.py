"""The backbone wrapper gives detectors the maps, the norms and the weights that its config asks for."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

pytest.importorskip("mmengine")
from authors_files import AUTHORS, authors_backbone
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from vertebra.backbones._errors import UserError
from vertebra.engine import pyramid, pyramid_weights
from vertebra.engine.pyramid import TimmPyramid

ONE_BLOCK = {"depths": (1, 1, 1, 1)}
VAN = {"model_name": "van_b0", **ONE_BLOCK}
IMAGE = (2, 3, 70, 101)


class Detector(BaseModule):
    """What stands around a backbone: its keys begin with `backbone.`, and there is a neck."""

    def __init__(self, init_cfg: dict[str, Any] | None = None, **backbone: Any) -> None:
        super().__init__(init_cfg)
        self.backbone = MODELS.build({"type": "TimmPyramid", **backbone})
        self.neck = nn.Conv2d(1, 1, 1)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def save(path: Path, weights: dict[str, Tensor]) -> str:
    torch.save({"state_dict": weights}, path)
    return str(path)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is written into mmengine's log."""
    monkeypatch.setattr(pyramid.MMLogger, "get_current_instance", lambda: logging.getLogger("of_the_test"))
    caplog.set_level(logging.INFO, "of_the_test")
    return caplog


# --- maps ---


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        (VAN, [4, 8, 16, 32]),
        ({"model_name": "shvit_s1_fused", "depths": (1, 1, 1)}, [16, 32, 64]),
        ({"model_name": "shvit_s1"}, [16, 32, 64]),
        ({"model_name": "resnet18"}, [4, 8, 16, 32]),
        ({"model_name": "convnext_atto", **ONE_BLOCK}, [4, 8, 16, 32]),
        ({"model_name": "swin_tiny_patch4_window7_224", "depths": (2, 1, 1, 1)}, [4, 8, 16, 32]),
        ({"model_name": "maxvit_pico_rw_256"}, [4, 8, 16, 32]),
        ({"model_name": "efficientnet_b0"}, [4, 8, 16, 32]),
    ],
    ids=lambda value: value["model_name"] if isinstance(value, dict) else "",
)
@torch.no_grad()
def test_every_map_of_stride_four_or_more_leaves_at_any_size_of_image(
    options: dict[str, Any], strides: list[int]
) -> None:
    model = TimmPyramid(**options).eval()
    maps = model(torch.randn(*IMAGE))
    assert model.strides == strides
    assert [x.shape[1] for x in maps] == model.out_channels
    for x, stride in zip(maps, strides, strict=True):
        assert all(abs(got - side / stride) <= 1 for got, side in zip(x.shape[2:], IMAGE[2:], strict=True))
        assert x.is_contiguous()


@torch.no_grad()
def test_given_and_negative_indices_count_all_maps_of_the_model() -> None:
    model = TimmPyramid("resnet18", out_indices=(0, -3)).eval()
    assert (model.out_indices, model.out_channels, model.strides) == ((0, 2), [64, 128], [2, 8])
    assert [x.shape[1:] for x in model(torch.randn(1, 3, 64, 64))] == [(64, 32, 32), (128, 8, 8)]


def test_what_no_map_needs_is_left_out_so_that_every_parameter_learns() -> None:
    model = TimmPyramid(**VAN, out_indices=(0, 1), out_norms={"type": "BN"})
    sum(x.square().sum() for x in model(torch.randn(*IMAGE))).backward()
    assert all(value.grad is not None for value in model.parameters())


@pytest.mark.parametrize("indices", [None, (-4, -3, -2, -1)])
def test_a_plain_vit_is_sent_to_the_neck_that_makes_a_pyramid(indices: tuple[int, ...] | None) -> None:
    with pytest.raises(UserError, match=r"one stride, 16.*out_indices=\(-1,\).*SimplePyramid"):
        TimmPyramid("vit_tiny_patch16_224", out_indices=indices)


def test_maps_of_one_stride_leave_where_that_is_meant() -> None:
    assert TimmPyramid("vit_tiny_patch16_224", out_indices=(2, 5), one_stride=True).strides == [16, 16]


@torch.no_grad()
def test_the_last_map_of_a_plain_vit_leaves_at_any_size_of_image() -> None:
    model = TimmPyramid("vit_tiny_patch16_224", out_indices=(-1,)).eval()
    assert [x.shape for x in model(torch.randn(*IMAGE))] == [(2, 192, 5, 7)]


def test_a_model_of_one_size_says_so() -> None:
    model = TimmPyramid("efficientformerv2_s0").eval()
    with pytest.raises(UserError, match="efficientformerv2_s0 cannot take images of 70x101; it is made for 224x224"):
        model(torch.randn(*IMAGE))


def test_drop_path_is_the_models_own_unless_a_rate_is_given() -> None:
    def rate_of_last_block(**options: Any) -> float:
        block = TimmPyramid(**VAN, **options).body.stages[-1].blocks[-1]
        return getattr(block.drop_path, "drop_prob", 0.0)

    assert (rate_of_last_block(), rate_of_last_block(drop_path_rate=0.25)) == (0.0, 0.25)


# --- norms of what leaves ---


@pytest.mark.parametrize(("kind", "norm"), [("LN", nn.LayerNorm), ("BN", nn.BatchNorm2d)])
@torch.no_grad()
def test_output_norms_change_what_leaves_and_nothing_inside(kind: str, norm: type[nn.Module]) -> None:
    plain = TimmPyramid(**VAN)
    normed = TimmPyramid(**VAN, out_norms={"type": kind, "eps": 1e-3, "indices": (0, 3)})
    normed.body.load_state_dict(plain.body.state_dict())
    assert [(key, isinstance(value, norm), value.eps) for key, value in normed.norms.items()] == [
        ("0", True, 1e-3),
        ("3", True, 1e-3),
    ]
    for model in (plain, normed):
        model.eval()
    x = torch.randn(*IMAGE)
    raw, out = plain(x), normed(x)
    assert all(torch.equal(out[i], raw[i]) for i in (1, 2))
    assert all(torch.equal(out[i], normed.norms[str(i)](raw[i])) for i in (0, 3))
    assert not any(torch.equal(out[i], raw[i]) for i in (0, 3))


@pytest.mark.parametrize(("stem", "eps"), [("biformer_tiny_dense", 1e-6), ("cswin_tiny_dense", 1e-5)])
@torch.no_grad()
def test_maps_are_those_of_the_authors_dense_code(
    golden: Callable[[str], Any], tmp_path: Path, stem: str, eps: float
) -> None:
    record = golden(stem)
    file = save(tmp_path / "detector.pth", {f"backbone.{key}": value for key, value in record.weights().items()})
    name, norms, built = stem.removesuffix("_dense"), {"type": "LN", "eps": eps}, {}
    for run in record.runs:
        key = str(run["options"])
        built[key] = built.get(key) or TimmPyramid(name, out_norms=norms, pretrained=file, **run["options"]).eval()
        record.assert_maps(run, built[key](record.image(run)))


# --- frozen parts, BatchNorm, checkpointing ---


@pytest.mark.parametrize(
    ("options", "stem", "second_stage"),
    [
        (VAN, "stages.0.downsample.", "stages.1."),
        ({"model_name": "resnet18"}, ("conv1.", "bn1."), "layer2."),
        ({"model_name": "efficientnet_b0"}, ("conv_stem.", "bn1."), "blocks.2."),
        ({"model_name": "poolformerv2_s12"}, "stem.", "stages.1."),
        ({"model_name": "vgg11"}, "features.0.", "features.11."),
    ],
    ids=["van", "resnet", "efficientnet", "poolformer", "vgg"],
)
def test_frozen_stages_are_the_stem_and_so_many_stages(options: dict[str, Any], stem: Any, second_stage: Any) -> None:
    with torch.device("meta"):
        names = [name for name, _ in TimmPyramid(**options).body.named_parameters()]
    until = next(i for i, name in enumerate(names) if name.startswith(second_stage))
    for stages, expected in ((-1, []), (0, [name for name in names if name.startswith(stem)]), (1, names[:until])):
        with torch.device("meta"):
            model = TimmPyramid(**options, frozen_stages=stages)
        assert [name for name, value in model.body.named_parameters() if not value.requires_grad] == expected


def test_frozen_stages_stay_in_eval_mode_and_the_others_train() -> None:
    model = TimmPyramid(**VAN, frozen_stages=2, drop_path_rate=0.5).train()
    assert [stage.training for stage in model.body.stages] == [False, False, True, True]
    assert not any(module.training for stage in model.body.stages[:2] for module in stage.modules())


def test_norm_eval_keeps_statistics_and_lets_weights_train() -> None:
    model = TimmPyramid("shvit_s1_fused", depths=(1, 1, 1), norm_eval=True).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    sum(x.square().sum() for x in model(torch.randn(*IMAGE))).backward()
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight.grad is not None and not norm.training for norm in norms)
    assert model.body.stages[0].training


@pytest.mark.parametrize("options", [VAN, {"model_name": "resnet18"}], ids=["van", "resnet"])
def test_with_cp_runs_blocks_twice_for_the_same_gradients(options: dict[str, Any]) -> None:
    plain, saving = TimmPyramid(**options), TimmPyramid(**options, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    calls = []
    block = dict(saving.body.named_modules()).get("layer3.0") or saving.body.stages[2].blocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(*IMAGE)
    for model in (plain, saving):
        model.eval()
        sum(out.square().mean() for out in model(x)).backward()
    assert len(calls) == 2
    for first, second in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-5)


# --- bad options ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_name": "van_b9"}, r"no model 'van_b9'.*Did you mean.*van_b"),
        ({"model_name": "resnet18.nothing"}, r"Invalid pretrained tag \(nothing\)"),
        ({**VAN, "out_indices": (1, 4)}, r"out_indices is \(1, 4\).*4 maps.*from -4 to 3"),
        ({**VAN, "out_indices": (2, 1)}, r"out_indices is \(2, 1\).*ascending"),
        ({**VAN, "out_indices": ()}, r"out_indices is \(\)"),
        ({**VAN, "out_norms": {"type": "GN"}}, r"'GN'.*'LN' or 'BN'"),
        ({**VAN, "out_norms": {"type": "LN", "indices": (4,)}}, r"indices \(4,\).*0, 1, 2, 3"),
        ({**VAN, "frozen_stages": 5}, r"frozen_stages is 5.*up to 4"),
        ({**VAN, "depth": 3}, r"van_b0 takes no option 'depth'. Did you mean depths"),
        ({"model_name": "caformer_s18", "depths": (1, 1, 1, 1)}, r"caformer_s18 sets 'depths' itself"),
        ({**VAN, "num_classes": 3}, r"TimmPyramid sets num_classes itself"),
        ({"model_name": "shvit_s1", "drop_path_rate": 0.1}, r"shvit_s1 takes no option 'drop_path_rate'"),
        ({**VAN, "init_cfg": {"type": "Normal"}}, r"init_cfg is .*Pretrained"),
        ({**VAN, "pretrained": True, "init_cfg": {"type": "Pretrained", "checkpoint": "x"}}, r"keep one of them"),
    ],
)
def test_a_bad_option_is_said_in_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TimmPyramid(**options)


# --- weights ---


def test_keys_are_timms_under_body_and_the_norms_by_the_number_of_their_map() -> None:
    detector = Detector(**VAN, out_indices=(1, 2, 3), out_norms={"type": "LN"})
    timms = {f"backbone.body.{key}" for key in timm.create_model("van_b0", num_classes=0, **ONE_BLOCK).state_dict()}
    norms = {f"backbone.norms.{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")}
    assert {key for key in detector.state_dict() if key.startswith("backbone.")} == timms | norms


def test_a_classifiers_file_loads_and_the_report_says_what_was_left_over(
    tmp_path: Path, report: pytest.LogCaptureFixture
) -> None:
    classifier = timm.create_model("van_b0", num_classes=7, **ONE_BLOCK)
    file = save(tmp_path / "classifier.pth", classifier.state_dict())
    model = TimmPyramid(**VAN, out_norms={"type": "LN"}, pretrained=file)
    trunk = {key: value for key, value in classifier.state_dict().items() if not key.startswith("head.")}
    assert same(model.body.state_dict(), trunk)
    assert "as initialised: norms.0.weight" in report.text
    assert "not used: head.fc.weight, head.fc.bias" in report.text


@pytest.mark.parametrize("outer", ["", "backbone."], ids=["alone", "in a detector"])
def test_our_own_files_load_with_their_output_norms(tmp_path: Path, outer: str) -> None:
    options = {**VAN, "out_norms": {"type": "BN"}}
    trained = TimmPyramid(**options)
    nn.init.normal_(trained.norms["2"].weight)
    weights = {f"{outer}{key}": value for key, value in trained.state_dict().items()}
    file = save(tmp_path / "detector.pth", weights | {"bbox_head.bias": torch.zeros(1)})
    assert same(TimmPyramid(**options, pretrained=file).state_dict(), trained.state_dict())


def test_init_cfg_takes_the_keys_under_its_prefix(tmp_path: Path) -> None:
    trained = TimmPyramid(**VAN)
    weights = {f"student.backbone.{key}": value for key, value in trained.body.state_dict().items()}
    file = save(tmp_path / "detector.pth", weights | {"teacher.backbone.x": torch.zeros(1)})
    model = TimmPyramid(**VAN, init_cfg={"type": "Pretrained", "checkpoint": file, "prefix": "student.backbone"})
    assert same(model.state_dict(), trained.state_dict())
    with pytest.raises(UserError, match=r"no keys that begin with 'x\.'"):
        TimmPyramid(**VAN, init_cfg={"type": "Pretrained", "checkpoint": file, "prefix": "x."})


@pytest.mark.parametrize("stem", [stem for stem in AUTHORS if not stem.endswith("_dense")])
@torch.no_grad()
def test_a_detector_takes_the_authors_whole_file_by_plain_load_state_dict(
    golden: Callable[[str], Any], stem: str
) -> None:
    name, _, norms, first = AUTHORS[stem]
    out_norms = {"type": "LN", "indices": tuple(range(first, 4))} if norms else None
    detector = Detector(model_name=name, out_norms=out_norms).eval()
    backbone = detector.backbone
    file = authors_backbone(golden(stem).weights(), stem, backbone.out_channels)
    file |= {"neck.weight": torch.zeros(1, 1, 1, 1), "neck.bias": torch.zeros(1)}
    assert not any(detector.load_state_dict(file))
    for prefix in norms:
        ours = backbone.norms[prefix.removeprefix("norm")]
        assert torch.equal(ours.weight, file[f"backbone.{prefix}.weight"])
        assert torch.equal(ours.bias, file[f"backbone.{prefix}.bias"])
    backbone.norms.clear()
    run = next(run for run in golden(stem).runs if not run["options"])
    golden(stem).assert_maps(run, backbone(golden(stem).image(run)))


def test_mmengines_loader_takes_foreign_keys_too() -> None:
    trained = timm.create_model("van_b0", **ONE_BLOCK)
    detector = Detector(**VAN)
    given = {f"backbone.{key}": value for key, value in trained.state_dict().items()}
    load_state_dict(detector, given | {f"neck.{key}": value for key, value in detector.neck.state_dict().items()}, True)
    kept = detector.backbone.body.state_dict()
    assert same(kept, {key: trained.state_dict()[key] for key in kept})


def test_keys_of_ours_pass_untouched_through_load_state_dict() -> None:
    first, second = Detector(**VAN), Detector(**VAN)
    second.load_state_dict(first.state_dict())
    assert same(second.state_dict(), first.state_dict())


@pytest.mark.parametrize(
    ("name", "other", "said"),
    [
        ("van_b0", lambda: TimmPyramid("van_b1", **ONE_BLOCK), r"does not fit van_b0: .*wrongly shaped.*stages\.0"),
        (
            "van_b0",
            lambda: TimmPyramid("van_b0", depths=(2, 1, 1, 1)),
            r"does not fit van_b0: .*unknown.*stages\.0\.blocks\.1",
        ),
        (
            "resnet18",
            lambda: timm.create_model("resnet34"),
            r"does not fit resnet18: .*layer1\.2.*which the model has not",
        ),
        ("van_b0", lambda: timm.create_model("resnet10t"), r"does not fit van_b0"),
    ],
    ids=["wider", "deeper", "deeper, timm's", "of another family"],
)
def test_the_file_of_another_model_is_refused_with_the_keys_at_fault(
    tmp_path: Path, name: str, other: Callable[[], nn.Module], said: str
) -> None:
    file = save(tmp_path / "other.pth", other().state_dict())
    with pytest.raises(UserError, match=r"checkpoint .*other\.pth.*" + said):
        TimmPyramid(name, pretrained=file, **(ONE_BLOCK if name == "van_b0" else {}))


def test_output_norms_of_another_width_are_refused(tmp_path: Path) -> None:
    options = {**VAN, "out_norms": {"type": "LN"}}
    weights = TimmPyramid(**options).state_dict() | {"norms.1.weight": torch.ones(3)}
    with pytest.raises(UserError, match=r"other.pth does not fit van_b0: norms\.1\.weight have another shape"):
        TimmPyramid(**options, pretrained=save(tmp_path / "other.pth", weights))


def test_a_checkpoint_with_a_part_of_the_backbone_leaves_the_rest_to_the_weights_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    detector = Detector(pretrained=str(path), **VAN)  # not there yet
    expected = {key: value + 1 for key, value in weights_of(detector.backbone).items() if value.is_floating_point()}
    save(path, expected)
    part = "body.stages.0.downsample.conv.weight"
    expected[part] = expected[part] + 1
    detector.load_state_dict({f"backbone.{part}": expected[part]}, strict=False)
    found = detector.backbone.state_dict()
    assert same({key: found[key] for key in expected}, expected)


def test_init_weights_neither_changes_weights_nor_reads_the_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = pyramid_weights.read_checkpoint
    monkeypatch.setattr(pyramid_weights, "read_checkpoint", lambda path: reads.append(path) or read(path))
    file = save(tmp_path / "classifier.pth", timm.create_model("van_b0", **ONE_BLOCK).state_dict())
    everything = {"type": "Constant", "layer": ["Conv2d", "BatchNorm2d", "LayerNorm"], "val": 3.0, "bias": 3.0}
    detector = Detector(init_cfg=everything, **VAN, pretrained=file)
    before = weights_of(detector.backbone)
    detector.init_weights()
    detector.backbone(torch.randn(*IMAGE))
    assert reads == [file]
    assert all(torch.equal(value, before[key]) for key, value in detector.backbone.named_parameters())
    assert detector.neck.weight.item() == 3.0


@pytest.mark.parametrize(
    "first_use", [BaseModule.init_weights, lambda detector: detector.backbone(torch.randn(*IMAGE))]
)
def test_a_file_that_comes_later_is_read_at_first_use(tmp_path: Path, first_use: Callable[[Detector], Any]) -> None:
    trained = TimmPyramid(**VAN).eval()
    detector = Detector(**VAN, pretrained=str(tmp_path / "later.pth")).eval()
    with pytest.raises(UserError, match=r"later.pth does not exist"):
        first_use(detector)
    save(tmp_path / "later.pth", trained.state_dict())
    first_use(detector)
    assert same(detector.backbone.state_dict(), trained.state_dict())


def test_a_checkpoint_that_is_loaded_makes_the_pretrained_file_unneeded(tmp_path: Path) -> None:
    trained, detector = Detector(**VAN), Detector(**VAN, pretrained=str(tmp_path / "missing.pth"))
    detector.load_state_dict(trained.state_dict())
    detector.init_weights()
    assert same(detector.backbone.state_dict(), trained.backbone.state_dict())


def test_published_weights_are_the_models_as_timm_loads_them(tmp_path: Path) -> None:
    overlay = {"file": save(tmp_path / "published.pth", timm.create_model("van_b0", **ONE_BLOCK).state_dict())}
    expected = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay=overlay, **ONE_BLOCK)
    detector = Detector(**VAN, pretrained=True, pretrained_cfg_overlay=overlay)
    detector.init_weights()
    kept = detector.backbone.body.state_dict()
    assert same(kept, {key: expected.state_dict()[key] for key in kept})


@pytest.mark.parametrize("name", ["biformer_tiny", "van_b4"])
def test_weights_that_no_link_leads_to_are_asked_for_as_a_file(name: str) -> None:
    model = TimmPyramid(name, pretrained=True, **ONE_BLOCK)
    with pytest.raises(UserError, match=rf"no direct link leads to weights of {name};.*pretrained=FILE"):
        model.init_weights()


def test_a_copy_is_a_model_of_its_own() -> None:
    model = TimmPyramid(**VAN, frozen_stages=1, norm_eval=True, out_norms={"type": "LN"}).train()
    other = copy.deepcopy(model).train()
    nn.init.zeros_(other.norms["0"].weight)
    assert torch.equal(model.norms["0"].weight, torch.ones(32))
    assert [stage.training for stage in other.body.stages] == [False, True, True, True]
