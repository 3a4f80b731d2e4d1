"""Deformable convolutions through mmcv.ops, against a plain loop over outputs, taps and channels."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from vertebra.engine.operators import live
from vertebra.engine.operators.deform_conv import deform_conv_backward_parameters, modulated_deform_conv_backward

ops = pytest.importorskip("mmcv.ops")
pytestmark = pytest.mark.skipif(live()["source"] != "vertebra", reason="this mmcv has compiled operators")

PLAIN = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, deform_groups=1)
UNEVEN = dict(stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2, deform_groups=2)
BATCH, CHANNELS, OUT, KERNEL, HEIGHT, WIDTH = 2, 4, 4, (3, 2), 5, 6


def places(how: dict[str, Any]) -> list[int]:
    return [
        (side + 2 * how["padding"][i] - how["dilation"][i] * (KERNEL[i] - 1) - 1) // how["stride"][i] + 1
        for i, side in enumerate((HEIGHT, WIDTH))
    ]


def arguments(how: dict[str, Any], spread: float = 2.0) -> dict[str, Tensor]:
    """Input, offsets, masks, weights and bias; offsets carry some samples far out of the map."""
    taps = how["deform_groups"] * KERNEL[0] * KERNEL[1]
    shapes = {
        "input": (BATCH, CHANNELS, HEIGHT, WIDTH),
        "offset": (BATCH, 2 * taps, *places(how)),
        "mask": (BATCH, taps, *places(how)),
        "weight": (OUT, CHANNELS // how["groups"], *KERNEL),
        "bias": (OUT,),
    }
    tensors = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["offset"] *= spread
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def sample(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear between pixels, with zeros around the map."""
    total = plane.new_zeros(())
    if not (-1 < y < plane.shape[0] and -1 < x < plane.shape[1]):
        return total
    for row in (int(y.floor()), int(y.floor()) + 1):
        for column in (int(x.floor()), int(x.floor()) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                total = total + plane[row, column] * (1 - (y - row).abs()) * (1 - (x - column).abs())
    return total


def by_definition(given: dict[str, Tensor], how: dict[str, Any], with_mask: bool) -> Tensor:
    (rows, columns), taps = places(how), KERNEL[0] * KERNEL[1]
    per_group, per_offset = CHANNELS // how["groups"], CHANNELS // how["deform_groups"]
    outputs = []
    for n in range(BATCH):
        read = {}  # (channel, tap, row, column) -> what this tap reads of this channel for this output
        for c in range(CHANNELS):
            for tap in range(taps):
                for i in range(rows):
                    for j in range(columns):
                        at = c // per_offset * taps + tap
                        dy, dx = given["offset"][n, 2 * at, i, j], given["offset"][n, 2 * at + 1, i, j]
                        y = i * how["stride"][0] - how["padding"][0] + tap // KERNEL[1] * how["dilation"][0] + dy
                        x = j * how["stride"][1] - how["padding"][1] + tap % KERNEL[1] * how["dilation"][1] + dx
                        value = sample(given["input"][n, c], y, x)
                        read[c, tap, i, j] = value * given["mask"][n, at, i, j] if with_mask else value
        values = torch.stack(list(read.values())).view(CHANNELS, taps, rows, columns)
        for d in range(OUT):
            first = d // (OUT // how["groups"]) * per_group
            weight = given["weight"][d].flatten(1)[:, :, None, None]
            out = (values[first : first + per_group] * weight).sum((0, 1))
            outputs.append(out + given["bias"][d] if with_mask else out)
    return torch.stack(outputs).view(BATCH, OUT, rows, columns)


def run(given: dict[str, Tensor], how: dict[str, Any], with_mask: bool) -> Tensor:
    if with_mask:
        return ops.modulated_deform_conv2d(*(given[name] for name in NAMES[True]), *how.values())
    return ops.deform_conv2d(*(given[name] for name in NAMES[False]), *how.values())


NAMES = {True: ("input", "offset", "mask", "weight", "bias"), False: ("input", "offset", "weight")}
VERSIONS = pytest.mark.parametrize("with_mask", [False, True], ids=["v1", "v2"])


@VERSIONS
@pytest.mark.parametrize("how", [PLAIN, UNEVEN], ids=["plain", "uneven"])
def test_outputs_and_gradients_by_their_definition(how: dict[str, Any], with_mask: bool) -> None:
    given = arguments(how)
    found, expected = run(given, how, with_mask), by_definition(given, how, with_mask)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    inputs = [given[name] for name in NAMES[with_mask]]
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(expected, inputs, weights)
    )


@VERSIONS
def test_gradients_agree_with_finite_differences(with_mask: bool) -> None:
    given = arguments(UNEVEN, spread=0.3)
    inputs = [given[name] for name in NAMES[with_mask]]
    assert torch.autograd.gradcheck(
        lambda *x: run(dict(zip(NAMES[with_mask], x, strict=True)), UNEVEN, with_mask), inputs, fast_mode=True
    )


@VERSIONS
def test_zero_offsets_are_a_convolution(with_mask: bool) -> None:
    given = arguments(PLAIN) | {"offset": torch.zeros(BATCH, 12, *places(PLAIN), dtype=torch.float64)}
    given["mask"] = torch.ones_like(given["mask"])
    expected = functional.conv2d(given["input"], given["weight"], given["bias"] if with_mask else None, padding=1)
    torch.testing.assert_close(run(given, PLAIN, with_mask), expected)


