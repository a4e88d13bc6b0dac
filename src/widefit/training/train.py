"""train(): fit a network to data."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from widefit import solvers, trackers
from widefit.kernels.compilation import announce_compilation
from widefit.kernels.memory import available_memory
from widefit.kernels.surroundings import insulated
from widefit.nn import Deep, TwoLayer
from widefit.plan.base import Plan
from widefit.processes import ALONE, Alone, as_processes
from widefit.rules import Rule
from widefit.training.callback import Callback
from widefit.training.deep import DeepModel
from widefit.training.history import History
from widefit.training.loop import Loop, State
from widefit.training.phases import Phases
from widefit.training.problem import check_network, checked_problem, place, rule_for
from widefit.training.shared_problem import agreed
from widefit.training.shared_two_layer import SharedTwoLayerModel
from widefit.training.steps import NetworkSteps
from widefit.training.two_layer import Start, TwoLayerModel


class Training:
    """One run of `train`, which documents the arguments, with what can be asked of it before and after.

    Parameters
    ----------
    few_steps
        True where a callback is expected to end the run after a step or two: the plan reckons with them.
    start
        Where the first solve of a two-layer network begins.

    Attributes
    ----------
    plan
        What "auto" chose, and the predicted cost.
    history
        The steps so far.
    """

    def __init__(
        self,
        network: TwoLayer | Deep,
        X: ArrayLike | Tensor,
        y: ArrayLike | Tensor,
        *,
        rule: str | Rule = "gauss-newton",
        tracker: str | trackers.Tracker = "auto",
        solver: str | solvers.Solver = "auto",
        max_iter: int = 20,
        tol: float = 1e-6,
        alpha: float = 0.0,
        loss: str | None = None,
        sample_weight: ArrayLike | Tensor | None = None,
        metric: Callable[[Any], float] | None = None,
        callbacks: Sequence[Callback] = (),
        threads: int | None = None,
        memory: int | None = None,
        loss_floor: float = 0.0,
        device: str | torch.device = "auto",
        processes: Alone = ALONE,
        few_steps: bool = False,
        start: Start | None = None,
    ):
        for name, value, least in (("max_iter", max_iter, 0), ("tol", tol, 0), ("alpha", alpha, 0)):
            if not (value >= least and np.isfinite(value)):
                raise ValueError(f"{name} must be a finite number ≥ {least}, got {value!r}")
        check_network(network)
        placed = place(network, device)
        chosen = rule_for(rule, loss, network.out_features)
        inputs, objective = checked_problem(network, X, y, sample_weight, float(alpha), chosen.loss)
        if processes.size > 1:
            settings = (chosen, tracker, solver, max_iter, float(tol), loss_floor)
            inputs, objective = agreed(network, inputs, objective, settings, processes)
        phases = Phases()
        self.model: TwoLayerModel | DeepModel = _kind(network, float(tol), few_steps, start, processes)(
            network,
            inputs,
            objective,
            chosen,
            tracker,
            solver,
            torch.get_num_threads() if threads is None else threads,
            memory if memory is not None or processes.size == 1 else available_memory() // processes.neighbours,
            phases,
        )
        self._loop = Loop(
            NetworkSteps(self.model, inputs, objective, chosen, loss_floor, phases),
            max_iter=max_iter,
            tol=tol,
            metric=metric,
            callbacks=callbacks,
            loss_floor=loss_floor,
            processes=processes,
        )
        self._loss_floor = loss_floor
        plan = self.model.plan
        self.plan = Plan((placed, *plan.choices), plan.bytes_needed, plan.flops_per_step)
        self.history = self._loop.history

    @property
    def tracker_report(self) -> trackers.TrackerReport:
        """Operations and memory of the tracker so far; there is a report from the start of `run` on."""
        return self.model.report

    def run(self, resume: State | None = None) -> History:
        """Train until tol, convergence, max_iter, a callback or an interrupt ends it."""
        announce_compilation()
        history = self._loop.run(resume)
        average = self.model.loss_of_the_average()
        history.average_loss = None if average is None else average + self._loss_floor
        return history

    def join(self, whole: Tensor) -> None:
        """Write the weights after a run of several processes, shape (m, d); all of them call it at once."""
        assert isinstance(self.model, SharedTwoLayerModel)
        self.model.join(whole)

    def state(self) -> State:
        """Everything needed to go on from the last step to the same bits."""
        return self._loop.state()


def _kind(network: TwoLayer | Deep, tol: float, few: bool, start: Start | None, processes: Alone) -> Any:
    """The model of a network, without the arguments that all have."""
    if isinstance(network, Deep):
        return DeepModel
    if processes.size == 1:
        return partial(TwoLayerModel, tol=tol, few=few, start=start)
    return partial(SharedTwoLayerModel, tol=tol, few=few, start=start, processes=processes)


@insulated()
def train(
    network: TwoLayer | Deep,
    X: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    rule: str | Rule = "gauss-newton",
    tracker: str | trackers.Tracker = "auto",
    solver: str | solvers.Solver = "auto",
    max_iter: int = 20,
    tol: float = 1e-6,
    alpha: float = 0.0,
    loss: str | None = None,
    sample_weight: ArrayLike | Tensor | None = None,
    metric: Callable[[Any], float] | None = None,
    callbacks: Sequence[Callback] = (),
    resume: State | None = None,
    threads: int | None = None,
    memory: int | None = None,
    device: str | torch.device = "auto",
    process_group: Any = None,
) -> History:
    """Fit a network to data, in place: the first layer of a two-layer one, all layers but the readouts of a deep one.

    Minimizes Q(W) = Σ_i ω_i ‖f(x_i) − y_i‖² + α ‖W − W₀‖² from the weights W₀ that the network has, or for another loss
    Q(W) = 2 Σ_i ω_i ℓ(f(x_i), y_i) + α ‖W − W₀‖².

    Parameters
    ----------
    network
        `widefit.nn.TwoLayer` or `widefit.nn.Deep`.
    X
        Shape (n, d); taken as it is, cast to the dtype of the network.
    y
        Shape (n,) or (n, k).
    rule
        "gauss-newton", "gradient-descent", "sgd", or a rule of `widefit.rules`.
    tracker
        "auto", "dense", "certificate", "verlet-list", "weight-tree", "data-tree", "half-space-tree", "torch", or a
        tracker of `widefit.trackers`; "auto", "sparse" or "torch" for a deep network.
    solver
        "auto", "cholesky", "cg", "nystrom-cg", "block-cg" (for several outputs of a deep network), or a solver of
        `widefit.solvers`.
    max_iter
        Largest number of steps, rejected ones included; of epochs with "sgd". Rules of first order want hundreds.
    tol
        Training stops when the loss, the weighted mean over samples of the squared residual or of ℓ, is no larger.
    alpha
        α ≥ 0, pull towards the initial weights in the units of Q.
    loss
        ℓ, in place of that of the rule: "squared", "logistic" (y of ±1), "softmax" (y one-hot rows or probabilities) or
        "cross_entropy", which is "logistic" for one output and "softmax" for more.
    sample_weight
        ω ≥ 0, shape (n,); None: ones.
    metric
        Called with the network after every step; its value is recorded in `StepInfo.metric`.
    callbacks
        See `widefit.callbacks`.
    resume
        A state from `Training.state`: training goes on from there to the same bits.
    threads
        Cores to use, None: `torch.get_num_threads()`. The result does not depend on it.
    memory
        Bytes the training may take, None: what is free.
    device
        "auto": where the network is; "cpu", "cuda" or another device of torch: the network is moved there, and stays.
        On an accelerator networks are trained by tracker="torch".
    process_group
        A group of torch.distributed, or a `widefit.Processes`. Every process of it passes the same network and all
        rows, moves a share of the neurons, and is left with the whole network trained. Callbacks and the metric are
        the same everywhere, too; the metric sees a network whose outputs are those of the whole.

    Returns
    -------
    History
        One StepInfo a step, the first for the state before training.

    Raises
    ------
    ValueError
        An argument of the wrong shape or value, numbers that are not finite, a state that belongs to other data.
    MemoryError
        The work cannot fit; said before it starts.
    """
    processes = as_processes(process_group)
    if processes.size > 1 and isinstance(network, TwoLayer) and network.store != "array":
        raise ValueError(
            'several processes train networks that hold their weights, not store="regenerate": pass '
            "network.materialize(), or start one process"
        )
    training = Training(
        network,
        X,
        y,
        rule=rule,
        tracker=tracker,
        solver=solver,
        max_iter=max_iter,
        tol=tol,
        alpha=alpha,
        loss=loss,
        sample_weight=sample_weight,
        metric=metric,
        callbacks=callbacks,
        threads=threads,
        memory=memory,
        device=device,
        processes=processes,
    )
    history = training.run(resume)
    if processes.size > 1 and isinstance(network, TwoLayer):
        training.join(network.weight.detach())
    return history
