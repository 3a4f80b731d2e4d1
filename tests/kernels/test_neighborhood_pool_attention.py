"""Attention to neighbours and a pooled map: eager against the reference, the reference against loops, and memory."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vertebra.kernels.neighborhood_pool_attention import eager, neighborhood_pool_attention, neighbors, position_bias

HEADS, HEAD_DIM = 2, 4
Size = tuple[int, int]
BACKENDS = ("eager", "reference")


def drawn(
    size: Size, pool: Size = (2, 3), batch: int = 2, dtype: torch.dtype = torch.float64, weighed: bool = False
) -> list[Tensor]:
    """All tensors of a call, random; q, k, v are views of one projection, and so are those of the pooled map."""
    (height, width), (ph, pw) = size, pool

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, requires_grad=True)

    def places(queries: int, keys: int, length: int) -> Tensor:
        if weighed:
            return torch.rand(queries, keys, length)
        return torch.randint(length, (queries, keys))

    return [
        *normal(batch, height, width, 3, HEADS, HEAD_DIM).unbind(3),
        *normal(batch, ph * pw, 2, HEADS, HEAD_DIM).unbind(2),
        normal(HEADS, 1, HEAD_DIM),
        normal(HEADS, 1, 1),
        normal(HEADS, 9),
        normal(HEADS, HEAD_DIM, 9),
        normal(HEADS, 1, 9),
        normal(HEADS, 5, 7),
        places(height, ph, 5),
        places(width, pw, 7),
    ]


def with_gradients(tensors: list[Tensor], backend: str | None = None) -> list[Tensor]:
    """The result, and the gradients of all that can have one."""
    out = neighborhood_pool_attention(*tensors, backend=backend)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), [x for x in tensors if x.requires_grad])]


# --- what it means ---


def by_hand(tensors: Sequence[Tensor]) -> Tensor:
    """The formula of the docstring, one image, pixel and head after the other."""
    q, k, v, pool_k, pool_v, embedding, temperature, local, tokens, bias, table, rows, columns = tensors
    batch, height, width = q.shape[:3]
    out = torch.empty_like(q)
    for image, i, j, head in product(range(batch), range(height), range(width), range(HEADS)):
        around = [(t, i + t // 3 - 1, j + t % 3 - 1) for t in range(9)]
        around = [(t, a, b) for t, a, b in around if 0 <= a < height and 0 <= b < width]
        unit = q[image, i, j, head] / q[image, i, j, head].norm()
        scaled = (unit + embedding[head, 0]) * (1 + temperature[head, 0, 0].exp()).log()
        scaled = scaled * torch.tensor(float(len(around) + pool_k.shape[1]), dtype=q.dtype).log()
        keys = [k[image, a, b, head] for _, a, b in around] + list(pool_k[image, :, head])
        biases = [local[head, t] for t, _, _ in around]
        biases += [
            table[head, rows[i, a], columns[j, b]] for a in range(rows.shape[1]) for b in range(columns.shape[1])
        ]
        scores = [scaled @ (key / key.norm()) + more for key, more in zip(keys, biases, strict=True)]
        weights = torch.stack(scores).softmax(0)
        near = [weights[place] + unit @ tokens[head, :, t] + bias[head, 0, t] for place, (t, _, _) in enumerate(around)]
        values = torch.stack([v[image, a, b, head] for _, a, b in around] + list(pool_v[image, :, head]))
        out[image, i, j, head] = torch.cat([torch.stack(near), weights[len(around) :]]) @ values
    return out.flatten(3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "pool"), [((3, 4), (2, 3)), ((2, 1), (1, 1)), ((4, 3), (1, 2))])
@torch.no_grad()
def test_every_pixel_attends_by_the_formula(size: Size, pool: Size, backend: str) -> None:
    tensors = drawn(size, pool)
    torch.testing.assert_close(neighborhood_pool_attention(*tensors, backend=backend), by_hand(tensors))


SIZES = [
    ((5, 7), (2, 3)),
    ((8, 8), (4, 4)),
    ((1, 9), (1, 4)),
    ((9, 1), (4, 1)),
    ((1, 1), (1, 1)),
    ((2, 2), (1, 1)),
    ((2, 3), (2, 3)),
    ((3, 2), (5, 1)),
]


@pytest.mark.parametrize("weighed", [False, True], ids=["places", "weights"])
@pytest.mark.parametrize(("size", "pool"), SIZES)
def test_eager_is_the_reference_and_so_are_its_gradients(size: Size, pool: Size, weighed: bool) -> None:
    tensors = drawn(size, pool, weighed=weighed)
    given, expected = (with_gradients(tensors, backend) for backend in BACKENDS)
    torch.testing.assert_close(given, expected)


def test_without_a_backend_it_is_eager() -> None:
    tensors = drawn((5, 7))
    assert all(map(torch.equal, with_gradients(tensors), with_gradients(tensors, "eager")))
    assert not torch.equal(with_gradients(tensors)[0], with_gradients(tensors, "reference")[0])


def test_the_environment_can_ask_for_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = drawn((5, 7))
    expected = neighborhood_pool_attention(*tensors, backend="reference")
    monkeypatch.setenv("VERTEBRA_KERNELS", "reference")
    assert torch.equal(neighborhood_pool_attention(*tensors), expected)


def test_an_unknown_backend_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"backend is 'fast'; it takes None, .*'reference'.*'eager'"):
        neighborhood_pool_attention(*drawn((2, 2)), backend="fast")


def test_the_result_is_read_from_views_with_any_strides() -> None:
    tensors = drawn((5, 7))
    for i in range(5):  # q, k, v and the pooled ones: no dimension in its usual order, with gaps
        order = list(range(tensors[i].dim()))[::-1]
        base = tensors[i].detach().permute(order).repeat_interleave(2, 0).contiguous()
        tensors[i] = base[::2].permute(order).requires_grad_()
        assert not tensors[i].is_contiguous()
    copies = [x.detach().contiguous().requires_grad_(x.requires_grad) for x in tensors]
    torch.testing.assert_close(with_gradients(tensors), with_gradients(copies))


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_without_learned_parts_values_of_one_give_one(backend: str) -> None:
    """What weighs neighbours and pooled pixels is one softmax: it sums to 1 at corners too."""
    tensors = drawn((4, 5))
    for place in (2, 4):
        tensors[place] = torch.ones_like(tensors[place])
    for place in (5, 7, 8, 9):
        tensors[place] = torch.zeros_like(tensors[place])
    out = neighborhood_pool_attention(*tensors, backend=backend)
    torch.testing.assert_close(out, torch.ones_like(out))


@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors_of_zeros_give_finite_results_and_gradients(backend: str) -> None:
    tensors = drawn((3, 4))
    for place in range(5):
        tensors[place] = torch.zeros_like(tensors[place], requires_grad=True)
    assert all(x.isfinite().all() for x in with_gradients(tensors, backend))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_gives_an_empty_map(backend: str, learns: bool) -> None:
    with torch.set_grad_enabled(learns):
        out = neighborhood_pool_attention(*drawn((3, 4), batch=0), backend=backend)
    assert out.shape == (0, 3, 4, HEADS * HEAD_DIM)


def test_the_same_inputs_give_the_same_bits() -> None:
    tensors = drawn((9, 7), (3, 2), dtype=torch.float32)
    assert all(map(torch.equal, with_gradients(tensors), with_gradients(tensors)))


# --- neighbours and borders ---

PIXELS = list(product(range(3), range(4)))


@pytest.mark.parametrize("place", [1, 2], ids=["key", "value"])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_pixel_that_is_no_number_spoils_its_neighbours_and_no_other_pixel(backend: str, place: int) -> None:
    """Rows do not run into each other at the borders."""
    tensors = drawn((3, 4), batch=1)
    for i, j in PIXELS:
        spoilt = list(tensors)
        spoilt[place] = tensors[place].detach().clone()
        spoilt[place][0, i, j] = torch.nan
        lost = neighborhood_pool_attention(*spoilt, backend=backend)[0].isnan().all(-1)
        assert lost.nonzero().tolist() == [[a, b] for a, b in PIXELS if abs(a - i) <= 1 and abs(b - j) <= 1]
        assert lost.equal(neighborhood_pool_attention(*spoilt, backend=backend)[0].isnan().any(-1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_around_a_map_in_memory_has_no_influence(backend: str) -> None:
    tensors = drawn((3, 4))
    cut = list(tensors)
    for place in range(3):
        frame = torch.full((2, 5, 6, HEADS, HEAD_DIM), torch.nan, dtype=torch.float64)
        frame[:, 1:4, 1:5] = tensors[place].detach()
        cut[place] = frame[:, 1:4, 1:5].requires_grad_()
    torch.testing.assert_close(with_gradients(cut, backend), with_gradients(tensors, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_neighbour_outside_the_map_takes_no_weight_however_large_its_bias(backend: str) -> None:
    tensors = drawn((3, 4))
    tensors[7] = tensors[7].detach().clone()
    tensors[7][:, :3] = 0
    expected = neighborhood_pool_attention(*tensors, backend=backend)[:, 0]
    tensors[7][:, :3] = 1000  # the three above, which the first row has not
    out = neighborhood_pool_attention(*tensors, backend=backend)
    torch.testing.assert_close(out[:, 0], expected)
    assert not torch.allclose(out[:, 1], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_learned_weights_of_neighbours_outside_the_map_receive_no_gradient(backend: str) -> None:
    tensors = drawn((1, 5))
    out = neighborhood_pool_attention(*tensors, backend=backend)
    for gradient in torch.autograd.grad(out.sum(), tensors[7:10]):
        received = gradient.abs().flatten(0, -2).sum(0) > 0
        assert received.tolist() == [False] * 3 + [True] * 3 + [False] * 3  # of the row itself only


@torch.no_grad()
def test_keys_that_exist_are_what_sharpens_the_softmax() -> None:
    """The logarithm of 4, 6 or 9 neighbours and of the pooled pixels."""
    _, length = eager._surroundings(3, 4, 6, torch.float64, torch.device("cpu"))
    assert length.exp().round().squeeze(-1).tolist() == [[10, 12, 12, 10], [12, 15, 15, 12], [10, 12, 12, 10]]


def framed() -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((1, 2, 2, 3, 4), (1, 2, 4, 5, 4), (1, 2, 2, 3, 9))
    q, k, w = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return q, k, w


def test_products_with_neighbours_have_gradients_of_every_order() -> None:
    q, k, w = framed()
    assert torch.autograd.gradcheck(neighbors.score, (q, k))
    assert torch.autograd.gradcheck(neighbors.gather, (w, k))
    assert torch.autograd.gradgradcheck(neighbors.score, (q, k))
    assert torch.autograd.gradgradcheck(neighbors.gather, (w, k))


def test_products_in_graphs_are_those_of_eager_mode() -> None:
    q, k, w = framed()
    torch.testing.assert_close(neighbors.score(q, k), neighbors._score_at_once(q, k))
    torch.testing.assert_close(neighbors.gather(w, k), neighbors._gather_at_once(w, k))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_can_be_had_image_by_image() -> None:
    tensors = [x.detach() for x in drawn((3, 4), batch=3)]

    def loss(embedding: Tensor, *images: Tensor) -> Tensor:
        parts = [x.unsqueeze(0) for x in images]
        return neighborhood_pool_attention(*parts, embedding, *tensors[6:]).square().sum()

    embedding, images = tensors[5], tensors[:5]
    given = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *[0] * 5))(embedding, *images)
    expected = [torch.func.grad(loss)(embedding, *(x[i] for x in images)) for i in range(3)]
    torch.testing.assert_close(given, torch.stack(expected))


# --- the position bias ---


@pytest.mark.parametrize("pool", [(2, 3), (1, 1), (4, 1)])
def test_the_bias_of_a_pair_stands_in_the_table_at_its_row_and_column(pool: Size) -> None:
    *_, table, rows, columns = drawn((4, 5), pool)
    bias = position_bias(table, rows, columns).reshape(HEADS, 4, 5, *pool)
    for i, j, a, b in product(range(4), range(5), *map(range, pool)):
        assert torch.equal(bias[:, i, j, a, b], table[:, rows[i, a], columns[j, b]])


def test_an_interpolated_bias_is_the_sum_of_the_table_by_both_weights() -> None:
    *_, table, rows, columns = drawn((4, 5), weighed=True)
    bias = position_bias(table, rows, columns).reshape(HEADS, 4, 5, 2, 3)
    expected = torch.einsum("hst,ias,jbt->hijab", table, rows.double(), columns.double())
    torch.testing.assert_close(bias, expected)


def test_weights_of_one_row_and_column_are_places() -> None:
    *_, table, rows, columns = drawn((4, 5))
    weights = functional.one_hot(rows, 5).float(), functional.one_hot(columns, 7).float()
    torch.testing.assert_close(position_bias(table, *weights), position_bias(table, rows, columns))


def test_a_bias_that_is_no_table_of_differences_is_read_at_a_range() -> None:
    bias = torch.randn(HEADS, 4 * 5, 2 * 3)
    table = bias.reshape(HEADS, 4, 5, 2, 3).permute(0, 1, 3, 2, 4).reshape(HEADS, 4 * 2, 5 * 3)
    given = position_bias(table, torch.arange(8).reshape(4, 2), torch.arange(15).reshape(5, 3))
    assert torch.equal(given, bias)


# --- pieces and memory ---


@pytest.mark.parametrize("weighed", [False, True], ids=["places", "weights"])
@pytest.mark.parametrize("step", [1, 2, 3, 6])
@torch.no_grad()
def test_a_few_rows_at_a_time_give_the_same(step: int, weighed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "_pieces", lambda *_: [(top, min(top + step, 7)) for top in range(0, 7, step)])
    tensors = drawn((7, 4), weighed=weighed)
    expected = neighborhood_pool_attention(*tensors, backend="reference")
    torch.testing.assert_close(neighborhood_pool_attention(*tensors), expected)


@torch.no_grad()
def test_pieces_cover_each_row_once_and_are_one_row_at_least() -> None:
    for batch, width, pooled in ((1, 40, 50), (2, 300, 1050), (8, 3000, 1050), (0, 40, 50)):
        pieces = eager._pieces(torch.empty(1).expand(batch, 61, width, 3, 24), pooled)
        assert [row for top, end in pieces for row in range(top, end)] == list(range(61))
        tallest = max(end - top for top, end in pieces)
        assert tallest == 1 or tallest * batch * width * 3 * (9 + pooled) <= 1_000_000


def test_with_gradients_the_map_is_one_piece() -> None:
    q = torch.empty(8, 61, 3000, 3, 24, device="meta")
    assert eager._pieces(q, 1050) == [(0, 61)]


class Largest(TorchDispatchMode):
    """Remembers the most elements that any operator's result had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@torch.no_grad()