@VERSIONS
def test_a_sample_exactly_one_pixel_outside_does_not_move_its_offset(with_mask: bool) -> None:
    given = arguments(PLAIN)
    given["offset"] = torch.zeros_like(given["offset"], requires_grad=True)
    grad = torch.autograd.grad(run(given, PLAIN, with_mask).sum(), given["offset"])[0]
    first_tap = grad.view(BATCH, *KERNEL, 2, *places(PLAIN))[:, 0, 0]  # it reads row -1 and column -1 at the border
    assert not first_tap[:, :, 0].any()
    assert not first_tap[:, :, :, 0].any()
    assert first_tap[:, :, 1:, 1:].all()


@VERSIONS
def test_an_offset_that_is_no_number_reads_nothing(with_mask: bool) -> None:
    given = arguments(PLAIN, spread=0.3)
    for number, place in ((float("nan"), 0), (float("inf"), 1), (-float("inf"), 2)):
        offset = given["offset"].detach().clone()
        offset[0, 0, 2, place] = number
        far = offset.clone()
        far[0, 0, 2, place] = 1000
        outputs, grads = [], []
        for x in (offset, far):
            inputs = given | {"offset": x.requires_grad_()}
            outputs.append(run(inputs, PLAIN, with_mask))
            grads.append(torch.autograd.grad(outputs[-1].sum(), [inputs[name] for name in NAMES[with_mask]]))
        torch.testing.assert_close(outputs[0], outputs[1])
        torch.testing.assert_close(grads[0], grads[1])


def test_weights_of_version_1_are_added_to_scaled() -> None:
    given = arguments(PLAIN)
    out = run(given, PLAIN, False)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, given["weight"], grad)[0]
    found = torch.ones_like(expected)
    buffer = grad.new_empty(0)
    deform_conv_backward_parameters(
        given["input"].detach(), given["offset"].detach(), grad, found, buffer, buffer,
        2, 3, 1, 1, 1, 1, 1, 1, group=1, deformable_group=1, scale=0.5, im2col_step=2,
    )  # fmt: skip
    torch.testing.assert_close(found, 1 + 0.5 * expected)


def test_version_2_adds_to_input_weights_and_bias_and_writes_the_others() -> None:
    given = arguments(PLAIN)
    out = run(given, PLAIN, True)
    grad = torch.randn_like(out)
    names = ("input", "weight", "bias", "offset", "mask")
    expected = torch.autograd.grad(out, [given[name] for name in names], grad)
    found = [torch.ones_like(x) for x in expected]
    detached = {name: tensor.detach() for name, tensor in given.items()}
    buffer = grad.new_empty(0)
    modulated_deform_conv_backward(
        detached["input"], detached["weight"], detached["bias"], buffer, detached["offset"], detached["mask"], buffer,
        *found, grad, 3, 2, 1, 1, 1, 1, 1, 1, group=1, deformable_group=1, with_bias=True,
    )  # fmt: skip
    torch.testing.assert_close(found, [x + (i < 3) for i, x in enumerate(expected)])


def test_version_2_without_bias() -> None:
    given = arguments(PLAIN)
    found = run(given | {"bias": None}, PLAIN, True)
    torch.testing.assert_close(found, run(given, PLAIN, True) - given["bias"][:, None, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@VERSIONS
def test_half_precision_is_rounded_once(with_mask: bool, dtype: torch.dtype) -> None:
    given = {name: x.detach().to(dtype).requires_grad_() for name, x in arguments(PLAIN).items()}
    found = run(given, PLAIN, with_mask)
    assert found.dtype == dtype
    assert torch.equal(found, run({name: x.float() for name, x in given.items()}, PLAIN, with_mask).to(dtype))
    assert all(x.dtype == dtype for x in torch.autograd.grad(found.sum(), [given[x] for x in NAMES[with_mask]]))


@VERSIONS
def test_memory_layout_does_not_matter(with_mask: bool) -> None:
    given = arguments(PLAIN)
    strided = {
        name: x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for name, x in given.items()
    }
    found, expected = (run(x, PLAIN, with_mask) for x in (strided, given))
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape[::-1], dtype=torch.float64).permute(3, 2, 1, 0)
    grads = [
        torch.autograd.grad(out, [x[name] for name in NAMES[with_mask]], weights)
        for out, x in ((found, strided), (expected, given))
    ]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("offset", (BATCH, 10, 5, 7), "offsets of shape"),
        ("mask", (BATCH, 6, 4, 7), "masks of shape"),
        ("weight", (OUT, 3, *KERNEL), "4 channels"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(arguments(PLAIN) | {name: torch.zeros(shape, dtype=torch.float64)}, PLAIN, True)


def test_version_1_refuses_a_map_smaller_than_its_kernel_and_its_module_pads_it() -> None:
    x, weight = torch.randn(1, 2, 2, 5), torch.randn(3, 2, 3, 3)
    offset = torch.zeros(1, 18, 2, 5)
    with pytest.raises(ValueError, match="smaller than its kernel"):
        ops.deform_conv2d(x, offset, weight, 1, 1)
    module = ops.DeformConv2d(2, 3, 3, padding=1)
    module.weight.data = weight
    torch.testing.assert_close(module(x, offset), functional.conv2d(x, weight, padding=1), atol=1e-5, rtol=1e-5)


def test_packs_predict_their_own_offsets() -> None:
    x = torch.randn(1, 4, 6, 6)
    for module, factor in (
        (ops.DeformConv2dPack(4, 2, 3, padding=1), 1),
        (ops.ModulatedDeformConv2dPack(4, 2, 3, padding=1), 0.5),
    ):
        expected = factor * functional.conv2d(x, module.weight, padding=1)
        torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
