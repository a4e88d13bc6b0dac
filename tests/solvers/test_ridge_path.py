"""Ridge regressions for many ridges from one run, against a solve of each."""

import numpy as np
import pytest
import torch

from widefit.gram import DenseGram
from widefit.solvers import ridge_path as module
from widefit.solvers.ridge_path import ridge_path

RIDGES = np.array([10.0, 1.0, 0.1, 0.01, 1e-4])


def problem(samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(samples, 2, generator=generator, dtype=torch.float64)
    H = torch.exp(-8 * torch.cdist(x, x) ** 2)
    y = torch.sin(6 * x[:, 0]) + 0.3 * torch.randn(samples, generator=generator, dtype=torch.float64)
    weight = torch.rand(samples, generator=generator, dtype=torch.float64) + 0.5
    return H, y, weight, torch.arange(0, samples, 4)


def solved(H, y, weight, held, ridge) -> torch.Tensor:
    """g of the regression on the other rows, by a dense factorization."""
    others = torch.ones(len(y), dtype=torch.bool)
    others[held] = False
    g = torch.zeros(len(y), dtype=torch.float64)
    system = H[others][:, others] + ridge * torch.diag(1 / weight[others])
    g[others] = torch.linalg.solve(system, y[others])
    return g


def error_of(H, y, weight, held, g) -> float:
    share = weight[held] / weight[held].sum()
    return float(share @ ((H @ g - y)[held]) ** 2)


def test_every_ridge_in_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_RESIDUALS", (1e-9, 0.0))
    H, y, weight, held = problem(80)
    found = ridge_path(DenseGram(H), y, weight, held, RIDGES, 20, 100, whole=True)
    assert [fit.ridge for fit in found] == RIDGES.tolist()
    for fit in found:
        g = solved(H, y, weight, held, fit.ridge)
        torch.testing.assert_close(fit.coefficients, g, rtol=0, atol=1e-4 * float(g.abs().max()))
        np.testing.assert_allclose(fit.predictions, (H @ g)[held], atol=1e-6)
        np.testing.assert_allclose(fit.error, error_of(H, y, weight, held, g), rtol=1e-5)


def test_the_path_ends_when_held_out_rows_no_longer_profit():
    H, y, weight, held = problem(400)
    ridges = 10.0 ** np.arange(1.0, -9.0, -1.0)
    found = ridge_path(DenseGram(H), y, weight, held, ridges, 8, 200)
    exact = [error_of(H, y, weight, held, solved(H, y, weight, held, ridge)) for ridge in ridges]
    assert len(found) < len(ridges)
    assert min(fit.error for fit in found) <= 1.02 * min(exact)
    assert found[-1].error > min(fit.error for fit in found)
    for fit in found:
        assert not fit.coefficients[held].any()
        others = torch.ones(len(y), dtype=torch.bool)
        others[held] = False
        root = weight.sqrt()
        left = root * (H @ fit.coefficients - y) + fit.ridge * fit.coefficients / root
        size = torch.linalg.vector_norm((root * y)[others])
        np.testing.assert_allclose(fit.residual, torch.linalg.vector_norm(left[others]) / size, rtol=1e-6)


def test_targets_of_zero():
    H, _, weight, held = problem(40)
    found = ridge_path(DenseGram(H), torch.zeros(40, dtype=torch.float64), weight, held, RIDGES, 8, 20)
    assert found[-1].products == 0
    assert not any(fit.coefficients.any() for fit in found)
