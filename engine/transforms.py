"""Image transforms beside those of mmdet and mmseg."""

from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PermuteChannels:
    """Put the colour channels of an image in a random order: what an object is does not hang on its colour."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        order = np.random.permutation(results["img"].shape[2])
        results["img"] = np.ascontiguousarray(results["img"][:, :, order])
        return results
