"""A two-layer network in training whose neurons several processes share out (this project)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widefit import gram, trackers
from widefit.losses.base import LocalLeastSquares
from widefit.nn import TwoLayer
from widefit.nn.shard import NeuronShard
from widefit.plan.two_layer import TwoLayerPlan, plan_two_layer, workload_of
from widefit.processes import Alone
from widefit.rules import NetworkProblem, Objective, Rule
from widefit.rules.local_problem import Block, Result
from widefit.solvers import Solver
from widefit.trackers import SharedTracking, Tracker
from widefit.training.phases import Phases
from widefit.training.two_layer import Start, TwoLayerModel

# Tensors of a state with a row for every neuron.
_ROWS = ("weight", "anchor")


@dataclass(frozen=True)
class SharedOutProblem(NetworkProblem):
    """The local problem where H is an array: the processes take turns in solving for the outputs.

    Attributes
    ----------
    grams
        H of all neurons.
    processes
        Those that share the outputs out.
    """

    grams: gram.SummedCurrentGrams = field(kw_only=True)
    processes: Alone = field(kw_only=True)

    def each_block(self, work: Callable[[Block], Result]) -> list[Result]:
        """Do work on the block of each output, every process on one of as many outputs as there are processes."""
        size, outputs = self.processes.size, self.outputs.shape[1]
        if outputs == 1:
            return super().each_block(work)
        local = self.objective.expand(self.outputs)
        found: list[Result] = []
        for first in range(0, outputs, size):
            wave = range(first, min(first + size, outputs))
            operators = [self.grams.at(output, output - first) for output in wave]
            own = first + self.processes.rank
            operator = operators[self.processes.rank] if own < outputs else None
            done = self.processes.attempt(partial(self._done, work, local, own, operator))
            found += self.processes.gathered(done)[: len(wave)]
        return found

    def _done(
        self, work: Callable[[Block], Result], local: LocalLeastSquares, output: int, operator: gram.Operator | None
    ) -> Any:
        """Work on the block of an output; None where this process has none to work on."""
        return None if operator is None else work(self.block(local, output, operator))


class SharedTwoLayerModel(TwoLayerModel):
    """The weights of a network, a share of them on each process; every method is called by all processes at once.

    All have all samples, and solve for the same step from the same bits. The state of a run is that of one process.

    Parameters
    ----------
    network
        The whole network, from which the shares are taken; it stays as it is, see `join`.
    processes
        Those that share it out.
    """

    _iterate: NeuronShard

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
        tol: float,
        few: bool,
        start: Start | None,
        processes: Alone,
    ):
        self._processes = processes
        shard = NeuronShard.of(network, processes)
        super().__init__(network, inputs, objective, rule, tracker, solver, threads, memory, phases, tol, few, start)
        self._iterate = shard

    def join(self, whole: Tensor) -> None:
        """Write the weights of the whole network after the run, shape (m, d), on every process."""
        with self._phases("update"):
            self._iterate.join(self._iterate.weight.detach(), whole)

    def settings(self) -> tuple[object, bytes]:
        readout = self._network.readout_rows(0, self._network.width)
        return self._network.threshold, np.ascontiguousarray(readout).tobytes()

    @contextmanager
    def network(self) -> Iterator[TwoLayer]:
        """Inside, the share of this process with the committed weights; its outputs are those of the whole network."""
        with self._tracking.materialized():
            yield self._iterate

    def tensors(self) -> dict[str, Tensor]:
        own = super().tensors()
        return own | {name: self._iterate.joined(own[name]) for name in _ROWS if name in own}

    def replaced(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        own = super().replaced(tensors)
        like = torch.empty(self._iterate.whole, dtype=self._iterate.dtype, device="meta")
        return own | {name: like for name in _ROWS if name in own}

    def restore(self, tensors: dict[str, Tensor], averaged: float) -> None:
        own = {name: self._iterate.part(tensors[name]) for name in _ROWS if name in tensors}
        super().restore({**tensors, **own}, averaged)

    def local_problem(self) -> NetworkProblem:
        problem = super().local_problem()
        if isinstance(self._grams, gram.SummedCurrentGrams):
            own = {field.name: getattr(problem, field.name) for field in fields(problem)}
            return SharedOutProblem(**own, grams=self._grams, processes=self._processes)
        return problem

    def _planned(
        self, tracker: str | Tracker, solver: str | Solver, memory: int | None, tol: float
    ) -> tuple[TwoLayerPlan, Tracker, Solver]:
        """One plan for all, from the least memory and the most threads of any."""
        size = self._processes.size
        work = workload_of(self._network, self._inputs, self._objective.alpha, self._rule, self._few_steps)
        work = replace(work, width=-(-work.width // size), processes=size, stored=True)
        told = self._processes.gathered((work, memory, self._threads))
        least, most = min(own for _, own, _ in told), max(own for _, _, own in told)
        return plan_two_layer(told[0][0], tracker, solver, most, least, tol)

    def _start_tracking(self, state: dict[str, np.ndarray] | None) -> SharedTracking:
        # Each output may have a pair of neurons less than in another process.
        most = self._iterate.width - 4 * self._network.out_features
        return SharedTracking.start(
            self._tracker,
            self._iterate,
            self._inputs,
            anchor=self._anchor,
            threads=self._threads,
            state=state,
            expected=self._forecast(most),
        )

    def _start_grams(self) -> None:
        if self._samples is None:
            self._grams = self._arrays_of(self._tracking, self._inputs, self.plan.grams)
            return
        own = gram.FireListGrams(self._tracking, self._samples, self._iterate.coefficients, self._threads)
        self._grams = gram.SummedFireLists(own, self._processes)

    def _arrays_of(self, tracking: Any, inputs: np.ndarray, held: int) -> gram.SummedCurrentGrams:
        similarity = cache(partial(gram.similarity, inputs))
        own = gram.CurrentGrams(tracking, similarity, self._iterate.coefficients, held, self._threads)
        return gram.SummedCurrentGrams(own, similarity, held, self._processes, self._threads)

    def _few(self) -> NetworkProblem:
        rows = self._few_rows()
        inputs = self._inputs[rows]
        own = trackers.Dense().start(self._iterate, inputs, threads=self._threads)
        tracking = SharedTracking(own, self._iterate)
        grams = self._arrays_of(tracking, inputs, 1)
        return NetworkProblem(self._objective.subset(rows), tracking.outputs, None, grams)
