"""What is particular to LITv2; its numbers are in test_golden.py, its interface in test_contract.py."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d
from vertebra.backbones import litv2
from vertebra.backbones.litv2 import DeformableMerging, HiLo, Mlp, checkpoint_filter_fn, move_pixels

PARAMETERS = {
    "litv2_small": 27_844_000,
    "litv2_medium": 48_830_368,
    "litv2_base": 86_520_704,
    "litv2_base_384": 86_520_704,
}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_variant_has_its_published_number_of_parameters(variant: str) -> None:
    model = timm.create_model(variant, device="meta")
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS[variant]


def test_weights_come_by_direct_links_with_the_crop_of_their_test() -> None:
    def facts(variant: str) -> tuple[str, tuple[int, ...], float, str]:
        cfg = timm.get_pretrained_cfg(f"{variant}.in1k")
        return cfg.url.rpartition("/")[2], cfg.input_size, cfg.crop_pct, cfg.crop_mode

    assert [facts(variant) for variant in PARAMETERS] == [
        ("litv2_s.pth", (3, 224, 224), 0.875, "center"),
        ("litv2_m.pth", (3, 224, 224), 0.875, "center"),
        ("litv2_b.pth", (3, 224, 224), 0.875, "center"),
        ("litv2_b_384.pth", (3, 384, 384), 1.0, "squash"),
    ]


# --- merging ---


def merging(batch: int = 2, height: int = 7, width: int = 10, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A map, offsets that also lead far outside it or fall on whole pixels, a weight and a bias."""
    offset = 3 * torch.randn(batch, 8, height // 2, width // 2, dtype=dtype)
    if batch:
        offset[0, :4] = offset[0, :4].round()
        offset[:, :, 0, 0] = 100
    tensors = [torch.randn(batch, 4, height, width, dtype=dtype), offset, torch.randn(6, 4, 2, 2, dtype=dtype)]
    return [tensor.requires_grad_() for tensor in (*tensors, torch.randn(6, dtype=dtype))]


@pytest.fixture(params=["as it is", "by rows of a table"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to read the pixels: the one of a CPU and the one of graphs."""
    if request.param != "as it is":
        monkeypatch.setenv("VERTEBRA_KERNELS", "reference")


@pytest.mark.parametrize(("batch", "height", "width"), [(2, 7, 10), (1, 2, 2), (3, 3, 5)])
@pytest.mark.usefixtures("way")
def test_a_convolution_of_moved_pixels_is_the_deformable_one_with_its_gradients(
    batch: int, height: int, width: int
) -> None:
    x, offset, weight, bias = tensors = merging(batch, height, width)
    results = []
    for out in (
        nn.functional.conv2d(move_pixels(x, offset), weight, bias, stride=2),
        deform_conv2d(x, offset, weight, bias, stride=2),
    ):
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), tensors)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.usefixtures("way")
def test_an_empty_batch_has_no_pixels_to_move() -> None:
    assert move_pixels(*merging(0)[:2]).shape == (0, 4, 6, 10)


@pytest.mark.usefixtures("way")
def test_an_offset_that_is_no_number_spoils_its_own_pixel_and_raises_nothing() -> None:
    x, offset = merging()[:2]
    offset = offset.detach()
    offset[1, 2, 0, 1] = math.nan  # image 1, tap 1 of the second square: row 0, column 3
    lost = move_pixels(x, offset).isnan().any(1).nonzero()
    assert lost.tolist() == [[1, 0, 3]]


def test_pixels_can_be_moved_in_a_double_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", "reference")
    x, offset = (tensor.detach().requires_grad_() for tensor in merging(1, 2, 4)[:2])
    offset = (offset.detach().remainder(1) * 0.8 + 0.1).requires_grad_()  # away from whole pixels, where it has a kink
    assert torch.autograd.gradgradcheck(move_pixels, (x, offset))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("way")
def test_pixels_are_moved_in_float32_whatever_the_precision_of_the_map(dtype: torch.dtype) -> None:
    x, offset = (tensor.detach().to(dtype) for tensor in merging(1, 301, 4)[:2])  # beyond 256, bfloat16 skips rows
    given, exact = move_pixels(x, offset), move_pixels(x.double(), offset.double())
    assert given.dtype == dtype
    torch.testing.assert_close(given, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_torchvisions_operator_merges_as_moved_pixels_do(dtype: torch.dtype) -> None:
    merge = DeformableMerging(4).to(dtype)
    x, offset = (tensor.detach().to(dtype) for tensor in merging()[:2])
    given, expected = merge._by_torchvision(x, offset), merge.conv(move_pixels(x, offset))
    assert given.dtype == dtype
    torch.testing.assert_close(given, expected, rtol=2 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)


def test_torchvisions_operator_is_for_cuda_where_no_determinism_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    merge: Any = DeformableMerging(4)
    on_cuda = SimpleNamespace(is_cuda=True)
    assert merge._wants_torchvision(on_cuda)
    assert not merge._wants_torchvision(torch.zeros(1))
    torch.use_deterministic_algorithms(True)
    try:
        assert not merge._wants_torchvision(on_cuda)
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("VERTEBRA_KERNELS", "reference")
    assert not merge._wants_torchvision(on_cuda)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_merging_on_a_gpu_is_merging_on_a_cpu() -> None:
    merge = DeformableMerging(4).eval()
    nn.init.normal_(merge.offset.weight)
    x = torch.randn(2, 4, 7, 10)
    torch.testing.assert_close(merge.cuda()(x.cuda()).cpu(), merge.cpu()(x), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_exports_hold_standard_operators_only() -> None:
    program = torch.export.export(DeformableMerging(4).eval(), (torch.randn(1, 4, 8, 8),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {target for target in targets if not target.startswith("aten.")}
    assert not {target for target in targets if "embedding_bag" in target}


# --- HiLo ---


def reach(attention: nn.Module, channels: slice) -> list[list[int]]:
    """The tokens of a map of 5 x 7 that `channels` of the token at row 2, column 5 depend on."""
    x = torch.randn(1, 5, 7, 96, requires_grad=True)
    attention(x)[0, 2, 5, channels].square().sum().backward()
    return x.grad[0].abs().sum(-1).nonzero().tolist()


def test_the_first_channels_come_from_the_tokens_own_window_and_the_others_from_the_whole_map() -> None:
    attention = HiLo(96, heads=3, window=2)  # one head of three for the windows
    assert reach(attention, slice(0, 32)) == [[2, 4], [2, 5], [3, 4], [3, 5]]
    assert len(reach(attention, slice(32, 96))) == 5 * 7


def test_windows_of_one_token_leave_attention_over_the_whole_map_to_all_heads() -> None:
    attention = HiLo(96, heads=3, window=1)
    assert attention.hi is None
    assert len(reach(attention, slice(0, 32))) == 5 * 7


@torch.no_grad()
def test_zeros_that_fill_the_last_windows_are_tokens_like_others() -> None:
    attention, x = HiLo(96, heads=3, window=4), torch.randn(1, 5, 7, 96)
    filled = nn.functional.pad(x, (0, 0, 0, 1, 0, 3))
    torch.testing.assert_close(attention(x), attention(filled)[:, :5, :7], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_another_window_takes_the_same_weights(small: Callable[..., nn.Module]) -> None:
    two, four = small("litv2_small"), small("litv2_small", hilo_window=4)
    four.load_state_dict(two.state_dict())
    x = torch.randn(1, 3, 96, 96)
    a, b = (model.forward_intermediates(x, intermediates_only=True) for model in (two, four))
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[2], b[2])


@pytest.mark.parametrize("window", [1, 0, -2, 2.0, True, None])
def test_a_window_that_the_weights_do_not_fit_is_refused_in_a_sentence(window: Any) -> None:
    with pytest.raises(ValueError, match=rf"hilo_window is {window}.*2 up"):
        litv2.LITv2(hilo_window=window, device="meta")


# --- MLP ---


@torch.no_grad()
def test_a_large_batch_in_pieces_gives_what_it_gives_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, x = Mlp(8, 32), torch.randn(5, 3, 4, 8)
    whole = mlp(x)
    seen: list[int] = []
    monkeypatch.setattr(litv2, "CACHED", 3 * 4 * 32 * 2)
    monkeypatch.setattr(mlp, "_run", lambda part: seen.append(len(part)) or Mlp._run(mlp, part))
    torch.testing.assert_close(mlp(x), whole)
    assert seen == [3, 2]


@torch.no_grad()
def test_a_hook_inside_sees_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litv2, "CACHED", 1)
    mlp, seen = Mlp(8, 32), []
    mlp.fc1.register_forward_hook(lambda *args: seen.append(len(args[2])))
    mlp(torch.randn(5, 3, 4, 8))
    assert seen == [5]


# --- weights ---


def test_weights_start_as_the_authors_start_theirs() -> None:
    model = timm.create_model("litv2_small", depths=(1, 1, 1, 1))
    for key, value in model.named_parameters():
        if ".offset." in key:
            assert value.count_nonzero() == 0
        elif key.endswith("mlp.dwconv.weight"):
            assert value.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.1)
        elif key.endswith(("fc1.weight", "fc2.weight", "proj.weight", "kv.weight")):
            assert value.std().item() == pytest.approx(0.02, rel=0.05)
        elif key.endswith(("fc1.bias", "fc2.bias", "dwconv.bias", "proj.bias", "kv.bias", "norm.bias")):
            assert value.count_nonzero() == 0
    bound = 1 / math.sqrt(4 * 96)  # PyTorch's own start of a convolution
    merge = model.stages[1].downsample.conv
    assert bound * 0.99 < merge.weight.abs().max() <= bound
    assert merge.bias.abs().max() <= bound


@pytest.mark.parametrize("norms", [("norm0", "norm1", "norm2", "norm3"), ("norm1", "norm2", "norm3")])
def test_a_dense_file_gives_the_trunk_without_its_output_norms(
    golden: Callable[[str], Any], norms: tuple[str, ...]
) -> None:
    weights = golden("litv2_small").weights()
    trunk = {f"backbone.{key}": value for key, value in weights.items() if not key.startswith(("norm.", "head."))}
    trunk |= {f"backbone.{norm}.{part}": torch.ones(96) for norm in norms for part in ("weight", "bias")}
    model = timm.create_model("litv2_small", num_classes=0)
    given = checkpoint_filter_fn({"state_dict": trunk}, model)
    expected = checkpoint_filter_fn(weights, model)
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], expected[key]) for key in given if key.startswith("stages."))
