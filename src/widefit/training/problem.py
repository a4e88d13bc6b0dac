"""The arguments of a run, checked once: the rule, its loss, the data."""

from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from widefit import gram, trackers
from widefit.kernels.devices import check_precision, device_named
from widefit.losses.family import RULE_LOSSES, rule_loss
from widefit.nn import Deep, TwoLayer
from widefit.plan.base import Choice, placed
from widefit.plan.names import RULES, resolve
from widefit.rules import NetworkProblem, Objective, Rule
from widefit.solvers import Solver


def check_network(network: Any) -> None:
    """Refuse other modules, with the line that serves them.

    Raises
    ------
    ValueError
        The network is not one of widefit's.
    """
    if not isinstance(network, TwoLayer | Deep):
        instead = ", which steps any module: widefit.GaussNewton(network).minimize(X, y)"
        raise ValueError(
            f"network must be a widefit.nn.TwoLayer or widefit.nn.Deep, got {type(network).__name__}; use "
            f"widefit.GaussNewton{instead if isinstance(network, nn.Module) else ' for other modules'}"
        )


def place(network: TwoLayer | Deep, device: str | torch.device) -> Choice:
    """Move a network to a device, and tell where it is; "auto" leaves it there.

    Raises
    ------
    ValueError
        No such device is at hand, it has no float64, or the network is one that draws its weights again.
    """
    moving = None if device == "auto" else device_named(device)
    tensors = network.state_dict() if isinstance(network, Deep) or network.store == "array" else {}
    places = {tensor.device for tensor in tensors.values()} if moving is None else {moving}
    there = next(iter(places), torch.device("cpu"))
    if there.type != "cpu" and not isinstance(network, Deep) and network.store != "array":
        raise ValueError(
            'a network with store="regenerate" is trained on the CPU: use device="cpu", or train network.materialize()'
        )
    check_precision(there)
    if moving is not None:
        network.to(moving)
    reason = "where the network is" if moving is None else "as asked for"
    return placed(there, network.dtype, reason)


def rule_for(rule: str | Rule, loss: str | None, outputs: int) -> Rule:
    """A rule with the loss that was asked for; None: its own."""
    chosen = rule_of(rule)
    if loss is None:
        return chosen
    known = {name: name for name in RULE_LOSSES} | {"cross_entropy": "logistic" if outputs == 1 else "softmax"}
    if loss not in known:
        raise ValueError(f"loss must be one of {', '.join(map(repr, known))}, got {loss!r}")
    return replace(chosen, loss=known[loss])  # pyright: ignore[reportArgumentType]


def rule_of(rule: str | Rule) -> Rule:
    """A rule by its name, or itself."""
    return resolve(rule, RULES)


def checked_problem(
    network: TwoLayer | Deep,
    X: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    sample_weight: ArrayLike | Tensor | None,
    alpha: float,
    loss: str,
) -> tuple[np.ndarray, Objective]:
    """Inputs in the dtype of the network and the objective in float64, checked."""
    dtype = torch.empty(0, dtype=network.dtype).numpy().dtype
    inputs = np.ascontiguousarray(_array(X, "X"), dtype=dtype)
    targets = np.ascontiguousarray(_array(y, "y"), dtype=np.float64)
    targets = targets[:, None] if targets.ndim == 1 else targets
    if inputs.ndim != 2 or inputs.shape[0] == 0 or inputs.shape[1] != network.in_features:
        raise ValueError(f"X must have shape (n, {network.in_features}) with n ≥ 1, got {inputs.shape}")
    samples = inputs.shape[0]
    if targets.shape != (samples, network.out_features):
        raise ValueError(f"y must have shape ({samples}, {network.out_features}), got {targets.shape}")
    weight = np.ones(samples) if sample_weight is None else _array(sample_weight, "sample_weight").astype(np.float64)
    if weight.shape != (samples,) or np.any(weight < 0) or not np.any(weight > 0):
        raise ValueError(f"sample_weight must be {samples} numbers ≥ 0, not all 0")
    for name, array in (("X", inputs), ("y", targets), ("sample_weight", weight)):
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise ValueError(f"{name} contains NaN or infinity (or overflows {dtype}), first in row {row}")
    rule_loss(loss).check(targets)
    return inputs, Objective(targets, weight, alpha, loss)


def linearize(network: TwoLayer, inputs: np.ndarray, objective: Objective, threads: int) -> NetworkProblem:
    """A problem at the weights that a network has, found by one dense pass; without displacement."""
    tracking = exhaustive(network).start(network, inputs, threads=threads)
    grams = gram.CurrentGrams(tracking, partial(gram.similarity, inputs), network.coefficients, 1, threads)
    return NetworkProblem(
        objective, tracking.outputs, None, grams, features_squared=lambda: trackers.features_squared(network, inputs)
    )


def solver_identity(solver: Solver) -> str:
    """Name of a solver, with its settings where these are told."""
    return repr(solver) if is_dataclass(solver) else solver.name


def exhaustive(network: TwoLayer) -> trackers.Tracker:
    """The tracker that looks at every pair, where the network is."""
    on_host = network.store != "array" or network.weight.device.type == "cpu"
    return trackers.Dense() if on_host else trackers.Torch()


def refuse_floor(network: TwoLayer) -> None:
    """Raise a ValueError where silent neurons have a part in the outputs, so that each step would move them all."""
    if network.activation.silent != 0:
        raise ValueError('train_readout takes networks whose silent neurons give 0, not convention="floor"')


def _array(value: ArrayLike | Tensor, name: str) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got dtype {array.dtype}")
    return array
