"""Every solver with every operator, against dense linear algebra in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from widefit.gram import (
    CoupledGram,
    DenseGram,
    IdenticalBlocks,
    ImplicitGram,
    JacobianGram,
    LayerRows,
    Operator,
    WeightedGram,
)
from widefit.gram.jacobian import DenseJacobian
from widefit.solvers import CG, BlockCG, Cholesky, NystromCG, Primal, Reusing, SketchedCG, Solver, nystrom_cg
from widefit.solvers.warm_start import solve_from
from widefit.tuning.leave_one_out import leave_one_out

SOLVERS: dict[str, Solver] = {
    "cholesky": Cholesky(),
    "cg": CG(tolerance=1e-11),
    "block-cg": BlockCG(tolerance=1e-11),
    "nystrom": NystromCG(tolerance=1e-11),
    "nystrom-full": NystromCG(tolerance=1e-11, rank=10**6),
    "sketched-srht": SketchedCG(tolerance=1e-11),
    "sketched-count": SketchedCG(tolerance=1e-11, sketch="count"),
    "sketched-gaussian": SketchedCG(tolerance=1e-11, sketch="gaussian", oversampling=2),
    "primal": Primal(),
}
KINDS = (
    "wide", "tall", "low rank", "duplicate rows", "zero rows", "decaying", "one sample", "zero", "huge", "tiny",
    "ten decades",
)  # fmt: skip


def factor(kind: str, rows: int = 30, columns: int = 200) -> Tensor:
    """J of one kind, float64; rows are pairs of a sample and one of two outputs."""
    generator = torch.Generator().manual_seed(5)
    columns = {"tall": 9, "low rank": 5}.get(kind, columns)
    matrix = torch.randn(2 if kind == "one sample" else rows, columns, dtype=torch.float64, generator=generator)
    if kind == "duplicate rows":
        matrix[rows // 2 :] = matrix[: rows // 2]
    elif kind == "zero rows":
        matrix[:4] = 0
    elif kind == "decaying":
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        matrix = left * torch.logspace(0, -4, len(left), dtype=torch.float64) @ right
    elif kind == "ten decades":
        matrix = torch.diag(torch.logspace(-2.5, 2.5, rows, dtype=torch.float64))
    return matrix * {"zero": 0.0, "huge": 1e6, "tiny": 1e-6}.get(kind, 1.0)


def coupled(J: Tensor) -> tuple[Operator, Tensor]:
    signals, inputs = J[:, :20].reshape(-1, 2, 1, min(20, J.shape[1])), J[::2, None, -7:]
    layer = LayerRows(inputs, signals).with_overlap()
    rows = torch.einsum("nkto,nti->nkoi", signals, inputs).flatten(2).flatten(0, 1)
    return CoupledGram([layer]), rows @ rows.T


def weighted(J: Tensor) -> tuple[Operator, Tensor]:
    root = torch.linspace(0.5, 2, len(J), dtype=J.dtype)[:, None, None]
    rows = root[:, 0] * J
    return WeightedGram(DenseGram(J @ J.T, outputs=2), root), rows @ rows.T


def implicit(J: Tensor) -> tuple[Operator, Tensor]:
    return ImplicitGram(lambda block: J @ (J.T @ block), J[::2] @ J[::2].T, outputs=2), J @ J.T


def identical(J: Tensor) -> tuple[Operator, Tensor]:
    block = JacobianGram(DenseJacobian(J[::2]))
    return IdenticalBlocks(block, 2), torch.kron(J[::2] @ J[::2].T, torch.eye(2, dtype=J.dtype))


OPERATORS: dict[str, Callable[[Tensor], tuple[Operator, Tensor]]] = {
    "jacobian": lambda J: (JacobianGram(DenseJacobian(J), outputs=2), J @ J.T),
    "dense": lambda J: (DenseGram(J @ J.T, outputs=2), J @ J.T),
    "coupled": coupled,
    "weighted": weighted,
    "implicit": implicit,
    "identical blocks": identical,
}
NEEDS_FACTOR = (Primal, SketchedCG)


def system(solver: Solver, name: str, kind: str) -> tuple[Operator, Tensor]:
    operator, matrix = OPERATORS[name](factor(kind))
    if isinstance(solver, NEEDS_FACTOR) and name not in ("jacobian", "identical blocks"):
        with pytest.raises(ValueError, match="without a factor"):
            solver.prepare(operator, 1.0)
        pytest.skip("needs a factor")
    return operator, matrix


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
class TestSolver:
    """Contract of every solver; a new one joins by its place in SOLVERS."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", OPERATORS)
    def test_damped_systems(self, solver: Solver, name: str, kind: str):
        operator, matrix = system(solver, name, kind)
        size = len(matrix)
        damping = 1e-3 * max(float(matrix.diagonal().mean()), 1e-20)
        rhs = torch.linspace(-1, 2, 3 * size, dtype=torch.float64).reshape(size, 3)
        expected = torch.linalg.solve(matrix + damping * torch.eye(size, dtype=torch.float64), rhs)
        close = {"rtol": 1e-5, "atol": 1e-6 * float(expected.abs().max())}
        for right, wanted in ((rhs, expected), (rhs[:, 0].contiguous(), expected[:, 0])):
            solution = solver.solve(operator, right, damping)
            assert solution.residual_norm < 1e-8
            torch.testing.assert_close(solution.value, wanted, **close)
            scale = float((matrix.abs() @ wanted.abs()).max())
            torch.testing.assert_close(solution.image, matrix @ solution.value, rtol=1e-9, atol=1e-12 * scale)

    @pytest.mark.parametrize("name", OPERATORS)
    def test_residual_and_image_are_the_true_ones(self, solver: Solver, name: str):
        operator, matrix = system(solver, name, "decaying")
        rhs = torch.randn(len(matrix), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        damping = 1e-3 * float(matrix.diagonal().mean())
        solution = solver.solve(operator, rhs, damping)
        left = matrix @ solution.value + damping * solution.value - rhs
        assert solution.residual_norm == pytest.approx(float(left.norm() / rhs.norm()), abs=1e-11)
        assert solution.iterations >= 0
        assert solution.solver == solver.name

    @pytest.mark.parametrize("name", OPERATORS)
    def test_consistent_singular_system_without_damping(self, solver: Solver, name: str):
        operator, matrix = system(solver, name, "low rank")
        rhs = matrix @ torch.ones(len(matrix), dtype=torch.float64)
        solution = solver.solve(operator, rhs, 0.0)
        assert torch.isfinite(solution.value).all()
        assert solution.residual_norm < 1e-5

    def test_nothing_moves_and_nothing_is_asked(self, solver: Solver):
        zero = JacobianGram(DenseJacobian(torch.zeros(4, 3, dtype=torch.float64)), outputs=2)
        nothing = solver.solve(zero, torch.ones(4, dtype=torch.float64), 0.0)
        assert not nothing.value.any()
        assert nothing.residual_norm == 1
        for right in (torch.zeros(30, dtype=torch.float64), torch.zeros(30, 2, dtype=torch.float64)):
            solution = solver.solve(JacobianGram(DenseJacobian(factor("wide"))), right, 0.5)
            assert not solution.value.any()
            assert solution.residual_norm == 0

    def test_the_operator_is_left_as_it_was(self, solver: Solver):
        jacobian = factor("wide")
        solver.solve(JacobianGram(DenseJacobian(jacobian)), torch.ones(30, dtype=torch.float64), 0.5)
        assert torch.equal(jacobian, factor("wide"))

    def test_prepared_answers_the_same_twice(self, solver: Solver):
        operator, rhs = JacobianGram(DenseJacobian(factor("wide"))), torch.linspace(-1, 2, 30, dtype=torch.float64)
        prepared = solver.prepare(operator, 1.0)
        first, again = prepared.solve(rhs), prepared.solve(rhs)
        assert torch.equal(first.value, again.value)
        assert torch.equal(first.value, solver.solve(operator, rhs, 1.0).value)

    def test_several_right_hand_sides_are_solved_as_each_alone(self, solver: Solver):
        operator, rhs = JacobianGram(DenseJacobian(factor("wide"))), torch.randn(30, 3, dtype=torch.float64)
        apart = torch.stack([solver.solve(operator, column.contiguous(), 1.0).value for column in rhs.T], dim=1)
        torch.testing.assert_close(solver.solve(operator, rhs, 1.0).value, apart)

    def test_float32(self, solver: Solver):
        jacobian = factor("wide").float()
        gram = jacobian.double() @ jacobian.double().T
        damping = 1e-2 * float(gram.diagonal().mean())
        rhs = torch.linspace(-1, 2, 30)
        solution = solver.solve(JacobianGram(DenseJacobian(jacobian)), rhs, damping)
        assert solution.value.dtype == torch.float32
        expected = torch.linalg.solve(gram + damping * torch.eye(30, dtype=torch.float64), rhs.double())
        torch.testing.assert_close(
            solution.value.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
        )

    @given(st.integers(1, 12), st.integers(1, 60), st.floats(1e-6, 1e3), st.integers(0, 2**31))
    def test_any_shape(self, solver: Solver, rows: int, columns: int, damping: float, seed: int):
        generator = torch.Generator().manual_seed(seed)
        jacobian = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
        rhs = torch.randn(rows, dtype=torch.float64, generator=generator)
        solution = solver.solve(JacobianGram(DenseJacobian(jacobian)), rhs, damping)
        assert solution.value.shape == rhs.shape
        assert solution.residual_norm < 1e-6


class TestReusing:
    def test_a_system_is_prepared_once(self):
        reusing, operator = Reusing(Cholesky()), JacobianGram(DenseJacobian(factor("wide")))
        first = reusing.prepare(operator, 1.0)
        assert reusing.prepare(operator, 1.0) is first
        assert reusing.prepare(operator, 2.0) is not first
        other = JacobianGram(DenseJacobian(factor("wide")))
        assert reusing.prepare(other, 2.0) is not reusing.prepare(operator, 2.0)

    def test_it_answers_as_the_solver_does(self):
        for solver in SOLVERS.values():
            reusing = Reusing(solver)
            for scale in (1.0, 1.05):
                J = scale * factor("wide")
                operator, rhs = JacobianGram(DenseJacobian(J), outputs=2), torch.ones(30, dtype=torch.float64)
                for damping in (3.0, 1.0):
                    expected = torch.linalg.solve(J @ J.T + damping * torch.eye(30, dtype=torch.float64), rhs)
                    torch.testing.assert_close(reusing.solve(operator, rhs, damping).value, expected)

    @pytest.mark.parametrize("solver", [SketchedCG(tolerance=1e-8), BlockCG(tolerance=1e-8)], ids=lambda s: s.name)
    def test_a_factor_is_carried_over_while_it_works(self, solver):
        jacobian, rhs = factor("decaying", columns=1000), torch.ones(30, dtype=torch.float64)
        reusing, damping = Reusing(solver), 1e-4
        reusing.solve(JacobianGram(DenseJacobian(jacobian), outputs=2), rhs, damping)
        first = reusing.preconditioner
        near = JacobianGram(DenseJacobian(jacobian * 1.01), outputs=2)
        assert reusing.solve(near, rhs, damping).residual_norm < 1e-7
        assert reusing.preconditioner.factor is first.factor
        resumed = Reusing(solver, first)
        assert torch.equal(
            resumed.solve(near, rhs, damping).value, Reusing(solver, first).solve(near, rhs, damping).value
        )
        assert resumed.preconditioner.factor is first.factor
        reusing.solve(near, rhs, 1e-2)  # another damping: made afresh
        assert reusing.preconditioner.factor is not first.factor
        narrow = JacobianGram(DenseJacobian(jacobian[:20]), outputs=2)
        assert resumed.solve(narrow, rhs[:20], damping).residual_norm < 1e-7

    def test_a_worn_factor_is_made_again(self):
        solver, rhs = SketchedCG(tolerance=1e-8), torch.ones(30, dtype=torch.float64)
        reusing = Reusing(solver)
        reusing.solve(JacobianGram(DenseJacobian(factor("decaying"))), rhs, 1e-9)
        first = reusing.preconditioner
        other = JacobianGram(DenseJacobian(factor("wide").flip(0)))
        reusing.solve(other, rhs, 1e-9)
        assert reusing.preconditioner.products[1] > 2 * max(5, reusing.preconditioner.products[0])
        again = JacobianGram(DenseJacobian(factor("wide").flip(0)))
        reusing.solve(again, rhs, 1e-9)
        assert reusing.preconditioner.factor is not first.factor


class TestIdenticalBlocks:
    """A readout: one block for all outputs."""

    def readout(self, samples: int, features: int) -> tuple[IdenticalBlocks, Tensor]:
        rows = torch.cat([factor("wide", samples, features), torch.ones(samples, 1, dtype=torch.float64)], dim=1)
        operator = IdenticalBlocks(JacobianGram(DenseJacobian(0.7 * rows)), outputs=3)
        return operator, torch.kron(0.49 * rows @ rows.T, torch.eye(3, dtype=torch.float64))

    @pytest.mark.parametrize(("samples", "features"), [(12, 20), (20, 4)])
    def test_block_cg_ends_after_one_product(self, samples, features):
        operator, matrix = self.readout(samples, features)
        rhs = torch.randn(len(matrix), dtype=torch.float64)
        solution = BlockCG(tolerance=1e-8).solve(operator, rhs, 1e-3)
        assert solution.iterations == 1
        expected = torch.linalg.solve(matrix + 1e-3 * torch.eye(len(matrix), dtype=torch.float64), rhs)
        torch.testing.assert_close(solution.value, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))

    def test_direct_solvers_factor_one_block(self):
        operator, _ = self.readout(20, 4)
        rhs = torch.randn(60, dtype=torch.float64)
        dual, primal = (solver.solve(operator, rhs, 1e-2).value for solver in (Cholesky(), Primal()))
        torch.testing.assert_close(dual, primal)
        assert Primal().prepare(operator, 1e-2).prepared.factor.shape == (5, 5)
        assert Cholesky().prepare(operator, 1e-2).prepared.factor.shape == (20, 20)


