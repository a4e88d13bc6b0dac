"""The loop: a rule chooses g, the tracker finds out who fires after W ← W − Jᵀ g, the rule keeps the step or not."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from widefit import gram, rules, solvers, trackers
from widefit.kernels.compilation import announce_compilation
from widefit.kernels.memory import available_memory
from widefit.nn import Deep, TwoLayer
from widefit.plan.two_layer import AVERAGED, FEW, Plan, TwoLayerShape, firing_probability, plan_two_layer
from widefit.rules import Linearization, Rule
from widefit.trackers import Minibatches, Trial, Update
from widefit.training.callback import Callback
from widefit.training.history import History, StepInfo
from widefit.training.interruption import interrupt_flag
from widefit.training.problem import checked_problem, linearize, refuse_floor, rule_for

# Neurons of every output from which the length of the first step is foretold: so many that about this number of them
# fire on a sample, as H of fewer is too near to singular and its step too long; and at least this many.
_SCOUT_FIRING, _SCOUT = 128, 4096
# Neurons that tell how many fire at all: at least so many, and more of a wide network, but no more pairs than this.
_SEEN, _SEEN_PART, _SEEN_PAIRS = 1024, 1 << 10, 1 << 23

State = tuple[dict[str, Tensor], dict[str, Any]]


class Training:
    """One run of `widefit.train`, which documents the arguments.

    Attributes
    ----------
    history
        The steps so far.
    plan
        What "auto" chose, and the predicted cost.
    """

    network: Any
    _iterate: Any
    _tracker: Any
    _tracking: Any

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
        sample_weight: ArrayLike | Tensor | None = None,
        metric: Callable[[Any], float] | None = None,
        callbacks: Sequence[Callback] = (),
        threads: int | None = None,
        memory: int | None = None,
        loss_floor: float = 0.0,
        loss: str | None = None,
    ):
        for name, value, least in (("max_iter", max_iter, 0), ("tol", tol, 0), ("alpha", alpha, 0)):
            if not (value >= least and np.isfinite(value)):
                raise ValueError(f"{name} must be a finite number ≥ {least}, got {value!r}")
        self.network = network
        self.max_iter, self.tol = max_iter, tol
        self.history = History()
        self._rule = rule_for(rule, loss, network.out_features)
        self._inputs, self._objective = checked_problem(network, X, y, sample_weight, float(alpha), self._rule.loss)
        # Part of the loss that no weights can remove, left out of the stopping test.
        self._loss_floor = loss_floor
        self._metric, self._callbacks = metric, tuple(callbacks)
        self._threads = torch.get_num_threads() if threads is None else threads
        self.plan, self._tracker, self._solver = self._make_plan(tracker, solver, memory)
        self._refuse_readout()
        # What the steps move: the network itself, or a copy where it is to have the average of the iterates.
        self._iterate, self._average = network, None
        if self._rule.averages:
            self._average, self._iterate = trackers.IterateAverage.of(self._iterate, readout=self._rule.train_readout)
            held = self._average.nbytes + self._iterate.weight.nbytes
            self.plan = replace(self.plan.then(AVERAGED), bytes_needed=self.plan.bytes_needed + held)
        # As it was before training, which may change the readout.
        self._identity = self._fixed()
        self._memory: dict[str, float] = {}
        self._anchor: np.ndarray | None = None
        self._memory_limit = available_memory() if memory is None else memory
        self._tracker_state: dict[str, np.ndarray] | None = None
        self._started = 0.0

    def run(self, resume: State | None = None) -> History:
        """Train until tol, convergence, max_iter, a callback or an interrupt ends it."""
        if resume is not None:
            self._restore(resume)
        elif self._objective.alpha > 0:
            self._keep_anchor()
        announce_compilation()
        self._started = time.perf_counter() - (self.history[-1].seconds if resume is not None else 0.0)
        with self._phase("pass"):
            self._start_tracking()
        try:
            if resume is None:
                self._memory = self._rule.start(self.view())
                self.history.steps.append(self._info(0, self._objective.loss(self._tracking.outputs)))
            for callback in self._callbacks:
                callback.start(self)
            with interrupt_flag() as interrupted:
                self.history.stop_reason = self._loop(interrupted)
            if self._average is not None:
                self.history.average_loss = self._loss_of_the_average()
            for callback in self._callbacks:
                callback.finish(self, self.history)
        finally:
            with self._phase("update"):
                self._tracking.finish()
        return self.history

    def state(self) -> State:
        """Everything needed to go on from the last step to the same bits."""
        tensors = self._trained() | ({} if self._average is None else self._average.tensors())
        if self._anchor is not None:
            tensors["anchor"] = torch.from_numpy(self._anchor)
        for name, array in self._tracking.state().items():
            tensors[f"tracker.{name}"] = torch.from_numpy(array)
        document = {
            "tracker": self._tracker.name,
            "rule": self._rule.name,
            "memory": dict(self._memory),
            "history": self.history.to_dict(),
            "data": self._fingerprint(),
        }
        return tensors, document

    def _loop(self, interrupted: threading.Event) -> str:
        if self.history.stop_reason in ("converged", "stalled", "diverged"):
            return self.history.stop_reason  # resumed where nothing was left to do
        while True:
            last = self.history[-1]
            if last.loss - self._loss_floor <= self.tol:
                return "tol"
            if last.step >= self.max_iter:
                return "max_iter"
            if interrupted.is_set():
                return "interrupted"
            stop = self._step(last.step + 1)
            ended = [bool(callback.step(self, self.history[-1])) for callback in self._callbacks]
            if stop is not None:
                return "tol" if self.history[-1].loss - self._loss_floor <= self.tol else stop
            if any(ended):
                return "callback"

    def _step(self, number: int) -> str | None:
        """One step; returns why training should end, if it should."""
        with self._phase("solve"):
            outcome = self._rule.step(self, self._memory, self._solver)
        self._memory = outcome.verdict.memory
        info = replace(
            self._info(number, self._objective.loss(self._tracking.outputs)),
            gain_ratio=outcome.verdict.gain_ratio,
            accepted=outcome.verdict.accepted,
            flips=outcome.flips,
            rebased=outcome.rebased,
        )
        if outcome.direction is not None:
            solutions = outcome.direction.solutions
            info = replace(
                info,
                damping=outcome.direction.damping,
                solver=solutions[0].solver if solutions else None,
                solver_iterations=max((solution.iterations for solution in solutions), default=0),
                residual_norm=max((solution.residual_norm for solution in solutions), default=None),
                jitter=max((solution.jitter for solution in solutions), default=0.0),
            )
        self.history.steps.append(info)
        return outcome.verdict.stop

    @property
    def tracker_report(self) -> trackers.TrackerReport:
        """What tracking has cost so far; there is one from the start of `run` on."""
        return self._tracking.report()

    def view(self) -> Linearization:
        """The problem at the committed weights."""
        tracking = self._tracking
        return Linearization(
            self._objective, tracking.outputs, tracking.displacement, self._gram,
            features_squared=lambda: trackers.features_squared(self._iterate, self._inputs),
            few=self._few if len(self._inputs) > FEW else None,
        )  # fmt: skip

    def propose(self, update: Update) -> Trial:
        """What an update would do."""
        with self._phase("pass"):
            return self._tracking.propose(update, self._grams)

    def commit(self, trial: Trial) -> None:
        """Carry a trial out."""
        with self._phase("gram"):
            self._grams.follow(trial.changes)
        with self._phase("update"):
            self._tracking.commit(trial)

    def descend(self, minibatches: Minibatches) -> tuple[int, bool]:
        """Take stochastic steps; the number of flips, and whether all neurons were looked at."""
        with self._phase("pass"):
            passes = self._tracking.report().full_passes
            flips = self._tracking.descend(replace(minibatches, average=self._average), self._grams)
            if minibatches.trains_readout:
                self._start_grams()
            if self._average is not None:
                with self._tracking.materialized():
                    self._average.write(self._iterate, minibatches.averaged_after(0), self.network)
            return flips, self._tracking.report().full_passes > passes

    def _info(self, number: int, loss: float) -> StepInfo:
        with self._phase("metric"):
            metric = None
            if self._metric is not None:
                with self._tracking.materialized():
                    metric = float(self._metric(self.network))
        seconds = time.perf_counter() - self._started
        return StepInfo(step=number, loss=loss + self._loss_floor, metric=metric, seconds=seconds)

    def _loss_of_the_average(self) -> float:
        """The training loss of the network as it is left."""
        with self._phase("pass"):
            outputs = trackers.Dense().start(self.network, self._inputs, threads=self._threads).outputs
        return self._objective.loss(outputs) + self._loss_floor

    def _gram(self, output: int) -> gram.CoFiringGram:
        with self._phase("gram"):
            return self._grams(output)

    def _forecast(self) -> np.ndarray | None:
        """About the sum of g over the run: a Gauss-Newton step of a narrow sample of the network."""
        if not self._tracker.defers_weights or self.network.width < 8 * _SCOUT * self.network.out_features:
            return None
        width = max(_SCOUT, int(_SCOUT_FIRING / max(self._firing(), 1e-4))) * self.network.out_features
        scout = self._iterate.sample(min(width, self.network.width))
        view = linearize(scout, self._inputs, self._objective, self._threads)
        rule = rules.GaussNewton()
        return rule.direction(view, rule.start(view), self._solver).update.g

    def _few(self) -> Linearization:
        """The problem of samples spread evenly and of the longest, which has most of a say in how far to go."""
        spread = np.linspace(0, len(self._inputs) - 1, FEW - 1).astype(np.int64)
        length = self._objective.sample_weight * np.einsum("ij,ij->i", self._inputs, self._inputs)
        rows = np.append(spread, int(length.argmax()))
        return linearize(self._iterate, self._inputs[rows], self._objective.part(rows), self._threads)

    def _keep_anchor(self) -> None:
        """Keep W₀, unless the tracker leaves the weights as they are."""
        if not self._tracker.defers_weights:
            trackers.refuse_unstored(self._tracker.name, self._iterate)
            self._anchor = self._iterate.weight.detach().numpy().copy()

    def _start_tracking(self) -> None:
        self._tracking = self._tracker.start(
            self._iterate, self._inputs, anchor=self._anchor, threads=self._threads, state=self._tracker_state,
            expected=self._forecast(),
        )  # fmt: skip
        self._start_grams()

    def _start_grams(self) -> None:
        """H as it follows from the network's readout."""
        held = max(1, int(self._memory_limit / 4 / (12 * self._inputs.shape[0] ** 2)))
        self._grams = gram.CurrentGrams(
            self._tracking, partial(gram.similarity, self._inputs), self._iterate.coefficients, held, self._threads
        )

    def _trained(self) -> dict[str, Tensor]:
        """The tensors that training changes."""
        # The tracker's state says how far weights that are not stored have moved.
        if self._iterate.store != "array":
            return {}
        trained = {"weight": self._iterate.weight.detach()}
        return trained | ({"readout": self._iterate.readout.detach()} if self._rule.train_readout else {})

    def _fixed(self) -> tuple[Any, bytes]:
        """What else decides the outputs: settings, and the bytes of what training leaves alone."""
        return self.network.threshold, self.network.readout_identity()

    def _firing(self) -> float:
        """p, the expected part of the pairs that fire."""
        norm = float(np.sqrt(np.mean(np.einsum("ij,ij->i", self._inputs, self._inputs, dtype=np.float64))))
        return firing_probability(self.network.threshold, norm)

    def _make_plan(self, tracker, solver, memory) -> "tuple[Plan, trackers.Tracker, solvers.Solver]":
        shape = TwoLayerShape(
            samples=self._inputs.shape[0],
            features=self._inputs.shape[1],
            width=self.network.width,
            outputs=self.network.out_features,
            firing=self._firing(),
            itemsize=self._inputs.itemsize,
            anchored=self._objective.alpha > 0,
            readout_scale=max(1e-6, float(np.abs(self.network.coefficients(0, 2)).max()))
            * float(np.sqrt(self.network.width / self.network.out_features)),
            second_order=isinstance(self._rule, rules.GaussNewton),
            stored=self.network.store == "array",
            perturbed=self._rule.perturbs,
            alive=_alive(self.network, self._inputs),
            minibatches=isinstance(self._rule, rules.SGD),
            along_samples=self._objective.alpha == 0
            and not (self._rule.train_readout or self._rule.averages or self._rule.perturbs),
        )
        return plan_two_layer(shape, tracker, solver, self._threads, memory)

    def _refuse_readout(self) -> None:
        """Say at once where the second layer cannot be trained."""
        if not self._rule.train_readout:
            return
        name = self._tracker.name
        if not self._tracker.trains_readout or (self._objective.alpha > 0 and name != trackers.Dense.name):
            ridge = " with a ridge" if self._tracker.trains_readout else ""
            raise ValueError(
                f'tracker "{name}" keeps the second layer as it is{ridge}: train_readout takes "dense" or, without a '
                'ridge, "half-space-tree" over the weights'
            )
        refuse_floor(self.network)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `history.phases`, without counting a phase inside it twice."""
        phases, begun = self.history.phases, time.perf_counter()
        inner = sum(phases.values())
        try:
            yield
        finally:
            spent = time.perf_counter() - begun - (sum(phases.values()) - inner)
            phases[name] = phases.get(name, 0.0) + spent

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in (self._inputs, self._objective.targets, self._objective.sample_weight):
            digest.update(np.ascontiguousarray(array).tobytes())
        settings, identity = self._identity
        digest.update(repr((self._objective.alpha, settings, self._rule)).encode())
        digest.update(identity)
        return digest.hexdigest()

    def _restore(self, state: State) -> None:
        tensors, document = state
        if document["data"] != self._fingerprint():
            raise ValueError(
                "resume: the checkpoint belongs to other data or settings; resume with those it was made with"
            )
        with torch.no_grad():
            for name, weight in self._trained().items():
                weight.copy_(tensors[name])
        if self._average is not None:
            self._average.restore(tensors)
            self._average.write(self._iterate, document["memory"]["averaged"], self.network)
        if document["tracker"] != self._tracker.name:
            raise ValueError(f'resume: the checkpoint was made with tracker="{document["tracker"]}"; resume with it')
        if "anchor" in tensors:
            self._anchor = tensors["anchor"].numpy().copy()
        held = {name: value for name, value in tensors.items() if name.startswith("tracker.")}
        self._tracker_state = {name.removeprefix("tracker."): value.numpy() for name, value in held.items()} or None
        self._memory = dict(document["memory"])
        self.history = History.from_dict(document["history"])


def _alive(network: TwoLayer, inputs: np.ndarray) -> float:
    """Part of the neurons that fire on some sample, from the first of them; more rather than less."""
    seen = min(network.width, max(_SEEN, min(network.width // _SEEN_PART, _SEEN_PAIRS // len(inputs))))
    fire = np.any(network.rows(0, seen) @ inputs.T > network.threshold, axis=1)
    alive = float(np.count_nonzero(fire))
    return min(1.0, (alive + 2 * alive**0.5 + 1) / seen)
