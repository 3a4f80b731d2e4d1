"""The effective receptive field: how much each pixel of the image moves the centre of a feature map.

After Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, NeurIPS 2016,
https://arxiv.org/abs/1701.04128. Theirs sums the centre's channels; that is constant behind a LayerNorm, so here each
channel has a random sign, drawn anew for each image.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from vertebra.backbones._errors import UserError


def receptive_field(
    map_of: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int],
    draws: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Shares of the pixels in the gradient of a map's centre, the pixel (h // 2, w // 2).

    Args:
        map_of: images (1, C, H, W) -> map (1, c, h, w).
        shape: (C, H, W).
        draws: images of noise to average over, standard normal as images are when normalised.
        seed: of the noise.

    Returns:
        (H, W), its sum is 1.

    Raises:
        UserError: no pixel moves the centre.
    """
    source = torch.Generator().manual_seed(seed)
    total = torch.zeros(shape[1:])
    for _ in range(draws):
        images = torch.randn(1, *shape, generator=source).to(device).requires_grad_()
        with torch.enable_grad():
            out = map_of(images)
            centre = out[0, :, out.shape[2] // 2, out.shape[3] // 2]
            signs = torch.randint(0, 2, centre.shape, generator=source).to(centre) * 2 - 1
            (gradient,) = torch.autograd.grad((centre * signs).sum(), images)
        total += gradient[0].abs().sum(0).float().cpu()
    if not total.sum() > 0:
        raise UserError("no pixel moves the centre of this map, so it has no receptive field")
    return total / total.sum()


def centre_of(field: Tensor) -> tuple[float, float]:
    """The centre of mass of a field (H, W) whose sum is 1: y, x in pixels, the first one reaches from 0 to 1.

    To the nearest half pixel: fields of whole pixels have their centre there, and the noise's share is less. A map's
    strides do not say where that is, since stems that overlap begin outside of the image.
    """
    found = field.double()
    y, x = ((found.sum(1 - i) * (torch.arange(found.shape[i]) + 0.5)).sum() for i in (0, 1))
    return round(2 * float(y)) / 2, round(2 * float(x)) / 2


def side_of_square(field: Tensor, centre: tuple[float, float], share: float = 0.95) -> int:
    """The side of the smallest square around a place that holds this share of a field.

    Args:
        field: (H, W), its sum is 1.
        centre: the place, y before x, in pixels from the top left corner; the first pixel reaches from 0 to 1.
        share: what the square is to hold.

    Returns:
        Pixels; where the square reaches over the image, that counts too.
    """
    rows = (torch.arange(field.shape[0]) + 0.5 - centre[0]).abs()
    columns = (torch.arange(field.shape[1]) + 0.5 - centre[1]).abs()
    sides = (2 * torch.maximum(rows[:, None], columns).flatten() + 1).ceil().long()
    held = torch.zeros(int(sides.max()) + 1, dtype=torch.float64).index_add_(0, sides, field.flatten().double())
    return int((held.cumsum(0) >= share - 1e-6).nonzero()[0])
