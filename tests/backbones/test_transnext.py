"""What is particular to TransNeXt; its numbers are in test_golden.py, its interface in test_contract.py."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional
from vertebra.backbones import transnext
from vertebra.backbones._position_bias import PositionBias
from vertebra.backbones.transnext import ConvGLU, CosineAttention, FovealAttention, checkpoint_filter_fn
from vertebra.kernels.neighborhood_pool_attention import position_bias

PARAMETERS = {
    "transnext_micro": 12_809_304,
    "transnext_tiny": 28_258_960,
    "transnext_small": 49_741_564,
    "transnext_base": 89_721_496,
    "transnext_small_384": 49_741_564,
    "transnext_base_384": 89_721_496,
    "transnext_micro_aaaa_256": 13_114_008,
}
Build = Callable[..., Any]
Size = tuple[int, int]


@functools.cache
def shapes(variant: str) -> Any:
    """The whole model without numbers."""
    return timm.create_model(variant, device="meta")


@pytest.fixture(scope="module")
def authors(golden: Callable[[str], Any]) -> dict[str, Tensor]:
    """Weights of transnext_micro under the authors' keys."""
    return golden("transnext_micro").weights()


# --- variants ---


@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_variant_has_its_published_number_of_parameters(variant: str) -> None:
    model = shapes(variant)
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS[variant]


def test_weights_come_by_direct_links_with_the_crop_of_their_test() -> None:
    def facts(variant: str) -> tuple[str, tuple[int, ...], float, str]:
        cfg = timm.get_pretrained_cfg(f"{variant}.in1k")
        return cfg.url.rpartition("/")[2], cfg.input_size, cfg.crop_pct, cfg.crop_mode

    assert [facts(variant) for variant in PARAMETERS] == [
        ("transnext_micro_224_1k.pth", (3, 224, 224), 0.875, "center"),
        ("transnext_tiny_224_1k.pth", (3, 224, 224), 0.875, "center"),
        ("transnext_small_224_1k.pth", (3, 224, 224), 0.875, "center"),
        ("transnext_base_224_1k.pth", (3, 224, 224), 0.875, "center"),
        ("transnext_small_384_1k_ft_1k.pth", (3, 384, 384), 1.0, "squash"),
        ("transnext_base_384_1k_ft_1k.pth", (3, 384, 384), 1.0, "squash"),
        ("transnext_micro_AAAA_256_1k.pth", (3, 256, 256), 0.875, "center"),
    ]


