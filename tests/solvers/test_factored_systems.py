"""Every solver against dense linear algebra in float64, on random, degenerate and badly scaled systems."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from widefit.gram import DenseGram
from widefit.gram.jacobian import DenseJacobian, JacobianGram
from widefit.solvers import CG, Cholesky, NystromCG, SketchedCG

SOLVERS = {
    "cholesky": Cholesky(),
    "cg": CG(tolerance=1e-10),
    "nystrom": NystromCG(tolerance=1e-10),
    "nystrom-full": NystromCG(tolerance=1e-10, rank=10**6),
    "sketched-srht": SketchedCG(tolerance=1e-10),
    "sketched-count": SketchedCG(tolerance=1e-10, sketch="count"),
    "sketched-gaussian": SketchedCG(tolerance=1e-10, sketch="gaussian", oversampling=2),
}


def factor(kind: str, rows: int = 30, columns: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    if kind == "duplicates":
        matrix[1::2] = matrix[::2]
    if kind == "zero-rows":
        matrix[:4] = 0
    if kind == "decaying":
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        matrix = left * torch.logspace(0, -4, len(left), dtype=torch.float64) @ right
    if kind == "huge":
        matrix *= 1e12
    if kind == "tiny":
        matrix *= 1e-12
    if kind == "one":
        matrix = matrix[:1]
    return matrix


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
class TestSolver:
    @pytest.mark.parametrize("kind", ["plain", "duplicates", "zero-rows", "decaying", "huge", "tiny", "one"])
    def test_agrees_with_dense(self, solver, kind: str) -> None:
        jacobian = factor(kind)
        gram = jacobian @ jacobian.T
        damping = 1e-5 * float(gram.diagonal().mean())
        rhs = torch.linspace(1, 2, len(gram), dtype=torch.float64)
        expected = torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=torch.float64), rhs)
        solution = solver.solve(JacobianGram(DenseJacobian(jacobian)), rhs, damping)
        assert solution.residual_norm < 1e-8
        torch.testing.assert_close(solution.value, expected, rtol=1e-3, atol=1e-6 * float(expected.abs().max()))

    def test_residual_is_the_true_one(self, solver) -> None:
        jacobian = factor("decaying")
        rhs = torch.randn(30, dtype=torch.float64)
        solution = solver.solve(JacobianGram(DenseJacobian(jacobian)), rhs, 1e-3)
        left = jacobian @ (jacobian.T @ solution.value) + 1e-3 * solution.value - rhs
        assert solution.residual_norm == pytest.approx(float(left.norm() / rhs.norm()), abs=1e-12)

    def test_several_right_hand_sides(self, solver) -> None:
        jacobian = factor("plain")
        rhs = torch.randn(30, 3, dtype=torch.float64)
        operator = JacobianGram(DenseJacobian(jacobian))
        together = solver.solve(operator, rhs, 1.0).value
        apart = torch.stack([solver.solve(operator, column, 1.0).value for column in rhs.T], dim=1)
        torch.testing.assert_close(together, apart)

    def test_prepared_twice_answers_the_same(self, solver) -> None:
        operator = JacobianGram(DenseJacobian(factor("plain")))
        prepared = solver.prepare(operator, 1.0)
        rhs = torch.randn(30, dtype=torch.float64)
        first, again = prepared.solve(rhs), prepared.solve(rhs)
        assert torch.equal(first.value, again.value)
        assert torch.equal(first.value, solver.solve(operator, rhs, 1.0).value)

    def test_zero_right_hand_side(self, solver) -> None:
        solution = solver.solve(JacobianGram(DenseJacobian(factor("plain"))), torch.zeros(30, dtype=torch.float64), 1.0)
        assert not solution.value.any()
        assert solution.residual_norm == 0

    @given(st.integers(1, 12), st.integers(1, 60), st.floats(1e-6, 1e3), st.integers(0, 2**31))
    def test_any_shape(self, solver, rows: int, columns: int, damping: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        jacobian = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
        rhs = torch.randn(rows, dtype=torch.float64, generator=generator)
        solution = solver.solve(JacobianGram(DenseJacobian(jacobian)), rhs, damping)
        assert solution.value.shape == rhs.shape
        assert solution.residual_norm < 1e-6


def test_sketching_makes_the_condition_number_harmless() -> None:
    jacobian = factor("decaying", rows=60, columns=4000)
    operator, rhs = JacobianGram(DenseJacobian(jacobian)), torch.ones(60, dtype=torch.float64)
    plain = CG(tolerance=1e-8).solve(operator, rhs, 1e-9)
    sketched = SketchedCG(tolerance=1e-8, oversampling=8).solve(operator, rhs, 1e-9)
    assert sketched.iterations < 45
    assert sketched.iterations < plain.iterations / 3


def test_preconditioner_is_reused_while_it_works() -> None:
    solver = SketchedCG(tolerance=1e-8)
    jacobian = factor("decaying", columns=1000)
    rhs = torch.ones(30, dtype=torch.float64)
    first = solver.prepare(JacobianGram(DenseJacobian(jacobian)), 1e-6)
    first.solve(rhs)
    near = JacobianGram(DenseJacobian(jacobian * 1.01))
    kept = solver.prepare(near, 1e-6, first.preconditioner)
    assert kept.solve(rhs).residual_norm < 1e-7
    assert kept.preconditioner.factor is first.preconditioner.factor
    far = solver.prepare(near, 1e-3, first.preconditioner)  # another damping: made afresh
    far.solve(rhs)
    assert far.preconditioner.factor is not first.preconditioner.factor


def test_sketching_needs_a_factor() -> None:
    with pytest.raises(ValueError, match="without a factor"):
        SketchedCG().solve(DenseGram(torch.eye(3, dtype=torch.float64)), torch.ones(3, dtype=torch.float64), 1.0)


def test_float32_stagnation_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(200, 200, dtype=torch.float64, generator=generator))[0]
    gram = ((left * torch.logspace(0, -9, 200, dtype=torch.float64)) @ left.T).float()
    solution = CG(tolerance=1e-12, max_iterations=100_000).solve(DenseGram(gram), torch.ones(200), 0.0)
    assert solution.iterations < 20_000
    assert solution.residual_norm > 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SketchedCG(sketch="fourier"), "sketch must be one of"),
        (lambda: SketchedCG(oversampling=0.5), "oversampling must be at least 1"),
        (lambda: NystromCG(rank=0), "rank must be at least 1"),
    ],
)
def test_options_out_of_range(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_cholesky_reports_its_jitter() -> None:
    jacobian = factor("duplicates")
    solution = Cholesky().solve(DenseGram(jacobian @ jacobian.T), torch.ones(30, dtype=torch.float64), 0.0)
    assert solution.jitter > 0
    with pytest.raises(ArithmeticError, match="not finite"):
        Cholesky().solve(DenseGram(torch.full((2, 2), torch.nan)), torch.ones(2), 1.0)