def test_inference_never_holds_the_scores_or_biases_of_a_large_map() -> None:
    tensors = drawn((64, 64), (16, 16), batch=1, dtype=torch.float32)
    with Largest() as largest:
        neighborhood_pool_attention(*tensors)
    assert 2 * 64 * 64 * HEADS * HEAD_DIM < largest.elements <= 1_000_000 < 64 * 64 * HEADS * 16 * 16


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_never_writes_neighbours_out_except_in_the_reference(backend: str) -> None:
    head_dim, side = 24, 24
    tensors = drawn((side, side), (1, 1), dtype=torch.float32)
    for place, shape in ((0, (2, side, side)), (1, (2, side, side)), (2, (2, side, side)), (3, (2, 1)), (4, (2, 1))):
        tensors[place] = torch.randn(*shape, HEADS, head_dim, requires_grad=True)
    tensors[5] = torch.randn(HEADS, 1, head_dim, requires_grad=True)
    tensors[8] = torch.randn(HEADS, head_dim, 9, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), Largest() as largest:
        with_gradients(tensors, backend)
    values = 2 * side * side * HEADS * head_dim
    assert (largest.elements < 1.5 * values) == (backend == "eager")
    assert (sum(kept.values()) < 12 * values) == (backend == "eager")


# --- precision ---


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_result_not_the_scores(dtype: torch.dtype, learns: bool) -> None:
    tensors = [x.detach() for x in drawn((9, 8))]
    tensors = [x.to(dtype) if x.is_floating_point() else x for x in tensors]
    tensors[6] = torch.full_like(tensors[6], 8)  # scores so large that rounding them would change which key wins
    expected = neighborhood_pool_attention(*(x.double() if x.is_floating_point() else x for x in tensors))
    with torch.set_grad_enabled(learns):
        out = neighborhood_pool_attention(*tensors)
    assert out.dtype == dtype
    assert (out - expected).abs().max() < 2 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_q(dtype: torch.dtype, backend: str) -> None:
    assert neighborhood_pool_attention(*drawn((3, 4), dtype=dtype), backend=backend).dtype == dtype


