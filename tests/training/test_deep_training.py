"""widefit.train on deep networks, held against Gauss-Newton with dense float64 matrices."""

import numpy as np
import pytest
import torch
from deep_problems import NAMES, DeepReference, make_deep
from scipy.linalg import block_diag

import widefit
from widefit.callbacks import Callback
from widefit.nn import Deep
from widefit.plan.deep import DeepShape, plan_deep
from widefit.rules import GaussNewton, GradientDescent
from widefit.solvers import BlockCG
from widefit.training.train import Training

FITTED = [name for name in NAMES if name not in ("huge", "shared readout")]


def dense_gauss_newton(network: Deep, inputs: np.ndarray, targets: np.ndarray, dampings: list[float]) -> list[float]:
    """Losses of undoubted Gauss-Newton steps with given dampings."""
    reference = DeepReference(network, inputs)
    losses = []
    for damping in dampings:
        residual = (reference.forward()[2] - targets).reshape(-1)
        jacobian = reference.jacobian()
        gram = jacobian @ jacobian.T
        gram.flat[:: len(gram) + 1] += damping
        g = np.linalg.lstsq(gram, residual, rcond=None)[0]
        reference.step(g.reshape(targets.shape))
        losses.append(float(((reference.forward()[2] - targets) ** 2).sum(1).mean()))
    return losses


@pytest.mark.parametrize("name", FITTED)
def test_follows_dense_gauss_newton(name):
    problem = make_deep(name, torch.float64, samples=12)
    network = problem.fresh()
    history = widefit.train(network, problem.inputs, problem.targets, max_iter=3, tol=1e-10)
    steps = [info for info in history[1:] if info.accepted]
    expected = dense_gauss_newton(problem.fresh(), problem.inputs, problem.targets, [info.damping for info in steps])
    np.testing.assert_allclose([info.loss for info in steps], expected, rtol=1e-5, atol=1e-9)
    outputs = network(torch.from_numpy(problem.inputs)).detach().numpy()
    np.testing.assert_allclose(
        ((outputs - problem.targets) ** 2).sum(1).mean(), history[-1].loss, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["random", "three layers", "three outputs", "digits", "no input share"])
def test_interpolates(name, dtype):
    problem = make_deep(name, dtype, samples=20)
    network = problem.fresh()
    history = widefit.train(network, problem.inputs, problem.targets, tol=1e-9, max_iter=30)
    assert history.stop_reason == "tol"
    assert history.losses == sorted(history.losses, reverse=True)
    assert all(linear.rank == 0 and linear.held_bytes == 0 for linear in network.low_rank())
    again = Deep(**problem.settings)
    again.load_state_dict(network.state_dict())
    x = torch.from_numpy(problem.inputs)
    assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("alpha", [1e-3, 0.3])
@pytest.mark.parametrize("name", ["random", "three layers", "three outputs", "plain relu"])
def test_a_ridge_follows_dense_gauss_newton(name, alpha):
    problem = make_deep(name, torch.float64, samples=10)
    history = widefit.train(problem.fresh(), problem.inputs, problem.targets, alpha=alpha, max_iter=4, tol=0)
    reference = DeepReference(problem.fresh(), problem.inputs)
    start = reference.weights()
    for info in history[1:]:
        if not info.accepted:
            continue
        jacobian, moved = reference.jacobian(), reference.weights() - start
        pull = alpha / info.damping
        error = (reference.forward()[2] - problem.targets).reshape(-1) - pull * jacobian @ moved
        gram = jacobian @ jacobian.T + info.damping * np.eye(len(jacobian))
        reference.move(-pull * moved - jacobian.T @ np.linalg.solve(gram, error))
        loss = ((reference.forward()[2] - problem.targets) ** 2).sum(1).mean()
        assert info.loss == pytest.approx(loss, rel=2e-5)
    assert sum(info.accepted for info in history) >= 2


