"""A deep network in training: all layers move, W_l ← W_l − Σ_i g_i δ_l,i h_l−1,iᵀ (arXiv 2112.07628)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widefit import gram
from widefit.nn import Deep
from widefit.nn.shifted_relu import firing_probability
from widefit.plan.deep import DeepShape, plan_deep
from widefit.rules import Direction, FullBatch, NetworkProblem, Objective, Rule
from widefit.solvers import Solver
from widefit.trackers import Displacement, Minibatches, Torch, Tracker, TrackerReport, Trial, Update
from widefit.trackers.deep.base import DeepTracker, DeepTracking
from widefit.training.phases import Phases
from widefit.training.problem import solver_identity


class DeepModel:
    """The weights of a deep network, moved by steps in sample space.

    The outputs of a sample share layers, so H couples them: one system of n k equations, from the sparse factors of
    every layer. To a rule it is a problem with one output and n k samples, output c of sample i in row i k + c.

    Parameters and attributes are those of `widefit.training.two_layer.TwoLayerModel`; tracker is "auto", "sparse",
    "torch", or a `widefit.trackers.deep.base.DeepTracker`.
    """

    _tracking: DeepTracking

    def __init__(
        self,
        network: Deep,
        inputs: np.ndarray,
        objective: Objective,
        rule: Rule,
        tracker: str | Tracker | DeepTracker,
        solver: str | Solver,
        threads: int,
        memory: int | None,
        phases: Phases,
    ):
        if not isinstance(rule, FullBatch):
            raise ValueError(f"rule must take all samples at once for a deep network, got {rule.name!r}")
        self._network = network
        self._inputs = inputs
        self._objective = objective
        self._threads = threads
        self._phases = phases
        self._operator: gram.Operator | None = None
        shape = DeepShape(
            samples=inputs.shape[0],
            features=network.in_features,
            widths=network.hidden_layer_sizes,
            outputs=network.out_features,
            firing=tuple(firing_probability(threshold) for threshold in network.thresholds),
            itemsize=inputs.itemsize,
            device=network.input_weights[0].device.type,
            anchored=objective.alpha > 0,
        )
        # The torch tracker of two-layer networks has a sister of the same name.
        wanted: Any = tracker.name if isinstance(tracker, Torch) else tracker
        self.plan, self._tracker, self.solver = plan_deep(shape, wanted, solver, memory)

    @property
    def tracker(self) -> str:
        """Name of the tracker."""
        return self._tracker.name

    @property
    def system(self) -> str:
        """The solver: another one leads to other bits."""
        return solver_identity(self.solver)

    @property
    def outputs(self) -> np.ndarray:
        """f at the committed weights, shape (n, k)."""
        return self._tracking.outputs

    @property
    def report(self) -> TrackerReport:
        """Operations and memory of the tracker so far."""
        return self._tracking.report()

    def settings(self) -> tuple[object, bytes]:
        """Settings that decide the outputs beside the weights, and the bytes of what training leaves alone."""
        network = self._network
        identity = b"".join(readout.detach().cpu().numpy().tobytes() for readout in network.readouts)
        return (network.thresholds, network.scales, network.input_share), identity

    def start(self, state: dict[str, np.ndarray] | None = None) -> None:
        """Find out who fires."""
        anchored = self._objective.alpha > 0
        self._tracking = self._tracker.start(self._network, self._inputs, self._threads, anchored, state)

    def local_problem(self) -> NetworkProblem:
        """The problem at the committed weights."""
        with self._phases("gram"):
            displacement = self._tracking.displacement
        outputs = self._tracking.outputs.reshape(-1, 1)
        return NetworkProblem(self._objective.stacked(), outputs, displacement, self._gram, piecewise_linear=False)

    def propose(self, direction: Direction) -> Trial:
        """Find out what a step would do."""
        update = Update(direction.g.cpu().numpy(), direction.shrink.numpy())
        anchored = self._objective.alpha > 0
        image = None
        if anchored and self._tracking.wants_image and direction.image is not None:
            image = direction.image[:, 0].contiguous().numpy()
        elif anchored and self._tracking.wants_image:
            with self._phases("gram"):
                image = self._gram(0).matvec(direction.g[:, 0].clone()).numpy()
        with self._phases("pass"):
            trial = self._tracking.propose(update, image)
        # J (W − W₀) there is not asked for unless the trial is kept.
        moved = Displacement(np.zeros_like(update.g), np.array([trial.squared_norm])) if anchored else None
        return Trial(update, trial.outputs.reshape(-1, 1), trial.flips, True, moved, payload=trial)

    def commit(self, trial: Trial) -> None:
        """Carry a trial out."""
        self._operator = None
        with self._phases("update"):
            self._tracking.commit(trial.payload)

    def descend(self, minibatches: Minibatches) -> tuple[int, bool]:
        """Stochastic steps, which are refused when the run is planned."""
        raise ValueError("rule must take all samples at once for a deep network")

    @contextmanager
    def network(self) -> Iterator[Deep]:
        """Inside, the network with the committed weights."""
        with self._tracking.materialized():
            yield self._network

    def loss_of_the_average(self) -> float | None:
        """None: iterates are not averaged."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training has changed, by name."""
        self._tracking.publish()
        return self._trained()

    def tracker_state(self) -> dict[str, np.ndarray]:
        """State from which the tracker goes on to the same bits."""
        return self._tracking.state()

    def replaced(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that those of a state will replace."""
        return self._trained()

    def restore(self, tensors: dict[str, Tensor], averaged: float) -> None:
        """Take what `tensors` gave; before `start`."""
        with torch.no_grad():
            for name, weight in self._trained().items():
                weight.copy_(tensors[name])

    def finish(self) -> None:
        """Leave the network with the committed weights."""
        if hasattr(self, "_tracking"):
            self._tracking.finish()

    def _gram(self, output: int) -> gram.Operator:
        if self._operator is None:
            with self._phases("backward"):
                self._tracking.signals()
            with self._phases("gram"):
                operator = gram.CoupledGram(self._tracking.factors())
                # One output: H takes as much as the similarities that it is made of.
                self._operator = gram.DenseGram(operator.dense()) if operator.outputs == 1 else operator
        return self._operator

    def _trained(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self._network.named_parameters() if weight.requires_grad}
