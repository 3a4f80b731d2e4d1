"""Sigmoid and softmax focal loss through mmcv.ops, against the paper's formula written plainly."""

import math

import pytest
import torch
from torch import Tensor
from vertebra.backbones._errors import UserError
from vertebra.engine.operators import live

ops = pytest.importorskip("mmcv.ops")
pytestmark = pytest.mark.skipif(live()["source"] != "vertebra", reason="this mmcv has compiled operators")

FLOOR = -math.log(torch.finfo(torch.float32).tiny)  # what -log(0) counts as: 87.3


def logits(rows: int = 6, classes: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, classes, dtype=dtype) * 3


def sigmoid_formula(x: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    """Lin et al., equation 5, one class at a time; FL = -alpha_t (1 - p_t)^gamma log(p_t)."""
    rows = []
    for row, label in zip(x, target.tolist(), strict=True):
        terms = []
        for c, logit in enumerate(row):
            p = 1 / (1 + torch.exp(-logit))
            p_t, alpha_t = (p, alpha) if c == label else (1 - p, 1 - alpha)
            terms.append(-alpha_t * (1 - p_t) ** gamma * torch.log(p_t))
        rows.append(torch.stack(terms))
    return torch.stack(rows)


def softmax_formula(x: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    rows = []
    for row, label in zip(x, target.tolist(), strict=True):
        p_t = torch.exp(row[label]) / torch.exp(row).sum()
        rows.append(-alpha * (1 - p_t) ** gamma * torch.log(p_t))
    return torch.stack(rows)


# --- sigmoid ---


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.6), (0.5, 0.25)])
def test_sigmoid_loss_and_gradient_by_the_formula(gamma: float, alpha: float) -> None:
    x, target = logits().requires_grad_(), torch.tensor([0, 3, 1, 1, 4, -1])
    factors = torch.rand(6, 4, dtype=torch.float64)
    expected = sigmoid_formula(x, target, gamma, alpha)
    found = ops.sigmoid_focal_loss(x, target, gamma, alpha, None, "none")
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, x, factors)[0]
    torch.testing.assert_close(torch.autograd.grad(found, x, factors)[0], wanted)


@pytest.mark.parametrize("label", [4, -1, -100])
def test_sigmoid_row_without_a_class_is_all_negatives(label: int) -> None:
    x = torch.zeros(1, 4)
    loss = ops.sigmoid_focal_loss(x, torch.tensor([label]), 2.0, 0.25, None, "none")
    assert loss.tolist() == [pytest.approx([0.75 * 0.25 * math.log(2)] * 4)]


def test_sigmoid_gradient_by_differences() -> None:
    target, weight = torch.tensor([0, 3, 1, 2, 4]), torch.rand(4, dtype=torch.float64)
    x = logits(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, "none"), (x,))
    assert torch.autograd.gradcheck(lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, "mean"), (x,))


def test_sigmoid_weights_belong_to_the_label_of_the_row() -> None:
    x, target = logits().requires_grad_(), torch.tensor([0, 3, 1, 1, 4, -1])
    weight = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=torch.float64)
    rows = torch.tensor([2.0, 7.0, 3.0, 3.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    plain = ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, "none")
    weighed = ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, "none")
    torch.testing.assert_close(weighed, plain * rows)
    slope = torch.autograd.grad(plain.sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(weighed.sum(), x)[0], slope * rows)


def test_sigmoid_of_sure_mistakes_is_finite() -> None:
    x = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(x, torch.tensor([0]), 2.0, 0.25, None, "none")
    assert loss.tolist() == [pytest.approx([0.25 * FLOOR, 0.75 * FLOOR])]
    assert torch.autograd.grad(loss.sum(), x)[0].tolist() == [pytest.approx([-0.25, 0.75])]


def test_sigmoid_of_sure_hits_is_zero() -> None:
    x = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(x, torch.tensor([0]), 2.0, 0.25, None, "none")
    assert loss.tolist() == [[0, 0]]
    assert torch.autograd.grad(loss.sum(), x)[0].tolist() == [[0, 0]]


# --- softmax ---


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 1.0), (1.5, 0.6), (0.5, 0.25)])
def test_softmax_loss_and_gradient_by_the_formula(gamma: float, alpha: float) -> None:
    x, target = logits().requires_grad_(), torch.tensor([0, 3, 1, 1, 2, 0])
    expected = softmax_formula(x, target, gamma, alpha)
    torch.testing.assert_close(ops.softmax_focal_loss(x, target, gamma, alpha, None, "none"), expected)
    wanted = torch.autograd.grad(expected.mean(), x)[0]
    found = torch.autograd.grad(ops.softmax_focal_loss(x, target, gamma, alpha, None, "mean"), x)[0]
    torch.testing.assert_close(found, wanted)


def test_softmax_gradient_by_differences() -> None:
    target, weight = torch.tensor([0, 3, -1, 2, 4]), torch.rand(4, dtype=torch.float64)
    x = logits(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.softmax_focal_loss(x, target, 2.0, 0.25, weight, "sum"), (x,))


