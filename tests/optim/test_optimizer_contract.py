"""The contract of a torch optimizer: copies, contexts, types, schedulers; and refusals that say what to write."""

import copy
import pickle

import numpy as np
import pytest
import torch
from nist import Curve
from small_systems import mlp, regression
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from widefit import GaussNewton, Residual, pinn
from widefit.optim.options import check_model


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def stepped(x, y, *widths: int, count: int = 3) -> tuple[nn.Module, GaussNewton]:
    model = mlp(*widths)
    optimizer = GaussNewton(model)
    for _ in range(count):
        optimizer.step(x, y)
    return model, optimizer


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("widths", [(3, 8, 1), (3, 30, 1)])
def test_copies_take_the_same_steps(duplicate, widths: tuple[int, ...]) -> None:
    x, y = regression(50)
    model, optimizer = stepped(x, y, *widths)
    twin, other = duplicate((model, optimizer))
    assert other.history.losses == optimizer.history.losses
    for _ in range(3):
        optimizer.step(x, y)
        other.step(x, y)
    assert torch.equal(flat(twin), flat(model))
    assert other.history.losses == optimizer.history.losses


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_contexts_without_gradients_do_not_matter(context) -> None:
    x, y = regression(50)
    expected = flat(stepped(x, y, 3, 8, 1)[0])
    model = mlp(3, 8, 1)
    optimizer = GaussNewton(model)
    with context():
        fresh = x * 1, y * 1
        for _ in range(3):
            optimizer.step(*fresh)
        assert optimizer.evaluate(*fresh) == pytest.approx(optimizer.history[-1].loss, rel=1e-12)
    assert torch.equal(flat(model), expected)
    assert model[0].weight.requires_grad


def test_parameters_of_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = mlp(3, 4, 1)
    with pytest.raises(ValueError, match=r"parameter '0.weight' was made under torch.inference_mode"):
        GaussNewton(model)


@pytest.mark.parametrize(("of_model", "of_data"), [("float32", "float64"), ("float64", "float32")])
def test_data_take_the_precision_of_the_model(of_model: str, of_data: str) -> None:
    x, y = (tensor.to(getattr(torch, of_data)) for tensor in regression(50))
    dtype = getattr(torch, of_model)
    for blocks in ((x, y), (Residual(lambda m, x, y: m(x) - y, x, y),), (x.numpy(), y.numpy())):
        model = mlp(3, 8, 1, dtype=dtype)
        assert GaussNewton(model).step(*blocks).accepted
        assert model[0].weight.dtype == dtype


def test_arrays_are_taken() -> None:
    x, y = regression(40)
    model = mlp(3, 8, 1)
    optimizer = GaussNewton(model)
    for _ in range(3):
        optimizer.step(x.numpy(), np.asfortranarray(y.numpy()))
    assert torch.equal(flat(model), flat(stepped(x, y, 3, 8, 1)[0]))
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    assert optimizer.step(Residual(lambda m, x: m(x) - 1, frozen[::-1])).accepted
    with pytest.raises(ValueError, match="argument 0 is an array of object: convert it to numbers"):
        optimizer.step(np.array([["a"]], dtype=object), y)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.StepLR(o, 1, 0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=8, cycle_momentum=False),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    ],
)
def test_schedulers(make) -> None:
    x, y = regression(40)
    optimizer = GaussNewton(mlp(3, 6, 1))
    scheduler = make(optimizer)
    for _ in range(6):
        info = optimizer.step(x, y)
        scheduler.step(info.loss) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()
    assert optimizer.history.losses == sorted(optimizer.history.losses, reverse=True)


def test_a_rate_of_zero_is_a_rest() -> None:
    x, y = regression(40)
    model = mlp(3, 6, 1)
    first, last = list(model[0].parameters()), list(model[2].parameters())
    optimizer = GaussNewton(model, [{"params": first, "lr": 0.0}, {"params": last, "lr": 1.0}])
    before = model[0].weight.detach().clone()
    assert optimizer.step(x, y).accepted
    assert torch.equal(model[0].weight, before)
    optimizer.param_groups[1]["lr"] = 0.0
    at_rest = flat(model)
    info = optimizer.step(x, y)
    assert not info.accepted
    assert info.loss == pytest.approx(float((model(x) - y).detach().square().mean()), rel=1e-12)
    assert torch.equal(flat(model), at_rest)
    optimizer.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be at least 0"):
        optimizer.step(x, y)


def test_fresh_points_with_more_residuals_than_parameters() -> None:
    generator = torch.Generator().manual_seed(0)
    net = mlp(1, 12, 1)
    optimizer = GaussNewton(net)
    start = torch.zeros(1, 1, dtype=torch.float64)
    for _ in range(25):
        t = 2 * torch.rand(200, 1, generator=generator, dtype=torch.float64)
        optimizer.step(
            Residual(lambda u, t: pinn.derivative(u, t, 0) + u(t)[0], t), Residual(lambda u, t: u(t) - 1, start)
        )
    t = torch.linspace(0, 2, 50, dtype=torch.float64)[:, None]
    assert float((net(t) - torch.exp(-t)).detach().abs().max()) < 1e-3


