"""Training all layers of a deep network by steps in sample space: W_l ← W_l − Σ_i g_i δ_l,i h_l−1,iᵀ."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from widefit import gram, solvers
from widefit.nn import Deep
from widefit.plan.deep import DeepShape, plan_deep
from widefit.plan.two_layer import Plan, firing_probability
from widefit.rules import FullBatch, Linearization
from widefit.trackers import Displacement, Minibatches, Trial, Update
from widefit.trackers.deep.tracking import DeepTracking, Sparse
from widefit.training.two_layer import State, Training


class DeepTraining(Training):
    """One run of `widefit.train` on a deep network (arXiv 2112.07628), which documents the arguments.

    The outputs of a sample share layers, so H couples them: one system of n k equations, from the sparse factors of
    every layer. To a rule it is a problem with one output and n k samples.
    """

    network: Deep
    _deep: DeepTracking
    _tracker: Sparse
    _tracking: DeepTracking

    def _keep_anchor(self) -> None:
        """Nothing of the size of the weights: tracking keeps W − W₀ in factors."""

    def _start_tracking(self) -> None:
        self._deep = self._tracking = self._tracker.start(
            self.network, self._inputs, self._threads, self._objective.alpha > 0, self._tracker_state
        )
        self._operator: gram.GramOperator | None = None

    def view(self) -> Linearization:
        """The problem at the committed weights, sample i and output c in row i k + c."""
        with self._phase("gram"):
            displacement = self._deep.displacement
        outputs = self._deep.outputs.reshape(-1, 1)
        return Linearization(self._objective.stacked(), outputs, displacement, self._gram, piecewise_linear=False)

    def _gram(self, output: int) -> gram.GramOperator:
        if self._operator is None:
            with self._phase("backward"):
                self._deep.signals()
            with self._phase("gram"):
                operator = gram.CoupledGram(self._deep.factors(), self._threads)
                # One output: H takes as much as the similarities that it is made of.
                self._operator = gram.DenseGram(operator.dense()) if operator.outputs == 1 else operator
        return self._operator

    def propose(self, update: Update) -> Trial:
        """What an update would do."""
        image = None
        if self._objective.alpha > 0:
            with self._phase("gram"):
                image = self._gram(0).matmul(torch.from_numpy(update.g[:, 0].copy())).numpy()
        with self._phase("pass"):
            trial = self._deep.propose(update, image)
        # J (W − W₀) there is not asked for unless the trial is kept.
        moved = None if image is None else Displacement(np.zeros_like(update.g), np.array([trial.moved.squared_norm]))
        return Trial(update, trial.outputs.reshape(-1, 1), trial.flips, True, moved, payload=trial)

    def commit(self, trial: Trial) -> None:
        """Carry a trial out."""
        self._operator = None
        with self._phase("update"):
            self._deep.commit(trial.payload)

    def descend(self, minibatches: Minibatches) -> tuple[int, bool]:
        """Never reached: the rule was refused."""
        raise ValueError("rule must take all samples at once for a deep network")

    def state(self) -> State:
        """Everything needed to go on from the last step to the same bits."""
        self._deep.publish()
        return super().state()

    def _trained(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.network.named_parameters() if weight.requires_grad}

    def _fixed(self) -> tuple[Any, bytes]:
        network = self.network
        identity = b"".join(readout.detach().numpy().tobytes() for readout in network.readouts)
        return (network.thresholds, network.scales, network.input_share), identity

    def _make_plan(self, tracker, solver, memory) -> "tuple[Plan, Sparse, solvers.Solver]":
        if tracker not in ("auto", "sparse"):
            raise ValueError(f'tracker must be "auto" or "sparse" for a deep network, got {tracker!r}')
        if not isinstance(self._rule, FullBatch):
            raise ValueError(f"rule must take all samples at once for a deep network, got {self._rule.name!r}")
        network = self.network
        shape = DeepShape(
            samples=self._inputs.shape[0],
            features=network.in_features,
            widths=network.hidden_layer_sizes,
            outputs=network.out_features,
            firing=tuple(firing_probability(threshold, 1.0) for threshold in network.thresholds),
            itemsize=self._inputs.itemsize,
        )
        plan, chosen = plan_deep(shape, solver, memory)
        return plan, Sparse(), chosen
