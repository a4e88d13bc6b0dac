"""The optimizer: its step against dense linear algebra, its promises as a torch optimizer, and what it refuses."""

import copy

import pytest
import torch
from small_systems import mlp, regression, slow_jacobian
from torch import nn
from torch.nn.utils import vector_to_parameters

import widefit
from widefit import GaussNewton, Residual

SOLVERS = ["svd", "qr", "primal", "cholesky", "cg", "sketched-cg", "nystrom-cg"]
MSE = nn.MSELoss()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def dense_direction(model: nn.Module, x, y, relative: float) -> torch.Tensor:
    """The damped Gauss-Newton direction of the mean squared error."""
    outputs = model(x)
    scale = (2 / y.numel()) ** 0.5
    jacobian = scale * slow_jacobian(model, outputs)
    residual = scale * (outputs - y).detach().reshape(-1)
    damping = relative * float(jacobian.square().sum())
    eye = torch.eye(jacobian.shape[1], dtype=torch.float64)
    return -torch.linalg.solve(jacobian.T @ jacobian + damping * eye, jacobian.T @ residual)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("count", [12, 80])
def test_small_step_is_the_dense_one(solver: str, count: int) -> None:
    if solver in ("qr", "primal") and count == 12:
        pytest.skip("more parameters than rows: there is no primal form to force")
    x, y = regression(count)
    model = mlp(3, 8, 1)
    before, expected = flat(model), dense_direction(model, x, y, 1e-3)
    # So small a rate leaves the straight part of the path alone.
    info = GaussNewton(model, solver=solver, damping=1e-3, lr=1e-4).step(x, y)
    assert info.accepted
    assert info.residual_norm < 2e-3
    moved = (flat(model) - before) / 1e-4
    assert float((moved - expected).norm() / expected.norm()) < 2e-2


