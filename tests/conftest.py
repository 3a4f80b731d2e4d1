"""Settings that every test shares: one torch thread a worker, a fixed seed, no network."""

import functools
import json
import math
import os
import socket
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
from torch import nn

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks another machine fails, whether there is a network or not."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            pytest.fail(f"a test connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a fixture of their file in one process, by `--dist loadgroup`: it is made once."""
    for item in items:
        known = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
        if any(fixture.scope == "module" for fixtures in known for fixture in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


# --- goldens: what the official implementations answered, in tests/golden ---

_GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """One file of tests/golden: an official implementation's numbers, for weights and images that anyone can draw."""

    def __init__(self, name: str) -> None:
        """`name`: a file of tests/golden without its suffix, such as van_b0."""
        record = json.loads((_GOLDEN / f"{name}.json").read_text())
        self.dense = name.endswith("_dense")
        self.parameters: int = record["parameters"]
        self.recipe: dict[str, Any] = record["recipe"]
        self.runs = self._runs(record)
        self.keys: list[tuple[str, list[int], str, bool]] = record["state_dict"]

    @staticmethod
    def _runs(record: dict[str, Any]) -> list[dict[str, Any]]:
        """All runs of a file, each with the `options` of ours that it was made with."""
        runs = []
        built = record.get("model_kwargs", {})
        for i, run in enumerate(record["runs"]):
            theirs = built[i] if isinstance(built, list) else built
            runs.append(run | {"options": {key: theirs[key] for key in ("n_win", "auto_pad") if key in theirs}})
        for run in record.get("interpolation_runs", {}).get("runs", []):
            runs.append(run | {"options": {"position_bias": "interpolation", "bias_size": run["img_size"]}})
        runs += [run | {"options": {"hilo_window": 4}} for run in record.get("ws4_runs", {}).get("runs", [])]
        return runs

    def output_norms(self) -> list[nn.LayerNorm]:
        """The norms that the authors' dense code puts on what leaves, one a map; none in a classifier's file."""
        weights, norms = self.weights(), []
        for prefixes, eps in (
            (("extra_norms.0", "extra_norms.1", "extra_norms.2", "extra_norms.3"), 1e-6),
            (("norm1", "norm2", "norm3", "norm4"), 1e-5),
        ):
            if self.dense and prefixes[0] + ".weight" in weights:
                for prefix in prefixes:
                    norm = nn.LayerNorm(len(weights[prefix + ".weight"]), eps=eps)
                    norm.load_state_dict({part: weights[f"{prefix}.{part}"] for part in ("weight", "bias")})
                    norms.append(norm)
        return norms

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
