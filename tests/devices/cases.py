"""Work that has to give the same numbers on every device: each function takes one, and returns numbers."""

import copy
import io
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import widefit
from widefit import pinn
from widefit.callbacks import Callback
from widefit.nn import Deep, TwoLayer

sys.path.append(str(Path(__file__).parents[1] / "finetuning"))
from networks import sentences, transformer  # pyright: ignore[reportMissingImports]

Device = torch.device | str
Case = Callable[[Device], Any]


def network(device: Device, *sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double().to(device)


def data(device: Device, rows: int, outputs: int = 1, seed: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = torch.sin(x @ torch.ones(3, outputs, dtype=torch.float64) + torch.arange(outputs))
    return x.to(device), y.to(device)


class Sines(nn.Module):
    """A module that is no chain of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x * self.slopes).sum(-1, keepdim=True) * self.slopes.sum()


class Keep(Callback):
    """Keeps the state after the first step."""

    state: Any = None

    def step(self, run, info):
        if info.step == 1:
            tensors, document = run.state()
            self.state = {name: tensor.clone() for name, tensor in tensors.items()}, document


def steps(device: Device, solver: str, rows: int) -> list[float]:
    optimizer = widefit.GaussNewton(network(device, 3, 8, 1), solver=solver, memory=10**9)
    return [optimizer.step(*data(device, rows)).loss for _ in range(2)]


def losses(device: Device, loss: str, outputs: int) -> list[float]:
    x, y = data(device, 20, outputs)
    targets = y.argmax(1) if loss == "cross_entropy" else (y > 0).double()
    optimizer = widefit.GaussNewton(network(device, 3, 6, outputs), loss=loss)
    return [optimizer.step(x, targets).loss for _ in range(2)]


def minibatches(device: Device) -> list[float]:
    optimizer = widefit.GaussNewton(network(device, 3, 8, 1))
    return [optimizer.step(*data(device, 12, seed=seed)).loss for seed in range(4)]


def bounds_and_rates(device: Device) -> list[float]:
    model = network(device, 3, 6, 1)
    bounded = widefit.GaussNewton(model, bounds={"0.weight": (-0.6, 0.6)})
    found = [bounded.step(*data(device, 20)).loss for _ in range(2)]
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "lr": 0.5}]
    return [*found, widefit.GaussNewton(model, groups).step(*data(device, 20)).loss]


def other_modules(device: Device) -> list[float]:
    optimizer = widefit.GaussNewton(Sines().to(device))
    x, y = data(device, 20)
    optimizer.minimize(x, y, max_iter=4, validation=data(device, 8, seed=2))
    deviations = optimizer.standard_errors(x, y)["slopes"]
    kernel = torch.as_tensor(widefit.ntk(Sines().to(device), x, x[:3]))
    return [*optimizer.history.losses, *deviations.tolist(), float(kernel.sum())]


def equations(device: Device) -> list[float]:
    def inside(model: nn.Module, x: Tensor) -> Tensor:
        return pinn.laplacian(model, x) + torch.sin(x).sum()

    def mixed(model: nn.Module, x: Tensor) -> Tensor:
        return pinn.derivative(model, x, 0, 1) - pinn.gradient(model, x)[0]

    network_on = network(device, 2, 6, 1)
    points = pinn.box([0, 0], [1, 1], 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    edge = pinn.boundary([0, 0], [1, 1], 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    blocks = (
        widefit.Residual(inside, points),
        widefit.Residual(mixed, points[:9]),
        widefit.Residual(lambda model, x: model(x), edge.to(device), weight=10.0),
    )
    optimizer = widefit.GaussNewton(network_on)
    return [optimizer.step(*blocks).loss for _ in range(3)]


def curves(device: Device, many: bool = False) -> list[float]:
    x = torch.linspace(0, 1, 12, dtype=torch.float64)
    y = torch.stack([2 * torch.exp(-x) + 0.01 * torch.sin(9 * x), torch.exp(-2 * x) + 0.01 * torch.cos(9 * x)])
    observed = y if many else y[0]
    fit = widefit.curve_fit(lambda x, a, b: a * torch.exp(-b * x), x.to(device), observed, bounds=(0, [5.0, 9.0]))
    return [*fit.parameters.reshape(-1).tolist(), *fit.covariance.reshape(-1).tolist()]


def state_dicts(device: Device, solver: str) -> list[float]:
    """A state of the host goes on elsewhere."""
    model = network("cpu", 3, 8, 1)
    optimizer = widefit.GaussNewton(model, solver=solver)
    optimizer.step(*data("cpu", 6))
    moved = copy.deepcopy(model).to(device)
    later = widefit.GaussNewton(moved, solver=solver)
    later.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return [later.step(*data(device, 6)).loss]


def resumed(device: Device) -> list[float]:
    keep = Keep()
    widefit.GaussNewton(network("cpu", 3, 8, 1)).minimize(*data("cpu", 20), max_iter=2, callbacks=[keep])
    optimizer = widefit.GaussNewton(network(device, 3, 8, 1))
    return optimizer.minimize(*data(device, 20), max_iter=3, resume=keep.state).losses


def masks(device: Device, **settings: Any) -> list[float]:
    """A two-layer network, trained where it is, and gone on with elsewhere."""
    return trained_twice(device, lambda: TwoLayer(3, 256, dtype=torch.float64), **settings)


def layers(device: Device, outputs: int = 1, **settings: Any) -> list[float]:
    """A deep network, trained where it is, and gone on with elsewhere."""
    return trained_twice(device, lambda: Deep(3, (40, 30), outputs, threshold=0.5, dtype=torch.float64), **settings)


def trained_twice(device: Device, make: Callable[[], TwoLayer | Deep], **settings: Any) -> list[float]:
    keep, found = Keep(), []
    for place in (torch.device("cpu"), torch.device(device)):
        model = make().to(place)
        x, y = data("cpu", 40, model.out_features)
        targets = y.sign() if "loss" in settings else y
        history = widefit.train(
            model, x, targets, tracker="torch", max_iter=3, callbacks=[keep], resume=keep.state, **settings
        )
        weight = model.weight if isinstance(model, TwoLayer) else model.input_weights[0]
        assert weight.device.type == place.type
        found += [*history.losses, float(weight.detach().sum()), *model(x[:2].to(place)).reshape(-1).tolist()]
    return found


def fine_tuned(device: Device, **settings: Any) -> list[float]:
    x, y = data(device, 40, 3)
    model = widefit.finetune(
        network(device, 3, 12, 12, 3), x, y.argmax(1), loss="cross_entropy", max_iter=2, **settings
    )
    assert next(model.parameters()).device.type == torch.device(device).type
    return model(x).reshape(-1).tolist()


def fine_tuned_blocks(device: Device) -> list[float]:
    inputs, kinds = sentences(24)
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    model = transformer().to(device)
    tuned = widefit.finetune(model, inputs, kinds.to(device), loss="cross_entropy", max_iter=2)
    file = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in tuned.state_dict().items()}, file)
    found = tuned(**inputs)
    return getattr(found, "logits", found).reshape(-1).tolist()


SOLVERS = [("svd", 20), ("cholesky", 20), ("cg", 5), ("sketched-cg", 5), ("nystrom-cg", 5)]
TALL = [("svd", 90), ("primal", 90), ("primal-cg", 90)]
CASES: dict[str, Case] = {
    **{f"{solver} of {rows} rows": partial(steps, solver=solver, rows=rows) for solver, rows in SOLVERS + TALL},
    **{loss: partial(losses, loss=loss, outputs=k) for loss, k in (("cross_entropy", 3), ("bce", 1), ("huber", 2))},
    "minibatches": minibatches,
    "bounds and rates": bounds_and_rates,
    "other modules": other_modules,
    "equations": equations,
    "curves": curves,
    "curves at once": partial(curves, many=True),
    **{f"state of {name}": partial(state_dicts, solver=name) for name in ("svd", "sketched-cg", "nystrom-cg")},
    "resumed": resumed,
    "masks": masks,
    "masks with a ridge": partial(masks, alpha=0.1),
    "masks, logistic": partial(masks, loss="logistic"),
    "masks, iterated": partial(masks, solver="cg"),
    "masks, sgd": partial(masks, rule="sgd", alpha=0.1),
    "masks, gradient descent": partial(masks, rule="gradient-descent"),
    "layers": layers,
    "layers with a ridge": partial(layers, alpha=0.1),
    "layers of three outputs": partial(layers, outputs=3, loss="logistic"),
    "layers, iterated": partial(layers, outputs=2, solver="cg"),
    "layers, gradient descent": partial(layers, rule="gradient-descent"),
    "fine-tuned": fine_tuned,
    "all layers fine-tuned": partial(fine_tuned, layers="all"),
    "readout fine-tuned": partial(fine_tuned, layers="readout"),
    "blocks fine-tuned": fine_tuned_blocks,
}
