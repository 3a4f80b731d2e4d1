"""What is drawn can be told from the picture below it."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from vertebra.tools._classifier import Classifier
from vertebra.tools._visualize import looks
from vertebra.tools._visualize.attention_maps import Call, record, weights
from vertebra.tools._visualize.feature_maps import feature_maps
from vertebra.tools._visualize.grad_cam import grad_cam
from vertebra.tools._visualize.looks import Subject, attention, reasons, routed, windows
from vertebra.tools._visualize.regions import members
from vertebra.tools.visualize import make_subject

ORANGE = (255, 176, 0)  # as the first tint


def subject_of(name: str, picture: Image.Image | None = None) -> Subject:
    """A look at a picture of 400 x 400 pixels, an orange one if none is given, as a model of 192 x 192 sees it."""
    torch.manual_seed(0)
    model = timm.create_model(name, depths=(1, 1, 1, 1), num_classes=4).eval()
    classifier = Classifier(name, model, changes={"input_size": (3, 192, 192), "crop_pct": 1.0})
    return make_subject(classifier, picture or Image.new("RGB", (400, 400), ORANGE), "150,260")


def first_windows(name: str) -> tuple[Subject, Call]:
    """A look, and the model's first windows."""
    subject = subject_of(name)
    return subject, record(subject.classifier.model, subject.images)[0]


def on_plain_ground(name: str) -> Subject:
    """A look at spots of several colours, to be drawn over plain grey."""
    spots = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    subject = subject_of(name, Image.fromarray(spots).resize((400, 400), Image.Resampling.NEAREST))
    return replace(subject, picture=Image.new("RGB", (400, 400), "grey"))


def follows(drawn: Image.Image, heat: torch.Tensor) -> float:
    """How well the light of a picture follows a map of heat that covers it: their correlation, apart from the ring."""
    light = np.asarray(drawn.convert("L"), float)[:400]
    wanted = np.asarray(Image.fromarray(heat.numpy().astype(np.float32)).resize((400, 400), Image.Resampling.BILINEAR))
    y, x = np.mgrid[:400, :400]
    apart = (x - 150) ** 2 + (y - 260) ** 2 > 30**2
    return float(np.corrcoef(light[apart], wanted[apart])[0, 1])


@pytest.mark.parametrize(("name", "lines"), [("cswin_tiny", 4), ("davit_tiny_fused", 12)])
def test_lines_that_would_hide_the_picture_are_left_out(name: str, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, ...]] = []
    monkeypatch.setattr(looks, "line", lambda picture, ends: drawn.append(ends))
    subject, call = first_windows(name)
    windows(subject, call)
    assert len(drawn) == lines
    for x0, y0, x1, y1 in drawn:
        near = abs(x0 - 150) < 10 if x0 == x1 else abs(y0 - 260) < 10
        assert near or name != "cswin_tiny"  # stripes of 8 pixels: the ring's alone
        assert y0 == y1 or x0 == x1


def test_the_rings_window_is_told_from_a_picture_of_the_tints_colour() -> None:
    subject, call = first_windows("davit_tiny_fused")
    inside = subject.view.lay(members(call, *subject.token(call))[0].float(), call.stride) > 0.5
    pixels = np.asarray(windows(subject, call)[0])[:400].astype(int)
    tinted, other = (np.median(pixels[where], 0) for where in (inside, ~inside))
    assert abs(tinted - other).max() > 60


def test_the_tint_lies_on_the_routed_regions_and_on_no_other() -> None:
    """Seven by seven regions of seven tokens, of four pixels each; the last ones hang over an image of 192."""
    subject = on_plain_ground("biformer_tiny")
    picture, facts = routed(subject, record(subject.classifier.model, subject.images)[0])
    assert (facts["regions"], facts["tokens_in_region"], facts["map"]) == ([7, 7], [7, 7], [48, 48])
    side = 7 * 4 * 400 / 192
    coloured = {
        (row, column)
        for row in range(7)
        for column in range(7)
        if np.ptp(np.asarray(picture)[int((row + 0.4) * side), int((column + 0.4) * side)].astype(int)) > 20
    }
    routes = {tuple(region) for region in facts["routed"]}
    assert 0 < len(routes) < 49
    assert coloured == routes
    assert facts["region"] == [int(260 / side), int(150 / side)]


def test_attention_is_drawn_where_it_goes() -> None:
    subject = on_plain_ground("biformer_tiny")
    call = record(subject.classifier.model, subject.images)[-1]
    found = weights(call, *subject.token(call))[0].mean(0).detach()
    picture, facts = attention(subject, call, None)
    assert follows(picture, found.sqrt()) > 0.8
    assert facts["largest"] == pytest.approx(float(found.max()))


def test_reasons_are_drawn_where_they_are() -> None:
    subject = on_plain_ground("van_b0")
    feature = [*feature_maps(subject.classifier.model).values()][1]
    (cam,), _ = grad_cam(subject.classifier.model, subject.images, [feature], 2)
    ((picture, facts),) = reasons(subject, [feature], 2)
    assert follows(picture, cam.detach()) > 0.8
    assert facts["class"]["index"] == 2
