"""The empirical neural tangent kernel against products of gradients."""

import pytest
import torch
from small_systems import mlp, slow_jacobian
from torch import nn

import widefit


class Mixed(nn.Module):
    """A network beside a free scalar: no factored form."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 6, 2)
        self.scale = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, x):
        return self.scale * self.net(x).tanh()


def models() -> list[nn.Module]:
    frozen = mlp(4, 6, 2)
    frozen[0].requires_grad_(False)
    convolution = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))
    return [mlp(4, 6, 5, 2), frozen, convolution.double(), Mixed()]


@pytest.mark.parametrize("model", models(), ids=["network", "frozen", "convolution", "scalar"])
def test_products_of_gradients(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    other = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    here, there = slow_jacobian(model, model(x)), slow_jacobian(model, model(other))
    kernel = widefit.ntk(model, x)
    torch.testing.assert_close(kernel, here @ here.T)
    assert not kernel.requires_grad
    torch.testing.assert_close(widefit.ntk(model, x, other), here @ there.T)
    torch.testing.assert_close(widefit.ntk(model, x.numpy(), x), here @ here.T)
    operator = widefit.ntk(model, x, dense=False)
    torch.testing.assert_close(operator.dense(), here @ here.T)
    torch.testing.assert_close(operator.diagonal(), here.square().sum(dim=1))
    torch.testing.assert_close(operator.columns(torch.tensor([3, 0])), (here @ here.T)[:, [3, 0]])


def test_refusals() -> None:
    x = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="leave out x2"):
        widefit.ntk(mlp(4, 1), x, x, dense=False)
    with pytest.raises(ValueError, match="not finite in 3 of 3 samples"):
        widefit.ntk(mlp(4, 1), x * torch.nan)
    with pytest.raises(ValueError, match="BatchNorm"):
        widefit.ntk(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), x)