@pytest.mark.parametrize("variant", PARAMETERS)
def test_every_head_has_24_channels(variant: str) -> None:
    model = shapes(variant)
    for stage, level in zip(model.stages, model.feature_info, strict=True):
        for block in stage.blocks:
            assert block.attn.query_embedding.shape == (level["num_chs"] // 24, 1, 24)


@pytest.mark.parametrize(
    ("variant", "depths", "dims", "hidden"),
    [
        ("transnext_micro", [2, 2, 15, 2], [48, 96, 192, 384], [256, 512, 512, 1024]),
        ("transnext_tiny", [2, 2, 15, 2], [72, 144, 288, 576], [384, 768, 768, 1536]),
        ("transnext_small", [5, 5, 22, 5], [72, 144, 288, 576], [384, 768, 768, 1536]),
        ("transnext_base", [5, 5, 23, 5], [96, 192, 384, 768], [512, 1024, 1024, 2048]),
        ("transnext_small_384", [5, 5, 22, 5], [72, 144, 288, 576], [384, 768, 768, 1536]),
        ("transnext_base_384", [5, 5, 23, 5], [96, 192, 384, 768], [512, 1024, 1024, 2048]),
        ("transnext_micro_aaaa_256", [2, 2, 15, 2], [48, 96, 192, 384], [256, 512, 512, 1024]),
    ],
)
def test_stages_have_the_published_blocks_channels_and_hidden_channels(
    variant: str, depths: list[int], dims: list[int], hidden: list[int]
) -> None:
    model = shapes(variant)
    assert [len(stage.blocks) for stage in model.stages] == depths
    assert [level["num_chs"] for level in model.feature_info] == dims
    assert [stage.blocks[-1].mlp.dwconv.out_channels for stage in model.stages] == hidden


@pytest.mark.parametrize("variant", PARAMETERS)
def test_only_the_aaaa_variant_pools_in_the_last_stage(variant: str) -> None:
    model = shapes(variant)
    ratios = [{getattr(block.attn, "ratio", 1) for block in stage.blocks} for stage in model.stages]
    pools_everywhere = variant == "transnext_micro_aaaa_256"
    assert ratios == ([{16}, {8}, {4}, {2}] if pools_everywhere else [{8}, {4}, {2}, {1}])
    assert isinstance(model.stages[3].blocks[0].attn, FovealAttention if pools_everywhere else CosineAttention)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_distances_are_measured_by_the_size_of_pretraining_and_not_of_fine_tuning(variant: str) -> None:
    model = shapes(variant)
    units = [{block.attn.cpb.unit for block in stage.blocks} for stage in model.stages]
    assert units == ([{63}, {31}, {15}, {7}] if variant.endswith("256") else [{55}, {27}, {13}, {6}])


def test_norms_have_the_two_epsilons_of_the_authors() -> None:
    model = timm.create_model("transnext_micro", depths=(1, 1, 1, 1), device="meta")
    for key, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (1e-5 if key.endswith(("downsample.norm", "attn.norm")) else 1e-6), key


# --- attention ---


def pool_shapes(model: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Pixels of the pooled map, rows by columns, in every block that pools."""
    seen: list[tuple[int, ...]] = []
    inner = transnext.neighborhood_pool_attention

    def watched(*tensors: Tensor) -> Tensor:
        seen.append((tensors[11].shape[1], tensors[12].shape[1]))
        assert tensors[3].shape[1] == seen[-1][0] * seen[-1][1]
        return inner(*tensors)

    monkeypatch.setattr(transnext, "neighborhood_pool_attention", watched)
    model(image)
    return seen


def averaged(x: Tensor, rows: int, columns: int) -> Tensor:
    """Adaptive average pooling bin by bin: (C, H, W) -> (rows * columns, C)."""

    def bins(side: int, count: int) -> list[slice]:
        return [slice(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]

    return torch.stack([x[:, a, b].mean((1, 2)) for a in bins(x.shape[1], rows) for b in bins(x.shape[2], columns)])


@pytest.mark.parametrize("size", [(5, 7), (1, 3), (8, 4), (2, 9), (1, 1)])
@torch.no_grad()
def test_pixels_attend_to_their_neighbours_and_the_pooled_map_as_in_the_authors_code(size: Size) -> None:
    height, width = size
    module = FovealAttention(48, 2, 2, 0, PositionBias(2, 13, dtype=torch.float64), dtype=torch.float64)
    for value in module.parameters():
        nn.init.normal_(value, std=0.3)
    x = torch.randn(1, height, width, 48, dtype=torch.float64)
    rows, columns = max(1, height // 2), max(1, width // 2)
    pooled = averaged(functional.gelu(module.sr(x.permute(0, 3, 1, 2)))[0], rows, columns)
    pool_k, pool_v = module.kv(module.norm(pooled)).reshape(-1, 2, 2, 24).permute(1, 2, 0, 3)  # (2, P, 24)
    unit = functional.normalize(module.q(x).reshape(-1, 2, 24), dim=-1).transpose(0, 1)  # (2, N, 24)
    k, v = module.kv(x).reshape(height, width, 2, 2, 24).permute(2, 3, 4, 0, 1)
    k = functional.normalize(k, dim=1)
    near_k, near_v = (
        functional.unfold(part, 3, padding=1).reshape(2, 24, 9, -1).permute(0, 3, 2, 1) for part in (k, v)
    )
    inside = functional.unfold(torch.ones(1, 1, *size), 3, padding=1)[0].T > 0  # (N, 9)
    length = (inside.sum(1, keepdim=True) + rows * columns).double().log()
    scaled = (unit + module.query_embedding) * functional.softplus(module.temperature) * length
    near = torch.einsum("hnd,hntd->hnt", scaled, near_k) + module.relative_pos_bias_local.unsqueeze(1)
    far = scaled @ functional.normalize(pool_k, dim=-1).mT + position_bias(*module.cpb(x, *size, rows, columns))
    weights = torch.cat([near.masked_fill(~inside, -math.inf), far], -1).softmax(-1)
    near = weights[..., :9] + unit @ module.learnable_tokens + module.learnable_bias
    out = torch.einsum("hnt,hntd->hnd", near, near_v) + weights[..., 9:] @ pool_v
    expected = module.proj(out.transpose(0, 1).reshape(1, height, width, 48))
    torch.testing.assert_close(module(x), expected, rtol=1e-6, atol=1e-6)  # coordinates are float32


@pytest.mark.parametrize("size", [(3, 5), (1, 4), (7, 7)])
@torch.no_grad()
def test_the_last_stage_attends_everywhere_as_in_the_authors_code(size: Size) -> None:
    module = CosineAttention(48, 2, PositionBias(2, 6, dtype=torch.float64), dtype=torch.float64)
    for value in module.parameters():
        nn.init.normal_(value, std=0.3)
    x = torch.randn(2, *size, 48, dtype=torch.float64)
    q, k, v = module.qkv(x).reshape(2, -1, 3, 2, 24).permute(2, 0, 3, 1, 4)
    scaled = functional.normalize(q, dim=-1) + module.query_embedding
    scaled = scaled * functional.softplus(module.temperature) * math.log(size[0] * size[1])
    weights = (scaled @ functional.normalize(k, dim=-1).mT + position_bias(*module.cpb(x, *size, *size))).softmax(-1)
    expected = module.proj((weights @ v).transpose(1, 2).reshape(2, *size, 48))
    torch.testing.assert_close(module(x), expected, rtol=1e-6, atol=1e-6)  # coordinates are float32


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (1, 1), (5, 7), (4, 2)])
def test_pooling_by_matrices_is_adaptive_pooling(rows: int, columns: int) -> None:
    x = torch.randn(2, 5, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(transnext._pool_by_matrices(x, rows, columns), transnext._pool_at_once(x, rows, columns))
    torch.testing.assert_close(
        transnext._pool_at_once(x, rows, columns)[1], averaged(x[1].movedim(-1, 0), rows, columns)
    )


# --- options ---


@torch.no_grad()
def test_maps_are_pooled_by_the_ratio_of_their_stage(small: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = pool_shapes(small("transnext_micro"), torch.randn(1, 3, 64, 100), monkeypatch)
    assert seen == [(2, 3), (2, 3), (2, 3), (2, 3)]  # stage 3 has two blocks, the last does not pool


@torch.no_grad()
def test_the_aaaa_variant_pools_to_4_by_4_at_its_native_size(small: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("transnext_micro_aaaa_256", depths=(1, 1, 1, 1))
    assert pool_shapes(model, torch.randn(1, 3, 256, 256), monkeypatch) == [(4, 4)] * 4


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
@torch.no_grad()
def test_a_fixed_pooled_map_has_its_side_whatever_the_image(
    small: Build, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small("transnext_micro", fixed_pool_size=3)
    assert pool_shapes(model, torch.randn(1, 3, *size), monkeypatch) == [(3, 3)] * 4


@torch.no_grad()
def test_a_fixed_pooled_map_of_the_natural_side_changes_nothing(small: Build) -> None:
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(small("transnext_micro", fixed_pool_size=3)(x), small("transnext_micro")(x))


def test_a_fixed_pooled_map_larger_than_a_map_is_refused_in_a_sentence(small: Build) -> None:
    model = small("transnext_micro", fixed_pool_size=5)
    with pytest.raises(ValueError, match=r"fixed_pool_size is 5, .* 4x6 pixels; it takes a side no longer"):
        model(torch.randn(1, 3, 64, 96))
    assert model(torch.randn(1, 3, 80, 80)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"position_bias": "linear"}, "position_bias is 'linear'; it takes 'extrapolation' or 'interpolation'"),
        ({"bias_size": 31}, "bias_size is 31; it takes None, or a whole number, 32 or more"),
        ({"bias_size": 0}, "bias_size is 0; it takes None, or a whole number, 32 or more"),
        ({"pretrain_size": 63}, "pretrain_size is 63; it takes a whole number, 64 or more"),
        ({"fixed_pool_size": 0}, "fixed_pool_size is 0; it takes None, or a whole number, 1 or more"),
        ({"fixed_pool_size": -7}, "fixed_pool_size is -7; it takes None, or a whole number, 1 or more"),
    ],
    ids=str,
)
def test_an_option_that_is_none_is_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        timm.create_model("transnext_micro", device="meta", **options)


# --- MLP ---


@torch.no_grad()
def test_the_first_half_of_the_hidden_channels_is_convolved_and_gates_the_second() -> None:
    mlp, x = ConvGLU(8, 20, dtype=torch.float64), torch.randn(2, 3, 5, 8, dtype=torch.float64)
    gate, value = mlp.fc1(x).chunk(2, -1)
    gate = functional.gelu(mlp.dwconv(gate.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
    torch.testing.assert_close(mlp(x), mlp.fc2(gate * value))


@pytest.mark.parametrize("hidden", [100, 64, 128, 20])
def test_hidden_channels_in_pieces_give_what_they_give_at_once(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, x = ConvGLU(8, hidden), torch.randn(2, 3, 5, 8)
    whole = mlp(x)
    monkeypatch.setattr(transnext, "_PIECE", 1)
    seen: list[Size] = []
    inner = mlp._gated
    monkeypatch.setattr(mlp, "_gated", lambda x, start, end: seen.append((start, end)) or inner(x, start, end))
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), whole)
    assert seen == [(start, min(start + 64, hidden)) for start in range(0, hidden, 64)]


@torch.no_grad()
def test_pieces_add_up_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = ConvGLU(8, 640).bfloat16()
    x = torch.randn(2, 3, 5, 8).bfloat16()
    monkeypatch.setattr(transnext, "_PIECE", 1)
    kept = []
    inner = transnext.wide
    monkeypatch.setattr(transnext, "wide", lambda x: kept.append(inner(x)) or kept[-1])
    assert mlp(x).dtype == torch.bfloat16
    assert [part.dtype for part in kept] == [torch.float32]


# --- weights and training ---


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("patch_embed1.proj.weight", "stages.0.downsample.conv.weight"),
        ("patch_embed4.norm.bias", "stages.3.downsample.norm.bias"),
        ("block1.0.norm1.weight", "stages.0.blocks.0.norm1.weight"),
        ("block3.14.attn.cpb_fc1.weight", "stages.2.blocks.14.attn.cpb.fc1.weight"),
        ("block4.1.attn.cpb_fc2.bias", "stages.3.blocks.1.attn.cpb.fc2.bias"),
        ("block2.1.attn.temperature", "stages.1.blocks.1.attn.temperature"),
        ("block2.1.attn.proj.weight", "stages.1.blocks.1.attn.proj.weight"),
        ("block2.1.attn.norm.weight", "stages.1.blocks.1.attn.norm.weight"),
        ("block3.10.mlp.dwconv.dwconv.weight", "stages.2.blocks.10.mlp.dwconv.weight"),
        ("block3.10.mlp.fc1.bias", "stages.2.blocks.10.mlp.fc1.bias"),
        ("norm3.weight", "stages.2.norm.weight"),
    ],
)
def test_the_authors_keys_have_names_of_ours_which_stay_as_they_are(theirs: str, ours: str) -> None:
    assert transnext._rename(theirs) == ours
    assert transnext._rename(ours) == ours


def test_a_training_checkpoint_is_its_weights(authors: dict[str, Tensor]) -> None:
    model = timm.create_model("transnext_micro", device="meta")
    nested = {"model": authors, "optimizer": {}, "lr_scheduler": {}, "epoch": 299, "scaler": {}, "max_accuracy": 82.5}
    given, expected = checkpoint_filter_fn(nested, model), checkpoint_filter_fn(authors, model)
    assert given.keys() == expected.keys() == model.state_dict().keys()
    assert all(torch.equal(given[key], expected[key]) for key in given)


def test_a_dense_file_is_the_same_trunk_without_a_head(authors: dict[str, Tensor]) -> None:
    dense = {f"backbone.{key}": value for key, value in authors.items() if not key.startswith("head.")}
    dense |= {
        "neck.lateral_convs.0.conv.weight": torch.zeros(256, 48, 1, 1),
        "rpn_head.rpn_conv.bias": torch.zeros(256),
    }
    model = timm.create_model("transnext_micro", num_classes=0, device="meta")
    given = checkpoint_filter_fn({"state_dict": dense, "meta": {}}, model)
    expected = checkpoint_filter_fn(authors, model)
    assert given.keys() == model.state_dict().keys()
    assert all(torch.equal(given[key], expected[key]) for key in given)


def test_weights_of_the_variant_without_pooling_in_its_last_stage_do_not_fit_the_aaaa_one(
    authors: dict[str, Tensor],
) -> None:
    model = timm.create_model("transnext_micro_aaaa_256", device="meta")
    with pytest.raises(ValueError, match=r"does not fit transnext_micro_aaaa_256: .*missing.*stages\.3.*unknown.*qkv"):
        checkpoint_filter_fn(authors, model)


@pytest.mark.parametrize(
    "options", [{"position_bias": "interpolation"}, {"fixed_pool_size": 7}, {"pretrain_size": 384}]
)
def test_options_of_the_position_bias_take_the_same_weights(options: dict[str, Any]) -> None:
    model = timm.create_model("transnext_micro", device="meta", **options)
    given, expected = (
        {key: value.shape for key, value in net.state_dict().items()} for net in (model, shapes("transnext_micro"))
    )
    assert given == expected


@pytest.mark.parametrize("variant", ["transnext_micro", "transnext_micro_aaaa_256"])
def test_weights_that_are_not_decayed_are_those_of_the_authors(golden: Callable[[str], Any], variant: str) -> None:
    """Their rule on their keys; it leaves `learnable_tokens` and `learnable_bias` to be decayed."""
    theirs = {key: shape for key, shape, *_ in golden("transnext_micro").keys}
    if variant != "transnext_micro":
        theirs = {key: shape for key, shape in theirs.items() if not key.startswith("block4.")}
        theirs |= {
            key.replace("block1.", "block4."): shape for key, shape in theirs.items() if key.startswith("block1.")
        }
    kinds = ("query_embedding", "relative_pos_bias_local", "cpb", "temperature")
    exempt = {
        transnext._rename(key.replace("head.", "head.fc."))
        for key, shape in theirs.items()
        if len(shape) == 1 or key.endswith(".bias") or any(kind in key for kind in kinds)
    }
    model = shapes(variant)
    names = {id(value): key for key, value in model.named_parameters()}
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    given = {names[id(value)] for group in groups if group["weight_decay"] == 0 for value in group["params"]}
    assert given == exempt
    assert not any("learnable" in key for key in given)


def test_weights_start_as_the_authors_start_theirs() -> None:
    model = timm.create_model("transnext_micro", depths=(1, 1, 1, 1))
    for key, value in model.named_parameters():
        kind = key.rpartition("attn.")[2]
        if kind == "temperature":
            torch.testing.assert_close(functional.softplus(value), torch.full_like(value, 1 / 0.24))
        elif kind == "relative_pos_bias_local":
            assert value.std().item() == pytest.approx(0.0004, rel=0.5)
        elif kind in ("query_embedding", "learnable_tokens"):
            assert value.std().item() == pytest.approx(0.02, rel=0.3)
        elif key.endswith("bias"):
            assert value.count_nonzero() == 0
        elif value.dim() == 2:
            assert value.std().item() == pytest.approx(0.02, rel=0.1)
        elif value.dim() == 4:
            fan_out = value.shape[0] * value.shape[2] * value.shape[3] / (value.shape[0] if value.shape[1] == 1 else 1)
            assert value.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)


@torch.no_grad()
def test_the_last_bias_of_the_position_mlp_moves_nothing_where_every_score_has_it(small: Build) -> None:
    for variant, moves in (("transnext_micro", False), ("transnext_micro_aaaa_256", True)):
        model, x = small(variant), torch.randn(1, 3, 64, 64)
        before = model(x)
        model.stages[3].blocks[0].attn.cpb.fc2.bias += 3
        assert ((model(x) - before).abs().max() > 1e-4 * before.std()) == moves


# --- precision ---


@pytest.mark.parametrize("variant", ["transnext_micro", "transnext_micro_aaaa_256"])
@torch.no_grad()
def test_float16_weights_give_logits_close_to_those_of_float32(small: Build, variant: str) -> None:
    model, x = small(variant), torch.randn(1, 3, 64, 96)
    expected = model(x)
    logits = model.half()(x.half())
    assert logits.dtype == torch.float16
    assert (logits - expected).abs().max() < 0.05 * expected.std()


@pytest.mark.parametrize("kind", ["foveal", "cosine"])
@torch.no_grad()
def test_vectors_longer_than_float16_can_count_are_normalised_as_others(kind: str) -> None:
    bias = PositionBias(2, 13)
    module = FovealAttention(48, 2, 2, 0, bias) if kind == "foveal" else CosineAttention(48, 2, bias)
    module.init_tables()
    for part in (module.q, module.kv) if kind == "foveal" else (module.qkv,):
        nn.init.normal_(part.weight, std=1700)  # numbers that float16 holds, in vectors whose length it does not
    part.weight[-48:] /= 1000  # of v
    x = torch.randn(1, 4, 6, 48).half()
    module.half()
    rows = (module.q if kind == "foveal" else module.qkv)(x)[..., :48]
    assert rows.isfinite().all()
    assert rows.double().unflatten(-1, (2, 24)).norm(dim=-1).max() > torch.finfo(torch.float16).max
    out = module(x)
    expected = module.double()(x.double())
    assert (out - expected).abs().max() < 0.01 * expected.abs().max()


# --- graphs ---


@pytest.mark.parametrize("options", [{}, {"position_bias": "interpolation"}, {"fixed_pool_size": 2}], ids=str)
@torch.no_grad()
def test_a_script_gives_the_same_at_a_ragged_size(small: Build, options: dict[str, Any]) -> None:
    model, x = small("transnext_micro", depths=(1, 1, 1, 1), **options), torch.randn(1, 3, 72, 104)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_program_exported_at_one_size_computes_the_bias_of_a_ragged_one() -> None:
    module = FovealAttention(24, 1, 2, 0, PositionBias(1, 13))
    for value in module.parameters():
        nn.init.normal_(value, std=0.3)
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(module, (torch.randn(1, 8, 12, 24),), dynamic_shapes=({1: free, 2: free},)).module()
    for size in ((8, 12), (5, 7), (9, 4)):
        x = torch.randn(1, *size, 24)
        torch.testing.assert_close(program(x), module(x), rtol=1e-4, atol=1e-5)
