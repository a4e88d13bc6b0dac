"""Losses against torch's own, their gradients and their Hessians."""

import pytest
import torch
from torch import nn

from widefit.gram.jacobian import apply_root_transposed
from widefit.losses.custom import Custom
from widefit.losses.family import output_loss
from widefit.losses.squared import HalfSquare

N, K = 7, 3


def case(name: str):
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(N, K, generator=generator, dtype=torch.float64)
    real = torch.randn(N, K, generator=generator, dtype=torch.float64)
    classes = torch.arange(N) % K
    return {
        "mse": (output_loss("mse"), nn.MSELoss(), outputs, real),
        "huber": (output_loss("huber"), nn.HuberLoss(), outputs, 3 * real),
        "bce": (output_loss("bce"), nn.BCEWithLogitsLoss(), outputs, (real > 0).double()),
        "cross_entropy": (output_loss("cross_entropy"), nn.CrossEntropyLoss(), outputs, classes),
        "probabilities": (output_loss("cross_entropy"), nn.CrossEntropyLoss(), outputs, torch.softmax(real, dim=1)),
        "callable": (output_loss(nn.PoissonNLLLoss()), nn.PoissonNLLLoss(), outputs, real.exp()),
        "half": (HalfSquare(2.5), lambda f, y: 2.5 * 0.5 * f.square().mean(), outputs, None),
    }[name]


NAMES = ["mse", "huber", "bce", "cross_entropy", "probabilities", "callable", "half"]


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient(name: str) -> None:
    loss, reference, outputs, targets = case(name)
    live = outputs.clone().requires_grad_()
    value = reference(live, targets)
    (gradient,) = torch.autograd.grad(value, live)
    torch.testing.assert_close(loss.value(outputs, targets), value.detach())
    local = loss.expand(outputs, targets)
    torch.testing.assert_close(apply_root_transposed(local.root, local.residual), gradient)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "huber"])
def test_root_is_a_root_of_the_hessian(name: str) -> None:
    loss, reference, outputs, targets = case(name)
    hessian = torch.autograd.functional.hessian(lambda f: reference(f, targets), outputs)
    blocks = torch.stack([hessian[i, :, i, :] for i in range(N)])
    root = loss.expand(outputs, targets).root
    full = root if root.ndim == 3 else torch.diag_embed(root.expand(N, K))
    torch.testing.assert_close(full @ full.transpose(1, 2), blocks, rtol=1e-6, atol=1e-9)


def test_huber_parabola_lies_above() -> None:
    loss, reference, outputs, targets = case("huber")
    local = loss.expand(outputs, targets)
    for seed in range(20):
        change = torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        white = local.root * change
        bound = reference(outputs, targets) + (local.residual * white).sum() + 0.5 * white.square().sum()
        assert reference(outputs + change, targets) <= bound + 1e-12


@pytest.mark.parametrize("logit", [50.0, 1e4])
@pytest.mark.parametrize("name", ["bce", "cross_entropy"])
def test_saturated_outputs_stay_finite(name: str, logit: float) -> None:
    outputs = torch.full((2, 2), -logit)
    outputs[:, 0] = logit
    targets = torch.tensor([1, 1]) if name == "cross_entropy" else torch.tensor([[0.0, 1.0]] * 2)
    local = output_loss(name).expand(outputs, targets)
    assert torch.isfinite(local.residual).all()
    assert torch.isfinite(local.root).all()


def test_flat_and_concave_losses_get_some_curvature() -> None:
    local = Custom(lambda f, y: (f - y).abs().mean()).expand(torch.randn(4, 1), torch.zeros(4, 1))
    assert torch.isfinite(local.residual).all()
    concave = Custom(lambda f, y: torch.log1p((f - y).square()).mean())
    local = concave.expand(torch.tensor([[0.1], [9.0]]), torch.zeros(2, 1))
    assert bool((local.root.diagonal(dim1=1, dim2=2) ** 2 >= 0).all())


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("cross_entropy", torch.tensor([0, 3]), "class numbers must lie in 0 … 2"),
        ("cross_entropy", torch.tensor([0]), "one class number a sample"),
        ("cross_entropy", torch.zeros(2, 2), "probabilities of shape"),
        ("mse", torch.zeros(2, 2), "do not match outputs"),
        ("mse", None, "needs targets"),
    ],
)
def test_targets_that_do_not_fit(name: str, targets, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        output_loss(name).expand(torch.zeros(2, 3), targets)