@pytest.mark.parametrize("count", [12, 80])
def test_a_step_is_the_corrected_parabola(count: int) -> None:
    x, y = regression(count)
    model = mlp(3, 8, 1)
    start, weight, policy = flat(model), (2 / y.numel()) ** 0.5, widefit.optim.damping.DampingPolicy()

    def residual(change: torch.Tensor) -> torch.Tensor:
        vector_to_parameters(start + change, model.parameters())
        with torch.no_grad():
            return weight * (model(x) - y).reshape(-1)

    jacobian = weight * slow_jacobian(model, model(x))
    before = residual(torch.zeros_like(start))
    damped = jacobian.T @ jacobian + 1e-2 * jacobian.square().sum() * torch.eye(len(start), dtype=torch.float64)

    def solved(outputs: torch.Tensor) -> torch.Tensor:
        return -torch.linalg.solve(damped, jacobian.T @ outputs)

    first, h = solved(before), policy.probe
    half_second = ((residual(h * first) - before) / h - jacobian @ first) / h
    second = solved(half_second)
    length = policy.length(2 * float(second.norm() / first.norm()))
    point = length * first + length**2 * second
    promised = jacobian @ point + length**2 * half_second
    corrected = point + solved(residual(point) - before - promised)
    wanted = min(point, corrected, key=lambda change: float(residual(change).square().sum()))
    assert residual(wanted).square().sum() < before.square().sum()
    assert wanted is corrected
    vector_to_parameters(start.clone(), model.parameters())
    assert GaussNewton(model, damping=1e-2).step(x, y).accepted
    torch.testing.assert_close(flat(model) - start, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
def test_loss_falls_and_is_the_true_one(solver: str) -> None:
    x, y = regression(80)
    model = mlp(3, 8, 1)
    optimizer = GaussNewton(model, solver=solver)
    before = float(MSE(model(x), y))
    for _ in range(15):
        info = optimizer.step(x, y)
        assert info.loss == pytest.approx(float(MSE(model(x), y)), rel=1e-10)
        assert info.loss < before or not info.accepted
        before = info.loss
    assert info.loss < 0.05
    assert len(optimizer.history) == 16
    assert optimizer.history[-1] == info


@pytest.mark.parametrize("seed", range(3))
def test_interpolates_without_tuning(seed: int) -> None:
    x, y = regression(60)
    model = mlp(3, 16, 16, 1, seed=seed)
    optimizer = GaussNewton(model)
    for _ in range(60):
        info = optimizer.step(x, y)
        if info.loss < 1e-6:
            return
    pytest.fail(f"loss {info.loss:.1e}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "huber", "poisson", "mse"])
def test_every_loss_falls(loss: str, dtype: torch.dtype) -> None:
    x, y = regression(60, dtype=dtype)
    reference = {
        "cross_entropy": nn.CrossEntropyLoss(), "bce": nn.BCEWithLogitsLoss(), "huber": nn.HuberLoss(),
        "poisson": nn.PoissonNLLLoss(), "mse": MSE,
    }[loss]  # fmt: skip
    model = mlp(3, 12, 3 if loss == "cross_entropy" else 1, dtype=dtype)
    target = y
    if loss == "cross_entropy":
        target = (y[:, 0] > 0).long() + (y[:, 0] > 1).long()
    if loss == "bce":
        target = (y > 0).to(dtype)
    if loss == "poisson":
        target = y.exp().round()
    optimizer = GaussNewton(model, loss=reference if loss == "poisson" else loss)
    start = float(reference(model(x), target))
    for _ in range(15):
        info = optimizer.step(x, target)
        # In float64, as torch's own logistic loss in float32 is further off; that of classes is a difference of logits.
        wanted = reference(model(x).detach().double(), target.double() if target.is_floating_point() else target)
        assert info.loss == pytest.approx(float(wanted), rel=1e-5, abs=1e-7 if dtype == torch.float32 else 0)
    assert info.loss < 0.5 * start or (loss == "poisson" and info.loss < start - 0.1)


def test_several_outputs() -> None:
    x, y = regression(30, outputs=3)
    model = mlp(3, 20, 3)
    optimizer = GaussNewton(model)
    for _ in range(25):
        info = optimizer.step(x, y)
    assert info.loss < 1e-6


def test_blocks_are_weighted_sums() -> None:
    x, y = regression(30)
    model = mlp(3, 10, 1)

    def difference(network, point, value):
        return network(point) - value

    blocks = [Residual(difference, x[:20], y[:20], weight=3.0), Residual(difference, x[20:], y[20:])]
    info = GaussNewton(model).step(*blocks)
    error = (model(x) - y).detach().square()
    assert info.loss == pytest.approx(float(1.5 * error[:20].mean() + 0.5 * error[20:].mean()), rel=1e-10)


def test_residual_with_unknown_coefficient_and_derivative() -> None:
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(1, 10, 1)
            self.rate = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

        def forward(self, t):
            return self.net(t)

    model = Decay()
    t = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]
    data = torch.exp(-1.7 * t)

    def equation(network, point):
        return widefit.pinn.derivative(network, point, axis=0) + network.rate * network(point)

    def measured(network, point, value):
        return network(point) - value

    optimizer = GaussNewton(model)
    for _ in range(40):
        optimizer.step(Residual(equation, t), Residual(measured, t, data))
    assert float(model.rate.detach()) == pytest.approx(1.7, abs=1e-3)


@pytest.mark.parametrize("solver", ["svd", "sketched-cg"])
@pytest.mark.parametrize("minibatch", [False, True])
def test_resumes_to_the_same_bits(solver: str, minibatch: bool, tmp_path) -> None:
    x, y = regression(40)

    def batch(step: int) -> slice:
        return slice(10 * (step % 4), 10 * (step % 4) + 10) if minibatch else slice(None)

    whole, model = mlp(3, 10, 1), mlp(3, 10, 1)
    straight, optimizer = GaussNewton(whole, solver=solver), GaussNewton(model, solver=solver)
    for step in range(4):
        straight.step(x[batch(step)], y[batch(step)])
        optimizer.step(x[batch(step)], y[batch(step)])
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again = mlp(3, 10, 1, seed=9)
    again.load_state_dict(saved["model"])
    resumed = GaussNewton(again, solver=solver)
    resumed.load_state_dict(saved["optimizer"])
    for step in range(4, 8):
        straight.step(x[batch(step)], y[batch(step)])
        resumed.step(x[batch(step)], y[batch(step)])
    assert torch.equal(flat(whole), flat(again))
    assert resumed.history.losses == straight.history.losses


def test_frozen_and_shared_parameters() -> None:
    x, y = regression(30)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 1)
            self.tied = nn.Linear(6, 6)
            self.tied.weight = self.middle.weight

        def forward(self, points):
            hidden = torch.tanh(self.middle(torch.tanh(self.first(points))))
            return self.last(torch.tanh(self.tied(hidden)))

    torch.manual_seed(0)
    model = Shared().double()
    model.first.requires_grad_(False)
    frozen = copy.deepcopy(model.first.state_dict())
    expected = dense_direction(model, x, y, 1e-3)
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters() if p.requires_grad])
    GaussNewton(model, damping=1e-3, lr=1e-5).step(x, y)
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close((after - before) / 1e-5, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(frozen[name], value) for name, value in model.first.state_dict().items())
    assert model.tied.weight is model.middle.weight


