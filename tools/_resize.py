"""OpenCV's bilinear resizing in NumPy, to the last bit: what mm* resizes images by, where OpenCV is not installed."""

import numpy as np

_BITS = 11
"""Of the weights, which OpenCV keeps as whole numbers."""

Taps = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""The two places that each new pixel lies between, and their weights of 2**`_BITS` in all."""


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)`.

    Args:
        image: (H, W, C) of uint8.
        height, width: of the result.

    Returns:
        (height, width, C) of uint8.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.shape[:2] == (2 * height, 2 * width):  # OpenCV then takes means of four
        parts = image.reshape(height, 2, width, 2, -1).astype(np.int32)
        return ((parts.sum((1, 3)) + 2) >> 2).astype(np.uint8)
    left, right, near, far = (x[:, None] for x in _taps(image.shape[1], width, at_edges=True))
    above, below, upper, lower = (x[:, None, None] for x in _taps(image.shape[0], height, at_edges=False))
    pixels = image.astype(np.int32)
    rows = (pixels[:, left[:, 0]] * near + pixels[:, right[:, 0]] * far) >> 4
    parts = ((rows[above[:, 0, 0]] * upper) >> 16) + ((rows[below[:, 0, 0]] * lower) >> 16)
    return ((parts + 2) >> 2).clip(0, 255).astype(np.uint8)


def _taps(before: int, after: int, at_edges: bool) -> Taps:
    """Along one side. `at_edges`: pixels beyond the outermost centres take all of one; else shares of the same one."""
    places = ((np.arange(after) + 0.5) * (1 / (after / before)) - 0.5).astype(np.float32)
    first = np.floor(places).astype(np.int64)
    share = places - first.astype(np.float32)
    if at_edges:
        share[(first < 0) | (first >= before - 1)] = 0
    weights = (np.rint(part * np.float32(1 << _BITS)).astype(np.int32) for part in (1 - share, share))
    return first.clip(0, before - 1), (first + 1).clip(0, before - 1), *weights
