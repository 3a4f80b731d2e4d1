"""The effective receptive field: where it lies, and the square that holds it."""

import pytest
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.tools._visualize.receptive_field import centre_of, receptive_field, side_of_square


def test_that_of_a_3x3_convolution_is_its_3x3_square() -> None:
    field = receptive_field(nn.Conv2d(3, 8, 3, padding=1), (3, 12, 17), draws=4)
    assert centre_of(field) == (6.5, 8.5)
    assert field[5:8, 7:10].min() > 0
    assert float(field[5:8, 7:10].sum()) == pytest.approx(1)
    assert side_of_square(field, centre_of(field), 0.999) == 3


def test_strides_move_the_centre_to_the_middle_of_its_pixels() -> None:
    field = receptive_field(nn.Conv2d(3, 8, 4, stride=4), (3, 32, 32), draws=2)
    assert float(field[16:20, 16:20].sum()) == pytest.approx(1)
    assert centre_of(field) == (18, 18)
    assert side_of_square(field, centre_of(field), 0.999) == 4


def test_kernels_that_overlap_have_their_centre_where_they_lie() -> None:
    field = receptive_field(nn.Conv2d(3, 8, 7, stride=4, padding=3), (3, 32, 32), draws=4)
    assert centre_of(field) == (16.5, 16.5)  # of the pixels 13 to 19
    assert side_of_square(field, centre_of(field), 0.999) == 7


def test_a_norm_over_channels_does_not_hide_it() -> None:
    conv, norm = nn.Conv2d(3, 8, 3, padding=1), LayerNorm2d(8)

    def map_of(images: Tensor) -> Tensor:
        """A sum of its channels would see the faint copy from afar alone."""
        return norm(conv(images)) + 1e-3 * images.mean(1, keepdim=True).roll(4, 3)

    field = receptive_field(map_of, (3, 9, 9), draws=2)
    assert field[3:6, 3:6].sum() > 0.9


def test_noise_is_the_same_each_time() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())
    once, again = (receptive_field(conv, (3, 8, 8), draws=2) for _ in range(2))
    assert torch.equal(once, again)


def test_the_square_is_the_smallest_that_holds_the_share() -> None:
    field = torch.zeros(9, 9)
    field[4, 4], field[4, 5], field[4, 8] = 0.9, 0.06, 0.04
    centre = (4.5, 4.5)
    assert [side_of_square(field, centre, share) for share in (0.9, 0.95, 0.97)] == [1, 3, 9]


def test_a_map_that_no_pixel_moves_is_refused() -> None:
    with pytest.raises(UserError, match="no receptive field"):
        receptive_field(lambda images: images[:, :, ::4, ::4] * 0, (3, 8, 8))
