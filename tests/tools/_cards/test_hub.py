"""The card of a published folder says of weights what is stated of them, and nothing that is not."""

from typing import Any

import pytest
import timm
import yaml
from vertebra.tools._cards.hub import card, data_of_tag, published_licence
from vertebra.tools._classifier import Classifier


def front_matter(classifier: Classifier) -> dict[str, Any]:
    return yaml.safe_load(card(classifier, None, None).split("---\n")[1])


def test_published_weights_name_the_data_that_they_were_trained_on() -> None:
    name = "van_b4.in22k_ft_in1k"
    classifier = Classifier(name, timm.create_model(name, device="meta"), published=True)
    assert front_matter(classifier)["datasets"] == ["imagenet-1k", "imagenet-22k"]


def test_own_weights_name_no_data_whatever_tag_their_model_began_with() -> None:
    name = "van_b4.in22k_ft_in1k"
    assert "datasets" not in front_matter(Classifier(name, timm.create_model(name, device="meta")))


@pytest.mark.parametrize(
    ("tag", "data"),
    [
        ("sw_in12k_ft_in1k", ["imagenet-12k", "imagenet-1k"]),
        ("fb_wsl_ig1b_ft_in1k", ["imagenet-1k"]),
        ("augreg_in21k", ["imagenet-21k"]),
        ("laion2b", []),
    ],
)
def test_data_is_told_by_the_parts_of_a_tag(tag: str, data: list[str]) -> None:
    assert data_of_tag(tag) == data


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("van_b0", "apache-2.0"),
        ("biformer_tiny", None),  # MIT is that of the code
        ("van_b4", None),  # the tag lies on b0 to b3
        ("davit_tiny_fused", "apache-2.0"),
        ("davit_base_fl_fused", None),  # not verified
        ("resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "cc-by-nc-4.0"),
    ],
)
def test_published_weights_are_under_what_is_stated_of_them_and_not_of_the_code(name: str, licence: str | None) -> None:
    model = timm.create_model(name, device="meta")
    assert published_licence(Classifier(name, model, published=True)) == licence
    assert published_licence(Classifier(name, model)) is None
