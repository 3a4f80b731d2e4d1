"""What is drawn can be told from the picture below it."""

import numpy as np
import pytest
import timm
from PIL import Image
from vertebra.tools._classifier import Classifier
from vertebra.tools._visualize import looks
from vertebra.tools._visualize.attention_maps import Call, record
from vertebra.tools._visualize.looks import Subject, windows
from vertebra.tools._visualize.regions import members
from vertebra.tools.visualize import make_subject

ORANGE = (255, 176, 0)  # as the first tint


def first_windows(name: str) -> tuple[Subject, Call]:
    """A look at an orange picture of 400 x 400 pixels, as a model of 192 x 192 sees it, and its first windows."""
    model = timm.create_model(name, depths=(1, 1, 1, 1), num_classes=4).eval()
    classifier = Classifier(name, model, changes={"input_size": (3, 192, 192), "crop_pct": 1.0})
    subject = make_subject(classifier, Image.new("RGB", (400, 400), ORANGE), "150,260")
    return subject, record(model, subject.images)[0]


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
