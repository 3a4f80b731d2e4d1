"""What a checkpoint says of its run, and what another config makes of it."""

import pytest
from vertebra.backbones._errors import UserError
from vertebra.engine.config import read_config
from vertebra.engine.record import follow_backbone

DETECTOR = {"kind": "RetinaNet", "model_name": "van_b0"}


@pytest.fixture(autouse=True)
def _with_mm() -> None:
    pytest.importorskip("mmdet")


def test_a_config_takes_the_backbone_that_a_checkpoint_was_trained_with(capsys: pytest.CaptureFixture[str]) -> None:
    config = read_config("coco/retinanet_fpn_1x")
    follow_backbone(config, DETECTOR, "f.pth")
    assert config.model.backbone.model_name == "van_b0"
    assert config.model.neck.in_channels == [64, 160, 256]
    assert capsys.readouterr().out == "f.pth was trained with van_b0, which takes the place of the config's resnet50\n"


@pytest.mark.parametrize(
    "known",
    [{}, {"model_name": "van_b0"}, {"kind": "RetinaNet", "model_name": "resnet50"}],
    ids=["a bare file", "a classifier's file", "the same backbone"],
)
def test_other_checkpoints_leave_the_config_as_it_is(known: dict[str, str]) -> None:
    config = read_config("coco/retinanet_fpn_1x")
    before = config.model.to_dict()
    follow_backbone(config, known, "f.pth")
    assert config.model.to_dict() == before


def test_a_backbone_that_the_heads_do_not_take_is_refused() -> None:
    known = {"kind": "EncoderDecoder", "model_name": "shvit_s1_fused"}
    with pytest.raises(UserError, match="shvit_s1_fused"):
        follow_backbone(read_config("ade20k/upernet_160k"), known, "f.pth")