@pytest.mark.parametrize(("name", "loss"), [("three outputs", "softmax"), ("random", "logistic")])
def test_cross_entropy_steps_are_those_of_the_generalized_gauss_newton_matrix(name, loss):
    problem = make_deep(name, torch.float64, samples=10)
    targets = problem.targets
    y = np.eye(3)[targets.argmax(1)] if loss == "softmax" else np.sign(targets)
    weight = np.linspace(0.5, 2, 10)
    options = {"loss": "cross_entropy", "sample_weight": weight, "solver": BlockCG(tolerance=1e-12)}
    network, alpha = problem.fresh(), 0.05
    history = widefit.train(network, problem.inputs, y, alpha=alpha, max_iter=1, tol=0, **options)

    reference = DeepReference(problem.fresh(), problem.inputs)
    outputs, jacobian = reference.forward()[2], reference.jacobian()
    if loss == "softmax":
        p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        slope, curvature = p - y, [np.diag(row) - np.outer(row, row) for row in p]
        loss_before = -np.log((p * y).sum(1))
    else:
        p = 1 / (1 + np.exp(-outputs))
        slope, curvature = p - (y + 1) / 2, [np.diag(row * (1 - row)) for row in p]
        loss_before = np.logaddexp(0, -y * outputs)[:, 0]
    middle = block_diag(*(w * c for w, c in zip(weight, curvature, strict=True)))
    # (JᵀMJ + λI)⁻¹ Jᵀ = Jᵀ (M J Jᵀ + λI)⁻¹.
    system = middle @ jacobian @ jacobian.T + history[1].damping * np.eye(len(jacobian))
    reference.move(-jacobian.T @ np.linalg.solve(system, (weight[:, None] * slope).reshape(-1)))
    assert history[0].loss == pytest.approx(weight @ loss_before / weight.sum())
    assert history[1].accepted
    trained = np.concatenate([matrix.detach().numpy().reshape(-1) for matrix in _trained(network)])
    np.testing.assert_allclose(trained, reference.weights(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["random", "three outputs", "digits"])
def test_cross_entropy_is_learnt(name):
    problem = make_deep(name, torch.float32, samples=20)
    outputs = problem.targets.shape[1]
    y = np.eye(outputs)[problem.targets.argmax(1)] if outputs > 1 else np.where(problem.targets > 0, 1.0, -1.0)
    network = problem.fresh()
    history = widefit.train(network, problem.inputs, y, loss="cross_entropy", max_iter=12)
    assert history.losses[-1] < 0.02 * history.losses[0]
    f = network(torch.from_numpy(problem.inputs)).detach().numpy()
    assert np.array_equal(f.argmax(1), y.argmax(1)) if outputs > 1 else np.array_equal(np.sign(f), y)


def _trained(network: Deep) -> list[torch.Tensor]:
    return [*network.input_weights, *(linear.weight for linear in network.low_rank())]


def test_sample_weights_count():
    problem = make_deep("three outputs", torch.float64, samples=10)
    doubled, weighted = problem.fresh(), problem.fresh()
    twice = np.concatenate([problem.inputs, problem.inputs[:4]]), np.concatenate([problem.targets, problem.targets[:4]])
    weight = np.where(np.arange(10) < 4, 2.0, 1.0)
    rule = GaussNewton(damping=1e-2)  # repeated rows make H singular
    a = widefit.train(doubled, *twice, rule=rule, max_iter=2, tol=0)
    b = widefit.train(weighted, problem.inputs, problem.targets, rule=rule, sample_weight=weight, max_iter=2, tol=0)
    np.testing.assert_allclose(a.losses[:2], b.losses[:2], rtol=1e-9)


def test_gradient_descent_takes_the_gradient_of_autograd():
    problem = make_deep("three outputs", torch.float64, samples=10)
    network, twin = problem.fresh(), problem.fresh()
    widefit.train(network, problem.inputs, problem.targets, rule=GradientDescent(0.01), max_iter=2, tol=0)
    x, y = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)
    trained = [weight for weight in twin.parameters() if weight.requires_grad]
    for _ in range(2):
        gradients = torch.autograd.grad(0.5 * (twin(x) - y).square().sum(), trained)
        with torch.no_grad():
            for weight, gradient in zip(trained, gradients, strict=True):
                weight -= 0.01 * gradient
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(network.get_parameter(name), weight)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_resumes_to_the_same_bits(alpha):
    problem = make_deep("three layers", torch.float32)
    whole, part = problem.fresh(), problem.fresh()
    widefit.train(whole, problem.inputs, problem.targets, alpha=alpha, max_iter=4, tol=0)

    class Keep(Callback):
        state = None

        def step(self, run, info):
            if info.step == 2:
                tensors, document = run.state()
                self.state = {name: tensor.clone() for name, tensor in tensors.items()}, document

    keep = Keep()
    widefit.train(part, problem.inputs, problem.targets, alpha=alpha, max_iter=2, tol=0, callbacks=[keep])
    widefit.train(part, problem.inputs, problem.targets, alpha=alpha, max_iter=4, tol=0, resume=keep.state)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, part.state_dict()[name]), name


