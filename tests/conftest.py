"""Settings that every test shares: one torch thread a worker, a fixed seed, no network."""

import functools
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).parent))  # for tool_processes, which new processes import by name

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- goldens: what the official implementations answered, in tests/golden ---

_GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """One file of tests/golden: an official implementation's numbers, for weights and images that anyone can draw."""

    def __init__(self, name: str) -> None:
        """`name`: a file of tests/golden without its suffix, such as van_b0."""
        record = json.loads((_GOLDEN / f"{name}.json").read_text())
        self.parameters: int = record["parameters"]
        self.recipe: dict[str, Any] = record["recipe"]
        self.runs: list[dict[str, Any]] = record["runs"]
        self.keys: list[tuple[str, list[int], str, bool]] = record["state_dict"]

    def weights(self) -> dict[str, torch.Tensor]:
        """The official state dict, drawn; constructed buffers are zero."""
        return {
            key: self._draw(key, shape) if drawn else torch.zeros(shape, dtype=getattr(torch, dtype))
            for key, shape, dtype, drawn in self.keys
        }

    def _draw(self, key: str, shape: list[int]) -> torch.Tensor:
        z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(math.prod(shape))
        last = key.rsplit(".", 1)[-1]
        if last == "running_var":
            value = 1 + 0.2 * np.abs(z)
        elif last == "running_mean":
            value = 0.1 * z
        elif any(part in key for part in self.recipe.get("small", [])):
            value = self.recipe["small_value"] * (1 + 0.1 * z)
        elif sum(side > 1 for side in shape) <= 1:
            value = 0.1 * z if "bias" in last else 1 + 0.1 * z
        else:
            value = self.recipe.get("gain", 1.0) * z / math.sqrt(math.prod(shape[1:]))
        return torch.from_numpy(value.astype(np.float32)).reshape(shape)

    @staticmethod
    def image(run: dict[str, Any]) -> torch.Tensor:
        """The image (N, 3, H, W) of one of `runs`."""
        return torch.from_numpy(np.random.RandomState(run["seed"]).standard_normal(run["input"]).astype(np.float32))

    @staticmethod
    def assert_logits(run: dict[str, Any], logits: torch.Tensor) -> None:
        """Logits (N, classes) agree within 1e-4 of their standard deviation."""
        expected = torch.tensor(run["logits"])
        assert (logits - expected).abs().max() <= 1e-4 * expected.std()

    @staticmethod
    def assert_maps(run: dict[str, Any], maps: Sequence[torch.Tensor]) -> None:
        """Maps (N, C, H, W), as many as the file holds, agree within 5e-4 of their standard deviation."""
        assert len(maps) == len(run["features"])
        for given, expected in zip(maps, run["features"], strict=True):
            assert list(given.shape) == expected["shape"]
            error = (given.flatten()[expected["index"]] - torch.tensor(expected["value"])).abs().max()
            assert error <= 5e-4 * expected["std"]
            assert abs(given.mean() - expected["mean"]) <= 5e-4 * expected["std"]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """`golden("van_b0")` reads that file once a session."""
    return functools.cache(Golden)
