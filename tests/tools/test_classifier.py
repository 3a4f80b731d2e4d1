"""What a classifier is known to be beside its weights."""

from pathlib import Path

import pytest
import timm
from small_networks import write_weights
from vertebra.backbones._errors import UserError
from vertebra.tools import _classifier
from vertebra.tools._classifier import Classifier, load_classifier, require_classes, require_pictures


def test_weights_of_the_name_alone_count_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_classifier, "create", lambda name, pretrained=False: timm.create_model(name))
    found = [load_classifier("test_resnet", weights).published for weights in ("pretrained", None)]
    assert found == [True, False]


def test_weights_of_a_file_are_not_the_published_ones(tmp_path: Path) -> None:
    assert not load_classifier("test_resnet", write_weights(tmp_path / "w.safetensors")).published


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_those_that_the_model_was_built_for(channels: int) -> None:
    data = Classifier("test_resnet", timm.create_model("test_resnet", in_chans=channels)).data
    assert data["input_size"] == (channels, 160, 160)
    assert all(len(data[key]) in (1, channels) for key in ("mean", "std"))


def test_what_a_model_cannot_do_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"some has no classes \(num_classes is 0\); a model with a classifier"):
        require_classes(Classifier("some", timm.create_model("test_resnet", num_classes=0)))
    with pytest.raises(UserError, match="some takes 1 channels; a model that takes pictures, with 3, is accepted"):
        require_pictures(Classifier("some", timm.create_model("test_resnet", in_chans=1)))