def test_block_cg_takes_an_estimate_of_the_mean_block():
    generator = torch.Generator().manual_seed(2)
    shared = torch.randn(20, 1, 300, generator=generator, dtype=torch.float64).expand(20, 4, 300)
    J = (shared + 0.1 * torch.randn(20, 4, 300, generator=generator, dtype=torch.float64)) / 300**0.5
    # Outputs that share nothing but look alike: row (i, c) reaches columns of its own output.
    rows = torch.einsum("nkp,kl->nklp", J, torch.eye(4, dtype=torch.float64)).flatten(2).flatten(0, 1)
    products = []
    operator = ImplicitGram(lambda v: products.append(v) or rows @ (rows.T @ v), J[:, 0] @ J[:, 0].T, outputs=4)
    rhs = torch.randn(80, generator=generator, dtype=torch.float64)
    damping = 1e-2 * float(operator.mean_block().diagonal().mean())
    loose = BlockCG(tolerance=0.1, max_iterations=60, recompute=60).solve(operator, rhs, damping)
    assert loose.residual_norm <= 0.1
    # One product an iteration and one for the residual, which is also that of the answer.
    assert len(products) == loose.iterations + 1
    plain = CG(tolerance=1e-8).solve(operator, rhs, damping)
    behind = BlockCG(tolerance=1e-8).solve(operator, rhs, damping)
    assert behind.iterations < plain.iterations
    torch.testing.assert_close(behind.value, plain.value, rtol=1e-5, atol=1e-6)


