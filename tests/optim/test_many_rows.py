"""Steps of far more rows than parameters against dense algebra in float64."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from widefit import GaussNewton, Residual
from widefit.gram.base import Jacobian
from widefit.gram.jacobian import DenseJacobian, FunctionJacobian, PerSample
from widefit.gram.recording import factored_jacobian
from widefit.gram.stacked import Part, StackedJacobian
from widefit.optim import linearization
from widefit.optim.curvature import Primal, Spectral
from widefit.optim.many_rows import SketchedPrimal, TallSpectral, Triangular, sketched_normal
from widefit.optim.scaling import Scaling
from widefit.plan import step
from widefit.sketches.signs import random_signs
from widefit.solvers import Cholesky


def plain(columns: int) -> Scaling:
    return Scaling(None, torch.zeros(columns, dtype=torch.bool), torch.zeros(columns), 1.0, plain=True)


def measured(columns: int) -> Scaling:
    return Scaling(None, torch.zeros(columns, dtype=torch.bool), torch.zeros(columns), 1.0)


def stacked(matrix: Tensor, group: int, heights: list[int]) -> StackedJacobian:
    parts, top = [], 0
    for height in heights:
        parts.append(Part(DenseJacobian(matrix[top : top + height]), top, 0, group))
        top += height
    assert top == len(matrix)
    return StackedJacobian(parts)


MATRICES = {
    "random": torch.randn(1000, 12, dtype=torch.float64),
    "duplicates": torch.randn(10, 12, dtype=torch.float64).repeat(100, 1),
    "zero-columns": torch.randn(1000, 12, dtype=torch.float64) * (torch.arange(12) % 3 > 0),
    "rank-deficient": torch.randn(1000, 3, dtype=torch.float64) @ torch.randn(3, 12, dtype=torch.float64),
    "scales": torch.randn(1000, 12, dtype=torch.float64) * torch.logspace(-5, 5, 12, dtype=torch.float64),
    "huge": 1e30 * torch.randn(1000, 12, dtype=torch.float64),
    "tiny": 1e-30 * torch.randn(1000, 12, dtype=torch.float64),
    "one-heavy-row": torch.cat([torch.randn(999, 12), 1e6 * torch.randn(1, 12)]).double(),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("level", [1e-2, 1e-10])
def test_directions_are_those_of_dense_least_squares(name: str, level: float) -> None:
    matrix, residual = MATRICES[name], torch.randn(1000, dtype=torch.float64)
    jacobian = stacked(matrix, 10, [500, 500])
    found = SketchedPrimal(jacobian, plain(12), tolerance=0.0)  # until rounding has won
    assert found.trace == pytest.approx(float(matrix.square().sum()), rel=0.8)
    damping = level * found.trace
    taken = found.direction(residual, damping)
    # By the QR of J over √λ I, whose condition is not squared.
    tall = torch.cat([matrix, damping**0.5 * torch.eye(12, dtype=torch.float64)])
    right = torch.cat([residual, torch.zeros(12, dtype=torch.float64)])
    expected = -torch.linalg.lstsq(tall, right[:, None], driver="gelsd").solution[:, 0]
    image = matrix @ expected
    assert torch.linalg.vector_norm(taken.image - image) <= 1e-8 * torch.linalg.vector_norm(residual)
    assert torch.linalg.vector_norm(taken.value - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
    # What is reported is true.
    slope = matrix.T @ residual
    defect = torch.linalg.vector_norm(matrix.T @ (residual + matrix @ taken.value) + damping * taken.value)
    assert float(taken.defect) == pytest.approx(float(defect / torch.linalg.vector_norm(slope)), abs=1e-10)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("level", [1e-2, 1e-10, 1e-20])
def test_a_triangle_above_another_solves_dense_least_squares(name: str, level: float) -> None:
    matrix, residual = MATRICES[name], torch.randn(1000, dtype=torch.float64)
    found = Triangular(stacked(matrix, 10, [500, 500]), residual, plain(12))
    assert found.trace == pytest.approx(float(matrix.square().sum()))
    damping = level * found.trace
    taken = found.direction(residual, damping)
    tall = torch.cat([matrix, damping**0.5 * torch.eye(12, dtype=torch.float64)])
    right = torch.cat([residual, torch.zeros(12, dtype=torch.float64)])
    expected = -torch.linalg.lstsq(tall, right[:, None], driver="gelsd").solution[:, 0]
    # A residual that λ leaves in directions of which J has only rounding is no worse than that of the reference.
    parts = [matrix @ value + residual for value in (taken.value, expected)]
    sizes = [damping**0.5 * value for value in (taken.value, expected)]
    loss, least = (float(part.square().sum() + size.square().sum()) for part, size in zip(parts, sizes, strict=True))
    assert loss <= least * (1 + 1e-10)
    assert torch.linalg.vector_norm(taken.image - matrix @ taken.value) <= 1e-10 * torch.linalg.vector_norm(residual)
    again = torch.randn(1000, dtype=torch.float64)
    assert torch.equal(found.direction(again, damping).value, found.direction(again, damping).value)
    assert torch.allclose(found.gradient(again), matrix.T @ again)
    assert torch.allclose(found.image(expected), matrix @ expected)


def test_a_triangle_tells_what_the_normal_matrix_loses() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(rows, 8, generator=generator).double())[0] for rows in (200, 8))
    singular = torch.logspace(0, -9, 8, dtype=torch.float64)
    matrix, wanted = left * singular @ right.T, torch.randn(8, generator=generator).double()
    jacobian = stacked(matrix, 10, [200])
    damping = 1e-21 * float(matrix.square().sum())
    misses = []
    for curvature in (Triangular(jacobian, matrix @ wanted, plain(8)), Primal(jacobian, Cholesky(), plain(8))):
        taken = curvature.direction(matrix @ wanted, damping)
        misses.append(float(torch.linalg.vector_norm(taken.value + wanted) / torch.linalg.vector_norm(wanted)))
    assert misses[0] < 1e-2 * misses[1]


@pytest.mark.parametrize("rows", [1, 40])
def test_a_triangle_of_nothing_stays_where_it_is(rows: int) -> None:
    taken = Triangular(stacked(torch.zeros(rows, 3).double(), 5, [rows]), torch.ones(rows).double(), plain(3))
    assert not taken.direction(torch.ones(rows).double(), 0.0).value.any()


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "huge"])
def test_tall_singular_values_are_those_of_the_stored_matrix(name: str) -> None:
    matrix, residual = MATRICES[name], torch.randn(1000, dtype=torch.float64)
    tall = TallSpectral(stacked(matrix, 1, [400, 599, 1]), residual, measured(12))
    whole = Spectral(DenseJacobian(matrix), residual, measured(12))
    assert torch.allclose(tall.singular, whole.singular, rtol=1e-10, atol=1e-12 * float(whole.singular[0]))
    for weights in (residual, torch.randn(1000, dtype=torch.float64)):
        ours, theirs = (curvature.direction(weights, 1e-6 * whole.trace) for curvature in (tall, whole))
        assert torch.allclose(ours.image, theirs.image, rtol=1e-8, atol=1e-8)
        assert ours.defect < 1e-9


def test_no_rows_that_say_anything() -> None:
    taken = SketchedPrimal(stacked(torch.zeros(20, 3), 5, [20]), plain(3), 1e-6).direction(torch.ones(20), 0.0)
    assert not bool(taken.value.any())
    assert taken.defect == 0.0


def test_a_sketch_does_not_depend_on_parts() -> None:
    matrix = torch.randn(103, 4, dtype=torch.float64)
    once = sketched_normal(stacked(matrix, 7, [103]), 3)
    assert torch.allclose(once, sketched_normal(stacked(matrix, 7, [49, 7, 47]), 3), rtol=1e-12)
    signed = matrix * random_signs(0, 103, 3, torch.float64)[:, None]
    sums = torch.stack([rows.sum(dim=0) for rows in signed.split(7)])
    assert torch.allclose(once, sums.T @ sums, rtol=1e-12)
    assert not torch.allclose(once, sketched_normal(stacked(matrix, 7, [103]), 4), rtol=1e-2)


def network(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


def forms(k: int, root: Tensor) -> dict[str, tuple[Jacobian, Tensor]]:
    """J of one network, layer by layer and by differentiation of samples and of groups."""
    model = nn.Sequential(network(3, 5, k), nn.LayerNorm(k)).double()
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    x = torch.randn(23, 3, dtype=torch.float64)

    def function(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, values, (sample[None],))[0]

    def looped(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return function(values, sample) if float(sample.detach().sum()) < 1e9 else sample  # vmap refuses the branch

    ways: dict[str, Jacobian] = {"factors": factored_jacobian(model, parameters, (x,), root)}
    for name, own in (("function", function), ("looped", looped)):
        ways[name] = FunctionJacobian([PerSample(own, (x,))], [root], [k], parameters, 8 * 3 * 60)
    return {name: (way, torch.cat([rows for _, rows in way.row_blocks()])) for name, way in ways.items()}


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "matrix"])
@pytest.mark.parametrize("k", [1, 3])
def test_sums_over_groups_of_rows(k: int, kind: str) -> None:
    root = torch.rand({"scalar": (), "diagonal": (23, k), "matrix": (23, k, k)}[kind], dtype=torch.float64) + 0.5
    for name, (jacobian, matrix) in forms(k, root).items():
        signs = random_signs(0, 23 * k, 0, torch.float64)
        for group in (k, 4 * k, 23 * k, 50 * k):
            expected = torch.stack([rows.sum(dim=0) for rows in (signs[:, None] * matrix).split(group)])
            found = jacobian.group_sums(signs, group)
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12), (name, group)


@pytest.mark.parametrize("residual", [False, True], ids=["module", "residual"])
def test_steps_of_many_rows_are_alike(residual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (step, linearization):
        monkeypatch.setattr(module, "PART", 256)
    model, x = network(10, 20, 1), torch.rand(2000, 10, dtype=torch.float64)
    y = torch.sin(x[:, :3].sum(dim=1, keepdim=True))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    losses = {}
    for solver in ("primal", "primal-cg", "svd"):
        model.load_state_dict(start)
        # Stored, J would be too large.
        optimizer = GaussNewton(model, solver=solver, memory=6 * 10**6)
        data = (Residual(lambda net, a, b: net(a[None])[0] - b, x, y),) if residual else (x, y)
        losses[solver] = [optimizer.step(*data).loss for _ in range(2)]
        assert optimizer.plan.jacobian == ("traced" if residual else "factors")
    assert losses["svd"][1] < 0.9 * losses["svd"][0]
    assert losses["primal"] == pytest.approx(losses["svd"], rel=1e-6)
    assert losses["primal-cg"] == pytest.approx(losses["svd"], rel=0.1)


def test_a_linear_model_is_solved_at_once() -> None:
    model, x = nn.Linear(5, 2).double(), torch.randn(20_000, 5, dtype=torch.float64)
    y = x @ torch.randn(5, 2, dtype=torch.float64) + 0.1 * torch.randn(20_000, 2, dtype=torch.float64)
    optimizer = GaussNewton(model, solver="primal-cg", damping=0.0)
    optimizer._state.tolerance = 1e-12
    info = optimizer.step(x, y)
    assert any("sums over 138 rows" in reason for *_, reason in optimizer.plan.rows())
    tall = torch.cat([x, torch.ones(20_000, 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(tall, y).solution
    assert torch.allclose(torch.cat([model.weight.T, model.bias[None]]), expected, rtol=1e-9)
    assert info.residual_norm < 1e-11
