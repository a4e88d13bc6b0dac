"""Benches keep what a run of widefit leaves, and their peers do the same work, or a bench would measure nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from problems import digits_parity

import widefit
from widefit import pinn
from widefit.cli.benches import load
from widefit.nn import TwoLayer
from widefit.rules import SGD, GradientDescent

BENCHES = Path(__file__).parents[1] / "bench"
peers = load(BENCHES / "two_layer_peers.py")
problems = load(BENCHES / "two_layer_problems.py")
runs = load(BENCHES / "two_layer_runs.py")


@pytest.fixture
def problem():
    inputs, targets = digits_parity(200)
    return TwoLayer(64, 1000, seed=3), torch.from_numpy(inputs).float(), torch.from_numpy(targets)


def dense(network: TwoLayer):
    coefficients = torch.from_numpy(network.coefficients()).float()
    return peers.DenseNetwork(network.weight.detach().clone(), coefficients, network.threshold)


def test_dense_gauss_newton_is_widefits(problem):
    network, inputs, targets = problem
    found = peers.gauss_newton(dense(network), inputs, targets, tol=1e-10, max_iter=20, limit=60.0)
    history = widefit.train(network, inputs, targets, tracker="dense", tol=1e-10)
    assert len(found.steps) == len(history) - 1 > 2
    for peer, ours in zip(found.losses, history.losses, strict=True):
        assert peer == pytest.approx(ours, rel=1e-3) or ours < 1e-10


def test_dense_gradient_descent_is_widefits(problem):
    network, inputs, targets = problem
    lr = 1 / peers.largest_eigenvalue(dense(network), inputs)
    found = peers.gradient_descent(dense(network), inputs, targets, lr=lr, steps=10, limit=60.0)
    history = widefit.train(network, inputs, targets, rule=GradientDescent(lr), tracker="dense", tol=0, max_iter=10)
    assert found.losses == pytest.approx(history.losses, rel=1e-4)
    assert found.losses[-1] < 0.5 * found.losses[0]


def test_dense_sgd_is_that_of_autograd(problem):
    network, inputs, targets = problem
    batches = torch.arange(70).split(32)
    lr = 1 / peers.largest_eigenvalue(dense(network), inputs, 32)
    found = peers.sgd(dense(network), inputs, targets, batches, lr=lr)
    exact = network.double()
    for batch in batches:
        loss = 0.5 * (exact(inputs[batch].double())[:, 0] - targets[batch]).square().sum()
        (slope,) = torch.autograd.grad(loss, exact.weight)
        exact.weight.data -= lr * slope
    outputs = exact(inputs.double()).detach().numpy()[:, 0]
    assert found.losses[-1] == pytest.approx(np.mean((outputs - targets.numpy()) ** 2), rel=1e-4)
    assert found.losses[-1] < found.losses[0]


def test_a_fit_keeps_what_the_run_leaves():
    network = TwoLayer(64, 1000, seed=3)
    found = runs.fit(network, problems.digits_parity(200))
    assert found.steps[-1].loss < 1e-10
    assert not found.cut
    assert [what for what, _, _ in found.plan.rows()] == ["tracker", "solver"]
    assert found.report.bytes_held > 0


def test_a_limit_ends_a_fit():
    found = runs.fit(TwoLayer(64, 1000, seed=3), problems.digits_parity(200), limit=0.0)
    assert found.cut
    assert len(found.steps) == 2
    assert found.seconds_for(3) == pytest.approx(found.seconds + 2 * found.loop_seconds)


def test_a_recording_rule_gives_the_batches_that_it_took():
    rule, seen = runs.recording(SGD, lr=1e-3, batch_size=32)
    runs.fit(TwoLayer(64, 1000, seed=3), problems.digits_parity(200), rule=rule, max_iter=2)
    batches = runs.batches_of(seen)
    assert [len(batch) for batch in batches] == 2 * [32, 32, 32, 32, 32, 32, 8]
    assert torch.equal(torch.cat(batches[:7]).sort().values, torch.arange(200))


def test_spectral_solution_is_that_of_cole_and_hopf():
    spectral = load(BENCHES / "spectral.py")
    viscosity, time = 0.05, 0.4
    found = spectral.burgers(viscosity, modes=256, steps=1000)
    nodes, weights = np.polynomial.hermite.hermgauss(200)
    places = found.x[:, None] - np.sqrt(4 * viscosity * time) * nodes
    heat = weights * np.exp(-np.cos(np.pi * places) / (2 * np.pi * viscosity))
    exact = -(np.sin(np.pi * places) * heat).sum(axis=1) / heat.sum(axis=1)
    np.testing.assert_allclose(found.values[40], exact, atol=1e-8)


@pytest.mark.parametrize(("name", "kept"), [("korteweg_de_vries", True), ("allen_cahn", False)])
def test_spectral_solutions_do_not_hang_on_the_resolution(name, kept):
    solve = getattr(load(BENCHES / "spectral.py"), name)
    coarse, fine = solve(modes=128, steps=2000), solve(modes=256, steps=4000)
    np.testing.assert_allclose(coarse.values[20], fine.values[20, ::2], atol=1e-5 if kept else 3e-2)
    if kept:  # the integral of u²
        np.testing.assert_allclose((coarse.values**2).mean(axis=1), 0.5, rtol=1e-6)


def test_the_flow_in_a_cavity_does_not_hang_on_the_resolution():
    cavity = load(BENCHES / "cavity.py")
    x = np.linspace(0, 1, 11)
    points = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, 2)
    coarse, fine = (cavity.Cavity(modes=modes).velocity(points) for modes in (10, 14))
    np.testing.assert_allclose(coarse, fine, atol=1e-3)
    assert 0.1 < np.abs(fine[points[:, 1] == 0.5]).max() < 0.3
    lid = np.where(points[:, 1] == 1, 16 * points[:, 0] ** 2 * (1 - points[:, 0]) ** 2, 0.0)
    rim = ((points == 0) | (points == 1)).any(axis=1)
    np.testing.assert_allclose(fine[rim], np.stack([lid, 0 * lid], axis=1)[rim], atol=1e-12)


@pytest.mark.parametrize("name", ["poisson-2d", "burgers"])
def test_packages_elsewhere_are_given_the_same_problem(name, tmp_path):
    bench, others = load(BENCHES / "equations.py"), load(BENCHES / "equations_peers.py")
    equation = bench.EQUATIONS[name]
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(50, 2, generator=generator, dtype=torch.float64)
    truth = points, torch.rand(50, 1, generator=generator, dtype=torch.float64)
    bench.export(name, 0, truth, tmp_path / "problem.npz")
    start, residuals, error, rows = others.in_torch(str(tmp_path / "problem.npz"))
    torch.manual_seed(0)
    network = equation.network()
    loss = widefit.GaussNewton(network).evaluate(*equation.blocks(0))
    assert 0.5 * float(residuals(start).square().sum()) == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(residuals(start, rows), residuals(start))
    assert error(start) == pytest.approx(equation.error(network, truth), rel=1e-12)


def test_slabs_of_time_are_solved_one_after_the_other():
    bench, problems = load(BENCHES / "equations.py"), load(BENCHES / "equation_problems.py")

    def part(last, low, high):
        held = None if last is None else pinn.Held(last, {1: low})
        return problems.evolution(problems.burgers, problems.sine, None, (4, 1), 40, lift=held, times=(low, high))

    x = torch.tensor([[-0.5, 0.1], [0.5, 0.3], [0.0, 0.6], [0.5, 1.0]], dtype=torch.float64)
    curve = bench.solve(bench.Slabs(part, None, 4), 0, 1e-9, (x, torch.ones(4, 1, dtype=torch.float64)))
    assert [steps for _, steps, _, _ in curve] == [0, 1, 2, 3, 4]
    assert all(0 < error < 10 for *_, error in curve[1:])


def test_exact_solutions_leave_no_residual():
    equations = load(BENCHES / "equation_problems.py")
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(5, 2, generator=generator, dtype=torch.float64)

    def flow(p):
        pressure = 0.5 * (1 - torch.exp(2 * equations.DECAY * p[..., :1]))
        return torch.cat([equations.velocity(p), pressure], dim=-1)

    def grown(p):
        start = torch.exp(-8 * p[..., :1] ** 2) * torch.exp(5 * p[..., 1:])
        return start / (start + 1 - torch.exp(-8 * p[..., :1] ** 2))

    waves = {
        "helmholtz": lambda p: torch.sin(4 * torch.pi * p).prod(dim=-1, keepdim=True),
        "helmholtz-6": lambda p: torch.sin(6 * torch.pi * p).prod(dim=-1, keepdim=True),
        "convection": lambda p: torch.sin(torch.pi * p[..., :1] - 30 * p[..., 1:]),
        "convection-40": lambda p: torch.sin(torch.pi * p[..., :1] - 40 * p[..., 1:]),
        "reaction": grown,
        "kovasznay": flow,
    }
    for name, exact in waves.items():
        function = equations.EQUATIONS[name].blocks(0)[0].function
        residual = torch.stack([function(exact, point) for point in points])
        assert float(residual.abs().max()) < 1e-9, name
        some, values = equations.EQUATIONS[name].truth()
        torch.testing.assert_close(exact(some)[:, : values.shape[1]], values)
    heat = load(BENCHES / "pinn_problems.py").PROBLEMS["heat-4d"]
    points = torch.rand(5, 5, generator=generator, dtype=torch.float64)
    left = [heat.equation(lambda p: heat.solution(p)[..., None], point) for point in points]
    assert float(torch.stack(left).abs().max()) < 1e-12