@pytest.mark.parametrize("label", [4, -1, -100])
@pytest.mark.parametrize("weight", [None, torch.ones(4)])
def test_softmax_ignores_rows_without_a_class(label: int, weight: Tensor | None) -> None:
    x, target = logits(3, dtype=torch.float32).requires_grad_(), torch.tensor([1, label, 2])
    loss = ops.softmax_focal_loss(x, target, 2.0, 0.25, weight, "none")
    slope = torch.autograd.grad(ops.softmax_focal_loss(x, target, 2.0, 0.25, weight, "sum"), x)[0]
    assert (loss != 0).tolist() == [True, False, True]
    assert (slope != 0).any(1).tolist() == [True, False, True]


def test_softmax_weights_belong_to_the_label() -> None:
    x, target = logits(), torch.tensor([0, 3, 1, 1, 2, 0])
    weight = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=torch.float64)
    plain = ops.softmax_focal_loss(x, target, 2.0, 0.25, None, "none")
    torch.testing.assert_close(ops.softmax_focal_loss(x, target, 2.0, 0.25, weight, "none"), plain * weight[target])


def test_softmax_of_a_sure_mistake_is_finite() -> None:
    x = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = ops.softmax_focal_loss(x, torch.tensor([0]), 2.0, 0.25, None, "sum")
    assert loss.item() == pytest.approx(0.25 * FLOOR)
    assert torch.autograd.grad(loss, x)[0].tolist() == [pytest.approx([-0.25, 0.25])]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_softmax_of_a_sure_hit_has_no_gradient(gamma: float) -> None:
    x = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = ops.softmax_focal_loss(x, torch.tensor([0]), gamma, 0.25, None, "sum")
    assert loss.item() == 0
    assert torch.autograd.grad(loss, x)[0].tolist() == [[0, 0]]


# --- both ---


@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_no_rows(loss: str) -> None:
    x = torch.empty(0, 4, requires_grad=True)
    total = getattr(ops, loss)(x, torch.empty(0, dtype=torch.long), 2.0, 0.25, torch.ones(4), "sum")
    assert total.item() == 0
    assert torch.autograd.grad(total, x)[0].shape == (0, 4)


@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "softmax_focal_loss"])
@pytest.mark.parametrize("weight", [None, torch.ones(3)])
def test_one_class_too_many_is_one_sentence(loss: str, weight: Tensor | None) -> None:
    with pytest.raises(UserError, match="got the label 4 for 3 classes: labels are 0 to 2, and 3 is the background"):
        getattr(ops, loss)(torch.zeros(2, 3), torch.tensor([0, 4]), 2.0, 0.25, weight, "none")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sigmoid_in_half_precision_is_float32_rounded_once(dtype: torch.dtype) -> None:
    x, target = (logits(dtype=torch.float32) * 5).to(dtype), torch.tensor([0, 3, 1, 1, 4, -1])
    results = []
    for logit in (x.clone().requires_grad_(), x.float().requires_grad_()):
        loss = ops.sigmoid_focal_loss(logit, target, 2.0, 0.25, None, "none")
        results.append((loss.to(dtype), torch.autograd.grad(loss.sum(), logit)[0].to(dtype)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_softmax_in_half_precision_is_close_to_float32(dtype: torch.dtype) -> None:
    x, target = logits(dtype=torch.float32).to(dtype), torch.tensor([0, 3, 1, 1, 2, 0])
    half = ops.softmax_focal_loss(x, target, 2.0, 0.25, None, "none")
    assert half.dtype == dtype
    expected = ops.softmax_focal_loss(x.float(), target, 2.0, 0.25, None, "none")
    torch.testing.assert_close(half.float(), expected, rtol=20 * torch.finfo(dtype).eps, atol=1e-3)  # mmcv's softmax


@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_logits_that_are_not_contiguous(loss: str) -> None:
    x, target = logits(), torch.tensor([0, 3, 1, 1, 2, 0])
    results = []
    for view in (x, x.t().contiguous().t()):
        leaf = view.detach().requires_grad_()
        value = getattr(ops, loss)(leaf, target, 2.0, 0.25, None, "sum")
        results.append((value, torch.autograd.grad(value, leaf)[0]))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("module", ["SigmoidFocalLoss", "SoftmaxFocalLoss"])
def test_logits_are_left_alone(module: str) -> None:
    x = logits(dtype=torch.float32).requires_grad_()
    before = x.detach().clone()
    getattr(ops, module)(2.0, 0.25)(x, torch.tensor([0, 3, 1, 1, 2, 0])).backward()
    assert torch.equal(x.detach(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_cuda_as_the_cpu(loss: str) -> None:
    target, weight = torch.tensor([0, 3, 1, 1, 4, -1]), torch.rand(4, dtype=torch.float64)
    x, results = logits(), []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        value = getattr(ops, loss)(leaf, target.to(device), 2.0, 0.25, weight.to(device), "sum")
        results.append((value.cpu(), torch.autograd.grad(value, leaf)[0].cpu()))
    torch.testing.assert_close(results[1], results[0])
