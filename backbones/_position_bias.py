"""TransNeXt's position bias: a small MLP of how far a pixel and a pooled pixel lie apart, kept as a table of distances.

A map of H x W pixels, pooled to ph x pw, has H * W * ph * pw pairs, but few distances, and those of rows and those of
columns go by themselves. So the MLP sees each distance once, and where a pair stands in its table is known in advance.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional

from ..kernels._kept import kept
from ..kernels._layout import is_eager
from ._layers import is_plain

_PIECE = 2**19  # hidden values written out at once


def _axis(queries: int, keys: int, unit: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """How far queries and pooled keys lie apart along one axis.

    A key lies in the middle of the pixels that adaptive pooling gives it, which is a multiple of half a pixel.

    Args:
        queries: pixels of the map.
        keys: pixels of the pooled map.
        unit: pixels of the map that the model was trained with, less one.

    Returns:
        Every distance that occurs as the coordinate that the bias is learned in (T,); the place in it of each pair
        (queries, keys).
    """
    even = _divides(keys, queries)
    step = 2 if even else 1  # in half pixels: where keys divide the map, distances are all odd, or all even
    largest = 2 * queries - 1 - queries // keys if even else 2 * queries - 2
    key = torch.arange(keys, device=device)
    twice = key * queries // keys + ((key + 1) * queries + keys - 1) // keys - 1
    places = (2 * torch.arange(queries, device=device).unsqueeze(1) - twice + largest) // step
    distance = (torch.arange(2 * largest // step + 1, device=device) * step - largest).float() * (4 / unit)
    return distance.sign() * (distance.abs() + 1).log2() / 3, places


def _divides(keys: int, queries: int) -> bool:
    """Whether pooled pixels are of one size; symbols may be known to be so, or count as if they were not."""
    if torch.jit.is_scripting() or torch.jit.is_tracing():
        return bool(queries % keys == 0)
    return statically_known_true(queries % keys == 0)


def _resized_axis(
    queries: int, keys: int, own_queries: int, own_keys: int, unit: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Coordinates of a map of `own_queries` pixels (T,); how much of each a pair here takes (queries, keys, T)."""
    coordinates, places = _axis(own_queries, own_keys, unit, device)
    each = functional.one_hot(places, coordinates.shape[0]).permute(2, 0, 1).unsqueeze(0)
    weights = functional.interpolate(each.float(), [queries, keys], mode="bilinear", align_corners=False)
    return coordinates, weights[0].permute(1, 2, 0)


class PositionBias(nn.Module):
    """The bias between pixels and pooled pixels, a small MLP of how far they lie apart, as a table of all distances.

    Args:
        heads: heads of the attention.
        unit: pixels a side of the map that the model was trained with, less one.
        own_queries: 0 to take the distances of the map at hand; or the side of the map to interpolate from,
        own_keys: and of that map, pooled.
    """

    def __init__(self, heads: int, unit: int, own_queries: int = 0, own_keys: int = 0, **dd: Any) -> None:
        super().__init__()
        self.unit = unit
        self.own_queries = own_queries
        self.own_keys = own_keys
        self.fc1 = nn.Linear(2, 512, **dd)
        self.fc2 = nn.Linear(512, heads, **dd)

    def forward(self, x: Tensor, height: int, width: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """The table (heads, Th, Tw) for a map of `height` x `width`, pooled to `rows` x `columns`, and its two indices.

        `x` is any tensor of the forward.
        """
        down, row_places = self._axis(x, height, rows)
        across, column_places = self._axis(x, width, columns)
        return self._evaluate(down, across), row_places, column_places

    def _axis(self, x: Tensor, queries: int, keys: int) -> tuple[Tensor, Tensor]:
        if torch.jit.is_scripting():
            if self.own_queries:
                return _resized_axis(queries, keys, self.own_queries, self.own_keys, self.unit, x.device)
            return _axis(queries, keys, self.unit, x.device)
        if self.own_queries:
            return kept(x, _resized_axis, queries, keys, self.own_queries, self.own_keys, self.unit, x.device)
        return kept(x, _axis, queries, keys, self.unit, x.device)

    def _evaluate(self, down: Tensor, across: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._by_weights(down, across)
        return self._by_weights(down, across) if is_plain(self.fc1, self.fc2) else self._by_modules(down, across)

    @torch.jit.unused
    def _by_modules(self, down: Tensor, across: Tensor) -> Tensor:
        dtype = next(self.parameters(), down).dtype  # a layer of another class may have no weight
        pairs = torch.stack(torch.broadcast_tensors(down[:, None], across), -1).to(dtype)
        return self.fc2(functional.relu(self.fc1(pairs))).permute(2, 0, 1)

    def _by_weights(self, down: Tensor, across: Tensor) -> Tensor:
        down = self.fc1.weight[:, :1] * down + self.fc1.bias.unsqueeze(1)  # (512, Th)
        across = self.fc1.weight[:, 1:] * across  # (512, Tw)
        return self._second_layer(down, across) + self.fc2.bias[:, None, None]

    def _second_layer(self, down: Tensor, across: Tensor) -> Tensor:
        """The second layer without its bias, on every row and column (heads, Th, Tw)."""
        if torch.jit.is_scripting():
            return _second_layer(down, across, self.fc2.weight)
        if not is_eager(down):  # how many rows there are is not known, how many hidden values is
            parts = zip(down.chunk(4), across.chunk(4), self.fc2.weight.chunk(4, 1), strict=True)
            table = _second_layer(*next(parts))
            for part in parts:
                table = table + _second_layer(*part)
            return table
        if torch.is_grad_enabled():
            return _second_layer(down, across, self.fc2.weight)
        step = max(1, _PIECE // across.numel())
        weight = self.fc2.weight
        table = weight.new_empty(len(weight), down.shape[1], across.shape[1])  # many small results would tear the heap
        for start in range(0, down.shape[1], step):
            part = slice(start, start + step)
            table[:, part] = _second_layer(down[:, part], across, weight)
        return table


def _second_layer(down: Tensor, across: Tensor, weight: Tensor) -> Tensor:
    """Hidden values of all rows (n, Th) and columns (n, Tw), and what they add to each head: (heads, Th, Tw)."""
    hidden = functional.relu(down.unsqueeze(2) + across.unsqueeze(1), inplace=True).to(weight.dtype)  # (n, Th, Tw)
    return (weight @ hidden.flatten(1)).reshape(-1, down.shape[1], across.shape[1])
