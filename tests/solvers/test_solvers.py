"""Every solver against dense linear algebra in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from widefit.gram import DenseGram
from widefit.solvers import CG, BlockCG, Cholesky
from widefit.tuning.leave_one_out import leave_one_out

SOLVERS = [Cholesky(), CG(tolerance=1e-11), BlockCG(tolerance=1e-11)]


def matrices() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    full, low, twin = normal(30, 60), normal(30, 5), normal(30, 40)
    twin[15:] = twin[:15]
    return {
        "full rank": full @ full.T,
        "low rank": low @ low.T,
        "duplicate rows": twin @ twin.T,
        "one sample": torch.tensor([[3.0]], dtype=torch.float64),
        "zero": torch.zeros(6, 6, dtype=torch.float64),
        "huge": 1e12 * (full @ full.T),
        "tiny": 1e-12 * (full @ full.T),
        "diagonal over ten decades": torch.diag(torch.logspace(-5, 5, 12, dtype=torch.float64)),
    }


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
class TestSolver:
    """What any solver must do; a new one joins by its place in SOLVERS."""

    @pytest.mark.parametrize("name", list(matrices()))
    @pytest.mark.parametrize("columns", [None, 3])
    def test_damped_systems(self, solver, name, columns):
        matrix = matrices()[name]
        size = matrix.shape[0]
        damping = 1e-3 * max(float(matrix.diagonal().mean()), 1e-9)
        rhs = torch.linspace(-1, 2, size * (columns or 1), dtype=torch.float64).reshape(
            (size,) if columns is None else (size, columns)
        )
        solution = solver.solve(DenseGram(matrix.clone()), rhs, damping)
        expected = torch.linalg.solve(matrix + damping * torch.eye(size, dtype=torch.float64), rhs)
        assert solution.value.shape == rhs.shape
        assert solution.residual_norm < 1e-9
        np.testing.assert_allclose(
            solution.value.numpy(), expected.numpy(), rtol=1e-6, atol=1e-7 * float(expected.abs().max())
        )

    def test_consistent_singular_system_without_damping(self, solver):
        matrix = matrices()["low rank"]
        rhs = matrix @ torch.ones(30, dtype=torch.float64)
        solution = solver.solve(DenseGram(matrix.clone()), rhs, 0.0)
        assert torch.isfinite(solution.value).all()
        assert solution.residual_norm < 1e-6

    def test_nothing_moves_and_nothing_is_asked(self, solver):
        zero = DenseGram(torch.zeros(4, 4, dtype=torch.float64))
        assert not solver.solve(zero, torch.ones(4, dtype=torch.float64), 0.0).value.any()
        full = DenseGram(torch.eye(4, dtype=torch.float64))
        solution = solver.solve(full, torch.zeros(4, dtype=torch.float64), 0.0)
        assert not solution.value.any()
        assert solution.residual_norm == 0

    def test_the_operator_is_left_as_it_was(self, solver):
        matrix = matrices()["full rank"]
        operator = DenseGram(matrix.clone())
        solver.solve(operator, torch.ones(30, dtype=torch.float64), 0.5)
        assert torch.equal(operator.matrix, matrix)


def test_cholesky_reports_the_jitter_it_needed():
    rank_one = torch.ones(8, 8, dtype=torch.float64)
    solution = Cholesky().solve(DenseGram(rank_one), torch.ones(8, dtype=torch.float64), 0.0)
    assert solution.jitter > 0
    assert Cholesky().solve(DenseGram(rank_one), torch.ones(8, dtype=torch.float64), 0.1).jitter == 0


def test_cholesky_refuses_what_no_jitter_mends():
    indefinite = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    with pytest.raises(ArithmeticError, match="increase the damping"):
        Cholesky().solve(DenseGram(indefinite), torch.ones(3, dtype=torch.float64), 0.0)
    infinite = torch.full((2, 2), torch.inf, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="not finite"):
        Cholesky().solve(DenseGram(infinite), torch.ones(2, dtype=torch.float64), 0.0)


def test_cg_says_how_far_it_came():
    matrix = matrices()["diagonal over ten decades"] + 0.1
    solution = CG(max_iterations=2).solve(DenseGram(matrix), torch.ones(12, dtype=torch.float64), 0.0)
    assert solution.iterations == 2
    assert solution.residual_norm > 1e-6


@given(st.integers(2, 12), st.integers(1, 3), st.floats(1e-4, 10), st.integers(0, 1000))
def test_leave_one_out_equals_leaving_one_out(samples, outputs, alpha, seed):
    generator = np.random.default_rng(seed)
    jacobian = generator.standard_normal((samples, 6))
    targets, weight = generator.standard_normal((samples, outputs)), generator.uniform(0.1, 3, samples)
    found = leave_one_out(jacobian @ jacobian.T, targets, weight, alpha)
    for left_out in range(samples):
        kept = np.arange(samples) != left_out
        rows = jacobian[kept]
        normal = rows.T @ (weight[kept, None] * rows) + alpha * np.eye(6)
        u = np.linalg.solve(normal, rows.T @ (weight[kept, None] * targets[kept]))
        np.testing.assert_allclose(found.residuals[left_out], targets[left_out] - jacobian[left_out] @ u, atol=1e-8)
    u = np.linalg.solve(
        jacobian.T @ (weight[:, None] * jacobian) + alpha * np.eye(6), jacobian.T @ (weight[:, None] * targets)
    )
    np.testing.assert_allclose(jacobian.T @ found.coefficients, u, atol=1e-8)