def test_sketching_makes_the_condition_number_harmless():
    jacobian = factor("decaying", rows=60, columns=4000)
    operator, rhs = JacobianGram(DenseJacobian(jacobian)), torch.ones(60, dtype=torch.float64)
    plain = CG(tolerance=1e-8).solve(operator, rhs, 1e-9)
    sketched = SketchedCG(tolerance=1e-8, oversampling=8).solve(operator, rhs, 1e-9)
    assert sketched.iterations < 45
    assert sketched.iterations < plain.iterations / 3


def test_primal_recovers_what_cancels():
    operator = JacobianGram(DenseJacobian(factor("tall")))
    rhs = torch.linspace(-1, 2, 30, dtype=torch.float64)
    for damping in (1e-9, 1e-5, 1e-2):
        solution, dual = (solver.solve(operator, rhs, damping) for solver in (Primal(), Cholesky()))
        assert solution.residual_norm < 3 * dual.residual_norm + 1e-14


def test_float32_stagnation_ends():
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
def test_options_out_of_range(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


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
    matrix = torch.diag(torch.logspace(-5, 5, 12, dtype=torch.float64)) + 0.1
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


def test_solves_begin_from_a_guess() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(80, 30, generator=generator, dtype=torch.float64) / torch.arange(1, 31)
    operator = DenseGram(factor @ factor.T)
    rhs = torch.linspace(-1, 1, 80, dtype=torch.float64)
    solver = CG(tolerance=1e-6)
    fresh = solver.solve(operator, rhs, 1e-2)
    again = solve_from(solver, operator, rhs, 1e-2, fresh.value)
    assert again.iterations == 1
    assert torch.equal(again.value, fresh.value)
    near = solve_from(solver, operator, rhs, 1e-2, fresh.value + 1e-4)
    assert near.iterations < fresh.iterations
    assert near.residual_norm <= 1e-6
    torch.testing.assert_close(near.image, operator.matvec(near.value))
    misled = solve_from(solver, operator, rhs, 1e-2, -10 * fresh.value)
    assert torch.equal(misled.value, fresh.value)
    exact = solve_from(Cholesky(), operator, rhs, 1e-2, fresh.value)
    assert exact.residual_norm < 1e-12


def test_a_factor_in_float32_keeps_the_directions_that_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nystrom_cg, "_WIDE", 0)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(120, 120, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(0, -12, 120, dtype=torch.float64)
    operator = DenseGram(basis @ (values[:, None] * basis.T))
    rhs = torch.linspace(-1, 1, 120, dtype=torch.float64)
    found = NystromCG(tolerance=1e-3, rank=100).solve(operator, rhs, 1e-7)
    assert found.residual_norm <= 1e-3
    assert found.iterations <= 20


def test_sums_over_very_many_rows_leave_little_of_the_largest_eigenvector():
    n = 400_000
    factor = 1 + 0.3 * torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    vector = factor[:, 0].double() / factor.double().norm()
    largest = float(factor.double().square().sum())
    low = nystrom_cg.LowRank(factor, torch.tensor([[largest]], dtype=torch.float64), 0.0)
    prepared = NystromCG(rank=1).prepared(DenseGram(torch.eye(1, dtype=torch.float64)), 2e-6 * largest, low)
    found = prepared.precondition(vector)
    torch.testing.assert_close(float(vector @ found), 2e-6, rtol=0.2, atol=0)


@pytest.mark.parametrize("damping", [1e-2, 1e-6, 1e-12])
@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_in_float32_answers_like_one_in_float64(kind: str, damping: float):
    matrix = factor(kind)
    gram = matrix @ matrix.T
    scale = damping * float(gram.diagonal().mean())
    rhs = torch.randn(len(gram), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = Cholesky(narrow=True).solve(DenseGram(gram), rhs, scale)
    expected = Cholesky().solve(DenseGram(gram), rhs, scale)
    assert found.residual_norm <= max(1e-8, expected.residual_norm)
    assert found.iterations <= 2 * 48
