"""A two-layer network in training: its tracker, its Gram matrices, and what a step does to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from widefit import gram, rules, trackers
from widefit.nn import TwoLayer
from widefit.plan.base import AVERAGED
from widefit.plan.two_layer import ESTIMATE_SAMPLES, TwoLayerPlan, plan_two_layer, product_dtype, workload_of
from widefit.rules import Direction, NetworkProblem, Objective, Rule
from widefit.solvers import NystromCG, Solver
from widefit.trackers import IterateAverage, Minibatches, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.cost import expected_firing
from widefit.training.interruption import abandon_if_asked
from widefit.training.phases import Phases
from widefit.training.problem import exhaustive, linearize, refuse_floor, solver_identity

# Neurons of every output from which the length of the first step is foretold: so many that about this number of them
# fire on a sample, as H of fewer is too near to singular and its step too long; and at least this many.
_SCOUT_FIRING = 128
_SCOUT = 4096


@dataclass(frozen=True)
class Start:
    """A solution of the first system that somebody has found before.

    Attributes
    ----------
    g
        About (H + αI)⁻¹ (f − y), shape (n, k).
    tolerance
        Residual that is small enough, in parts of the right-hand side.
    """

    g: np.ndarray
    tolerance: float


class TwoLayerModel:
    """The weights of a two-layer network, moved by steps in sample space.

    Parameters
    ----------
    network
        Trained in place.
    inputs
        X, shape (n, d), in the dtype of the network.
    objective
        Q.
    rule
        Whose steps will be taken.
    tracker, solver
        "auto", a name, or the object itself.
    threads
        Cores to use.
    memory
        Bytes that the training may take; None: what is free.
    phases
        Clocks.
    tol
        Training loss at which it will stop.
    few
        True where one or two steps of Gauss-Newton are expected.
    start
        Where the first solve begins.

    Attributes
    ----------
    plan
        What "auto" chose, and the predicted cost.
    """

    _tracking: Tracking
    _grams: gram.CurrentGrams | gram.FireListGrams | gram.MaskGrams | gram.SummedCurrentGrams | gram.SummedFireLists

    def __init__(
        self,
        network: TwoLayer,
        inputs: np.ndarray,
        objective: Objective,
        rule: Rule,
        tracker: str | Tracker,
        solver: str | Solver,
        threads: int,
        memory: int | None,
        phases: Phases,
        tol: float = 1e-6,
        few: bool = False,
        start: Start | None = None,
    ):
        self._network = network
        self._inputs = inputs
        self._objective = objective
        self._rule = rule
        self._threads = threads
        self._phases = phases
        self._few_steps = few
        self.plan, self._tracker, self._solver = self._planned(tracker, solver, memory, tol)
        _refuse_readout(network, objective, rule, self._tracker)
        summed = product_dtype(len(inputs), inputs.dtype)
        self._samples = None if self.plan.arrays else gram.Samples.of(inputs, summed)
        # Where a solve iterates it begins from the steps so far.
        warm = self._samples is not None and objective.alpha > 0
        self._collected = np.zeros(objective.targets.shape) if warm else None
        self._first = start.g if start is not None and warm else None
        if start is not None and warm and solver == "auto" and isinstance(self._solver, NystromCG):
            self._solver = replace(self._solver, tolerance=max(self._solver.tolerance, start.tolerance))
        # The steps move the network itself, or a copy where it is to have the average of the iterates.
        self._iterate = network
        self._average: IterateAverage | None = None
        if rule.averages:
            self._average, self._iterate = IterateAverage.of(network, readout=rule.train_readout)
            self.plan = _with_average(self.plan, self._average.nbytes + self._iterate.weight.nbytes)
        self._anchor: np.ndarray | None = None

    @property
    def solver(self) -> Solver:
        """The solver of a step."""
        return self._solver

    @property
    def tracker(self) -> str:
        """Name of the tracker."""
        return self._tracker.name

    @property
    def system(self) -> str:
        """Form of H, and the solver: another one leads to other bits."""
        return f"{solver_identity(self._solver)}, {'n × n array' if self.plan.arrays else 'fire lists'}"

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
        return self._network.threshold, self._network.readout_identity()

    def start(self, state: dict[str, np.ndarray] | None = None) -> None:
        """Find out who fires."""
        if self._objective.alpha > 0 and self._anchor is None and not self._tracker.defers_weights:
            trackers.refuse_unstored(self._tracker.name, self._iterate)
            self._anchor = self._iterate.weight.detach().cpu().numpy().copy()
        self._tracking = self._start_tracking(state)
        self._start_grams()

    def local_problem(self) -> NetworkProblem:
        """The problem at the committed weights."""
        return NetworkProblem(
            self._objective,
            self._tracking.outputs,
            self._tracking.displacement,
            self._gram,
            features_squared=lambda: trackers.features_squared(self._iterate, self._inputs),
            few=self._few if len(self._inputs) > ESTIMATE_SAMPLES else None,
            collected=self._collected if self._first is None else self._first,
        )

    def propose(self, direction: Direction) -> Trial:
        """Find out what a step would do."""
        abandon_if_asked()
        image = None if direction.image is None else direction.image.cpu().numpy()
        with self._phases("pass"):
            update = Update(direction.g.cpu().numpy(), direction.shrink.numpy(), image)
            return self._tracking.propose(update, self._grams)

    def commit(self, trial: Trial) -> None:
        """Carry a trial out."""
        with self._phases("gram"):
            self._grams.follow(trial.changes)
        with self._phases("update"):
            self._tracking.commit(trial)
        self._first = None
        if self._collected is not None:
            self._collected = (1 - trial.update.shrink) * self._collected + trial.update.g

    def descend(self, minibatches: Minibatches) -> tuple[int, bool]:
        """Take stochastic steps, with no way back; the number of flips, and whether all neurons were looked at."""
        with self._phases("pass"):
            passes = self._tracking.report().full_passes
            flips = self._tracking.descend(replace(minibatches, average=self._average), self._grams)
            if minibatches.trains_readout:
                self._start_grams()
            if self._average is not None:
                with self._tracking.materialized():
                    self._average.write(self._iterate, minibatches.averaged_after(0), self._network)
            return flips, self._tracking.report().full_passes > passes

    @contextmanager
    def network(self) -> Iterator[TwoLayer]:
        """Inside, the network with the committed weights."""
        with self._tracking.materialized():
            yield self._network

    def loss_of_the_average(self) -> float | None:
        """Training loss of the average of the iterates, which the network is left with; None without one."""
        if self._average is None:
            return None
        with self._phases("pass"):
            outputs = exhaustive(self._network).start(self._network, self._inputs, threads=self._threads).outputs
        return self._objective.loss(outputs)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training has changed, by name."""
        tensors = self._trained() | ({} if self._average is None else self._average.tensors())
        if self._anchor is not None:
            tensors["anchor"] = torch.from_numpy(self._anchor)
        if self._collected is not None:
            tensors["collected"] = torch.from_numpy(self._collected)
        return tensors

    def tracker_state(self) -> dict[str, np.ndarray]:
        """State from which the tracker goes on to the same bits."""
        return self._tracking.state()

    def replaced(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that those of a state will replace."""
        replaced = self._trained() | ({} if self._average is None else self._average.tensors())
        if self._collected is not None:
            replaced["collected"] = torch.from_numpy(self._collected)
        return replaced | ({"anchor": self._iterate.weight.detach()} if "anchor" in tensors else {})

    def restore(self, tensors: dict[str, Tensor], averaged: float) -> None:
        """Take what `tensors` gave, after so many averaged iterates; before `start`."""
        with torch.no_grad():
            for name, weight in self._trained().items():
                weight.copy_(tensors[name])
        if self._average is not None:
            self._average.restore(tensors)
            self._average.write(self._iterate, averaged, self._network)
        self._first = None
        if self._collected is not None:
            self._collected = tensors["collected"].cpu().numpy().copy()
        if "anchor" in tensors:
            self._anchor = tensors["anchor"].cpu().numpy().copy()

    def finish(self) -> None:
        """Leave the network with the committed weights."""
        if hasattr(self, "_tracking"):
            self._tracking.finish()

    def _planned(
        self, tracker: str | Tracker, solver: str | Solver, memory: int | None, tol: float
    ) -> tuple[TwoLayerPlan, Tracker, Solver]:
        work = workload_of(self._network, self._inputs, self._objective.alpha, self._rule, self._few_steps)
        return plan_two_layer(work, tracker, solver, self._threads, memory, tol)

    def _start_tracking(self, state: dict[str, np.ndarray] | None) -> Tracking:
        return self._tracker.start(
            self._iterate,
            self._inputs,
            anchor=self._anchor,
            threads=self._threads,
            state=state,
            expected=self._forecast(self._iterate.width),
        )

    def _gram(self, output: int) -> gram.Operator:
        with self._phases("gram"):
            return self._grams(output)

    def _start_grams(self) -> None:
        """H as it follows from the network's readout."""
        if isinstance(self._tracking, trackers.MaskTracking):
            self._grams = gram.MaskGrams(self._tracking, self.plan.grams if self.plan.arrays else 0)
            return
        if self._samples is not None:
            self._grams = gram.FireListGrams(
                self._tracking, self._samples, self._iterate.coefficients, self._threads, abandon_if_asked
            )
            return
        similarity = partial(gram.similarity, self._inputs)
        self._grams = gram.CurrentGrams(
            self._tracking, similarity, self._iterate.coefficients, self.plan.grams, self._threads
        )

    def _trained(self) -> dict[str, Tensor]:
        # The tracker's state says how far weights that are not stored have moved.
        if self._iterate.store != "array":
            return {}
        trained = {"weight": self._iterate.weight.detach()}
        return trained | ({"readout": self._iterate.readout.detach()} if self._rule.train_readout else {})

    def _forecast(self, most: int) -> np.ndarray | None:
        """About the sum of g over the run: a Gauss-Newton step of at most so many neurons of the network."""
        if not self.plan.arrays or not self._tracker.defers_weights or most < 8 * _SCOUT * self._network.out_features:
            return None
        firing = max(expected_firing(self._network.threshold, self._inputs), 1e-4)
        width = max(_SCOUT, int(_SCOUT_FIRING / firing)) * self._network.out_features
        scout = self._iterate.sample(min(width, most))
        problem = linearize(scout, self._inputs, self._objective, self._threads)
        rule = rules.GaussNewton()
        return rule.direction(problem, rule.start(problem), self.solver).g.numpy()

    def _few(self) -> NetworkProblem:
        """The problem of samples spread evenly and of the longest, which has most of a say in how far to go."""
        rows = self._few_rows()
        return linearize(self._iterate, self._inputs[rows], self._objective.subset(rows), self._threads)

    def _few_rows(self) -> np.ndarray:
        spread = np.linspace(0, len(self._inputs) - 1, ESTIMATE_SAMPLES - 1).astype(np.int64)
        length = self._objective.sample_weight * np.einsum("ij,ij->i", self._inputs, self._inputs)
        return np.append(spread, int(length.argmax()))


def _with_average(plan: TwoLayerPlan, held: int) -> TwoLayerPlan:
    averaged = plan.then(AVERAGED)
    return replace(averaged, bytes_needed=averaged.bytes_needed + held)


def _refuse_readout(network: TwoLayer, objective: Objective, rule: Rule, tracker: Tracker) -> None:
    """Say at once where the second layer cannot be trained."""
    if not rule.train_readout:
        return
    if not tracker.trains_readout or (objective.alpha > 0 and tracker.name != trackers.Dense.name):
        ridge = " with a ridge" if tracker.trains_readout else ""
        raise ValueError(
            f'tracker "{tracker.name}" keeps the second layer as it is{ridge}: train_readout takes "dense" or, without '
            'a ridge, "half-space-tree" over the weights'
        )
    refuse_floor(network)