def test_groups_weigh_who_moves() -> None:
    x, y = regression(10)
    model = mlp(3, 20, 1)
    first, last = list(model[0].parameters()), list(model[2].parameters())
    optimizer = GaussNewton(model, [{"params": first, "lr": 1e-6}, {"params": last, "lr": 0.5}])
    before = [p.detach().clone() for p in model.parameters()]
    assert optimizer.step(x, y).accepted
    moved = [float((p.detach() - old).norm()) for p, old in zip(model.parameters(), before, strict=True)]
    assert max(moved[:2]) < 1e-2 * min(moved[2:])


def test_schedulers_set_the_rate() -> None:
    x, y = regression(30)
    optimizer = GaussNewton(mlp(3, 6, 1), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step(x, y)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.step(x, y).accepted


def test_rejected_step_changes_nothing() -> None:
    x = torch.zeros(5, 1, dtype=torch.float64)
    model = nn.Linear(1, 1).double()
    y = model(x).detach().clone()
    before = flat(model)
    info = GaussNewton(model).step(x, y)  # the loss is zero already
    assert not info.accepted
    assert info.loss == 0
    assert torch.equal(flat(model), before)


def test_max_norm_bounds_the_step() -> None:
    x, y = regression(30)
    model = mlp(3, 8, 1)
    before = flat(model)
    GaussNewton(model, max_norm=1e-3).step(x, y)
    assert 0 < float((flat(model) - before).norm()) <= 1e-3 * (1 + 1e-9)


def test_momentum_starts_when_the_data_change() -> None:
    x, y = regression(40)
    with_it, without = mlp(3, 30, 1), mlp(3, 30, 1)
    automatic, none = GaussNewton(with_it), GaussNewton(without, momentum=0.0)
    for _ in range(3):
        automatic.step(x, y)
        none.step(x, y)
    assert torch.equal(flat(with_it), flat(without))
    for step in range(4):
        part = slice(10 * step, 10 * step + 10)
        automatic.step(x[part], y[part])
        none.step(x[part], y[part])
    assert not torch.equal(flat(with_it), flat(without))


@pytest.mark.parametrize("seed", [1, 2])
def test_small_fresh_batches_are_not_fitted_to_rounding(seed: int) -> None:
    def wanted(x):
        return torch.sin(2 * x[:, :1]) * x[:, 1:2] + x[:, 2:3] * x[:, 3:4]

    def draw(count: int):
        return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 2 - 1

    generator = torch.Generator().manual_seed(seed)
    model = mlp(4, 32, 32, 1, seed=seed)
    optimizer, unseen = GaussNewton(model), draw(500)
    for _ in range(60):
        x = draw(24)
        optimizer.step(x, wanted(x))
    assert float((model(unseen) - wanted(unseen)).detach().square().mean()) < 0.02


def test_momentum_that_is_asked_for_is_used() -> None:
    x, y = regression(40)
    with_it, without = mlp(3, 30, 1), mlp(3, 30, 1)
    asked, none = GaussNewton(with_it, momentum=0.5), GaussNewton(without)
    for _ in range(3):
        asked.step(x, y)
        none.step(x, y)
    assert not torch.equal(flat(with_it), flat(without))
    assert asked.history.losses == sorted(asked.history.losses, reverse=True)


def test_low_memory_takes_the_same_step() -> None:
    x, y = regression(200)
    rich, poor = mlp(3, 40, 40, 1), mlp(3, 40, 40, 1)

    def block() -> Residual:
        # A transform of the residual's own hides the layers, so that J has to be differentiated for.
        return Residual(lambda network, point, value: torch.vmap(network)(point[None])[0] - value, x, y)

    first, second = GaussNewton(rich, solver="cholesky"), GaussNewton(poor, solver="cholesky", memory=4_000_000)
    first.step(block())
    second.step(block())
    assert (first.plan.jacobian, second.plan.jacobian) == ("dense", "function")
    torch.testing.assert_close(flat(poor), flat(rich), rtol=1e-6, atol=1e-8)


class TestRefusals:
    def test_nothing_to_train(self) -> None:
        with pytest.raises(ValueError, match="no trainable parameter"):
            GaussNewton(mlp(2, 2).requires_grad_(False))

    def test_mixed_types(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).double())
        with pytest.raises(ValueError, match="share one type"):
            GaussNewton(model)

    def test_foreign_parameters(self) -> None:
        with pytest.raises(ValueError, match="do not belong"):
            GaussNewton(mlp(2, 2), mlp(2, 2).parameters())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": 0.0}, "lr must be positive"), ({"damping": -1.0}, "damping must be"), ({"momentum": 1.0},
            "momentum"),
            ({"max_norm": 0.0}, "max_norm"), ({"memory": 0}, "memory"), ({"loss": "mae"}, "loss must be one of"),
        ],
    )  # fmt: skip
    def test_options(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            GaussNewton(mlp(2, 1), **options)

    def test_unknown_solver(self) -> None:
        x, y = regression(5)
        with pytest.raises(ValueError, match="solver must be one of"):
            GaussNewton(mlp(3, 1), solver="magic").step(x, y)
        with pytest.raises(ValueError, match="fewer parameters than outputs of samples, got 26 and 5"):
            GaussNewton(mlp(3, 5, 1), solver="primal").step(x, y)

    def test_data(self) -> None:
        x, y = regression(5)
        optimizer = GaussNewton(mlp(3, 1))
        broken = x.clone()
        broken[3, 1] = torch.nan
        with pytest.raises(ValueError, match="argument 0 is not finite in 1 of 5 samples, first in sample 3"):
            optimizer.step(broken, y)
        with pytest.raises(ValueError, match="argument 1 holds 4 samples"):
            optimizer.step(x, y[:4])
        with pytest.raises(ValueError, match="holds no sample"):
            optimizer.step(x[:0], y[:0])
        with pytest.raises(ValueError, match="inputs and targets"):
            optimizer.step(x)
        with pytest.raises(ValueError, match="do not match outputs"):
            optimizer.step(x, torch.cat([y, y], dim=1))

    def test_loss_that_is_not_finite(self) -> None:
        x, y = regression(5)
        model = mlp(3, 1)
        with torch.no_grad():
            model[0].weight[0, 0] = torch.inf
        with pytest.raises(ValueError, match="not finite in 5 of 5 samples"):
            GaussNewton(model).step(x.abs(), y)

    def test_batch_statistics(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
        with pytest.raises(ValueError, match=r"layer '1' \(BatchNorm1d\).*model.eval\(\)"):
            GaussNewton(model)
        x, y = regression(10)
        assert GaussNewton(model.eval()).step(x, y).accepted
        with pytest.raises(ValueError, match="Dropout"):
            GaussNewton(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)))

    def test_outputs_that_depend_on_other_samples(self) -> None:
        class Centered(nn.Linear):
            def forward(self, x):
                out = super().forward(x)
                return out - out.mean(dim=0)

        x, y = regression(10)
        with pytest.raises(ValueError, match="depend on the other samples"):
            GaussNewton(Centered(3, 1).double()).step(x, y)

    def test_residual_of_the_whole_batch(self) -> None:
        x, y = regression(10)
        with pytest.raises(ValueError, match="same 10 numbers for different samples"):
            GaussNewton(mlp(3, 1), residual=lambda network, point: network(x)[:, 0] - y[:, 0]).step(x)
        with pytest.raises(ValueError, match="ONE sample"):
            GaussNewton(mlp(3, 1), residual=lambda network, point: network(point) - point[:, 0]).step(x)

    def test_memory_that_cannot_fit(self) -> None:
        x, y = regression(4000)
        block = Residual(lambda network, point, value: network(point) - value, x, y)
        with pytest.raises(ValueError, match=r"takes at least .* GB .* budget is .* at most \d+ outputs fit"):
            GaussNewton(mlp(3, 60, 60, 1), solver="cholesky", memory=10_000_000).step(block)

    def test_sum_reduced_loss(self) -> None:
        x, y = regression(10)
        with pytest.raises(ValueError, match="mean over samples"):
            GaussNewton(mlp(3, 1), loss=nn.MSELoss(reduction="sum")).step(x, y)

    def test_foreign_state(self) -> None:
        model = mlp(3, 1)
        with pytest.raises(ValueError, match="not the state of a widefit"):
            GaussNewton(model).load_state_dict(torch.optim.SGD(model.parameters()).state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_in_float32_that_is_refined_does_as_well(dtype: torch.dtype) -> None:
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    y = torch.sin(3 * x.sum(1, keepdim=True))
    losses = []
    for narrow in (False, True):
        torch.manual_seed(0)
        layers = nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)
        optimizer = GaussNewton(nn.Sequential(*layers).to(dtype), solver=widefit.solvers.Cholesky(narrow=narrow))
        losses.append(optimizer.minimize(x.to(dtype), y.to(dtype), max_iter=10).losses[-1])
    if dtype == torch.float64:
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    else:
        assert losses[1] < 4 * losses[0]
