"""Images are resized as OpenCV does it, to the last bit."""

import numpy as np
import pytest
from vertebra.tools._resize import resize

cv2 = pytest.importorskip("cv2")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((97, 61), (200, 133)),
        ((200, 133), (97, 61)),
        ((64, 80), (32, 40)),  # a half, which is another rule of OpenCV's
        ((64, 80), (128, 160)),
        ((90, 60), (30, 60)),
        ((33, 47), (33, 20)),
        ((1, 1), (5, 7)),
        ((480, 640), (800, 1067)),
        ((20, 30), (20, 30)),
    ],
)
def test_every_pixel_is_opencvs(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*before, 3), np.uint8)
    expected = cv2.resize(image, after[::-1], interpolation=cv2.INTER_LINEAR)
    found = resize(image, *after)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)
