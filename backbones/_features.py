"""What timm asks of every network here: the map that leaves it, its logits, and the maps on the way."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from timm.models import register_notrace_function
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..kernels._layout import is_eager
from ._errors import UserError

MIN_SIZE = 32  # the coarsest map of most families has stride 32: below, it would have less than one pixel


class FeatureMaps(nn.Module):
    """The forward passes of a network whose `stages` follow each other.

    A subclass brings `stages` and `forward_head`, and says what it has before and behind the stages: `_embed` and
    `_final_norm`.
    """

    if TYPE_CHECKING:  # what the subclass, or timm's class beside this one, brings
        stages: nn.Sequential
        forward_head: Callable[..., Tensor]

    __constants__ = ("first_stage",)
    first_stage = 0  # its number among the maps: 1 where the stem's map is the first

    def _embed(self, x: Tensor) -> Tensor:
        """What stands before the stages."""
        return x

    def _final_norm(self, x: Tensor) -> Tensor:
        """What stands behind them, before the head."""
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, normed and not pooled: (B, in_chans, H, W) -> (B, num_features, H', W').

        Raises:
            UserError: a side of the image is shorter than 32 pixels.
        """
        return self._final_norm(self.stages(self._embed(prepare_image(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps that leave the stages (and MaxViT's stem), and what `forward_features` returns.

        Args:
            x: image (B, in_chans, H, W).
            indices: None for all maps, n for the last n, or their numbers (negative ones count from the end); the maps
                come in the order asked for.
            norm: put the last map through the final norm, in families that have one.
            stop_early: do not run stages behind the last map asked for; the first result is then that map.
            output_fmt: "NCHW", the only one.
            intermediates_only: return the list of maps alone.

        Raises:
            UserError: another `output_fmt`, or a side of the image is shorter than 32 pixels.
        """
        if not torch.jit.is_scripting():
            _check_format(output_fmt)
        first, final = self.first_stage, self.first_stage + len(self.stages) - 1
        take, last = feature_take_indices(final + 1, indices)
        end = last if stop_early or intermediates_only else final
        x = self._embed(prepare_image(x))
        maps: dict[int, Tensor] = {}
        if first == 1:
            maps[0] = x
        for i, stage in enumerate(self.stages):
            if first + i <= end:
                x = stage(x)
                if first + i in take:
                    maps[first + i] = x
        if end == final:
            x = self._final_norm(x)
            if norm and final in take:
                maps[final] = x
        wanted = [maps[i] for i in take]
        if intermediates_only:
            return wanted
        return x, wanted


def _check_format(output_fmt: str) -> None:
    if output_fmt != "NCHW":
        raise UserError(f"output_fmt is {output_fmt!r}; maps leave as 'NCHW', and in no other layout")


@register_notrace_function
def prepare_image(x: Tensor) -> Tensor:
    """Refuse an image (B, C, H, W) with a side below 32 pixels, and on a CPU lay it out for oneDNN: channels last.

    The convolutions keep the layout they get, and the one that suits them best is a fifth faster and needs no copies of
    the widest maps. Compilers, exports, scripts and traces, where shapes are symbols, see nothing of this.

    Raises:
        UserError: says the size and the limit; or it is no batch of images.
    """
    if torch.jit.is_scripting():
        return x
    if not is_eager(x):
        return x
    if x.dim() != 4:
        raise UserError(f"images are (B, C, H, W), and this tensor is {tuple(x.shape)}")
    height, width = x.shape[-2:]
    if min(height, width) < MIN_SIZE:
        raise UserError(f"an image of {height}x{width} pixels is too small: no side may be below {MIN_SIZE}")
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return x.contiguous(memory_format=torch.channels_last)
    return x