@pytest.mark.parametrize("solver", ["svd", "primal", "cholesky", "cg"])
def test_a_step_into_overflow_is_shortened(solver: str) -> None:
    # √|θ − 1| at θ = 1 exactly has a value and no derivative.
    x = torch.linspace(1, 2, 12, dtype=torch.float64)
    model = Curve(lambda x, a: torch.sqrt((a - 1).abs()) * x, [3.0])
    optimizer = GaussNewton(model, residual=lambda m, x: m(x), solver=solver)
    parameter = next(model.parameters())
    optimizer.step(x)
    with torch.no_grad():
        moved = parameter - optimizer.state[parameter]["change"]
        optimizer.state[parameter]["change"] = 1.0 - moved
        parameter.fill_(1.0)
    info = optimizer.step(x)
    assert np.isfinite(info.loss)
    assert 0 < abs(float(parameter.detach()) - 1) < 2


def test_a_start_without_derivative_is_refused() -> None:
    x = torch.linspace(1, 2, 12, dtype=torch.float64)
    model = Curve(lambda x, a: torch.sqrt((a - 1).clamp_min(0)) * x, [1.0])
    with pytest.raises(ValueError, match="derivative of the outputs by the parameters is not finite at the start"):
        GaussNewton(model, residual=lambda m, x: m(x) - 1).step(x)


def test_a_run_at_rounding_level_ends_at_once() -> None:
    x, y = regression(40)
    evaluated = 0
    model = mlp(3, 40, 1)

    def count(*_: object) -> None:
        nonlocal evaluated
        evaluated += 1

    optimizer = GaussNewton(model)
    history = optimizer.minimize(x, y, max_iter=60)
    assert history.stop_reason in ("stalled", "tol")
    model.register_forward_hook(count)
    assert not optimizer.step(x, y).accepted
    futile = evaluated
    assert optimizer.stationary or history.losses[-1] == 0
    evaluated = 0
    GaussNewton(mlp(3, 40, 1))
    other = GaussNewton(model)
    with torch.no_grad():
        model[0].weight.add_(0.1)
    assert other.step(x, y).accepted
    assert futile <= 3 * evaluated


def test_small_steps_leave_the_threads_as_they_were() -> None:
    x, y = regression(30)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = set()
    model = mlp(3, 6, 1)
    model.register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    try:
        GaussNewton(model).step(x, y)
        assert torch.get_num_threads() == 2
        assert 1 in seen
    finally:
        torch.set_num_threads(before)


class TestRefusals:
    def test_parameters_in_place_of_the_model(self) -> None:
        with pytest.raises(ValueError, match=r"write GaussNewton\(model\), not GaussNewton\(model.parameters\(\)\)"):
            check_model(mlp(3, 1).parameters())

    def test_a_closure(self) -> None:
        optimizer = GaussNewton(mlp(3, 1))
        with pytest.raises(ValueError, match=r"not a closure.*write optimizer.step\(x, y\)"):
            optimizer.step(lambda: torch.zeros(()))
        with pytest.raises(ValueError, match=r"step needs the data: step\(x, y\)"):
            optimizer.step()

    def test_lists(self) -> None:
        with pytest.raises(ValueError, match="argument 0 must be a tensor, a NumPy array or a Residual, got list"):
            GaussNewton(mlp(3, 1)).step([[1.0, 2.0, 3.0]], [[1.0]])

    def test_complex_residuals(self) -> None:
        x, _ = regression(10)
        optimizer = GaussNewton(mlp(3, 1), residual=lambda m, x: m(x) * 1j)
        with pytest.raises(ValueError, match=r"outputs are complex.*torch.view_as_real"):
            optimizer.step(x)

    def test_complex_parameters(self) -> None:
        model = nn.Linear(3, 1, dtype=torch.complex64)
        with pytest.raises(ValueError, match=r"'weight' is torch\.complex64, but a Gauss-Newton step needs real"):
            GaussNewton(model)


def test_a_rate_meant_for_another_optimizer_is_remarked_on():
    with pytest.warns(UserWarning, match=r"lr=0.001 takes 0.1% of every step: .* leave it out"):
        GaussNewton(nn.Linear(2, 1), lr=1e-3)


def test_a_loader_is_refused_with_the_loop_to_write():
    loader = DataLoader(TensorDataset(torch.rand(8, 2), torch.rand(8, 1)), batch_size=4)
    with pytest.raises(ValueError, match=r"DataLoader: write `for x, y in loader: optimizer.step\(x, y\)`"):
        GaussNewton(nn.Linear(2, 1)).step(loader)