def test_half_precision_learns_what_full_precision_does() -> None:
    exact = drawn((6, 5))
    tensors = [x.detach().bfloat16().requires_grad_() if x.is_floating_point() else x for x in exact]
    exact = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in tensors]
    for given, expected in zip(with_gradients(tensors)[1:], with_gradients(exact)[1:], strict=True):
        assert given.dtype == torch.bfloat16
        assert (given - expected).abs().max() < 0.02 * expected.abs().max()


# --- graphs ---


def wrapped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    embedding: Tensor,
    temperature: Tensor,
    local: Tensor,
    tokens: Tensor,
    bias: Tensor,
    table: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> Tensor:
    return neighborhood_pool_attention(
        q, k, v, pool_k, pool_v, embedding, temperature, local, tokens, bias, table, rows, columns
    )


class Wrapped(nn.Module):
    def forward(self, images: list[Tensor], fixed: list[Tensor], rows: Tensor, columns: Tensor) -> Tensor:
        return neighborhood_pool_attention(*images, *fixed, rows, columns)


def exported(tensors: list[Tensor]) -> Callable[..., Tensor]:
    free = torch.export.Dim.DYNAMIC
    sides = [{0: free, 1: free, 2: free}] * 3 + [{0: free}] * 2
    shapes = (sides, [None] * 6, {0: free}, {0: free})
    inputs = (tensors[:5], tensors[5:11], *tensors[11:])
    program = torch.export.export(Wrapped(), inputs, dynamic_shapes=shapes).module()
    return lambda *given: program(list(given[:5]), list(given[5:11]), *given[11:])


@pytest.mark.parametrize("how", ["script", "export"])
@torch.no_grad()
def test_graphs_give_the_same_at_another_size(how: str) -> None:
    first, second = ([x.detach().contiguous() for x in drawn(size, batch=n)] for size, n in (((5, 7), 2), ((6, 4), 3)))
    second[5:11] = first[5:11]
    graph = {
        "script": lambda: torch.jit.script(wrapped),
        "export": lambda: exported(first),
    }[how]()
    for tensors in (first, second):
        torch.testing.assert_close(graph(*tensors), neighborhood_pool_attention(*tensors, backend="reference"))