def test_a_metric_sees_the_committed_weights_and_threads_do_not_matter():
    problem = make_deep("digits", torch.float32)
    histories = []
    for threads in (1, 2):
        network = problem.fresh()
        x, y = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)

        def loss(net: Deep, x=x, y=y) -> float:
            return float((net(x) - y).detach().square().sum(1).mean())

        histories.append(
            widefit.train(network, problem.inputs, problem.targets, metric=loss, tol=0, max_iter=6, threads=threads)
        )
    for info in histories[0]:
        assert info.metric == pytest.approx(info.loss, rel=1e-3, abs=1e-9)
    assert histories[0].losses == histories[1].losses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha must be"),
        ({"loss": "hinge"}, "loss must be"),
        ({"tracker": "dense"}, "tracker must be"),
        ({"solver": "magic"}, "solver must be"),
        ({"rule": "magic"}, "rule must be"),
        ({"sample_weight": np.zeros(30)}, "sample_weight"),
    ],
)
def test_refuses(options, message):
    problem = make_deep("random", torch.float32)
    with pytest.raises(ValueError, match=message):
        widefit.train(problem.fresh(), problem.inputs, problem.targets, **options)


def test_refuses_what_cannot_fit():
    problem = make_deep("random", torch.float32)
    with pytest.raises(MemoryError, match=r"about [0-9,]+ samples fit"):
        widefit.train(problem.fresh(), problem.inputs, problem.targets, memory=10_000)


def test_the_plan_says_what_was_chosen():
    problem = make_deep("random", torch.float32)
    training = Training(problem.fresh(), problem.inputs, problem.targets)
    assert [choice.what for choice in training.plan.choices] == ["device", "tracker", "solver"]
    assert training.plan.flops_per_step > 0


@pytest.mark.parametrize(("samples", "tolerance"), [(400, 1e-6), (500, 1e-3)])
def test_many_equations_are_solved_as_exactly_as_a_step_can_use(samples, tolerance):
    shape = DeepShape(samples, features=5, widths=(90, 80), outputs=10, firing=(0.1, 0.1), itemsize=4)
    plan, _, solver = plan_deep(shape, "auto", "auto")
    assert isinstance(solver, BlockCG)
    assert solver.tolerance == tolerance
    assert ("solved to 0.001" in plan.choices[-1].reason) == (tolerance == 1e-3)


class Keep(Callback):
    """Keeps the state after two steps."""

    state = None

    def step(self, run, info):
        if info.step == 2:
            tensors, document = run.state()
            self.state = {name: tensor.clone() for name, tensor in tensors.items()}, document


class TestByTorch:
    """Layers that are held whole: the same run as from sparse factors, up to rounding."""

    SETTINGS = (
        ("random", {}),
        ("three layers", {"alpha": 0.1}),
        ("three outputs", {"alpha": 0.1, "loss": "softmax"}),
        ("three outputs", {"solver": "cholesky"}),
        ("no input share", {"rule": GradientDescent(schedule="line-search")}),
    )

    def run(
        self, tracker: str | widefit.trackers.Tracker, name: str, settings: dict, **more
    ) -> tuple[Deep, widefit.History]:
        problem = make_deep(name, torch.float64, samples=12)
        y = np.eye(3)[problem.targets.argmax(1)] if "loss" in settings else problem.targets
        network = problem.fresh()
        settings = {"max_iter": 4, "tol": 1e-10, **settings, **more}
        return network, widefit.train(network, problem.inputs, y, tracker=tracker, **settings)

    @pytest.mark.parametrize(("name", "settings"), SETTINGS)
    def test_the_run_is_that_of_the_sparse_tracker(self, name, settings):
        network, found = self.run("torch", name, settings)
        other, expected = self.run("sparse", name, settings)
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5, atol=1e-9)
        for weight, like in zip(_trained(network), _trained(other), strict=True):
            torch.testing.assert_close(weight, like, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("name", "settings"), SETTINGS[:2])
    def test_resuming_gives_the_same_bits(self, name, settings):
        keep = Keep()
        network, _ = self.run("torch", name, settings, tol=0, callbacks=[keep])
        again, _ = self.run(widefit.trackers.Torch(), name, settings, tol=0, resume=keep.state)
        for weight, like in zip(_trained(network), _trained(again), strict=True):
            assert torch.equal(weight, like)

    def test_a_checkpoint_of_the_other_tracker_is_refused(self):
        keep = Keep()
        self.run("sparse", "random", {}, tol=0, callbacks=[keep])
        with pytest.raises(ValueError, match='made with tracker="sparse"; resume with it'):
            self.run("torch", "random", {}, resume=keep.state)

    def test_the_plan_takes_it_where_the_network_is_on_an_accelerator(self):
        shape = DeepShape(100, features=5, widths=(90, 80), outputs=1, firing=(0.1, 0.1), itemsize=4, device="cuda")
        plan, tracker, _ = plan_deep(shape, "auto", "auto", 10**12)
        assert tracker.name == "torch"
        assert plan.rows()[0] == ("tracker", "torch", "the weights are on cuda")
        with pytest.raises(MemoryError, match="training needs about"):
            plan_deep(shape, "auto", "auto", 10**6)
